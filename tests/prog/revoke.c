/* SPDX-License-Identifier: MIT */
/*
 * revoke - a writer keeps storing through a mapping while its key is revoked and restored.
 *
 *	revoke write FILE SHARED key|chmod ROUNDS SECONDS SEED TO FROM	a program on a host
 *	revoke control FILE SHARED KEY PID TO FROM	at the server, without the library
 *
 * The race is that of the discussion of "AFS: Add a function to excise a rejected write from the
 * pagecache" (D. Howells, A. Morton and others, linux-kernel, May 2007): write-back is refused while
 * others store to the same pages through a mapping.  Is a page thrown away twice, or once too late, or
 * can a fault bring it back in between, so that bytes which the server has refused turn up after all?
 *
 * The file is cells of eight bytes.  Threads store to them, each to its own, ever larger numbers, by the
 * mapping and by pwrite, which also extends the file.  A round:
 *
 *	revoke; flush through descriptor 0 until it fails; look at the server's file: that is what was
 *	accepted.  From now on the threads store to other cells.  Then either stop them while the key
 *	is still revoked (even rounds), or restore it under their hands, flush until it works, and stop
 *	them (odd rounds).
 *
 * Then:
 *	- descriptors 1 and 2, open files of their own, report the error at their next fsync and not at
 *	  the one after;
 *	- a cell at the server is what it was when the first flush had failed, or was stored after the
 *	  last flush that was refused had begun: what was refused does not come back, later neither;
 *	- what a successful flush began with is there;
 *	- the file on this host has the server's size, and the server's bytes, mapped and read.
 *
 * With chmod it is the right to write to the file that goes and comes, KEY is empty, and the threads are
 * never kept from storing; a key that is revoked keeps them from reading what was stripped, too.
 *
 * SHARED is a scratch file that both map: the server's file is copied there when asked for.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	PAGES = 16, /* of the file, stored to through the mapping */
	EXTRA = 8,  /* by which pwrite extends it at most */
	CELLS = PAGES * PAGE / 8,
	ALL_CELLS = (PAGES + EXTRA) * PAGE / 8,
	THREADS = 3, /* the last one uses pwrite, and extends */
	OPENS = 3,
	STORES = 500,   /* at least, before the key is revoked */
	PATIENCE = 120, /* seconds until a flush must have failed, or worked */
	SHOWN = 10,
	NOTHING = -1,
};

struct shared {
	uint64_t size;
	uint64_t cell[ALL_CELLS];
};

static struct shared *shared;
static int to, from;

static void ask(char c)
{
	if (write(to, &c, 1) != 1 || read(from, &c, 1) != 1)
		errx(1, "the other side is gone");
}

/* ---- control ---- */

static void set_key(const char *path, const char *content, size_t len)
{
	char tmp[4096];
	const char *name = strrchr(path, '/') + 1;

	snprintf(tmp, sizeof(tmp), "%.*s.%s", (int)(name - path), path, name);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, content, len) != (ssize_t)len || close(fd) || rename(tmp, path))
		err(1, "%s", path);
}

static int control(const char *file, const char *key, pid_t server)
{
	char good[1024], bad[1100], c;
	ssize_t n = 0;
	int fd = *key ? open(key, O_RDONLY) : -1;

	if (*key) {
		n = read(fd, good, sizeof(good));
		if (n <= 0)
			err(1, "%s", key);
		close(fd);
	}
	int nbad = snprintf(bad, sizeof(bad), "%.*srevoked\n", (int)n, good);
	fd = open(file, O_RDONLY);
	if (fd < 0)
		err(1, "%s", file);
	while (read(from, &c, 1) == 1) {
		struct stat st;

		switch (c) {
		case 'r':
		case 'u':
			if (!*key) {
				if (fchmod(fd, c == 'r' ? 0444 : 0644))
					err(1, "%s", file);
				break;
			}
			if (c == 'r')
				set_key(key, bad, (size_t)nbad);
			else
				set_key(key, good, (size_t)n);
			if (kill(server, SIGHUP))
				err(1, "the server");
			break;
		case 'c':
			memset(shared->cell, 0, sizeof(shared->cell));
			if (fstat(fd, &st) || pread(fd, shared->cell, sizeof(shared->cell), 0) < 0)
				err(1, "%s", file);
			shared->size = (uint64_t)st.st_size;
			break;
		default:
			errx(1, "asked for '%c'", c);
		}
		if (write(to, &c, 1) != 1)
			break;
	}
	return 0;
}

