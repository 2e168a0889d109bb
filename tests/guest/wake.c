/* A hart asleep in wfi wakes for an IPI: neighbours pass a token around the ring, everyone else sleeping. */
#include "guest.h"

#ifndef LAPS
#define LAPS 200
#endif

static u64 token;

void hart_main(u64 hart, u64 n) {
  /* MIE stays clear: wfi ends for the pending interrupt without taking it. */
  WRITE_CSR(mie, 1 << MSI);
  barrier();
  for (u64 lap = 0; lap < LAPS; lap++) {
    u64 mine = lap * n + hart;
    while (__atomic_load_n(&token, __ATOMIC_ACQUIRE) != mine) {
      wfi();
      if (READ_CSR(mip) & 1 << MSI) set_msip(hart, 0);
      FENCE(iorw, iorw);
    }
    __atomic_store_n(&token, mine + 1, __ATOMIC_RELEASE);
    set_msip((hart + 1) % n, 1);
  }
  barrier();
  EQ(1, token, LAPS * n);
  set_msip(hart, 0);
}
