/* Without Svadu (menvcfg.ADUE clear) an access through a PTE with A clear, or a store with D clear, is a page fault,
 * and the PTE stays as it was. */
#include "guest.h"

#define SV39 8
#define WINDOW 0x400000000ul
SNIPPET(s_ld, "ld a0, 0(a0)")
SNIPPET(s_sd, "sd a1, 0(a0)")

static u64 frame[512] __attribute__((aligned(4096)));

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  u64 *root = new_table();
  map(root, SV39, 0x80000000, 0x80000000, 2, PTE_RWX);
  u64 *pte = pte_of(root, SV39, WINDOW, 0);
  WRITE_CSR(satp, satp_of(SV39, root));
  const u64 rwx = (u64)frame >> 2 | PTE_V | PTE_R | PTE_W | PTE_X;
  frame[0] = 0x73; /* ecall */
  fence_i();

  STORE(pte, rwx | PTE_D);
  sfence();
  TRAPPED(1, run(S, s_ld, WINDOW, 0), LOAD_PAGE, s_ld, WINDOW);
  TRAPPED(2, run(S, s_sd, WINDOW, 0), STORE_PAGE, s_sd, WINDOW);
  TRAPPED(3, run(S, (void *)WINDOW, 0, 0), FETCH_PAGE, WINDOW, WINDOW);
  EQ(4, *pte, rwx | PTE_D);
  STORE(pte, rwx | PTE_A);
  sfence();
  EQ(5, run(S, s_ld, WINDOW, 0)->x[10], 0x73);
  EQ(6, run(S, (void *)WINDOW, 0, 0)->cause, ECALL_S);
  TRAPPED(7, run(S, s_sd, WINDOW, 1), STORE_PAGE, s_sd, WINDOW);
  EQ(8, *pte, rwx | PTE_A);
  EQ(9, frame[0], 0x73);
}
