/* TCP between a guest and a program on the host, its peer: a stream each way, and single bytes to and fro.
 *
 * The peer is this binary too: `bench peer` says which port it listens on and serves one connection after the other.
 * A connection begins with what is wanted and how much of it. */
#include "bench.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE (256 << 10)
#define SAMPLE 4096 /* one byte of so many is looked at */

typedef struct {
  u64 kind, count;
} wish;

enum { INWARD, OUTWARD, ECHO };

const char *peer_address = "10.0.2.2"; /* the host, as user networks have it */
int peer_port;
static u8 piece[PIECE];

static void fill(void) {
  for (int i = 0; i < PIECE; i++) piece[i] = (u8)(i / SAMPLE + i);
}

static void set_nodelay(int link) {
  int on = 1;
  need(setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
}

static int send_all(int link, const void *data, size_t count) {
  for (ssize_t sent; count; data = (const u8 *)data + sent, count -= (size_t)sent)
    if ((sent = send(link, data, count, MSG_NOSIGNAL)) <= 0) return 0;
  return 1;
}

static int send_stream(int link, u64 count) {
  for (; count; count -= PIECE)
    if (!send_all(link, piece, PIECE)) return 0;
  return 1;
}

/* The sum of samples, each times its place: a stream out of order gives another. */
static u64 receive_stream(int link, u64 count) {
  static u8 buffer[PIECE];
  u64 sum = 0, next = 0;
  ssize_t got;
  for (u64 at = 0; at < count; at += (u64)got) {
    need((got = recv(link, buffer, PIECE, 0)) > 0, "recv");
    for (; next < at + (u64)got; next += SAMPLE) sum += (next / SAMPLE + 1) * buffer[next - at];
  }
  return sum;
}

static int call_peer(u64 kind, u64 count) {
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((u16)peer_port)};
  wish wanted = {kind, count};
  int link = socket(AF_INET, SOCK_STREAM, 0);
  need(link >= 0 && inet_aton(peer_address, &where.sin_addr), "socket");
  need(connect(link, (struct sockaddr *)&where, sizeof where) == 0, "connect to the peer");
  set_nodelay(link);
  fill();
  start_clock();
  need(send_all(link, &wanted, sizeof wanted), "send");
  return link;
}

static u64 stream_bytes(void) { return (u64)PIECE * (u64)size(2048, 16); }

u64 net_in(int threads) {
  u64 count = stream_bytes(), sum = receive_stream(call_peer(INWARD, count), count);
  (void)threads;
  stop_clock();
  return sum;
}

u64 net_out(int threads) {
  u64 count = stream_bytes(), sum = 0;
  int link = call_peer(OUTWARD, count);
  (void)threads;
  need(send_stream(link, count), "send");
  need(recv(link, &sum, sizeof sum, MSG_WAITALL) == sizeof sum, "recv");
  stop_clock();
  return sum;
}

u64 round_trips(int threads) {
  u64 count = (u64)size(5000, 100), sum = 0;
  int link = call_peer(ECHO, count);
  (void)threads;
  for (u64 i = 0; i < count; i++) {
    u8 byte = (u8)i;
    need(send_all(link, &byte, 1) && recv(link, &byte, 1, 0) == 1, "a round trip");
    sum += byte;
  }
  stop_clock();
  return sum;
}

static void echo(int link, u64 count) {
  u8 byte;
  while (count-- && recv(link, &byte, 1, 0) == 1 && send_all(link, &byte, 1)) {}
}

static void serve(int link) {
  wish wanted;
  set_nodelay(link);
  need(recv(link, &wanted, sizeof wanted, MSG_WAITALL) == sizeof wanted, "a wish");
  if (wanted.kind == INWARD) send_stream(link, wanted.count);
  if (wanted.kind == ECHO) echo(link, wanted.count);
  if (wanted.kind == OUTWARD) {
    u64 sum = receive_stream(link, wanted.count);
    send_all(link, &sum, sizeof sum);
  }
}

void be_peer(void) {
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof where;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  need(listener >= 0 && bind(listener, (struct sockaddr *)&where, length) == 0, "bind");
  need(listen(listener, 16) == 0 && getsockname(listener, (struct sockaddr *)&where, &length) == 0, "listen");
  printf("%d\n", ntohs(where.sin_port));
  fflush(stdout);
  fill();
  signal(SIGCHLD, SIG_IGN); /* children vanish by themselves */
  for (;;) {
    int link = accept(listener, NULL, NULL);
    need(link >= 0, "accept");
    pid_t child = fork(); /* a wish that fails is its own affair */
    need(child >= 0, "fork");
    if (!child) serve(link), _exit(0);
    close(link);
  }
}
