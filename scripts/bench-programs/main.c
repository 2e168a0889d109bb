/* One binary with all programs, for the guest and for the host.
 *
 *   bench [init] [quick] NAME ...    prints `NAME seconds checksum` for each; NAME-N is the program on N threads
 *   bench peer                       what a guest's network programs talk to
 *
 * `init` is process 1 of a guest: says so, runs the programs and switches the machine off; `idle` among the names keeps
 * it on for ever. `devices` has drivers loaded and an address asked for; `port=N` is the peer's, `host=ADDRESS` where it
 * is and `disk=PATH` the disk, if they are not where guests have them. Every program runs in a process of its own, so
 * that none finds the memory of another. */
#include "bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int quick;
const char *own_path;
static struct timespec began, ended;

static const struct {
  const char *name;
  program *run;
} programs[] = {
    {"mix", mix},
    {"sort", sort},
    {"hash", hash},
    {"crc", crc},
    {"matmul", matmul},
    {"nbody", nbody},
    {"triad", triad},
    {"chase", chase},
    {"syscall", system_calls},
    {"fault", faults},
    {"exec", exec_many},
    {"pingpong", ping_pong},
    {"work", work},
    {"amoadd", amoadd},
    {"cas", cas},
    {"seqread", seq_read},
    {"seqwrite", seq_write},
    {"rand", random_read},
    {"netin", net_in},
    {"netout", net_out},
    {"rr", round_trips},
};

void start_clock(void) { clock_gettime(CLOCK_MONOTONIC, &began); }

void stop_clock(void) { clock_gettime(CLOCK_MONOTONIC, &ended); }

void need(int fine, const char *what) {
  if (fine) return;
  perror(what);
  _exit(1);
}

static program *find(const char *name, size_t length) {
  for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
    if (strlen(programs[i].name) == length && !strncmp(programs[i].name, name, length)) return programs[i].run;
  return NULL;
}

static void run(const char *name) {
  const char *dash = strchr(name, '-');
  program *found = find(name, dash ? (size_t)(dash - name) : strlen(name));
  int threads = dash ? atoi(dash + 1) : 1;
  if (!found || threads < 1) {
    printf("%s: no such program\n", name);
    exit(2);
  }
  u64 checksum = found(threads);
  double seconds = (double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec);
  printf("%s %.9f %016llx\n", name, seconds, (unsigned long long)checksum);
  exit(0);
}

static int run_apart(const char *name) {
  int status;
  fflush(stdout);
  pid_t child = fork();
  need(child >= 0, "fork");
  if (!child) run(name);
  need(waitpid(child, &status, 0) == child, "waitpid");
  if (status) printf("%s failed %d\n", name, status), fflush(stdout);
  return status != 0;
}

static void begin_as_init(void) {
  klogctl(8, NULL, 1); /* the kernel's messages would get between ours: console level to emergencies only */
  printf("bench: init\n");
  fflush(stdout);
}

static void set_devices_up(void) {
  int status = system("/bin/busybox sh /bench-devices");
  if (status) printf("devices failed %d\n", status), fflush(stdout);
}

static void end_as_init(void) {
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

/* A word that says where something is. */
static int is_place(const char *word) {
  if (!strncmp(word, "port=", 5)) peer_port = atoi(word + 5);
  else if (!strncmp(word, "host=", 5)) peer_address = word + 5;
  else if (!strncmp(word, "disk=", 5)) disk_path = word + 5;
  else return 0;
  return 1;
}

int main(int count, char **words) {
  int failed = 0, init = 0;
  own_path = words[0];
  for (int i = 1; i < count; i++) {
    if (!strcmp(words[i], "nothing")) return 0; /* what `exec` executes */
    if (!strcmp(words[i], "quick")) quick = 1;
    else if (!strcmp(words[i], "init")) init = 1, begin_as_init();
    else if (!strcmp(words[i], "peer")) be_peer();
    else if (!strcmp(words[i], "devices")) set_devices_up();
    else if (is_place(words[i])) continue;
    else if (!strcmp(words[i], "idle")) for (;;) pause();
    else failed |= run_apart(words[i]);
  }
  if (init) end_as_init();
  return failed;
}
