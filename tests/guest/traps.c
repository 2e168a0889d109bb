/* Every synchronous trap taken to M-mode reports its cause, the pc of the instruction and its value in mtval. */
#include "guest.h"

SNIPPET(s_ecall, "")
SNIPPET(s_ones, ".word 0xffffffff")
SNIPPET(s_zero, ".half 0")
SNIPPET(s_ebreak, ".option push\n.option norvc\nebreak\n.option pop")
SNIPPET(s_c_ebreak, "c.ebreak")
SNIPPET(s_load, ".word 0x00053503")        /* ld a0, 0(a0) */
SNIPPET(s_store, ".word 0x00b53023")       /* sd a1, 0(a0) */
SNIPPET(s_lr_d, "lr.d a0, (a0)")
SNIPPET(s_jalr, "jalr a1, 0(a0)")
SNIPPET(s_csrr_unknown, ".word 0x8c102573") /* csrr a0, 0x8c1 */
SNIPPET(s_csrw_read_only, "csrw mhartid, a0")
SNIPPET(s_csrrs_read_only, "csrrs a0, mhartid, x0")
SNIPPET(s_csrr_mstatus, "csrr a0, mstatus")
SNIPPET(s_csrr_satp, "csrr a0, satp")
SNIPPET(s_csrw_sscratch, "csrw sscratch, a0\ncsrr a0, sscratch")
SNIPPET(s_mret, "mret")
SNIPPET(s_sret, "sret")
SNIPPET(s_sfence, "sfence.vma")
SNIPPET(s_fadd, "fadd.d fa0, fa0, fa0")
SNIPPET(s_csrr_fcsr, "csrr a0, fcsr")
SNIPPET(s_csrr_status, "csrr a0, mstatus")
SNIPPET(s_sret_to, "csrw sepc, a0\ncsrw sstatus, a1\nsret")

#define NOWHERE 0x1000000ul /* a hole of the memory map */

static void ecalls(void) {
  struct trap *t = run(U, s_ecall, 0, 0);
  TRAPPED(1, t, ECALL_U, s_ecall, 0);
  EQ(2, t->status & MSTATUS_MPP, (u64)U << 11);
  t = run(S, s_ecall, 0, 0);
  TRAPPED(3, t, ECALL_S, s_ecall, 0);
  EQ(4, t->status & MSTATUS_MPP, (u64)S << 11);
  t = run(M, s_ecall, 0, 0);
  TRAPPED(5, t, ECALL_M, s_ecall, 0);
  EQ(6, t->status & MSTATUS_MPP, (u64)M << 11);
}

/* mtval may be zero or the instruction's bits: the machine's choice, but nothing else. */
static void illegal(int n, u64 prv, const char *pc, u32 bits) {
  struct trap *t = run(prv, pc, 1, 0);
  EQ(n, t->cause, ILLEGAL);
  EQ(n, t->epc, pc);
  CHECK(n, t->tval == 0 || t->tval == bits);
}

static u32 word_at(const char *pc) { return *(const u16 *)pc | (u32) * (const u16 *)(pc + 2) << 16; }

static void illegals(void) {
  for (u64 prv = U; prv <= M; prv += prv == S ? 2 : 1) {
    illegal(10, prv, s_ones, 0xffffffff);
    illegal(11, prv, s_zero, 0);
    illegal(12, prv, s_csrr_unknown, word_at(s_csrr_unknown));
    illegal(13, prv, s_csrw_read_only, word_at(s_csrw_read_only));
  }
  illegal(14, U, s_csrr_mstatus, word_at(s_csrr_mstatus));
  illegal(15, S, s_csrr_mstatus, word_at(s_csrr_mstatus));
  illegal(16, S, s_csrrs_read_only, word_at(s_csrrs_read_only));
  EQ(17, run(M, s_csrrs_read_only, 1, 0)->cause, ECALL_M);
  illegal(18, U, s_csrr_satp, word_at(s_csrr_satp));
  illegal(19, U, s_csrw_sscratch, word_at(s_csrw_sscratch));
  struct trap *t = run(S, s_csrw_sscratch, 0x1234, 0);
  EQ(20, t->cause, ECALL_S);
  EQ(21, t->x[10], 0x1234);
  illegal(22, U, s_mret, word_at(s_mret));
  illegal(23, S, s_mret, word_at(s_mret));
  illegal(24, U, s_sret, word_at(s_sret));
  illegal(25, U, s_sfence, word_at(s_sfence));
  EQ(26, run(S, s_sfence, 0, 0)->cause, ECALL_S);
}

