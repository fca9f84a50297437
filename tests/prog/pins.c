/* SPDX-License-Identifier: MIT */
/*
 * pins - pages that I/O uses while others change the file.
 *
 *	pins obey		a command a line on stdin, an answer a line on stdout, as worker's
 *	pins source FILE LEN	make what `load` reads from
 *	pins load FILE SOURCE ROUNDS POLICY SEED
 *	pins look FILE		what `load` may have left there
 *	pins flushed FILE SOURCE ROUNDS
 *
 * obey, on one file and one mapping of it; bytes are hex, answers are "ok", a value, or "err ENAME":
 *	open PATH LEN r|rw|p	map LEN bytes: read-only, shared, private
 *	pin OFF LEN [w] | unpin OFF LEN | policy WORD [MS THEN]
 *	truncate LEN | punch OFF LEN | fsync | size | unmap [OFF LEN]
 *	load OFF LEN | store OFF HEX	by the program; "sigbus"
 *	kload OFF LEN | kstore OFF HEX	by the kernel, past the library: a raw system call on a pipe
 *	register OFF LEN		with io_uring, as a NIC's driver would; then
 *	dload OFF LEN | dstore OFF HEX	by that: it finds the pages without looking at the page tables
 *	direct PATH OFF LEN		pread with O_DIRECT of the same bytes of PATH
 *	self OFF LEN TO			pread of this very file into the mapping at TO
 *	gift OFF LEN | drain LEN	vmsplice to a pipe, read what the pipe holds
 *	handler OFF LEN TO		block in write(2) of OFF, LEN to a full pipe; in a signal handler
 *					truncate to TO; says what that did
 *	block OFF LEN | unblock		a thread writes OFF, LEN to a full pipe; "ok" when it is in the call
 *	jump OFF LEN			write to a full pipe; a signal handler jumps out of it
 *	jumps N				of N writes, wherever that is
 *	cancel OFF LEN			the same, by a thread that is cancelled in it
 *	fork COMMAND...	| pid | exit
 *
 * load: threads read SOURCE into a mapping of FILE (O_DIRECT), pin and unpin it, and gift it to
 * pipes, while one truncates, punches and extends it under that policy.  A word of its first half is 0
 * or its own offset's, always, everywhere.  Nothing is cut off that is pinned, but by `sequester`.
 *
 * flushed: reads SOURCE into a mapping of FILE (O_DIRECT) while another thread flushes that all the time.
 * After the next flush the server has what the mapping has.
 */
#include <dlfcn.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <refault/refault.h>
#include <refault/state.h>

enum { PAGE = 4096, LINE = 1 << 17 };

static int (*pin)(void *, size_t, unsigned);
static int (*unpin)(void *, size_t);
static int (*pins)(int, int, int);

__attribute__((noreturn)) static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static int policy(const char *name, int ms, const char *then)
{
	static const char *const names[] = {"default", "wait", "fail", "sequester"};
	int p = -1, t = 0;

	for (int i = 0; i < 4; i++) {
		p = strcmp(name, names[i]) == 0 ? i : p;
		t = strcmp(then, names[i]) == 0 ? i : t;
	}
	return pins(p, ms, t);
}

/* ---- obey ---- */

static struct {
	int fd, pipe[2];
	char *p;
	size_t len;
	/* io_uring */
	int ring;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_mask;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
} me = {.fd = -1, .ring = -1};
static sigjmp_buf on_bus;
static char line[LINE];
static unsigned char bytes[LINE / 2];

static void bus(int sig)
{
	(void)sig;
	siglongjmp(on_bus, 1);
}

static size_t unhex(const char *hex)
{
	size_t n = 0;
	unsigned v;

	while (hex[2 * n] && hex[2 * n + 1] && sscanf(hex + 2 * n, "%2x", &v) == 1)
		bytes[n++] = (unsigned char)v;
	return n;
}

static void say(long r)
{
	if (r < 0)
		printf("err %s\n", strerrorname_np(errno));
	else
		puts("ok");
}

