/* Memory: STREAM's triad over 64 MB, and a chase of pointers through 16 MB in random order. */
#include "bench.h"

u64 triad(int threads) {
  long n = size(64 << 20, 3 << 20) / 3 / (long)sizeof(double);
  int rounds = size(12, 2);
  double *a = allocate((size_t)n * 8), *b = allocate((size_t)n * 8), *c = allocate((size_t)n * 8);
  double sum = 0;
  (void)threads;
  for (long i = 0; i < n; i++) a[i] = 0, b[i] = (double)(i & 1023), c[i] = (double)(i & 15);
  start_clock();
  for (int round = 0; round < rounds; round++)
    for (long i = 0; i < n; i++) a[i] = b[i] + (double)(round + 3) * c[i];
  stop_clock();
  for (long i = 0; i < n; i++) sum += a[i]; /* exact: whole numbers far below 2**53 */
  return (u64)sum;
}

/* Sattolo's shuffle: a permutation that is one single cycle. */
static void make_cycle(u64 *next, u32 n) {
  u32 seed = 1;
  for (u32 i = 0; i < n; i++) next[i] = i;
  for (u32 i = n - 1; i > 0; i--) {
    u32 j = (u32)((u64)chance(&seed) * i >> 32);
    u64 other = next[i];
    next[i] = next[j];
    next[j] = other;
  }
}

u64 chase(int threads) {
  u32 n = (u32)size(16 << 20, 1 << 20) / sizeof(u64);
  int steps = size(6000000, 100000);
  u64 *next = allocate(n * sizeof *next), at = 0;
  (void)threads;
  make_cycle(next, n);
  start_clock();
  for (int i = 0; i < steps; i++) at = next[at];
  stop_clock();
  return at;
}
