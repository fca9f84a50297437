/* SPDX-License-Identifier: MIT */
/*
 * crash_test.c - kill -9 of the server, and what the next one makes of it: stores whole or not at
 * all, nothing done twice, nobody passed over who may still believe in a promise.
 *
 * Where it matters at which point the server dies, the point is made certain: a seccomp filter that
 * turns one system call (a write at DEADLY, a truncation to DEADLY, a copy of DEADLY bytes, a clone)
 * into SIGKILL, or an engine that kills the server right after a change.
 */
#include "srv_own.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define DEADLY 0x11000 /* an offset, a size */

/* ---- servers that die ---- */

static struct store_ops ops;
static enum { AT_CALL, AFTER_CHANGE } when;
static char errors[100]; /* where its stderr goes */

static void die(int sig)
{
	(void)sig;
	kill(getpid(), SIGKILL);
}

/* The system call nr, if argument number arg has that value. */
static void die_at(unsigned nr, unsigned arg, unsigned value)
{
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 3),
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
		     (unsigned)offsetof(struct seccomp_data, args) + 8 * arg),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(code) / sizeof(*code), .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		_exit(9);
}

/* In the server, before it has other threads. */
static int deadly_open(const char *where, struct store_vol **vol, const char **why)
{
	int err = store_dir.open(where, vol, why);

	if (when == AT_CALL) {
		signal(SIGSYS, die);
		die_at(SYS_pwrite64, 3, DEADLY);
		die_at(SYS_ftruncate, 1, DEADLY);
		die_at(SYS_fallocate, 2, DEADLY);
		die_at(SYS_copy_file_range, 4, DEADLY);
		die_at(SYS_ioctl, 1, (unsigned)FICLONERANGE);
	}
	return err;
}

#define DEADLY_CALL(name)                                                                          \
	static int deadly_##name(struct store_file *file, const struct store_cred *cred,           \
				 struct store_change *ch, bool nowait)                             \
	{                                                                                          \
		int err = store_dir.name(file, cred, ch, nowait);                                  \
                                                                                                   \
		if (!err && when == AFTER_CHANGE)                                                  \
			die(0);                                                                    \
		return err;                                                                        \
	}
DEADLY_CALL(store)
DEADLY_CALL(append)
DEADLY_CALL(resize)
DEADLY_CALL(fallocate)

static int deadly_remap(struct store_file *file, const struct store_cred *cred,
			struct store_file *src, const struct store_cred *src_cred,
			struct store_change *ch, bool nowait)
{
	int err = store_dir.remap(file, cred, src, src_cred, ch, nowait);

	if (!err && when == AFTER_CHANGE)
		die(0);
	return err;
}

static void start_deadly(int how)
{
	when = how;
	ops = store_dir;
	ops.open = deadly_open;
	ops.store = deadly_store;
	ops.append = deadly_append;
	ops.resize = deadly_resize;
	ops.fallocate = deadly_fallocate;
	ops.remap = deadly_remap;
	config.ops = &ops;
	start_server();
}

/* It died as it should; the next one lives. */
static void next_server(void)
{
	int status;

	cr_assert(eq(int, waitpid(server, &status, 0), server));
	cr_assert(eq(int, status, SIGKILL));
	config.ops = NULL;
	start_server();
}

static void setup_crash(void)
{
	setup_at("/tmp");
	config.lease_ms = 10000; /* nothing here waits for one unless it says so */
	snprintf(errors, sizeof(errors), "%s/errors", base);
}

TestSuite(crash, .init = setup_crash, .fini = teardown, .timeout = 300);

/* ---- clients ---- */

static void send_store(struct tc *tc, const rf_fid *fid, uint64_t request, rf_range *r, u_int n,
		       const void *data, bool extend)
{
	struct rf_msg m = {.body.type = RF_STORE};
	rf_store *s = &m.body.rf_body_u.store;
	size_t len = 0;
	u_int i;

	for (i = 0; i < n; i++)
		len += r[i].len;
	s->file.volume = tc->volume;
	s->file.fid = *fid;
	s->file.path = "f";
	s->request = request;
	s->may_extend = extend;
	s->ranges.ranges_len = n;
	s->ranges.ranges_val = r;
	tc_send(tc, &m, data, len);
}

static void send_append(struct tc *tc, const rf_fid *fid, uint64_t request, const char *text)
{
	struct rf_msg m = {.body.type = RF_APPEND};
	rf_append *a = &m.body.rf_body_u.append;

	a->file.volume = tc->volume;
	a->file.fid = *fid;
	a->file.path = "f";
	a->request = request;
	tc_send(tc, &m, text, strlen(text));
}

static void send_size(struct tc *tc, const rf_fid *fid, uint64_t request, uint64_t size)
{
	struct rf_msg m = {.body.type = RF_SET_SIZE};
	rf_set_size *s = &m.body.rf_body_u.set_size;

	s->file.volume = tc->volume;
	s->file.fid = *fid;
	s->file.path = "f";
	s->request = request;
	s->size = size;
	tc_send(tc, &m, NULL, 0);
}

