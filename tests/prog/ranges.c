/* SPDX-License-Identifier: MIT */
/*
 * ranges - calls that change, move, seek, lock or advise ranges of files, one after the other, and after
 * each what became of two files.  It is run twice, natively and under the library, on file systems that
 * are alike: every line must be the same.
 *
 *	ranges DIR GROUP [TO FROM]	GROUP: falloc truncate copy pipes clone seek limit advice lock
 *	ranges DIR peer			on another host: a line on stdin, sizes and sums on stdout
 *	ranges DIR changes		changes all of DIR/a again and again until stdin ends
 *	ranges DIR populate		on another host: populates and locks mappings of it meanwhile
 *
 * DIR/a and DIR/b are there, and empty; DIR/c has ten pages.  A line is the call, what it returned, and for both files size,
 * position and a sum over all bytes: as read, and as loaded through a mapping made at the start.
 * TO and FROM lead to a peer, which reads and loads, too: it must see the same.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { P = 4096, VIEW = 1 << 20, A_SIZE = 10 * P + 100, B_SIZE = 5000 };

static int a, b;            /* read-write */
static int aw, ar, bap, br; /* of the same files: write-only, read-only, O_APPEND, read-only */
static char *view[2];
static FILE *to, *from; /* the peer */
static volatile sig_atomic_t xfsz;
static char bytes[VIEW];

static uint64_t sum(const char *p, size_t n)
{
	uint64_t h = 14695981039346656037u;

	while (n--)
		h = (h ^ (unsigned char)*p++) * 1099511628211u;
	return h;
}

/* Size and sum of a file, -1 if reading and loading disagree. */
static uint64_t look(int fd, const char *v, long *size)
{
	struct stat st;
	ssize_t n;
	uint64_t h;

	if (fstat(fd, &st) || st.st_size > VIEW)
		err(1, "fstat, or a file of more than %d bytes", VIEW);
	*size = (long)st.st_size;
	n = pread(fd, bytes, VIEW, 0);
	if (n != st.st_size)
		errx(1, "read %zd of %ld bytes", n, *size);
	h = sum(bytes, (size_t)n);
	for (ssize_t i = 0; i < n; i++)
		if (v[i] != bytes[i])
			errx(1, "byte %zd is %#x read, %#x mapped", i, bytes[i] & 0xff,
			     v[i] & 0xff);
	return h;
}

static void peer(void)
{
	long n[2];
	uint64_t h[2];
	char line[16];

	while (fgets(line, sizeof(line), stdin)) {
		h[0] = look(a, view[0], &n[0]);
		h[1] = look(b, view[1], &n[1]);
		printf("%ld:%lx %ld:%lx\n", n[0], h[0], n[1], h[1]);
		fflush(stdout);
	}
}

static void state(void)
{
	char mine[128], theirs[128] = "", *said;
	long n[2];
	uint64_t h[2];

	h[0] = look(a, view[0], &n[0]);
	h[1] = look(b, view[1], &n[1]);
	printf("  a %ld @%ld %lx b %ld @%ld %lx", n[0], (long)lseek(a, 0, SEEK_CUR), h[0], n[1],
	       (long)lseek(b, 0, SEEK_CUR), h[1]);
	if (to) {
		fsync(a);
		fsync(b);
		snprintf(mine, sizeof(mine), "%ld:%lx %ld:%lx\n", n[0], h[0], n[1], h[1]);
		fputs("?\n", to);
		fflush(to);
		while (!(said = fgets(theirs, sizeof(theirs), from)) && ferror(from) &&
		       errno == EINTR) /* a timer may tick */
			clearerr(from);
		if (!said || strcmp(mine, theirs) != 0)
			printf("  the other host sees %s", theirs);
	}
	printf("\n");
}

static void on_xfsz(int sig)
{
	(void)sig;
	xfsz = 1;
}

static void told(const char *call, long r, int e)
{
	printf("%s = %ld %s%s\n", call, r, r < 0 ? strerrorname_np(e) : "", xfsz ? " SIGXFSZ" : "");
	xfsz = 0;
}

