/* What medeleg and mideleg hand down arrives in S-mode with its own cause, pc and value; the rest stays in M. */
#include "guest.h"

/* The S-mode vector: a2..a5 take what the trap was, then to M. */
SNIPPET(s_vector, "csrr a2, scause\ncsrr a3, sepc\ncsrr a4, stval\ncsrr a5, sstatus")
SNIPPET(s_ecall, "")
SNIPPET(s_ones, ".word 0xffffffff")
SNIPPET(s_ebreak, "ebreak")
SNIPPET(s_load, "ld a0, 0(a0)")
SNIPPET(s_store, "sd a1, 0(a0)")
SNIPPET(s_jump, "jr a0")
SNIPPET(s_set_sip, "csrs sip, a0\ncsrw sie, a0\ncsrs sstatus, a1\nnop\nnop")
SNIPPET(s_wait, "csrw sie, a0\ncsrs sstatus, 2\nnop\nnop")

#define NOWHERE 0x1000000ul /* a hole of the memory map */

/* Trapped to S by the vector, which then made its ecall to M. */
static struct trap *delegated(int n, struct trap *t, u64 cause, u64 epc, u64 tval, u64 spp) {
  EQ(n, t->cause, ECALL_S);
  EQ(n, t->epc, (u64)s_vector + 16);
  EQ(n, t->x[12], cause);
  EQ(n, t->x[13], epc);
  if (tval != 1) EQ(n, t->x[14], tval);
  EQ(n, t->x[15] & MSTATUS_SPP, spp ? MSTATUS_SPP : 0);
  return t;
}

static void exceptions(void) {
  /* Bit 9, ecall from S, stays with M, so that the vector's own ecall gets there. */
  u64 all = 1 << FETCH_ACCESS | 1 << ILLEGAL | 1 << BREAKPOINT | 1 << LOAD_ACCESS | 1 << STORE_ACCESS | 1 << ECALL_U |
            1 << FETCH_PAGE | 1 << LOAD_PAGE | 1 << STORE_PAGE;
  WRITE_CSR(medeleg, all);
  EQ(1, READ_CSR(medeleg), all);
  for (u64 prv = U; prv <= S; prv++) {
    /* 1: mtval may be zero or the bits. */
    delegated(2, run(prv, s_ones, 0, 0), ILLEGAL, (u64)s_ones, 1, prv);
    delegated(3, run(prv, s_ebreak, 0, 0), BREAKPOINT, (u64)s_ebreak, 1, prv);
    delegated(4, run(prv, s_load, NOWHERE, 0), LOAD_ACCESS, (u64)s_load, NOWHERE, prv);
    delegated(5, run(prv, s_store, NOWHERE, 0), STORE_ACCESS, (u64)s_store, NOWHERE, prv);
    delegated(6, run(prv, s_jump, NOWHERE, 0), FETCH_ACCESS, NOWHERE, NOWHERE, prv);
  }
  delegated(7, run(U, s_ecall, 0, 0), ECALL_U, (u64)s_ecall, 0, U);
  EQ(8, run(S, s_ecall, 0, 0)->epc, s_ecall);
  /* Never downwards from M. */
  TRAPPED(9, run(M, s_load, NOWHERE, 0), LOAD_ACCESS, s_load, NOWHERE);
  WRITE_CSR(medeleg, 0);
  TRAPPED(10, run(S, s_load, NOWHERE, 0), LOAD_ACCESS, s_load, NOWHERE);
  TRAPPED(11, run(U, s_ecall, 0, 0), ECALL_U, s_ecall, 0);
}

static void interrupts(void) {
  /* Not delegated: a pending SSIP interrupts S-mode into M, whatever sstatus.SIE says. */
  WRITE_CSR(mideleg, 0);
  WRITE_CSR(mie, 1 << SSI);
  SET_CSR(mip, 1 << SSI);
  struct trap *t = run(S, s_ecall, 0, 0);
  TRAPPED(20, t, INTERRUPT | SSI, s_ecall, 0);
  TRAPPED(21, run(U, s_ecall, 0, 0), INTERRUPT | SSI, s_ecall, 0);
  /* Not in M with MIE clear. */
  CLEAR_CSR(mstatus, MSTATUS_MPIE);
  TRAPPED(22, run(M, s_ecall, 0, 0), ECALL_M, s_ecall, 0);
  SET_CSR(mstatus, MSTATUS_MPIE);
  TRAPPED(23, run(M, s_ecall, 0, 0), INTERRUPT | SSI, s_ecall, 0);

  WRITE_CSR(mideleg, 1 << SSI | 1 << STI | 1 << SEI);
  EQ(24, READ_CSR(mideleg) & 0x222, 0x222);
  /* Delegated: never in M, in U always, in S by SIE. */
  SET_CSR(mstatus, MSTATUS_MPIE);
  TRAPPED(25, run(M, s_ecall, 0, 0), ECALL_M, s_ecall, 0);
  delegated(26, run(U, s_ecall, 0, 0), INTERRUPT | SSI, (u64)s_ecall, 0, U);
  CLEAR_CSR(mstatus, MSTATUS_SIE);
  TRAPPED(27, run(S, s_ecall, 0, 0), ECALL_S, s_ecall, 0);
  SET_CSR(mstatus, MSTATUS_SIE);
  t = delegated(28, run(S, s_ecall, 0, 0), INTERRUPT | SSI, (u64)s_ecall, 0, S);
  /* SIE went to SPIE and was cleared. */
  EQ(29, t->x[15] & MSTATUS_SIE, 0);
  CHECK(30, t->x[15] & MSTATUS_SPIE);
  WRITE_CSR(mip, 0);

  /* S-mode raises its own software interrupt; sie and sip show only what is delegated. */
  WRITE_CSR(mie, 0);
  CLEAR_CSR(mstatus, MSTATUS_SIE);
  t = run(S, s_set_sip, 1 << SSI, MSTATUS_SIE);
  EQ(31, t->x[12], INTERRUPT | SSI);
  EQ(32, READ_CSR(mie), 1 << SSI);
  EQ(33, READ_CSR(mip) & 1 << SSI, 1 << SSI);
  WRITE_CSR(mip, 0);
  WRITE_CSR(mideleg, 0);
  WRITE_CSR(sie, 0x222);
  EQ(34, READ_CSR(mie), 1 << SSI);
  WRITE_CSR(mie, 0x222);
  EQ(35, READ_CSR(sie), 0);
  WRITE_CSR(mie, 0);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  WRITE_CSR(stvec, s_vector);
  exceptions();
  interrupts();
}
