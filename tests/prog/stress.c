/* SPDX-License-Identifier: MIT */
/*
 * stress - many store to the same pages at once, each to words of its own; no store may be lost.
 *
 *	stress store FILE PAGES SECONDS SEED OWNER THREADS CHILD OUT
 *	stress edit FILE PAGES SECONDS SEED OWNER PAUSE OUT
 *	stress verify|told FILE PAGES OUT...
 *
 * Word w of FILE belongs to owner w % OWNERS, so every page has words of everyone, and what any
 * owner last stored to its words is known, whatever the others did.  Everyone writes that to OUT.
 *
 * store: THREADS threads, owners OWNER, OWNER + 1 and so on, store through a mapping they share and
 * one of their own that they unmap, map and move; now and then they pwrite, pread, msync and fsync.
 * Meanwhile children of the process, one at a time, all owner CHILD, store through the shared
 * mapping and exit, are killed or msync.  Whoever stores to a word looks first whether it still has
 * what was last stored there.
 *
 * edit: pwrite with PAUSE microseconds between; where the server's files are, without the library.
 *
 * verify: each word of FILE, read and mapped, is what its owner's OUT says; the rest is zero.  told: of the
 * words that an OUT tells of.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	OWNERS = 16,
	PAGE = 4096,
	PAGE_WORDS = PAGE / 8,
	MAX_THREADS = 8,
	ROUND = 200, /* a thread's stores between two calls that do something to its mapping */
	CHILD_ROUND = 100, /* a child's stores */
	CHILD_MS = 30,     /* between two children */
	SHOWN = 20,        /* wrong words that are described */
};

static const char *file;
static size_t words, length;
static uint64_t seed;
static uint64_t *last; /* what was last stored to each word by this process or its children */
static volatile uint64_t *common; /* the mapping that all threads and the children use */
static int children_owner;
static bool stop;
static unsigned wrong, stores;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_us(long us)
{
	struct timespec t = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&t, NULL);
}

/* Everyone has a sequence of their own that follows from the seed. */
static uint64_t sequence(unsigned who, unsigned nth)
{
	return (seed + 1) * 0x9e3779b97f4a7c15u + who * 0xbf58476d1ce4e5b9u +
	       nth * 0x94d049bb133111ebu;
}

/* One of 0 to n - 1 (splitmix64). */
static unsigned pick(uint64_t *state, size_t n)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (unsigned)((z ^ z >> 31) % n);
}

static size_t own_word(uint64_t *state, int owner)
{
	return (size_t)pick(state, words / OWNERS) * OWNERS + (size_t)owner;
}

/* The nth value of an owner; the lower bytes tell whose it is when it turns up elsewhere. */
static uint64_t value(uint64_t nth, int owner)
{
	return nth << 16 | (uint64_t)owner << 8 | 0x5a;
}

static void failed(const char *what, int owner)
{
	warn("owner %d: %s", owner, what);
	__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

static void expect(const char *how, int owner, size_t w, uint64_t got, uint64_t wanted)
{
	if (got == wanted)
		return;
	unsigned n = __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	if (n <= SHOWN)
		warnx("owner %d: %s: page %zu word %zu: got %" PRIx64 ", wanted %" PRIx64, owner,
		      how, w / PAGE_WORDS, w % PAGE_WORDS, got, wanted);
}

static int open_file(int flags)
{
	int fd = open(file, flags);

	if (fd < 0)
		err(1, "open %s", file);
	return fd;
}

static uint64_t *map(int fd, int prot)
{
	void *m = mmap(NULL, length, prot, MAP_SHARED, fd, 0);

	if (m == MAP_FAILED)
		err(1, "mmap");
	return m;
}

/* Move a mapping to another place. */
static uint64_t *move(uint64_t *from)
{
	char *to = mmap(NULL, 2 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED ||
	    mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		err(1, "mremap");
	munmap(to + length, length);
	return (uint64_t *)(void *)to;
}

/* Look at one word, store to it, sometimes by pwrite, and sometimes look again by pread. */
static void store(uint64_t *state, int owner, int fd, volatile uint64_t *m, uint64_t v)
{
	size_t w = own_word(state, owner);
	uint64_t got;

	expect("load", owner, w, m[w], last[w]);
	if (pick(state, 50))
		m[w] = v;
	else if (pwrite(fd, &v, sizeof(v), (off_t)(w * 8)) != sizeof(v))
		err(1, "pwrite");
	last[w] = v;
	if (pick(state, 50))
		return;
	if (pread(fd, &got, sizeof(got), (off_t)(w * 8)) != sizeof(got))
		err(1, "pread");
	expect("pread", owner, w, got, v);
}

static void *thread(void *arg)
{
	int owner = (int)(intptr_t)arg, fd = open_file(O_RDWR);
	uint64_t *own = map(fd, PROT_READ | PROT_WRITE);
	uint64_t state = sequence((unsigned)owner, 0), nth = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		for (int i = 0; i < ROUND; i++)
			store(&state, owner, fd, pick(&state, 2) ? common : own,
			      value(++nth, owner));
		__atomic_add_fetch(&stores, ROUND, __ATOMIC_RELAXED);
		unsigned percent = pick(&state, 100);
		if (percent < 8) {
			if (msync(own, length, MS_SYNC))
				failed("msync", owner);
		} else if (percent < 10) {
			if (fsync(fd))
				failed("fsync", owner);
		} else if (percent < 20) {
			munmap(own, length);
			own = map(fd, PROT_READ | PROT_WRITE);
		} else if (percent < 30) {
			own = move(own);
		} else if (percent < 40) {
			pause_us(pick(&state, 20) * 1000);
		}
	}
	if (msync(own, length, MS_SYNC))
		failed("last msync", owner);
	munmap(own, length);
	close(fd);
	return NULL;
}

static _Noreturn void child(unsigned n)
{
	uint64_t state = sequence((unsigned)children_owner, n);

	wrong = 0;
	for (unsigned i = 0; i < CHILD_ROUND; i++) {
		size_t w = own_word(&state, children_owner);
		expect("load by a child", children_owner, w, common[w], last[w]);
		common[w] = last[w] = value((uint64_t)n * CHILD_ROUND + i + 1, children_owner);
	}
	if (wrong)
		_exit(1);
	switch (pick(&state, 3)) {
	case 0:
		raise(SIGKILL);
		break;
	case 1:
		if (msync((void *)(uintptr_t)common, length, MS_SYNC))
			_exit(2);
		break;
	default:
		break;
	}
	_exit(0);
}

static void fork_child(unsigned n)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid == 0)
		child(n);
	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	if (status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
		return;
	warnx("owner %d: child %u ended with status %x", children_owner, n, (unsigned)status);
	__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

/* OUT: a line for each word that was stored to. */
static void report(const char *out)
{
	FILE *f = fopen(out, "w");

	if (!f)
		err(1, "%s", out);
	for (size_t w = 0; w < words; w++)
		if (last[w])
			fprintf(f, "%zu %" PRIx64 "\n", w, last[w]);
	if (fclose(f))
		err(1, "%s", out);
}

static int store_mode(double seconds, int owner, int threads, const char *out)
{
	pthread_t id[MAX_THREADS];
	unsigned forks = 0;
	double end = now() + seconds;

	if (threads > MAX_THREADS || owner + threads > OWNERS || children_owner >= OWNERS)
		errx(2, "too many threads or owners");
	common = map(open_file(O_RDWR), PROT_READ | PROT_WRITE);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&id[i], NULL, thread, (void *)(intptr_t)(owner + i)))
			errx(1, "pthread_create");
	while (now() < end) {
		pause_us(CHILD_MS * 1000);
		fork_child(forks++);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	if (msync((void *)(uintptr_t)common, length, MS_SYNC))
		failed("last msync", children_owner);
	report(out);
	printf("owner %d: %u stores, %u children, %u wrong\n", owner, stores, forks, wrong);
	return wrong != 0;
}

