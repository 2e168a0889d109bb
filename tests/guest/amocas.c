/* Zacas: amocas.w, .d and .q swap exactly when all bits of the expected value match. Skips where it is absent. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

/* amocas.{w,d,q} rd, rs2, (rs1): funct5 00101, aq and rl set. */
SNIPPET(s_probe, ".insn r 0x2f, 3, 0x17, a1, a0, a2")

static u64 single __attribute__((aligned(64)));
static u32 half[2] __attribute__((aligned(64)));
static struct { u64 low, high; } pair __attribute__((aligned(64)));

static u64 cas_d(u64 *p, u64 want, u64 value) {
  asm volatile(".insn r 0x2f, 3, 0x17, %0, %1, %2" : "+r"(want) : "r"(p), "r"(value) : "memory");
  return want;
}

static u64 cas_w(u32 *p, u64 want, u64 value) {
  asm volatile(".insn r 0x2f, 2, 0x17, %0, %1, %2" : "+r"(want) : "r"(p), "r"(value) : "memory");
  return want;
}

/* Register pairs start with an even register: a2,a3 expected, a4,a5 new. */
static bool cas_q(void *p, u64 want[2], u64 low, u64 high) {
  register u64 w0 asm("a2") = want[0];
  register u64 w1 asm("a3") = want[1];
  register u64 v0 asm("a4") = low;
  register u64 v1 asm("a5") = high;
  asm volatile(".insn r 0x2f, 4, 0x17, a2, %2, a4" : "+r"(w0), "+r"(w1) : "r"(p), "r"(v0), "r"(v1) : "memory");
  bool swapped = w0 == want[0] && w1 == want[1];
  want[0] = w0, want[1] = w1;
  return swapped;
}

static void alone(void) {
  u64 cell = 5;
  EQ(1, cas_d(&cell, 4, 9), 5);
  EQ(2, cell, 5);
  EQ(3, cas_d(&cell, 5, 9), 5);
  EQ(4, cell, 9);
  u32 word[2] = {0x80000000u, 3};
  /* Only the low word of the expected register counts, and the result is sign-extended. */
  EQ(5, cas_w(word, 0x1280000000ul, 7), 0xffffffff80000000ul);
  EQ(6, word[0], 7);
  EQ(7, word[1], 3);
}

void hart_main(u64 hart, u64 n) {
  static u64 probe;
  if (hart == 0) {
    if (run(M, s_probe, (u64)&probe, 0)->cause == ILLEGAL) fail(EXIT_SKIP);
    alone();
  }
  barrier();
  u64 want[2] = {0, 0};
  for (u64 i = 0; i < ROUNDS; i++) {
    for (u64 seen = LOAD(&single), found; (found = cas_d(&single, seen, seen + 1)) != seen; seen = found)
      ;
    for (u64 seen = LOAD(&half[1]), found; (u32)(found = cas_w(&half[1], seen, seen + 1)) != (u32)seen; seen = found)
      ;
    /* Both halves move together, high twice as fast. */
    while (!cas_q(&pair, want, want[0] + 1, want[1] + 2))
      EQ(10, want[1], 2 * want[0]);
  }
  barrier();
  EQ(11, single, ROUNDS * n);
  EQ(12, half[1], ROUNDS * n);
  EQ(13, half[0], 0);
  EQ(14, pair.low, ROUNDS * n);
  EQ(15, pair.high, 2 * ROUNDS * n);
}
