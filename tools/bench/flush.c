/* SPDX-License-Identifier: MIT */
/*
 * flush.c - one process that dirties a file and times its write-back, or counts what that sends.
 *
 *	map	store to every byte of the mapping, then the time of msync(MS_SYNC)
 *	random	the same with random words, so that one byte in 256 is the one that was there
 *	write	the time of write() of all bytes and fsync()
 *
 * All pages are cached before; each is overwritten, none is new.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum { PAGE = 4096, CHUNK = 1 << 20, WIRE_FLUSHES = 100 };

static uint64_t *map_cached(int fd, size_t len)
{
	uint64_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	for (size_t i = 0; i < len / 8; i += PAGE / 8)
		sink(*(volatile uint64_t *)&p[i]);
	return p;
}

static uint64_t by_msync(int fd, size_t len, int random)
{
	uint64_t *p = map_cached(fd, len), s = now_ns(), t;

	for (size_t i = 0; i < len / 8; i++)
		p[i] = random ? rnd(&s) : p[i] ^ 0x0102040810204080u;
	t = now_ns();
	if (msync(p, len, MS_SYNC))
		err(1, "msync");
	return now_ns() - t;
}

static uint64_t by_write(int fd, size_t len)
{
	static uint64_t chunk[CHUNK / 8];
	uint64_t s = now_ns(), t;

	map_cached(fd, len);
	for (size_t i = 0; i < CHUNK / 8; i++)
		chunk[i] = rnd(&s);
	t = now_ns();
	for (size_t done = 0; done < len; done += CHUNK)
		if (write(fd, chunk, CHUNK) != CHUNK)
			err(1, "write");
	if (fsync(fd))
		err(1, "fsync");
	return now_ns() - t;
}

int flush_main(const char *file, const char *how)
{
	int fd = open(file, O_RDWR);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", file);
	size_t len = (size_t)st.st_size / CHUNK * CHUNK;
	uint64_t ns = strcmp(how, "write") == 0 ? by_write(fd, len)
						: by_msync(fd, len, strcmp(how, "random") == 0);
	printf("%ju\n", (uintmax_t)ns);
	return 0;
}

/* Both wire counters of `refault status`. */
static void wire(const char *status, uint64_t n[2])
{
	FILE *f = popen(status, "r");
	char line[1024], name[64];
	uintmax_t v;

	n[0] = n[1] = UINT64_MAX;
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "counter: %63s %ju", name, &v) != 2)
			continue;
		if (strcmp(name, "wire-sent") == 0)
			n[0] = v;
		if (strcmp(name, "wire-received") == 0)
			n[1] = v;
	}
	if (!f || pclose(f) || n[0] == UINT64_MAX || n[1] == UINT64_MAX)
		errx(1, "no counters from: %s", status);
}

int wire_main(const char *file, const char *status)
{
	uint64_t before[2], after[2];
	int fd = open(file, O_RDWR);
	const size_t len = (size_t)WIRE_FLUSHES * PAGE;

	if (fd < 0)
		err(1, "%s", file);
	uint64_t *p = map_cached(fd, len);
	wire(status, before);
	for (size_t i = 0; i < len / 8; i += PAGE / 8) {
		p[i] = ~p[i];
		if (msync(&p[i], PAGE, MS_SYNC))
			err(1, "msync");
	}
	wire(status, after);
	printf("%.1f %.1f\n", (double)(after[0] - before[0]) / WIRE_FLUSHES,
	       (double)(after[1] - before[1]) / WIRE_FLUSHES);
	return 0;
}