static void send_punch(struct tc *tc, const rf_fid *fid, uint64_t request, uint64_t off,
		       uint64_t len)
{
	struct rf_msg m = {.body.type = RF_FALLOC};
	rf_falloc *p = &m.body.rf_body_u.falloc;

	p->file.volume = tc->volume;
	p->file.fid = *fid;
	p->file.path = "f";
	p->request = request;
	p->range.off = off;
	p->mode = PUNCH;
	p->range.len = len;
	tc_send(tc, &m, NULL, 0);
}

/* The answers to a change of whoever else is not there. */
static void done(struct tc *tc)
{
	cr_assert(eq(int, reply(tc), RF_APPLIED));
	cr_assert(eq(int, reply(tc), RF_RELEASED));
}

/* Connect as who; the memory that the server says it has. */
static uint64_t back(struct tc *tc, int who)
{
	tc_open(tc, sock, who);
	return tc->msg.body.rf_body_u.volume_r.memory;
}

/* What is in the file: its size. */
static off_t content(unsigned char *buf, size_t cap)
{
	int fd = open(at("f"), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, cap);

	close(fd);
	cr_assert(n >= 0);
	return n;
}

static void fill(size_t size, char c)
{
	char *text = malloc(size + 1);

	memset(text, c, size);
	text[size] = 0;
	put_file("f", text);
	free(text);
}

/* ---- whole or not at all ---- */

enum { OLD_SIZE = DEADLY + 0x3000, BUF = 4 << 20 };
static rf_range three[3] = {{100, 9000}, {0x8000, 100}, {DEADLY, 0x5000}};

/* The third write of a store kills; what the next server finds, before anybody asks it: 'o' all of
 * it is as before, 'n' as after, 't' torn. */
static char killed_in_the_middle(void)
{
	unsigned char *buf = malloc(BUF), *data = malloc(BUF);
	size_t len = three[0].len + three[1].len + three[2].len, i, olds = 0;
	uint64_t memory;
	struct tc a;
	rf_status s;
	char found;
	off_t size;

	fill(OLD_SIZE, 'o');
	memset(data, 'n', len);
	start_deadly(AT_CALL);
	memory = back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_store(&a, &s.fid, 7, three, 3, data, true);
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	size = content(buf, BUF);
	for (i = 0; i < (size_t)size; i++)
		olds += buf[i] == 'o';
	found = olds == OLD_SIZE && size == OLD_SIZE                       ? 'o'
		: olds + len == DEADLY + 0x5000 && size == DEADLY + 0x5000 ? 'n'
									   : 't';
	/* The same again: it is done now. */
	cr_assert(eq(u64, back(&a, 1), memory));
	tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_store(&a, &s.fid, 7, three, 3, data, true);
	done(&a);
	size = content(buf, BUF);
	cr_assert(eq(i64, size, DEADLY + 0x5000));
	for (i = 0; i < (size_t)size; i++)
		cr_assert(
		    eq(int, buf[i],
		       (i >= 100 && i < 9100) || (i >= 0x8000 && i < 0x8000 + 100) || i >= DEADLY
			   ? 'n'
			   : 'o'),
		    "byte %zu", i);
	tc_close(&a);
	free(buf);
	free(data);
	return found;
}

Test(crash, store_is_undone)
{
	cr_assert(eq(chr, killed_in_the_middle(), 'o'));
}

/* The same without undo records: it does happen. */
Test(crash, store_is_torn_without_undo)
{
	setenv("REFAULT_DISABLE", "other,undo", 1);
	cr_assert(eq(chr, killed_in_the_middle(), 't'));
	unsetenv("REFAULT_DISABLE");
}

/* A peer that may write and not read: the server reads the old bytes for itself. */
Test(crash, store_without_the_right_to_read)
{
	unsigned char *buf = malloc(BUF), *data = calloc(1, BUF);
	struct tc a;
	rf_status s;
	off_t size;

	if (geteuid())
		cr_skip("needs root");
	fill(OLD_SIZE, 'o');
	cr_assert(not(chmod(at("f"), 0222)));
	start_deadly(AT_CALL);
	cr_assert(not(seteuid(65534)));
	back(&a, 1);
	cr_assert(not(seteuid(0)));
	s = tc_find(&a, "f", RF_LK_WRITE);
	send_store(&a, &s.fid, 7, three, 3, data, false);
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	size = content(buf, BUF);
	cr_assert(eq(i64, size, OLD_SIZE));
	cr_assert(buf[0] == 'o' && !memcmp(buf, buf + 1, OLD_SIZE - 1));
	free(buf);
	free(data);
}