/* ---- the threads that store ---- */

static uint64_t round_no;
static _Atomic uint64_t wrong;

__attribute__((format(printf, 1, 2))) static void bad(const char *fmt, ...)
{
	va_list ap;

	if (wrong++ >= SHOWN)
		return;
	printf("round %" PRIu64 ": ", round_no);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

static volatile uint64_t *map;
static uint64_t seed;
static int refusal; /* errno of what is expected */
static int fd[OPENS];
static uint64_t next[ALL_CELLS];         /* each cell's, used by its thread only */
static _Atomic uint64_t last[ALL_CELLS]; /* what was last stored, surely */
static _Atomic unsigned epoch;           /* decides which cells are stored to */
static bool halt;
static int halted;
static unsigned news;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static _Atomic unsigned long stores, refusals;

static __thread sigjmp_buf *volatile on_bus;

static void bus(int sig)
{
	if (!on_bus) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
	siglongjmp(*on_bus, 1);
}

static bool load_cell(size_t c, uint64_t *v)
{
	sigjmp_buf env;
	bool ok = false;

	if (sigsetjmp(env, 1) == 0) {
		on_bus = &env;
		*v = map[c];
		ok = true;
	}
	on_bus = NULL;
	return ok;
}

/* By a mapping: false if there was a SIGBUS, and nothing was stored. */
static bool store_cell(size_t c)
{
	sigjmp_buf env;
	volatile bool ok = false;

	if (sigsetjmp(env, 1) == 0) {
		on_bus = &env;
		map[c] = next[c] + 1;
		ok = true;
	}
	on_bus = NULL;
	if (ok)
		atomic_store(&last[c], ++next[c]);
	else if (refusal == EACCES)
		bad("cell %zu: SIGBUS", c);
	return ok;
}

static bool write_cell(size_t c)
{
	uint64_t v = ++next[c]; /* also if it fails: who knows how much of it was done */

	ssize_t n = pwrite(fd[0], &v, sizeof(v), (off_t)(c * 8));
	if (n != sizeof(v)) {
		if (n >= 0 || errno != refusal || refusal == EACCES)
			bad("cell %zu: pwrite said %s", c, n < 0 ? strerror(errno) : "less");
		return false;
	}
	atomic_store(&last[c], v);
	return true;
}

static unsigned random_below(uint64_t *state, unsigned n)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (unsigned)((z ^ z >> 31) % n);
}

/* A quarter of the cells at a time, in all pages. */
static bool active(size_t c)
{
	return ((c / THREADS * 0x9e3779b1u >> 8) & 3) == (atomic_load(&epoch) & 3);
}

/* Stop here while told to, and after a refusal until there is news. */
static void rest(bool refused)
{
	pthread_mutex_lock(&lock);
	if (halt || refused) {
		unsigned heard = news;
		halted++;
		pthread_cond_broadcast(&moved);
		while (halt || (refused && heard == news))
			pthread_cond_wait(&moved, &lock);
		halted--;
	}
	pthread_mutex_unlock(&lock);
}

static void tell(bool stop)
{
	pthread_mutex_lock(&lock);
	halt = stop;
	news++;
	pthread_cond_broadcast(&moved);
	while (stop && halted < THREADS)
		pthread_cond_wait(&moved, &lock);
	pthread_mutex_unlock(&lock);
}

/* Cell 0 is the main thread's; those that extend the file are the last thread's. */
static void *thread(void *arg)
{
	unsigned self = (unsigned)(uintptr_t)arg;
	bool writes = self == THREADS - 1;
	uint64_t state = seed * THREADS + self;

	for (;;) {
		size_t c = random_below(&state, CELLS / THREADS) * THREADS + self;
		bool ok = true;

		if (writes && random_below(&state, 8) == 0)
			c = CELLS + random_below(&state, ALL_CELLS - CELLS);
		if (c && active(c)) {
			ok = writes ? write_cell(c) : store_cell(c);
			atomic_fetch_add(ok ? &stores : &refusals, 1);
		}
		rest(!ok);
	}
	return NULL;
}

/* ---- the rounds ---- */

