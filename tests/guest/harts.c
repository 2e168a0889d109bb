/* Every hart starts once, in M-mode, with its own id and stack, and sees the stores of the others. */
#include "guest.h"

static u64 arrivals[MAX_HARTS];

void hart_main(u64 hart, u64 n) {
  CHECK(1, n >= 1 && n <= MAX_HARTS);
  CHECK(2, hart < n);
  EQ(3, READ_CSR(mhartid), hart);
  /* RV64 with I, M, A, F, D, C, S, U. */
  u64 misa = READ_CSR(misa);
  EQ(4, misa >> 62, 2);
  for (const char *letter = "imafdcsu"; *letter; letter++) CHECK(5, misa >> (*letter - 'a') & 1);
  __atomic_fetch_add(&arrivals[hart], 1, __ATOMIC_RELAXED);
  barrier();
  for (u64 i = 0; i < n; i++) EQ(6, arrivals[i], 1);
  /* Nothing is left over from before the reset. */
  EQ(7, READ_CSR(mstatus) & (MSTATUS_MIE | MSTATUS_MPRV), 0);
  EQ(8, READ_CSR(satp), 0);
  EQ(9, READ_CSR(mip) & 1 << MSI, 0);
}
