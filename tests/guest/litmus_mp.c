/* Message passing: who sees the flag sees the data, with fences, with release and acquire, and by an address
 * dependency on the reading side. Without any it may not; how often is printed. */
#include "litmus.h"

static void fenced(struct pair *p, u64 i, int half) {
  struct location *at = &p->at[i];
  if (half) {
    STORE(&at->x, 1);
    FENCE(w, w);
    STORE(&at->y, 1);
  } else {
    u64 flag = LOAD(&at->y);
    FENCE(r, r);
    p->s[0][i] = LOAD(&at->x);
    p->r[0][i] = flag;
  }
}

static void annotated(struct pair *p, u64 i, int half) {
  struct location *at = &p->at[i];
  u64 t;
  if (half) {
    STORE(&at->x, 1);
    asm volatile("amoswap.d.rl x0, %0, (%1)" :: "r"(1ul), "r"(&at->y) : "memory");
  } else {
    asm volatile("lr.d.aq %0, (%1)" : "=r"(t) : "r"(&at->y) : "memory");
    p->s[0][i] = LOAD(&at->x);
    p->r[0][i] = t;
  }
}

static void dependent(struct pair *p, u64 i, int half) {
  struct location *at = &p->at[i];
  if (half) {
    STORE(&at->x, 1);
    FENCE(w, w);
    STORE(&at->y, 1);
  } else {
    u64 flag, data;
    asm volatile("ld %0, (%2)\n xor %1, %0, %0\n add %1, %1, %3\n ld %1, (%1)"
                 : "=&r"(flag), "=&r"(data) : "r"(&at->y), "r"(&at->x) : "memory");
    p->s[0][i] = data;
    p->r[0][i] = flag;
  }
}

static void plain(struct pair *p, u64 i, int half) {
  struct location *at = &p->at[i];
  if (half) {
    STORE(&at->x, 1);
    STORE(&at->y, 1);
  } else {
    u64 flag = LOAD(&at->y);
    p->s[0][i] = LOAD(&at->x);
    p->r[0][i] = flag;
  }
}

static bool stale(struct pair *p, u64 i) { return p->r[0][i] == 1 && p->s[0][i] == 0; }

void hart_main(u64 hart, u64 n) {
  if (!takes_part(hart, n)) return;
  EQ(1, litmus(hart, fenced, stale), 0);
  EQ(2, litmus(hart, annotated, stale), 0);
  EQ(3, litmus(hart, dependent, stale), 0);
  u64 count = litmus(hart, plain, stale);
  if (hart == 0) print_count("flag without data, no fences:", count);
}
