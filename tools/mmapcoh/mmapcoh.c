/* SPDX-License-Identifier: MIT */
/*
 * mmapcoh - is a mapped file coherent between two hosts?
 *
 * `mmapcoh FILE` maps the file and prints the byte at OFFSET every interval; `mmapcoh FILE mod`
 * adds one to it, msyncs, fsyncs and prints.  Run the first on one host, the second on another.
 * One decimal number a line, written as soon as it is known.  With -s a line on standard input
 * takes the place of the interval, so that a script says when to look and never has to sleep.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct coh {
	const char *path;
	bool mod, step;
	struct timespec interval;
	unsigned long long count; /* 0: for ever */
	off_t offset;
	int fd;
	char *page; /* the mapped page that holds the byte */
	size_t page_size;
	volatile unsigned char *byte;
};

static const char usage_text[] =
    "usage: mmapcoh [-s | -i SECONDS] [-n COUNT] [-o OFFSET] FILE [mod]\n"
    "\n"
    "Map FILE and print the byte at OFFSET every interval; with mod, add one to it,\n"
    "msync, fsync and print it.\n"
    "\n"
    "  -i SECONDS  the interval, fractions allowed (1)\n"
    "  -s          step: a line on standard input takes the place of the interval\n"
    "  -n COUNT    stop after COUNT times (never)\n"
    "  -o OFFSET   which byte (0)\n"
    "  -h          this text\n";

static unsigned long long whole(const char *what, const char *s)
{
	char *end;

	errno = 0;
	unsigned long long v = strtoull(s, &end, 0);
	if (errno || end == s || *end || strchr(s, '-') || v > INT64_MAX)
		errx(2, "%s '%s' is not a whole number", what, s);
	return v;
}

static struct timespec seconds(const char *s)
{
	char *end;

	errno = 0;
	double v = strtod(s, &end);
	if (errno || end == s || *end || !(v >= 0 && v <= 1e6))
		errx(2, "-i '%s' is not a number of seconds between 0 and 1000000", s);
	time_t sec = (time_t)v;
	return (struct timespec){.tv_sec = sec, .tv_nsec = (long)((v - (double)sec) * 1e9)};
}

static void parse(struct coh *c, int argc, char **argv)
{
	int o;

	while ((o = getopt(argc, argv, "i:sn:o:h")) != -1) {
		switch (o) {
		case 'i':
			c->interval = seconds(optarg);
			break;
		case 's':
			c->step = true;
			break;
		case 'n':
			c->count = whole("-n", optarg);
			break;
		case 'o':
			c->offset = (off_t)whole("-o", optarg);
			break;
		case 'h':
			fputs(usage_text, stdout);
			exit(0);
		default:
			fputs(usage_text, stderr);
			exit(2);
		}
	}
	argc -= optind;
	argv += optind;
	if (argc < 1 || argc > 2 || (argc == 2 && strcmp(argv[1], "mod") != 0)) {
		fputs(usage_text, stderr);
		exit(2);
	}
	c->path = argv[0];
	c->mod = argc == 2;
}

static void map(struct coh *c)
{
	struct stat st;

	c->fd = open(c->path, c->mod ? O_RDWR : O_RDONLY);
	if (c->fd < 0)
		err(1, "%s", c->path);
	if (fstat(c->fd, &st))
		err(1, "%s", c->path);
	if (c->offset >= st.st_size)
		errx(1, "%s: %lld bytes long, there is no byte %lld", c->path,
		     (long long)st.st_size, (long long)c->offset);

	c->page_size = (size_t)sysconf(_SC_PAGESIZE);
	off_t start = c->offset & ~((off_t)c->page_size - 1);
	c->page = mmap(NULL, c->page_size, c->mod ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
		       c->fd, start);
	if (c->page == MAP_FAILED)
		err(1, "mmap %s", c->path);
	c->byte = (volatile unsigned char *)c->page + (c->offset - start);
}

static void once(struct coh *c)
{
	if (c->mod) {
		*c->byte = (unsigned char)(*c->byte + 1);
		if (msync(c->page, c->page_size, MS_SYNC))
			err(1, "msync %s", c->path);
		if (fsync(c->fd))
			err(1, "fsync %s", c->path);
	}
	if (printf("%u\n", *c->byte) < 0 || fflush(stdout))
		err(1, "standard output");
}

/* Returns false when there is no more to wait for. */
static bool wait_turn(struct coh *c)
{
	if (!c->step) {
		struct timespec left = c->interval;
		while (nanosleep(&left, &left) && errno == EINTR)
			continue;
		return true;
	}
	int ch;
	while ((ch = getchar()) != EOF && ch != '\n')
		continue;
	return ch == '\n';
}

int main(int argc, char **argv)
{
	struct coh c = {.interval = {.tv_sec = 1}};

	parse(&c, argc, argv);
	map(&c);
	for (unsigned long long i = 0; !c.count || i < c.count; i++) {
		if ((i || c.step) && !wait_turn(&c))
			break;
		once(&c);
	}
	munmap(c.page, c.page_size);
	if (close(c.fd))
		err(1, "close %s", c.path);
	return 0;
}
