/* SPDX-License-Identifier: MIT */
/*
 * fds - descriptors of a volume in all the ways that they can be copied, closed, inherited and
 * handed to the kernel.
 *
 *	fds table FILE		dup, close_range, vfork and fork children; internal descriptors stay
 *	fds buffers FILE	system calls on other descriptors with buffers in a mapping of FILE
 *	fds race DIR SECONDS	threads that open, copy, close and fork; every read is of its own file
 *	fds readers FILE	processes and threads that share one position
 *
 * FILE must be there.  Prints what is wrong; the last line is "ok" if nothing is.
 */
#include <dlfcn.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Atomic int bad;

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			printf("line %d: not so: %s (errno %d)\n", __LINE__, #x, errno);           \
			if (++bad == 10)                                                           \
				exit(1);                                                           \
		}                                                                                  \
	} while (0)

static int (*managed)(int);

/* ---- table ---- */

/* NOLINTBEGIN(clang-analyzer-*): a vfork child that does what programs do is the point */
static void child_takes_over(int in, bool vforked)
{
	char *argv[] = {"cat", NULL};
	int status;
	pid_t pid = vforked ? vfork() : fork();

	if (pid == 0) {
		dup2(in, 0);
		close(in);
		close_range(3, ~0u, 0);
		execvp(argv[0], argv);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	CHECK(status == 0);
}

static void table(const char *file)
{
	int null = open("/dev/null", O_RDWR), fd = open(file, O_RDWR | O_TRUNC), out, saved, status;
	char b[8] = "";
	pid_t pid;

	CHECK(fd >= 0 && managed(fd) == 1 && managed(null) == 0 && managed(999) == -1);
	CHECK(write(fd, "hello\n", 6) == 6);

	/* A vfork child works on copies: nothing of it may show here. */
	pid = vfork();
	if (pid == 0) {
		dup2(null, fd);
		dup2(fd, 77);
		close(fd);
		close_range(3, ~0u, 0);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	CHECK(managed(fd) == 1 && managed(77) == -1);
	CHECK(pread(fd, b, 6, 0) == 6 && memcmp(b, "hello\n", 6) == 0);

	/* What an exec inherits is adopted: cat copies the file to another one of the volume. */
	saved = dup(1);
	out = open(file, O_WRONLY | O_APPEND);
	CHECK(out >= 0 && dup2(out, 1) == 1 && managed(1) == 1);
	for (int i = 0; i < 2; i++) {
		lseek(fd, 0, SEEK_SET);
		pid = fork(); /* reads 6 bytes, so that cat ends */
		if (pid == 0) {
			CHECK(read(fd, b, 6) == 6 && write(1, b, 6) == 6);
			_exit(bad != 0);
		}
		waitpid(pid, &status, 0);
		CHECK(status == 0);
	}
	CHECK(dup2(saved, 1) == 1 && managed(1) == 0);
	close(out);
	CHECK(lseek(fd, 0, SEEK_END) == 18);
	for (int i = 0; i < 2; i++) {
		lseek(fd, 12, SEEK_SET);
		fflush(stdout);
		child_takes_over(fd, i);
		CHECK(lseek(fd, 0, SEEK_CUR) == 18);
	}

	/* Copies. */
	out = dup(fd);
	CHECK(managed(out) == 1 && dup2(null, out) == out && managed(out) == 0);
	CHECK(dup3(fd, out, O_CLOEXEC) == out && managed(out) == 1);
	CHECK(dup3(out, out, 0) == -1 && errno == EINVAL && managed(out) == 1);
	CHECK(dup2(out, out) == out && managed(out) == 1);
	CHECK(dup2(999, out) == -1 && errno == EBADF && managed(out) == 1);
	close(out);
	CHECK(managed(out) == -1);
	out = fcntl(fd, F_DUPFD, 100);
	CHECK(out >= 100 && managed(out) == 1);
	close(out);

	/* A program that closes whatever it finds does not get at ours. */
	for (int i = 3; i < 1024; i++)
		if (i != fd)
			close(i);
	for (int i = 500; i < 600; i++) {
		out = dup2(0, i);
		CHECK(out == i || errno == EBADF);
		if (out == i)
			close(i);
	}
	CHECK(pread(fd, b, 6, 6) == 6 && memcmp(b, "hello\n", 6) == 0);
	close_range((unsigned)fd + 1, ~0u, 0);
	CHECK(ftruncate(fd, 3) == 0 && pread(fd, b, 6, 0) == 3);
	closefrom(3);
	CHECK(managed(fd) == -1);
	fd = open(file, O_RDONLY);
	CHECK(managed(fd) == 1 && read(fd, b, 6) == 3 && read(fd, b, 6) == 0);
}

/* NOLINTEND(clang-analyzer-*) */

/* ---- buffers ---- */

enum { LEN = 65536 };

static void buffers(const char *file)
{
	int fd = open(file, O_RDWR | O_TRUNC), pp[2], st[2], dg[2];
	static char ref[LEN], t[LEN];
	struct iovec v[2];
	struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
	char *volatile low = (char *)8, *volatile high = (char *)-5000;
	char *p;

	for (int i = 0; i < LEN; i++)
		ref[i] = (char)(i * 7 + i / 256);
	CHECK(write(fd, ref, LEN) == LEN);
	p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED && pipe(pp) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, st) == 0 &&
	      socketpair(AF_UNIX, SOCK_DGRAM, 0, dg) == 0);
/* No page has a PTE: the kernel would fail with EFAULT. */
#define BARE (madvise(p, LEN, MADV_DONTNEED) == 0)
	CHECK(BARE && write(pp[1], p + 100, 20000) == 20000);
	CHECK(read(pp[0], t, 20000) == 20000 && memcmp(t, ref + 100, 20000) == 0);
	CHECK(write(pp[1], ref, 5000) == 5000 && BARE && read(pp[0], p + 8000, 5000) == 5000);
	CHECK(memcmp(p + 8000, ref, 5000) == 0);
	CHECK(BARE && send(dg[0], p + 30000, 9000, 0) == 9000);
	CHECK(BARE && recv(dg[1], p + 50000, 9000, 0) == 9000);
	CHECK(memcmp(p + 50000, ref + 30000, 9000) == 0);
	v[0] = (struct iovec){p + 4000, 200};
	v[1] = (struct iovec){t, 50};
	CHECK(BARE && sendmsg(st[0], &m, 0) == 250);
	v[0].iov_base = t + 100;
	v[1].iov_base = p + 12000;
	CHECK(BARE && recvmsg(st[1], &m, 0) == 250 && memcmp(t + 100, p + 4000, 200) == 0);
	CHECK(BARE && sendto(st[0], p, 10, 0, NULL, 0) == 10);
	CHECK(BARE && recvfrom(st[1], p + 20000, 100, 0, NULL, NULL) == 10);
	CHECK(memcmp(p, p + 20000, 10) == 0);
	/* The file's own bytes, through its own mapping. */
	CHECK(BARE && pread(fd, p + 60000, 4000, 100) == 4000 &&
	      memcmp(p + 60000, p + 100, 4000) == 0);
	CHECK(BARE && pwrite(fd, p + 100, 4000, 40000) == 4000 &&
	      memcmp(p + 40000, p + 100, 4000) == 0);
	CHECK(pread(fd, t, 4000, 40000) == 4000 && memcmp(t, p + 100, 4000) == 0);
#undef BARE
	/* Errors, as the kernel has them. */
	CHECK(pread(fd, low, 10, 0) == -1 && errno == EFAULT);
	CHECK(write(fd, high, 10) == -1 && errno == EFAULT);
	CHECK(pread(fd, t, 10, -1) == -1 && errno == EINVAL);
	CHECK(lseek(fd, 0, SEEK_HOLE) == LEN && lseek(fd, 100, SEEK_DATA) == 100);
	CHECK(lseek(fd, LEN, SEEK_DATA) == -1 && errno == ENXIO);
}

