/* 0x7777 to the finisher starts the machine again from the beginning. It never ends by itself: the test counts the
 * lines. */
#include "guest.h"

void hart_main(u64 hart, u64 n) {
  (void)n;
  barrier();
  if (hart == 0) {
    print("started\n");
    write32(FINISHER, 0x7777);
  }
  for (;;) wfi();
}
