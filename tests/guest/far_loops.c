/* A loop that calls a function in another page, long enough to be optimized together with it; the function's page is
 * then mapped to another function, mapped nowhere, or rewritten, while the loop's own page stays what it is. */
#include "guest.h"

#ifndef TIME
#define TIME 8000000 /* in ticks of 100 ns */
#endif
#define SV39 8
#define TURNS 100000

enum { MOST_HARTS = 8, WORDS = 1024 };

static u32 frames[MOST_HARTS][3][WORDS] __attribute__((aligned(4096)));
static u64 *root;

static u64 window(u64 hart) { return 0x400000000ul + (hart << 21); }
static u32 addi(u32 rd, u32 rs1, u32 k) { return k << 20 | rs1 << 15 | rd << 7 | 0x13; }

/* jal ra, 4096; addi a0, a0, -1; bnez a0, -8; ecall: its function is at the start of the next page. */
static void write_caller(u32 *frame) {
  frame[0] = 0x000010ef;
  frame[1] = addi(10, 10, 0xfff);
  frame[2] = 0xfe051ce3;
  frame[3] = 0x00000073;
}

/* addi a1, a1, k; ret. */
static void write_function(u32 *frame, u32 k) {
  STORE(&frame[0], addi(11, 11, k));
  STORE(&frame[1], 0x00008067);
}

static void remap(u64 va, u64 entry, u64 random) {
  STORE(pte_of(root, SV39, va, 0), entry);
  if (random & 1)
    sfence();
  else
    asm volatile("sfence.vma %0, zero" ::"r"(va) : "memory");
}

static u64 entry_of(const void *frame) { return (u64)frame >> 12 << 10 | PTE_RWX; }

static struct trap *turns(u64 va, u64 count) {
  struct trap *t = run(S, (void *)va, count, 0);
  EQ(1, t->cause, ECALL_S);
  return t;
}

/* `run` leaves 0 in a1. */
static void check(int n, u64 va, u64 count, u64 k) { EQ(n, turns(va, count)->x[11], k * count); }

/* Until the end of its turn a function's page is mapped; every other time, it is not mapped then. */
static void another_function(u64 va, u32 (*frame)[WORDS], u64 random) {
  u64 which = 1 + (random >> 8 & 1);
  remap(va + 4096, entry_of(frame[which]), random);
  check(2, va, TURNS, which == 1 ? 1 : 3);
  if (random >> 9 & 1) return;
  remap(va + 4096, 0, random >> 1);
  struct trap *t = run(S, (void *)va, TURNS, 0);
  EQ(5, t->cause, 12); /* instruction page fault */
  EQ(6, t->tval, va + 4096);
  EQ(7, t->x[10], TURNS);
}

static void rewritten_function(u64 va, u32 (*frame)[WORDS]) {
  remap(va + 4096, entry_of(frame[1]), 0);
  for (u32 k = 5; k < 8; k++) {
    write_function(frame[1], k);
    fence_i();
    check(3, va, TURNS, k);
  }
  write_function(frame[1], 1);
  fence_i();
}

void hart_main(u64 hart, u64 n) {
  CHECK(12, n <= MOST_HARTS);
  u64 va = window(hart), state = hart * 0x9e3779b97f4a7c15 + 1;
  if (hart == 0) {
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    for (u64 h = 0; h < n; h++)
      for (u64 page = 0; page < 2; page++) map(root, SV39, window(h) + 4096 * page, (u64)frames[h][page], 0, PTE_RWX);
  }
  write_caller(frames[hart][0]);
  write_function(frames[hart][1], 1), write_function(frames[hart][2], 3);
  fence_i();
  barrier();
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  for (int phase = 0; phase < 2; phase++) {
    u64 end = mtime() + TIME;
    for (u64 i = 0; i < 20 || mtime() < end; i++) another_function(va, frames[hart], next_random(&state));
    rewritten_function(va, frames[hart]);
  }
  barrier();
  WRITE_CSR(satp, 0);
}
