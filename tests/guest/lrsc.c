/* Counters incremented by LR/SC on all harts come out exact: constrained sequences, word and doubleword, neighbours in
 * one cache line, sequences with another load inside, and a compare-and-swap as compilers write it. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

static u64 total __attribute__((aligned(64)));
static u32 words[4] __attribute__((aligned(64)));
static u64 loose __attribute__((aligned(64)));
static u64 swapped __attribute__((aligned(64)));

static void add_d(u64 *p, u64 v) {
  u64 old, fail;
  asm volatile("1: lr.d %0, (%2)\n add %0, %0, %3\n sc.d %1, %0, (%2)\n bnez %1, 1b"
               : "=&r"(old), "=&r"(fail) : "r"(p), "r"(v) : "memory");
}

static void add_w(u32 *p, u64 v) {
  u64 old, fail;
  asm volatile("1: lr.w.aq %0, (%2)\n addw %0, %0, %3\n sc.w.rl %1, %0, (%2)\n bnez %1, 1b"
               : "=&r"(old), "=&r"(fail) : "r"(p), "r"(v) : "memory");
}

/* A load from elsewhere between LR and SC: no progress is promised by the manual, exactness is. */
static void add_with_load(u64 *p, u64 v, u64 *other) {
  u64 old, fail, junk;
  asm volatile("1: lr.d %0, (%3)\n ld %2, (%5)\n add %0, %0, %4\n sc.d %1, %0, (%3)\n bnez %1, 1b"
               : "=&r"(old), "=&r"(fail), "=&r"(junk) : "r"(p), "r"(v), "r"(other) : "memory");
}

static u64 compare_swap(u64 *p, u64 want, u64 value) {
  u64 old, fail;
  asm volatile("1: lr.d %0, (%2)\n bne %0, %3, 2f\n sc.d %1, %4, (%2)\n bnez %1, 1b\n2:"
               : "=&r"(old), "=&r"(fail) : "r"(p), "r"(want), "r"(value) : "memory");
  return old;
}

void hart_main(u64 hart, u64 n) {
  u64 rounds = ROUNDS, private = hart;
  barrier();
  for (u64 i = 0; i < rounds; i++) {
    add_d(&total, hart + 1);
    add_w(&words[i & 3], 1);
    if (i % 16 == 0) add_with_load(&loose, 1, &private);
    for (u64 seen = LOAD(&swapped), found; (found = compare_swap(&swapped, seen, seen + 1)) != seen; seen = found)
      ;
  }
  barrier();
  EQ(1, total, rounds * n * (n + 1) / 2);
  for (int i = 0; i < 4; i++) EQ(2, words[i], rounds / 4 * n);
  EQ(3, loose, (rounds + 15) / 16 * n);
  EQ(4, swapped, rounds * n);
}
