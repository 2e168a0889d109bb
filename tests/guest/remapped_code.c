/* Code behind changing page tables. One virtual page shows two physical pages in turn, with a loop in each that runs
 * long enough to be optimized; the physical pages are the same for all harts, at virtual addresses of their own. Then
 * a loop that lies across two pages, one of its instructions too, each page remapped or rewritten on its own. */
#include "guest.h"

#ifndef TIME
#define TIME 8000000 /* in ticks of 100 ns */
#endif
#define SV39 8
#define TURNS 100000

enum { HALVES = 2048, MOST_HARTS = 8 };

/* a0 turns, each adds K to a1; a2 says where this runs. */
#define LOOP(name, k)                                                                            \
  asm(".pushsection .snippets, \"ax\"\n.balign 4096\n.globl " #name "\n" #name ":\n.option push\n.option norvc\n" \
      "auipc a2, 0\nli a1, 0\n1: addi a1, a1, " #k "\naddi a0, a0, -1\nbnez a0, 1b\necall\n"                   \
      ".option pop\n.balign 4096\n.popsection");                                                         \
  extern const char name[];
LOOP(s_one, 1)
LOOP(s_three, 3)

static u16 across[MOST_HARTS][2][2 * HALVES] __attribute__((aligned(4096)));
static u64 *root;

static u64 window(u64 hart) { return 0x400000000ul + (hart << 21); }

/* All translations are forgotten, or this page's alone. */
static void remap(u64 va, const void *to, u64 random) {
  STORE(pte_of(root, SV39, va, 0), (u64)to >> 12 << 10 | PTE_RWX);
  if (random & 1)
    sfence();
  else
    asm volatile("sfence.vma %0, zero" ::"r"(va) : "memory");
}

static void same_address_other_page(u64 hart, u64 *state) {
  u64 va = window(hart);
  u64 end = mtime() + TIME;
  for (u64 i = 0; i < 20 || mtime() < end; i++) {
    u64 random = next_random(state);
    u64 k = random >> 8 & 1 ? 3 : 1;
    remap(va, k == 3 ? s_three : s_one, random);
    struct trap *t = run(S, (void *)va, TURNS, 0);
    EQ(1, t->cause, ECALL_S);
    EQ(2, t->x[11], k * TURNS);
    EQ(3, t->x[12], va);
    /* The same page where it lies. */
    t = run(S, k == 3 ? s_three : s_one, 10, 0);
    EQ(4, t->x[11], k * 10);
    EQ(5, t->x[12], k == 3 ? s_three : s_one);
  }
}

static u32 addi(u32 rd, u32 k) { return k << 20 | rd << 15 | rd << 7 | 0x13; }

static u16 high_half(u64 k) { return (u16)(addi(11, (u32)k) >> 16); }

static void put(u16 *half, u32 at, u32 word) { half[at] = (u16)word, half[at + 1] = (u16)(word >> 16); }

/* c.nop; addi a1, a1, k; addi a0, a0, -1; bnez a0, -10; ecall from a halfword of two pages on. */
static void write_loop(u16 *half, u32 at, u32 k) {
  half[at] = 0x0001;
  put(half, at + 1, addi(11, k));
  put(half, at + 3, addi(10, 0xfff));
  put(half, at + 5, 0xfe051be3);
  put(half, at + 7, 0x00000073);
}

static void check_across(int n, u64 va, u32 at, u64 k) {
  struct trap *t = run(S, (void *)(va + 2 * at), 300, 0);
  EQ(n, t->cause, ECALL_S);
  EQ(n + 1, t->x[11], k * 300);
}

static void across_pages(u64 hart, u64 *state) {
  u64 va = window(hart) + 0x10000;
  u16(*frames)[2 * HALVES] = across[hart];
  for (u32 at = HALVES - 7; at < HALVES; at++) {
    for (u32 i = 0; i < 2; i++) write_loop(frames[i], at, 1 + 2 * i);
    fence_i();
    u32 place = at + 2; /* of the halfword that k is in */
    for (int turn = 0; turn < 30; turn++) {
      u64 random = next_random(state);
      u64 which[2] = {random >> 8 & 1, random >> 9 & 1};
      /* One of the two pages may stay what it was. */
      remap(va, frames[which[0]], random), remap(va + 4096, frames[which[1]] + HALVES, random >> 1);
      u64 k = 1 + 2 * which[place >= HALVES];
      check_across(6, va, at, k);
      u16 *half = &frames[which[place >= HALVES]][place];
      STORE(half, high_half(5));
      fence_i();
      check_across(8, va, at, 5);
      STORE(half, high_half(k));
      fence_i();
      check_across(10, va, at, k);
    }
  }
}

void hart_main(u64 hart, u64 n) {
  CHECK(12, n <= MOST_HARTS);
  if (hart == 0) {
    root = new_table();
    map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
    for (u64 h = 0; h < n; h++)
      for (u64 page = 0; page < 32; page++) map(root, SV39, window(h) + 4096 * page, (u64)s_one, 0, PTE_RWX);
  }
  barrier();
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  u64 state = hart * 0x9e3779b97f4a7c15 + 1;
  same_address_other_page(hart, &state);
  across_pages(hart, &state);
  barrier();
  WRITE_CSR(satp, 0);
}
