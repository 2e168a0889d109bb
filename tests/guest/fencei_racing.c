/* A word of code is rewritten while other harts execute it. They run an old word or the new one, whole (Ziccif), and
 * after a fence.i none older than the one whose signal they had seen before it. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 3000
#endif
#define ATTEMPTS 50 /* 150,000 values, of 20 bits */

static u32 code[1024] __attribute__((aligned(4096)));
static u64 round;

/* lui a0, value; srli a0, a0, 12; ret */
static void write_code(u32 *at, u32 value) {
  STORE(&at[1], 0x00c55513);
  STORE(&at[2], 0x00008067);
  STORE(&at[0], value << 12 | 0x537);
}

static u64 call(const u32 *at) { return ((u64(*)(void))at)(); }

/* Rounds of one attempt; values go on from the last one. */
static void attempt(u64 hart, u64 base) {
  if (hart == 0) write_code(code, base + 1);
  barrier();
  fence_i();
  if (hart == 0) {
    for (u32 i = base + 2; i <= base + ROUNDS; i++) {
      STORE(&code[0], i << 12 | 0x537);
      /* The code before the signal. */
      __atomic_store_n(&round, i, __ATOMIC_RELEASE);
    }
  } else {
    u64 least = base + 1;
    while (least < base + ROUNDS) {
      u64 seen = __atomic_load_n(&round, __ATOMIC_ACQUIRE);
      if (seen > base) least = seen;
      fence_i();
      u64 got = call(code);
      if (got < least) EQ(1, got, least);
      CHECK(2, got <= base + ROUNDS);
    }
  }
  barrier();
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  for (u64 k = 0; k < ATTEMPTS; k++) attempt(hart, k * ROUNDS);
}
