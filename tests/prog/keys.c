/* SPDX-License-Identifier: MIT */
/*
 * keys FILE KEY ONE TWO WANT - two keys, one program, the same pages.
 *
 * Opens FILE twice, under the keys in ONE and TWO, which take the place of KEY (what REFAULT_KEY
 * names) for it; says "ready" and waits for a line.  Then four threads, two a key, store to bytes of
 * their own that lie between those of the others, through mappings and by write().  At the end it
 * flushes, says how many bytes were stored and what fsync said, and leaves in WANT what FILE has to
 * be if all of ONE's stores arrived and none of TWO's.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 8, PAGE = 4096, LEN = PAGES * PAGE, THREADS = 4, STORES = 400 };

static struct {
	int fd;
	volatile unsigned char *p;
} of[2];
static unsigned char want[LEN];
static unsigned stored[THREADS];

static void must(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

/* Thread i has every byte whose offset is i modulo THREADS; i & 1: TWO's. */
static void *writer(void *arg)
{
	const unsigned i = (unsigned)(size_t)arg, k = i & 1;
	unsigned seed = i;

	for (unsigned n = 0; n < STORES; n++) {
		size_t at = (size_t)rand_r(&seed) % (LEN / THREADS) * THREADS + i;

		if (n % 3) {
			of[k].p[at] = 'z';
		} else if (pwrite(of[k].fd, "z", 1, (off_t)at) != 1) {
			perror("pwrite");
			exit(1);
		}
		if (!k)
			want[at] = 'z';
		stored[i]++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[THREADS];
	FILE *f;
	int e;

	must(argc == 6, "usage: keys FILE KEY ONE TWO WANT");
	for (int k = 0; k < 2; k++) {
		must(rename(argv[3 + k], argv[2]) == 0, argv[3 + k]);
		of[k].fd = open(argv[1], O_RDWR);
		must(of[k].fd >= 0, argv[1]);
		of[k].p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, of[k].fd, 0);
		must(of[k].p != MAP_FAILED, "mmap");
	}
	for (size_t i = 0; i < LEN; i++)
		want[i] = of[0].p[i];
	puts("ready");
	fflush(stdout);
	must(getchar() != EOF, "stdin");
	for (size_t i = 0; i < THREADS; i++)
		must(pthread_create(&t[i], NULL, writer, (void *)i) == 0, "pthread_create");
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	printf("%u stored", stored[0] + stored[1] + stored[2] + stored[3]);
	for (int k = 0; k < 2; k++)
		for (int again = 0; again < 2; again++) {
			e = fsync(of[k].fd) ? errno : 0;
			printf(" %s", e ? strerrorname_np(e) : "ok");
		}
	putchar('\n');
	f = fopen(argv[5], "w");
	must(f && fwrite(want, 1, LEN, f) == LEN && fclose(f) == 0, argv[5]);
	/* Nothing of TWO's is to be seen any more either. */
	for (size_t i = 0; i < LEN; i++)
		if (of[0].p[i] != want[i]) {
			printf("at %zu: %c, should be %c\n", i, of[0].p[i], want[i]);
			return 1;
		}
	return 0;
}