/* Large stores, killed at any time. */
static void killed_at_any_time(const char *where)
{
	enum { N = 32, LEN = 32768, GAP = 3000, ROUNDS = 40 };
	unsigned char *buf = malloc(BUF), *data = malloc(BUF);
	int round, k, olds = 0, news = 0;
	uint64_t memory = 0, seen;
	rf_range r[N];
	unsigned seed;
	struct tc a;
	rf_status s;
	off_t size;
	unsigned char was = 'z', is;

	if (server)
		stop_server(SIGTERM);
	teardown();
	setup_at(where);
	config.lease_ms = 10000;
	getentropy(&seed, sizeof(seed));
	fprintf(stderr, "seed %u\n", seed);
	srand(seed);
	for (k = 0; k < N; k++) {
		r[k].off = (uint64_t)k * (LEN + GAP);
		r[k].len = LEN;
	}
	put_file("f", "");
	start_server();
	memory = back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	memset(data, was, N * LEN);
	send_store(&a, &s.fid, 1000, r, N, data, true);
	done(&a);
	for (round = 0; round < ROUNDS; round++, was = is) {
		size_t i, n = 0, o = 0;

		is = (unsigned char)('a' + round % 20);
		memset(data, is, N * LEN);
		send_store(&a, &s.fid, (uint64_t)round + 1, r, N, data, true);
		usleep((useconds_t)(rand() % 1500));
		stop_server(SIGKILL);
		tc_close(&a);
		start_server();
		size = content(buf, BUF);
		for (i = 0; i < (size_t)size; i++) {
			o += buf[i] == was;
			n += buf[i] == is;
		}
		if (o + n != N * LEN || (o && n))
			cr_fail("round %d: %zu bytes of before, %zu of the store", round, o, n);
		olds += !n;
		news += !o;
		seen = back(&a, 1);
		cr_assert(eq(u64, seen, memory));
		if (round % 2) /* found by the name that comes with the request, or before */
			tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
		send_store(&a, &s.fid, (uint64_t)round + 1, r, N, data, true);
		done(&a);
		content(buf, BUF);
		for (k = 0; k < N; k++)
			cr_assert(buf[r[k].off] == is && !memcmp(buf + r[k].off, data, LEN));
	}
	fprintf(stderr, "%d times old, %d times new\n", olds, news);
	tc_close(&a);
	free(buf);
	free(data);
}

Test(crash, kill_at_any_time)
{
	killed_at_any_time("/tmp");
}

Test(crash, kill_at_any_time_tmpfs)
{
	killed_at_any_time("/dev/shm");
}

/* ---- once ---- */

/* Applied, and the server dies before it could remember or say so. */
Test(crash, append_is_done_once)
{
	struct tc a;
	rf_status s;

	put_file("f", "old");
	start_deadly(AFTER_CHANGE);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_append(&a, &s.fid, 7, "abc");
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	back(&a, 1);
	send_append(&a, &s.fid, 7, "abc");
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, 3));
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("f"), "oldabc"));
	tc_close(&a);
}

/* Without undo records it is done twice. */
Test(crash, append_is_done_twice_without_undo)
{
	struct tc a;
	rf_status s;

	setenv("REFAULT_DISABLE", "undo", 1);
	put_file("f", "old");
	start_deadly(AFTER_CHANGE);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_append(&a, &s.fid, 7, "abc");
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	unsetenv("REFAULT_DISABLE");
	back(&a, 1);
	send_append(&a, &s.fid, 7, "abc");
	done(&a);
	cr_assert(eq(str, (char *)get_file("f"), "oldabcabc"));
	tc_close(&a);
}

/* What somebody else has appended meanwhile stays. */
Test(crash, append_before_others)
{
	struct tc a;
	rf_status s;

	put_file("f", "old");
	start_deadly(AFTER_CHANGE);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_append(&a, &s.fid, 7, "abc");
	EXPECT(&a, -1);
	tc_close(&a);
	others_write("f", 6, "others");
	next_server();
	back(&a, 1);
	send_append(&a, &s.fid, 7, "abc");
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, 3));
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("f"), "oldabcothers"));
	tc_close(&a);
}

/* Told or not, what was done is not done again over what others did since. */
Test(crash, repeated_after_a_restart)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "0123456789");
	start_server();
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 7, 0, "AAAA", false);
	done(&a);
	send_append(&a, &s.fid, 8, "app");
	done(&a);
	stop_server(SIGKILL);
	tc_close(&a);
	start_server();
	back(&a, 1);
	back(&b, 2);
	tc_find(&b, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&b, &s.fid, "f", 7, 1, "BB", false); /* its own id */
	done(&b);
	/* Whatever became of the rights meanwhile: it was done when they were there. */
	cr_assert(not(chmod(at("f"), 0)));
	EXPECT(&b, RF_BREAK);
	tc_ack(&b, br(&b)->id);
	tc_store(&a, &s.fid, "f", 7, 0, "AAAA", false);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->dv_before, 0));
	cr_assert(eq(u64, applied(&a)->status.size, 13));
	cr_assert(eq(u64, applied(&a)->status.fid.ino, s.fid.ino));
	EXPECT(&a, RF_RELEASED);
	send_append(&a, &s.fid, 8, "app");
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, 10));
	EXPECT(&a, RF_RELEASED);
	/* An id is good for the file that it was used for. */
	put_file("g", "x");
	tc_store(&a, &(rf_fid){1, 2}, "g", 7, 0, "AAAA", false);
	ERROR(&a, EINVAL);
	cr_assert(not(chmod(at("f"), 0644)));
	cr_assert(eq(str, (char *)get_file("f"), "ABBA456789app"));
	/* And another restart. */
	stop_server(SIGTERM);
	tc_close(&a);
	tc_close(&b);
	start_server();
	back(&a, 1);
	send_append(&a, &s.fid, 8, "app");
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, 10));
	cr_assert(eq(str, (char *)get_file("f"), "ABBA456789app"));
	tc_close(&a);
}

