/* All harts execute code in the page that holds the counters which that code counts up, with a fence.i now and then:
 * no count is lost, and the code stays what it is. The test counts what the translator makes of it. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 400
#endif
#define TURNS 1000

enum { MOST_HARTS = 8 };

static struct {
  u32 code[256];
  u64 counter[MOST_HARTS], all;
} page __attribute__((aligned(4096)));

/* ld a2,0(a0); addi a2,a2,1; sd a2,0(a0); amoadd.d x0,a4,(a3); addi a1,a1,-1; bnez a1,-20; mv a0,a2; ret */
static const u32 loop[] = {
  0x00053603, 0x00160613, 0x00c53023, 0x00e6b02f, 0xfff58593, 0xfe0596e3, 0x00060513, 0x00008067,
};

void hart_main(u64 hart, u64 n) {
  CHECK(1, n <= MOST_HARTS);
  if (hart == 0)
    for (u32 i = 0; i < sizeof loop / sizeof *loop; i++) page.code[i] = loop[i];
  barrier();
  fence_i();
  u64 (*count)(u64 *, u64, u64, u64 *, u64) = (void *)page.code;
  for (u64 i = 1; i <= ROUNDS; i++) {
    EQ(2, count(&page.counter[hart], TURNS, 0, &page.all, 1), i * TURNS);
    if (i % 100 == 0) fence_i();
  }
  barrier();
  EQ(3, LOAD(&page.all), n * ROUNDS * TURNS);
}
