/* Load buffering with data dependencies and with fences: no value out of thin air, no load sees a store that comes
 * after it; and coherence of one location: two loads never see its stores in the wrong order. */
#include "litmus.h"

static void fenced(struct pair *p, u64 i, int half) {
  u64 *from = half ? &p->at[i].y : &p->at[i].x, *to = half ? &p->at[i].x : &p->at[i].y;
  u64 r = LOAD(from);
  FENCE(r, w);
  STORE(to, 1);
  p->r[half][i] = r;
}

static void dependent(struct pair *p, u64 i, int half) {
  u64 *from = half ? &p->at[i].y : &p->at[i].x, *to = half ? &p->at[i].x : &p->at[i].y;
  u64 r, t;
  asm volatile("ld %0, (%2)\n xor %1, %0, %0\n ori %1, %1, 1\n sd %1, (%3)"
               : "=&r"(r), "=&r"(t) : "r"(from), "r"(to) : "memory");
  p->r[half][i] = r;
}

static bool both_one(struct pair *p, u64 i) { return p->r[0][i] == 1 && p->r[1][i] == 1; }

/* CoRR: one hart writes 1 then 2, the other reads twice. */
static void same_location(struct pair *p, u64 i, int half) {
  u64 *x = &p->at[i].x;
  if (half) {
    STORE(x, 1);
    STORE(x, 2);
  } else {
    u64 a, b;
    asm volatile("ld %0, (%2)\n ld %1, (%2)" : "=&r"(a), "=&r"(b) : "r"(x) : "memory");
    p->r[0][i] = a, p->s[0][i] = b;
  }
}

static bool backwards(struct pair *p, u64 i) { return p->s[0][i] < p->r[0][i]; }

void hart_main(u64 hart, u64 n) {
  if (!takes_part(hart, n)) return;
  EQ(1, litmus(hart, fenced, both_one), 0);
  EQ(2, litmus(hart, dependent, both_one), 0);
  EQ(3, litmus(hart, same_location, backwards), 0);
}