/* As many as are promised. */
Test(crash, the_last_ids_are_remembered)
{
	struct tc a;
	rf_status s;
	int i;

	put_file("f", "");
	start_server();
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	for (i = 0; i < RF_REMEMBER + 100; i++) {
		send_append(&a, &s.fid, 50000 + (uint64_t)i, "x");
		done(&a);
	}
	stop_server(SIGKILL);
	tc_close(&a);
	start_server();
	back(&a, 1);
	for (i = 100; i < RF_REMEMBER + 100; i++) {
		send_append(&a, &s.fid, 50000 + (uint64_t)i, "x");
		EXPECT(&a, RF_APPLIED);
		cr_assert(eq(u64, applied(&a)->off, i));
		EXPECT(&a, RF_RELEASED);
	}
	cr_assert(eq(sz, strlen(get_file("f")), RF_REMEMBER + 100));
	tc_close(&a);
}

/* A truncation, and a hole: done and not remembered, or not begun.  Not done again over others'. */
static void finished(int how, bool punch)
{
	unsigned char *buf = malloc(BUF);
	struct tc a, b;
	rf_status s;
	off_t size;

	fill(OLD_SIZE, 'o');
	start_deadly(how);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	if (punch)
		send_punch(&a, &s.fid, 7, DEADLY, 0x2000);
	else
		send_size(&a, &s.fid, 7, DEADLY);
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	size = content(buf, BUF);
	cr_assert(eq(i64, size, punch ? OLD_SIZE : DEADLY));
	if (punch)
		cr_assert(buf[DEADLY - 1] == 'o' && !buf[DEADLY] && !buf[DEADLY + 0x1fff] &&
			  buf[DEADLY + 0x2000] == 'o');
	back(&a, 1);
	back(&b, 2);
	tc_find(&b, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&b, &s.fid, "f", 1, DEADLY, "behind", true);
	done(&b);
	if (punch)
		send_punch(&a, &s.fid, 7, DEADLY, 0x2000);
	else
		send_size(&a, &s.fid, 7, DEADLY);
	done(&a);
	content(buf, BUF);
	cr_assert(not(memcmp(buf + DEADLY, "behind", 6)));
	tc_close(&a);
	tc_close(&b);
	free(buf);
}

Test(crash, truncation_not_begun)
{
	finished(AT_CALL, false);
}

Test(crash, truncation_done)
{
	finished(AFTER_CHANGE, false);
}

Test(crash, hole_not_begun)
{
	finished(AT_CALL, true);
}

Test(crash, hole_done)
{
	finished(AFTER_CHANGE, true);
}

/* ---- shifted, zeroed, shared ---- */

/* The suite's directory, on a disk with that file system. */
static void on_disk(const char *fs)
{
	teardown();
	if (!setup_disk(fs))
		cr_skip("needs root, mkfs.%s and a loop device", fs);
	config.lease_ms = 10000;
}

