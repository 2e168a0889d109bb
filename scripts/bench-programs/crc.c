/* CRC-32 (the one of zlib and Ethernet) by a table, several times over a buffer that fits into a cache. */
#include "bench.h"

static u32 table[256];
static u8 data[64 << 10];

static void make_table(void) {
  for (u32 i = 0; i < 256; i++) {
    u32 c = i;
    for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
    table[i] = c;
  }
}

static u32 crc32(u32 sum, const u8 *p, size_t bytes) {
  sum = ~sum;
  for (size_t i = 0; i < bytes; i++) sum = sum >> 8 ^ table[(sum ^ p[i]) & 255];
  return ~sum;
}

u64 crc(int threads) {
  u32 seed = 1, sum = 0;
  int rounds = size(1600, 4);
  (void)threads;
  make_table();
  for (size_t i = 0; i < sizeof data; i++) data[i] = (u8)(chance(&seed) >> 24);
  start_clock();
  for (int round = 0; round < rounds; round++) sum = crc32(sum, data, sizeof data);
  stop_clock();
  return sum;
}