static uint64_t came_back; /* values that were refused, at the server */
static bool restored;
static uint64_t now[ALL_CELLS];
static uint64_t began_bad[ALL_CELLS];  /* stored when the last flush that was refused began */
static uint64_t began_good[ALL_CELLS]; /* stored when the last one that worked began */
static uint64_t accepted[ALL_CELLS];   /* at the server when the first flush had failed */
static uint64_t end[ALL_CELLS], end_last[ALL_CELLS]; /* at the end of the round before */

static void sample(uint64_t *to_here)
{
	for (size_t c = 0; c < ALL_CELLS; c++)
		to_here[c] = atomic_load(&last[c]);
}

/*
 * Through descriptor 0.  Did it work?  If it did not while nothing is accepted, what it began with was
 * refused, then or before; later it may only report that something had been.
 */
static bool flush(void)
{
	sample(now);
	if (fsync(fd[0]) == 0) {
		memcpy(began_good, now, sizeof(now));
		return true;
	}
	if (errno != refusal)
		err(1, "round %" PRIu64 ": fsync", round_no);
	if (!restored)
		memcpy(began_bad, now, sizeof(now));
	return false;
}

/* Flush something until it works, or does not.  How many did not; NOTHING: there was nothing to refuse. */
static int flush_until(bool works)
{
	time_t limit = time(NULL) + PATIENCE;
	int failed = 0;

	for (;;) {
		bool stored = store_cell(0);
		if (stored || !works) {
			bool ok = flush();
			failed += !ok;
			if (ok == works)
				return failed;
			if (!stored)
				return NOTHING;
		}
		if (time(NULL) > limit)
			errx(1, "round %" PRIu64 ": after %d seconds %s", round_no, PATIENCE,
			     works ? "nothing is accepted" : "nothing was refused");
		if (!halt)
			tell(false);
	}
}

static void restore(void)
{
	restored = true;
	ask('u');
}

/* Until a flush has met it.  It may come between a flush and the next store, which then fails. */
static void take_away(void)
{
	for (;;) {
		restored = false;
		ask('r');
		if (flush_until(false) != NOTHING)
			return;
		restore();
		flush_until(true);
	}
}

/* The other open files are told of what was refused since they were asked last, once. */
static void told(bool refused)
{
	for (int i = 1; i < OPENS; i++) {
		int r = fsync(fd[i]);
		if (refused ? r == 0 || errno != refusal : r != 0)
			bad("descriptor %d: fsync said %s", i, r ? strerror(errno) : "ok");
		if (fsync(fd[i]))
			bad("descriptor %d: fsync said %s again", i, strerror(errno));
	}
}

static void check_accepted(void)
{
	ask('c');
	memcpy(accepted, shared->cell, sizeof(accepted));
	for (size_t c = 0; c < ALL_CELLS; c++) {
		if (accepted[c] < began_good[c] && began_good[c] > end_last[c])
			bad("cell %zu: %" PRIu64 " was flushed, and the server has %" PRIu64, c,
			    began_good[c], accepted[c]);
		if (accepted[c] != end[c] && accepted[c] <= end_last[c]) {
			came_back++;
			bad("cell %zu: %" PRIu64
			    " was refused in an earlier round, and the server has it",
			    c, accepted[c]);
		}
	}
}

/* While the key is revoked nothing arrives. */
static void check_nothing_new(void)
{
	ask('c');
	for (size_t c = 0; c < ALL_CELLS; c++)
		if (shared->cell[c] != accepted[c])
			bad("cell %zu: the server took %" PRIu64 " for %" PRIu64
			    " under a revoked key",
			    c, shared->cell[c], accepted[c]);
}