/* Blocks that say where they were. */
static void fill_blocks(const char *name, size_t n, unsigned char first)
{
	int fd = open(at(name), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
	unsigned char b[4096];
	size_t i;

	for (i = 0; i < n; i++) {
		memset(b, first + (int)(i % 60), sizeof(b));
		cr_assert(eq(i64, write(fd, b, sizeof(b)), sizeof(b)));
	}
	close(fd);
}

/* Done and not remembered, or not begun: the size says which.  Done once, whichever it was. */
static void shifted(const char *fs, int how, int mode, off_t left)
{
	const struct tc_at where = {.path = "f", .off = DEADLY};
	const bool insert = mode == FALLOC_FL_INSERT_RANGE;
	enum { N = DEADLY / 4096 + 8, TAIL = 100 };
	unsigned char *buf = malloc(BUF);
	struct tc_at there = where;
	struct tc a;
	rf_status s;
	off_t size;

	on_disk(fs);
	fill_blocks("f", N, 'A');
	cr_assert(not(truncate(at("f"), N * 4096 + TAIL)));
	start_deadly(how);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	there.fid = &s.fid;
	tc_falloc(&a, &there, 7, mode, 0x2000);
	EXPECT(&a, -1);
	tc_close(&a);
	if (left)
		cr_assert(not(truncate(at("f"), N * 4096 + TAIL + left)));
	next_server();
	size = content(buf, BUF);
	cr_assert(eq(i64, size,
		     N * 4096 + TAIL +
			 (how == AT_CALL ? 0
			  : insert       ? 0x2000
					 : -0x2000)));
	back(&a, 1);
	tc_falloc(&a, &there, 7, mode, 0x2000);
	done(&a);
	size = content(buf, BUF);
	cr_assert(eq(i64, size, N * 4096 + TAIL + (insert ? 0x2000 : -0x2000)));
	cr_assert(eq(int, buf[DEADLY - 1], 'A' + DEADLY / 4096 - 1));
	cr_assert(eq(int, buf[DEADLY], insert ? 0 : 'A' + DEADLY / 4096 + 2));
	cr_assert(eq(int, buf[size - TAIL - 1], 'A' + N - 1));
	tc_close(&a);
	free(buf);
}

Test(crash, collapse_not_begun)
{
	shifted("ext4", AT_CALL, FALLOC_FL_COLLAPSE_RANGE, 0);
}

Test(crash, collapse_done)
{
	shifted("ext4", AFTER_CHANGE, FALLOC_FL_COLLAPSE_RANGE, 0);
}

/* xfs, killed for good: cut inside a block it would say EINTR, shifted, with the size of before. */
Test(crash, collapse_killed_at_any_time)
{
	enum { N = 2000, ROUNDS = 12 };
	static unsigned char buf[2 * N * 4096 + 100];
	struct tc_at where = {.path = "f"};
	int round, i, olds = 0;
	rf_status s;
	struct tc a;
	off_t size;

	on_disk("xfs");
	for (round = 0; round < ROUNDS; round++) {
		unsigned seen = 0;

		/* Many extents, so that it takes its time. */
		put_file("f", "");
		for (i = 1; i < N; i++)
			others_write("f", (off_t)2 * i * 4096, i % 2 ? "odd" : "even");
		others_write("f", (off_t)sizeof(buf) - 4, "tail");
		start_server();
		back(&a, 1);
		s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
		where.fid = &s.fid;
		tc_falloc(&a, &where, (uint64_t)round + 1, FALLOC_FL_COLLAPSE_RANGE, 0x2000);
		usleep((useconds_t)(round * 3000));
		stop_server(SIGKILL);
		tc_close(&a);
		start_server();
		size = content(buf, sizeof(buf));
		olds += size == sizeof(buf);
		cr_assert(size == sizeof(buf) || size == sizeof(buf) - 0x2000);
		back(&a, 1);
		tc_falloc(&a, &where, (uint64_t)round + 1, FALLOC_FL_COLLAPSE_RANGE, 0x2000);
		done(&a);
		size = content(buf, sizeof(buf));
		cr_assert(eq(i64, size, sizeof(buf) - 0x2000));
		for (i = 1; i < N; i++)
			seen += buf[(2 * i - 2) * 4096] == (i % 2 ? 'o' : 'e');
		cr_assert(eq(u32, seen, N - 1), "round %d", round);
		stop_server(SIGTERM);
		tc_close(&a);
	}
	fprintf(stderr, "%d times old, %d times new\n", olds, ROUNDS - olds);
}

Test(crash, insert_not_begun)
{
	shifted("ext4", AT_CALL, FALLOC_FL_INSERT_RANGE, 0);
}

/* As file systems leave it that have no space to split an extent. */
Test(crash, insert_only_grown)
{
	shifted("ext4", AT_CALL, FALLOC_FL_INSERT_RANGE, 0x2000);
}

Test(crash, insert_done)
{
	shifted("ext4", AFTER_CHANGE, FALLOC_FL_INSERT_RANGE, 0);
}

Test(crash, insert_done_xfs)
{
	shifted("xfs", AFTER_CHANGE, FALLOC_FL_INSERT_RANGE, 0);
}

/* Zeros that make the file larger.  Not done again over what others stored since. */
static void zeroed(int how)
{
	unsigned char *buf = malloc(BUF);
	struct tc_at where = {.path = "f", .off = DEADLY};
	struct tc a, b;
	rf_status s;
	off_t size;

	fill(DEADLY + 100, 'o');
	start_deadly(how);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	where.fid = &s.fid;
	tc_falloc(&a, &where, 7, FALLOC_FL_ZERO_RANGE, 0x3000);
	if (tc_recv(&a, SOON) == RF_ERROR) {
		stop_server(SIGTERM);
		cr_skip("the file system in /tmp cannot zero");
	}
	tc_close(&a);
	next_server();
	size = content(buf, BUF);
	cr_assert(eq(i64, size, DEADLY + 0x3000));
	cr_assert(buf[DEADLY - 1] == 'o' && !buf[DEADLY] && !buf[DEADLY + 99]);
	back(&a, 1);
	back(&b, 2);
	tc_find(&b, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&b, &s.fid, "f", 1, DEADLY, "behind", true);
	done(&b);
	tc_falloc(&a, &where, 7, FALLOC_FL_ZERO_RANGE, 0x3000);
	done(&a);
	content(buf, BUF);
	cr_assert(not(memcmp(buf + DEADLY, "behind", 6)));
	tc_close(&a);
	tc_close(&b);
	free(buf);
}

Test(crash, zero_not_begun)
{
	zeroed(AT_CALL);
}

Test(crash, zero_done)
{
	zeroed(AFTER_CHANGE);
}

static struct tc_at remap_src, remap_dst;
static rf_status remap_stat[2];

static void remap_files(struct tc *a)
{
	remap_stat[0] = tc_find(a, "src", RF_LK_READ);
	remap_stat[1] = tc_find(a, "f", RF_LK_READ | RF_LK_WRITE);
	remap_src = (struct tc_at){&remap_stat[0].fid, "src", 0, 0};
	remap_dst = (struct tc_at){&remap_stat[1].fid, "f", 0, 0};
}

/* The next server makes it whole from the source, and says how much that was; it is not done again
 * when the source has changed. */
static void remapped(int how, u_int kind)
{
	unsigned char *buf = malloc(BUF);
	struct tc a;
	off_t size;

	fill_blocks("src", 20, 'A');
	fill_blocks("f", 20, 'a');
	start_deadly(how);
	back(&a, 1);
	remap_files(&a);
	remap_src.off = 0x2000;
	remap_dst.off = 0x10000;
	tc_remap(&a, &remap_src, &remap_dst, 7, kind, DEADLY);
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	size = content(buf, BUF);
	cr_assert(eq(i64, size, 0x10000 + DEADLY));
	cr_assert(eq(int, buf[0xffff], 'a' + 15));
	cr_assert(eq(int, buf[0x10000], 'C'));
	cr_assert(eq(int, buf[size - 1], 'C' + DEADLY / 4096 - 1));
	others_write("src", 0x2000, "changed");
	back(&a, 1);
	tc_remap(&a, &remap_src, &remap_dst, 7, kind, DEADLY);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, DEADLY));
	EXPECT(&a, RF_RELEASED);
	content(buf, BUF);
	cr_assert(eq(int, buf[0x10000], 'C'));
	tc_close(&a);
	free(buf);
}

