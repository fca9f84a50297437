/* SPDX-License-Identifier: MIT */
/*
 * fuzz agent|server SOCKET SEED N - random and mutated messages; the receiver must survive them.
 *
 * agent: seqpackets that start as a valid struct rf_req and are then damaged, with and without
 * descriptors of the wrong kind.  server: frames of protocol.x, damaged likewise, most of them
 * behind a valid HELLO.  Whoever is hung up on connects again, so that every message is looked at:
 * a frame is followed by a PING and waits for the PONG or the end.  It never says "stop".  Prints
 * the seed and how often it was hung up on.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <refault/agent.h>

enum { MAX = 8192, OPS = 18, TYPES = 24 };

static struct sockaddr_un sa = {.sun_family = AF_UNIX};
static uint64_t state;
static int kind, fd = -1;
static unsigned long hangups, sent;

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void dial(void)
{
	fd = socket(AF_UNIX, kind | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		err(1, "%s after %lu messages", sa.sun_path, sent);
	struct timeval patience = {.tv_sec = 20};
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
}

static void hang_up(void)
{
	close(fd);
	fd = -1;
}

/*
 * Whatever came back is thrown away, so that the other side never waits for us.  An agent says
 * nothing to a request that it accepts: it has a moment to hang up.
 */
static bool drain(void)
{
	static char sink[1 << 16];
	struct pollfd p = {.fd = fd, .events = POLLIN};
	ssize_t n;

	if (kind == SOCK_SEQPACKET)
		poll(&p, 1, 1);
	while ((n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT)) > 0)
		continue;
	return n < 0 && errno == EAGAIN;
}

static bool receive(void *p, size_t n)
{
	ssize_t r = recv(fd, p, n, MSG_WAITALL);

	if (r < 0 && errno == EAGAIN)
		errx(1, "no answer to a PING after %lu messages", sent);
	return r == (ssize_t)n;
}

/* False: hung up. */
static bool pong(void)
{
	static const uint32_t ping[] = {12, 8, 0xffff, 16};
	static unsigned char junk[1 << 22];
	uint32_t be[4], head[4];

	for (int i = 0; i < 4; i++)
		be[i] = htonl(ping[i]);
	if (send(fd, be, sizeof(be), MSG_NOSIGNAL) != sizeof(be))
		return false;
	do {
		if (!receive(head, sizeof(head)))
			return false;
		size_t rest = ntohl(head[0]) - 12;
		if (rest > sizeof(junk))
			errx(1, "a frame of %u bytes came back", ntohl(head[0]));
		if (rest && !receive(junk, rest))
			return false;
	} while (ntohl(head[3]) != 17);
	return true;
}

static void transmit(const void *p, size_t n, int nfds)
{
	int fds[4];
	union {
		char buf[CMSG_SPACE(sizeof(fds))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)p, n};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd < 0)
		dial();
	for (int i = 0; i < nfds; i++)
		fds[i] = rnd(2) ? open("/dev/null", O_RDWR) : memfd_create("fuzz", 0);
	if (nfds) {
		m.msg_control = control.buf;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)nfds);
	}
	ssize_t r = sendmsg(fd, &m, MSG_NOSIGNAL);
	if (r < 0 && errno == EAGAIN)
		errx(1, "the receiver takes nothing any more after %lu messages", sent);
	for (int i = 0; i < nfds; i++)
		close(fds[i]);
	sent++;
	if (r < 0 || !drain()) {
		hangups++;
		hang_up();
	} else if (rnd(50) == 0) {
		hang_up();
	}
}

