/* SPDX-License-Identifier: MIT */
/*
 * calls - the same random calls on files of two directories: one of a volume, one of none.  Every
 * result, errno, byte and position must be the same.
 *
 *	calls VOLUME-DIR PLAIN-DIR SEED OPERATIONS
 *
 * Prints the seed first; on a mismatch the call.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 4, FDS = 6, MOST = 24000, BUF = MOST + 128 };

static char path[2][FILES][256], src[4 * MOST], buf[2][BUF], what[160];
static int fd[2][FDS];
static uint64_t state;

/* One call's random parts; the same for both sides. */
struct pick {
	unsigned call, file, f, g, x;
	size_t n, from;
	off_t off;
};

static unsigned rnd(unsigned below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(state >> 33) % below;
}

#define SAY(...) snprintf(what, sizeof(what), __VA_ARGS__)

static long do_open(int side, const struct pick *p)
{
	static const int access[] = {O_RDONLY, O_WRONLY, O_RDWR};
	int flags = access[p->n % 3] | (p->x & 1 ? O_CREAT : 0) | (p->x == 5 ? O_EXCL : 0) |
		    (p->x == 7 ? O_APPEND : 0);

	if (p->x >= 14 && p->n % 3)
		flags |= O_TRUNC;
	SAY("open file %u flags %#x", p->file, (unsigned)flags);
	if (fd[side][p->f] >= 0)
		close(fd[side][p->f]);
	fd[side][p->f] = open(path[side][p->file], flags, 0644);
	return fd[side][p->f] < 0 ? -1 : 0;
}

static long do_stdio(int side, const struct pick *p)
{
	static const char *const mode[] = {"w", "a", "r+", "r"};
	FILE *fp = fopen(path[side][p->file], mode[p->x % 4]);
	long r = 0;

	SAY("fopen file %u \"%s\", %zu bytes at %ld", p->file, mode[p->x % 4], p->n, p->off);
	if (!fp)
		return -1;
	if (p->x % 4 < 3) {
		fseek(fp, p->off, SEEK_SET);
		r = (long)fwrite(src + p->from, 1, p->n, fp);
		fflush(fp);
	}
	if (p->x % 4 > 1) {
		fseek(fp, p->off / 2, SEEK_SET);
		r += MOST * (long)fread(buf[side], 1, p->n, fp);
	}
	r = r * 8 + ftell(fp);
	fclose(fp);
	return r;
}

