/* Matrix product in double precision. The elements are small integers, so that the result is exact whether or not the
 * compiler fuses multiplication and addition. */
#include "bench.h"

#define MOST 256
static double a[MOST][MOST], b[MOST][MOST], c[MOST][MOST];

static void product(int n) {
  for (int i = 0; i < n; i++)
    for (int k = 0; k < n; k++) {
      double x = a[i][k];
      for (int j = 0; j < n; j++) c[i][j] += x * b[k][j];
    }
}

u64 matmul(int threads) {
  int n = size(MOST, 48);
  u32 seed = 1;
  u64 sum = 0;
  (void)threads;
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      a[i][j] = chance(&seed) >> 24;
      b[i][j] = chance(&seed) >> 24;
    }
  start_clock();
  product(n);
  stop_clock();
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) sum = sum * 31 + (u64)c[i][j];
  return sum;
}