/* CHECK: what it returns.  DO: and what it did. */
#define CHECK(call)                                                                                \
	do {                                                                                       \
		long r_;                                                                           \
		errno = 0;                                                                         \
		r_ = (long)(call);                                                                 \
		told(#call, r_, errno);                                                            \
	} while (0)
#define DO(call)                                                                                   \
	do {                                                                                       \
		CHECK(call);                                                                       \
		state();                                                                           \
	} while (0)

/* Both files as at the start of every part. */
static void reset(void)
{
	static char fill[A_SIZE];

	if (ftruncate(a, 0) || ftruncate(b, 0))
		err(1, "ftruncate");
	for (int i = 0; i < A_SIZE; i++)
		fill[i] = (char)(i / 100 * 7 + i + 1);
	if (pwrite(a, fill, A_SIZE, 0) != A_SIZE || pwrite(b, fill + 50, B_SIZE, 0) != B_SIZE)
		err(1, "pwrite");
	fsync(a);
	fsync(b);
	lseek(a, 0, SEEK_SET);
	lseek(b, 0, SEEK_SET);
}

/* XFS_IOC_RESVSP and its kin. */
struct space {
	int16_t type, whence;
	int64_t start, len;
	int32_t pad[6];
};

static long space(unsigned char nr, int whence, off_t start, off_t len)
{
	return ioctl(a, _IOW('X', nr, struct space),
		     &(struct space){.whence = (int16_t)whence, .start = start, .len = len});
}

static void do_falloc(void)
{
	static const int mode[] = {0,
				   FALLOC_FL_KEEP_SIZE,
				   FALLOC_FL_PUNCH_HOLE,
				   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   FALLOC_FL_ZERO_RANGE,
				   FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
				   FALLOC_FL_COLLAPSE_RANGE,
				   FALLOC_FL_INSERT_RANGE,
				   FALLOC_FL_UNSHARE_RANGE,
				   4 /* NO_HIDE_STALE, not a mode of user space */,
				   1 << 20};
	static const struct {
		off_t off, len;
	} at[] = {{0, P},      {P, 2 * P},     {100, 5000}, {8 * P + 1, P - 1},
		  {3 * P, 20}, {8 * P, 8 * P}, {20 * P, P}, {30 * P, 1},
		  {0, 0},      {-1, 5},        {5, -1},     {0, 3 * P}};

	for (size_t m = 0; m < sizeof(mode) / sizeof(mode[0]); m++) {
		printf("mode %#x\n", (unsigned)mode[m]);
		reset();
		for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
			/* Stored, not flushed: the call is about what programs see. */
			view[0][(i * 3000) % A_SIZE / 2]++;
			printf("at %ld, %ld: ", at[i].off, at[i].len);
			DO(fallocate(a, mode[m], at[i].off, at[i].len));
		}
	}
	reset();
	CHECK(fallocate(ar, 0, 0, 1));
	CHECK(fallocate(ar, FALLOC_FL_PUNCH_HOLE, 0, 1));
	CHECK(fallocate(ar, 0, 0, 0));
	CHECK(fallocate(-1, 0, 0, 0));
	DO(fallocate(aw, 0, 0, 50 * P));
	DO(fallocate(bap, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 100));
	CHECK(fallocate(b, 0, INT64_MAX - 10, 100));
	DO(posix_fallocate(b, P, 4 * P));
	CHECK(posix_fallocate(b, 0, 0));
	CHECK(posix_fallocate(b, -1, 1));
	CHECK(posix_fallocate(br, 0, 1));
	DO(posix_fallocate(b, 0, 10));
	reset();
	lseek(a, P, SEEK_SET);
	DO(space(41, SEEK_SET, 10, P));
	DO(space(43, SEEK_CUR, P, P));
	DO(space(43, SEEK_END, -200, 100));
	DO(space(43, 7, 0, 100));
	DO(space(42, SEEK_END, 0, P));
	DO(space(40, SEEK_SET, 0, 0));
	DO(space(57, SEEK_SET, 7 * P + 1, P));
}

static int reopen(const char *name, int flags)
{
	int fd = open(name, flags, 0644);

	return fd < 0 ? -1 : close(fd);
}

static int stream(const char *name, const char *mode, const char *again)
{
	FILE *fp = fopen(name, mode);

	if (!fp)
		return -1;
	fputs("before", fp);
	if (again && !(fp = freopen(*again ? name : NULL, *again ? again : "w", fp)))
		return -1;
	fputs("after", fp);
	return fclose(fp);
}

/* Another process has it mapped, and touched: after `call`, does it get SIGBUS at the first byte? */
static void bus(int sig)
{
	_exit(sig);
}
#define MAPPED_ELSEWHERE(call)                                                                     \
	do {                                                                                       \
		int p_[2], q_[2], st_;                                                             \
		char c_ = 0;                                                                       \
		if (pipe(p_) || pipe(q_))                                                          \
			err(1, "pipe");                                                            \
		pid_t k_ = fork();                                                                 \
		if (k_ == 0) {                                                                     \
			signal(SIGBUS, bus);                                                       \
			char *v_ = mmap(NULL, P, PROT_READ, MAP_SHARED, a, 0);                     \
			c_ = *(volatile char *)v_;                                                 \
			if (write(q_[1], &c_, 1) != 1 || read(p_[0], &c_, 1) != 1)                 \
				_exit(1);                                                          \
			c_ = *(volatile char *)v_;                                                 \
			_exit(c_ ? 100 : 101);                                                     \
		}                                                                                  \
		if (read(q_[0], &c_, 1) != 1)                                                      \
			err(1, "the other process");                                               \
		DO(call);                                                                          \
		if (write(p_[1], &c_, 1) != 1 || waitpid(k_, &st_, 0) != k_)                       \
			err(1, "the other process");                                               \
		printf("the other process: %d\n", WIFEXITED(st_) ? WEXITSTATUS(st_) : -1);         \
		close(p_[0]);                                                                      \
		close(p_[1]);                                                                      \
		close(q_[0]);                                                                      \
		close(q_[1]);                                                                      \
	} while (0)

static void do_truncate(void)
{
	FILE *fp;
	static const off_t size[] = {0, 1, P, P + 1, 3 * P, 3 * P - 1, 50 * P, 50 * P + 7, 5, 0, 9};

	reset();
	for (size_t i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
		printf("to %ld: ", size[i]);
		DO(ftruncate(a, size[i]));
		printf("to %ld: ", size[i]);
		DO(truncate("b", size[i]));
		if (size[i])
			view[0][size[i] / 2] = view[1][size[i] - 1] = (char)i;
	}
	CHECK(ftruncate(a, -1));
	CHECK(ftruncate(ar, -1));
	CHECK(ftruncate(ar, 5));
	CHECK(ftruncate(-1, 5));
	CHECK(truncate("b", -1));
	CHECK(truncate(".", 1));
	CHECK(truncate("none", 1));
	reset();
	DO(reopen("a", O_WRONLY | O_TRUNC));
	reset();
	DO(reopen("a", O_RDONLY | O_TRUNC));
	reset();
	DO(reopen("a", O_RDWR | O_TRUNC | O_CREAT));
	reset();
	DO(reopen("a", O_RDWR | O_TRUNC | O_CREAT | O_EXCL));
	DO(close(creat("a", 0644)));
	DO(stream("a", "w", NULL));
	reset();
	DO(stream("a", "w", "w"));
	reset();
	DO(stream("a", "a", "w"));
	reset();
	DO(stream("a", "r+", "a"));
	reset();
	DO(stream("a", "r+", "")); /* freopen(NULL, "w") */
	reset();
	DO(stream("a", "w,ccs=UTF-8", NULL));
	reset();
	DO(stream("a", "wx", NULL));
	DO(stream("none", "r", NULL));
	close(0); /* the lowest number that is free */
	fp = fopen("a", "w");
	printf("as descriptor %d\n", fp ? fileno(fp) : -1);
	fp = freopen("b", "we", fp);
	printf("as descriptor %d, %d\n", fp ? fileno(fp) : -1, fcntl(0, F_GETFD));
	fp = freopen("none/none", "w", fp);
	printf("%s, and it is closed: %d\n", fp ? "made" : strerrorname_np(errno),
	       fcntl(0, F_GETFD));
	open("/dev/null", O_RDONLY);
	reset();
	MAPPED_ELSEWHERE(reopen("a", O_WRONLY | O_TRUNC));
	reset();
	MAPPED_ELSEWHERE(stream("a", "w", NULL));
	reset();
	MAPPED_ELSEWHERE(ftruncate(a, P));
	MAPPED_ELSEWHERE(ftruncate(a, 5 * P));
	reset();
	MAPPED_ELSEWHERE(fallocate(a, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * P));
	MAPPED_ELSEWHERE(truncate("a", 0));
}