static void say_bytes(const void *p, long n)
{
	if (n < 0) {
		say(n);
		return;
	}
	for (long i = 0; i < n; i++)
		printf("%02x", ((const unsigned char *)p)[i]);
	puts(n ? "" : "eof");
}

static long ring_make(void *addr, size_t len)
{
	struct io_uring_params par = {0};
	struct iovec iov = {addr, len};
	char *sq, *cq;

	me.ring = (int)syscall(SYS_io_uring_setup, 2, &par);
	if (me.ring < 0)
		return -1;
	sq = mmap(NULL, par.sq_off.array + par.sq_entries * sizeof(unsigned),
		  PROT_READ | PROT_WRITE, MAP_SHARED, me.ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, par.cq_off.cqes + par.cq_entries * sizeof(struct io_uring_cqe),
		  PROT_READ | PROT_WRITE, MAP_SHARED, me.ring, IORING_OFF_CQ_RING);
	me.sqe = mmap(NULL, par.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
		      MAP_SHARED, me.ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || me.sqe == MAP_FAILED)
		return -1;
	me.sq_tail = (unsigned *)(void *)(sq + par.sq_off.tail);
	me.sq_mask = (unsigned *)(void *)(sq + par.sq_off.ring_mask);
	me.sq_array = (unsigned *)(void *)(sq + par.sq_off.array);
	me.cq_head = (unsigned *)(void *)(cq + par.cq_off.head);
	me.cq_mask = (unsigned *)(void *)(cq + par.cq_off.ring_mask);
	me.cqe = (struct io_uring_cqe *)(void *)(cq + par.cq_off.cqes);
	return syscall(SYS_io_uring_register, me.ring, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* One READ_FIXED or WRITE_FIXED between the pipe and the registered memory, to its end. */
static long ring_io(int op, int fd, void *addr, size_t len)
{
	unsigned tail, i, head;
	long r;

	if (!me.sq_tail) {
		errno = EBADF;
		return -1;
	}
	tail = *me.sq_tail;
	i = tail & *me.sq_mask;

	me.sqe[i] = (struct io_uring_sqe){
	    .opcode = (uint8_t)op, .fd = fd, .addr = (uintptr_t)addr, .len = (uint32_t)len};
	me.sq_array[i] = i;
	__atomic_store_n(me.sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, me.ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -1;
	head = *me.cq_head;
	r = me.cqe[head & *me.cq_mask].res;
	__atomic_store_n(me.cq_head, head + 1, __ATOMIC_RELEASE);
	if (r < 0)
		errno = (int)-r;
	return r < 0 ? -1 : r;
}

static int full[2];
static void fill_pipe(void)
{
	if (pipe(full) || fcntl(full[1], F_SETPIPE_SZ, PAGE) < 0 ||
	    write(full[1], line, PAGE) != PAGE)
		die("a full pipe");
}

static long cut_to;
static int cut_errno;

static void cut(int sig)
{
	char buf[PAGE];

	(void)sig;
	cut_errno = ftruncate(me.fd, cut_to) ? errno : 0;
	if (read(full[0], buf, sizeof(buf)) < 0) /* now the write can end */
		_exit(1);
}

static void in_handler(char *from, size_t len, long to)
{
	struct sigaction sa = {.sa_handler = cut, .sa_flags = SA_RESTART};
	struct itimerspec soon = {.it_value = {.tv_nsec = 50000000}};
	timer_t t;
	long r;

	fill_pipe();
	if (sigaction(SIGALRM, &sa, NULL) || timer_create(CLOCK_MONOTONIC, NULL, &t) ||
	    timer_settime(t, 0, &soon, NULL))
		die("a timer");
	cut_to = to;
	cut_errno = -1;
	r = write(full[1], from, len);
	timer_delete(t);
	close(full[0]);
	close(full[1]);
	printf("%s, %ld\n",
	       cut_errno < 0 ? "nothing"
	       : cut_errno   ? strerrorname_np(cut_errno)
			     : "ok",
	       r);
}

static sigjmp_buf out;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

/* Writes that take pins, n of them left by a jump at any instruction at which a signal can come. */
static void jumps(long n)
{
	static volatile sig_atomic_t left;
	static uint32_t rnd;
	const int fd = open("/dev/null", O_WRONLY);
	struct iovec v[16];

	for (int i = 0; i < 16; i++)
		v[i] = (struct iovec){me.p + (i & 1) * 4096, 1};
	signal(SIGALRM, jump);
	for (left = (sig_atomic_t)n; left > 0; left--) {
		if (sigsetjmp(out, 1))
			continue;
		rnd = rnd * 1664525 + 1013904223;
		ualarm(20 + (rnd >> 16) % 100, 0);
		for (;;)
			if (writev(fd, v, 16) != 16)
				err(1, "writev");
	}
	close(fd);
}

static struct {
	pthread_t t;
	char *from;
	size_t len;
	_Atomic pid_t tid;
	ssize_t r;
} blocked;

static void *block(void *arg)
{
	(void)arg;
	atomic_store(&blocked.tid, (pid_t)syscall(SYS_gettid));
	blocked.r = write(full[1], blocked.from, blocked.len);
	return NULL;
}

/* Thread `tid` sleeps in write(2). */
static bool in_write(pid_t tid)
{
	char path[64], buf[64];
	long nr = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)tid);
	f = fopen(path, "r");
	if (!f)
		die(path);
	if (fgets(buf, sizeof(buf), f))
		sscanf(buf, "%ld", &nr);
	fclose(f);
	return nr == SYS_write || nr == SYS_writev;
}

static void start_blocked(char *from, size_t len)
{
	fill_pipe();
	blocked.from = from;
	blocked.len = len;
	atomic_store(&blocked.tid, 0);
	pthread_create(&blocked.t, NULL, block, NULL);
	while (!atomic_load(&blocked.tid) || !in_write(blocked.tid))
		sched_yield();
}

static long open_map(const char *path, size_t len, const char *how)
{
	const bool write = strcmp(how, "r") != 0;
	void *p;

	me.fd = open(path, write ? O_RDWR : O_RDONLY);
	if (me.fd < 0)
		return -1;
	p = mmap(NULL, len, PROT_READ | (write ? PROT_WRITE : 0),
		 *how == 'p' ? MAP_PRIVATE : MAP_SHARED, me.fd, 0);
	me.p = p == MAP_FAILED ? NULL : p;
	me.len = len;
	return p == MAP_FAILED ? -1 : 0;
}

static long direct(const char *path, long off, size_t len)
{
	int fd = open(path, O_RDONLY | O_DIRECT);
	long r = fd < 0 ? -1 : pread(fd, me.p + off, len, off);

	if (fd >= 0)
		close(fd);
	return r;
}

static bool obey(char *s);

static void in_child(char *s)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		obey(s);
		fflush(stdout);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		puts("err child");
}

