/* Every AMO, word and doubleword, on all harts at once: sums are exact, sets of bits complete, and every value that
 * a swap put in comes out exactly once. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 10000
#endif

#define DEFINE(op, suffix, type)                                                                            \
  static type amo##op##_##suffix(type *p, type v) {                                                         \
    u64 old;                                                                                                \
    asm volatile("amo" #op "." #suffix ".aqrl %0, %1, (%2)" : "=r"(old) : "r"((u64)v), "r"(p) : "memory");  \
    return (type)old;                                                                                       \
  }
#define BOTH(op) DEFINE(op, w, u32) DEFINE(op, d, u64)
BOTH(add) BOTH(swap) BOTH(and) BOTH(or) BOTH(xor) BOTH(min) BOTH(max) BOTH(minu) BOTH(maxu)

/* One cell of each; the word cells lie in pairs in a doubleword, so that a wide access shows. */
#define CELLS(suffix, type)                                                                                \
  static struct { type add, swap, and, or, xor, min, max, minu, maxu, swap_sum; } suffix##_cell            \
      __attribute__((aligned(64))) = {.and = (type)-1, .minu = (type)-1};                                  \
                                                                                                           \
  static void suffix##_torture(u64 hart, u64 rounds) {                                                     \
    u64 taken = 0, given = 0, random = 88172645463325252ul + hart;                                         \
    for (u64 i = 1; i <= rounds; i++) {                                                                    \
      type value = (type)(next_random(&random) >> 40);                                                     \
      amoadd_##suffix(&suffix##_cell.add, value);                                                          \
      given += value;                                                                                      \
      amoxor_##suffix(&suffix##_cell.xor, (type)1 << hart % (sizeof(type) * 8));                           \
      taken += amoswap_##suffix(&suffix##_cell.swap, value);                                               \
      amoor_##suffix(&suffix##_cell.or, (type)1 << (i + hart) % (sizeof(type) * 8));                       \
      amoand_##suffix(&suffix##_cell.and, ~((type)1 << (i + hart) % (sizeof(type) * 8)));                  \
      amomax_##suffix(&suffix##_cell.max, (type)(i * 128 + hart));                                         \
      amomin_##suffix(&suffix##_cell.min, (type) - (type)(i * 128 + hart));                                \
      amomaxu_##suffix(&suffix##_cell.maxu, (type) - (type)(hart + 1));                                    \
      amominu_##suffix(&suffix##_cell.minu, (type)(0 - (type)i * 128 - hart));                             \
    }                                                                                                      \
    /* What was put in by add, less what was taken out by swap: both come to one sum. */                   \
    amoadd_##suffix(&suffix##_cell.swap_sum, (type)(given - taken));                                       \
    amoadd_##suffix(&suffix##_cell.add, (type) - (type)given);                                             \
  }                                                                                                        \
                                                                                                           \
  static void suffix##_check(int n, u64 harts, u64 rounds) {                                               \
    u64 odd = 0;                                                                                           \
    for (u64 h = 0; h < harts; h++) odd ^= rounds & 1 ? (type)1 << h % (sizeof(type) * 8) : 0;             \
    EQ(n, suffix##_cell.add, 0);                                                                           \
    EQ(n + 1, suffix##_cell.xor, odd);                                                                     \
    EQ(n + 2, suffix##_cell.swap_sum, suffix##_cell.swap);                                                 \
    EQ(n + 3, suffix##_cell.or, (type)-1);                                                                 \
    EQ(n + 4, suffix##_cell.and, 0);                                                                       \
    EQ(n + 5, suffix##_cell.max, (type)(rounds * 128 + harts - 1));                                        \
    EQ(n + 6, suffix##_cell.min, (type) - (type)(rounds * 128 + harts - 1));                               \
    EQ(n + 7, suffix##_cell.maxu, (type)-1);                                                               \
    EQ(n + 8, suffix##_cell.minu, (type)(0 - (type)rounds * 128 - (harts - 1)));                           \
  }
CELLS(w, u32)
CELLS(d, u64)

/* The value an AMO returns: old, sign-extended for a word. */
static void returns(void) {
  static u32 word[2] = {0x80000000u, 0x11111111};
  u64 old;
  asm volatile("amoadd.w %0, %1, (%2)" : "=r"(old) : "r"(1ul << 32 | 1), "r"(word) : "memory");
  EQ(1, old, 0xffffffff80000000ul);
  EQ(2, word[0], 0x80000001u);
  EQ(3, word[1], 0x11111111);
  asm volatile("amomaxu.w %0, %1, (%2)" : "=r"(old) : "r"(0xfffffffful), "r"(word) : "memory");
  EQ(4, word[0], 0xffffffffu);
  asm volatile("amomin.w x0, %0, (%1)" :: "r"(0x7ffffffful), "r"(word) : "memory");
  EQ(5, word[0], 0xffffffffu);
  asm volatile("amomax.w x0, %0, (%1)" :: "r"(0x17ffffffful), "r"(word) : "memory");
  EQ(6, word[0], 0x7fffffffu);
  /* rd the same register as rs2 and as rs1. */
  register u64 same asm("a5") = 7;
  asm volatile("amoswap.w a5, a5, (%1)" : "+r"(same) : "r"(word) : "memory");
  EQ(7, same, 0x7fffffff);
  EQ(8, word[0], 7);
}

void hart_main(u64 hart, u64 n) {
  if (hart == 0) returns();
  barrier();
  w_torture(hart, ROUNDS);
  d_torture(hart, ROUNDS);
  barrier();
  w_check(20, n, ROUNDS);
  d_check(40, n, ROUNDS);
}
