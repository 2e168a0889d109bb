/* Sv39, Sv48 and Sv57: which accesses a PTE allows at each level, which PTEs are malformed, and what a fault reports.
 * MPRV, SUM and MXR included. All PTEs here have A and D set where they must be. */
#include "guest.h"

SNIPPET(s_ld, "ld a0, 0(a0)")
SNIPPET(s_sd, "sd a1, 0(a0)")
#ifndef LAX
SNIPPET(s_amo, "amoadd.d a0, a1, (a0)")
#endif
/* M-mode with the data privilege of MPP: a2 takes what was there. */
SNIPPET(s_mprv_ld, "csrs mstatus, a1\nld a2, 0(a0)\ncsrc mstatus, a1")
SNIPPET(s_mprv_sd, "csrs mstatus, a1\nsd a2, 0(a0)\ncsrc mstatus, a1")

static u64 frame[512] __attribute__((aligned(4096)));
static u64 other[512] __attribute__((aligned(4096)));
static int mode;
static u64 *root;
static u64 base; /* a virtual address with nothing around it */

static u64 size_of(int level) { return 4096ul << 9 * level; }

/* At `level`, a page of VA base whose offset 64 is frame[8]. */
static u64 place(int level, u64 flags) {
  u64 pa = (u64)frame & ~(size_of(level) - 1);
  map(root, mode, base, pa, level, flags);
  sfence();
  return base + ((u64)frame - pa) + 64;
}

static void loads(int n, u64 prv, u64 va, u64 cause) {
  struct trap *t = run(prv, s_ld, va, 0);
  if (cause == 0)
    EQ(n, t->cause == ECALL_S || t->cause == ECALL_U ? t->x[10] : t->cause, 4321);
  else
    TRAPPED(n, t, cause, s_ld, va);
}

static void stores(int n, u64 prv, u64 va, u64 cause) {
  struct trap *t = run(prv, s_sd, va, 4321);
  if (cause == 0)
    CHECK(n, t->cause == ECALL_S || t->cause == ECALL_U);
  else
    TRAPPED(n, t, cause, s_sd, va);
#ifndef LAX
  t = run(prv, s_amo, va, 0);
  if (cause) TRAPPED(n, t, cause, s_amo, va);
#endif
}

/* The word after the data is an ecall. */
static void executes(int n, u64 prv, u64 va, u64 cause) {
  va += 8;
  struct trap *t = run(prv, (const void *)va, 0, 0);
  if (cause == 0)
    TRAPPED(n, t, prv == S ? ECALL_S : ECALL_U, va, 0);
  else
    TRAPPED(n, t, cause, va, va);
}

static void permissions(int level) {
  const u64 ad = PTE_A | PTE_D;
  u64 va = place(level, PTE_RWX);
  loads(10, S, va, 0), stores(11, S, va, 0), executes(12, S, va, 0);
  executes(13, U, va, FETCH_PAGE);
  place(level, PTE_V | PTE_R | ad);
  loads(14, S, va, 0), stores(15, S, va, STORE_PAGE), executes(16, S, va, FETCH_PAGE);
  place(level, PTE_V | PTE_X | ad);
  loads(17, S, va, LOAD_PAGE), stores(18, S, va, STORE_PAGE), executes(19, S, va, 0);
  SET_CSR(mstatus, MSTATUS_MXR);
  loads(20, S, va, 0), stores(21, S, va, STORE_PAGE);
  CLEAR_CSR(mstatus, MSTATUS_MXR);
  place(level, PTE_V | PTE_R | PTE_W | ad);
  loads(22, S, va, 0), stores(23, S, va, 0), executes(24, S, va, FETCH_PAGE);
  /* A page of U: for S by SUM, and never to execute. */
  place(level, PTE_RWX | PTE_U);
  executes(25, U, va, 0);
  loads(26, S, va, LOAD_PAGE), stores(27, S, va, STORE_PAGE), executes(28, S, va, FETCH_PAGE);
  SET_CSR(mstatus, MSTATUS_SUM);
  loads(29, S, va, 0), stores(30, S, va, 0), executes(31, S, va, FETCH_PAGE);
  CLEAR_CSR(mstatus, MSTATUS_SUM);
}