/* A program that scribbles in its own shared memory: its pins cover all that a file can have. */
static int scribble(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	struct rf_proc *p = NULL;
	unsigned long from, to;
	char at[512];

	while (f && fgets(at, sizeof(at), f))
		if (strstr(at, "refault-proc") && sscanf(at, "%lx-%lx", &from, &to) == 2 &&
		    to - from >= sizeof(*p))
			p = (struct rf_proc *)from;
	if (f)
		fclose(f);
	for (unsigned i = 0; p && i < p->pins_used; i++)
		p->pin[i].npages = UINT64_MAX;
	errno = ENOENT;
	return p ? 0 : -1;
}

static bool obey(char *s)
{
	char cmd[16] = "", path[4096], word[16] = "", *arg, *hex = strrchr(s, ' ');
	volatile unsigned char *at;
	long a = 0, b = 0, c = 0;
	size_t n = 0;

	if (sscanf(s, "%15s", cmd) != 1)
		return true;
	arg = s + strlen(cmd);
	sscanf(arg, "%ld %ld %ld", &a, &b, &c);
	hex = hex ? hex + 1 : arg;
	at = (volatile unsigned char *)me.p + a;
	if (strcmp(cmd, "exit") == 0)
		return false;
	if (!me.p && strcmp(cmd, "open") != 0) {
		puts("err nothing is open");
		return true;
	}
	if (strcmp(cmd, "pid") == 0) {
		printf("%d\n", getpid());
	} else if (strcmp(cmd, "fork") == 0) {
		in_child(arg + 1);
	} else if (strcmp(cmd, "open") == 0 &&
		   sscanf(arg, "%4095s %ld %15s", path, &b, word) == 3) {
		say(open_map(path, (size_t)b, word));
	} else if (strcmp(cmd, "pin") == 0) {
		say(pin(me.p + a, (size_t)b, hex[0] == 'w' ? REFAULT_PIN_WRITE : 0));
	} else if (strcmp(cmd, "unpin") == 0) {
		say(unpin(me.p + a, (size_t)b));
	} else if (strcmp(cmd, "scribble") == 0) {
		say(scribble());
	} else if (strcmp(cmd, "policy") == 0) {
		a = 0;
		sscanf(arg, "%15s %ld %15s", path, &a, word);
		say(policy(path, (int)a, word));
	} else if (strcmp(cmd, "truncate") == 0) {
		say(ftruncate(me.fd, a));
	} else if (strcmp(cmd, "punch") == 0) {
		say(fallocate(me.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a, b));
	} else if (strcmp(cmd, "fsync") == 0) {
		say(fsync(me.fd));
	} else if (strcmp(cmd, "size") == 0) {
		printf("%ld\n", (long)lseek(me.fd, 0, SEEK_END));
	} else if (strcmp(cmd, "unmap") == 0) {
		say(munmap(me.p + a, b ? (size_t)b : me.len));
	} else if (strcmp(cmd, "load") == 0) {
		if (sigsetjmp(on_bus, 1)) {
			puts("sigbus");
			return true;
		}
		for (long i = 0; i < b; i++)
			bytes[i] = at[i];
		say_bytes(bytes, b);
	} else if (strcmp(cmd, "store") == 0) {
		n = unhex(hex);
		if (sigsetjmp(on_bus, 1)) {
			puts("sigbus");
			return true;
		}
		for (size_t i = 0; i < n; i++)
			at[i] = bytes[i];
		puts("ok");
	} else if (strcmp(cmd, "kload") == 0) {
		c = syscall(SYS_write, me.pipe[1], at, b);
		say_bytes(bytes, c < 0 ? c : read(me.pipe[0], bytes, (size_t)b));
	} else if (strcmp(cmd, "kstore") == 0) {
		n = unhex(hex);
		c = write(me.pipe[1], bytes, n);
		c = syscall(SYS_read, me.pipe[0], at, n);
		if (c < 0 && read(me.pipe[0], bytes, n) < 0)
			c = -1;
		say(c);
	} else if (strcmp(cmd, "register") == 0) {
		say(ring_make(me.p + a, (size_t)b));
	} else if (strcmp(cmd, "dload") == 0) {
		c = ring_io(IORING_OP_WRITE_FIXED, me.pipe[1], me.p + a, (size_t)b);
		say_bytes(bytes, c < 0 ? c : read(me.pipe[0], bytes, (size_t)b));
	} else if (strcmp(cmd, "dstore") == 0) {
		n = unhex(hex);
		c = write(me.pipe[1], bytes, n);
		say(ring_io(IORING_OP_READ_FIXED, me.pipe[0], me.p + a, n));
	} else if (strcmp(cmd, "direct") == 0 && sscanf(arg, "%4095s %ld %ld", path, &a, &b) == 3) {
		c = direct(path, a, (size_t)b);
		if (c < 0)
			say(c);
		else
			printf("%ld\n", c);
	} else if (strcmp(cmd, "self") == 0) {
		printf("%ld\n", (long)pread(me.fd, me.p + c, (size_t)b, a));
	} else if (strcmp(cmd, "gift") == 0) {
		say(vmsplice(me.pipe[1], &(struct iovec){me.p + a, (size_t)b}, 1, 0));
	} else if (strcmp(cmd, "drain") == 0) {
		say_bytes(bytes, read(me.pipe[0], bytes, (size_t)a));
	} else if (strcmp(cmd, "handler") == 0) {
		in_handler(me.p + a, (size_t)b, c);
	} else if (strcmp(cmd, "block") == 0) {
		start_blocked(me.p + a, (size_t)b);
		puts("ok");
	} else if (strcmp(cmd, "unblock") == 0) {
		if (read(full[0], bytes, PAGE) != PAGE)
			die("read of a full pipe");
		pthread_join(blocked.t, NULL);
		printf("%ld\n", (long)blocked.r);
	} else if (strcmp(cmd, "cancel") == 0) {
		start_blocked(me.p + a, (size_t)b);
		pthread_cancel(blocked.t);
		pthread_join(blocked.t, NULL);
		puts("ok");
	} else if (strcmp(cmd, "jump") == 0) {
		fill_pipe();
		signal(SIGALRM, jump);
		if (sigsetjmp(out, 1) == 0) {
			ualarm(50000, 0);
			puts(write(full[1], me.p + a, (size_t)b) < 0 ? "err" : "it ended");
		} else {
			puts("ok");
		}
	} else if (strcmp(cmd, "jumps") == 0) {
		jumps(a);
		puts("ok");
	} else {
		puts("err unknown command");
	}
	return true;
}

