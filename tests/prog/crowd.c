/* SPDX-License-Identifier: MIT */
/*
 * crowd FILE THREADS LINES - more threads append to FILE at a time than can have a request under way.
 *
 * Each writes LINES lines, "THREAD LINE", all by O_APPEND.  Says how many it was told were written.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STACK = 256 * 1024, MOST = 4096 };

static int fd;
static long lines;
static _Atomic long written;

static void *run(void *arg)
{
	char line[64];

	for (long i = 0; i < lines; i++) {
		int n = snprintf(line, sizeof(line), "%ld %ld\n", (long)(intptr_t)arg, i);

		if (write(fd, line, (size_t)n) == n)
			written++;
		else
			perror("crowd: write");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static pthread_t t[MOST];
	pthread_attr_t attr;
	long n = argc == 4 ? strtol(argv[2], NULL, 10) : 0;

	if (n < 1 || n > MOST)
		return 2;
	lines = strtol(argv[3], NULL, 10);
	fd = open(argv[1], O_WRONLY | O_APPEND);
	if (fd < 0 || pthread_attr_init(&attr) || pthread_attr_setstacksize(&attr, STACK)) {
		perror(argv[1]);
		return 1;
	}
	for (long i = 0; i < n; i++)
		if (pthread_create(&t[i], &attr, run, (void *)(intptr_t)i)) {
			perror("crowd: pthread_create");
			return 1;
		}
	for (long i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	if (close(fd)) {
		perror(argv[1]);
		return 1;
	}
	printf("%ld\n", (long)written);
	return 0;
}