/* Here is what the server has, and nothing of what was refused. */
static void check_end(void)
{
	static uint64_t got[ALL_CELLS];
	bool beyond = false;
	struct stat st;
	uint64_t v;

	ask('c');
	for (size_t c = 1; c < ALL_CELLS; c++)
		if (shared->cell[c] != accepted[c] && shared->cell[c] <= began_bad[c]) {
			came_back++;
			bad("cell %zu: %" PRIu64
			    " was refused, and the server has it, not %" PRIu64,
			    c, shared->cell[c], accepted[c]);
		}
	if (fstat(fd[0], &st) || (uint64_t)st.st_size != shared->size)
		bad("the size is %jd, %" PRIu64 " at the server", (intmax_t)st.st_size,
		    shared->size);
	memset(got, 0, sizeof(got));
	ssize_t n = pread(fd[0], got, sizeof(got), 0);
	if (n < 0 || (uint64_t)n != shared->size)
		bad("read %zd bytes of %" PRIu64, n, shared->size);
	for (size_t c = 0; c < ALL_CELLS; c++) {
		if (got[c] != shared->cell[c])
			bad("cell %zu: read %" PRIu64 ", the server has %" PRIu64, c, got[c],
			    shared->cell[c]);
		bool there = c * 8 / PAGE * PAGE < shared->size;
		bool ok = false;
		if (there || !beyond)
			ok = load_cell(c, &v);
		beyond |= !there;
		if (ok != there || (ok && v != shared->cell[c]))
			bad("cell %zu: load %s %" PRIu64 ", the server has %" PRIu64, c,
			    ok ? "gave" : "failed, not", v, shared->cell[c]);
	}
}

static void one_round(void)
{
	unsigned long start = atomic_load(&stores);

	memset(began_bad, 0, sizeof(began_bad));
	memset(began_good, 0, sizeof(began_good));
	atomic_fetch_add(&epoch, 1);
	tell(false);
	while (atomic_load(&stores) < start + STORES)
		sched_yield();
	take_away();
	check_accepted();
	atomic_fetch_add(&epoch, 1);
	if (round_no % 2 == 0) {
		tell(true);
		if (!flush() && !flush())
			bad("descriptor 0: fsync fails again when nothing is left");
		told(true);
		check_nothing_new();
		restore();
		told(flush_until(true) > 0);
	} else {
		restore();
		flush_until(true);
		tell(true);
		if (!flush())
			bad("descriptor 0: fsync fails under a good key");
		told(true);
	}
	check_end();
	if (shared->size > (uint64_t)PAGES * PAGE && round_no % 4 < 2) {
		if (ftruncate(fd[0], (off_t)PAGES * PAGE))
			err(1, "ftruncate");
		memset(shared->cell + CELLS, 0, sizeof(uint64_t) * (ALL_CELLS - CELLS));
	}
	memcpy(end, shared->cell, sizeof(end));
	sample(end_last);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int writer(const char *file, uint64_t rounds, double limit)
{
	struct sigaction sa = {.sa_handler = bus, .sa_flags = SA_NODEFER};
	double began = seconds();
	pthread_t id;

	sigaction(SIGBUS, &sa, NULL);
	for (int i = 0; i < OPENS; i++) {
		fd[i] = open(file, O_RDWR);
		if (fd[i] < 0)
			err(1, "open %s", file);
	}
	map = mmap(NULL, ALL_CELLS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd[0], 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	halt = true;
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&id, NULL, thread, (void *)i))
			errx(1, "pthread_create");
	tell(true);
	for (; round_no < rounds && (limit <= 0 || seconds() - began < limit); round_no++)
		one_round();
	printf("%" PRIu64 " rounds in %.1f s, %lu stores, %lu refused at once, %" PRIu64
	       " refused values at the server, %" PRIu64 " wrong\n",
	       round_no, seconds() - began, stores, refusals, came_back, wrong);
	return wrong || !round_no;
}

int main(int argc, char **argv)
{
	bool writes = argc == 10 && strcmp(argv[1], "write") == 0;

	if (!writes && !(argc == 8 && strcmp(argv[1], "control") == 0))
		errx(2, "usage: revoke write FILE SHARED key|chmod ROUNDS SECONDS SEED TO FROM\n"
			"       revoke control FILE SHARED KEY PID TO FROM");
	/* A FIFO opens when both ends do: the same order on both sides. */
	to = writes ? open(argv[8], O_WRONLY) : -1;
	from = open(argv[writes ? 9 : 7], O_RDONLY);
	if (!writes)
		to = open(argv[6], O_WRONLY);
	int scratch = open(argv[3], O_RDWR);
	if (to < 0 || from < 0 || scratch < 0)
		err(1, "open");
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, scratch, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	if (!writes)
		return control(argv[2], argv[4], (pid_t)atoi(argv[5]));
	refusal = strcmp(argv[4], "key") == 0 ? EKEYREVOKED : EACCES;
	seed = strtoull(argv[7], NULL, 10);
	return writer(argv[2], strtoull(argv[5], NULL, 10), strtod(argv[6], NULL));
}
