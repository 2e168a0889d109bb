/* The runtime under every guest program: checks, traps, harts, devices. One hart_main per program.
 *
 * A check that does not hold ends the machine with its number as the exit status, so numbers are unique in a
 * program and lie in 1..199. From 200 up are the runtime's own, see below. With LAX defined, checks are left out that
 * QEMU 7.2 is known to fail, so that the rest of a program can be validated there.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

enum {
  EXIT_SKIP = 77,         /* the machine lacks an optional extension */
  EXIT_UNEXPECTED = 250,  /* a trap that nobody waited for */
  EXIT_NO_DTB = 253,      /* a1 at entry was no device tree */
  EXIT_HARTID = 254,      /* a0 at entry was not mhartid */
};

enum { U = 0, S = 1, M = 3 };

enum {
  FETCH_MISALIGNED = 0, FETCH_ACCESS = 1, ILLEGAL = 2, BREAKPOINT = 3, LOAD_MISALIGNED = 4, LOAD_ACCESS = 5,
  STORE_MISALIGNED = 6, STORE_ACCESS = 7, ECALL_U = 8, ECALL_S = 9, ECALL_M = 11, FETCH_PAGE = 12, LOAD_PAGE = 13,
  STORE_PAGE = 15,
};
#define INTERRUPT (1ul << 63)
enum { SSI = 1, MSI = 3, STI = 5, MTI = 7, SEI = 9, MEI = 11 };

#define MSTATUS_SIE (1ul << 1)
#define MSTATUS_MIE (1ul << 3)
#define MSTATUS_SPIE (1ul << 5)
#define MSTATUS_MPIE (1ul << 7)
#define MSTATUS_SPP (1ul << 8)
#define MSTATUS_MPP (3ul << 11)
#define MSTATUS_FS (3ul << 13)
#define MSTATUS_MPRV (1ul << 17)
#define MSTATUS_SUM (1ul << 18)
#define MSTATUS_MXR (1ul << 19)
#define MSTATUS_TVM (1ul << 20)
#define MSTATUS_TW (1ul << 21)
#define MSTATUS_TSR (1ul << 22)
#define MSTATUS_SD (1ul << 63)

#define MENVCFG_ADUE (1ul << 61)
#define MENVCFG_STCE (1ul << 63)

#define READ_CSR(csr) ({ u64 _v; asm volatile("csrr %0, " #csr : "=r"(_v) :: "memory"); _v; })
#define WRITE_CSR(csr, v) asm volatile("csrw " #csr ", %0" :: "rK"((u64)(v)) : "memory")
#define SET_CSR(csr, v) asm volatile("csrs " #csr ", %0" :: "rK"((u64)(v)) : "memory")
#define CLEAR_CSR(csr, v) asm volatile("csrc " #csr ", %0" :: "rK"((u64)(v)) : "memory")
#define SWAP_CSR(csr, v) ({ u64 _v; asm volatile("csrrw %0, " #csr ", %1" : "=r"(_v) : "r"((u64)(v)) : "memory"); _v; })

/* What a trap to M-mode left, x[] being the registers of the code that trapped. */
struct trap {
  u64 x[32];
  u64 cause, epc, tval, status;
};

struct hart {
  struct trap trap;
  u64 saved[16];
  u64 entered;
  /* Called for a trap when set: true resumes at trap.epc, false returns from enter(). */
  bool (*handler)(struct hart *);
  u64 trap_sp;
  u64 id;
};

struct trap *enter(u64 mpp, const void *pc, u64 a0, u64 a1);

/* Run a snippet in a privilege until it traps; one that is not stopped earlier ends with its ecall. */
static inline struct trap *run(u64 prv, const void *pc, u64 a0, u64 a1) { return enter(prv << 11, pc, a0, a1); }

