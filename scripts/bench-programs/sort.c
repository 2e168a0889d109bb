/* Quicksort of random words five times, with insertion sort for short pieces. The checksum depends on the order. */
#include "bench.h"

static void insertion(u32 *v, long n) {
  for (long i = 1; i < n; i++) {
    u32 moved = v[i];
    long j = i;
    for (; j > 0 && v[j - 1] > moved; j--) v[j] = v[j - 1];
    v[j] = moved;
  }
}

/* Hoare's partition around the middle element. */
static void quicksort(u32 *v, long n) {
  while (n > 16) {
    u32 pivot = v[n / 2];
    long i = -1, j = n;
    for (;;) {
      do i++; while (v[i] < pivot);
      do j--; while (v[j] > pivot);
      if (i >= j) break;
      u32 other = v[i];
      v[i] = v[j];
      v[j] = other;
    }
    quicksort(v, j + 1);
    v += j + 1;
    n -= j + 1;
  }
  insertion(v, n);
}

u64 sort(int threads) {
  long n = size(2000000, 20000);
  u32 seed = 1, *v = allocate((size_t)n * sizeof *v);
  u64 sum = 0;
  (void)threads;
  start_clock();
  for (int round = 0; round < size(5, 1); round++) {
    for (long i = 0; i < n; i++) v[i] = chance(&seed);
    quicksort(v, n);
  }
  stop_clock();
  for (long i = 0; i < n; i++) sum = sum * 31 + v[i];
  return sum;
}
