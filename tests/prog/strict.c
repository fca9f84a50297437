/* SPDX-License-Identifier: MIT */
/*
 * strict - after msync(MS_SYNC) returned on one host, can a load on another still see the
 * old bytes?
 *
 *	strict writer FILE ROUNDS TO FROM
 *	strict reader FILE ROUNDS TO FROM
 *
 * Each on its host; TO and FROM are FIFOs between them.  Round i: the writer stores i into a word
 * of the mapping, msyncs that page and only then tells the reader i; the reader loads at once -
 * every eighth time with pread - and must find i.  The words lie in PAGES pages, so that a round
 * meets pages that were left alone for a while as well as the one of the last round.
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "turns.h"

enum { PAGES = 16, PAGE = 4096 };

static size_t place(uint64_t i)
{
	uint64_t h = (i / 3 + 1) * 0x9e3779b97f4a7c15u; /* three rounds to each place */

	return (size_t)(h >> 32) % (PAGES * PAGE / 8);
}

static void writer(volatile uint64_t *m, uint64_t rounds, int to, int from)
{
	for (uint64_t i = 1; i <= rounds; i++) {
		size_t w = place(i);
		m[w] = i;
		char *page = (char *)(uintptr_t)m + w * 8 / PAGE * PAGE;
		if (msync(page, PAGE, MS_SYNC))
			err(1, "msync in round %ju", (uintmax_t)i);
		put(to, i);
		if (get(from) != i)
			errx(1, "out of step");
	}
}

static uint64_t reader(const volatile uint64_t *m, int fd, uint64_t rounds, int to, int from)
{
	uint64_t old = 0;

	for (uint64_t i = 1; i <= rounds; i++) {
		uint64_t v;
		if (get(from) != i)
			errx(1, "out of step");
		size_t w = place(i);
		if (i % 8)
			v = m[w];
		else if (pread(fd, &v, sizeof(v), (off_t)(w * 8)) != sizeof(v))
			err(1, "pread in round %ju", (uintmax_t)i);
		if (v != i && old++ < 5)
			printf("round %ju: word %zu is %ju\n", (uintmax_t)i, w, (uintmax_t)v);
		put(to, i);
	}
	return old;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		errx(2, "usage: strict writer|reader FILE ROUNDS TO FROM");
	int writes = strcmp(argv[1], "writer") == 0;
	uint64_t rounds = strtoull(argv[3], NULL, 10), old = 0;

	/* A FIFO opens when both ends do: the same order on both sides. */
	int to = writes ? open(argv[4], O_WRONLY) : -1;
	int from = open(argv[5], O_RDONLY);
	if (!writes)
		to = open(argv[4], O_WRONLY);
	int fd = open(argv[2], writes ? O_RDWR : O_RDONLY);
	if (to < 0 || from < 0 || fd < 0)
		err(1, "open");
	void *m = mmap(NULL, PAGES * PAGE, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
		       fd, 0);
	if (m == MAP_FAILED)
		err(1, "mmap");
	if (writes)
		writer(m, rounds, to, from);
	else
		old = reader(m, fd, rounds, to, from);
	if (!writes)
		printf("%ju rounds, %ju old\n", (uintmax_t)rounds, (uintmax_t)old);
	return old != 0;
}
