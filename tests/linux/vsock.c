/*
 * Talks to the host by vsock, for tests/test_boot_vsock.py.
 *
 *   vsock serve PORT          each connection gets back what it sends, until it sends no more; for ever
 *   vsock send PORT BYTES     to the host: sends so much of a sequence, sends no more, and checks that it all comes back
 *   vsock ping PORT COUNT     to the host: the time of a round trip of one byte
 *   vsock sink PORT           each connection is read to its end, and gets back the number of bytes
 *   vsock refused PORT        to the host, where nobody listens: connection reset
 *   vsock cid                 our own address
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#include <linux/vm_sockets.h>

#define PIECE 65536

static void fail(const char *what)
{
	printf("vsock: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int new_socket(void)
{
	int s = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (s < 0)
		fail("socket");
	return s;
}

static struct sockaddr_vm at(unsigned cid, unsigned port)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};

	return address;
}

static int dial(unsigned port)
{
	struct sockaddr_vm address = at(VMADDR_CID_HOST, port);
	struct timeval patience = {.tv_sec = 60}; /* 2 seconds are little on a crowded host */
	int s = new_socket();

	setsockopt(s, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience);
	if (connect(s, (void *)&address, sizeof address))
		fail("connect");
	return s;
}

static int listen_at(unsigned port)
{
	struct sockaddr_vm address = at(VMADDR_CID_ANY, port);
	int s = new_socket();

	if (bind(s, (void *)&address, sizeof address) || listen(s, 64))
		fail("listen");
	return s;
}

static void write_all(int s, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(s, data, size);

		if (n <= 0)
			fail("write");
		data += n;
		size -= n;
	}
}

static uint64_t echo(int s)
{
	static char data[PIECE];
	uint64_t total = 0;
	ssize_t n;

	while ((n = read(s, data, sizeof data)) > 0) {
		write_all(s, data, n);
		total += n;
	}
	return total;
}

static uint64_t sink(int s)
{
	static char data[PIECE];
	char text[32];
	uint64_t total = 0;
	ssize_t n;

	while ((n = read(s, data, sizeof data)) > 0)
		total += n;
	write_all(s, text, sprintf(text, "%llu\n", (unsigned long long)total));
	return total;
}

static void serve(unsigned port, uint64_t (*talk)(int))
{
	int listener = listen_at(port);

	printf("listening at %u\n", port);
	fflush(stdout);
	for (;;) {
		int s = accept(listener, 0, 0);

		if (s < 0)
			fail("accept");
		while (waitpid(-1, 0, WNOHANG) > 0)
			;
		if (fork() == 0) {
			talk(s);
			exit(0);
		}
		close(s);
	}
}

/* A sequence that repeats after 2^64 numbers: what is lost, doubled or moved is seen. */
static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void fill(char *data, size_t size, uint64_t *state)
{
	for (size_t n = 0; n < size; n += 8) {
		uint64_t value = next(state);

		memcpy(data + n, &value, 8);
	}
}

/* Reads what has come; gives 0 at the end. */
static ssize_t check(int s, uint64_t *state, uint64_t *got)
{
	static char data[PIECE], expected[8];
	ssize_t size = read(s, data, sizeof data);

	for (ssize_t n = 0; n < size; n++, ++*got) {
		if (*got % 8 == 0)
			fill(expected, 8, state);
		if (data[n] != expected[*got % 8]) {
			printf("byte %llu is wrong\n", (unsigned long long)*got);
			exit(1);
		}
	}
	return size;
}

static void send_and_check(unsigned port, uint64_t total)
{
	static char data[PIECE];
	uint64_t sent = 0, got = 0, out = 88172645463325252u, in = out;
	size_t at_byte = 0, size = 0;
	int s = dial(port);

	fcntl(s, F_SETFL, O_NONBLOCK);
	for (;;) {
		struct pollfd ready = {.fd = s, .events = POLLIN | (sent < total ? POLLOUT : 0)};
		ssize_t n;

		poll(&ready, 1, -1);
		if (ready.revents & POLLOUT && sent < total) {
			if (at_byte == size) {
				fill(data, sizeof data, &out);
				at_byte = 0;
				size = total - sent < PIECE ? total - sent : PIECE;
			}
			n = write(s, data + at_byte, size - at_byte);
			if (n < 0 && errno != EAGAIN)
				fail("write");
			if (n > 0) {
				at_byte += n;
				sent += n;
			}
			if (sent == total)
				shutdown(s, SHUT_WR);
		}
		if (ready.revents & (POLLIN | POLLHUP)) {
			n = check(s, &in, &got);
			if (n == 0)
				break;
			if (n < 0 && errno != EAGAIN)
				fail("read");
		}
	}
	printf("sent %llu, came back %llu\n", (unsigned long long)sent, (unsigned long long)got);
	exit(sent != got);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void ping(unsigned port, int count)
{
	int s = dial(port);
	double began = now();
	char byte = 'p';

	for (int n = 0; n < count; n++) {
		write_all(s, &byte, 1);
		if (read(s, &byte, 1) != 1)
			fail("read");
	}
	printf("round trip %.1f us\n", (now() - began) / count * 1e6);
}

static void refused(unsigned port)
{
	struct sockaddr_vm address = at(VMADDR_CID_HOST, port);
	int s = new_socket();

	if (connect(s, (void *)&address, sizeof address) == 0 || errno != ECONNRESET)
		fail("connect should have been refused");
	printf("refused\n");
}

static void show_cid(void)
{
	unsigned cid = 0;
	int device = open("/dev/vsock", O_RDONLY);

	if (device < 0 || ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
		fail("/dev/vsock");
	printf("cid %u\n", cid);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	unsigned port = argc > 2 ? strtoul(argv[2], 0, 0) : 0;
	uint64_t count = argc > 3 ? strtoull(argv[3], 0, 0) : 0;

	if (!strcmp(what, "serve"))
		serve(port, echo);
	else if (!strcmp(what, "sink"))
		serve(port, sink);
	else if (!strcmp(what, "send"))
		send_and_check(port, count);
	else if (!strcmp(what, "ping"))
		ping(port, count);
	else if (!strcmp(what, "refused"))
		refused(port);
	else if (!strcmp(what, "cid"))
		show_cid();
	else
		return 2;
	return 0;
}
