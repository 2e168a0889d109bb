/* Fields that take only legal values keep a legal one whatever is written; read-only bits stay. */
#include "guest.h"

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  /* satp: a mode that does not exist leaves the whole register as it was. */
  WRITE_CSR(satp, 8ul << 60 | 0x80000);
  EQ(1, READ_CSR(satp) >> 60, 8);
  u64 before = READ_CSR(satp);
  for (u64 mode = 1; mode < 16; mode++) {
    if (mode >= 8 && mode <= 10) continue;
    WRITE_CSR(satp, mode << 60 | 0x12345);
    EQ(2, READ_CSR(satp), before);
  }
  WRITE_CSR(satp, 0);
  EQ(3, READ_CSR(satp), 0);

  /* SXL and UXL: 64 only. */
  EQ(6, READ_CSR(mstatus) >> 32 & 15, 10);
  CLEAR_CSR(mstatus, 15ul << 32);
  EQ(7, READ_CSR(mstatus) >> 32 & 15, 10);

  /* mtvec, stvec: four-byte base, mode 0 or 1. */
  u64 old = READ_CSR(mtvec);
  WRITE_CSR(mtvec, 0x80001002);
  CHECK(10, (READ_CSR(mtvec) & 2) == 0);
  WRITE_CSR(mtvec, old);
  WRITE_CSR(stvec, 0x80001003);
  CHECK(11, (READ_CSR(stvec) & 2) == 0);
  WRITE_CSR(stvec, 0xffffffffffff0000);
  EQ(12, READ_CSR(stvec), 0xffffffffffff0000);

  /* misa: MXL stays, and so does I. */
  u64 misa = READ_CSR(misa);
  WRITE_CSR(misa, 0);
  EQ(13, READ_CSR(misa) >> 62, 2);
  CHECK(14, READ_CSR(misa) & 1 << 8);
  WRITE_CSR(misa, misa);
  EQ(15, READ_CSR(misa), misa);

  /* medeleg: an ecall from M is never delegated. mideleg: nor the M interrupts. */
  WRITE_CSR(medeleg, -1ul);
#ifndef LAX
  EQ(16, READ_CSR(medeleg) & 1 << ECALL_M, 0);
#endif
  WRITE_CSR(medeleg, 0);
  EQ(17, READ_CSR(medeleg), 0);
  WRITE_CSR(mideleg, -1ul);
  EQ(18, READ_CSR(mideleg) & 0xaaa, 0x222);
  WRITE_CSR(mideleg, 0);

  /* mie and mip: M's pending bits are the devices', S's are writable. */
  WRITE_CSR(mie, -1ul);
  EQ(19, READ_CSR(mie) & 0xbbb, 0xaaa);
  WRITE_CSR(mie, 0);
  set_mtimecmp(0, -1ul);
  EVENTUALLY(199, !(READ_CSR(mip) & 1 << MTI));
  WRITE_CSR(mip, -1ul);
  EQ(20, READ_CSR(mip) & 0xbbb, 0x222);
  WRITE_CSR(mip, 0);
  EQ(21, READ_CSR(mip) & 0xbbb, 0);

  /* mepc, sepc: bit 0 is zero; scratch registers hold anything. */
#ifndef LAX
  WRITE_CSR(mepc, -1ul);
  EQ(22, READ_CSR(mepc), -2ul);
  WRITE_CSR(sepc, 0x1235);
  EQ(23, READ_CSR(sepc), 0x1234);
#endif
  WRITE_CSR(sscratch, 0xfedcba9876543210);
  EQ(24, READ_CSR(sscratch), 0xfedcba9876543210);

  /* fcsr: eight bits, frm and fflags its parts. */
  WRITE_CSR(fcsr, -1ul);
  EQ(25, READ_CSR(fcsr), 0xff);
  WRITE_CSR(frm, 2);
  EQ(26, READ_CSR(fcsr), 0x5f);
  WRITE_CSR(fflags, 0x21);
  EQ(27, READ_CSR(fcsr), 0x41);
  WRITE_CSR(fcsr, 0);

  /* scause and mcause hold the codes there are. */
  for (u64 code = 0; code < 16; code++) {
    WRITE_CSR(scause, INTERRUPT | code);
    EQ(28, READ_CSR(scause), INTERRUPT | code);
  }
  /* pmpcfg: the reserved bits 5 and 6 read as zero. */
#ifndef LAX
  WRITE_CSR(pmpcfg0, 0x7f00);
  EQ(29, READ_CSR(pmpcfg0) >> 8 & 0x60, 0);
#endif
}
