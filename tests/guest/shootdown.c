/* A PTE changed by hart 0 takes effect on every hart that executes sfence.vma after hart 0's IPI, round after round,
 * for reads, for writes (the page is made read-only) and for an unmapped page. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 300
#endif

#define SV39 8
#define WINDOW 0x400000000ul

SNIPPET(s_load, ".option push\n.option norvc\nld a0, 0(a0)\n.option pop")
SNIPPET(s_store, "sd a1, 0(a0)")

static u64 frames[2][512] __attribute__((aligned(4096)));
static u64 *root, *pte, done;

enum { TO_0, TO_1, READ_ONLY, UNMAPPED, STATES };

static u64 pte_for(u64 state) {
  u64 frame = (u64)frames[state == TO_1] >> 2;
  return state == UNMAPPED ? 0 : frame | (state == READ_ONLY ? PTE_V | PTE_R | PTE_A : PTE_RW);
}

static void look(u64 state) {
  u64 va = WINDOW + 8 * 7;
  struct trap *t = run(S, s_load, va, 0);
  if (state == UNMAPPED) {
    TRAPPED(1, t, LOAD_PAGE, s_load, va);
  } else {
    EQ(2, t->cause, ECALL_S);
    EQ(3, t->x[10], 1000 + (state == TO_1));
  }
  va = WINDOW + 8 * (64 + READ_CSR(mhartid));
  t = run(S, s_store, va, READ_CSR(mhartid));
  if (state == UNMAPPED || state == READ_ONLY)
    TRAPPED(4, t, STORE_PAGE, s_store, va);
  else
    EQ(5, t->cause, ECALL_S);
}

void hart_main(u64 hart, u64 n) {
  if (hart == 0) {
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    map(root, SV39, WINDOW, (u64)frames[0], 0, PTE_RW);
    pte = pte_of(root, SV39, WINDOW, 0);
    frames[0][7] = 1000, frames[1][7] = 1001;
  }
  barrier();
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  EQ(6, READ_CSR(satp) >> 60, SV39);
  look(TO_0);
  barrier();
  for (u64 i = 1; i <= ROUNDS; i++) {
    u64 state = i % STATES;
    if (hart == 0) {
      STORE(pte, pte_for(state));
      FENCE(rw, rw);
      for (u64 to = 1; to < n; to++) set_msip(to, 1);
      sfence();
      look(state);
      WAIT_UNTIL(__atomic_load_n(&done, __ATOMIC_ACQUIRE) == i * (n - 1));
    } else {
      WAIT_UNTIL(READ_CSR(mip) & 1 << MSI);
      set_msip(hart, 0);
      FENCE(iorw, iorw);
      sfence();
      look(state);
      WAIT_UNTIL(!(READ_CSR(mip) & 1 << MSI));
      __atomic_fetch_add(&done, 1, __ATOMIC_ACQ_REL);
    }
  }
  WRITE_CSR(satp, 0);
}
