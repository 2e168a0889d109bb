/* An aligned store of a doubleword, word or half is seen whole by every hart, and so is one of a double. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 100000
#endif

static u64 cell __attribute__((aligned(64)));
static u64 fp_cell __attribute__((aligned(64)));
static u32 stop;

void hart_main(u64 hart, u64 n) {
  if (hart & 1 || n == 1) {
    u64 patterns[2] = {0, -1ul};
    for (u64 i = 0; i < ROUNDS; i++) {
      STORE(&cell, patterns[i & 1]);
      asm volatile("fmv.d.x ft0, %0\n fsd ft0, (%1)" :: "r"(patterns[i & 1]), "r"(&fp_cell) : "memory", "ft0");
    }
    __atomic_fetch_add(&stop, 1, __ATOMIC_RELEASE);
  } else {
    while (__atomic_load_n(&stop, __ATOMIC_ACQUIRE) < n / 2) {
      u64 v = LOAD(&cell), w;
      CHECK(1, v == 0 || v == -1ul);
      asm volatile("fld ft0, (%1)\n fmv.x.d %0, ft0" : "=r"(w) : "r"(&fp_cell) : "memory", "ft0");
      CHECK(2, w == 0 || w == -1ul);
    }
  }
}
