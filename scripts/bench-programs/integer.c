/* An integer mix in the manner of CoreMark: a linked list sorted and searched, a matrix product, a state machine over
 * text, and a CRC over all results. Bare metal, one hart; says how long it took by the machine's 10 MHz timer. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#ifndef ROUNDS
#define ROUNDS 10000
#endif
#define NODES 64
#define SIZE 16

asm(".section .start, \"ax\"\n"
    ".globl _start\n"
    "_start: csrr t0, mhartid\n"
    "bnez t0, 1f\n"
    "lla sp, stack + 16384\n"
    "call program\n"
    "1: wfi\n"
    "j 1b\n"
    ".bss\n.balign 16\nstack: .skip 16384\n.text\n");

struct node {
  struct node *next;
  u32 key, data;
};

static struct node nodes[NODES];
static int a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];
static u8 text[512];
static volatile u8 *const uart = (u8 *)0x10000000;
static u32 seed;

static u32 chance(void) { return seed = seed * 1664525u + 1013904223u; }

static u16 crc(u32 value, u16 sum) {
  for (int bit = 0; bit < 32; bit++, value >>= 1) {
    int carry = (sum ^ value) & 1;
    sum >>= 1;
    if (carry) sum ^= 0xa001;
  }
  return sum;
}

static struct node *merge(struct node *x, struct node *y) {
  struct node first, *last = &first;
  while (x && y) {
    struct node **smaller = x->key <= y->key ? &x : &y;
    last->next = *smaller;
    last = *smaller;
    *smaller = last->next;
  }
  last->next = x ? x : y;
  return first.next;
}

static struct node *sort(struct node *list, int count) {
  if (count == 1) {
    list->next = 0;
    return list;
  }
  struct node *half = list;
  for (int i = 0; i < count / 2; i++) half = half->next;
  struct node *right = sort(half, count - count / 2);
  return merge(sort(list, count / 2), right);
}

static u16 lists(u16 sum) {
  for (int i = 0; i < NODES; i++) {
    nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : 0;
    nodes[i].key = chance() >> 16;
    nodes[i].data = (u32)i;
  }
  struct node *list = sort(nodes, NODES);
  for (int i = 0; i < 16; i++) {
    u32 wanted = chance() >> 16;
    struct node *n = list;
    while (n->next && n->key < wanted) n = n->next;
    sum = crc(n->data, sum);
  }
  return sum;
}

static u16 matrices(u16 sum) {
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) a[i][j] = (int)(chance() >> 20), b[i][j] = (int)(chance() >> 20);
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) {
      int total = 0;
      for (int k = 0; k < SIZE; k++) total += a[i][k] * b[k][j];
      c[i][j] = total >> 3;
    }
  for (int i = 0; i < SIZE; i++) sum = crc((u32)c[i][i], sum);
  return sum;
}

/* Counts integers, fractions and words in a text. */
static u16 states(u16 sum) {
  static const u8 letters[16] = "0123456789.,ab -";
  enum { START, INTEGER, FRACTION, WORD, STATES } state = START;
  u32 seen[STATES] = {0};
  for (u32 i = 0; i < sizeof text; i++) text[i] = letters[chance() >> 28];
  for (u32 i = 0; i < sizeof text; i++) {
    u8 ch = text[i];
    if (ch == ',' || ch == ' ') {
      seen[state]++;
      state = START;
      continue;
    }
    switch (state) {
      case START: state = ch >= '0' && ch <= '9' ? INTEGER : ch == '.' ? FRACTION : WORD; break;
      case INTEGER: if (ch == '.') state = FRACTION; else if (ch < '0' || ch > '9') state = WORD; break;
      case FRACTION: if (ch < '0' || ch > '9') state = WORD; break;
      default: break;
    }
  }
  for (int i = 0; i < STATES; i++) sum = crc(seen[i], sum);
  return sum;
}

static void print(const char *what, u64 value) {
  char digits[21], *p = digits + 20;
  *p = 0;
  do *--p = (char)('0' + value % 10); while (value /= 10);
  for (; *what; what++) *uart = (u8)*what;
  for (; *p; p++) *uart = (u8)*p;
}

static u64 time(void) {
  u64 now;
  asm volatile("rdtime %0" : "=r"(now));
  return now;
}

void program(void) {
  seed = 1;
  u16 sum = 0;
  u64 began = time();
  for (int round = 0; round < ROUNDS; round++) sum = states(matrices(lists(sum)));
  u64 ticks = time() - began;
  print("ticks ", ticks), print(" sum ", sum), print("\n", 0);
  *(volatile u32 *)0x100000 = 0x5555;
}
