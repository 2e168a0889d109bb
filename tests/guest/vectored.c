/* In vectored mode an interrupt enters at base + 4 * cause, an exception at base; for mtvec and for stvec. */
#include "guest.h"

/* The table: entry n leaves n in a7. a7 says which one was entered; then on to the usual vector. */
asm(".pushsection .snippets, \"ax\"\n"
    ".balign 256\n"
    ".option push\n.option norvc\n"
    ".globl m_table\nm_table:\n"
    ".set n, 0\n.rept 16\n j m_entry + 8 * n\n.set n, n + 1\n.endr\n"
    "m_entry:\n.set n, 0\n.rept 16\n li a7, n\n j m_out\n.set n, n + 1\n.endr\n"
    "m_out: la a6, trap_vector\n jr a6\n"
    ".balign 256\n"
    ".globl s_table\ns_table:\n"
    ".set n, 0\n.rept 16\n j s_entry + 8 * n\n.set n, n + 1\n.endr\n"
    "s_entry:\n.set n, 0\n.rept 16\n li a7, n\n j s_out\n.set n, n + 1\n.endr\n"
    "s_out: ecall\n"
    ".option pop\n.popsection");
extern const char m_table[], s_table[];
SNIPPET(s_ecall, "li a7, 99")
SNIPPET(s_ebreak, "li a7, 99\nebreak")

static void machine(void) {
  u64 old = SWAP_CSR(mtvec, (u64)m_table | 1);
  EQ(1, READ_CSR(mtvec), (u64)m_table | 1);
  struct trap *t = run(S, s_ecall, 0, 0);
  EQ(2, t->cause, ECALL_S);
  EQ(3, t->x[17], 0);
  WRITE_CSR(mie, 0xaaa);
  set_msip(0, 1);
  EVENTUALLY(199, READ_CSR(mip) & 1 << MSI);
  t = run(S, s_ecall, 0, 0);
  EQ(4, t->cause, INTERRUPT | MSI);
  EQ(5, t->x[17], MSI);
  set_msip(0, 0);
  set_mtimecmp(0, 0);
  EVENTUALLY(199, READ_CSR(mip) & 1 << MTI);
  EQ(6, run(S, s_ecall, 0, 0)->x[17], MTI);
  set_mtimecmp(0, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  SET_CSR(mip, 1 << SEI);
  EQ(7, run(S, s_ecall, 0, 0)->x[17], SEI);
  CLEAR_CSR(mip, 1 << SEI);
  WRITE_CSR(mtvec, old);
}

static void supervisor(void) {
  WRITE_CSR(stvec, (u64)s_table | 1);
  EQ(10, READ_CSR(stvec), (u64)s_table | 1);
  WRITE_CSR(medeleg, 1 << BREAKPOINT);
  WRITE_CSR(mideleg, 0x222);
  WRITE_CSR(mie, 0x222);
  EQ(11, run(U, s_ebreak, 0, 0)->x[17], 0);
  for (int i = SSI; i <= SEI; i += 4) {
    SET_CSR(mip, 1ul << i);
    struct trap *t = run(U, s_ecall, 0, 0);
    EQ(12, t->cause, ECALL_S);
    EQ(13, t->x[17], i);
    EQ(14, READ_CSR(scause), INTERRUPT | (u64)i);
    CLEAR_CSR(mip, 1ul << i);
  }
  /* Direct mode again: the interrupt enters at base. */
  WRITE_CSR(stvec, s_table);
  SET_CSR(mip, 1 << SSI);
  EQ(15, run(U, s_ecall, 0, 0)->x[17], 0);
  CLEAR_CSR(mip, 1 << SSI);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  machine();
  supervisor();
}
