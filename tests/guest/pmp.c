/* PMP: NA4, NAPOT and TOR regions, priority of the lowest entry, default deny below M, locked entries binding M, the
 * lock itself, accesses that only partly match, and page walks being checked as S-mode reads. */
#include "guest.h"

SNIPPET(s_ld, "ld a0, 0(a0)")
SNIPPET(s_lw, "lw a0, 0(a0)")
SNIPPET(s_sw, "sw a1, 0(a0)")
SNIPPET(s_amo, "amoadd.w a0, a1, (a0)")

enum { R = 1, W = 2, X = 4, OFF = 0, TOR = 8, NA4 = 16, NAPOT = 24, LOCK = 128 };
static u32 area[4096] __attribute__((aligned(16384)));

static void set(int entry, u64 cfg) {
  u64 shift = 8 * (entry & 7);
  CLEAR_CSR(pmpcfg0, 0xfful << shift);
  SET_CSR(pmpcfg0, cfg << shift);
  sfence();
}

static u64 napot(const void *p, u64 size) { return (u64)p >> 2 | (size / 8 - 1); }

static void may(int n, u64 prv, const u32 *p, bool read, bool write, bool execute) {
  struct trap *t = run(prv, s_lw, (u64)p, 0);
  if (read) CHECK(n, t->cause >= ECALL_U && t->cause <= ECALL_M);
  else TRAPPED(n, t, LOAD_ACCESS, s_lw, p);
  t = run(prv, s_sw, (u64)p, 0x73);
  if (write) CHECK(n, t->cause >= ECALL_U && t->cause <= ECALL_M);
  else TRAPPED(n, t, STORE_ACCESS, s_sw, p);
#ifndef LAX
  if (!write) TRAPPED(n, run(prv, s_amo, (u64)p, 0), STORE_ACCESS, s_amo, p);
#endif
  t = run(prv, p, 0, 0);
  if (execute) TRAPPED(n, t, prv == M ? ECALL_M : 8 + prv, p, 0);
  else TRAPPED(n, t, FETCH_ACCESS, p, p);
}

static void regions(void) {
  /* Entry 7 opens everything, the ones before cut out of it. */
  WRITE_CSR(pmpcfg0, 0);
  WRITE_CSR(pmpaddr7, -1ul);
  set(7, NAPOT | R | W | X);
  may(1, S, area, true, true, true);
  WRITE_CSR(pmpaddr0, napot(&area[1024], 4096));
  set(0, NAPOT | R);
  may(2, S, &area[1023], true, true, true);
  may(3, S, &area[1024], true, false, false);
  may(4, U, &area[2047], true, false, false);
  may(5, S, &area[2048], true, true, true);
  may(6, M, &area[1024], true, true, true);
  set(0, NAPOT | R | W);
  may(7, S, &area[1024], true, true, false);
  set(0, NAPOT | X);
  may(8, S, &area[1024], false, false, true);
  set(0, NAPOT);
  may(9, S, &area[1024], false, false, false);
  set(0, OFF);
  may(10, S, &area[1024], true, true, true);
  /* TOR: from the address of the entry before, which may be off, up to its own. */
  WRITE_CSR(pmpaddr1, (u64)&area[1024] >> 2);
  WRITE_CSR(pmpaddr2, (u64)&area[3072] >> 2);
  set(2, TOR | R);
  may(11, S, &area[1023], true, true, true);
  may(12, S, &area[1024], true, false, false);
  may(13, S, &area[3071], true, false, false);
  may(14, S, &area[3072], true, true, true);
  /* The lowest entry that matches decides. */
  WRITE_CSR(pmpaddr0, napot(&area[2048], 4096));
  set(0, NAPOT | R | W | X);
  may(15, S, &area[2048], true, true, true);
  may(16, S, &area[1024], true, false, false);
  /* An empty TOR range matches nothing. */
  WRITE_CSR(pmpaddr1, (u64)&area[3072] >> 2);
#ifdef LAX
  set(2, TOR | R); /* where a write of the lower bound's pmpaddr alone has no effect */
#endif
  may(17, S, &area[1024], true, true, true);
  set(0, OFF);
  set(2, OFF);
}

