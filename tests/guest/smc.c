/* A hart that rewrites its own code executes the new code after fence.i: the same word again and again, one ahead in
 * the same block, across two pages, and compressed code over wide code. */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 2000
#endif

static u32 code[2048] __attribute__((aligned(4096)));

static u64 call(const void *at) { return ((u64(*)(void))at)(); }
static u32 addi_a0(u32 value) { return value << 20 | 0x513; } /* addi a0, x0, value */

static void same_word(void) {
  code[1] = 0x00008067;
  for (u32 i = 0; i < ROUNDS; i++) {
    STORE(&code[0], addi_a0(i & 0x7ff));
    fence_i();
    EQ(1, call(code), i & 0x7ff);
  }
}

/* The code stores over an instruction that comes after it in a straight line, with fence.i between. */
static void ahead(void) {
  u64 (*rewrite)(u64) = (u64(*)(u64))&code[64];
  code[64] = 0x00000597;  /* auipc a1, 0 */
  code[65] = 0x00a5a823;  /* sw a0, 16(a1) */
  code[66] = 0x0000100f;  /* fence.i */
  code[67] = 0x00000013;
  code[68] = 0;           /* the word that is stored */
  code[69] = 0x00008067;
  fence_i();
  for (u32 i = 0; i < ROUNDS; i++) EQ(2, rewrite(addi_a0(i & 0x7ff)), i & 0x7ff);
}

/* One four-byte instruction whose halves lie in two pages, each half rewritten in turn. */
static void across_pages(void) {
  u16 *half = (u16 *)code;
  half[2046] = 0x0001; /* c.nop */
  half[2049] = 0x8082; /* c.jr ra */
  for (u32 i = 0; i < 200; i++) {
    u32 word = addi_a0(i);
    STORE(&half[2047], (u16)word);
    STORE(&half[2048], (u16)(word >> 16));
    fence_i();
    EQ(3, call(&half[2046]), i);
    /* Only the upper half, in the second page. */
    STORE(&half[2048], (u16)(addi_a0(i + 1) >> 16));
    fence_i();
    EQ(4, call(&half[2046]), i + 1);
  }
}

static void other_widths(void) {
  u16 *half = (u16 *)&code[128];
  for (int i = 0; i < 100; i++) {
    half[0] = 0x4505, half[1] = 0x0505, half[2] = 0x8082; /* c.li a0, 1; c.addi a0, 1; c.jr ra */
    fence_i();
    EQ(5, call(half), 2);
    code[128] = addi_a0(77);
    fence_i();
    EQ(6, call(half), 77);
  }
}

/* Data in a page with code may be written as often as one likes without fence.i: the code stays right. */
static void data_beside(void) {
  u64 (*count)(u64 *, u64) = (u64(*)(u64 *, u64))&code[192];
  static const u32 loop[] = {0x00053603, 0x00160613, 0x00c53023, 0xfff58593, 0xfe0598e3, 0x00060513, 0x00008067};
  /* ld a2,0(a0); addi a2,a2,1; sd a2,0(a0); addi a1,a1,-1; bnez a1,-16; mv a0,a2; ret */
  for (int i = 0; i < 7; i++) code[192 + i] = loop[i];
  u64 *beside = (u64 *)&code[256];
  *beside = 0;
  fence_i();
  EQ(7, count(beside, ROUNDS), ROUNDS);
  EQ(8, count(beside, ROUNDS), 2 * ROUNDS);
}

/* A word that is changed and changed back between two fence.i, and fetched in between: it may then run as either, but
 * after the second fence.i only as what it is. */
static void there_and_back(void) {
  u32 *at = &code[320];
  for (u32 i = 0; i < 64; i++, at += 4) {
    at[0] = addi_a0(1);
    at[1] = at[2] = 0x00008067;
    fence_i();
    call(&at[1]); /* the page is known, this word is not */
    STORE(&at[0], addi_a0(2));
    u64 got = call(at);
    CHECK(9, got == 1 || got == 2);
    STORE(&at[0], addi_a0(1));
    fence_i();
    EQ(10, call(at), 1);
  }
}

void hart_main(u64 hart, u64 n) {
  (void)n;
  if (hart) return;
  same_word();
  ahead();
  across_pages();
  other_widths();
  data_beside();
  there_and_back();
}