/* An offset of its own, and what became of it. */
static off_t off_in, off_out;
#define AT(i, o, call)                                                                             \
	do {                                                                                       \
		off_in = (i);                                                                      \
		off_out = (o);                                                                     \
		DO(call);                                                                          \
		printf("  offsets %ld %ld\n", (long)off_in, (long)off_out);                        \
	} while (0)

/* Offsets in a mapping that has no pages, of a call that is about other files. */
static void offsets(void)
{
	off_t *off = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
	int u = memfd_create("u", 0), w = memfd_create("w", 0), p[2];

	if (off == MAP_FAILED || u < 0 || w < 0 || ftruncate(u, P) || pipe(p))
		err(1, "mmap, memfd or pipe");
	for (int i = 0; i < 3; i++) {
		off[0] = 10;
		off[1] = 20;
		if (msync(off, P, MS_SYNC) || madvise(off, P, MADV_DONTNEED))
			err(1, "msync or madvise");
		if (i == 0)
			CHECK(copy_file_range(u, off, w, off + 1, 100, 0));
		else if (i == 1)
			CHECK(sendfile(w, u, off, 100));
		else
			CHECK(splice(u, off, p[1], NULL, 100, 0));
		printf("  offsets %ld %ld\n", (long)off[0], (long)off[1]);
	}
	munmap(off, P);
	close(u);
	close(w);
	close(p[0]);
	close(p[1]);
}

static void do_copy(void)
{
	int p[2];

	if (pipe(p))
		err(1, "pipe");
	reset();
	view[0][5] = view[1][6] = 'x';
	DO(copy_file_range(a, NULL, b, NULL, 100, 0));
	DO(copy_file_range(a, NULL, b, NULL, 2 * P, 0));
	AT(0, 0, copy_file_range(a, &off_in, b, &off_out, P, 0));
	AT(100, 3 * P + 1, copy_file_range(a, &off_in, b, &off_out, 3 * P, 0));
	AT(9 * P, 20 * P, copy_file_range(a, &off_in, b, &off_out, 5 * P, 0));
	AT(10 * P + 100, 0, copy_file_range(a, &off_in, b, &off_out, 5, 0));
	AT(50 * P, 0, copy_file_range(a, &off_in, b, &off_out, 5, 0));
	AT(0, 5 * P, copy_file_range(a, &off_in, a, &off_out, 2 * P, 0));
	AT(5 * P, P, copy_file_range(a, &off_in, a, &off_out, 100, 0));
	AT(0, 100, copy_file_range(a, &off_in, a, &off_out, 101, 0));
	AT(100, 0, copy_file_range(a, &off_in, a, &off_out, 101, 0));
	AT(9 * P, 10 * P, copy_file_range(a, &off_in, a, &off_out, 5 * P, 0));
	AT(20 * P, 20 * P, copy_file_range(a, &off_in, a, &off_out, 5, 0));
	AT(-1, 0, copy_file_range(a, &off_in, b, &off_out, 100, 0));
	AT(-1, 0, copy_file_range(a, &off_in, b, &off_out, 0, 0));
	AT(0, -1, copy_file_range(a, &off_in, b, &off_out, 100, 0));
	AT(1, 0, copy_file_range(a, &off_in, b, &off_out, SIZE_MAX, 0));
	AT(INT64_MAX - 255, 0, copy_file_range(a, &off_in, b, &off_out, 5000, 0));
	DO(copy_file_range(a, NULL, a, NULL, 0, 0));
	DO(copy_file_range(a, NULL, b, NULL, 0, 0));
	DO(copy_file_range(a, NULL, b, NULL, 100, 1));
	DO(copy_file_range(aw, NULL, b, NULL, 100, 1));
	DO(copy_file_range(-1, NULL, b, NULL, 100, 1));
	DO(copy_file_range(a, NULL, -1, NULL, 100, 0));
	DO(copy_file_range(aw, NULL, b, NULL, 100, 0));
	DO(copy_file_range(a, NULL, br, NULL, 100, 0));
	DO(copy_file_range(a, NULL, bap, NULL, 0, 0));
	DO(copy_file_range(p[0], NULL, b, NULL, 100, 0));
	DO(copy_file_range(a, NULL, p[1], NULL, 100, 0));
	CHECK(copy_file_range(a, (off_t *)8, b, NULL, 10, 0));
	lseek(a, 0, SEEK_SET);
	lseek(b, 30 * P, SEEK_SET);
	DO(copy_file_range(a, NULL, b, NULL, SIZE_MAX, 0));
	offsets();
	close(p[0]);
	close(p[1]);
}

