/* Of several pending interrupts the one of the highest priority is taken: external, software, timer; M before S. */
#include "guest.h"

SNIPPET(s_ecall, "")

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  WRITE_CSR(mideleg, 0);
  WRITE_CSR(mie, 0xaaa);
  set_mtimecmp(0, 0);
  set_msip(0, 1);
  SET_CSR(mip, 1 << SEI | 1 << STI | 1 << SSI);
  EVENTUALLY(199, (READ_CSR(mip) & (1 << MTI | 1 << MSI)) == (1 << MTI | 1 << MSI));
  EQ(10, run(S, s_ecall, 0, 0)->cause, INTERRUPT | MSI);
  set_msip(0, 0);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MSI));
  EQ(11, run(S, s_ecall, 0, 0)->cause, INTERRUPT | MTI);
  set_mtimecmp(0, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  EQ(12, run(S, s_ecall, 0, 0)->cause, INTERRUPT | SEI);
  CLEAR_CSR(mip, 1 << SEI);
  EQ(13, run(S, s_ecall, 0, 0)->cause, INTERRUPT | SSI);
  CLEAR_CSR(mip, 1 << SSI);
  EQ(14, run(S, s_ecall, 0, 0)->cause, INTERRUPT | STI);
  CLEAR_CSR(mip, 1 << STI);
  EQ(15, run(S, s_ecall, 0, 0)->cause, ECALL_S);
  /* A pending M interrupt goes before any delegated one. */
  WRITE_CSR(mideleg, 0x222);
  SET_CSR(mip, 1 << SSI);
  set_msip(0, 1);
  EVENTUALLY(199, READ_CSR(mip) & 1 << MSI);
  EQ(16, run(U, s_ecall, 0, 0)->cause, INTERRUPT | MSI);
  set_msip(0, 0);
  CLEAR_CSR(mip, 1 << SSI);
  WRITE_CSR(mie, 0);
}