static int obey_all(void)
{
	signal(SIGBUS, bus);
	if (pipe(me.pipe))
		die("pipe");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!obey(line))
			break;
		fflush(stdout);
	}
	return 0;
}

/* ---- load ---- */

static uint64_t word_at(uint64_t off)
{
	return (off + 8) * 0x9e3779b97f4a7c15u;
}

static int source(const char *path, size_t len)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	uint64_t w[PAGE / 8];

	for (size_t off = 0; off < len; off += PAGE) {
		for (size_t i = 0; i < PAGE / 8; i++)
			w[i] = word_at(off + i * 8);
		if (write(fd, w, PAGE) != PAGE)
			die(path);
	}
	return close(fd);
}

static struct {
	const char *file, *source, *policy;
	size_t len;
	char *map;
	unsigned rounds;
	uint64_t seed;
	_Atomic bool stop;
	_Atomic unsigned wrong, reads, pins, gifts, cuts, busy;
} all;

static __thread sigjmp_buf load_bus;
static __thread volatile sig_atomic_t guarded;

static void load_on_bus(int sig)
{
	if (guarded)
		siglongjmp(load_bus, 1);
	signal(sig, SIG_DFL);
}

static void wrong(const char *who, size_t off, uint64_t w)
{
	if (atomic_fetch_add(&all.wrong, 1) < 5)
		printf("%s: at %zu stands %016lx, neither 0 nor what belongs there\n", who, off,
		       (unsigned long)w);
	atomic_store(&all.stop, true);
}