static void fp_off(void) {
  CLEAR_CSR(mstatus, MSTATUS_FS);
  illegal(30, U, s_fadd, word_at(s_fadd));
  illegal(31, M, s_fadd, word_at(s_fadd));
  illegal(32, U, s_csrr_fcsr, word_at(s_csrr_fcsr));
  EQ(33, READ_CSR(mstatus) & MSTATUS_SD, 0);
  /* Clean, then dirty by a write of an f register, with SD as its summary. */
  SET_CSR(mstatus, 2 << 13);
  EQ(34, READ_CSR(mstatus) & MSTATUS_FS, 2 << 13);
  EQ(35, run(U, s_fadd, 0, 0)->cause, ECALL_U);
  EQ(36, READ_CSR(mstatus) & MSTATUS_FS, 3 << 13);
  CHECK(37, READ_CSR(mstatus) & MSTATUS_SD);
  EQ(38, run(U, s_csrr_fcsr, 0, 0)->cause, ECALL_U);
}

static void breakpoints(void) {
  for (u64 prv = U; prv <= M; prv += prv == S ? 2 : 1) {
    /* mtval: zero or the pc, both are allowed for ebreak. */
    struct trap *t = run(prv, s_ebreak, 0, 0);
    EQ(40, t->cause, BREAKPOINT);
    EQ(41, t->epc, s_ebreak);
    CHECK(42, t->tval == 0 || t->tval == (u64)s_ebreak);
    t = run(prv, s_c_ebreak, 0, 0);
    EQ(43, t->cause, BREAKPOINT);
    EQ(44, t->epc, s_c_ebreak);
    CHECK(45, t->tval == 0 || t->tval == (u64)s_c_ebreak);
  }
}

static void access_faults(void) {
  TRAPPED(50, run(M, s_load, NOWHERE + 8, 0), LOAD_ACCESS, s_load, NOWHERE + 8);
  TRAPPED(51, run(M, s_store, NOWHERE + 16, 0), STORE_ACCESS, s_store, NOWHERE + 16);
  TRAPPED(52, run(M, s_jalr, NOWHERE + 4, 0), FETCH_ACCESS, NOWHERE + 4, NOWHERE + 4);
  TRAPPED(53, run(S, s_load, NOWHERE, 0), LOAD_ACCESS, s_load, NOWHERE);
  TRAPPED(54, run(U, s_store, NOWHERE, 0), STORE_ACCESS, s_store, NOWHERE);
  TRAPPED(56, run(M, s_lr_d, NOWHERE, 0), LOAD_ACCESS, s_lr_d, NOWHERE);
  /* Beyond the physical address space, and across the end of the address space. */
  TRAPPED(57, run(M, s_load, 1ul << 60, 0), LOAD_ACCESS, s_load, 1ul << 60);
  TRAPPED(58, run(M, s_store, -8ul, 0), STORE_ACCESS, s_store, -8ul);
  /* A faulting load leaves its destination as it was. */
  EQ(59, run(M, s_load, NOWHERE, 0)->x[10], NOWHERE);
}

static void jump_alignment(void) {
  /* With C, a jump clears bit 0 and any even target is aligned: no misaligned fetch exists. */
  struct trap *t = run(M, s_jalr, (u64)s_ecall + 1, 0);
  TRAPPED(66, t, ECALL_M, s_ecall, 0);
  EQ(67, t->x[11], (u64)s_jalr + (word_at(s_jalr) % 4 == 3 ? 4 : 2));
}

/* A trap leaves MIE in MPIE and clears it; mret gives it back and leaves MPP = U. */
static void status_stack(void) {
  WRITE_CSR(mie, 0);
  SET_CSR(mstatus, MSTATUS_MPIE);
  struct trap *t = run(M, s_ecall, 0, 0);
  CHECK(70, t->status & MSTATUS_MPIE);
  EQ(71, t->status & MSTATUS_MIE, 0);
  CLEAR_CSR(mstatus, MSTATUS_MPIE);
  t = run(M, s_ecall, 0, 0);
  EQ(72, t->status & MSTATUS_MPIE, 0);
  t = run(M, s_csrr_status, 0, 0);
  EQ(73, t->x[10] & MSTATUS_MPP, 0);
  CHECK(74, t->x[10] & MSTATUS_MPIE);
}

/* sret in S: to SPP, SIE from SPIE, SPP = U after. */
static void sret_returns(void) {
  struct trap *t = run(S, s_sret_to, (u64)s_ecall, 0);
  TRAPPED(80, t, ECALL_U, s_ecall, 0);
  t = run(S, s_sret_to, (u64)s_ecall, MSTATUS_SPP | MSTATUS_SPIE);
  TRAPPED(81, t, ECALL_S, s_ecall, 0);
  EQ(82, t->status & MSTATUS_SPP, 0);
  CHECK(83, t->status & MSTATUS_SIE);
  CHECK(84, t->status & MSTATUS_SPIE);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  ecalls();
  illegals();
  fp_off();
  breakpoints();
  access_faults();
  jump_alignment();
  status_stack();
  sret_returns();
}
