/* The UART's transmitter-empty interrupt goes through the PLIC to M and to S contexts by enable, priority and threshold;
 * claim takes it, and it does not come back before complete. */
#include "guest.h"

enum { UART_IRQ = 10 };
#define PRIORITY(irq) (PLIC + 4 * (irq))
#define PENDING(word) (PLIC + 0x1000 + 4 * (word))
/* Contexts as on QEMU's virt: 2 * hart for M, 2 * hart + 1 for S. */
#define ENABLE(context) (PLIC + 0x2000 + 0x80 * (context))
#define THRESHOLD(context) (PLIC + 0x200000 + 0x1000 * (context))
#define CLAIM(context) (THRESHOLD(context) + 4)
#define IER (UART + 1)
#define IIR (UART + 2)

SNIPPET(s_spin, "1: j 1b")
SNIPPET(s_ecall, "")
SNIPPET(s_vector, "csrr a2, scause")

static u64 pending(u64 bit) { return READ_CSR(mip) & 1ul << bit; }

static void one_context(int n, u64 context, u64 bit) {
  write32(ENABLE(context), 1 << UART_IRQ);
  EQ(n, read32(ENABLE(context)), 1 << UART_IRQ);
  write32(THRESHOLD(context), 0);
  write32(PRIORITY(UART_IRQ), 1);
  EQ(n + 1, read32(PRIORITY(UART_IRQ)), 1);
  EQ(n + 2, pending(bit), 0);
  EQ(n + 3, read32(CLAIM(context)), 0);

  write8(IER, 2);
  EVENTUALLY(n + 13, pending(bit));
  CHECK(n + 4, read32(PENDING(0)) & 1 << UART_IRQ);
  /* Priority has to be above the threshold, and above zero. */
  write32(THRESHOLD(context), 1);
  EVENTUALLY(n + 13, !pending(bit));
  write32(PRIORITY(UART_IRQ), 2);
  EVENTUALLY(n + 13, pending(bit));
  write32(PRIORITY(UART_IRQ), 0);
  EVENTUALLY(n + 13, !pending(bit));
  write32(PRIORITY(UART_IRQ), 7);
  write32(THRESHOLD(context), 7);
  EVENTUALLY(n + 13, !pending(bit));
  write32(THRESHOLD(context), 6);
  EVENTUALLY(n + 13, pending(bit));
#ifndef LAX
  write32(ENABLE(context), 0);
  EVENTUALLY(n + 13, !pending(bit));
  write32(ENABLE(context), 1 << UART_IRQ);
  EVENTUALLY(n + 13, pending(bit));
#endif

  EQ(n + 5, read32(CLAIM(context)), UART_IRQ);
  EVENTUALLY(n + 13, !pending(bit));
  EQ(n + 6, read32(CLAIM(context)), 0);
  /* Reading IIR acknowledges the transmitter's interrupt; then complete leaves nothing pending. */
  EQ(n + 7, read8(IIR) & 15, 2);
  EQ(n + 8, read8(IIR) & 15, 1);
  write32(CLAIM(context), UART_IRQ);
  EQ(n + 9, pending(bit), 0);

  /* Not acknowledged at the device: it comes back after complete. */
  write8(IER, 0), write8(IER, 2);
  EVENTUALLY(n + 13, pending(bit));
  EQ(n + 10, read32(CLAIM(context)), UART_IRQ);
  EVENTUALLY(n + 13, !pending(bit));
#ifndef LAX
  write32(CLAIM(context), UART_IRQ);
  EVENTUALLY(n + 13, pending(bit));
  EQ(n + 11, read32(CLAIM(context)), UART_IRQ);
#endif
  write8(IER, 0);
  write32(CLAIM(context), UART_IRQ);
  EQ(n + 12, pending(bit), 0);
  write32(ENABLE(context), 0);
}

static void taken(void) {
  write32(PRIORITY(UART_IRQ), 1);
  write32(THRESHOLD(0), 0), write32(THRESHOLD(1), 0);
  write32(ENABLE(0), 1 << UART_IRQ);
  WRITE_CSR(mie, 1 << MEI | 1 << SEI);
  write8(IER, 2);
  EQ(40, run(S, s_spin, 0, 0)->cause, INTERRUPT | MEI);
  EQ(41, read32(CLAIM(0)), UART_IRQ);
  write8(IER, 0);
  write32(CLAIM(0), UART_IRQ);
  EQ(42, run(S, s_ecall, 0, 0)->cause, ECALL_S);
  write32(ENABLE(0), 0);
  write32(ENABLE(1), 1 << UART_IRQ);
  WRITE_CSR(mideleg, 1 << SEI);
  WRITE_CSR(stvec, s_vector);
  SET_CSR(mstatus, MSTATUS_SIE);
  write8(IER, 2);
  struct trap *t = run(S, s_spin, 0, 0);
  EQ(43, t->cause, ECALL_S);
  EQ(44, t->x[12], INTERRUPT | SEI);
  EQ(45, read32(CLAIM(1)), UART_IRQ);
  write8(IER, 0);
  write32(CLAIM(1), UART_IRQ);
  EQ(46, pending(SEI), 0);
  /* SEIP as software wrote it and as the PLIC has it are one bit to read, two to clear. */
  SET_CSR(mip, 1 << SEI);
  CHECK(47, pending(SEI));
  CLEAR_CSR(mip, 1 << SEI);
  EQ(48, pending(SEI), 0);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  one_context(1, 0, MEI);
  one_context(20, 1, SEI);
  taken();
}
