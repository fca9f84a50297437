/* SPDX-License-Identifier: MIT */
/*
 * buffers - calls that give the kernel a buffer in a mapping of FILE; fds.c has read, write, send, recv.
 *
 *	buffers calls FILE	each of them, no page of the mapping being there
 *	buffers stripped FILE	the same again and again, while a thread takes page after page away
 *	buffers left		calls that are left, by a jump out of a signal handler and by cancellation,
 *				keep neither memory nor the files FILE (a line on stdin) and FILE.cold, of
 *				which nothing is cached yet; it says what is next and waits for a line
 *
 * Prints what is wrong; the last line is "ok" if nothing is.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, LEN = 262144, HALF = LEN / 2, BIG = 100000, MSG = 3000 };

static char *p; /* the mapping: the first half is as ref, calls store into the second */
static char ref[LEN], t[LEN];
static int fd, dg[2];
static _Atomic int stop;

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			printf("line %d: not so: %s (errno %d)\n", __LINE__, #x, errno);           \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

/* No page has a PTE: the kernel would fail with EFAULT. */
#define BARE CHECK(madvise(p, LEN, MADV_DONTNEED) == 0)

static void start(const char *file)
{
	fd = open(file, O_RDWR | O_TRUNC);
	for (int i = 0; i < LEN; i++)
		ref[i] = (char)(i * 7 + i / 256);
	CHECK(write(fd, ref, LEN) == LEN);
	p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED && socketpair(AF_UNIX, SOCK_DGRAM, 0, dg) == 0);
}

/* ---- each ---- */

/* Three messages of two pieces each; the second one's are not the mapping's. */
static void datagrams(void)
{
	struct mmsghdr out[3] = {0}, in[3] = {0};
	struct iovec v[6], w[6];
	int sent = 0, got = 0, r;

	for (int i = 0; i < 3; i++) {
		char *from = i == 1 ? ref : p, *to = i == 1 ? t : p + HALF;

		v[2 * i] = (struct iovec){from + i * 20000, 5000};
		v[2 * i + 1] = (struct iovec){from + i * 20000 + 9000, 100};
		w[2 * i] = (struct iovec){to + i * 20000, 100};
		w[2 * i + 1] = (struct iovec){to + i * 20000 + 9000, 8000};
		out[i].msg_hdr = (struct msghdr){.msg_iov = v + 2L * i, .msg_iovlen = 2};
		in[i].msg_hdr = (struct msghdr){.msg_iov = w + 2L * i, .msg_iovlen = 2};
	}
	BARE;
	while (sent < 3) { /* fewer if a page goes in between, never none */
		r = sendmmsg(dg[0], out + sent, 3 - (unsigned)sent, 0);
		CHECK(r > 0);
		sent += r;
	}
	BARE;
	while (got < 3) {
		r = recvmmsg(dg[1], in + got, 3 - (unsigned)got, MSG_DONTWAIT, NULL);
		CHECK(r > 0);
		got += r;
	}
	for (int i = 0; i < 3; i++) {
		const char *to = i == 1 ? t : p + HALF;

		CHECK(out[i].msg_len == 5100 && in[i].msg_len == 5100 && !in[i].msg_hdr.msg_flags);
		CHECK(memcmp(to + i * 20000, ref + i * 20000, 100) == 0);
		CHECK(memcmp(to + i * 20000 + 9000, ref + i * 20000 + 100, 4900) == 0);
		CHECK(memcmp(to + i * 20000 + 9000 + 4900, ref + i * 20000 + 9000, 100) == 0);
	}
	CHECK(recvmmsg(dg[1], in, 3, MSG_DONTWAIT, NULL) == -1 && errno == EAGAIN);
}

/* By a thread's own number, which the kernel takes as well. */
static void *by_thread(void *arg)
{
	struct iovec v = {t, 10}, far = {p, 10};

	CHECK(process_vm_readv((pid_t)syscall(SYS_gettid), &v, 1, &far, 1, 0) == 10);
	return arg;
}

/* n bytes, maybe in several steps: a page may go in between. */
static void vm(bool store, char *here, char *there, size_t n)
{
	ssize_t r;

	for (size_t k = 0; k < n; k += (size_t)r) {
		struct iovec v = {here + k, n - k}, far = {there + k, n - k};

		r = store ? process_vm_writev(getpid(), &v, 1, &far, 1, 0)
			  : process_vm_readv(getpid(), &v, 1, &far, 1, 0);
		CHECK(r > 0);
	}
}