static void check(const char *who, const void *buf, size_t off, size_t len)
{
	const char *p = buf;
	uint64_t w;

	for (size_t i = 0; i + 8 <= len; i += 8) {
		memcpy(&w, p + i, 8);
		if (w && w != word_at(off + i))
			wrong(who, off + i, w);
	}
}

/* Some pages. */
static size_t some(uint64_t *state, size_t *len)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	size_t pages = all.len / PAGE, n = (*state >> 33) % 8 + 1,
	       at = (*state >> 40) % (pages - n);

	*len = n * PAGE;
	return at * PAGE;
}

/* Loads what may be cut off meanwhile. */
static void glance(size_t off, size_t len)
{
	uint64_t buf[8 * PAGE / 8];
	const volatile uint64_t *from = (const volatile uint64_t *)(void *)(all.map + off);

	guarded = 1;
	if (sigsetjmp(load_bus, 1) == 0) {
		for (size_t i = 0; i < len / 8; i++)
			buf[i] = from[i];
		guarded = 0;
		check("load", buf, off, len);
	}
	guarded = 0;
}

/* Pinned, and nobody sequesters: what is stored there is not cut off. */
static void stay(size_t off)
{
	volatile uint64_t *w = (volatile uint64_t *)(void *)(all.map + off);

	if (strstr(all.policy, "sequester"))
		return;
	*w = word_at(off);
	for (int i = 0; i < 20; i++)
		sched_yield();
	if (*w != word_at(off))
		wrong("pinned", off, *w);
}