/* Position-independent code of its own, followed by an ecall; it lies in pages with nothing but snippets. */
#define SNIPPET(name, text)                                                                     \
  asm(".pushsection .snippets, \"ax\"\n.balign 4\n.globl " #name "\n" #name ":\n" text "\necall\n.popsection"); \
  extern const char name[];

_Noreturn void pass(void);
_Noreturn void fail(int code);
void print(const char *text);
void print_hex(u64 value);

_Noreturn void check_failed(int n, const char *text, const char *file, int line, u64 got, u64 want);
#define CHECK(n, what) \
  do { if (!(what)) check_failed(n, #what, __FILE__, __LINE__, 0, 1); } while (0)
#define EQ(n, got, want)                                                          \
  do {                                                                            \
    u64 _got = (u64)(got), _want = (u64)(want);                                   \
    if (_got != _want) check_failed(n, #got, __FILE__, __LINE__, _got, _want);    \
  } while (0)
/* One check for the three registers that say what a trap was. */
#define TRAPPED(n, t, cause_, epc_, tval_)   \
  do {                                       \
    EQ(n, (t)->cause, cause_);               \
    EQ(n, (t)->epc, epc_);                   \
    EQ(n, (t)->tval, tval_);                 \
  } while (0)

extern struct hart harts[];
static inline struct hart *this_hart(void) { return (struct hart *)READ_CSR(mscratch); }

/* All harts of the machine: each calls it. */
void barrier(void);
void hart_main(u64 hart, u64 n_harts);

static inline void relax(void) { asm volatile(".word 0x0100000f" ::: "memory"); /* pause */ }
#define WAIT_UNTIL(what) do { while (!(what)) relax(); } while (0)
/* The same with an end: the check fails after two seconds of mtime. For what one hart waits from a device. */
#define EVENTUALLY(n, what)                                                          \
  do {                                                                               \
    for (u64 _start = mtime(); !(what); relax())                                     \
      if (mtime() - _start > 20000000) check_failed(n, #what, __FILE__, __LINE__, 0, 1); \
  } while (0)
#define FENCE(from, to) asm volatile("fence " #from ", " #to ::: "memory")
static inline void fence_i(void) { asm volatile("fence.i" ::: "memory"); }
static inline void sfence(void) { asm volatile("sfence.vma" ::: "memory"); }
static inline void wfi(void) { asm volatile("wfi" ::: "memory"); }

static inline u32 read32(u64 a) { u32 v = *(volatile u32 *)a; FENCE(i, ior); return v; }
static inline void write32(u64 a, u32 v) { FENCE(iorw, o); *(volatile u32 *)a = v; }
static inline u64 read64(u64 a) { u64 v = *(volatile u64 *)a; FENCE(i, ior); return v; }
static inline void write64(u64 a, u64 v) { FENCE(iorw, o); *(volatile u64 *)a = v; }
static inline u8 read8(u64 a) { u8 v = *(volatile u8 *)a; FENCE(i, ior); return v; }
static inline void write8(u64 a, u8 v) { FENCE(iorw, o); *(volatile u8 *)a = v; }

static inline void set_msip(u64 hart, u32 v) { write32(CLINT + 4 * hart, v); }
static inline void set_mtimecmp(u64 hart, u64 v) { write64(CLINT + 0x4000 + 8 * hart, v); }
static inline u64 mtime(void) { return read64(CLINT + 0xbff8); }

#define LOAD(p) (*(volatile __typeof__(*(p)) *)(p))
#define STORE(p, v) (*(volatile __typeof__(*(p)) *)(p) = (v))

/* A small generator, so that harts take different paths and a run can be repeated. */
static inline u64 next_random(u64 *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/* Page tables, Sv39 to Sv57: `mode` is satp.MODE (8, 9, 10). */
enum { PTE_V = 1, PTE_R = 2, PTE_W = 4, PTE_X = 8, PTE_U = 16, PTE_G = 32, PTE_A = 64, PTE_D = 128 };
#define PTE_RW (PTE_V | PTE_R | PTE_W | PTE_A | PTE_D)
#define PTE_RX (PTE_V | PTE_R | PTE_X | PTE_A)
#define PTE_RWX (PTE_RW | PTE_X)
u64 *new_table(void);
/* The PTE of va at a level (0: 4 KiB, 1: 2 MiB, ...), making the tables above it. */
u64 *pte_of(u64 *root, int mode, u64 va, int level);
void map(u64 *root, int mode, u64 va, u64 pa, int level, u64 flags);
static inline u64 satp_of(int mode, const u64 *root) { return (u64)mode << 60 | (u64)root >> 12; }
