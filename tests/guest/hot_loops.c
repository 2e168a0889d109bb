/* Loops that run long enough to be optimized, and what another hart then does to them: it changes their code, takes
 * their data page away, makes a reservation where they store. */
#include "guest.h"

/* How long loops run before something happens, in ticks of 100 ns: code that changes is optimized anew each time. */
#ifndef LONG
#define LONG 5000000
#endif
#define SHORT (LONG / 4)
#define SV39 8
#define WINDOW 0x400000000ul

enum { MOST_HARTS = 8, ROUNDS = 2 };

static u32 code[1024] __attribute__((aligned(4096)));
static u64 counters[512] __attribute__((aligned(4096)));
static u64 watched[512] __attribute__((aligned(4096)));
static u64 *root, *pte;
static u64 started, seen, ended, stop;

static void wait(u64 ticks) {
  for (u64 end = mtime() + ticks; mtime() < end;) relax();
}

static void arrive(u64 *count) { __atomic_fetch_add(count, 1, __ATOMIC_ACQ_REL); }
static void wait_for(u64 *count, u64 n) { WAIT_UNTIL(__atomic_load_n(count, __ATOMIC_ACQUIRE) == n); }

/* An IPI to all other harts; each has done its fence when it is over. */
static void tell(u64 n) {
  STORE(&seen, 0);
  FENCE(rw, rw);
  for (u64 to = 1; to < n; to++) set_msip(to, 1);
  wait_for(&seen, n - 1);
}

/* Hart 0's IPI: the fences that a kernel does for another hart. */
static bool fences(struct hart *h) {
  EQ(1, h->trap.cause, INTERRUPT | MSI);
  set_msip(h->id, 0);
  FENCE(iorw, iorw);
  sfence();
  fence_i();
  arrive(&seen);
  return true;
}

/* What came of the trap: the fence.i while the loop ran. */
static struct { u64 a0, a1, epc; } at_fence[MOST_HARTS];

static bool fences_noted(struct hart *h) {
  at_fence[h->id].a0 = h->trap.x[10], at_fence[h->id].a1 = h->trap.x[11], at_fence[h->id].epc = h->trap.epc;
  return fences(h);
}

static void with_handler(bool (*handler)(struct hart *)) {
  this_hart()->handler = handler;
  SET_CSR(mie, 1 << MSI);
  SET_CSR(mstatus, MSTATUS_MIE);
}

static void without_handler(void) {
  CLEAR_CSR(mstatus, MSTATUS_MIE);
  CLEAR_CSR(mie, 1 << MSI);
  this_hart()->handler = 0;
}

static u32 step(u32 k) { return k << 20 | 10 << 15 | 10 << 7 | 0x13; } /* addi a0, a0, k */

/* addi a0, a0, k; addi a1, a1, 1; j -8; ret. The jump becomes a nop at the end. */
static void write_loop(u32 k) {
  STORE(&code[0], step(k));
  STORE(&code[1], 0x00158593);
  STORE(&code[2], 0xff9ff06f);
  STORE(&code[3], 0x00008067);
}

static void run_patched(u64 hart, u64 k) {
  register u64 a0 asm("a0") = 0;
  register u64 a1 asm("a1") = 0;
  arrive(&started);
  asm volatile("jalr %2" : "+r"(a0), "+r"(a1) : "r"(code) : "ra", "memory");
  /* Everything behind the first fence.i took the new step; the trap may have come between the two additions. */
  u64 turns = a1 - at_fence[hart].a1 - (at_fence[hart].epc == (u64)&code[1]);
  CHECK(3, turns > 0);
  EQ(4, a0 - at_fence[hart].a0, turns * k);
}

static void patched(u64 hart, u64 n) {
  for (u32 round = 0; round < ROUNDS; round++) {
    u32 k = 2 * round + 1;
    if (hart == 0) write_loop(k), STORE(&started, 0);
    barrier();
    fence_i();
    if (hart) {
      with_handler(fences_noted);
      run_patched(hart, k + 1);
      without_handler();
    } else {
      wait_for(&started, n - 1);
      wait(LONG);
      STORE(&code[0], step(k + 1));
      tell(n);
      wait(LONG / 50);
      for (u64 to = 1; to < n; to++) harts[to].handler = fences;
      STORE(&code[2], 0x00000013);
      tell(n);
    }
    barrier();
  }
}

