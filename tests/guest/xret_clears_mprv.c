/* mret and sret to less than M-mode clear mstatus.MPRV. */
#include "guest.h"

SNIPPET(s_ecall, "")
SNIPPET(s_sret, "csrw sepc, a0\ncsrs mstatus, a1\nsret")

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  SET_CSR(mstatus, MSTATUS_MPRV);
  EQ(1, run(M, s_ecall, 0, 0)->status & MSTATUS_MPRV, MSTATUS_MPRV);
  EQ(2, run(S, s_ecall, 0, 0)->status & MSTATUS_MPRV, 0);
  SET_CSR(mstatus, MSTATUS_MPRV);
  EQ(3, run(U, s_ecall, 0, 0)->status & MSTATUS_MPRV, 0);
  CLEAR_CSR(mstatus, MSTATUS_SPP);
  struct trap *t = run(M, s_sret, (u64)s_ecall, MSTATUS_MPRV | MSTATUS_SPP);
  EQ(4, t->cause, ECALL_S);
  EQ(5, t->status & MSTATUS_MPRV, 0);
}