/* Read it empty; how much was in it. */
static long drain(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	long n = 0, r;

	while (poll(&p, 1, 0) == 1 && (r = read(fd, bytes, P)) > 0) {
		printf("  drained %lx\n", sum(bytes, (size_t)r));
		n += r;
	}
	return n;
}

/* The pipe is served by a handler: the call waits until the third signal, and those do not end it. */
static volatile sig_atomic_t ticks;
static int tick_fd;

static void on_tick(int sig)
{
	static char piece[P];

	(void)sig;
	if (++ticks != 3)
		return;
	if (fcntl(tick_fd, F_GETFL) & O_WRONLY)
		(void)!write(tick_fd, "hello", 5);
	else
		(void)!read(tick_fd, piece, P);
}

static void tick(int fd, int flags)
{
	const struct itimerval every = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
	const struct sigaction act = {.sa_handler = on_tick, .sa_flags = flags};

	tick_fd = fd;
	ticks = 0;
	if (fd >= 0)
		sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, fd < 0 ? &never : &every, NULL);
}

/* It waits if the pipe's descriptor may, whatever the file's says; and after a signal as told. */
static void waits(int full[2])
{
	int p[2];

	if (pipe(p))
		err(1, "pipe");
	reset();
	fcntl(a, F_SETFL, O_NONBLOCK);
	tick(p[1], SA_RESTART);
	DO(splice(p[0], NULL, a, NULL, 100, 0));
	tick(full[0], SA_RESTART);
	lseek(a, 0, SEEK_SET); /* the pipe has room for one page of the file */
	DO(splice(a, NULL, full[1], NULL, P, 0));
	fcntl(a, F_SETFL, 0);
	tick(full[0], SA_RESTART);
	DO(sendfile(full[1], a, NULL, P));
	tick(p[0], 0);
	DO(splice(p[0], NULL, a, NULL, 100, 0));
	tick(-1, 0);
	close(p[0]);
	close(p[1]);
}