static int edit_mode(double seconds, int owner, long us, const char *out)
{
	int fd = open_file(O_RDWR);
	uint64_t state = sequence((unsigned)owner, 0), nth = 0;

	for (double end = now() + seconds; now() < end; pause_us(us)) {
		size_t w = own_word(&state, owner);
		uint64_t v = value(++nth, owner);
		if (pwrite(fd, &v, sizeof(v), (off_t)(w * 8)) != sizeof(v))
			err(1, "pwrite");
		last[w] = v;
	}
	report(out);
	printf("owner %d: %" PRIu64 " edits\n", owner, nth);
	return 0;
}

static int verify_mode(char **outs, bool told)
{
	int fd = open_file(O_RDONLY);
	uint64_t *read_words = malloc(length), v;
	const volatile uint64_t *mapped = map(fd, PROT_READ);
	size_t w, known = 0;

	for (; *outs; outs++) {
		FILE *f = fopen(*outs, "r");
		if (!f)
			err(1, "%s", *outs);
		for (; fscanf(f, "%zu %" SCNx64, &w, &v) == 2 && w < words; known++)
			last[w] = v;
		fclose(f);
	}
	if (!read_words || pread(fd, read_words, length, 0) != (ssize_t)length)
		err(1, "pread");
	for (w = 0; w < words; w++) {
		if (told && !last[w])
			continue;
		expect("read", (int)(w % OWNERS), w, read_words[w], last[w]);
		expect("mapped", (int)(w % OWNERS), w, mapped[w], last[w]);
	}
	printf("%zu words, %u wrong\n", known, wrong);
	return wrong != 0 || known == 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int stores_mode = strcmp(mode, "store") == 0 && argc == 10;
	bool told = strcmp(mode, "told") == 0;
	int edits_mode = strcmp(mode, "edit") == 0 && argc == 9;

	if (!stores_mode && !edits_mode && !((strcmp(mode, "verify") == 0 || told) && argc > 4))
		errx(2, "usage: stress store FILE PAGES SECONDS SEED OWNER THREADS CHILD OUT\n"
			"       stress edit FILE PAGES SECONDS SEED OWNER PAUSE OUT\n"
			"       stress verify|told FILE PAGES OUT...");
	file = argv[2];
	length = strtoul(argv[3], NULL, 10) * PAGE;
	words = length / 8;
	/* Shared with the children. */
	last = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (last == MAP_FAILED)
		err(1, "mmap");
	if (!stores_mode && !edits_mode)
		return verify_mode(argv + 4, told);

	double seconds = strtod(argv[4], NULL);
	seed = strtoull(argv[5], NULL, 10);
	int owner = atoi(argv[6]);
	if (edits_mode)
		return edit_mode(seconds, owner, atol(argv[7]), argv[8]);
	children_owner = atoi(argv[8]);
	return store_mode(seconds, owner, atoi(argv[7]), argv[9]);
}
