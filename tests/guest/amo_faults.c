/* Faults of atomics: an AMO or SC faults as a store, also where the load would have, an LR as a load; and one that is
 * not aligned never does a part of its work. */
#include "guest.h"

SNIPPET(s_amoadd_w, "amoadd.w a0, a1, (a0)")
SNIPPET(s_amoadd_d, "amoadd.d a0, a1, (a0)")
SNIPPET(s_lr_w, "lr.w a0, (a0)")
SNIPPET(s_lr_d, "lr.d a0, (a0)")
SNIPPET(s_sc_d, "sc.d a0, a1, (a0)")

#define NOWHERE 0x1000000ul /* a hole of the memory map */

static u64 cell[4] __attribute__((aligned(64)));

/* An atomic that is not aligned: the address-misaligned exception, or an access fault where the machine cannot. */
static void misaligned_atomic(int n, const char *pc, u64 address, u64 misaligned, u64 access) {
  struct trap *t = run(M, pc, address, 1);
  CHECK(n, t->cause == misaligned || t->cause == access);
  EQ(n, t->epc, pc);
  EQ(n, t->tval, address);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  TRAPPED(1, run(M, s_lr_d, NOWHERE, 0), LOAD_ACCESS, s_lr_d, NOWHERE);
  TRAPPED(2, run(M, s_amoadd_w, NOWHERE, 0), STORE_ACCESS, s_amoadd_w, NOWHERE);
  TRAPPED(3, run(S, s_amoadd_d, NOWHERE, 0), STORE_ACCESS, s_amoadd_d, NOWHERE);
  u64 at = (u64)cell;
  misaligned_atomic(10, s_amoadd_w, at + 1, STORE_MISALIGNED, STORE_ACCESS);
  misaligned_atomic(11, s_amoadd_w, at + 2, STORE_MISALIGNED, STORE_ACCESS);
  misaligned_atomic(12, s_amoadd_d, at + 4, STORE_MISALIGNED, STORE_ACCESS);
  misaligned_atomic(13, s_lr_w, at + 2, LOAD_MISALIGNED, LOAD_ACCESS);
  misaligned_atomic(14, s_lr_d, at + 4, LOAD_MISALIGNED, LOAD_ACCESS);
  misaligned_atomic(15, s_sc_d, at + 4, STORE_MISALIGNED, STORE_ACCESS);
  for (int i = 0; i < 4; i++) EQ(16, cell[i], 0);
}
