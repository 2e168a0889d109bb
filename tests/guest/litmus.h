/* Two-hart litmus tests: harts 2k and 2k+1 are a pair and run both sides over an array of fresh locations, so that
 * thousands of rounds need only two meetings. Outcomes that RVWMO forbids must never be seen. */
#pragma once

#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 200000
#endif
#define BATCH 1024

/* Each location in its own cache line: an engine or host may treat neighbours alike. */
struct location { u64 x; u64 fill[7]; u64 y; u64 more[7]; };

static struct pair {
  struct location at[BATCH] __attribute__((aligned(64)));
  u64 r[2][BATCH], s[2][BATCH];
  u32 arrived __attribute__((aligned(64))), generation;
} pairs[2];

/* A meeting of the two harts of a pair. */
static void meet(struct pair *pair) {
  u32 mine = __atomic_load_n(&pair->generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&pair->arrived, 1, __ATOMIC_ACQ_REL) == 2) {
    pair->arrived = 0;
    __atomic_store_n(&pair->generation, mine + 1, __ATOMIC_RELEASE);
  } else {
    WAIT_UNTIL(__atomic_load_n(&pair->generation, __ATOMIC_ACQUIRE) != mine);
  }
}

static inline void print_count(const char *what, u64 count) {
  print(what), print(" "), print_hex(count), print("\n");
}

/* Runs the test on each pair; side(pair, i, half) is one round of one half, seen(pair, i) is true for the outcome
 * in question. Returns how often it was seen by this pair. */
static u64 litmus(u64 hart, void (*side)(struct pair *, u64, int), bool (*seen)(struct pair *, u64)) {
  struct pair *pair = &pairs[hart / 2];
  u64 count = 0;
  int half = hart & 1;
  for (u64 done = 0; done < ROUNDS; done += BATCH) {
    meet(pair);
    for (u64 i = half; i < BATCH; i += 2) STORE(&pair->at[i].x, 0), STORE(&pair->at[i].y, 0);
    meet(pair);
    for (u64 i = 0; i < BATCH; i++) side(pair, i, half);
    meet(pair);
    if (half == 0)
      for (u64 i = 0; i < BATCH; i++) count += seen(pair, i);
  }
  return count;
}

/* Pairs that exist on a machine of n harts; the others only wait. */
static bool takes_part(u64 hart, u64 n) { return hart < 4 && (hart | 1) < n; }