static void do_pipes(void)
{
	int p[2], full[2], s[2], i;

	if (pipe(p) || pipe(full) || socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		err(1, "pipe or socketpair");
	fcntl(full[1], F_SETFL, O_NONBLOCK);
	while (write(full[1], bytes, P) > 0)
		;
	reset();
	DO(splice(a, NULL, b, NULL, 100, 0));
	DO(splice(a, NULL, p[1], NULL, 0, 0xff00));
	DO(splice(a, NULL, p[1], NULL, 10, 0xff00));
	DO(splice(-1, NULL, p[1], NULL, 0, 0));
	DO(splice(-1, NULL, p[1], NULL, 10, 0));
	DO(splice(a, NULL, -1, NULL, 10, 0));
	DO(splice(a, NULL, s[0], NULL, 10, 0));
	DO(splice(s[0], NULL, b, NULL, 10, 0));
	AT(0, 0, splice(a, NULL, p[1], &off_out, 10, 0));
	AT(0, 0, splice(p[0], &off_in, b, NULL, 10, 0));
	AT(-1, 0, splice(a, &off_in, p[1], NULL, 10, 0));
	DO(splice(a, NULL, p[1], NULL, 1 << 30, 0));
	DO(splice(aw, NULL, p[1], NULL, 10, 0));
	DO(splice(a, NULL, p[0], NULL, 10, 0));
	AT(5, 0, splice(a, &off_in, p[1], NULL, 10, 0));
	DO(splice(a, NULL, p[1], NULL, 5000, 0));
	DO(splice(a, NULL, p[1], NULL, 2 * P, SPLICE_F_MOVE | SPLICE_F_MORE));
	AT(0, -1, splice(p[0], NULL, b, &off_out, 10, 0));
	DO(splice(p[0], NULL, br, NULL, 4, 0));
	DO(splice(p[0], NULL, bap, NULL, 4, 0));
	AT(0, 3, splice(p[0], NULL, b, &off_out, 7, 0));
	AT(0, 3 * P + 3, splice(p[0], NULL, b, &off_out, 3, 0));
	DO(splice(p[0], NULL, b, NULL, P, 0));
	DO(splice(p[0], NULL, b, NULL, 100000, 0));
	DO(splice(p[0], NULL, b, NULL, 100, SPLICE_F_NONBLOCK));
	CHECK(drain(p[0]));
	lseek(a, 0, SEEK_SET);
	DO(splice(a, NULL, p[1], NULL, 1 << 20, SPLICE_F_NONBLOCK)); /* as much as there is */
	CHECK(drain(p[0]));
	AT(50 * P, 0, splice(a, &off_in, p[1], NULL, 10, 0));
	AT(0, 0, splice(a, &off_in, full[1], NULL, 10, SPLICE_F_NONBLOCK));
	AT(0, 0, splice(a, &off_in, full[1], NULL, 10, 0));
	AT(50 * P, 0, splice(a, &off_in, full[1], NULL, 10, 0));
	i = fcntl(p[0], F_SETFL, O_NONBLOCK);
	DO(splice(p[0], NULL, b, NULL, 100, 0));
	fcntl(p[0], F_SETFL, i);
	close(p[1]);
	DO(splice(p[0], NULL, b, NULL, 100, 0)); /* no writer is left */
	close(p[0]);

	if (pipe(p))
		err(1, "pipe");
	reset();
	view[0][9] = 'y';
	DO(sendfile(b, a, NULL, 100));
	AT(-1, 0, sendfile(b, a, &off_in, 100));
	AT(50 * P, 0, sendfile(b, a, &off_in, 100));
	AT(200, 0, sendfile(b, a, &off_in, 3 * P));
	DO(sendfile(br, a, NULL, 100));
	DO(sendfile(b, aw, NULL, 100));
	DO(sendfile(bap, a, NULL, 100));
	DO(sendfile(bap, a, NULL, 0));
	DO(sendfile(b, p[0], NULL, 10));
	AT(0, 0, sendfile(b, p[0], &off_in, 10));
	DO(sendfile(b, s[0], NULL, 10));
	DO(sendfile(-1, a, NULL, 10));
	DO(sendfile(b, -1, NULL, 10));
	DO(sendfile(a, a, NULL, 100));
	AT(0, 0, sendfile(b, a, &off_in, SIZE_MAX));
	DO(sendfile(p[1], a, NULL, 1 << 20));
	CHECK(drain(p[0]));
	AT(0, 0, sendfile(full[1], a, &off_in, 10));
	AT(10 * P, 0, sendfile(s[0], a, &off_in, 1 << 20));
	CHECK(drain(s[1]));
	fcntl(s[0], F_SETFL, O_NONBLOCK);
	for (i = 0; i < 100; i++) { /* until it is full; how much fits is the same natively */
		off_in = 0;
		if (sendfile(s[0], a, &off_in, 4 * P) < 0)
			break;
	}
	printf("nonblocking socket: %s %d\n", i < 100 ? strerrorname_np(errno) : "never full",
	       off_in == 0);
	fcntl(full[1], F_SETFL, 0);
	waits(full);
	CHECK(sendmsg(s[0],
		      &(struct msghdr){.msg_name = view[0],
				       .msg_namelen = 2,
				       .msg_iov = &(struct iovec){bytes, 1},
				       .msg_iovlen = 1 << 28},
		      0));
	close(s[0]);
	close(s[1]);
	close(p[0]);
	close(p[1]);
	close(full[0]);
	close(full[1]);
}

static int clone_range(int dst, int src, long from_off, long len, long to_off)
{
	struct file_clone_range r = {src, (uint64_t)from_off, (uint64_t)len, (uint64_t)to_off};

	return ioctl(dst, FICLONERANGE, &r);
}

static int dedupe(int src, long off, long len, unsigned n, int d0, long o0, int d1, long o1,
		  int wrong)
{
	struct file_dedupe_range *r = calloc(1, sizeof(*r) + 200 * sizeof(r->info[0]));
	int ret, e;

	r->src_offset = (uint64_t)off;
	r->src_length = (uint64_t)len;
	r->dest_count = (uint16_t)n;
	r->reserved1 = wrong == 1;
	r->info[0].dest_fd = d0;
	r->info[0].dest_offset = (uint64_t)o0;
	r->info[0].reserved = wrong == 2;
	r->info[1].dest_fd = d1;
	r->info[1].dest_offset = (uint64_t)o1;
	ret = ioctl(src, FIDEDUPERANGE, r);
	e = errno;
	for (unsigned i = 0; i < n && i < 2 && !ret; i++)
		printf("  %u: %llu, status %d\n", i, (unsigned long long)r->info[i].bytes_deduped,
		       r->info[i].status);
	free(r);
	errno = e;
	return ret;
}

static void do_clone(void)
{
	int dir = open(".", O_RDONLY | O_DIRECTORY), p[2];
	int other = memfd_create("another-file-system", 0);

	if (dir < 0 || other < 0 || pipe(p))
		err(1, "open");
	reset();
	CHECK(ioctl(b, FICLONE, -1));
	CHECK(ioctl(-1, FICLONE, a));
	CHECK(ioctl(b, FICLONE, aw));
	CHECK(ioctl(br, FICLONE, a));
	CHECK(ioctl(bap, FICLONE, a));
	CHECK(ioctl(b, FICLONE, other));
	CHECK(ioctl(other, FICLONE, a));
	CHECK(ioctl(b, FICLONE, p[0]));
	CHECK(clone_range(b, aw, 0, P, 0));
	CHECK(clone_range(b, other, 0, P, 0));
	CHECK(clone_range(b, a, 0, P, 0));
	CHECK(dedupe(a, 0, P, 1, b, 0, 0, 0, 0));
	CHECK(dedupe(a, 0, P, 2, -1, 0, other, 0, 0));
	CHECK(dedupe(a, 0, 0, 1, b, 0, 0, 0, 0));
	CHECK(dedupe(a, 0, P, 0, b, 0, 0, 0, 0));
	CHECK(dedupe(a, 10 * P, P, 1, b, 0, 0, 0, 0));
	CHECK(dedupe(a, 0, P, 1, b, 0, 0, 0, 2));
	CHECK(dedupe(a, 0, P, 1, b, 0, 0, 0, 1));
	CHECK(dedupe(aw, 0, P, 1, b, 0, 0, 0, 0));
	CHECK(dedupe(a, 0, P, 200, b, 0, 0, 0, 0));
	CHECK(dedupe(dir, 0, P, 1, b, 0, 0, 0, 0));
	CHECK(dedupe(p[0], 0, P, 1, b, 0, 0, 0, 0));
	reset();
	view[0][7] = view[1][8] = 'z'; /* not flushed */
	DO(ioctl(b, FICLONE, a));
	if (ioctl(b, FICLONE, a) && errno == EOPNOTSUPP)
		return; /* the rest is about what this file system has not */
	view[0][7] = 'Z';
	state();
	CHECK(ioctl(a, FICLONE, a));
	reset();
	view[0][2 * P] = 'w';
	DO(clone_range(b, a, 2 * P, P, 0));
	DO(clone_range(b, a, 0, 0, 4 * P));
	DO(clone_range(b, a, 10 * P, 100, 20 * P));
	DO(clone_range(b, a, 10 * P, 0, 30 * P));
	DO(clone_range(b, a, A_SIZE, 0, 0));
	CHECK(clone_range(b, a, 1, P, 0));
	CHECK(clone_range(b, a, 0, P, 1));
	CHECK(clone_range(b, a, 0, 100, 0));
	CHECK(clone_range(b, a, 20 * P, 0, 0));
	CHECK(clone_range(b, a, 0, 20 * P, 0));
	DO(clone_range(a, a, 0, P, P));
	CHECK(clone_range(a, a, 0, 2 * P, P));
	reset();
	if (pwrite(b, bytes, (size_t)pread(a, bytes, A_SIZE, 0), 0) != A_SIZE)
		err(1, "pwrite");
	view[0][5] = view[1][5] = 'e'; /* equal, and not flushed */
	DO(dedupe(a, 0, P, 2, b, 0, br, 0, 0));
	view[1][P + 5]++;
	DO(dedupe(a, P, P, 2, b, P, b, 0, 0));
	DO(dedupe(a, 0, P, 2, -1, 0, other, 0, 0));
	DO(dedupe(a, 10 * P, 100, 1, b, 10 * P, 0, 0, 0));
	DO(dedupe(a, 3 * P, P, 2, b, 100, b, 90 * P, 0));
	DO(dedupe(a, 0, P, 1, b, 0, 0, 0, 2));
	DO(dedupe(a, 0, 0, 1, b, 0, 0, 0, 0));
	view[0][0] = 'n'; /* a shared block is not: the other file stays */
	state();
	close(dir);
	close(other);
	close(p[0]);
	close(p[1]);
}

static void do_seek(void)
{
	static const off_t at[] = {-1,    0,      1,      P,          5 * P,  5 * P + 9,
				   9 * P, 10 * P, 19 * P, 20 * P - 1, 20 * P, 30 * P};
	int left = -1;

	for (int pass = 0; pass < 3; pass++) {
		reset();
		if (ftruncate(a, 0) || ftruncate(a, 20 * P))
			err(1, "ftruncate");
		if (pass == 0) { /* data at 0, 5 and 9 to 10 */
			if (pwrite(a, "x", 1, 0) != 1 || pwrite(a, "x", 1, 5 * P + 7) != 1 ||
			    pwrite(a, "xx", 2, 10 * P - 1) != 2)
				err(1, "pwrite");
			fsync(a);
		} else if (pass == 1) { /* stored, not flushed */
			view[0][5 * P] = view[0][9 * P] = 'x';
		} else if (ftruncate(a, 0)) {
			err(1, "ftruncate");
		}
		printf("pass %d\n", pass);
		for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
			printf("at %ld: ", at[i]);
			CHECK(lseek(a, at[i], SEEK_DATA));
			printf("at %ld: ", at[i]);
			CHECK(lseek(a, at[i], SEEK_HOLE));
			printf("  now %ld\n", (long)lseek(a, 0, SEEK_CUR));
		}
		CHECK(lseek(a, -5, SEEK_END));
		CHECK(lseek(a, 5, SEEK_END));
		CHECK(lseek(a, 0, 9));
		CHECK(lseek(a, INT64_MAX, SEEK_END));
		CHECK(lseek(a, INT64_MIN, SEEK_END));
		lseek(a, 50, SEEK_SET);
		CHECK(ioctl(a, FIONREAD, &left));
		printf("  left %d\n", left);
		CHECK(pread(a, bytes, 10, INT64_MAX - 9));
		CHECK(pwrite(a, bytes, 10, INT64_MAX - 9));
		CHECK(sync_file_range(a, INT64_MAX, 1, SYNC_FILE_RANGE_WRITE));
	}
}