/* PTEs that fault whatever is asked of them. */
static void malformed(int level) {
  const u64 ad = PTE_A | PTE_D;
  u64 va = place(level, 0);
  loads(40, S, va, LOAD_PAGE), stores(41, S, va, STORE_PAGE), executes(42, S, va, FETCH_PAGE);
  place(level, PTE_R | PTE_W | PTE_X | ad); /* V clear */
  loads(43, S, va, LOAD_PAGE);
  place(level, PTE_V | PTE_W | ad);
  loads(44, S, va, LOAD_PAGE), stores(45, S, va, STORE_PAGE), executes(46, S, va, FETCH_PAGE);
  place(level, PTE_V | PTE_W | PTE_X | ad);
  loads(47, S, va, LOAD_PAGE), stores(48, S, va, STORE_PAGE), executes(49, S, va, FETCH_PAGE);
  for (int bit = 54; bit < 61; bit++) {
    place(level, PTE_RWX | 1ul << bit);
    loads(50, S, va, LOAD_PAGE);
  }
  /* PBMT without menvcfg.PBMTE. */
  place(level, PTE_RWX | 1ul << 61);
  loads(51, S, va, LOAD_PAGE);
  if (level > 0) {
    /* The lowest PPN bit of a superpage. */
    place(level, PTE_RWX | 1 << 10);
    loads(52, S, va, LOAD_PAGE), stores(53, S, va, STORE_PAGE), executes(54, S, va, FETCH_PAGE);
    /* A pointer to a table may not have A, D or U. */
    u64 pointer = (u64)new_table() >> 2 | PTE_V;
    for (int bit = 4; bit < 8; bit++) {
      if (bit == 5) continue;
      *pte_of(root, mode, base, level) = pointer | 1ul << bit;
      sfence();
      loads(55, S, va, LOAD_PAGE);
    }
#ifndef LAX
    /* A table where there is no memory: an access fault of the kind of the access. */
    *pte_of(root, mode, base, level) = 0x1000000ul >> 2 | PTE_V;
    sfence();
    loads(56, S, va, LOAD_ACCESS), stores(57, S, va, STORE_ACCESS), executes(58, S, va, FETCH_ACCESS);
#endif
  } else {
    *pte_of(root, mode, base, 0) = (u64)frame >> 2 | PTE_V; /* a pointer at the last level */
    sfence();
    loads(59, S, va, LOAD_PAGE);
  }
}

static void beyond(void) {
  /* The bits above the virtual address must be copies of its highest. */
  int bits = 12 + 9 * (mode - 5);
  u64 va = place(0, PTE_RWX);
  for (int bit = bits; bit < 64; bit += 5) loads(60, S, va ^ 1ul << bit, LOAD_PAGE);
  executes(61, S, va | 1ul << 63, FETCH_PAGE);
  stores(62, S, va | 1ul << 62, STORE_PAGE);
  /* A negative address is one like any other. */
  u64 high = -(1ul << 30);
  map(root, mode, high, (u64)frame, 0, PTE_RWX);
  sfence();
  loads(63, S, high + 64, 0);
  /* A leaf beyond memory: access fault, the value being the virtual address. */
  *pte_of(root, mode, base, 0) = 0x1000000ul >> 2 | PTE_RWX;
  sfence();
  loads(64, S, base, LOAD_ACCESS), stores(65, S, base, STORE_ACCESS), executes(66, S, base, FETCH_ACCESS);
}

static void mprv(void) {
  u64 va = place(0, PTE_RW);
  CLEAR_CSR(mstatus, MSTATUS_MPP);
  /* enter() uses MPP itself, so the snippet sets MPP along with MPRV; 1 << 11 is S. mret left MPP = U. */
  struct trap *t = run(M, s_mprv_ld, va, MSTATUS_MPRV | 1 << 11);
  EQ(70, t->cause, ECALL_M);
  EQ(71, t->x[12], 4321);
  /* As U in a page of S. */
  t = run(M, s_mprv_ld, va, MSTATUS_MPRV);
  CLEAR_CSR(mstatus, MSTATUS_MPRV);
  EQ(72, t->cause, LOAD_PAGE);
  EQ(73, t->tval, va);
  t = run(M, s_mprv_sd, va, MSTATUS_MPRV);
  CLEAR_CSR(mstatus, MSTATUS_MPRV);
  EQ(74, t->cause, STORE_PAGE);
  /* With MPP = M nothing changes: va is no physical address. */
  t = run(M, s_mprv_ld, (u64)&frame[8], MSTATUS_MPRV | MSTATUS_MPP);
  CLEAR_CSR(mstatus, MSTATUS_MPRV);
  EQ(75, t->cause, ECALL_M);
  EQ(76, t->x[12], 4321);
}

static void remap(void) {
  u64 va = place(0, PTE_RW);
  for (int i = 0; i < 100; i++) {
    other[8] = 5000 + i;
    *pte_of(root, mode, base, 0) = (u64)(i & 1 ? frame : other) >> 2 | PTE_RW;
    asm volatile("sfence.vma %0, x0" :: "r"(va) : "memory");
    EQ(80, run(S, s_ld, va, 0)->x[10], i & 1 ? 4321 : 5000 + i);
  }
  /* Another root takes effect with sfence.vma, and Bare turns translation off. */
  u64 *second = new_table();
  map(second, mode, 0x80000000, 0x80000000, 2, PTE_RWX);
  WRITE_CSR(satp, satp_of(mode, second));
  sfence();
  EQ(81, run(S, s_ld, va, 0)->cause, LOAD_PAGE);
  WRITE_CSR(satp, 0);
  sfence();
  EQ(82, run(S, s_ld, (u64)&frame[8], 0)->x[10], 4321);
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  frame[9] = 0x00000073;
  fence_i();
  for (mode = 8; mode <= 10; mode++) {
    root = new_table();
    WRITE_CSR(satp, satp_of(mode, root));
    EQ(1, READ_CSR(satp) >> 60, mode);
    map(root, mode, 0x80000000, 0x80000000, 2, PTE_RWX);
    for (int level = mode - 6; level >= 0; level--) {
      /* An own top-level slot for each level, so that tables of one do not hide the leaves of another. */
      base = size_of(mode - 6) * (u64)(3 + level);
      frame[8] = 4321;
      permissions(level);
      malformed(level);
    }
    beyond();
    mprv();
    remap();
  }
}
