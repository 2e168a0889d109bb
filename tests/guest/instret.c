/* instret counts exactly: straight code, taken branches, loads, fence.i and system instructions. */
#include "guest.h"

#define COUNTED(body) \
  ({ u64 _a, _b; asm volatile("csrr %0, minstret\n" body "csrr %1, minstret" : "=&r"(_a), "=&r"(_b) :: "memory", "t0", "t1"); _b - _a; })

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (int i = 0; i < 100; i++) {
    EQ(1, COUNTED(""), 1);
    EQ(2, COUNTED("nop\nnop\nnop\nnop\n"), 5);
    EQ(3, COUNTED("li t0, 100\n1: addi t0, t0, -1\nbnez t0, 1b\n"), 202);
    EQ(4, COUNTED("j 1f\nnop\n1: nop\n"), 3);
    EQ(5, COUNTED("la t0, harts\nld t1, 0(t0)\nfence.i\nld t1, 8(t0)\n"), 6);
  }
  /* A write is not incremented by its own instruction. */
  u64 after;
  asm volatile("csrw minstret, x0\n csrr %0, minstret" : "=r"(after));
  EQ(6, after, 0);
}
