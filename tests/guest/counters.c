/* cycle, time and instret are for S and U by mcounteren and scounteren, count, stop by mcountinhibit and can be written. */
#include "guest.h"

SNIPPET(s_cycle, "csrr a0, cycle")
SNIPPET(s_time, "csrr a0, time")
SNIPPET(s_instret, "csrr a0, instret")
SNIPPET(s_hpm3, "csrr a0, hpmcounter3")
SNIPPET(s_write_cycle, "csrw cycle, a0")

static const char *const all[] = {s_cycle, s_time, s_instret};

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (int i = 0; i < 3; i++) {
    WRITE_CSR(mcounteren, 0);
    WRITE_CSR(scounteren, 7);
    EQ(1, run(S, all[i], 0, 0)->cause, ILLEGAL);
    EQ(2, run(U, all[i], 0, 0)->cause, ILLEGAL);
    EQ(3, run(M, all[i], 0, 0)->cause, ECALL_M);
    WRITE_CSR(mcounteren, 1 << i);
    WRITE_CSR(scounteren, 7 & ~(1 << i));
    EQ(4, run(S, all[i], 0, 0)->cause, ECALL_S);
    EQ(5, run(U, all[i], 0, 0)->cause, ILLEGAL);
    EQ(6, run(S, all[(i + 1) % 3], 0, 0)->cause, ILLEGAL);
    WRITE_CSR(scounteren, 1 << i);
    EQ(7, run(U, all[i], 0, 0)->cause, ECALL_U);
  }
  WRITE_CSR(mcounteren, 7);
  EQ(8, run(S, s_hpm3, 0, 0)->cause, ILLEGAL);
  EQ(9, run(M, s_write_cycle, 0, 0)->cause, ILLEGAL);

  /* They move on, and time moves at 10 MHz of its own. */
  u64 cycle = READ_CSR(mcycle), instret = READ_CSR(minstret), time = READ_CSR(time);
  for (volatile int i = 0; i < 20000; i++)
    ;
  CHECK(10, READ_CSR(mcycle) > cycle);
  CHECK(11, READ_CSR(minstret) > instret);
  CHECK(12, READ_CSR(time) > time);

  WRITE_CSR(mcountinhibit, 5);
  if (READ_CSR(mcountinhibit) == 5) {
    cycle = READ_CSR(mcycle), instret = READ_CSR(minstret);
    for (volatile int i = 0; i < 1000; i++)
      ;
    EQ(13, READ_CSR(mcycle), cycle);
    EQ(14, READ_CSR(minstret), instret);
    WRITE_CSR(mcountinhibit, 0);
  }
  WRITE_CSR(mcycle, 1ul << 40);
  CHECK(15, READ_CSR(mcycle) >> 40 == 1);
  WRITE_CSR(minstret, 1ul << 41);
  CHECK(16, READ_CSR(minstret) >> 41 == 1);
}
