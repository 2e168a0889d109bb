/* A spinlock made of LR/SC, and one made of amoswap, guard a plain counter: no increment is lost. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 3000
#endif

static struct { u32 lock; u64 count; u64 owner; } by_lrsc __attribute__((aligned(64))), by_swap __attribute__((aligned(64)));
static struct { u32 next, serving; u64 count; } ticket __attribute__((aligned(64)));

static void lock_lrsc(u32 *lock) {
  u64 t;
  asm volatile("1: lr.w.aq %0, (%1)\n bnez %0, 2f\n sc.w %0, %2, (%1)\n beqz %0, 3f\n"
               "2: .word 0x0100000f\n j 1b\n3:" : "=&r"(t) : "r"(lock), "r"(1ul) : "memory");
}

static void lock_swap(u32 *lock) {
  while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) relax();
}

static void unlock(u32 *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

static void inside(int n, u64 *count, u64 *owner, u64 hart) {
  EQ(n, LOAD(owner), 0);
  STORE(owner, hart + 1);
  STORE(count, LOAD(count) + 1);
  EQ(n + 1, LOAD(owner), hart + 1);
  STORE(owner, 0);
}

void hart_main(u64 hart, u64 n) {
  for (u64 i = 0; i < ROUNDS; i++) {
    lock_lrsc(&by_lrsc.lock);
    inside(1, &by_lrsc.count, &by_lrsc.owner, hart);
    unlock(&by_lrsc.lock);
    lock_swap(&by_swap.lock);
    inside(3, &by_swap.count, &by_swap.owner, hart);
    unlock(&by_swap.lock);
  }
  barrier();
  EQ(5, by_lrsc.count, ROUNDS * n);
  EQ(6, by_swap.count, ROUNDS * n);
  /* A ticket lock is fair: it hands the lock to one given hart, which must then run. */
  for (u64 i = 0; i < ROUNDS / 50; i++) {
    u32 mine = __atomic_fetch_add(&ticket.next, 1, __ATOMIC_RELAXED);
    WAIT_UNTIL(__atomic_load_n(&ticket.serving, __ATOMIC_ACQUIRE) == mine);
    STORE(&ticket.count, LOAD(&ticket.count) + 1);
    __atomic_store_n(&ticket.serving, mine + 1, __ATOMIC_RELEASE);
  }
  barrier();
  EQ(7, ticket.count, ROUNDS / 50 * n);
}
