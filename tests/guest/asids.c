/* More address spaces than the TLB keeps, each with an ASID: switched between without a fence, their pages of code and
 * data remapped with fences for one ASID, from another address space or their own. */
#include "guest.h"

#define SV39 8
#define TURNS 60000

enum { SPACES = 7, MOST_HARTS = 8, CODE = 0x400000000, DATA = 0x400010000 };

/* Each round goes by a register, so that the place of its target is looked up. */
#define LOOP(name, k)                                                                              \
  asm(".pushsection .snippets, \"ax\"\n.balign 4096\n.globl " #name "\n" #name ":\n"               \
      "li a1, 0\n1: lla a2, 2f\njr a2\n.skip 256\n2: addi a1, a1, " #k "\naddi a0, a0, -1\nbnez a0, 1b\necall\n" \
      ".balign 4096\n.popsection");                                                                \
  extern const char name[];
LOOP(s_one, 1)
LOOP(s_three, 3)
SNIPPET(s_load, "ld a1, 0(a0)\necall")
SNIPPET(s_store, "sd a1, 0(a0)\necall")

static u64 pages[MOST_HARTS][2][512] __attribute__((aligned(4096)));

struct space {
  u64 *root;
  u64 satp, asid;
  int code, data; /* which of two pages each has */
};

static const char *code_of(int which) { return which ? s_three : s_one; }

static void fence(u64 va, u64 asid, u64 random) {
  switch (random % 4) {
    case 0: asm volatile("sfence.vma %0, %1" ::"r"(va), "r"(asid) : "memory"); break;
    case 1: asm volatile("sfence.vma %0, zero" ::"r"(va) : "memory"); break;
    case 2: asm volatile("sfence.vma zero, %0" ::"r"(asid) : "memory"); break;
    default: asm volatile("sfence.vma %0, %1" ::"r"(va), "r"(asid) : "memory");
  }
}

static void remap(struct space *s, u64 hart, u64 random) {
  if (random & 1) {
    s->code ^= 1;
    STORE(pte_of(s->root, SV39, CODE, 0), (u64)code_of(s->code) >> 12 << 10 | PTE_RWX);
    fence(CODE, s->asid, random >> 1);
  } else {
    s->data ^= 1;
    STORE(pte_of(s->root, SV39, DATA, 0), (u64)pages[hart][s->data] >> 12 << 10 | PTE_RW);
    fence(DATA, s->asid, random >> 1);
  }
}

static void look(struct space *s, u64 hart, u64 random) {
  WRITE_CSR(satp, s->satp);
  struct trap *t = run(S, (void *)CODE, 5, 0);
  EQ(1, t->cause, ECALL_S);
  EQ(2, t->x[11], 5 * (s->code ? 3 : 1));
  t = run(S, s_load, DATA, 0);
  EQ(3, t->cause, ECALL_S);
  EQ(4, t->x[11], pages[hart][s->data][0]);
  t = run(S, s_store, DATA + 8, random);
  EQ(5, t->cause, ECALL_S);
  EQ(6, pages[hart][s->data][1], random);
}

void hart_main(u64 hart, u64 n) {
  static struct space all[MOST_HARTS][SPACES];
  struct space *spaces = all[hart];
  CHECK(7, n <= MOST_HARTS);
  for (u64 turn = 0; turn < n; turn++) { /* tables are made by one hart at a time */
    if (turn == hart)
      for (int i = 0; i < SPACES; i++) {
        struct space *s = &spaces[i];
        s->root = new_table();
        map(s->root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX | PTE_G);
        map(s->root, SV39, CODE, (u64)s_one, 0, PTE_RWX);
        map(s->root, SV39, DATA, (u64)pages[hart][0], 0, PTE_RW);
        s->asid = 0x100ul * hart + 3 * i + 1;
        s->satp = satp_of(SV39, s->root) | s->asid << 44;
      }
    barrier();
  }
  pages[hart][0][0] = 1000 + hart, pages[hart][1][0] = 2000 + hart;
  sfence();
  u64 state = hart * 0x9e3779b97f4a7c15 + 1;
  for (int i = 0; i < TURNS; i++) {
    u64 random = next_random(&state);
    if (random % 5 == 0) remap(&spaces[random >> 8 & 7 ? (random >> 16) % SPACES : 0], hart, random >> 32);
    /* Mostly a few of them, so that they stay known. */
    look(&spaces[(random >> 24) % (random >> 20 & 3 ? 3 : SPACES)], hart, random);
  }
  barrier();
  WRITE_CSR(satp, 0);
}
