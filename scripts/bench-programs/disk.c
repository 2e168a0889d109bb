/* The disk, past the guest's page cache: all of it in order in large requests, and blocks of 4 KB at random places.
 *
 * Each block begins with its own number, whatever writes it, so that reading gives the same sum on every machine. */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK 4096
#define LARGE (1 << 20)
#define DEEPEST 64
#define WRITTEN 0x6e657474697277ull /* the second word of a block that we wrote */

const char *disk_path = "/dev/vda";

static int open_disk(int flags) {
  int disk = open(disk_path, flags | O_DIRECT | O_CLOEXEC);
  need(disk >= 0, disk_path);
  return disk;
}

static u64 disk_bytes(int disk) {
  off_t bytes = lseek(disk, 0, SEEK_END);
  need(bytes >= LARGE, "the disk's size");
  return (u64)bytes;
}

static void *aligned(size_t bytes) {
  void *memory = NULL;
  need(posix_memalign(&memory, BLOCK, bytes) == 0, "posix_memalign");
  memset(memory, 0x5a, bytes);
  return memory;
}

u64 seq_read(int threads) {
  int disk = open_disk(O_RDONLY);
  u64 bytes = disk_bytes(disk), *buffer = aligned(LARGE), sum = 0;
  (void)threads;
  start_clock();
  for (u64 at = 0; at < bytes; at += LARGE) {
    need(pread(disk, buffer, LARGE, (off_t)at) == LARGE, "pread");
    for (int i = 0; i < LARGE / BLOCK; i++) sum += buffer[i * (BLOCK / 8)];
  }
  stop_clock();
  return sum;
}

/* Into the host's cache: what a flush costs is a matter of the host's disk.  Reads some of it back. */
u64 seq_write(int threads) {
  int disk = open_disk(O_RDWR);
  u64 bytes = disk_bytes(disk), *buffer = aligned(LARGE), wrong = 0;
  (void)threads;
  start_clock();
  for (u64 at = 0; at < bytes; at += LARGE) {
    for (int i = 0; i < LARGE / BLOCK; i++) {
      buffer[i * (BLOCK / 8)] = at / BLOCK + (u64)i;
      buffer[i * (BLOCK / 8) + 1] = WRITTEN;
    }
    need(pwrite(disk, buffer, LARGE, (off_t)at) == LARGE, "pwrite");
  }
  stop_clock();
  for (u64 at = 0; at < bytes; at += 37 * LARGE) {
    need(pread(disk, buffer, LARGE, (off_t)at) == LARGE, "pread");
    for (int i = 0; i < LARGE / BLOCK; i++)
      wrong += buffer[i * (BLOCK / 8)] != at / BLOCK + (u64)i || buffer[i * (BLOCK / 8) + 1] != WRITTEN;
  }
  return wrong;
}

/* Asynchronous requests, `depth` of them under way: no thread's switches in the result. */
u64 random_read(int depth) {
  int disk = open_disk(O_RDONLY), count = size(20000, 500);
  u64 blocks = disk_bytes(disk) / BLOCK, sum = 0;
  struct iocb requests[DEEPEST], *again[DEEPEST];
  struct io_event events[DEEPEST];
  aio_context_t context = 0;
  u32 seed = 1;
  need(depth <= DEEPEST && syscall(SYS_io_setup, depth, &context) == 0, "io_setup");
  memset(requests, 0, sizeof requests);
  for (int i = 0; i < depth; i++) {
    requests[i].aio_fildes = (u32)disk, requests[i].aio_lio_opcode = IOCB_CMD_PREAD;
    requests[i].aio_buf = (u64)aligned(BLOCK), requests[i].aio_nbytes = BLOCK;
    again[i] = &requests[i];
  }
  start_clock();
  for (int done = 0, started = 0, idle = depth; done < count; done += idle) {
    int more = idle < count - started ? idle : count - started;
    for (int i = 0; i < more; i++) again[i]->aio_offset = (long long)(chance(&seed) * blocks >> 32) * BLOCK;
    need(more == 0 || syscall(SYS_io_submit, context, (long)more, again) == more, "io_submit");
    started += more;
    idle = (int)syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
    need(idle > 0, "io_getevents");
    for (int i = 0; i < idle; i++) {
      need(events[i].res == BLOCK, "a read");
      again[i] = (struct iocb *)(uintptr_t)events[i].obj;
      sum += *(u64 *)(uintptr_t)again[i]->aio_buf;
    }
  }
  stop_clock();
  return sum;
}