static void *reader(void *arg)
{
	uint64_t state = all.seed * 3 + (uintptr_t)arg;
	int fd = open(all.source, O_RDONLY | O_DIRECT);
	size_t len, off;

	while (fd >= 0 && !atomic_load(&all.stop)) {
		off = some(&state, &len);
		ssize_t r = pread(fd, all.map + off, len, (off_t)off);
		if (r > 0)
			atomic_fetch_add(&all.reads, 1);
		else if (r < 0 && errno != EFAULT) /* it was cut off */
			die("O_DIRECT pread");
		glance(off, len);
	}
	if (fd < 0)
		die("O_DIRECT open");
	close(fd);
	return NULL;
}

static void *pinner(void *arg)
{
	uint64_t state = all.seed * 5 + (uintptr_t)arg;
	size_t len, off;

	while (!atomic_load(&all.stop)) {
		off = some(&state, &len);
		if (pin(all.map + off, len, REFAULT_PIN_WRITE) == 0) {
			atomic_fetch_add(&all.pins, 1);
			glance(off, len);
			stay(off);
			if (unpin(all.map + off, len))
				die("refault_unpin");
		} else if (errno != EFAULT) {
			die("refault_pin");
		}
	}
	return NULL;
}

static void *gifter(void *arg)
{
	uint64_t state = all.seed * 7 + (uintptr_t)arg;
	char buf[8 * PAGE];
	size_t len, off;
	int p[2];

	if (pipe(p))
		die("pipe");
	while (!atomic_load(&all.stop)) {
		off = some(&state, &len);
		ssize_t r = vmsplice(p[1], &(struct iovec){all.map + off, len}, 1, 0), n = 0;

		if (r < 0 && errno != EFAULT)
			die("vmsplice");
		while (r > n) {
			ssize_t k = read(p[0], buf + n, (size_t)(r - n));
			if (k <= 0)
				die("read of the pipe");
			n += k;
		}
		if (r > 0) {
			atomic_fetch_add(&all.gifts, 1);
			check("pipe", buf, off, (size_t)r & ~7u);
		}
	}
	return NULL;
}

/* Reads of the file into its own mapping: the half of it that nobody looks at. */
static void *selfish(void *arg)
{
	uint64_t state = all.seed * 11 + (uintptr_t)arg;
	int fd = open(all.file, O_RDWR);
	size_t len, off;

	while (!atomic_load(&all.stop)) {
		off = some(&state, &len);
		if (pread(fd, all.map + all.len + off, len, (off_t)off) < 0 && errno != EFAULT)
			die("pread of the mapped file");
	}
	close(fd);
	return NULL;
}

static int cutter(void)
{
	uint64_t state = all.seed * 13;
	int fd = open(all.file, O_RDWR), r;
	char name[16], then[16] = "";
	int ms = 0;
	size_t len, off;

	sscanf(all.policy, "%15[^:]:%d:%15s", name, &ms, then);
	if (policy(name, ms, then))
		die("refault_pins");
	for (unsigned i = 0; i < all.rounds && !atomic_load(&all.stop); i++) {
		off = some(&state, &len);
		if (state >> 50 & 1)
			r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
				      (off_t)len);
		else
			r = ftruncate(fd, (off_t)off);
		if (r && errno == ETXTBSY && !strstr(all.policy, "sequester"))
			atomic_fetch_add(&all.busy, 1);
		else if (r)
			die("truncate or punch");
		else
			atomic_fetch_add(&all.cuts, 1);
		if (ftruncate(fd, (off_t)all.len * 2))
			die("extending");
	}
	return close(fd);
}

