/* SPDX-License-Identifier: MIT */
/*
 * worker.c - one process that measures what it is asked for.
 *
 * A line "TEST PINNED" on stdin is answered by one line: a number in ns (or the bins of a
 * distribution, or p50 and p99).  The same program runs on a tmpfs or ext4 file and, preloaded, on
 * a volume.  "PTEs stripped" is madvise(MADV_DONTNEED) on the shared mapping: the pages stay in the
 * page cache, the page-table entries go.
 *
 *	minor-random	one load in each block of BLOCK pages, random order, PTEs stripped; a touch
 *	scan-strip	one load from every page in order, PTEs stripped; a page
 *	load-steady	loads from pages that are mapped; a load
 *	store-first	first store to a clean page, PTEs stripped, random order; a store
 *	pread-4k	pread of 4 KiB at random places, cached; a call
 *	read-unmanaged	read and pread of 4 KiB of a file outside any volume; a call
 *	dist		minor-random's touches one by one; bins
 *	visible-write N	store the time into VISIBLE, msync; SAMPLES times, once the reader saw it
 *	visible-read N	spin on VISIBLE and compare the clock with what appears there; p50, p99
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum {
	PAGE = 4096,
	BLOCK = 64,
	TOUCH_REPEATS = 12,
	SCAN_REPEATS = 2,
	STEADY_PAGES = 64,
	STEADY_REPEATS = 1200,
	STORE_PAGES = 1024,
	READS = 2000, /* a pass; the middle one of READ_PASSES counts */
	READ_PASSES = 31,
	SAMPLES = 400,
	PAUSE_US = 200,
};

struct worker {
	int fd, unmanaged;
	char *map;
	size_t pages;
	uint64_t *order; /* scratch for random orders */
	uint64_t seed, stamp;
	volatile uint64_t *visible;
	struct ctl *ctl;
};

static void *map_file(const char *path, size_t *len, int *fd)
{
	struct stat st;

	*fd = open(path, O_RDWR);
	if (*fd < 0 || fstat(*fd, &st))
		err(1, "%s", path);
	void *p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED)
		err(1, "mmap %s", path);
	*len = (size_t)st.st_size;
	return p;
}

static void strip(struct worker *w)
{
	if (madvise(w->map, w->pages * PAGE, MADV_DONTNEED))
		err(1, "madvise");
}

static void touch(const char *p)
{
	sink((uint64_t) * (const volatile char *)p);
}

static void shuffle(struct worker *w, size_t n)
{
	for (size_t i = 0; i < n; i++)
		w->order[i] = i;
	for (size_t i = n; i > 1; i--) {
		size_t j = rnd(&w->seed) % i;
		uint64_t t = w->order[i - 1];
		w->order[i - 1] = w->order[j];
		w->order[j] = t;
	}
}

/* One page of each block, in random order. */
static size_t pick_touches(struct worker *w)
{
	size_t blocks = w->pages / BLOCK;

	shuffle(w, blocks);
	for (size_t i = 0; i < blocks; i++)
		w->order[i] = w->order[i] * BLOCK + rnd(&w->seed) % BLOCK;
	return blocks;
}

static double minor_random(struct worker *w)
{
	uint64_t total = 0, count = 0;

	for (int r = 0; r < TOUCH_REPEATS; r++) {
		size_t n = pick_touches(w);
		strip(w);
		uint64_t t = now_ns();
		for (size_t i = 0; i < n; i++)
			touch(w->map + w->order[i] * PAGE);
		total += now_ns() - t;
		count += n;
	}
	return (double)total / (double)count;
}

static void distribution(struct worker *w, struct hist *h)
{
	for (int r = 0; r < TOUCH_REPEATS; r++) {
		size_t n = pick_touches(w);
		strip(w);
		for (size_t i = 0; i < n; i++) {
			uint64_t t = now_ns();
			touch(w->map + w->order[i] * PAGE);
			hist_add(h, now_ns() - t);
		}
	}
}

static double scan_strip(struct worker *w)
{
	uint64_t total = 0;

	for (int r = 0; r < SCAN_REPEATS; r++) {
		strip(w);
		uint64_t t = now_ns();
		for (size_t i = 0; i < w->pages; i++)
			touch(w->map + i * PAGE);
		total += now_ns() - t;
	}
	return (double)total / (double)(w->pages * SCAN_REPEATS);
}

static double load_steady(struct worker *w)
{
	const volatile uint64_t *m = (const volatile uint64_t *)w->map;
	size_t words = STEADY_PAGES * PAGE / 8, step = 8; /* one load a cache line */
	static double pass[STEADY_REPEATS];
	uint64_t sum = 0;

	for (size_t i = 0; i < words; i += step)
		sum += m[i];
	for (int r = 0; r < STEADY_REPEATS; r++) {
		uint64_t t = now_ns();
		for (size_t i = 0; i < words; i += step)
			sum += m[i];
		pass[r] = (double)(now_ns() - t);
	}
	sink(sum);
	size_t loads = words / step;
	return percentile(pass, STEADY_REPEATS, 50) / (double)loads;
}

static double store_first(struct worker *w)
{
	size_t n = w->pages < STORE_PAGES ? w->pages : STORE_PAGES;

	if (msync(w->map, n * PAGE, MS_SYNC))
		err(1, "msync");
	shuffle(w, n);
	strip(w);
	w->stamp++;
	uint64_t t = now_ns();
	for (size_t i = 0; i < n; i++)
		*(volatile uint64_t *)(w->map + w->order[i] * PAGE) = w->stamp;
	t = now_ns() - t;
	if (msync(w->map, n * PAGE, MS_SYNC))
		err(1, "msync");
	return (double)t / (double)n;
}