/* ---- race ---- */

enum { KINDS = 16 };
static const char *dir;
static _Atomic int stop;

static void *racer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	unsigned char b[4096];
	char name[256];

	while (!stop && !bad) {
		unsigned kind = (unsigned)rand_r(&seed) % KINDS;
		int fd, to, pp[2] = {-1, -1};

		if (kind % 4 == 3) { /* a pipe, so that numbers change their kind */
			CHECK(pipe(pp) == 0);
			memset(b, (int)kind, sizeof(b));
			CHECK(write(pp[1], b, sizeof(b)) == sizeof(b));
			fd = pp[0];
		} else {
			snprintf(name, sizeof(name), "%s/race-%u", dir, kind);
			fd = open(name, rand_r(&seed) % 2 ? O_RDWR : O_RDONLY);
		}
		CHECK(fd >= 0);
		if (rand_r(&seed) % 4 == 0) {
			to = rand_r(&seed) % 2 ? dup(fd) : dup2(fd, open("/dev/null", O_RDONLY));
			close(fd);
			fd = to;
		}
		if (rand_r(&seed) % 100 == 0) {
			int status;
			pid_t pid = fork();

			if (pid == 0)
				_exit(pp[0] < 0 && (pread(fd, b, 1, 0) != 1 || b[0] != kind));
			CHECK(waitpid(pid, &status, 0) == pid && status == 0);
		}
		CHECK((pp[0] < 0 ? pread(fd, b, sizeof(b), 0) : read(fd, b, sizeof(b))) ==
		      sizeof(b));
		CHECK(b[0] == kind && b[4095] == kind);
		close(fd);
		if (pp[1] >= 0)
			close(pp[1]);
	}
	return NULL;
}

