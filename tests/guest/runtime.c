/* What every guest program shares: start of the C side, console, end of the machine, barrier, page tables. */

#include <stddef.h>

#include "guest.h"

struct hart harts[MAX_HARTS] __attribute__((aligned(64)));

_Static_assert(offsetof(struct hart, trap.x) == REGS, "REGS");
_Static_assert(offsetof(struct hart, trap.cause) == CAUSE, "CAUSE");
_Static_assert(offsetof(struct hart, trap.epc) == EPC, "EPC");
_Static_assert(offsetof(struct hart, trap.tval) == TVAL, "TVAL");
_Static_assert(offsetof(struct hart, trap.status) == STATUS, "STATUS");
_Static_assert(offsetof(struct hart, saved) == SAVED, "SAVED");
_Static_assert(offsetof(struct hart, entered) == ENTERED, "ENTERED");
_Static_assert(offsetof(struct hart, handler) == HANDLER, "HANDLER");
_Static_assert(offsetof(struct hart, trap_sp) == TRAP_SP, "TRAP_SP");
_Static_assert(sizeof(struct hart) <= HART_SIZE, "HART_SIZE");

static u32 hart_count;
static u32 console_lock;

void print(const char *text) {
  for (; *text; text++) {
    while (!(read8(UART + 5) & 0x20))
      ;
    write8(UART, (u8)*text);
  }
}

void print_hex(u64 value) {
  char text[19] = "0x";
  for (int i = 0; i < 16; i++) text[2 + i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
  text[18] = 0;
  print(text);
}

static _Noreturn void finish(u32 value) {
  write32(FINISHER, value);
  for (;;) wfi();
}

void pass(void) { finish(0x5555); }
void fail(int code) { finish((u32)code << 16 | 0x3333); }

/* The first hart that fails speaks; the others wait for the end. */
static void take_console(void) {
  CLEAR_CSR(mstatus, MSTATUS_MIE | MSTATUS_MPRV);
  while (__atomic_exchange_n(&console_lock, 1, __ATOMIC_ACQUIRE)) relax();
}

static void print_decimal(u64 value) {
  char text[21];
  char *p = text + 20;
  *p = 0;
  do *--p = (char)('0' + value % 10); while (value /= 10);
  print(p);
}

void check_failed(int n, const char *text, const char *file, int line, u64 got, u64 want) {
  take_console();
  print("check "), print_decimal((u64)n), print(" failed at "), print(file), print(":"), print_decimal((u64)line);
  print(" on hart "), print_decimal(READ_CSR(mhartid)), print(": "), print(text);
  print(": got "), print_hex(got), print(", want "), print_hex(want), print("\n");
  fail(n);
}

_Noreturn void unexpected_trap(struct hart *hart) {
  take_console();
  print("unexpected trap on hart "), print_decimal(READ_CSR(mhartid));
  print(": mcause "), print_hex(hart->trap.cause), print(" mepc "), print_hex(hart->trap.epc);
  print(" mtval "), print_hex(hart->trap.tval), print("\n");
  fail(EXIT_UNEXPECTED);
}

static u32 big_endian(const u8 *p) { return (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3]; }

static bool same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

/* Harts in the flattened device tree: nodes whose device_type is cpu. */
static u32 count_cpus(const u8 *dtb) {
  if (((u64)dtb & 7) || !dtb || big_endian(dtb) != 0xd00dfeed) fail(EXIT_NO_DTB);
  const u8 *token = dtb + big_endian(dtb + 8);
  const char *strings = (const char *)dtb + big_endian(dtb + 12);
  u32 count = 0;
  for (;;) switch (big_endian(token)) {
      case 1: /* a node begins: its name, padded to four bytes */
        for (token += 4; *token; token++)
          ;
        token = (const u8 *)(((u64)token + 4) & ~3ul);
        break;
      case 3: { /* a property: length, offset of its name, value padded to four bytes */
        u32 length = big_endian(token + 4);
        const char *name = strings + big_endian(token + 8);
        if (length == 4 && same(name, "device_type") && same((const char *)token + 12, "cpu")) count++;
        token += 12 + ((length + 3) & ~3u);
        break;
      }
      case 9:
        return count;
      default:
        token += 4;
    }
}

/* Everything open to S and U, as programs expect that do not test PMP. */
static void open_pmp(void) {
  WRITE_CSR(pmpaddr0, -1ul);
  WRITE_CSR(pmpcfg0, 0x1f);
}

void runtime_main(u64 id, const u8 *dtb, struct hart *hart) {
  hart->id = id;
  u64 sp;
  asm volatile("mv %0, sp" : "=r"(sp));
  /* The upper part of the stack is for the program, the lower one for trap handlers. */
  hart->trap_sp = (sp & ~15ul) - ((1ul << STACK_SHIFT) - TRAP_STACK);
  open_pmp();
  WRITE_CSR(0x30a, 0); /* menvcfg: no Sstc, no Svadu, which a reset need not give */
  if (id == 0)
    __atomic_store_n(&hart_count, count_cpus(dtb), __ATOMIC_RELEASE);
  else
    WAIT_UNTIL(__atomic_load_n(&hart_count, __ATOMIC_ACQUIRE));
  hart_main(id, hart_count);
  barrier();
  if (id == 0) pass();
}

void barrier(void) {
  static u32 arrived, generation;
  u32 mine = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == hart_count) {
    arrived = 0;
    /* arrived = 0 before the generation that lets the others arrive again. */
    __atomic_store_n(&generation, mine + 1, __ATOMIC_RELEASE);
  } else {
    WAIT_UNTIL(__atomic_load_n(&generation, __ATOMIC_ACQUIRE) != mine);
  }
}

#define TABLES 128
static u64 tables[TABLES][512] __attribute__((aligned(4096)));

u64 *new_table(void) {
  static u32 used;
  u32 n = __atomic_fetch_add(&used, 1, __ATOMIC_RELAXED);
  CHECK(200, n < TABLES);
  return tables[n];
}

u64 *pte_of(u64 *root, int mode, u64 va, int level) {
  u64 *table = root;
  /* Sv39 (mode 8) has levels 2 to 0. */
  for (int l = mode - 6; l > level; l--) {
    u64 *pte = &table[va >> (12 + 9 * l) & 511];
    if (!(*pte & PTE_V)) *pte = (u64)new_table() >> 2 | PTE_V;
    table = (u64 *)(*pte << 2 & ~0xffful);
  }
  return &table[va >> (12 + 9 * level) & 511];
}

void map(u64 *root, int mode, u64 va, u64 pa, int level, u64 flags) {
  *pte_of(root, mode, va, level) = pa >> 12 << 10 | flags;
}

/* gcc may emit calls to these. */
void *memset(void *to, int byte, u64 n) {
  for (u64 i = 0; i < n; i++) ((volatile u8 *)to)[i] = (u8)byte;
  return to;
}

void *memcpy(void *to, const void *from, u64 n) {
  for (u64 i = 0; i < n; i++) ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
  return to;
}
