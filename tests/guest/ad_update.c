/* With Svadu (menvcfg.ADUE) accesses set A, stores set D as well, atomically: harts that touch pages while hart 0 clears
 * A and D by AMO, as a kernel does, never lose another bit of the PTE. Skips where ADUE is not there. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 2000
#endif
#define SV39 8
#define WINDOW 0x400000000ul
#define MARK (1ul << 8) /* one of the two bits for software */

SNIPPET(s_ld, "ld a0, 0(a0)")
SNIPPET(s_sd, "sd a1, 0(a0)")

static u64 frame[512] __attribute__((aligned(4096)));
static u64 *root, *pte;
static u32 finished;

static void alone(void) {
  const u64 rw = (u64)frame >> 2 | PTE_V | PTE_R | PTE_W;
  STORE(pte, rw);
  sfence();
  EQ(1, run(S, s_ld, WINDOW, 0)->cause, ECALL_S);
  EQ(2, *pte, rw | PTE_A);
  EQ(3, run(S, s_sd, WINDOW + 8, 7)->cause, ECALL_S);
  EQ(4, *pte, rw | PTE_A | PTE_D);
  EQ(5, frame[1], 7);
  /* Not for an access that the PTE does not allow. */
  STORE(pte, (u64)frame >> 2 | PTE_V | PTE_R);
  sfence();
  TRAPPED(6, run(S, s_sd, WINDOW, 0), STORE_PAGE, s_sd, WINDOW);
  EQ(7, *pte & PTE_D, 0);
  STORE(pte, rw | MARK);
  sfence();
}

void hart_main(u64 hart, u64 n) {
  if (hart == 0) {
    SET_CSR(0x30a, MENVCFG_ADUE);
    if (!(READ_CSR(0x30a) & MENVCFG_ADUE)) fail(EXIT_SKIP);
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    pte = pte_of(root, SV39, WINDOW, 0);
    WRITE_CSR(satp, satp_of(SV39, root));
    alone();
  }
  barrier();
  SET_CSR(0x30a, MENVCFG_ADUE);
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  if (hart == 0) {
    for (u64 i = 0; __atomic_load_n(&finished, __ATOMIC_ACQUIRE) < n - 1; i++) {
      u64 old = __atomic_fetch_and(pte, ~(u64)(PTE_A | PTE_D), __ATOMIC_ACQ_REL);
      EQ(10, old & ~(u64)(PTE_A | PTE_D), (u64)frame >> 2 | PTE_V | PTE_R | PTE_W | MARK);
      if (i % 16 == 0) __atomic_fetch_xor(pte, 1ul << 9, __ATOMIC_ACQ_REL), __atomic_fetch_xor(pte, 1ul << 9, __ATOMIC_ACQ_REL);
    }
  } else {
    for (u64 i = 0; i < ROUNDS; i++) {
      sfence();
      EQ(11, run(S, s_sd, WINDOW + 8 * hart, i)->cause, ECALL_S);
      sfence();
      struct trap *t = run(S, s_ld, WINDOW + 8 * hart, 0);
      EQ(12, t->cause, ECALL_S);
      EQ(13, t->x[10], i);
    }
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
  }
  barrier();
  /* No TLB of a hart still says that D is set, now that it is not. */
  if (hart == 0) __atomic_fetch_and(pte, ~(u64)(PTE_A | PTE_D), __ATOMIC_ACQ_REL);
  barrier();
  sfence();
  EQ(14, run(S, s_sd, WINDOW + 8 * hart, 0)->cause, ECALL_S);
  EQ(15, LOAD(pte) & (PTE_A | PTE_D), PTE_A | PTE_D);
  WRITE_CSR(satp, 0);
}
