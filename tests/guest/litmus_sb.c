/* Store buffering: with `fence rw, rw` between each side's store and load, the loads never both miss the stores.
 * Without the fence that is allowed; how often is printed. */
#include "litmus.h"

#define SB(name, fence)                                                   \
  static void name(struct pair *p, u64 i, int half) {                     \
    u64 *mine = half ? &p->at[i].y : &p->at[i].x;                         \
    u64 *theirs = half ? &p->at[i].x : &p->at[i].y;                       \
    STORE(mine, 1);                                                       \
    fence;                                                                \
    p->r[half][i] = LOAD(theirs);                                         \
  }
SB(fenced, FENCE(rw, rw))
SB(fenced_w_r, FENCE(w, r))
SB(plain, (void)0)
/* The same by annotations: RCsc, so an .aq load does not pass an earlier .rl store. */
static void swapped(struct pair *p, u64 i, int half) {
  u64 *mine = half ? &p->at[i].y : &p->at[i].x;
  u64 *theirs = half ? &p->at[i].x : &p->at[i].y;
  u64 t;
  asm volatile("amoswap.d.aqrl %0, %1, (%2)" : "=r"(t) : "r"(1ul), "r"(mine) : "memory");
  asm volatile("amoor.d.aqrl %0, x0, (%1)" : "=r"(t) : "r"(theirs) : "memory");
  p->r[half][i] = t;
}

static bool both_zero(struct pair *p, u64 i) { return p->r[0][i] == 0 && p->r[1][i] == 0; }

void hart_main(u64 hart, u64 n) {
  if (!takes_part(hart, n)) return;
  EQ(1, litmus(hart, fenced, both_zero), 0);
  EQ(2, litmus(hart, fenced_w_r, both_zero), 0);
  EQ(3, litmus(hart, swapped, both_zero), 0);
  u64 count = litmus(hart, plain, both_zero);
  if (hart == 0) print_count("0/0 without fences:", count);
}
