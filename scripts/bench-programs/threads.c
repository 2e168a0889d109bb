/* The same total of work on N threads: independent, or all at one word by amoadd or by compare-and-swap. Checksums do
 * not depend on N, nor on the order. */
#include "bench.h"

#include <pthread.h>

#define MOST_THREADS 64
#define ITEMS 64

struct share {
  pthread_t thread;
  int first, step;
  u64 sum;
};

static int length;
static u64 shared __attribute__((aligned(64)));

/* Runs the body on all threads; the sum of what they and the shared word have at the end. */
static u64 on_threads(int threads, void *(*body)(void *)) {
  static struct share shares[MOST_THREADS];
  u64 sum = 0;
  need(threads <= MOST_THREADS, "too many threads");
  start_clock();
  for (int i = 0; i < threads; i++) {
    shares[i].first = i;
    shares[i].step = threads;
    need(pthread_create(&shares[i].thread, NULL, body, &shares[i]) == 0, "pthread_create");
  }
  for (int i = 0; i < threads; i++) pthread_join(shares[i].thread, NULL), sum += shares[i].sum;
  stop_clock();
  return sum + shared;
}

static void *compute(void *argument) {
  struct share *mine = argument;
  for (int item = mine->first; item < ITEMS; item += mine->step) {
    u64 x = (u64)item + 1;
    for (int i = 0; i < length; i++) x = xorshift(x);
    mine->sum += x;
  }
  return NULL;
}

static void *add(void *argument) {
  struct share *mine = argument;
  for (int item = mine->first; item < ITEMS; item += mine->step)
    for (int i = 0; i < length; i++) __atomic_fetch_add(&shared, (u64)(item + i), __ATOMIC_RELAXED);
  return NULL;
}

/* On failure `old` is what the word has. */
static int swapped(u64 *old, u64 wanted) {
  return __atomic_compare_exchange_n(&shared, old, wanted, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void *swap(void *argument) {
  struct share *mine = argument;
  for (int item = mine->first; item < ITEMS; item += mine->step)
    for (int i = 0; i < length; i++) {
      u64 old = __atomic_load_n(&shared, __ATOMIC_RELAXED);
      while (!swapped(&old, old + (u64)(item + i))) {
      }
    }
  return NULL;
}

u64 work(int threads) {
  length = size(6000000, 20000);
  return on_threads(threads, compute);
}

u64 amoadd(int threads) {
  length = size(600000, 5000);
  return on_threads(threads, add);
}

u64 cas(int threads) {
  length = size(300000, 5000);
  return on_threads(threads, swap);
}
