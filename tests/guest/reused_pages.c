/* A page of code that is given new contents and mapped anew shows them, without a fence.i on the hart that runs it. The
 * manual asks for one, and Linux counts on less: when two processes map a page that a file was read into, the hart of the
 * first has a fence.i and the hart of the second none (flush_icache_pte marks the page as clean for all).
 *
 * One page for all harts: the first one writes it, has its fence.i, and all run it in a translation that is new to them. */
#include "guest.h"

#ifndef TIME
#define TIME 8000000 /* in ticks of 100 ns */
#endif
#define SV39 8

enum { HALVES = 2048, ASIDS = 1000, PLACES = 120, WINDOW = 0x400000000, MOST_HARTS = 8 };
enum { NEW_SPACE, NEW_PAGE, OTHER_PAGE };

static u16 frames[2 * HALVES] __attribute__((aligned(4096)));
static u64 *root;
static u64 turn_state, random_of_turn, place_of_turn, over;

static u32 addi(u32 rd, u32 k) { return k << 20 | rd << 15 | rd << 7 | 0x13; }

static void put(u16 *half, u32 at, u32 word) { half[at] = (u16)word, half[at + 1] = (u16)(word >> 16); }

/* addi a1, a1, k; addi a0, a0, -1; bnez a0, -8; ecall; from a halfword of the two pages on. */
static void write_loop(u32 at, u32 k) {
  put(frames, at, addi(11, k));
  put(frames, at + 2, addi(10, 0xfff));
  put(frames, at + 4, 0xfe051ce3);
  put(frames, at + 6, 0x00000073);
}

static u64 k_of(u64 random) { return 1 + (random >> 8) % 2000; }

static void begin_turn(void) {
  random_of_turn = next_random(&turn_state);
  /* At the beginning of the first page, mostly, or across the two. */
  place_of_turn = random_of_turn >> 4 & 3 ? 0 : HALVES - 4;
  write_loop((u32)place_of_turn, (u32)k_of(random_of_turn));
  fence_i();
}

static void set_ptes(u64 va, u64 flags) {
  STORE(pte_of(root, SV39, va, 0), (u64)frames >> 12 << 10 | flags);
  STORE(pte_of(root, SV39, va + 4096, 0), ((u64)frames + 4096) >> 12 << 10 | flags);
}

static void fence_pages(u64 va) {
  asm volatile("sfence.vma %0, zero\nsfence.vma %1, zero" ::"r"(va), "r"(va + 4096) : "memory");
}

/* In an address space that was not in use lately, in pages that were none, or in pages that were others. */
static void run_turn(u64 hart, u64 turn) {
  u64 way = (random_of_turn + hart) % 3;
  u64 asid = way == NEW_SPACE ? 2 + turn % ASIDS : 1;
  if (asid == 2) sfence();
  u64 va = WINDOW + (hart << 21) + turn % PLACES * 16384;
  set_ptes(va, PTE_RWX);
  WRITE_CSR(satp, satp_of(SV39, root) | asid << 44);
  if (way == OTHER_PAGE) fence_pages(va);
  u64 turns = turn % 16 == 0 ? 200000 : 50;
  struct trap *t = run(S, (void *)(va + 2 * place_of_turn), turns, 0);
  EQ(1, t->cause, ECALL_S);
  EQ(2, t->x[11], turns * k_of(random_of_turn));
  set_ptes(va, 0);
  fence_pages(va);
}

void hart_main(u64 hart, u64 n) {
  CHECK(3, n <= MOST_HARTS);
  u64 end = mtime() + TIME;
  if (hart == 0) {
    turn_state = 88172645463325252u;
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    for (u64 h = 0; h < n; h++) map(root, SV39, WINDOW + (h << 21), 0, 0, 0);
  }
  barrier();
  for (u64 turn = 0; turn < 4000; turn++) {
    if (hart == 0) {
      over = turn >= 200 && mtime() >= end;
      begin_turn();
    }
    barrier();
    if (over) break;
    run_turn(hart, turn);
    barrier();
  }
  WRITE_CSR(satp, 0);
}