static void processes(void)
{
	char *volatile bad = (char *)8;
	struct iovec v = {t, 10}, far = {bad, 10};
	pthread_t th;

	BARE;
	CHECK(pthread_create(&th, NULL, by_thread, NULL) == 0 && pthread_join(th, NULL) == 0);
	memset(t, 0, LEN);
	BARE;
	vm(false, t, p, 9000);
	CHECK(memcmp(t, ref, 9000) == 0);
	BARE;
	vm(false, p + HALF, ref + 100, 9000);
	CHECK(memcmp(p + HALF, ref + 100, 9000) == 0);
	BARE;
	vm(false, p + HALF, p + 200, 9000);
	CHECK(memcmp(p + HALF, ref + 200, 9000) == 0);
	BARE;
	vm(true, p, t, 8000);
	BARE;
	vm(true, ref + 300, p + HALF, 8000);
	BARE;
	vm(true, p + 400, p + HALF + 20000, 8000);
	CHECK(memcmp(t, ref, 8000) == 0 && memcmp(p + HALF, ref + 300, 8000) == 0);
	CHECK(memcmp(p + HALF + 20000, ref + 400, 8000) == 0);
	/* What is stored past the page tables is written back, too. */
	CHECK(fsync(fd) == 0 && pread(fd, t, 8000, HALF) == 8000 && !memcmp(t, ref + 300, 8000));
	CHECK(process_vm_readv(getpid(), &v, 1, &far, 1, 0) == -1 && errno == EFAULT);
	far.iov_base = p;
	CHECK(process_vm_writev(getpid(), &v, LONG_MAX, &far, 1, 0) == -1 && errno == EINVAL);
}

static void queues(void)
{
	const struct mq_attr a = {.mq_maxmsg = 4, .mq_msgsize = MSG};
	const long type = 5;
	char name[32];
	mqd_t q;
	int id;

	snprintf(name, sizeof(name), "/refault-%d", (int)getpid());
	q = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &a);
	if (q >= 0) { /* not every container has them */
		mq_unlink(name);
		BARE;
		CHECK(mq_send(q, p + 4000, MSG, 0) == 0);
		BARE;
		CHECK(mq_receive(q, p + HALF, MSG, NULL) == MSG);
		CHECK(memcmp(p + HALF, ref + 4000, MSG) == 0);
		CHECK(mq_receive(q, p, 10, NULL) == -1 && errno == EMSGSIZE);
		mq_close(q);
	}
	id = msgget(IPC_PRIVATE, 0600);
	if (id >= 0) {
		memcpy(p + HALF, &type, sizeof(type));
		memcpy(p + HALF + 8, ref, MSG);
		BARE;
		CHECK(msgsnd(id, p + HALF, MSG, 0) == 0);
		BARE;
		CHECK(msgrcv(id, p + HALF + MSG, MSG, 0, IPC_NOWAIT) == MSG);
		msgctl(id, IPC_RMID, NULL);
		CHECK(memcmp(p + HALF + MSG, &type, sizeof(type)) == 0);
		CHECK(memcmp(p + HALF + MSG + 8, ref, MSG) == 0);
	}
}

static void chance(void)
{
	const char zero[64] = "";

	memset(p + HALF, 0, 20000);
	BARE;
	CHECK(getrandom(p + HALF, 5000, 0) == 5000);
	BARE;
	CHECK(getentropy(p + HALF + 6000, 200) == 0);
	BARE;
	arc4random_buf(p + HALF + 8000, 5000);
	CHECK(memcmp(p + HALF + 5000 - 64, zero, 64) != 0 && !memcmp(p + HALF + 5000, zero, 64));
	CHECK(memcmp(p + HALF + 6200 - 64, zero, 64) != 0 && !memcmp(p + HALF + 6200, zero, 64));
	CHECK(memcmp(p + HALF + 13000 - 64, zero, 64) != 0 && !memcmp(p + HALF + 13000, zero, 64));
}

