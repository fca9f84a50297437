/* SPDX-License-Identifier: MIT */
/*
 * model - random reads, writes, mapped loads and stores, truncates and appends on two hosts that
 * take turns, against a plain array in this program's memory.
 *
 *	model SEED OPERATIONS FILE WRAPPER-A WRAPPER-B WORKER
 *
 * Runs `WRAPPER WORKER` for each host and commands it through pipes.  At the end of a turn the host
 * flushes (msync, fsync, fdatasync or close), from then on the other one must see everything.
 * FILE must be there and empty.  Prints the seed first; on a mismatch the last operations.
 */
#include <err.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_SIZE = 40 * PAGE, WINDOW = 64 * PAGE, LOG = 24, BIG = 3 * PAGE };

struct host {
	const char *name;
	FILE *to, *from;
	bool open, mapped, dirty;
};

static struct host hosts[2] = {{.name = "A"}, {.name = "B"}};
static const char *path;
static unsigned char model[WINDOW];
static size_t size;
static uint64_t seed, state;
static char last[LOG][160];
static unsigned nlast, op;
static char answer[2 * BIG + 64], expected[2 * BIG + 64];

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void start(struct host *h, char *wrapper, char *worker)
{
	int in[2], out[2];

	if (pipe(in) || pipe(out))
		err(1, "pipe");
	pid_t pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		for (int fd = 3; fd < 32; fd++)
			close(fd);
		execl(wrapper, wrapper, worker, (char *)NULL);
		err(127, "%s", wrapper);
	}
	close(in[0]);
	close(out[1]);
	h->to = fdopen(in[1], "w");
	h->from = fdopen(out[0], "r");
}

