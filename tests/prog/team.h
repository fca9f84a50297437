/* SPDX-License-Identifier: MIT */
/*
 * team.h - for test programs of which several work together: a board, a sequence, lines of a log.
 *
 * The board is a file outside of any volume, all zeros at first, that all of them map: there they
 * meet, and there they write down what they did, so that it is known when one of them is killed.
 * Who finds something wrong says so on the board, and the others end as well.
 */
#ifndef TEAM_H
#define TEAM_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PATIENCE = 300 /* seconds for the others */ };

static inline double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void pause_us(unsigned us)
{
	struct timespec t = {us / 1000000, us % 1000000 * 1000L};

	nanosleep(&t, NULL);
}

/* ---- a sequence that follows from a seed (splitmix64) ---- */

static inline uint64_t random64(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* One of 0 to n - 1. */
static inline unsigned pick(uint64_t *state, uint64_t n)
{
	return (unsigned)(random64(state) % n);
}

/* Everyone has one of their own. */
static inline uint64_t sequence(uint64_t seed, uint64_t who, uint64_t nth)
{
	uint64_t s = seed * 0x9e3779b97f4a7c15u + who * 0xbf58476d1ce4e5b9u + nth;

	return random64(&s);
}

/* ---- files ---- */

static inline int open_file(const char *path, int flags)
{
	int fd = open(path, flags, 0666);

	if (fd < 0)
		err(1, "open %s", path);
	return fd;
}

static inline void *map_file(int fd, size_t len, int prot)
{
	void *m = mmap(NULL, len, prot, MAP_SHARED, fd, 0);

	if (m == MAP_FAILED)
		err(1, "mmap");
	return m;
}

/* Made by whoever comes first. */
static inline void *board_map(const char *path, size_t len)
{
	int fd = open_file(path, O_RDWR | O_CREAT);
	struct stat st;

	if (fstat(fd, &st) || ((size_t)st.st_size < len && ftruncate(fd, (off_t)len)))
		err(1, "%s", path);
	void *m = map_file(fd, len, PROT_READ | PROT_WRITE);
	close(fd);
	return m;
}

/* ---- the team: what every board begins with ---- */

struct team {
	_Atomic unsigned arrived, phase, failed;
};

static inline _Noreturn void team_fail(struct team *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static inline void team_fail(struct team *t, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	atomic_fetch_add(&t->failed, 1);
	fprintf(stderr, "%s\n", text);
	exit(1);
}

/* For who waits for something of another's in a loop: ends if it cannot come any more. */
static inline void team_wait(struct team *t, double since, const char *what)
{
	if (atomic_load(&t->failed))
		errx(3, "another one failed, waiting for %s", what);
	if (now() > since + PATIENCE)
		team_fail(t, "waited %d seconds for %s", PATIENCE, what);
	sched_yield();
}

/* All n are here; they go on at the same instant. */
static inline void team_meet(struct team *t, unsigned n)
{
	unsigned phase = atomic_load(&t->phase);
	const struct timespec look = {0, 100000000};
	double since = now();

	if (atomic_fetch_add(&t->arrived, 1) + 1 == n) {
		atomic_store(&t->arrived, 0);
		atomic_fetch_add(&t->phase, 1);
		syscall(SYS_futex, &t->phase, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
		return;
	}
	for (int spin = 0; atomic_load(&t->phase) == phase; spin++) {
		team_wait(t, since, "the others to meet");
		if (spin > 1000)
			syscall(SYS_futex, &t->phase, FUTEX_WAIT, phase, &look, NULL, 0);
	}
}

/* ---- lines of a log: all that is in the nth line of somebody follows from these two ---- */

enum { LINE_MAX_LEN = 40000, LINE_WHO = 256 };

static inline size_t line_make(char *to, unsigned who, unsigned n)
{
	uint64_t s = sequence(n, who, 1);
	unsigned kind = pick(&s, 64);
	size_t len = 24 + pick(&s, kind == 0 ? LINE_MAX_LEN - 24 : kind < 8 ? 6000 : 200);
	unsigned fill = pick(&s, 26);
	int at = snprintf(to, LINE_MAX_LEN, "%u %u ", who, n);

	for (size_t i = (size_t)at; i + 1 < len; i++)
		to[i] = (char)('a' + (fill + i) % 26);
	to[len - 1] = '\n';
	return len;
}

/* Call fn for each line of fd; false after the first that is not as it was made, which is told. */
static inline bool lines_read(int fd, bool (*fn)(unsigned who, unsigned n, void *arg), void *arg)
{
	static char want[LINE_MAX_LEN];
	struct stat st;
	bool ok = true;

	if (fstat(fd, &st))
		err(1, "fstat");
	size_t size = (size_t)st.st_size, at = 0;
	char *all = malloc(size + 1);
	while (all && at < size) {
		ssize_t n = pread(fd, all + at, size - at, (off_t)at);
		if (n <= 0)
			err(1, "pread at %zu of %zu", at, size);
		at += (size_t)n;
	}
	if (!all)
		err(1, "malloc");
	all[size] = 0;
	for (at = 0; ok && at < size;) {
		/* Not sscanf, which looks for the end of the whole log each time. */
		char *end;
		unsigned who = (unsigned)strtoul(all + at, &end, 10);
		unsigned n = (unsigned)strtoul(end, NULL, 10);
		size_t len = who < LINE_WHO ? line_make(want, who, n) : 0;
		if (len == 0 || len > size - at || memcmp(all + at, want, len) != 0) {
			warnx("at %zu of %zu: not a whole line: '%.40s...'", at, size, all + at);
			ok = false;
		} else {
			ok = fn(who, n, arg);
			at += len;
		}
	}
	free(all);
	return ok;
}

#endif