static int load(char **a)
{
	pthread_t t[5];
	struct stat st;
	int fd = open(a[0], O_RDWR), rc;

	if (fd < 0 || fstat(fd, &st))
		die(a[0]);
	all.file = a[0];
	all.source = a[1];
	all.rounds = (unsigned)atoi(a[2]);
	all.policy = a[3];
	all.seed = strtoull(a[4], NULL, 0);
	all.len = (size_t)st.st_size / 2;
	all.map = mmap(NULL, all.len * 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (all.map == MAP_FAILED)
		die("mmap");
	signal(SIGBUS, load_on_bus);
	pthread_create(&t[0], NULL, reader, (void *)1);
	pthread_create(&t[1], NULL, reader, (void *)2);
	pthread_create(&t[2], NULL, pinner, (void *)3);
	pthread_create(&t[3], NULL, gifter, (void *)4);
	pthread_create(&t[4], NULL, selfish, (void *)5);
	rc = cutter();
	atomic_store(&all.stop, true);
	for (int i = 0; i < 5; i++)
		pthread_join(t[i], NULL);
	if (fsync(fd))
		die("fsync");
	close(fd);
	printf("%u direct reads, %u pins, %u gifts, %u cuts, %u refused\n", all.reads, all.pins,
	       all.gifts, all.cuts, all.busy);
	if (!all.reads || !all.pins || !all.gifts || all.cuts + all.busy < all.rounds) {
		puts("not all of them did anything");
		return 1;
	}
	return rc || all.wrong;
}

/* ---- flushed ---- */

static void *flusher(void *arg)
{
	while (!atomic_load(&all.stop))
		if (fsync(*(int *)arg))
			die("fsync");
	return NULL;
}

static int flushed(char **a)
{
	enum { LEN = 64 * PAGE };
	int fd = open(a[0], O_RDWR), src = open(a[1], O_RDONLY | O_DIRECT), raw;
	static char there[LEN];
	pthread_t t;
	char *p;

	/* Past the library: this host has the server's own directory underneath. */
	raw = (int)syscall(SYS_openat, AT_FDCWD, a[0], O_RDONLY);
	p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || src < 0 || raw < 0 || p == MAP_FAILED)
		die("open and mmap");
	pthread_create(&t, NULL, flusher, &fd);
	for (int i = 0; i < atoi(a[2]) && !all.wrong; i++) {
		/* Another part of the source every time, so that every byte changes. */
		if (pread(src, p, LEN, (off_t)(i % 3) * LEN) != LEN || fsync(fd))
			die("pread and fsync");
		if (syscall(SYS_pread64, raw, there, LEN, 0L) != LEN)
			die("pread of what the server has");
		for (size_t off = 0; off < LEN && !all.wrong; off += PAGE)
			if (memcmp(p + off, there + off, PAGE) != 0) {
				printf("round %d: the server lacks what was read into page %zu\n",
				       i, off / PAGE);
				all.wrong++;
			}
	}
	atomic_store(&all.stop, true);
	pthread_join(t, NULL);
	return all.wrong != 0;
}

static int look(const char *path)
{
	int fd = open(path, O_RDONLY);
	char buf[PAGE];
	size_t off = 0, half = (size_t)lseek(fd, 0, SEEK_END) / 2;
	ssize_t r;

	if (fd < 0 || lseek(fd, 0, SEEK_SET))
		die(path);
	while ((r = read(fd, buf, PAGE)) > 0 && off < half) {
		check(path, buf, off, (size_t)r);
		off += (size_t)r;
	}
	close(fd);
	return r < 0 || all.wrong;
}

int main(int argc, char **argv)
{
	const char *cmd = argc > 1 ? argv[1] : "";

	*(void **)&pin = dlsym(RTLD_DEFAULT, "refault_pin");
	*(void **)&unpin = dlsym(RTLD_DEFAULT, "refault_unpin");
	*(void **)&pins = dlsym(RTLD_DEFAULT, "refault_pins");
	if (strcmp(cmd, "source") == 0 && argc == 4)
		return source(argv[2], (size_t)atol(argv[3]));
	if (strcmp(cmd, "look") == 0 && argc == 3)
		return look(argv[2]);
	if (!pin || !unpin || !pins) {
		puts("librefault.so is not loaded");
		return 2;
	}
	if (strcmp(cmd, "obey") == 0 && argc == 2)
		return obey_all();
	if (strcmp(cmd, "flushed") == 0 && argc == 5)
		return flushed(argv + 2);
	if (strcmp(cmd, "load") == 0 && argc == 7)
		return load(argv + 2);
	puts("usage: see the head of pins.c");
	return 2;
}