/* stdio hands large blocks straight to the kernel. */
static void streams(void)
{
	FILE *f = tmpfile();
	char got[32] = "";

	CHECK(f);
	BARE;
	CHECK(fwrite(p + 7, 1, BIG, f) == BIG && fflush(f) == 0);
	rewind(f);
	CHECK(fread(t, 1, BIG, f) == BIG && memcmp(t, ref + 7, BIG) == 0);
	rewind(f);
	BARE;
	CHECK(fread(p + HALF, 1, BIG, f) == BIG && memcmp(p + HALF, ref + 7, BIG) == 0);
	fclose(f);

	CHECK((f = popen("wc -c > /dev/null", "w")) != NULL);
	BARE;
	CHECK(fwrite(p, 1, BIG, f) == BIG && pclose(f) == 0);
	CHECK((f = popen("head -c 100000 /dev/zero; echo end", "r")) != NULL);
	BARE;
	CHECK(fread(p + HALF, 1, BIG, f) == BIG && fgets(got, sizeof(got), f));
	CHECK(strcmp(got, "end\n") == 0 && pclose(f) == 0 && !p[HALF] && !p[HALF + BIG - 1]);
}

/* The second page of a mapping lies behind the end of the file. */
static void no_place(void)
{
	char *q = mmap(NULL, 2L * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, LEN - PAGE);
	struct iovec v = {q, 2L * PAGE}, w[3] = {{p, 10}, {q + PAGE, 10}, {p + HALF, 10}};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct mmsghdr in[3] = {0};
	int st[2];

	CHECK(q != MAP_FAILED && socketpair(AF_UNIX, SOCK_STREAM, 0, st) == 0);
	for (int how = 0; how < 4; how++) { /* of a stream the rest is there for the next call */
		CHECK(write(st[0], ref, 6000) == 6000);
		CHECK((how == 0   ? recv(st[1], q, 2L * PAGE, 0)
		       : how == 1 ? recvfrom(st[1], q, 2L * PAGE, 0, NULL, NULL)
		       : how == 2 ? recvmsg(st[1], &m, 0)
				  : read(st[1], q, 2L * PAGE)) == PAGE);
		CHECK(recv(st[1], q + PAGE, 10, 0) == -1 && errno == EFAULT);
		CHECK(recv(st[1], t, LEN, MSG_DONTWAIT) == 6000 - PAGE);
		CHECK(memcmp(q, ref, PAGE) == 0 && memcmp(t, ref + PAGE, 6000 - PAGE) == 0);
	}
	for (int i = 0; i < 3; i++) { /* of three messages the one in the middle is lost, no more */
		CHECK(send(dg[0], ref + i, 10, 0) == 10);
		in[i].msg_hdr = (struct msghdr){.msg_iov = w + i, .msg_iovlen = 1};
	}
	CHECK(recvmmsg(dg[1], in, 3, 0, NULL) == 1 && memcmp(p, ref, 10) == 0);
	CHECK(recvmmsg(dg[1], in + 1, 2, 0, NULL) == -1 && errno == EFAULT);
	CHECK(recvmmsg(dg[1], in + 2, 1, 0, NULL) == 1 && memcmp(p + HALF, ref + 2, 10) == 0);
	/* Nor where it may not be stored to.  What the kernel has to say first it says. */
	CHECK(mprotect(q, PAGE, PROT_READ) == 0 && send(dg[0], ref, 10, 0) == 10);
	CHECK(recv(dg[1], q, 10, 0) == -1 && errno == EFAULT);
	CHECK(getrandom(q, 10, 0) == -1 && errno == EFAULT);
	CHECK(getentropy(q, 10) == -1 && errno == EFAULT);
	CHECK(recv(dg[1], q, 10, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(recv(st[1], q, 10, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(recv(fd, q, 10, 0) == -1 && errno == ENOTSOCK);
	CHECK(shutdown(st[0], SHUT_WR) == 0 && read(st[1], q, 10) == 0);
	munmap(q, 2L * PAGE);
	close(st[0]);
	close(st[1]);
}

static void calls(void)
{
	datagrams();
	processes();
	queues();
	chance();
	streams();
	no_place();
}

/* ---- while pages go ---- */

static void *stripper(void *arg)
{
	unsigned seed = 1;

	while (!stop)
		madvise(p + (size_t)rand_r(&seed) % (LEN / PAGE) * PAGE, PAGE, MADV_DONTNEED);
	return arg;
}

static void stripped(void)
{
	pthread_t th;

	CHECK(pthread_create(&th, NULL, stripper, NULL) == 0);
	for (int i = 0; i < 300; i++) {
		datagrams();
		processes();
		queues();
	}
	for (int i = 0; i < 10; i++)
		streams();
	stop = 1;
	pthread_join(th, NULL);
}

/* ---- left ---- */

static struct {
	pthread_t t;
	_Atomic pid_t tid;
	void (*call)(void);
	sigjmp_buf out;
	int pipe[2], full[2], cold;
	char *map;
} at;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(at.out, 1);
}

static void *in_call(void *arg)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	if (sigsetjmp(at.out, 1))
		return arg;
	at.tid = (pid_t)syscall(SYS_gettid);
	at.call();
	puts("the call was not left");
	exit(1);
}

/* The system call that thread sleeps in; others: it runs. */
static long sleeps_in(pid_t tid)
{
	char path[64], buf[64];
	long nr = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)tid);
	f = fopen(path, "r");
	CHECK(f);
	if (fgets(buf, sizeof(buf), f))
		sscanf(buf, "%ld", &nr);
	fclose(f);
	return nr;
}

