/* SPDX-License-Identifier: MIT */
/*
 * frozen FILE COPY SECONDS - copies a file over and over while its pages are stored to.
 *
 * A thread counts in many pages of FILE, one after the other from the first to the last, without a
 * pause; a signal handler stores and syncs, too; another thread makes the file longer by write() and
 * cuts it again.  So a page of the file may never hold more than one before it, and neither may a
 * copy.  Copies are by copy_file_range, which a server does whole for so few bytes.
 *
 * Answers on stdout: "COPIES copies, TORN torn, BUSY busy"; 1 if anything went wrong.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 700, PAGE = 4096 };

static _Atomic uint64_t *map;
static int fd;
static _Atomic bool over;
static unsigned char copied[PAGES * PAGE];

static _Atomic uint64_t *page(unsigned i)
{
	return map + (size_t)i * (PAGE / sizeof(*map));
}

static void *count(void *arg)
{
	for (uint64_t n = 1; !over; n++)
		for (unsigned i = 0; i < PAGES; i++)
			atomic_store(page(i), n);
	return arg;
}

static void *stretch(void *arg)
{
	while (!over)
		if (pwrite(fd, "tail", 4, PAGES * PAGE + 100) != 4 || ftruncate(fd, PAGES * PAGE))
			err(1, "stretch");
	return arg;
}

static void on_alarm(int sig)
{
	int saved = errno;

	(void)sig;
	atomic_fetch_add(page(3) + 9, 1);
	fdatasync(fd);
	errno = saved;
}

int main(int argc, char **argv)
{
	const struct itimerval often = {{0, 20000}, {0, 20000}}, never = {0};
	unsigned copies = 0, torn = 0, busy = 0;
	pthread_t a, b;
	time_t end;
	int to;

	if (argc != 4)
		errx(2, "usage: frozen FILE COPY SECONDS");
	fd = open(argv[1], O_RDWR | O_TRUNC);
	to = open(argv[2], O_RDWR);
	if (fd < 0 || to < 0 || ftruncate(fd, PAGES * PAGE) || ftruncate(to, PAGES * PAGE))
		err(1, "open");
	map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	signal(SIGALRM, on_alarm);
	if (pthread_create(&a, NULL, count, NULL) || pthread_create(&b, NULL, stretch, NULL) ||
	    setitimer(ITIMER_REAL, &often, NULL))
		err(1, "start");
	for (end = time(NULL) + atoi(argv[3]); time(NULL) < end;) {
		off_t in = 0, out = 0;
		uint64_t before = UINT64_MAX, n;
		ssize_t k = 0;

		while (in < PAGES * PAGE &&
		       (k = copy_file_range(fd, &in, to, &out, PAGES * PAGE - (size_t)in, 0)) > 0)
			if (in < PAGES * PAGE) /* in pieces: nothing was promised */
				break;
		if (k < 0 && errno == EBUSY) {
			busy++;
			continue;
		}
		if (k != PAGES * PAGE)
			err(1, "copied %zd", k);
		if (pread(to, copied, sizeof(copied), 0) != sizeof(copied))
			err(1, "pread");
		copies++;
		for (unsigned i = 0; i < PAGES; i++, before = n) {
			memcpy(&n, copied + (size_t)i * PAGE, sizeof(n));
			if (n > before) {
				torn++;
				break;
			}
		}
	}
	setitimer(ITIMER_REAL, &never, NULL);
	over = true;
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	printf("%u copies, %u torn, %u busy\n", copies, torn, busy);
	return 0;
}
