/* The goldfish clock gives nanoseconds since 1970, low word first, and moves on. */
#include "guest.h"

static u64 now(void) {
  u64 low = read32(RTC); /* latches the high word */
  return low | (u64)read32(RTC + 4) << 32;
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  u64 first = now(), start = mtime();
  CHECK(1, first > 1600000000ul * 1000000000); /* 2020 */
  CHECK(2, first < 4000000000ul * 1000000000); /* 2096 */
  EVENTUALLY(199, mtime() - start > 20000); /* 2 ms */
  u64 second = now();
  CHECK(3, second - first >= 1000000);
}