static void race(const char *seconds)
{
	pthread_t t[6];
	char name[256], b[4096];

	for (unsigned k = 0; k < KINDS; k++) {
		snprintf(name, sizeof(name), "%s/race-%u", dir, k);
		int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
		memset(b, (int)k, sizeof(b));
		CHECK(fd >= 0 && write(fd, b, sizeof(b)) == sizeof(b) && close(fd) == 0);
	}
	for (uintptr_t i = 0; i < 6; i++)
		pthread_create(&t[i], NULL, racer, (void *)(i + 1));
	for (int i = atoi(seconds) * 20; i > 0 && !bad; i--)
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	stop = 1;
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
}

/* ---- readers ---- */

enum { RECORDS = 4000, RECORD = 64 };
static _Atomic int *seen;
static int shared;

static void *reader(void *arg)
{
	char b[RECORD];
	ssize_t n;

	(void)arg;
	while ((n = read(shared, b, RECORD)) > 0) {
		CHECK(n == RECORD);
		seen[atoi(b)]++;
	}
	CHECK(n == 0);
	return NULL;
}

static void *writer(void *arg)
{
	char b[RECORD] = "";

	for (int i = 0; i < RECORDS / 4; i++) {
		snprintf(b, sizeof(b), "%d", (int)(intptr_t)arg * RECORDS / 4 + i);
		CHECK(write(shared, b, RECORD) == RECORD);
	}
	return NULL;
}

/* Two threads and two processes at once. */
static void four(void *(*what)(void *))
{
	pthread_t t[2];
	pid_t pid[2];
	int status;

	fflush(stdout);
	for (intptr_t i = 0; i < 2; i++)
		if ((pid[i] = fork()) == 0) {
			what((void *)i);
			fflush(stdout);
			_exit(bad != 0);
		}
	for (intptr_t i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, what, (void *)(i + 2));
	for (int i = 0; i < 2; i++) {
		pthread_join(t[i], NULL);
		CHECK(waitpid(pid[i], &status, 0) == pid[i] && status == 0);
	}
}

static void readers(const char *file)
{
	static const int mode[] = {0, O_APPEND};

	seen = mmap(NULL, RECORDS * sizeof(*seen), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int k = 0; k < 2; k++) {
		memset((void *)seen, 0, RECORDS * sizeof(*seen));
		shared = open(file, O_RDWR | O_TRUNC | mode[k]);
		four(writer);
		CHECK(lseek(shared, 0, SEEK_END) == RECORDS * RECORD);
		lseek(shared, 0, SEEK_SET);
		four(reader);
		for (int i = 0; i < RECORDS; i++)
			if (seen[i] != 1) {
				printf("record %d was read %d times\n", i, seen[i]);
				bad++;
				break;
			}
		CHECK(lseek(shared, 0, SEEK_CUR) == RECORDS * RECORD);
		close(shared);
	}
}

int main(int argc, char **argv)
{
	managed = (int (*)(int))dlsym(RTLD_DEFAULT, "refault_managed");
	if (argc == 3 && managed && !strcmp(argv[1], "table"))
		table(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "buffers"))
		buffers(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "race"))
		dir = argv[2], race(argv[3]);
	else if (argc == 3 && !strcmp(argv[1], "readers"))
		readers(argv[2]);
	else
		errx(2, "usage: fds table|buffers|readers FILE, fds race DIR SECONDS; preloaded");
	if (!bad)
		puts("ok");
	return bad != 0;
}
