/* SC fails without a reservation, a second time, and at another address than the LR's; a failed SC stores nothing. */
#include "guest.h"

static u64 cells[1024] __attribute__((aligned(4096)));

static u64 sc(u64 *p, u64 v) {
  u64 r;
  asm volatile("sc.d %0, %1, (%2)" : "=&r"(r) : "r"(v), "r"(p) : "memory");
  return r;
}

static u64 lr_sc(u64 *from, u64 *to, u64 v) {
  u64 r;
  asm volatile("lr.d %0, (%1)\n sc.d %0, %3, (%2)" : "=&r"(r) : "r"(from), "r"(to), "r"(v) : "memory");
  return r;
}

static u64 lr_sc_sc(u64 *p, u64 v) {
  u64 a, b;
  asm volatile("1: lr.d %0, (%2)\n sc.d %0, %3, (%2)\n sc.d %1, %4, (%2)\n bnez %0, 1b"
               : "=&r"(a), "=&r"(b) : "r"(p), "r"(v), "r"(v + 1) : "memory");
  return b;
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  sc(&cells[512], 0); /* whatever reservation there was is gone */
  CHECK(1, sc(&cells[0], 1) != 0);
  EQ(2, cells[0], 0);
  u64 tries = 0;
  while (lr_sc(&cells[0], &cells[0], 5)) CHECK(3, ++tries < 1000);
  EQ(4, cells[0], 5);
  for (int i = 0; i < 100; i++) {
    CHECK(5, lr_sc(&cells[0], &cells[512], 6) != 0);
    EQ(6, cells[512], 0);
    EQ(7, cells[0], 5);
    CHECK(8, lr_sc_sc(&cells[0], 5) != 0);
    EQ(9, cells[0], 5);
  }
  /* The failed value is 1 where the reason is "unspecified failure". */
  EQ(10, sc(&cells[0], 9), 1);
}