static void do_limit(void)
{
	const struct rlimit most = {2 * P, RLIM_INFINITY};
	int p[2];

	if (pipe(p) || write(p[1], bytes, 100) != 100)
		err(1, "pipe");
	reset();
	signal(SIGXFSZ, on_xfsz);
	setrlimit(RLIMIT_FSIZE, &most); /* a is longer, b is not */
	DO(ftruncate(b, 2 * P));
	DO(ftruncate(b, 2 * P + 1));
	DO(ftruncate(a, 9 * P));
	DO(ftruncate(a, 11 * P));
	DO(truncate("b", 100));
	DO(fallocate(b, 0, 0, 2 * P + 1));
	DO(fallocate(a, 0, 0, 3 * P));
	DO(fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 5 * P));
	DO(posix_fallocate(b, 0, 5 * P));
	AT(0, 2 * P - 10, copy_file_range(a, &off_in, b, &off_out, 100, 0));
	AT(0, 2 * P, copy_file_range(a, &off_in, b, &off_out, 100, 0));
	AT(0, 3 * P, copy_file_range(a, &off_in, b, &off_out, 0, 0));
	lseek(b, 2 * P - 10, SEEK_SET);
	AT(0, 0, sendfile(b, a, &off_in, 100));
	AT(0, 0, sendfile(b, a, &off_in, 100));
	AT(0, 2 * P - 10, splice(p[0], NULL, b, &off_out, 20, 0));
	AT(0, 2 * P, splice(p[0], NULL, b, &off_out, 20, 0));
	CHECK(drain(p[0])); /* nothing of it is lost */
	DO(clone_range(b, a, 0, P, 0));
	close(p[0]);
	close(p[1]);
}

/* The first n pages of it, as mincore has them. */
static void resident(void *p, int n)
{
	unsigned char v[64];

	CHECK(mincore(p, (size_t)n * P, v));
	for (int i = 0; i < n; i++)
		printf("%d", v[i] & 1);
	printf("\n");
}

/* What is read from elsewhere, and has no place to go, stays where it is. */
static void no_room(char *s, char *readonly)
{
	int u = memfd_create("elsewhere", 0), p[2];
	struct iovec v = {bytes, 8};

	if (u < 0 || pipe(p) || write(u, bytes, 5000) != 5000 || write(p[1], "precious", 8) != 8)
		err(1, "memfd or pipe");
	reset();
	lseek(u, 0, SEEK_SET);
	CHECK(read(u, s + 11 * P - 100, 300));
	CHECK(lseek(u, 0, SEEK_CUR));
	CHECK(read(u, s + 11 * P, 300));
	CHECK(read(u, readonly, 300));
	CHECK(lseek(u, 0, SEEK_CUR));
	CHECK(read(p[0], s + 11 * P, 8));
	CHECK(read(p[0], readonly, 8));
	CHECK(read(p[0], bytes, 100));
	CHECK(preadv2(a, &v, 1, 0, RWF_DSYNC));
	CHECK(pread(aw, bytes, 8, -1));
	CHECK(pwrite(ar, bytes, 8, -1));
	close(u);
	close(p[0]);
	close(p[1]);
}

