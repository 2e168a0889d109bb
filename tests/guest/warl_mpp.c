/* mstatus.MPP never holds 2, which is no privilege. */
#include "guest.h"

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (u64 prv = 0; prv < 4; prv++) {
    CLEAR_CSR(mstatus, MSTATUS_MPP);
    SET_CSR(mstatus, prv << 11);
    u64 got = READ_CSR(mstatus) >> 11 & 3;
    if (prv == 2)
      CHECK(1, got != 2);
    else
      EQ(2, got, prv);
  }
}
