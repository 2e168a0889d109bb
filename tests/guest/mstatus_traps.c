/* mstatus.TVM, TW and TSR make S-mode's satp, sfence.vma, wfi and sret illegal; without them they work. */
#include "guest.h"

SNIPPET(s_ecall, "")
SNIPPET(s_csrr_satp, "csrr a0, satp")
SNIPPET(s_csrw_satp, "csrw satp, x0")
SNIPPET(s_sfence, "sfence.vma")
SNIPPET(s_sret, "csrw sepc, a0\nsret")
SNIPPET(s_wfi, "wfi")

static void tvm(void) {
  SET_CSR(mstatus, MSTATUS_TVM);
  EQ(1, run(S, s_csrr_satp, 0, 0)->cause, ILLEGAL);
  EQ(2, run(S, s_csrw_satp, 0, 0)->cause, ILLEGAL);
  EQ(3, run(S, s_sfence, 0, 0)->cause, ILLEGAL);
  EQ(4, run(M, s_csrr_satp, 0, 0)->cause, ECALL_M);
  EQ(5, run(M, s_sfence, 0, 0)->cause, ECALL_M);
  CLEAR_CSR(mstatus, MSTATUS_TVM);
  EQ(6, run(S, s_csrr_satp, 0, 0)->cause, ECALL_S);
  EQ(7, run(S, s_csrw_satp, 0, 0)->cause, ECALL_S);
  EQ(8, run(S, s_sfence, 0, 0)->cause, ECALL_S);
}

static void tsr(void) {
  SET_CSR(mstatus, MSTATUS_TSR);
  EQ(20, run(S, s_sret, (u64)s_ecall, 0)->cause, ILLEGAL);
  EQ(21, run(M, s_sret, (u64)s_ecall, 0)->cause, ECALL_U);
  CLEAR_CSR(mstatus, MSTATUS_TSR);
  EQ(22, run(S, s_sret, (u64)s_ecall, 0)->cause, ECALL_U);
}

static void tw(void) {
  /* TW: wfi below M is illegal unless it ends within a bounded time, so with nothing pending it must trap. */
  WRITE_CSR(mie, 0);
  SET_CSR(mstatus, MSTATUS_TW);
  EQ(30, run(S, s_wfi, 0, 0)->cause, ILLEGAL);
  EQ(31, run(U, s_wfi, 0, 0)->cause, ILLEGAL);
  CLEAR_CSR(mstatus, MSTATUS_TW);
  /* A locally enabled pending interrupt ends wfi, taken or not. */
  WRITE_CSR(mie, 1 << SSI);
  WRITE_CSR(mideleg, 1 << SSI);
  CLEAR_CSR(mstatus, MSTATUS_SIE | MSTATUS_MPIE);
  SET_CSR(mip, 1 << SSI);
  EQ(32, run(S, s_wfi, 0, 0)->cause, ECALL_S);
  SET_CSR(mstatus, MSTATUS_TW);
  EQ(33, run(M, s_wfi, 0, 0)->cause, ECALL_M);
  CLEAR_CSR(mstatus, MSTATUS_TW);
  /* In M with MIE clear a timer ends it too, and is not taken. */
  WRITE_CSR(mip, 0);
  WRITE_CSR(mie, 1 << MTI);
  u64 start = mtime();
  set_mtimecmp(0, start + 20000);
  CLEAR_CSR(mstatus, MSTATUS_MIE);
  while (!(READ_CSR(mip) & 1 << MTI)) wfi();
  CHECK(34, mtime() >= start + 20000);
  set_mtimecmp(0, -1ul);
  WRITE_CSR(mie, 0);
}

/* sstatus is a view of mstatus, with only its own fields. */
static void view(void) {
  SET_CSR(mstatus, MSTATUS_TW | MSTATUS_SUM | MSTATUS_MXR);
  u64 s = READ_CSR(sstatus);
  CHECK(40, s & MSTATUS_SUM && s & MSTATUS_MXR);
  EQ(41, s & (MSTATUS_TW | MSTATUS_TVM | MSTATUS_TSR | MSTATUS_MPP | MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPRV), 0);
  EQ(42, s >> 32 & 3, 2); /* UXL: 64 */
  CLEAR_CSR(sstatus, MSTATUS_SUM | MSTATUS_MXR | MSTATUS_TW);
  EQ(43, READ_CSR(mstatus) & (MSTATUS_SUM | MSTATUS_MXR), 0);
  CHECK(44, READ_CSR(mstatus) & MSTATUS_TW);
  CLEAR_CSR(mstatus, MSTATUS_TW);
  EQ(45, READ_CSR(mstatus) >> 32 & 15, 10); /* SXL, UXL: 64 */
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  tvm();
  tsr();
  tw();
  view();
}