static void do_advice(void)
{
	static const int with[] = {MADV_NORMAL,   MADV_RANDOM,        MADV_SEQUENTIAL,
				   MADV_WILLNEED, MADV_DONTNEED,      MADV_FREE,
				   MADV_REMOVE,   MADV_DONTFORK,      MADV_DOFORK,
				   MADV_HUGEPAGE, MADV_NOHUGEPAGE,    MADV_DONTDUMP,
				   MADV_DODUMP,   MADV_WIPEONFORK,    MADV_COLD,
				   MADV_PAGEOUT,  MADV_POPULATE_READ, MADV_POPULATE_WRITE,
				   9999};
	char *s, *t, *pv;

	reset();
	s = mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0); /* EOF is in page 10 */
	pv = mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, a, 0);
	t = mmap(NULL, 16 * P, PROT_READ, MAP_SHARED, ar, 0);
	if (s == MAP_FAILED || t == MAP_FAILED || pv == MAP_FAILED)
		err(1, "mmap");
	for (size_t i = 0; i < sizeof(with) / sizeof(with[0]); i++) {
		printf("advice %d\n", with[i]);
		reset();
		s[0]++;
		pv[P] = 'p';
		DO(madvise(s, 4 * P, with[i]));
		DO(madvise(s, 0, with[i]));
		DO(madvise(s, 1, with[i]));
		DO(madvise(s + 1, P, with[i]));
		DO(madvise(s, SIZE_MAX, with[i]));
		DO(madvise(s, 16 * P, with[i]));
		DO(madvise(pv, 3 * P, with[i]));
		DO(madvise(t, P, with[i]));
		printf("  %x %x %x\n", s[0] & 0xff, pv[P] & 0xff, t[2 * P] & 0xff);
		pv[P] = 'p';
	}
	CHECK(posix_madvise(s, P, 99));
	no_room(s, t);
	CHECK(posix_madvise(s, P, POSIX_MADV_WILLNEED));
	CHECK(posix_madvise(s, P, POSIX_MADV_DONTNEED));
	CHECK(posix_madvise(s + 1, P, POSIX_MADV_SEQUENTIAL));
	reset();
	resident(s, 16);
	CHECK(mincore(s + 1, P, NULL));
	CHECK(mincore(s, 0, NULL));
	CHECK(mincore(s, P, (unsigned char *)8));
	/* Where vec is a mapping of a file, too. */
	CHECK(mincore(s, 8 * P, (unsigned char *)view[1]));
	state();
	/* Rights, and gaps. */
	mprotect(s, P, PROT_READ);
	CHECK(madvise(s, 2 * P, MADV_POPULATE_WRITE));
	CHECK(madvise(s, 2 * P, MADV_POPULATE_READ));
	DO(madvise(s, P, MADV_REMOVE));
	mprotect(s, P, PROT_NONE);
	CHECK(madvise(s, P, MADV_POPULATE_READ));
	DO(madvise(s, 2 * P, MADV_REMOVE));
	munmap(s + 4 * P, P);
	CHECK(madvise(s + 3 * P, 3 * P, MADV_WILLNEED));
	CHECK(madvise(s + 3 * P, 3 * P, MADV_POPULATE_READ));
	CHECK(madvise(s + 3 * P, 3 * P, MADV_DONTNEED));
	DO(madvise(s + 3 * P, 3 * P, MADV_REMOVE));
	CHECK(mincore(s + 3 * P, 3 * P, (unsigned char *)bytes));
	/* Not all of it is of the file. */
	mmap(s + 4 * P, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	s[4 * P] = 'n';
	CHECK(madvise(s + 3 * P, 3 * P, MADV_WILLNEED));
	CHECK(madvise(s + 3 * P, 3 * P, MADV_POPULATE_WRITE));
	DO(madvise(s + 3 * P, 3 * P, MADV_REMOVE));
	CHECK(madvise(s + 3 * P, 3 * P, MADV_DONTNEED));
	printf("  %x %x\n", s[4 * P] & 0xff, s[5 * P] & 0xff);
	munmap(s, 16 * P);
	munmap(t, 16 * P);
	munmap(pv, 16 * P);
}

/* Others' mappings come and go while all that there is is locked. */
static _Atomic bool churning;

static void *churn(void *arg)
{
	char *p;

	while (atomic_load(&churning))
		for (int i = 0; i < 20; i++) {
			p = mmap(NULL, (size_t)(2 + i) * P, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			munmap(p, (size_t)(2 + i) * P);
		}
	return arg;
}

static int lock_all_often(void)
{
	pthread_t t[2];
	int failed = 0;

	atomic_store(&churning, true);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&t[i], NULL, churn, NULL))
			errx(1, "pthread_create");
	for (int i = 0; i < 100; i++) {
		failed += mlockall(MCL_CURRENT) != 0;
		munlockall();
	}
	atomic_store(&churning, false);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	return failed;
}

