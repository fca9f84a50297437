/* SPDX-License-Identifier: MIT */
/*
 * pieces - mappings that fall into pieces, become one again and grow, meanwhile.
 *
 *	pieces writer FILE ROUNDS TO FROM	on one host: changes more than a break carries, flushes
 *	pieces reader FILE ROUNDS TO FROM	on another: must load what is new, while a thread protects half
 *						of the mapping and lets go of it again
 *	pieces grow FILE ROUNDS			first stores to a private mapping that grows meanwhile stay
 *
 * The reader has stored to one of the pages itself, so that the break strips its mapping.
 */
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "turns.h"

enum { PAGE = 4096, PAGES = 32, OWN = 64, GROW = 1000, MORE = 2000 };

static unsigned char *m;
static _Atomic int stored;

/* The pages that are changed, in the half that nobody protects. */
static unsigned char *page(int k)
{
	return m + (PAGES - 1 - 4 * k) * PAGE;
}

static void *protect(void *arg)
{
	for (;;)
		if (mprotect(m, PAGES / 2 * PAGE, PROT_NONE) ||
		    mprotect(m, PAGES / 2 * PAGE, PROT_READ | PROT_WRITE))
			err(1, "mprotect");
	return arg;
}

static void writer(uint64_t rounds, int to, int from)
{
	for (uint64_t i = 1; i <= rounds; i++) {
		for (int k = 0; k < 2; k++)
			memset(page(k) + OWN, (int)i, PAGE - OWN);
		if (msync(m, PAGES * PAGE, MS_SYNC))
			err(1, "msync in round %ju", (uintmax_t)i);
		put(to, i);
		if (get(from) != i)
			errx(1, "out of step");
	}
}

static uint64_t reader(uint64_t rounds, int to, int from)
{
	uint64_t old = 0;

	for (uint64_t i = 1; i <= rounds; i++) {
		if (get(from) != i)
			errx(1, "out of step");
		for (int k = 0; k < 2; k++)
			if (*(volatile unsigned char *)(page(k) + OWN) != (unsigned char)i)
				old++;
		*(volatile uint64_t *)page(0) = i;
		put(to, i);
	}
	return old;
}

static void *store(void *arg)
{
	for (int i = 0; i < GROW; i++)
		m[i * PAGE] = 77;
	atomic_store(&stored, 1);
	return arg;
}

static uint64_t grow(int fd, uint64_t rounds)
{
	uint64_t lost = 0;

	while (rounds--) {
		size_t n = GROW * PAGE;
		pthread_t t;

		/* A place with room behind it. */
		m = mmap(NULL, (GROW + MORE) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(m, (GROW + MORE) * PAGE);
		m = mmap(m, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		if (m == MAP_FAILED)
			err(1, "mmap");
		atomic_store(&stored, 0);
		if (pthread_create(&t, NULL, store, NULL))
			errx(1, "no thread");
		for (; !atomic_load(&stored) && n < (GROW + MORE) * PAGE; n += PAGE)
			if (mremap(m, n, n + PAGE, 0) == MAP_FAILED)
				break;
		pthread_join(t, NULL);
		for (int i = 0; i < GROW; i++)
			lost += m[i * PAGE] != 77;
		munmap(m, n);
	}
	return lost;
}

int main(int argc, char **argv)
{
	const int writes = argc == 6 && strcmp(argv[1], "writer") == 0;
	uint64_t rounds, bad = 0;
	int to, from, fd;
	pthread_t t;

	if (argc != 6 && argc != 4)
		errx(2,
		     "usage: pieces writer|reader FILE ROUNDS TO FROM | pieces grow FILE ROUNDS");
	rounds = strtoull(argv[3], NULL, 10);
	fd = open(argv[2], O_RDWR);
	if (fd < 0)
		err(1, "%s", argv[2]);
	if (argc == 4) {
		bad = grow(fd, rounds);
		printf("%ju rounds, %ju lost\n", (uintmax_t)rounds, (uintmax_t)bad);
		return bad != 0;
	}
	/* A FIFO opens when both ends do: the same order on both sides. */
	to = writes ? open(argv[4], O_WRONLY) : -1;
	from = open(argv[5], O_RDONLY);
	if (!writes)
		to = open(argv[4], O_WRONLY);
	m = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (to < 0 || from < 0 || m == MAP_FAILED)
		err(1, "open or mmap");
	if (writes) {
		writer(rounds, to, from);
		return 0;
	}
	if (pthread_create(&t, NULL, protect, NULL))
		errx(1, "no thread");
	bad = reader(rounds, to, from);
	printf("%ju rounds, %ju old\n", (uintmax_t)rounds, (uintmax_t)bad);
	return bad != 0;
}
