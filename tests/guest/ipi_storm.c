/* Every hart sends IPIs to every hart, itself included; each message arrives exactly once. A sender sets a bit in the
 * target's mailbox, then MSIP; the target clears MSIP, then takes the bits. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 1000
#endif

static struct {
  u64 bits[2]; /* one bit a sender */
  u64 received[MAX_HARTS];
  u64 interrupts;
} box[MAX_HARTS] __attribute__((aligned(64)));

static bool on_trap(struct hart *hart) {
  if (hart->trap.cause != (INTERRUPT | MSI)) return false;
  set_msip(hart->id, 0);
  box[hart->id].interrupts++;
  for (int w = 0; w < 2; w++) {
    /* Clearing MSIP before taking the bits: a sender that comes later sets MSIP again. */
    FENCE(o, rw);
    u64 bits = __atomic_exchange_n(&box[hart->id].bits[w], 0, __ATOMIC_ACQ_REL);
    for (int i = 0; i < 64; i++)
      if (bits >> i & 1) __atomic_fetch_add(&box[hart->id].received[64 * w + i], 1, __ATOMIC_RELEASE);
  }
  return true;
}

static void send(u64 from, u64 to) {
  __atomic_fetch_or(&box[to].bits[from / 64], 1ul << from % 64, __ATOMIC_RELEASE);
  set_msip(to, 1);
}

void hart_main(u64 hart, u64 n) {
  this_hart()->handler = on_trap;
  WRITE_CSR(mie, 1 << MSI);
  SET_CSR(mstatus, MSTATUS_MIE);
  barrier();
  u64 rounds = ROUNDS / (n > 4 ? 4 * n : n); /* it is all to all */
  for (u64 round = 1; round <= rounds; round++) {
    for (u64 to = 0; to < n; to++) {
      /* One message in flight for each pair: wait until the last one has been counted. */
      WAIT_UNTIL(__atomic_load_n(&box[to].received[hart], __ATOMIC_ACQUIRE) == round - 1);
      send(hart, to);
    }
  }
  for (u64 to = 0; to < n; to++)
    WAIT_UNTIL(__atomic_load_n(&box[to].received[hart], __ATOMIC_ACQUIRE) == rounds);
  barrier();
  /* A message may have been taken along with another one's interrupt, before its own came. */
  WAIT_UNTIL(!(READ_CSR(mip) & 1 << MSI));
  CLEAR_CSR(mstatus, MSTATUS_MIE);
  for (u64 from = 0; from < n; from++) EQ(1, box[hart].received[from], rounds);
  EQ(2, box[hart].bits[0] | box[hart].bits[1], 0);
  /* Several messages may share an interrupt, but none comes for nothing. */
  CHECK(3, box[hart].interrupts <= rounds * n);
  EQ(4, READ_CSR(mip) & 1 << MSI, 0);
}
