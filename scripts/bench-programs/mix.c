/* An integer mix in the manner of CoreMark: a linked list sorted and searched, a matrix product, a state machine over
 * text, and a CRC over all results. */
#include "bench.h"

#define NODES 64
#define SIZE 16

struct node {
  struct node *next;
  u32 key, data;
};

static struct node nodes[NODES];
static int a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];
static u8 text[512];
static u32 seed;

static u16 crc16(u32 value, u16 sum) {
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

static struct node *sort_list(struct node *list, int count) {
  if (count == 1) {
    list->next = 0;
    return list;
  }
  struct node *half = list;
  for (int i = 0; i < count / 2; i++) half = half->next;
  struct node *right = sort_list(half, count - count / 2);
  return merge(sort_list(list, count / 2), right);
}

static u16 lists(u16 sum) {
  for (int i = 0; i < NODES; i++) {
    nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : 0;
    nodes[i].key = chance(&seed) >> 16;
    nodes[i].data = (u32)i;
  }
  struct node *list = sort_list(nodes, NODES);
  for (int i = 0; i < 16; i++) {
    u32 wanted = chance(&seed) >> 16;
    struct node *n = list;
    while (n->next && n->key < wanted) n = n->next;
    sum = crc16(n->data, sum);
  }
  return sum;
}

static u16 matrices(u16 sum) {
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) {
      a[i][j] = (int)(chance(&seed) >> 20);
      b[i][j] = (int)(chance(&seed) >> 20);
    }
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) {
      int total = 0;
      for (int k = 0; k < SIZE; k++) total += a[i][k] * b[k][j];
      c[i][j] = total >> 3;
    }
  for (int i = 0; i < SIZE; i++) sum = crc16((u32)c[i][i], sum);
  return sum;
}

/* Counts integers, fractions and words in a text. */
static u16 states(u16 sum) {
  static const u8 letters[16] = "0123456789.,ab -";
  enum { START, INTEGER, FRACTION, WORD, STATES } state = START;
  u32 seen[STATES] = {0};
  for (u32 i = 0; i < sizeof text; i++) text[i] = letters[chance(&seed) >> 28];
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
  for (int i = 0; i < STATES; i++) sum = crc16(seen[i], sum);
  return sum;
}

u64 mix(int threads) {
  u16 sum = 0;
  int rounds = size(60000, 300);
  (void)threads;
  seed = 1;
  start_clock();
  for (int round = 0; round < rounds; round++) sum = states(matrices(lists(sum)));
  stop_clock();
  return sum;
}