static void read_random(struct worker *w, int fd, size_t pages, int alternate)
{
	static char buf[PAGE];

	for (int i = 0; i < READS; i++) {
		ssize_t n;
		if (alternate && i % 2) {
			n = read(fd, buf, PAGE);
			if (n == 0)
				n = lseek(fd, 0, SEEK_SET) == 0 ? PAGE : -1;
		} else {
			n = pread(fd, buf, PAGE, (off_t)(rnd(&w->seed) % pages * PAGE));
		}
		if (n != PAGE)
			err(1, "read gave %zd", n);
		sink((uint64_t)buf[0]);
	}
}

static double reads(struct worker *w, int fd, size_t pages, int alternate)
{
	double pass[READ_PASSES];

	for (int i = 0; i < READ_PASSES; i++) {
		uint64_t t = now_ns();
		read_random(w, fd, pages, alternate);
		pass[i] = (double)(now_ns() - t) / READS;
	}
	return percentile(pass, READ_PASSES, 50);
}

static void visible_write(struct worker *w, uint64_t round)
{
	uint64_t t0 = now_ns();

	while (atomic_load(&w->ctl->ready) != round) {
		usleep(PAUSE_US);
		if (now_ns() - t0 > 10000000000u)
			errx(1, "no reader");
	}
	for (uint64_t i = 1; i <= SAMPLES; i++) {
		usleep(PAUSE_US);
		*w->visible = now_ns();
		if (msync((void *)(uintptr_t)w->visible, PAGE, MS_SYNC))
			err(1, "msync");
		while (atomic_load(&w->ctl->seen) < i) {
			usleep(PAUSE_US / 4);
			if (now_ns() - *w->visible > 10000000000u)
				errx(1, "change %ju was never seen", (uintmax_t)i);
		}
	}
	puts("done");
}

static void visible_read(struct worker *w, uint64_t round)
{
	static double sample[SAMPLES];
	uint64_t last = *w->visible, t0 = now_ns(), t = 0;

	atomic_store(&w->ctl->seen, 0);
	atomic_store(&w->ctl->ready, round);
	for (size_t i = 0; i < SAMPLES; i++) {
		uint64_t v;
		for (unsigned spins = 1; (v = *w->visible) == last; spins++)
			if (spins % 1000000 == 0 && now_ns() - t0 > 30000000000u)
				errx(1, "change %zu never came", i);
		t = now_ns();
		sample[i] = (double)(t - v);
		last = v;
		atomic_store(&w->ctl->seen, i + 1);
	}
	printf("%.0f %.0f\n", percentile(sample, SAMPLES, 50), percentile(sample, SAMPLES, 99));
}

static void obey(struct worker *w, const char *test, unsigned long long arg)
{
	struct hist h = {0};

	if (strcmp(test, "minor-random") == 0) {
		printf("%.3f\n", minor_random(w));
	} else if (strcmp(test, "scan-strip") == 0) {
		printf("%.3f\n", scan_strip(w));
	} else if (strcmp(test, "load-steady") == 0) {
		printf("%.5f\n", load_steady(w));
	} else if (strcmp(test, "store-first") == 0) {
		printf("%.3f\n", store_first(w));
	} else if (strcmp(test, "pread-4k") == 0) {
		printf("%.3f\n", reads(w, w->fd, w->pages, 0));
	} else if (strcmp(test, "read-unmanaged") == 0) {
		printf("%.3f\n", reads(w, w->unmanaged, 256, 1));
	} else if (strcmp(test, "visible-write") == 0) {
		visible_write(w, arg);
	} else if (strcmp(test, "visible-read") == 0) {
		visible_read(w, arg);
	} else if (strcmp(test, "dist") == 0) {
		distribution(w, &h);
		for (size_t i = 0; i < BINS; i++)
			printf("%ju ", (uintmax_t)h.n[i]);
		putchar('\n');
	} else {
		errx(1, "unknown test '%s'", test);
	}
	fflush(stdout);
}

int worker_main(const char *file, const char *unmanaged, const char *visible, const char *ctl)
{
	struct worker w = {.seed = 88172645463325252u};
	char line[128], test[64];
	unsigned long long arg;
	size_t len;
	int fd, cpu;

	w.map = map_file(file, &len, &w.fd);
	w.pages = len / PAGE;
	w.order = calloc(w.pages, sizeof(*w.order));
	if (!w.order)
		err(1, "memory");
	w.stamp = *(uint64_t *)w.map;
	for (size_t i = 0; i < w.pages; i++)
		touch(w.map + i * PAGE);
	w.unmanaged = open(unmanaged, O_RDONLY);
	if (w.unmanaged < 0)
		err(1, "%s", unmanaged);
	w.visible = map_file(visible, &len, &fd);
	w.ctl = map_file(ctl, &len, &fd);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		arg = 0;
		if (sscanf(line, "%63s %d %llu", test, &cpu, &arg) < 2)
			errx(1, "not understood: %s", line);
		pin(cpu);
		obey(&w, test, arg);
	}
	free(w.order);
	return 0;
}

int cold_main(const char *file, const char *small)
{
	static char buf[128 * 1024];
	uint64_t sum = 0, total = 0;
	ssize_t n;

	int fd = open(small, O_RDONLY);
	if (fd < 0 || read(fd, buf, sizeof(buf)) <= 0)
		err(1, "%s", small);
	close(fd);

	uint64_t t = now_ns();
	fd = open(file, O_RDONLY);
	if (fd < 0)
		err(1, "%s", file);
	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i += PAGE)
			sum += (unsigned char)buf[i];
		total += (uint64_t)n;
	}
	if (n < 0)
		err(1, "read %s", file);
	t = now_ns() - t;
	close(fd);
	sink(sum);
	printf("%.1f\n", (double)total / 1e6 / ((double)t / 1e9));
	return 0;
}