Test(crash, copy_not_begun)
{
	remapped(AT_CALL, RF_REMAP_COPY);
}

Test(crash, copy_done)
{
	remapped(AFTER_CHANGE, RF_REMAP_COPY);
}

Test(crash, clone_not_begun)
{
	on_disk("xfs");
	remapped(AT_CALL, RF_REMAP_CLONE);
}

Test(crash, clone_done)
{
	on_disk("xfs");
	remapped(AFTER_CHANGE, RF_REMAP_CLONE);
}

/* A large copy, killed at any time; how often the next server found all of it old, and torn. */
static void copy_killed(int *olds, int *torn)
{
	enum { N = 8192, ROUNDS = 8 };
	static unsigned char now[N * 4096];
	size_t i, news, size;
	struct tc a;
	int round;

	fill_blocks("src", N, 'A');
	*olds = *torn = 0;
	for (round = 0; round < ROUNDS; round++) {
		fill_blocks("f", N, 'a');
		start_server();
		back(&a, 1);
		remap_files(&a);
		tc_remap(&a, &remap_src, &remap_dst, (uint64_t)round + 1, RF_REMAP_COPY, N * 4096);
		usleep((useconds_t)(500 + round * 2500));
		stop_server(SIGKILL);
		tc_close(&a);
		start_server();
		size = (size_t)content(now, sizeof(now));
		cr_assert(eq(sz, size, sizeof(now)));
		for (i = news = 0; i < N; i++)
			news += now[i * 4096 + 4095] == 'A' + i % 60;
		*olds += !news;
		*torn += news && news < N;
		stop_server(SIGTERM);
	}
	fprintf(stderr, "%d rounds: %d times old, %d times torn\n", ROUNDS, *olds, *torn);
}

Test(crash, copy_killed_at_any_time)
{
	int olds, torn;

	copy_killed(&olds, &torn);
	cr_assert(eq(int, torn, 0));
}

/* The same without undo records: it does happen. */
Test(crash, copy_is_torn_without_undo)
{
	int olds, torn, tries = 5;

	setenv("REFAULT_DISABLE", "undo", 1);
	do
		copy_killed(&olds, &torn);
	while (!torn && --tries);
	cr_assert(torn > 0);
	unsetenv("REFAULT_DISABLE");
}

Test(crash, growth_is_undone)
{
	struct tc a;
	rf_status s;

	put_file("f", "old");
	start_deadly(AFTER_CHANGE);
	back(&a, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	send_size(&a, &s.fid, 7, 100);
	EXPECT(&a, -1);
	tc_close(&a);
	next_server();
	back(&a, 1);
	tc_status(&a, &s.fid, "f", false);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->size, 3));
	send_size(&a, &s.fid, 7, 100);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 100));
	tc_close(&a);
}

