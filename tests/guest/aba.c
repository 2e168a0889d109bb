/* An SC fails when another hart has written the reservation set since the LR, the old value being back or not.
 *
 * Hart 1 does the LR, tells hart 0, waits for its answer and does the SC; hart 0 writes in between, in a different way
 * in each variant. Exit status: 10 * variant when any SC succeeded wrongly; the count goes to the console. Emulators
 * whose SC is a compare-and-swap fail this.
 */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 2000
#endif

enum { STORE_7_THEN_5 = 1, STORE_SAME, STORE_BYTE, AMO_ADD_ZERO, OWN_LRSC, OTHER_HALF, VARIANTS };

static u64 cell __attribute__((aligned(4096)));
static u64 ready __attribute__((aligned(4096)));
static u64 done __attribute__((aligned(64)));

static void interfere(int variant) {
  switch (variant) {
    case STORE_7_THEN_5:
      STORE(&cell, 7);
      STORE(&cell, 5);
      break;
    case STORE_SAME:
      STORE(&cell, 5);
      break;
    case STORE_BYTE:
      STORE((u8 *)&cell, 5);
      break;
    case AMO_ADD_ZERO:
      __atomic_fetch_add(&cell, 0, __ATOMIC_RELAXED);
      break;
    case OWN_LRSC: {
      u64 t;
      asm volatile("1: lr.d %0, (%1)\n sc.d %0, %0, (%1)\n bnez %0, 1b" : "=&r"(t) : "r"(&cell) : "memory");
      break;
    }
    case OTHER_HALF:
      STORE((u32 *)&cell + 1, 0);
      break;
  }
}

/* True when the SC succeeded. */
static bool attempt(u64 round) {
  u64 t;
  asm volatile("lr.d.aq %0, (%1)\n"
               "sd %4, (%2)\n"
               "1: .word 0x0100000f\n"
               "ld %0, (%3)\n"
               "bne %0, %4, 1b\n"
               "fence r, rw\n"
               "sc.d %0, %5, (%1)\n"
               : "=&r"(t) : "r"(&cell), "r"(&ready), "r"(&done), "r"(round), "r"(9ul) : "memory");
  return t == 0;
}

void hart_main(u64 hart, u64 n) {
  CHECK(1, n >= 2);
  u64 round = 0, wrong[VARIANTS] = {0};
  for (int variant = STORE_7_THEN_5; variant < VARIANTS; variant++) {
    if (hart == 0) STORE(&cell, 5);
    barrier();
    for (int i = 0; i < ROUNDS && hart < 2; i++) {
      round++;
      if (hart == 1) {
        if (attempt(round)) {
          wrong[variant]++;
          STORE(&cell, 5);
        }
      } else {
        WAIT_UNTIL(__atomic_load_n(&ready, __ATOMIC_ACQUIRE) == round);
        interfere(variant);
        __atomic_store_n(&done, round, __ATOMIC_RELEASE);
      }
    }
    barrier();
  }
  if (hart != 1) return;
  int first = 0;
  for (int variant = VARIANTS - 1; variant; variant--) {
    print("variant "), print_hex((u64)variant), print(" wrong successes "), print_hex(wrong[variant]), print("\n");
    if (wrong[variant]) first = variant;
  }
  if (first) fail(10 * first);
}
