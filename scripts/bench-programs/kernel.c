/* What a kernel does for programs: system calls, page faults, processes, and wake-ups between two threads. */
#define _GNU_SOURCE
#include "bench.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

u64 system_calls(int threads) {
  int count = size(500000, 10000);
  long parent = getppid();
  u64 sum = 0;
  (void)threads;
  start_clock();
  for (int i = 0; i < count; i++) sum += syscall(SYS_getppid) == parent;
  stop_clock();
  return sum;
}

/* Writes to every page of fresh memory; huge pages are off, so that each is a fault. */
static u64 touch(size_t bytes, u64 value) {
  u64 sum = 0;
  u8 *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  need(memory != MAP_FAILED, "mmap");
  need(madvise(memory, bytes, MADV_NOHUGEPAGE) == 0, "madvise");
  for (size_t at = 0; at < bytes; at += 4096) {
    *(u64 *)(memory + at) += value + at;
    sum += *(u64 *)(memory + at);
  }
  need(munmap(memory, bytes) == 0, "munmap");
  return sum;
}

u64 faults(int threads) {
  int rounds = size(10, 1);
  u64 sum = 0;
  (void)threads;
  start_clock();
  for (int round = 0; round < rounds; round++) sum += touch(16 << 20, (u64)round);
  stop_clock();
  return sum;
}

u64 exec_many(int threads) {
  int count = size(200, 10);
  u64 sum = 0;
  (void)threads;
  start_clock();
  for (int i = 0; i < count; i++) {
    int status;
    pid_t child = fork();
    need(child >= 0, "fork");
    if (!child) {
      execl(own_path, own_path, "nothing", (char *)NULL);
      _exit(1);
    }
    need(waitpid(child, &status, 0) == child, "waitpid");
    sum += status == 0;
  }
  stop_clock();
  return sum;
}

/* Two threads take turns at counting; who has to wait sleeps on the futex `turn`. */
static u32 turn;
static u64 counted;
static int turns;

static void play(u32 me) {
  for (int i = 0; i < turns; i++) {
    u32 now;
    while ((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != me)
      syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
    counted = counted * 3 + me;
    __atomic_store_n(&turn, 1 - me, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
}

static void *other(void *unused) {
  play(1);
  return unused;
}

u64 ping_pong(int threads) {
  pthread_t thread;
  (void)threads;
  turns = size(10000, 500);
  start_clock();
  need(pthread_create(&thread, NULL, other, NULL) == 0, "pthread_create");
  play(0);
  pthread_join(thread, NULL);
  stop_clock();
  return counted;
}
