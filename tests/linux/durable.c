/* Writes blocks that can be told apart, and says which of them last.

   durable NAME DISK SECONDS

   Each block of 4 KiB holds its number, a number that grows with each write of it, and a checksum over everything.
   After a batch of writes and a successful fdatasync comes a line "durable NAME BLOCK:NUMBER ...;". A block whose write
   or flush failed is named in "failed NAME BLOCK:NUMBER ...;"; "bad NAME ..." is something that must not be.  What
   blocks hold at the beginning, all of one writer's past, is where their numbers go on.  The last block is left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { SIZE = 4096, BATCH = 8, WRITERS = 3, MOST = 4096 };
#define MAGIC 0x656c626172756421ULL

struct block {
    uint64_t magic, block, number;
    uint32_t fill[(SIZE - 32) / 4];
    uint32_t pad, sum;
};

static const char *name;
static int disk;
static unsigned blocks;
static uint64_t numbers[MOST]; /* written last; each belongs to one writer */
static char unknown[MOST];     /* a write failed, so anything may be there */
static struct timespec end;
static unsigned long writes, errors;

static uint32_t checksum(const void *data, size_t size) { /* CRC-32 */
    const unsigned char *at = data;
    uint32_t value = ~0u;
    while (size--) {
        value ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    }
    return ~value;
}

static void make(struct block *data, unsigned block, uint64_t number) {
    uint32_t state = block * 2654435761u ^ (uint32_t)number * 40503u ^ 1;
    memset(data, 0, SIZE);
    data->magic = MAGIC, data->block = block, data->number = number;
    for (unsigned n = 0; n < sizeof data->fill / 4; n++)
        data->fill[n] = state = state * 1664525u + 1013904223u;
    data->sum = checksum(data, SIZE - 4);
}

static int is_good(const struct block *data, unsigned block) {
    return data->magic == MAGIC && data->block == block && data->sum == checksum(data, SIZE - 4);
}

/* One write, so that lines don't mix. */
static void say(const char *what, const unsigned *which, int count) {
    char line[64 + 32 * BATCH];
    int size = sprintf(line, "%s %s", what, name);
    for (int n = 0; n < count; n++)
        size += sprintf(line + size, " %u:%llu", which[n], (unsigned long long)numbers[which[n]]);
    size += sprintf(line + size, ";\n");
    if (write(1, line, size) != size)
        exit(3);
}

static int is_over(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec > end.tv_nsec);
}

/* Reads a block of the writer's own, whose last write has been answered. */
static void look(struct block *data, unsigned block) {
    if (pread(disk, data, SIZE, (off_t)block * SIZE) != SIZE) {
        __atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
        return;
    }
    if (!unknown[block] && numbers[block] && (!is_good(data, block) || data->number != numbers[block])) {
        printf("bad %s %u: has %llu, not %llu;\n", name, block, (unsigned long long)data->number,
               (unsigned long long)numbers[block]);
        fflush(stdout);
    }
}

struct batch {
    unsigned blocks[BATCH];
    int count;
};

static void add(struct batch *batch, unsigned block) {
    for (int n = 0; n < batch->count; n++)
        if (batch->blocks[n] == block)
            return;
    batch->blocks[batch->count++] = block;
}

static void drop(struct batch *batch, unsigned block) {
    for (int n = 0; n < batch->count; n++)
        if (batch->blocks[n] == block)
            batch->blocks[n] = batch->blocks[--batch->count];
}

static void write_one(struct block *data, unsigned block, struct batch *good, struct batch *wrong) {
    make(data, block, ++numbers[block]);
    unknown[block] = pwrite(disk, data, SIZE, (off_t)block * SIZE) != SIZE;
    add(unknown[block] ? wrong : good, block);
    drop(unknown[block] ? good : wrong, block);
    __atomic_fetch_add(&writes, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&errors, unknown[block], __ATOMIC_RELAXED);
}

static void *writer(void *argument) {
    unsigned which = (unsigned)(uintptr_t)argument, seed = time(NULL) * 31 + which, share = blocks / WRITERS;
    struct block *data = aligned_alloc(SIZE, SIZE);
    while (!is_over()) {
        struct batch good = {.count = 0}, wrong = {.count = 0};
        for (int count = 1 + rand_r(&seed) % BATCH; count; count--)
            write_one(data, which * share + rand_r(&seed) % share, &good, &wrong);
        if (wrong.count) {
            say("failed", wrong.blocks, wrong.count);
            usleep(50000);
        }
        say(fdatasync(disk) == 0 ? "durable" : "failed", good.blocks, good.count);
        look(data, which * share + rand_r(&seed) % share);
    }
    free(data);
    return NULL;
}

static void begin(void) {
    enum { AT_ONCE = 64 };
    struct block *data = aligned_alloc(SIZE, AT_ONCE * SIZE);
    for (unsigned block = 0; block < blocks; block++) {
        struct block *here = data + block % AT_ONCE;
        if (block % AT_ONCE == 0 && pread(disk, data, AT_ONCE * SIZE, (off_t)block * SIZE) <= 0)
            memset(data, 0, AT_ONCE * SIZE);
        if (is_good(here, block))
            numbers[block] = here->number;
        else if (here->magic) {
            unknown[block] = 1;
            printf("torn %s %u;\n", name, block);
        }
    }
    fflush(stdout);
    free(data);
}

int main(int argc, char **argv) {
    uint64_t size = 0;
    pthread_t threads[WRITERS];
    if (argc != 4)
        return 2;
    name = argv[1];
    disk = open(argv[2], O_RDWR | O_DIRECT);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
        return perror(argv[2]), 1;
    blocks = size / SIZE - 1 < MOST ? size / SIZE - 1 : MOST;
    begin();
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += atoi(argv[3]);
    for (uintptr_t n = 0; n < WRITERS; n++)
        pthread_create(&threads[n], NULL, writer, (void *)n);
    for (int n = 0; n < WRITERS; n++)
        pthread_join(threads[n], NULL);
    printf("done %s: %lu writes, %lu errors;\n", name, writes, errors);
    return 0;
}
