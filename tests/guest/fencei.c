/* Code written by hart 0 is executed by all others after its signal and their fence.i, in every round. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 1000
#endif

static u32 code[1024] __attribute__((aligned(4096)));
static u64 round, done;

/* lui a0, value; srli a0, a0, 12; ret */
static void write_code(u32 *at, u32 value) {
  STORE(&at[1], 0x00c55513);
  STORE(&at[2], 0x00008067);
  STORE(&at[0], value << 12 | 0x537);
}

static u64 call(const u32 *at) { return ((u64(*)(void))at)(); }

void hart_main(u64 hart, u64 n) {
  u64 rounds = n > 4 ? ROUNDS / 5 : ROUNDS;
  for (u64 i = 1; i <= rounds; i++) {
    u32 *at = &code[i * 12 & 0x3fc]; /* also at new places in the page */
    if (hart == 0) {
      write_code(at, (u32)i);
      /* The code before the signal. */
      __atomic_store_n(&round, i, __ATOMIC_RELEASE);
      fence_i();
      EQ(1, call(at), i);
      WAIT_UNTIL(__atomic_load_n(&done, __ATOMIC_ACQUIRE) == i * (n - 1));
    } else {
      WAIT_UNTIL(__atomic_load_n(&round, __ATOMIC_ACQUIRE) == i);
      fence_i();
      EQ(2, call(at), i);
      EQ(3, call(at), i);
      __atomic_fetch_add(&done, 1, __ATOMIC_ACQ_REL);
    }
  }
}
