/* A disk read (DMA by virtio-blk) into a page of code that has been executed: after fence.i every hart executes what
 * was read, whether it is the whole page or one sector of it. The disk is scratch and takes the code first. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 60
#endif

enum { VERSIONS = 4, SECTORS = 8, WORDS = 128, SLOTS = 8, QUEUE = 8 };
enum { IN, OUT };
enum { NEXT = 1, WRITE = 2 };

struct descriptor { u64 address; u32 size; u16 flags, next; };
static struct { struct descriptor d[QUEUE]; } table __attribute__((aligned(16)));
static struct { u16 flags, idx, ring[QUEUE]; } avail __attribute__((aligned(2)));
static struct { u16 flags, idx; struct { u32 id, size; } ring[QUEUE]; } used __attribute__((aligned(4)));
static struct { u32 kind, reserved; u64 sector; } header;
static u8 status;
static u64 device;

static u32 code[SECTORS][WORDS] __attribute__((aligned(4096)));
static u32 image[VERSIONS][SECTORS][WORDS] __attribute__((aligned(4096)));
static u64 expected[SECTORS];

static void find_disk(void) {
  for (u64 at = 0x10001000; at < 0x10001000 + SLOTS * 0x1000; at += 0x1000)
    if (read32(at + 8) == 2) device = at;
  CHECK(1, device);
}

static void set_address(u64 reg, const void *p) {
  write32(device + reg, (u32)(u64)p);
  write32(device + reg + 4, (u32)((u64)p >> 32));
}

/* Virtio 1.2, 3.1.1: VERSION_1 and nothing else, queue 0. */
static void start_disk(void) {
  EQ(2, read32(device + 4), 2);
  write32(device + 0x70, 0), write32(device + 0x70, 3);
  write32(device + 0x24, 0), write32(device + 0x20, 0);
  write32(device + 0x24, 1), write32(device + 0x20, 1);
  write32(device + 0x70, 11);
  EQ(3, read32(device + 0x70), 11);
  write32(device + 0x30, 0);
  write32(device + 0x38, QUEUE);
  set_address(0x80, &table), set_address(0x90, &avail), set_address(0xa0, &used);
  write32(device + 0x44, 1);
  write32(device + 0x70, 15);
}

static void transfer(u32 kind, u64 sector, const void *at, u32 bytes) {
  header.kind = kind, header.sector = sector;
  status = 255;
  table.d[0] = (struct descriptor){(u64)&header, 16, NEXT, 1};
  table.d[1] = (struct descriptor){(u64)at, bytes, kind == IN ? NEXT | WRITE : NEXT, 2};
  table.d[2] = (struct descriptor){(u64)&status, 1, WRITE, 0};
  u16 idx = avail.idx;
  avail.ring[idx % QUEUE] = 0;
  __atomic_store_n(&avail.idx, (u16)(idx + 1), __ATOMIC_RELEASE);
  write32(device + 0x50, 0);
  EVENTUALLY(4, __atomic_load_n(&used.idx, __ATOMIC_ACQUIRE) == (u16)(idx + 1));
  EQ(5, LOAD(&status), 0);
}

static u32 value_of(u32 version, u32 sector) { return version * SECTORS + sector + 1; }

/* lui a0, value; srli a0, a0, 12; ret */
static void write_images(void) {
  for (u32 v = 0; v < VERSIONS; v++) {
    for (u32 s = 0; s < SECTORS; s++) {
      image[v][s][0] = value_of(v, s) << 12 | 0x537;
      image[v][s][1] = 0x00c55513;
      image[v][s][2] = 0x00008067;
    }
    transfer(OUT, v * SECTORS, image[v], 4096);
  }
}

static void read_some(u64 random) {
  u32 version = random % VERSIONS, sector = (random >> 8) % SECTORS;
  if (random >> 16 & 1) {
    transfer(IN, version * SECTORS, code, 4096);
    for (u32 s = 0; s < SECTORS; s++) expected[s] = value_of(version, s);
  } else {
    transfer(IN, version * SECTORS + sector, code[sector], 512);
    expected[sector] = value_of(version, sector);
  }
}

static void call_all(void) {
  fence_i();
  for (int turn = 0; turn < 2; turn++)
    for (u32 s = 0; s < SECTORS; s++) EQ(6, ((u64(*)(void))code[s])(), expected[s]);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  u64 state = 88172645463325252;
  if (hart == 0) {
    find_disk(), start_disk(), write_images();
    read_some(1 << 16);
  }
  barrier();
  call_all();
  for (int i = 0; i < ROUNDS; i++) {
    barrier();
    if (hart == 0) read_some(next_random(&state));
    barrier();
    call_all();
  }
}