/* Smaller than a page: only where the grain is four bytes. */
static void small(void) {
  WRITE_CSR(pmpaddr0, -1ul);
  if (!(READ_CSR(pmpaddr0) & 1)) return;
  WRITE_CSR(pmpaddr0, (u64)&area[101] >> 2);
  set(0, NA4 | R);
  if ((READ_CSR(pmpcfg0) & 0xff) != (NA4 | R)) return;
  may(20, S, &area[100], true, true, true);
  may(21, S, &area[101], true, false, false);
  may(22, S, &area[102], true, true, true);
  /* A doubleword of which the entry matches one half fails whatever the entry allows. */
  set(0, NA4 | R | W | X);
  TRAPPED(23, run(S, s_ld, (u64)&area[100], 0), LOAD_ACCESS, s_ld, &area[100]);
  EQ(24, run(S, s_ld, (u64)&area[102], 0)->cause, ECALL_S);
  WRITE_CSR(pmpaddr0, napot(&area[104], 16));
  set(0, NAPOT | R);
  may(25, S, &area[103], true, true, true);
  may(26, S, &area[104], true, false, false);
  may(27, S, &area[107], true, false, false);
  may(28, S, &area[108], true, true, true);
  set(0, OFF);
}

/* The page table lies where S-mode may not read: the walk's access fault has the kind of the access. */
static void walks(void) {
  u64 *root = new_table();
  map(root, 8, 0x80000000, 0x80000000, 2, PTE_RWX);
  WRITE_CSR(satp, satp_of(8, root));
  sfence();
  EQ(30, run(S, s_lw, (u64)area, 0)->cause, ECALL_S);
  WRITE_CSR(pmpaddr0, napot(root, 4096));
  set(0, NAPOT | X);
  /* S-mode cannot even fetch. */
  TRAPPED(31, run(S, s_lw, (u64)area, 0), FETCH_ACCESS, s_lw, s_lw);
  set(0, OFF);
  /* Physical addresses are what is checked. */
  map(root, 8, 0x400000000, (u64)area, 0, PTE_RWX);
  WRITE_CSR(pmpaddr0, napot(area, 4096));
  set(0, NAPOT | R);
  TRAPPED(32, run(S, s_sw, 0x400000000, 0), STORE_ACCESS, s_sw, 0x400000000);
  EQ(33, run(S, s_lw, 0x400000000, 0)->cause, ECALL_S);
  set(0, OFF);
  WRITE_CSR(satp, 0);
}

static void closed(void) {
  /* No entry matches: denied below M, allowed in M. */
  WRITE_CSR(pmpaddr7, (u64)area >> 2);
  WRITE_CSR(pmpaddr6, 0x80000000 >> 2);
  set(7, TOR | R | W | X);
  may(40, M, &area[5], true, true, true);
  TRAPPED(41, run(S, s_lw, (u64)&area[4095] + 4096, 0), LOAD_ACCESS, s_lw, (u64)&area[4095] + 4096);
  WRITE_CSR(pmpaddr7, -1ul);
  set(7, NAPOT | R | W | X);
}

static void locked(void) {
  WRITE_CSR(pmpaddr3, napot(&area[1024], 4096));
  set(3, LOCK | NAPOT | R);
  may(50, M, &area[1024], true, false, false);
  may(51, S, &area[1024], true, false, false);
  may(52, M, &area[1023], true, true, true);
  /* Neither the entry nor its address changes any more. */
  u64 address = READ_CSR(pmpaddr3);
  WRITE_CSR(pmpaddr3, 0);
  EQ(53, READ_CSR(pmpaddr3), address);
  set(3, OFF);
  EQ(54, READ_CSR(pmpcfg0) >> 24 & 0xff, LOCK | NAPOT | R);
  may(55, M, &area[1024], true, false, false);
  /* A locked TOR entry locks the address before it as well. */
  WRITE_CSR(pmpaddr4, (u64)&area[2048] >> 2);
  WRITE_CSR(pmpaddr5, (u64)&area[3072] >> 2);
  set(5, LOCK | TOR | X);
  address = READ_CSR(pmpaddr4);
  WRITE_CSR(pmpaddr4, 0);
  EQ(56, READ_CSR(pmpaddr4), address);
  may(57, M, &area[2048], false, false, true);
  may(58, M, &area[3072], true, true, true);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (int i = 0; i < 4096; i++) area[i] = 0x73; /* ecall */
  fence_i();
  regions();
  small();
  walks();
  closed();
  locked();
}
