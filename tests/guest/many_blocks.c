/* More code than a small code cache holds, executed again and again by all harts, while they also sleep, trap, ask a
 * device, send each other IPIs, watch a reservation, and rewrite what the others execute. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

enum { FUNCTIONS = 1024, WORDS = 16, SLOTS = 8 };

static u32 code[FUNCTIONS][WORDS] __attribute__((aligned(4096)));
static u64 watched[512] __attribute__((aligned(4096)));
static u64 generation, device, total_added;

SNIPPET(s_nothing, "nop")

/* lui a0, value; srli a0, a0, 12; ret */
static void write_function(u32 number, u32 value) {
  STORE(&code[number][1], 0x00c55513);
  STORE(&code[number][2], 0x00008067);
  STORE(&code[number][0], value << 12 | 0x537);
}

static u64 call(u32 number) { return ((u64(*)(void))code[number])(); }

/* A load between LR and SC: the LR waits for all harts to see that the page is watched. */
static void add_watched(u64 *p) {
  u64 value, failed;
  do
    asm volatile("lr.d %0, (%2)\n ld %1, 8(%2)\n add %0, %0, 1\n sc.d %1, %0, (%2)"
                 : "=&r"(value), "=&r"(failed)
                 : "r"(p)
                 : "memory");
  while (failed);
}

/* A write of a register that the I/O process answers: the hart waits in the middle of a store. */
static void ask_device(void) {
  if (device) write32(device + 0x70, 0);
}

static void nap(u64 hart) {
  set_mtimecmp(hart, mtime() + 200);
  SET_CSR(mie, 1 << MTI);
  wfi();
  set_mtimecmp(hart, ~0ul);
}

/* Function 0 gives the number of the round in which hart 0 wrote it. */
static void rewrite(u64 round) {
  u32 value = (u32)(round & 0xffff);
  write_function(0, value);
  __atomic_store_n(&generation, value, __ATOMIC_RELEASE);
  fence_i();
  EQ(3, call(0), value);
}

static void look(void) {
  u64 least = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
  fence_i();
  u64 got = call(0);
  CHECK(4, got >= least);
}

static void something_rare(u64 hart, u64 n, u64 round, u64 kind) {
  if (kind == 0) nap(hart);
  if (kind == 1) EQ(2, run(M, s_nothing, 0, 0)->cause, ECALL_M);
  if (kind == 2) ask_device();
  if (kind == 3) add_watched(watched);
  if (kind == 4) set_msip((hart + 1) % n, 1), set_msip((hart + 1) % n, 0);
  if (kind == 5) hart == 0 ? rewrite(round) : look();
}

void hart_main(u64 hart, u64 n) {
  if (hart == 0) {
    for (u32 i = 0; i < FUNCTIONS; i++) write_function(i, i);
    for (u64 at = 0x10001000; at < 0x10001000 + SLOTS * 0x1000; at += 0x1000)
      if (read32(at + 8)) device = at;
  }
  barrier();
  fence_i();
  u64 state = hart * 0x9e3779b97f4a7c15 + 1;
  u64 rounds = ROUNDS / n;
  u64 added = 0;
  for (u64 i = 1; i <= rounds; i++) {
    u64 random = next_random(&state);
    u32 number = 1 + random % (FUNCTIONS - 1);
    EQ(1, call(number), number);
    if ((random >> 20) % 16 == 0) {
      u64 kind = (random >> 30) % 6;
      added += kind == 3;
      something_rare(hart, n, i, kind);
    }
  }
  __atomic_fetch_add(&total_added, added, __ATOMIC_ACQ_REL);
  barrier();
  EQ(5, LOAD(&watched[0]), LOAD(&total_added));
}