static void do_lock(void)
{
	char *s, *pv;

	reset();
	s = mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
	pv = mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, a, 0);
	if (s == MAP_FAILED || pv == MAP_FAILED)
		err(1, "mmap");
	CHECK(mlock(s, 4 * P));
	resident(s, 4);
	CHECK(madvise(s, P, MADV_DONTNEED));
	CHECK(madvise(s, P, MADV_DONTNEED_LOCKED));
	CHECK(madvise(s, P, MADV_REMOVE));
	s[5] = 'l';
	state();
	CHECK(munlock(s, 16 * P));
	DO(madvise(s, P, MADV_REMOVE));
	CHECK(mlock(s + 8 * P, 4 * P)); /* past EOF */
	CHECK(munlock(s, 16 * P));
	CHECK(mlock2(s, 16 * P, MLOCK_ONFAULT));
	CHECK(mlock2(s, P, 8));
	CHECK(munlock(s, 16 * P));
	CHECK(mlock(s + 5, 0));
	CHECK(mlock(pv, 2 * P));
	pv[0] = 'q';
	CHECK(madvise(pv, P, MADV_DONTNEED));
	printf("  %c\n", pv[0]);
	CHECK(munlock(pv, 2 * P));
	CHECK(madvise(pv, P, MADV_DONTNEED));
	printf("  %x\n", pv[0] & 0xff);
	/* Locked as far as to the gap: the advice fails, and what was stored is there still. */
	pv[0] = 'g';
	munmap(pv + 3 * P, 13 * P);
	CHECK(mlock(pv, 4 * P));
	CHECK(madvise(pv, P, MADV_DONTNEED));
	pv = mremap(pv, 3 * P, 16 * P, MREMAP_MAYMOVE);
	if (pv == MAP_FAILED)
		err(1, "mremap");
	printf("  %c\n", pv[0]);
	CHECK(munlock(pv, 16 * P));
	CHECK(lock_all_often());
	CHECK(mlockall(0));
	CHECK(mlockall(MCL_CURRENT));
	s[P] = 'c';
	state();
	CHECK(munlockall());
	CHECK(mlockall(MCL_CURRENT | MCL_FUTURE));
	{ /* made, moved and made longer meanwhile: no store is unknown, no hole filled */
		char *f = mmap(NULL, 2 * P, PROT_READ | PROT_WRITE, MAP_SHARED, b, 0);
		char *g =
		    mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, a, 0);

		f[0] = g[2 * P] = 'f';
		state();
		f = mremap(f, 2 * P, 20 * P, MREMAP_MAYMOVE);
		if (f == MAP_FAILED || g == MAP_FAILED)
			err(1, "mmap or mremap");
		f[1] = 'm';
		DO(ftruncate(b, 20 * P));
		f[19 * P] = 'e';
		state();
		CHECK(madvise(f, P, MADV_DONTNEED));
		munmap(f, 20 * P);
		/* Of a file that nobody has read so far: its bytes, not zeros. */
		int c = open("c", O_RDONLY);
		f = mmap(NULL, 10 * P, PROT_READ, MAP_SHARED, c, 0);
		if (f == MAP_FAILED || pread(c, bytes, 5 * P, 5 * P) != 5 * P)
			err(1, "c");
		printf("  c %lx %lx\n", sum(f, 10 * P), sum(bytes, 5 * P));
		munmap(f, 10 * P);
		close(c);
		munmap(g, 16 * P);
	}
	CHECK(munlockall());
	DO(madvise(s, P, MADV_DONTNEED));
	CHECK(mlockall(MCL_CURRENT | MCL_ONFAULT));
	s[2 * P] = 'o';
	state();
	CHECK(munlockall());
	munmap(s, 16 * P);
	munmap(pv, 16 * P);
}

enum { CHANGED = 64 * P, CHANGES = 300 };

static void changes(void)
{
	struct pollfd p = {.fd = 0, .events = POLLIN};

	for (uint64_t n = 1; poll(&p, 1, 0) == 0; n++) {
		memset(bytes, (int)n, CHANGED);
		memcpy(bytes, &n, sizeof(n));
		if (pwrite(a, bytes, CHANGED, 0) != CHANGED || fsync(a))
			err(1, "pwrite");
	}
}

/* Pages that others take away before the kernel has copied them are had all the same. */
static void populate(void)
{
	uint64_t n = 0;
	char *p;

	while (n < CHANGES) {
		if (pread(a, &n, sizeof(n), 0) < 0)
			err(1, "pread");
		for (int i = 0; n && i < 2; i++) {
			p = mmap(NULL, CHANGED, PROT_READ | PROT_WRITE, MAP_PRIVATE, a, 0);
			if (p == MAP_FAILED)
				err(1, "mmap");
			if (i ? madvise(p, CHANGED, MADV_POPULATE_WRITE) : mlock(p, CHANGED))
				err(1, "%s", i ? "MADV_POPULATE_WRITE" : "mlock");
			munmap(p, CHANGED);
		}
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} group[] = {{"falloc", do_falloc}, {"truncate", do_truncate}, {"copy", do_copy},
		     {"pipes", do_pipes},   {"clone", do_clone},       {"seek", do_seek},
		     {"limit", do_limit},   {"advice", do_advice},     {"lock", do_lock},
		     {"peer", peer},        {"changes", changes},      {"populate", populate}};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if ((argc != 3 && argc != 5) || chdir(argv[1]))
		errx(2, "usage: ranges DIR GROUP [TO FROM]");
	a = open("a", O_RDWR);
	b = open("b", O_RDWR);
	aw = open("a", O_WRONLY);
	ar = open("a", O_RDONLY);
	bap = open("b", O_RDWR | O_APPEND);
	br = open("b", O_RDONLY);
	if (a < 0 || b < 0 || aw < 0 || ar < 0 || bap < 0 || br < 0)
		err(1, "%s", argv[1]);
	view[0] = mmap(NULL, VIEW, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
	view[1] = mmap(NULL, VIEW, PROT_READ | PROT_WRITE, MAP_SHARED, b, 0);
	if (view[0] == MAP_FAILED || view[1] == MAP_FAILED)
		err(1, "mmap");
	if (argc == 5) {
		to = fopen(argv[3], "w");
		from = fopen(argv[4], "r");
		if (!to || !from)
			err(1, "the peer");
	}
	for (size_t i = 0; i < sizeof(group) / sizeof(group[0]); i++)
		if (!strcmp(argv[2], group[i].name)) {
			group[i].run();
			return 0;
		}
	errx(2, "no group %s", argv[2]);
}
