/* The 16550: scratch, divisor latch, line status, an interrupt identification of its own, and loopback of a byte. */
#include "guest.h"

enum { RBR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (int v = 0; v < 256; v += 51) {
    write8(UART + SCR, (u8)v);
    EQ(1, read8(UART + SCR), v);
  }
  EQ(2, read8(UART + LSR) & 0x60, 0x60);
  write8(UART + LCR, 0x83);
  write8(UART + 0, 0x12), write8(UART + 1, 0x34);
  EQ(3, read8(UART + 0), 0x12);
  EQ(4, read8(UART + 1), 0x34);
  write8(UART + 0, 1), write8(UART + 1, 0);
  write8(UART + LCR, 0x03);
  EQ(5, read8(UART + LCR), 0x03);
  EQ(6, read8(UART + IER), 0);
  EQ(7, read8(UART + IIR) & 15, 1);
  write8(UART + FCR, 7);
  EQ(8, read8(UART + IIR) & 0xc0, 0xc0);
  EQ(9, read8(UART + LSR) & 1, 0);
  /* Loopback: what is sent is received, and nothing goes out. */
  write8(UART + MCR, 0x10);
  for (const char *p = "loop"; *p; p++) {
    write8(UART + RBR, (u8)*p);
    EVENTUALLY(199, read8(UART + LSR) & 1);
    EQ(10, read8(UART + RBR), *p);
    EQ(11, read8(UART + LSR) & 1, 0);
  }
  write8(UART + MCR, 0);
}