static long call(int side, const struct pick *p)
{
	static const int fmode[] = {0, FALLOC_FL_KEEP_SIZE,
				    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
	static const int from[] = {SEEK_SET, SEEK_CUR, SEEK_END};
	int h = fd[side][p->f];
	struct iovec in[3] = {{buf[side], p->n / 3}, {buf[side] + p->n / 3, p->x}, {NULL, 0}};
	struct iovec out[3] = {{src + p->from, p->n / 2}, {NULL, 0}, {src, p->x}};
	struct stat st;
	long r;

	switch (p->call) {
	case 0:
	case 1:
		return do_open(side, p);
	case 2:
	case 3:
		SAY("read fd %u, %zu", p->f, p->n);
		return read(h, buf[side], p->n);
	case 4:
	case 5:
		SAY("pread fd %u, %zu at %ld", p->f, p->n, p->off);
		return pread(h, buf[side], p->n, p->off);
	case 6:
	case 7:
		SAY("write fd %u, %zu", p->f, p->n);
		return write(h, src + p->from, p->n);
	case 8:
	case 9:
		SAY("pwrite fd %u, %zu at %ld", p->f, p->n, p->off);
		return pwrite(h, src + p->from, p->n, p->off);
	case 10:
		SAY("lseek fd %u, %ld from %d", p->f, p->off - MOST, from[p->x % 3]);
		return lseek(h, p->off - (p->x % 3 ? MOST : 0), from[p->x % 3]);
	case 11:
		SAY("ftruncate fd %u, %ld", p->f, p->off);
		return ftruncate(h, p->off);
	case 12:
		SAY("fstat fd %u", p->f);
		r = fstat(h, &st);
		return r ? r : st.st_size;
	case 13:
		SAY("stat file %u", p->file);
		r = stat(path[side][p->file], &st);
		return r ? r : st.st_size;
	case 14:
		SAY("dup fd %u to %u", p->f, p->g);
		if (p->f == p->g)
			return 0;
		if (fd[side][p->g] >= 0)
			close(fd[side][p->g]);
		fd[side][p->g] = dup(h);
		return fd[side][p->g] < 0 ? -1 : 0;
	case 15:
		SAY("dup2 fd %u to %u", p->f, p->g);
		return fd[side][p->g] < 0 ? 0 : dup2(h, fd[side][p->g]) < 0 ? -1 : 0;
	case 16:
		SAY("readv or preadv fd %u, %zu at %ld", p->f, p->n, p->off);
		return p->x & 1 ? readv(h, in, 3) : preadv(h, in, 3, p->off);
	case 17:
		SAY("writev or pwritev fd %u, %zu at %ld", p->f, p->n, p->off);
		return p->x & 1 ? writev(h, out, 3) : pwritev(h, out, 3, p->off);
	case 18:
		SAY("close fd %u", p->f);
		fd[side][p->f] = -1;
		return close(h);
	case 19:
		SAY("fsync or fdatasync fd %u", p->f);
		return p->x & 1 ? fsync(h) : fdatasync(h);
	case 20:
		SAY("truncate file %u, %ld", p->file, p->off);
		return truncate(path[side][p->file], p->off);
	case 21:
		SAY("fallocate fd %u, mode %d, %zu at %ld", p->f, fmode[p->x % 3], p->n, p->off);
		return fallocate(h, fmode[p->x % 3], p->off, (off_t)p->n + 1);
	case 22:
		SAY("F_SETFL fd %u", p->f);
		r = fcntl(h, F_GETFL);
		return r < 0 ? r : fcntl(h, F_SETFL, p->x < 4 ? r | O_APPEND : r & ~O_APPEND);
	default:
		return do_stdio(side, p);
	}
}

static void step(unsigned op)
{
	struct pick p = {.call = rnd(24),
			 .file = rnd(FILES),
			 .f = rnd(FDS),
			 .g = rnd(FDS),
			 .x = rnd(16),
			 .n = rnd(8) ? rnd(MOST) : rnd(64),
			 .from = rnd(3 * MOST),
			 .off = rnd(4) ? rnd(4 * MOST) : rnd(MOST)};
	long r[2];
	int e[2];

	for (int side = 0; side < 2; side++) {
		memset(buf[side], 0x55, BUF);
		errno = 0;
		r[side] = call(side, &p);
		e[side] = r[side] < 0 ? errno : 0;
	}
	if (r[0] != r[1] || e[0] != e[1])
		errx(1, "operation %u, %s: %ld (%s), natively %ld (%s)", op, what, r[0],
		     strerror(e[0]), r[1], strerror(e[1]));
	for (unsigned i = 0; i < BUF; i++)
		if (buf[0][i] != buf[1][i])
			errx(1, "operation %u, %s: byte %u is %#x, natively %#x", op, what, i,
			     (unsigned char)buf[0][i], (unsigned char)buf[1][i]);
}

/* What is in the files in the end. */
static void compare(unsigned file)
{
	int a = open(path[0][file], O_RDONLY), b = open(path[1][file], O_RDONLY);
	ssize_t n, m;

	if ((a < 0) != (b < 0))
		errx(1, "file %u: only one is there", file);
	while (a >= 0) {
		n = read(a, buf[0], BUF);
		m = read(b, buf[1], BUF);
		if (n != m || (n > 0 && memcmp(buf[0], buf[1], (size_t)n) != 0))
			errx(1, "file %u: the content differs in the end", file);
		if (n <= 0)
			break;
	}
	close(a);
	close(b);
}

int main(int argc, char **argv)
{
	unsigned n;

	if (argc != 5)
		errx(2, "usage: calls VOLUME-DIR PLAIN-DIR SEED OPERATIONS");
	printf("seed %s\n", argv[3]);
	fflush(stdout);
	state = strtoull(argv[3], NULL, 0);
	n = (unsigned)atoi(argv[4]);
	for (size_t i = 0; i < sizeof(src); i++)
		src[i] = (char)rnd(256);
	for (int side = 0; side < 2; side++) {
		for (unsigned i = 0; i < FILES; i++)
			snprintf(path[side][i], sizeof(path[side][i]), "%s/calls-%u",
				 argv[1 + side], i);
		for (unsigned i = 0; i < FDS; i++)
			fd[side][i] = -1;
	}
	for (unsigned op = 0; op < n; op++)
		step(op);
	for (unsigned i = 0; i < FILES; i++)
		compare(i);
	printf("%u calls, 0 differences\n", n);
	return 0;
}