/* More changes under way than there are undo records: all are done. */
static int slow_store(struct store_file *file, const struct store_cred *cred,
		      struct store_change *ch, bool nowait)
{
	if (nowait)
		return -EAGAIN;
	usleep(20000);
	return store_dir.store(file, cred, ch, nowait);
}

static void more_changes_than_undo_records(void)
{
	enum { N = 100 };
	int i, applies = 0, releases = 0;
	char name[N][8];
	rf_status s[N];
	struct tc a;

	ops = store_dir;
	ops.store = slow_store;
	config.ops = &ops;
	start_server();
	back(&a, 1);
	for (i = 0; i < N; i++) {
		snprintf(name[i], sizeof(name[i]), "f%d", i);
		put_file(name[i], "old");
		s[i] = tc_find(&a, name[i], RF_LK_READ | RF_LK_WRITE);
	}
	for (i = 0; i < N; i++)
		tc_store(&a, &s[i].fid, name[i], (uint64_t)i + 1, 0, "new", false);
	while (releases < N) {
		i = tc_recv(&a, SOON);
		cr_assert(i == RF_APPLIED || i == RF_RELEASED);
		applies += i == RF_APPLIED;
		releases += i == RF_RELEASED;
	}
	cr_assert(eq(int, applies, N));
	for (i = 0; i < N; i++)
		cr_assert(eq(str, (char *)get_file(name[i]), "new"));
	tc_close(&a);
}

Test(crash, more_changes_than_undo_records)
{
	more_changes_than_undo_records();
}

