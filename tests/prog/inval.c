/* SPDX-License-Identifier: MIT */
/*
 * inval FILE ROUNDS FLAGS - writers that number what they write, while the file is invalidated.
 *
 * FILE has WRITERS slots of 8 bytes, each in a page of its own, and as many once more behind them.
 * Each writer counts: it writes its number with pwrite() to the first slot, stores it through the
 * mapping in the second, and reads both back.  Meanwhile the file is invalidated ROUNDS times,
 * with FLAGS.  A number that is lower than one that was written there before is lost: that is
 * the race between a store and the drop of its page.  Prints "ok" and the numbers, or what was lost.
 */
#include <dlfcn.h>
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <refault/refault.h>

enum { WRITERS = 3, PAGE = 4096 };

static int fd;
static _Atomic uint64_t *map;
static _Atomic bool stop;
static _Atomic unsigned lost;
static uint64_t last[WRITERS];

static void *writer(void *arg)
{
	const uintptr_t i = (uintptr_t)arg;
	_Atomic uint64_t *mine = &map[(WRITERS + i) * PAGE / 8];
	uint64_t n = 0, got;

	while (!stop && !lost) {
		n++;
		if (pwrite(fd, &n, 8, (off_t)i * PAGE) != 8)
			err(1, "pwrite");
		atomic_store(mine, n);
		if (pread(fd, &got, 8, (off_t)i * PAGE) != 8)
			err(1, "pread");
		if (got != n && !lost++)
			printf("writer %zu: pwrite %" PRIu64 " is %" PRIu64 "\n", i, n, got);
		got = atomic_load(mine);
		if (got != n && !lost++)
			printf("writer %zu: store %" PRIu64 " is %" PRIu64 "\n", i, n, got);
	}
	last[i] = n;
	return NULL;
}

int main(int argc, char **argv)
{
	__typeof__(refault_finvalidate) *invalidate;
	pthread_t t[WRITERS];
	unsigned rounds;
	int flags;

	if (argc != 4)
		errx(2, "usage: inval FILE ROUNDS FLAGS");
	rounds = (unsigned)strtoul(argv[2], NULL, 10);
	flags = (int)strtol(argv[3], NULL, 10);
	*(void **)&invalidate = dlsym(RTLD_DEFAULT, "refault_finvalidate");
	fd = open(argv[1], O_RDWR);
	if (fd < 0 || !invalidate)
		errx(1, "%s cannot be opened, or the library was not preloaded", argv[1]);
	map = mmap(NULL, (size_t)2 * WRITERS * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	for (uintptr_t i = 0; i < WRITERS; i++)
		if (pthread_create(&t[i], NULL, writer, (void *)i))
			errx(1, "pthread_create");
	for (unsigned r = 0; r < rounds && !lost; r++)
		if (invalidate(fd, flags) < 0)
			err(1, "refault_finvalidate");
	stop = true;
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(t[i], NULL);
	if (lost)
		return 1;
	if (msync((void *)map, (size_t)2 * WRITERS * PAGE, MS_SYNC) || fsync(fd))
		err(1, "fsync");
	printf("ok");
	for (unsigned i = 0; i < WRITERS; i++)
		printf(" %" PRIu64, last[i]);
	putchar('\n');
	return 0;
}
