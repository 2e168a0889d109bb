/* Each hart's own mtimecmp interrupts it, not before its time and as often as it was set, all harts at once. */
#include "guest.h"

#ifndef TICKS
#define TICKS 50
#endif

static struct { u64 deadline, ticks, early; } state[MAX_HARTS] __attribute__((aligned(64)));

static u64 period(u64 hart) { return 5000 + 700 * (hart % 8); } /* about half a millisecond at 10 MHz */

static bool on_trap(struct hart *hart) {
  if (hart->trap.cause != (INTERRUPT | MTI)) return false;
  u64 now = mtime();
  if (now < state[hart->id].deadline) state[hart->id].early++;
  state[hart->id].ticks++;
  state[hart->id].deadline = now + period(hart->id);
  set_mtimecmp(hart->id, state[hart->id].ticks < TICKS ? state[hart->id].deadline : -1ul);
  return true;
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  this_hart()->handler = on_trap;
  set_mtimecmp(hart, -1ul);
  WRITE_CSR(mie, 1 << MTI);
  barrier();
  u64 start = mtime();
  state[hart].deadline = start + period(hart);
  set_mtimecmp(hart, state[hart].deadline);
  SET_CSR(mstatus, MSTATUS_MIE);
  /* Odd harts sleep, even ones spin. */
  while (LOAD(&state[hart].ticks) < TICKS)
    if (hart & 1) wfi();
  CLEAR_CSR(mstatus, MSTATUS_MIE);
  EQ(1, state[hart].ticks, TICKS);
  EQ(2, state[hart].early, 0);
  CHECK(3, mtime() - start >= TICKS * period(hart));
  EQ(4, READ_CSR(mip) & 1 << MTI, 0);
  /* time is mtime, and it does not go back. */
  u64 before = mtime(), csr = READ_CSR(time), after = mtime();
  CHECK(5, before <= csr + 1000 && csr <= after + 1000);
}
