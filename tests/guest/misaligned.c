/* Plain loads and stores that are not aligned do the whole access: within a page, across cache lines and pages, across
 * two pages mapped apart; and fault with the address of the part that faults. */
#include "guest.h"

#define SV39 8
#define WINDOW 0x400000000ul

SNIPPET(s_ld, "ld a0, 0(a0)")
SNIPPET(s_lh, "lh a0, 0(a0)")
SNIPPET(s_lwu, "lwu a0, 0(a0)")
SNIPPET(s_sd, "sd a1, 0(a0)")
SNIPPET(s_sw, "sw a1, 0(a0)")
SNIPPET(s_sh, "sh a1, 0(a0)")
SNIPPET(s_fld, "fld fa0, 0(a0)\nfmv.x.d a0, fa0")
SNIPPET(s_fsd, "fmv.d.x fa0, a1\nfsd fa0, 0(a0)")

static u8 pages[4][4096] __attribute__((aligned(4096)));

static u64 bytes(const u8 *p, int n) {
  u64 v = 0;
  for (int i = n - 1; i >= 0; i--) v = v << 8 | LOAD(&p[i]);
  return v;
}

static void everywhere(u64 prv, u64 base, const u8 *at, int n) {
  for (int i = 0; i < 24; i++) {
    EQ(n, run(prv, s_ld, base + i, 0)->x[10], bytes(at + i, 8));
    EQ(n + 1, run(prv, s_lwu, base + i, 0)->x[10], bytes(at + i, 4));
    EQ(n + 2, run(prv, s_lh, base + i, 0)->x[10], (u64)(int64_t)(int16_t)bytes(at + i, 2));
    EQ(n + 3, run(prv, s_fld, base + i, 0)->x[10], bytes(at + i, 8));
    u64 value = 0x8182838485868788ul + 0x0101010101010101ul * i;
    u64 before = LOAD(&at[i - 1]), after = LOAD(&at[i + 8]);
    run(prv, s_sd, base + i, value);
    EQ(n + 4, bytes(at + i, 8), value);
    run(prv, s_sw, base + i, ~value);
    EQ(n + 5, bytes(at + i, 8), (value & 0xffffffff00000000ul) | (u32)~value);
    run(prv, s_sh, base + i, 0x1234);
    EQ(n + 6, bytes(at + i, 2), 0x1234);
    run(prv, s_fsd, base + i, value + 1);
    EQ(n + 7, bytes(at + i, 8), value + 1);
    EQ(n + 8, LOAD(&at[i - 1]), before);
    EQ(n + 9, LOAD(&at[i + 8]), after);
  }
}

static void apart(void) {
  /* Virtual neighbours 0 and 1 are frames 3 and 0; neighbour 2 is not mapped, 3 is read-only. */
  u64 *root = new_table();
  map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
  map(root, SV39, WINDOW, (u64)pages[3], 0, PTE_RW);
  map(root, SV39, WINDOW + 0x1000, (u64)pages[0], 0, PTE_RW);
  map(root, SV39, WINDOW + 0x2000, (u64)pages[1], 0, PTE_V | PTE_R | PTE_A);
  WRITE_CSR(satp, satp_of(SV39, root));
  sfence();
  u64 edge = WINDOW + 0x1000;
  for (int i = 1; i < 8; i++) {
    u64 value = 0x1112131415161718ul * i;
    EQ(50, run(S, s_sd, edge - i, value)->cause, ECALL_S);
    EQ(51, bytes(&pages[3][4096 - i], i), value & ((1ul << 8 * i) - 1));
    EQ(52, bytes(pages[0], 8 - i), value >> 8 * i);
    EQ(53, run(S, s_ld, edge - i, 0)->x[10], value);
  }
  /* Into a page one may not write: nothing is stored in the first either, and stval is in the second. */
  edge += 0x1000;
  u64 old = bytes(&pages[0][4096 - 4], 4);
  struct trap *t = run(S, s_sd, edge - 4, -1ul);
  TRAPPED(54, t, STORE_PAGE, s_sd, edge);
  EQ(55, bytes(&pages[0][4096 - 4], 4), old);
  EQ(56, run(S, s_ld, edge - 4, 0)->cause, ECALL_S);
  /* Out of the window's end, and into its start. */
  edge += 0x1000;
  TRAPPED(57, run(S, s_ld, edge - 1, 0), LOAD_PAGE, s_ld, edge);
  TRAPPED(58, run(S, s_lh, edge - 1, 0), LOAD_PAGE, s_lh, edge);
  TRAPPED(59, run(S, s_ld, WINDOW - 1, 0), LOAD_PAGE, s_ld, WINDOW - 1);
  WRITE_CSR(satp, 0);
  sfence();
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  for (int p = 0; p < 4; p++)
    for (int i = 0; i < 4096; i++) pages[p][i] = (u8)(i * 7 + p * 31 + (i >> 8));
  everywhere(M, (u64)&pages[0][56], &pages[0][56], 1);       /* across a cache line */
  everywhere(U, (u64)&pages[1][4096 - 12], &pages[1][4096 - 12], 20); /* across a page */
  apart();
}
