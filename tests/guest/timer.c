/* The timers of one hart: mtimecmp raises MTIP as a level, stimecmp (Sstc) STIP where menvcfg.STCE allows it, S-mode
 * may use it by mcounteren.TM. */
#include "guest.h"

SNIPPET(s_write_stimecmp, ".word 0x14d51073") /* csrw stimecmp, a0 */
SNIPPET(s_vector, "csrr a2, scause\ncsrr a3, sepc")
SNIPPET(s_spin, "1: j 1b")
SNIPPET(s_sleep, "1: wfi\nj 1b")

static void machine(void) {
  set_mtimecmp(0, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  u64 start = mtime();
  set_mtimecmp(0, start + 10000);
  EVENTUALLY(199, READ_CSR(mip) & 1 << MTI);
  CHECK(1, mtime() >= start + 10000);
  /* A level: it stays until mtimecmp is later, and software cannot clear it. */
  WRITE_CSR(mip, 0);
  CHECK(2, READ_CSR(mip) & 1 << MTI);
  set_mtimecmp(0, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  /* The halves of mtimecmp, as a 32-bit kernel writes them. */
  write32(CLINT + 0x4004, 0xffffffff), write32(CLINT + 0x4000, 5);
  EQ(3, read64(CLINT + 0x4000), 0xffffffff00000005ul);
  EQ(4, read32(CLINT + 0x4004), 0xffffffff);
  write32(CLINT + 0x4004, 0);
  EVENTUALLY(199, READ_CSR(mip) & 1 << MTI);
  set_mtimecmp(0, -1ul);
  /* Taken out of a loop and out of sleep, in S-mode with interrupts there disabled. */
  WRITE_CSR(mie, 1 << MTI);
  for (int i = 0; i < 20; i++) {
    start = mtime();
    set_mtimecmp(0, start + 2000);
    struct trap *t = run(S, i & 1 ? s_spin : s_sleep, 0, 0);
    EQ(5, t->cause, INTERRUPT | MTI);
    EQ(6, t->tval, 0);
    CHECK(7, mtime() >= start + 2000);
    set_mtimecmp(0, -1ul);
    EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  }
  WRITE_CSR(mie, 0);
  /* mtime reads in halves and as the time CSR. */
  u64 low = read32(CLINT + 0xbff8), whole = mtime();
  CHECK(8, (u32)(whole - low) < 10000000);
  u64 csr = READ_CSR(time);
  CHECK(9, csr - whole < 10000000);
}

static void supervisor(void) {
  SET_CSR(0x30a, MENVCFG_STCE);
  CHECK(20, READ_CSR(0x30a) & MENVCFG_STCE);
  WRITE_CSR(0x14d, -1ul);
  EQ(21, READ_CSR(0x14d), -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << STI));
  u64 start = mtime();
  WRITE_CSR(0x14d, start + 10000);
  EVENTUALLY(199, READ_CSR(mip) & 1 << STI);
  CHECK(22, mtime() >= start + 10000);
  /* With STCE the bit is the comparison's alone. */
  WRITE_CSR(mip, 0);
  CHECK(23, READ_CSR(mip) & 1 << STI);
  WRITE_CSR(0x14d, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << STI));
  SET_CSR(mip, 1 << STI);
  EQ(24, READ_CSR(mip) & 1 << STI, 0);
  /* Delegated: S-mode is interrupted in a loop and in sleep. */
  WRITE_CSR(mideleg, 1 << STI);
  WRITE_CSR(mie, 1 << STI);
  WRITE_CSR(stvec, s_vector);
  for (int i = 0; i < 20; i++) {
    SET_CSR(mstatus, MSTATUS_SIE);
    start = READ_CSR(time);
    WRITE_CSR(0x14d, start + 2000);
    struct trap *t = run(S, i & 1 ? s_spin : s_sleep, 0, 0);
    EQ(25, t->cause, ECALL_S);
    EQ(26, t->x[12], INTERRUPT | STI);
    CHECK(27, READ_CSR(time) >= start + 2000);
    WRITE_CSR(0x14d, -1ul);
    EVENTUALLY(199, !(READ_CSR(mip) & 1 << STI));
  }
  /* S-mode reaches stimecmp only with TM and STCE. */
  WRITE_CSR(mcounteren, 2);
  EQ(28, run(S, s_write_stimecmp, -1ul, 0)->cause, ECALL_S);
  EQ(29, run(U, s_write_stimecmp, -1ul, 0)->cause, ILLEGAL);
  WRITE_CSR(mcounteren, 0);
  EQ(30, run(S, s_write_stimecmp, -1ul, 0)->cause, ILLEGAL);
  WRITE_CSR(mcounteren, 2);
  CLEAR_CSR(0x30a, MENVCFG_STCE);
  EQ(31, run(S, s_write_stimecmp, -1ul, 0)->cause, ILLEGAL);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  machine();
  supervisor();
}