static void leave(void (*call)(void), long nr, bool cancel)
{
	at.call = call;
	at.tid = 0;
	CHECK(pthread_create(&at.t, NULL, in_call, NULL) == 0);
	while (!at.tid || sleeps_in(at.tid) != nr)
		sched_yield();
	if (cancel)
		pthread_cancel(at.t);
	else
		pthread_kill(at.t, SIGUSR1);
	pthread_join(at.t, NULL);
}

static void receive(void)
{
	recv(dg[1], p, HALF - 1000, 0);
}
static void fill(void)
{
	splice(at.pipe[0], NULL, fd, NULL, HALF, 0);
}
static void drain(void)
{
	off_t off = 0;

	splice(fd, &off, at.full[1], NULL, PAGE, 0);
}
static void read_cold(void)
{
	pread(at.cold, t, 100, 0);
}
static void write_cold(void)
{
	write(at.pipe[1], at.map, 100);
}

static void left_once(bool stopped, bool cancel)
{
	if (!stopped) {
		leave(receive, SYS_recvfrom, cancel);
		leave(fill, SYS_tee, cancel);
		leave(drain, SYS_vmsplice, cancel);
	} else {
		leave(read_cold, SYS_futex, cancel);
		leave(write_cold, SYS_futex, cancel);
	}
}

/* KiB */
static long memory(void)
{
	char line[128];
	long n = 0;
	FILE *f = fopen("/proc/self/status", "r");

	CHECK(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmSize: %ld", &n) == 1)
			break;
	fclose(f);
	return n;
}

static void say(const char *what)
{
	char line[16];

	puts(what);
	fflush(stdout);
	CHECK(fgets(line, sizeof(line), stdin));
}

/* What is held is no more after ROUNDS of them than after the first. */
static void left(const char *file)
{
	enum { ROUNDS = 30 };
	char cold[300];
	long before = 0;

	snprintf(cold, sizeof(cold), "%s.cold", file);
	at.cold = open(cold, O_RDONLY);
	at.map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, at.cold, 0);
	CHECK(at.map != MAP_FAILED && pipe(at.pipe) == 0);
	CHECK(pipe2(at.full, O_NONBLOCK) == 0);
	while (write(at.full[1], ref, PAGE) == PAGE)
		;
	CHECK(fcntl(at.full[1], F_SETFL, 0) == 0);
	signal(SIGUSR1, jump);
	for (int stopped = 0; stopped < 2; stopped++) {
		for (int i = 0; i < ROUNDS; i++) {
			left_once(stopped, i % 2);
			if (i == 1)
				before = memory();
		}
		if (memory() - before > 512) {
			printf("%ld KiB more\n", memory() - before);
			exit(1);
		}
		say(stopped ? "go on" : "stop the server");
	}
	munmap(p, LEN);
	munmap(at.map, PAGE);
	close(at.cold);
	close(fd);
	say("all closed");
}

int main(int argc, char **argv)
{
	static char file[256];

	if (argc == 2 && !strcmp(argv[1], "left")) {
		CHECK(fgets(file, sizeof(file), stdin));
		file[strcspn(file, "\n")] = 0;
		start(file);
		left(file);
	} else if (argc == 3 && !strcmp(argv[1], "calls")) {
		start(argv[2]);
		calls();
	} else if (argc == 3 && !strcmp(argv[1], "stripped")) {
		start(argv[2]);
		stripped();
	} else {
		errx(2, "usage: buffers calls|stripped FILE, buffers left");
	}
	puts("ok");
	return 0;
}