/* Send one command; answer holds the line that came back. */
static void ask(struct host *h, const char *fmt, ...)
{
	static char cmd[2 * BIG + 256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	snprintf(last[nlast++ % LOG], sizeof(last[0]), "%u %s: %.120s", op, h->name, cmd);
	fprintf(h->to, "%s\n", cmd);
	fflush(h->to);
	if (!fgets(answer, sizeof(answer), h->from))
		strcpy(answer, "(gone)\n");
	answer[strcspn(answer, "\n")] = 0;
}

static void want(struct host *h, const char *what)
{
	size_t at = 0;

	if (strcmp(answer, what) == 0)
		return;
	printf("seed %ju, operation %u: host %s answers wrongly\n", (uintmax_t)seed, op, h->name);
	while (answer[at] && answer[at] == what[at])
		at++;
	printf("  at byte %zu of the answer: got ...%.32s, want ...%.32s\n", at / 2, answer + at,
	       what + at);
	for (unsigned i = nlast > LOG ? nlast - LOG : 0; i < nlast; i++)
		printf("  %s\n", last[i % LOG]);
	printf("seed %ju: wrong at operation %u\n", (uintmax_t)seed, op);
	exit(1);
}

static void must_be_ok(struct host *h)
{
	want(h, "ok");
}

static const char *hex(const unsigned char *p, size_t n, char *buf)
{
	for (size_t i = 0; i < n; i++)
		snprintf(buf + 2 * i, 3, "%02x", p[i]);
	return buf;
}

static void make_open(struct host *h)
{
	if (h->open)
		return;
	ask(h, "open 1 %s rw", path);
	must_be_ok(h);
	h->open = true;
}

static void make_mapped(struct host *h)
{
	if (h->mapped)
		return;
	make_open(h);
	ask(h, "map 1 1 rw 0 %d", WINDOW);
	must_be_ok(h);
	h->mapped = true;
}

static size_t length(void)
{
	return 1 + (size_t)(rnd(8) ? rnd(64) : rnd(BIG - 1));
}

/* A range inside the file; false if it is empty. */
static bool inside(size_t *off, size_t *n)
{
	if (!size)
		return false;
	*off = rnd(size);
	*n = length();
	if (*n > size - *off)
		*n = size - *off;
	return true;
}

/* Fresh bytes to the model, hex to the buffer. */
static const char *scribble(size_t off, size_t n)
{
	static char buf[2 * BIG + 8];

	for (size_t i = 0; i < n; i++)
		model[off + i] = rnd(16) ? (unsigned char)rnd(256) : model[off + i];
	return hex(model + off, n, buf);
}

static void grow(size_t to)
{
	if (to > size)
		size = to;
}

static void operate(struct host *h)
{
	size_t off, n;

	switch (rnd(13)) {
	case 0:
	case 1:
		make_open(h);
		off = rnd(MAX_SIZE);
		n = length();
		ask(h, "pread 1 %zu %zu", n, off);
		if (off >= size)
			want(h, "eof");
		else
			want(h, hex(model + off, n < size - off ? n : size - off, expected));
		break;
	case 2:
	case 3:
		if (!inside(&off, &n))
			break;
		make_mapped(h);
		ask(h, "load 1 %zu %zu", off, n);
		want(h, hex(model + off, n, expected));
		break;
	case 4:
	case 5:
	case 6:
		if (!inside(&off, &n))
			break;
		make_mapped(h);
		ask(h, "store 1 %zu %s", off, scribble(off, n));
		must_be_ok(h);
		h->dirty = true;
		break;
	case 7:
	case 8:
		make_open(h);
		off = rnd(MAX_SIZE - BIG);
		n = length();
		ask(h, "pwrite 1 %zu %s", off, scribble(off, n));
		must_be_ok(h);
		grow(off + n);
		h->dirty = true;
		break;
	case 9:
		make_open(h);
		n = rnd(3) ? rnd(MAX_SIZE) : size;
		ask(h, "truncate 1 %zu", n);
		must_be_ok(h);
		if (n < size)
			memset(model + n, 0, size - n);
		size = n;
		break;
	case 10:
		if (size > MAX_SIZE - BIG)
			break;
		ask(h, "open 2 %s wa", path);
		must_be_ok(h);
		n = length();
		ask(h, "write 2 %s", scribble(size, n));
		must_be_ok(h);
		grow(size + n);
		ask(h, "close 2");
		must_be_ok(h);
		h->dirty = true;
		break;
	case 11:
		make_open(h);
		ask(h, "size 1");
		snprintf(expected, sizeof(expected), "%zu", size);
		want(h, expected);
		make_mapped(h);
		off = (size + PAGE - 1) / PAGE * PAGE + rnd(PAGE);
		ask(h, "load 1 %zu 1", off);
		want(h, "sigbus");
		break;
	case 12:
		if (!inside(&off, &n))
			break;
		make_open(h);
		ask(h, "punch 1 %zu %zu", off, n);
		must_be_ok(h);
		memset(model + off, 0, n);
		h->dirty = true;
		break;
	}
}

/* What makes this host's changes visible; close is a flush too. */
static void flush(struct host *h)
{
	uint64_t how = rnd(4);

	if (how == 0 && h->open && !h->mapped) {
		ask(h, "close 1");
		must_be_ok(h);
		h->open = false;
	} else if (how == 1 && h->mapped) {
		ask(h, "unmap 1");
		must_be_ok(h);
		ask(h, "close 1");
		must_be_ok(h);
		h->mapped = h->open = false;
	} else if (h->dirty) {
		make_open(h);
		if (how == 2 && h->mapped && size)
			ask(h, "msync 1");
		else
			ask(h, how == 3 ? "fdatasync 1" : "fsync 1");
		must_be_ok(h);
	}
	h->dirty = false;
}

int main(int argc, char **argv)
{
	if (argc != 7)
		errx(2, "usage: model SEED OPERATIONS FILE WRAPPER-A WRAPPER-B WORKER");
	seed = strtoull(argv[1], NULL, 0);
	unsigned total = (unsigned)strtoul(argv[2], NULL, 0), turns = 0;
	state = seed * 0x9e3779b97f4a7c15u + 1;
	path = argv[3];
	printf("seed %ju, %u operations\n", (uintmax_t)seed, total);
	fflush(stdout);
	start(&hosts[0], argv[4], argv[6]);
	start(&hosts[1], argv[5], argv[6]);

	struct host *h = &hosts[0];
	for (op = 1; op <= total; op++) {
		operate(h);
		if (rnd(4) == 0) {
			flush(h);
			h = h == hosts ? hosts + 1 : hosts;
			turns++;
		}
	}
	flush(h);
	/* Both see all of it, mapped and read. */
	for (h = hosts; h < hosts + 2; h++) {
		make_mapped(h);
		for (size_t off = 0, n; off < size; off += n) {
			n = size - off < BIG ? size - off : BIG;
			ask(h, "load 1 %zu %zu", off, n);
			want(h, hex(model + off, n, expected));
			ask(h, "pread 1 %zu %zu", n, off);
			want(h, expected);
		}
		fputs("exit\n", h->to);
		fflush(h->to);
	}
	printf("%u operations in %u turns agree, seed %ju\n", total, turns, (uintmax_t)seed);
	return 0;
}