/* Where there is space for one client and one undo record: one after the other. */
Test(crash, state_on_a_full_file_system)
{
	static char addr[100];
	char small[72];
	struct tc a;

	if (geteuid() || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		cr_skip("needs root");
	snprintf(small, sizeof(small), "%s/small", base);
	cr_assert(not(mkdir(small, 0777)));
	cr_assert(not(mount("t", small, "tmpfs", 0, "size=1200k,mode=777")));
	snprintf(sock, sizeof(sock), "%s/s", small);
	snprintf(addr, sizeof(addr), "unix:%s", sock);
	config.listen = addr;
	more_changes_than_undo_records();
	cr_assert(tc_connect(&a, sock));
	cr_assert(eq(int, tc_hello(&a, 2), EUSERS));
	tc_close(&a);
	stop_server(SIGTERM);
	umount2(small, MNT_DETACH);
}

/* ---- those who may still believe in a promise ---- */

/* b holds a promise and has not heard of the restart: changes wait until it has. */
static void waits_for_who_was_here(int sig)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "old");
	start_server();
	back(&a, 1);
	back(&b, 2);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_find(&b, "f", RF_LK_READ);
	stop_server(sig);
	tc_close(&a);
	tc_close(&b);
	start_server();
	back(&a, 1);
	tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 7, 0, "new", false);
	EXPECT(&a, RF_APPLIED);
	NOTHING(&a);
	tc_sync(&a, &s.fid, "f", false);
	NOTHING(&a);
	/* Reading is for all. */
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(not(memcmp(a.payload, "new", 3)));
	back(&b, 2);
	EXPECT(&a, RF_RELEASED);
	EXPECT(&a, RF_RELEASED);
	/* From now on as ever. */
	tc_store(&a, &s.fid, "f", 8, 0, "NEW", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

Test(crash, waits_for_who_was_here)
{
	waits_for_who_was_here(SIGKILL);
}

Test(crash, waits_after_a_clean_stop)
{
	waits_for_who_was_here(SIGTERM);
}

/* And no longer than its lease, however short that of the new server is. */
Test(crash, waits_for_a_lease)
{
	uint64_t seen, end;
	struct tc a, b;
	rf_status s;

	config.lease_ms = 1000;
	put_file("f", "old");
	start_server();
	back(&a, 1);
	back(&b, 2);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	seen = ms();
	tc_find(&b, "f", RF_LK_READ);
	stop_server(SIGKILL);
	tc_close(&a);
	tc_close(&b);
	config.lease_ms = 100;
	start_server();
	back(&a, 1);
	tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 7, 0, "new", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	end = ms();
	cr_assert(end - seen >= 1000, "released after %d ms", (int)(end - seen));
	tc_close(&a);
}

/* ---- the file ---- */

/* A server that does not start: what it says. */
static const char *refused(void)
{
	static char text[1000];
	int fd, status;
	ssize_t n;
	pid_t pid;

	pid = fork();
	if (!pid) {
		fd = open(errors, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
		dup2(fd, 2);
		_exit(srv_run(&config));
	}
	waitpid(pid, &status, 0);
	cr_assert(eq(int, status, 1 << 8));
	fd = open(errors, O_RDONLY | O_CLOEXEC);
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	cr_assert(strchr(text, '\n') && !strchr(text, '\n')[1], "more than one line: %s", text);
	return text;
}

/* One that does: what it says while it starts. */
static const char *starts(void)
{
	static char text[1000];
	int fd = open(errors, O_CREAT | O_TRUNC | O_RDWR | O_APPEND | O_CLOEXEC, 0600),
	    err = dup(2);
	ssize_t n;

	dup2(fd, 2);
	start_server();
	dup2(err, 2);
	close(err);
	n = pread(fd, text, sizeof(text) - 1, 0);
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	return text;
}

/* The source is not there any more: the next server says that half of it may be, and goes on. */
Test(crash, copy_without_its_source)
{
	struct tc a;

	fill_blocks("src", 20, 'A');
	fill_blocks("f", 20, 'a');
	start_deadly(AT_CALL);
	back(&a, 1);
	remap_files(&a);
	tc_remap(&a, &remap_src, &remap_dst, 7, RF_REMAP_COPY, DEADLY);
	EXPECT(&a, -1);
	tc_close(&a);
	cr_assert(not(unlink(at("src"))));
	cr_assert(eq(int, waitpid(server, NULL, 0), server));
	config.ops = NULL;
	cr_assert(strstr(starts(), "f in x: a change was cut off") != NULL);
	back(&a, 1);
	tc_remap(&a, &remap_src, &remap_dst, 7, RF_REMAP_COPY, DEADLY);
	cr_assert(eq(int, error_of(&a), ESTALE));
	tc_close(&a);
}

Test(crash, memory)
{
	char state[100], other[100];
	uint64_t memory;
	struct tc a;
	int fd;

	snprintf(state, sizeof(state), "%s.state", sock);
	cr_assert(eq(str, (char *)starts(), ""));
	memory = back(&a, 1);
	cr_assert(ne(u64, memory, 0));
	put_file("f", "x");
	tc_find(&a, "f", RF_LK_READ);
	tc_close(&a);
	stop_server(SIGKILL);
	cr_assert(strstr(starts(), "restarted: 1 client of before") != NULL);
	cr_assert(eq(u64, back(&a, 1), memory));
	tc_find(&a, "f", RF_LK_READ);
	tc_close(&a);
	stop_server(SIGTERM);

	/* Other exports: ids of then mean nothing; who was here was here all the same. */
	snprintf(other, sizeof(other), "%s/other", base);
	mkdir(other, 0777);
	config.export[1].name = "y";
	config.export[1].where = other;
	config.nexports = 2;
	cr_assert(strstr(starts(), "restarted: 1 client of before") != NULL);
	cr_assert(ne(u64, back(&a, 1), memory));
	memory = a.msg.body.rf_body_u.volume_r.memory;
	tc_close(&a);
	stop_server(SIGTERM); /* it has held nothing this time: nobody waits for it */
	cr_assert(eq(str, (char *)starts(), ""));
	stop_server(SIGKILL);

	/* Gone. */
	cr_assert(not(unlink(state)));
	cr_assert(eq(str, (char *)starts(), ""));
	cr_assert(ne(u64, back(&a, 1), memory));
	memory = a.msg.body.rf_body_u.volume_r.memory;
	tc_close(&a);
	stop_server(SIGKILL);

	/* Damaged, and cut off. */
	fd = open(state, O_WRONLY | O_CLOEXEC);
	cr_assert(eq(i64, pwrite(fd, "garbage", 7, 0), 7));
	cr_assert(strstr(starts(), "damaged") != NULL);
	cr_assert(ne(u64, back(&a, 1), memory));
	memory = a.msg.body.rf_body_u.volume_r.memory;
	tc_close(&a);
	stop_server(SIGKILL);
	cr_assert(not(ftruncate(fd, 5000)));
	close(fd);
	cr_assert(strstr(starts(), "damaged") != NULL);
	cr_assert(ne(u64, back(&a, 1), memory));
	tc_close(&a);
}

Test(crash, not_its_file)
{
	char state[100];
	const char *text;

	snprintf(state, sizeof(state), "%s.state", sock);
	start_server();
	text = refused();
	cr_expect(strstr(text, "another server listens there") && strstr(text, state), "%s", text);
	stop_server(SIGTERM);
	cr_assert(not(chmod(state, 0640)));
	text = refused();
	cr_expect(strstr(text, state) && strstr(text, "remove it"), "%s", text);
	if (!geteuid()) {
		cr_assert(not(chmod(state, 0600)));
		cr_assert(not(chown(state, 65534, 65534)));
		text = refused();
		cr_expect(strstr(text, state) && strstr(text, "remove it"), "%s", text);
	}
	cr_assert(not(unlink(state)));
	cr_assert(not(symlink("/etc/passwd", state)));
	text = refused();
	cr_expect(strstr(text, state) && strstr(text, "symbolic link"), "%s", text);
	cr_assert(not(unlink(state)));
	cr_assert(not(mkdir(state, 0700)));
	text = refused();
	cr_expect(strstr(text, state) != NULL, "%s", text);
}