/* Damage: flip bits, splice interesting numbers, cut. */
static size_t damage(unsigned char *p, size_t n)
{
	static const uint64_t numbers[] = {
	    0, 1, 0x7fffffff, 0x80000000, 0xffffffff, UINT64_MAX, UINT64_C(1) << 63, 4096, 1 << 20};
	size_t times = rnd(6);

	while (times-- && n) {
		uint64_t v = numbers[rnd(sizeof(numbers) / sizeof(numbers[0]))];
		size_t w = rnd(2) ? 4 : 8, at = rnd(n);
		switch (rnd(4)) {
		case 0:
			p[at] ^= (unsigned char)(1u << rnd(8));
			break;
		case 1:
			at &= ~(size_t)3;
			if (at + w <= n)
				memcpy(p + at, &v, w);
			break;
		case 2:
			p[at] = (unsigned char)rnd(256);
			break;
		case 3:
			if (rnd(4) == 0)
				n = rnd(n + 1);
			break;
		}
	}
	return n;
}

static void noise(unsigned char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)rnd(256);
}

/* Text as the wire has it: no NUL behind. */
static void put_text(unsigned char *p, const char *s)
{
	while (*s)
		*p++ = (unsigned char)*s++;
}

static void to_agent(void)
{
	static unsigned char buf[MAX];
	size_t n = sizeof(struct rf_req);

	if (rnd(8) == 0) {
		n = 1 + rnd(MAX - 1);
		noise(buf, n);
	} else {
		struct rf_req q = {.op = (uint32_t)rnd(OPS),
				   .version = RF_AGENT_VERSION,
				   .cell = (uint32_t)rnd(4),
				   .seq = (uint32_t)rnd(4),
				   .vnode = (uint32_t)rnd(6),
				   .arg = {rnd(16), rnd(16), rnd(8), rnd(4)}};
		memcpy(buf, &q, n);
		if (q.op == RF_OP_OPEN) {
			struct rf_open o = {.flags = (uint32_t)rnd(16),
					    .mode = 0600,
					    .dev = rnd(4),
					    .ino = rnd(4),
					    .addr_len = 20,
					    .name_len = 3,
					    .path_len = 9};
			memcpy(buf + n, &o, sizeof(o));
			put_text(buf + n + sizeof(o), "unix:/nonexistent/skvolsome/file");
			n += sizeof(o) + 32;
		} else if (q.op == RF_OP_INFO) {
			const struct rf_inval i = {(uint32_t)rnd(4), (uint32_t)rnd(4)};

			switch (rnd(3)) {
			case 0:
				put_text(buf + n, rnd(2) ? "status" : "ping..");
				n += 6;
				break;
			default:
				memcpy(buf + n, "invalidate", 11);
				memcpy(buf + n + 11, &i, sizeof(i));
				n += 11 + sizeof(i);
				memset(buf + n, 0, 48);
				/* no export: what others have stored is not to be discarded */
				put_text(buf + n, rnd(2) ? "xxx" : "");
				put_text(buf + n + 4, rnd(2) ? "model1" : "/..");
				n += i.files ? i.files * 16 : rnd(48);
			}
		} else if (rnd(2)) {
			size_t extra = rnd(512);
			noise(buf + n, extra);
			n += extra;
		}
		n = damage(buf, n);
	}
	transmit(buf, n, rnd(3) ? 0 : (int)rnd(4));
}

static size_t put(unsigned char *p, size_t at, uint32_t v)
{
	v = htonl(v);
	memcpy(p + at, &v, 4);
	return at + 4;
}

static size_t frame(unsigned char *p, size_t n, size_t payload)
{
	put(p, 0, (uint32_t)(n - 4 + payload));
	put(p, 4, (uint32_t)(n - 8));
	noise(p + n, payload);
	return n + payload;
}

/* The XDR of each call: u unsigned, h hyper, b bool, s string, r ranges; F = uhhs is a file. */
static const char *const shape[TYPES] = {
    [3] = "s",          [5] = "uuus",    [6] = "uhhsb",      [8] = "uhhshhb",
    [10] = "uhhshhbbr", [11] = "uhhshb", [12] = "uhhshhbhb", [13] = "uhhshhh",
    [14] = "uhhs",      [15] = "ur",     [16] = "",          [18] = "h"};

static uint32_t number(void)
{
	return rnd(8) ? (uint32_t)rnd(5) : (uint32_t)rnd((uint64_t)1 << 32);
}