/* Counts in memory (at a0) and in a3, for ever. */
SNIPPET(s_count, ".option push\n.option norvc\nli a3, 0\n1: ld a2, 0(a0)\naddi a2, a2, 1\nsd a2, 0(a0)\naddi a3, a3, 1\nj 1b\n.option pop")

/* The first exception that is no IPI ends the snippet. */
static bool fences_or_out(struct hart *h) {
  return h->trap.cause == (INTERRUPT | MSI) ? fences(h) : false;
}

static void run_unmapped(u64 hart) {
  u64 va = WINDOW + 8 * hart;
  STORE(&counters[hart], 0);
  with_handler(fences_or_out);
  SET_CSR(mstatus, MSTATUS_MPIE);
  arrive(&started);
  struct trap *t = run(S, s_count, va, 0);
  without_handler();
  u64 turns = t->x[13];
  CHECK(5, t->cause == LOAD_PAGE || t->cause == STORE_PAGE);
  EQ(6, t->epc, (u64)s_count + (t->cause == LOAD_PAGE ? 4 : 12));
  EQ(7, t->tval, va);
  EQ(8, t->x[12], turns + (t->cause == STORE_PAGE));
  EQ(9, LOAD(&counters[hart]), turns);
  arrive(&ended);
}

static void unmapped(u64 hart, u64 n) {
  for (int round = 0; round < 2 * ROUNDS; round++) {
    if (hart == 0) STORE(pte, (u64)counters >> 2 | PTE_RW), STORE(&started, 0), STORE(&ended, 0);
    barrier();
    sfence();
    if (hart) {
      run_unmapped(hart);
    } else {
      u64 last[MOST_HARTS];
      wait_for(&started, n - 1);
      wait(SHORT);
      STORE(pte, 0);
      tell(n);
      for (u64 h = 1; h < n; h++) last[h] = LOAD(&counters[h]);
      wait_for(&ended, n - 1);
      for (u64 h = 1; h < n; h++) {
        EQ(10, LOAD(&counters[h]), last[h]);
        CHECK(11, last[h] > 0);
      }
    }
    barrier();
  }
}

/* Stores until `stop`; the value is another one each time. */
static void store_hot(u64 *cell) {
  u64 value = 0, flag;
  asm volatile("1: addi %0, %0, 1\n sd %0, 0(%2)\n ld %1, 0(%3)\n beqz %1, 1b"
               : "+r"(value), "=&r"(flag) : "r"(cell), "r"(&stop) : "memory");
}

/* LR, then wait until somebody stores, then SC: 1 when it failed, as it must. */
static u64 reserve(u64 *cell, bool wait_for_store) {
  u64 old, now, failed;
  asm volatile("lr.d %0, (%3)\n"
               "1: ld %1, 0(%3)\n"
               "beqz %4, 2f\n"
               "beq %0, %1, 1b\n"
               "2: sc.d %2, %0, (%3)"
               : "=&r"(old), "=&r"(now), "=&r"(failed) : "r"(cell), "r"(wait_for_store) : "memory");
  return failed;
}

static void reserved(u64 hart, u64 n) {
  if (hart == 0) STORE(&stop, 0);
  barrier();
  if (hart) {
    store_hot(&watched[hart == 1 ? 0 : 8 * hart]);
  } else {
    for (int round = 0; round < 2 * ROUNDS; round++) {
      wait(SHORT); /* longer than a page is watched */
      for (int i = 0; i < 10; i++) EQ(12, reserve(watched, true), 1);
    }
    STORE(&stop, 1);
  }
  (void)n;
  barrier();
  if (hart == 0) EQ(13, reserve(watched, false), 0);
}

void hart_main(u64 hart, u64 n) {
  CHECK(14, n >= 2 && n <= MOST_HARTS);
  if (hart == 0) {
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    map(root, SV39, WINDOW, (u64)counters, 0, PTE_RW);
    pte = pte_of(root, SV39, WINDOW, 0);
  }
  patched(hart, n);
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  unmapped(hart, n);
  WRITE_CSR(satp, 0);
  reserved(hart, n);
}
