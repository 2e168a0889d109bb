/* What the benchmark programs share. Each is a function that gets its size by `size()`, does its work between
 * start_clock() and stop_clock(), and gives a checksum that is the same on every machine. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

typedef u64 program(int threads);

program mix, sort, hash, crc, matmul, nbody, triad, chase;
program system_calls, faults, exec_many, ping_pong;
program work, amoadd, cas;
program seq_read, seq_write, random_read;
program net_in, net_out, round_trips;

extern int quick;
extern int peer_port;
extern const char *peer_address, *disk_path;
extern const char *own_path;

/* Serves guests for ever, on a port that it prints. */
void be_peer(void);

static inline int size(int full, int small) { return quick ? small : full; }

void start_clock(void);
void stop_clock(void);

/* Ends the program with a message when the system refuses something. */
void need(int fine, const char *what);

/* Numerical Recipes' generator; the upper bits are the better ones. */
static inline u32 chance(u32 *seed) { return *seed = *seed * 1664525u + 1013904223u; }

static inline u64 xorshift(u64 x) {
  x ^= x << 13;
  x ^= x >> 7;
  return x ^ x << 17;
}

static inline void *allocate(size_t bytes) {
  void *memory = malloc(bytes);
  need(memory != NULL, "malloc");
  return memory;
}