static size_t put_string(unsigned char *p, size_t at)
{
	static const char *const names[] = {
	    "fuzzed", "",   "../f", "/etc/passwd", "sub/../../f", "a/very/long/way/to/nowhere",
	    ".",      "f\n"};
	const char *s = names[rnd(sizeof(names) / sizeof(names[0]))];
	size_t len = strlen(s);

	at = put(p, at, (uint32_t)len);
	memset(p + at, 0, 32);
	put_text(p + at, s);
	return at + ((len + 3) & ~(size_t)3);
}

static size_t put_shape(unsigned char *p, size_t at, const char *fields)
{
	for (; *fields; fields++) {
		size_t words = *fields == 'h' ? 2 : *fields == 'u' || *fields == 'b' ? 1 : 0;
		if (*fields == 's') {
			at = put_string(p, at);
		} else if (*fields == 'r') {
			uint32_t n = (uint32_t)rnd(5);
			at = put(p, at, n);
			words = n * 4;
		}
		while (words--)
			at = put(p, at, *fields == 'b' ? (uint32_t)rnd(2) : number());
	}
	return at;
}

static void to_server(void)
{
	static unsigned char buf[MAX];
	size_t n = 8;

	if (rnd(8) == 0) {
		n = 1 + rnd(MAX - 1);
		noise(buf, n);
		transmit(buf, n, 0);
		if (fd >= 0)
			hang_up();
		return;
	}
	if (fd < 0 && rnd(8)) {
		n = put(buf, n, 1);
		n = put(buf, n, 1 /* HELLO */);
		n = put(buf, n, 1 /* proto */);
		noise(buf + n, 16);
		n = put(buf, n + 16, 4);
		put_text(buf + n, "fuzz");
		transmit(buf, frame(buf, n + 4, 0), 0);
		n = put(buf, 8, 2);
		n = put(buf, n, 3 /* VOLUME */);
		n = put(buf, n, 3);
		memset(buf + n, 0, 4);
		put_text(buf + n, "vol");
		transmit(buf, frame(buf, n + 4, 0), 0);
		n = 8;
	}
	n = put(buf, n, (uint32_t)rnd(1000));
	size_t type = rnd(TYPES);
	n = put(buf, n, (uint32_t)type);
	if (shape[type] && rnd(4))
		n = put_shape(buf, n, shape[type]);
	else
		for (size_t words = rnd(40); words; words--)
			n = put(buf, n, number());
	n = frame(buf, n, rnd(3) ? 0 : rnd(256));
	if (rnd(3) == 0) {
		transmit(buf, n, 0);
		if (fd >= 0 && !pong()) {
			hangups++;
			hang_up();
		}
	} else if (rnd(8)) {
		/* Behind an intact header, so that it is looked into. */
		size_t payload = n;
		n = 8 + damage(buf + 8, n - 8);
		if (n != payload)
			put(buf, 0, (uint32_t)(n - 4));
		transmit(buf, n, 0);
		if (fd >= 0 && !pong()) {
			hangups++;
			hang_up();
		}
	} else {
		/* What follows a broken header would only be swallowed as its payload. */
		transmit(buf, damage(buf, n), 0);
		if (fd >= 0)
			hang_up();
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(2, "usage: fuzz agent|server SOCKET SEED N");
	bool agent = strcmp(argv[1], "agent") == 0;
	uint64_t seed = strtoull(argv[3], NULL, 0);
	unsigned long n = strtoul(argv[4], NULL, 0);

	if (strlen(argv[2]) >= sizeof(sa.sun_path))
		errx(2, "%s: too long", argv[2]);
	memcpy(sa.sun_path, argv[2], strlen(argv[2]) + 1);
	kind = agent ? SOCK_SEQPACKET : SOCK_STREAM;
	state = seed * 0x9e3779b97f4a7c15u + 1;
	printf("seed %ju\n", (uintmax_t)seed);
	while (sent < n) {
		if (agent)
			to_agent();
		else
			to_server();
	}
	printf("%lu messages, hung up on %lu times, seed %ju\n", sent, hangups, (uintmax_t)seed);
	return 0;
}
