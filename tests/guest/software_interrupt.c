/* MSIP is a bit a hart, a level that only it sets and clears; an SSWI write (ACLINT) pends SSIP where there is one. */
#include "guest.h"

SNIPPET(s_spin, "1: j 1b")
SNIPPET(s_ecall, "")

#define SSWI 0x2f00000ul
SNIPPET(s_probe_sswi, "lw a0, 0(a0)")

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  WRITE_CSR(mie, 1 << MSI);
  set_msip(0, 0xfffffffe); /* only bit 0 is there */
  EQ(1, read32(CLINT), 0);
  EQ(2, READ_CSR(mip) & 1 << MSI, 0);
  for (int i = 0; i < 50; i++) {
    set_msip(0, 1);
    struct trap *t = run(i & 1 ? S : U, s_spin, 0, 0);
    TRAPPED(3, t, INTERRUPT | MSI, t->epc, 0);
    EQ(4, read32(CLINT), 1);
    WRITE_CSR(mip, 0);
    CHECK(5, READ_CSR(mip) & 1 << MSI);
    set_msip(0, 0);
    EVENTUALLY(199, !(READ_CSR(mip) & 1 << MSI));
    EQ(6, run(S, s_ecall, 0, 0)->cause, ECALL_S);
  }
  WRITE_CSR(mie, 0);
  if (run(M, s_probe_sswi, SSWI, 0)->cause != ECALL_M) return;
  write32(SSWI, 1);
  EVENTUALLY(199, READ_CSR(mip) & 1 << SSI);
  EQ(7, read32(SSWI), 0);
  CLEAR_CSR(mip, 1 << SSI);
  EQ(8, READ_CSR(mip) & 1 << SSI, 0);
}
