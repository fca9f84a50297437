/* SPDX-License-Identifier: MIT */
/*
 * server_range_test.c - fallocate in all modes, clone, dedupe, copy and SEEK_DATA through the server:
 * what the file is afterwards, what another client is told, and what the file system refuses.
 *
 * On ext4 and xfs on disks of the test's own, and on tmpfs.
 */
#include "srv_own.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum {
	BLK = 4096,
	SIZE = 5 * BLK + 100,
	CAP = 32 * BLK,
	KEEP = FALLOC_FL_KEEP_SIZE,
	ZERO = FALLOC_FL_ZERO_RANGE,
	COLLAPSE = FALLOC_FL_COLLAPSE_RANGE,
	INSERT = FALLOC_FL_INSERT_RANGE,
	UNSHARE = FALLOC_FL_UNSHARE_RANGE
};

static const char *fs; /* what the server serves */

static void on(const char *type)
{
	fs = type;
	if (!strcmp(type, "tmpfs"))
		setup_at("/dev/shm");
	else if (!setup_disk(type))
		cr_skip("needs root, mkfs.%s and a loop device", type);
	start_server();
}

static void end(void)
{
	if (server)
		teardown();
}

TestSuite(server_range, .fini = end, .timeout = 300);

/* ---- the model ---- */

struct model {
	size_t size;
	unsigned char b[CAP];
};

static void model_fill(struct model *m, size_t size, unsigned seed)
{
	size_t i;

	memset(m, 0, sizeof(*m));
	m->size = size;
	for (i = 0; i < size; i++)
		m->b[i] = (unsigned char)((i / 7 + seed) % 250 + 1);
}

static void model_grow(struct model *m, size_t size)
{
	m->size = size > m->size ? size : m->size;
}

static void model_falloc(struct model *m, int mode, size_t off, size_t len)
{
	if (mode == COLLAPSE) {
		memmove(m->b + off, m->b + off + len, m->size - off - len);
		memset(m->b + m->size - len, 0, len);
		m->size -= len;
	} else if (mode == INSERT) {
		memmove(m->b + off + len, m->b + off, m->size - off);
		memset(m->b + off, 0, len);
		m->size += len;
	} else {
		if (mode & (FALLOC_FL_PUNCH_HOLE | ZERO))
			memset(m->b + off, 0, len);
		if (!(mode & KEEP))
			model_grow(m, off + len);
	}
}

static void model_copy(struct model *to, size_t to_off, const struct model *from, size_t off,
		       size_t len)
{
	memmove(to->b + to_off, from->b + off, len);
	model_grow(to, to_off + len);
}

static void model_put(const struct model *m, const char *name)
{
	int fd = open(at(name), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);

	cr_assert(eq(i64, write(fd, m->b, m->size), (ssize_t)m->size));
	close(fd);
}

/* The file is what the model says, as the program of this host sees it. */
static void same(const struct model *m, const char *name)
{
	static unsigned char b[CAP + 1];
	int fd = open(at(name), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, b, sizeof(b));
	size_t i;

	close(fd);
	cr_assert(eq(i64, n, (ssize_t)m->size), "%s on %s", name, fs);
	for (i = 0; i < m->size && b[i] == m->b[i]; i++)
		;
	cr_assert(i == m->size, "%s on %s: byte %zu", name, fs, i);
}

/* ---- fallocate ---- */

/* Which file systems have it. */
enum { EXT4 = 1, XFS = 2, TMPFS = 4, ALL = 7 };

static int this_fs(void)
{
	return !strcmp(fs, "ext4") ? EXT4 : !strcmp(fs, "xfs") ? XFS : TMPFS;
}

static const struct alloc {
	int mode;
	int has; /* the others say EOPNOTSUPP */
	size_t off, len;
	size_t b_off, b_len; /* what others are told of; 0: nothing changed */
	int err;             /* what those that have it say */
	bool push;           /* with the new bytes */
} alloc[] = {
    {0, ALL, 0, SIZE, 0, 0, 0, false},
    {0, ALL, 100, 8 * BLK, SIZE, 100 + 8 * BLK - SIZE, 0, false},
    {0, ALL, 3 * BLK, SIZE + 50 - 3 * BLK, SIZE, 50, 0, true},
    {KEEP, ALL, 0, 9 * BLK, 0, 0, 0, false},
    {PUNCH, ALL, BLK, BLK, BLK, BLK, 0, true},
    {PUNCH, ALL, 100, 2 * BLK, 100, 2 * BLK, 0, false},
    {PUNCH, ALL, 5 * BLK, 3 * BLK, 5 * BLK, 100, 0, true},
    {PUNCH, ALL, 7 * BLK, BLK, 0, 0, 0, false},
    {ZERO, EXT4 | XFS, 10, 300, 10, 300, 0, true},
    {ZERO, EXT4 | XFS, 100, 3 * BLK, 100, 3 * BLK, 0, false},
    {ZERO, EXT4 | XFS, 4 * BLK + 5, 4 * BLK, 4 * BLK + 5, 4 * BLK, 0, false},
    {ZERO, EXT4 | XFS, 7 * BLK, 10, SIZE, 7 * BLK + 10 - SIZE, 0, false},
    {ZERO | KEEP, EXT4 | XFS, 4 * BLK + 5, 4 * BLK, 4 * BLK + 5, BLK + 95, 0, false},
    {ZERO | KEEP, EXT4 | XFS, 5 * BLK, 4 * BLK, 5 * BLK, 100, 0, true},
    {ZERO | KEEP, EXT4 | XFS, 8 * BLK, BLK, 0, 0, 0, false},
    {COLLAPSE, EXT4 | XFS, BLK, 2 * BLK, BLK, SIZE - BLK, 0, false},
    {COLLAPSE, EXT4 | XFS, 0, 5 * BLK, 0, SIZE, 0, false},
    {COLLAPSE, EXT4 | XFS, 4 * BLK, BLK, 4 * BLK, BLK + 100, 0, false},
    {COLLAPSE, EXT4 | XFS, 100, BLK, 0, 0, EINVAL, false},
    {COLLAPSE, EXT4 | XFS, BLK, 100, 0, 0, EINVAL, false},
    {COLLAPSE, EXT4 | XFS, 4 * BLK, 2 * BLK, 0, 0, EINVAL, false},
    {COLLAPSE, EXT4 | XFS, 0, (size_t)1 << 40, 0, 0, EINVAL, false},
    {INSERT, EXT4 | XFS, 0, BLK, 0, SIZE + BLK, 0, false},
    {INSERT, EXT4 | XFS, 5 * BLK, 3 * BLK, 5 * BLK, 3 * BLK + 100, 0, false},
    {INSERT, EXT4 | XFS, 1, BLK, 0, 0, EINVAL, false},
    {INSERT, EXT4 | XFS, BLK, 1, 0, 0, EINVAL, false},
    {INSERT, EXT4 | XFS, 6 * BLK, BLK, 0, 0, EINVAL, false},
    {UNSHARE, XFS, 0, SIZE, 0, 0, 0, false},
    {UNSHARE, XFS, 0, SIZE + 100, SIZE, 100, 0, true},
    {UNSHARE | KEEP, XFS, BLK, 2 * BLK, 0, 0, 0, false},
    /* What no file system has, or no Linux. */
    {FALLOC_FL_PUNCH_HOLE, 0, 0, BLK, 0, 0, 0, false},
    {PUNCH | ZERO, 0, 0, BLK, 0, 0, 0, false},
    {COLLAPSE | KEEP, 0, 0, BLK, 0, 0, 0, false},
    {INSERT | COLLAPSE, 0, 0, BLK, 0, 0, 0, false},
    {FALLOC_FL_NO_HIDE_STALE, 0, 0, BLK, 0, 0, 0, false},
    {0x80, 0, 0, BLK, 0, 0, 0, false},
    {(int)0x80000000, 0, 0, BLK, 0, 0, 0, false},
    {0, ALL, 0, 0, 0, 0, EINVAL, false},
    {0, ALL, (size_t)1 << 63, BLK, 0, 0, EINVAL, false},
    {KEEP, ALL, INT64_MAX - 10, BLK, 0, 0, EFBIG, false},
};

/* b holds a promise, a changes: what both are told, and what the file is. */
static void one_alloc(struct tc *a, struct tc *b, const struct alloc *t, unsigned row)
{
	struct tc_at where = {.off = t->off};
	static struct model m;
	char name[16];
	rf_status s, sb;
	uint64_t dv;

	snprintf(name, sizeof(name), "f%u", row);
	model_fill(&m, SIZE, row);
	model_put(&m, name);
	s = tc_find(a, name, RF_LK_READ | RF_LK_WRITE);
	sb = tc_find(b, name, RF_LK_READ);
	cr_assert(eq(u64, sb.dv, s.dv));
	where.fid = &s.fid;
	where.path = name;
	tc_falloc(a, &where, row + 1, t->mode, t->len);
	if (t->err || !(t->has & this_fs())) {
		ERROR(a, (u_int)(t->has & this_fs() ? t->err : EOPNOTSUPP));
		same(&m, name);
		goto unchanged;
	}
	model_falloc(&m, t->mode, t->off, t->len);
	if (t->b_len) {
		EXPECT(b, RF_BREAK);
		cr_assert(br(b)->known);
		cr_assert(eq(u32, br(b)->ranges.ranges_len, 1));
		cr_assert(eq(u64, br(b)->ranges.ranges_val->off, t->b_off), "row %u", row);
		cr_assert(eq(u64, br(b)->ranges.ranges_val->len, t->b_len), "row %u", row);
		cr_assert(eq(u64, br(b)->dv_before, s.dv));
		cr_assert(eq(u64, br(b)->status.size, m.size));
		cr_assert(eq(sz, b->len, t->push ? t->b_len : 0), "row %u", row);
		cr_assert(not(t->push && memcmp(b->payload, m.b + t->b_off, t->b_len) != 0));
		tc_ack(b, br(b)->id);
	}
	EXPECT(a, RF_APPLIED);
	cr_assert(eq(u64, applied(a)->dv_before, s.dv));
	cr_assert(eq(u64, applied(a)->status.size, m.size), "row %u", row);
	cr_assert(ne(int, applied(a)->status.dv == s.dv, t->b_len != 0), "row %u", row);
	dv = applied(a)->status.dv;
	EXPECT(a, RF_RELEASED);
	same(&m, name);
	s.dv = dv;
unchanged:
	/* What was not a change does not look like one by somebody else either, later. */
	tc_fetch(b, &s.fid, name, 0, 1, true);
	EXPECT(b, RF_FETCH_R);
	cr_assert(eq(u64, b->msg.body.rf_body_u.fetch_r.status.dv, s.dv), "row %u on %s", row, fs);
}

static void all_modes(const char *type)
{
	struct tc a, b;
	unsigned i;

	on(type);
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	for (i = 0; i < sizeof(alloc) / sizeof(*alloc); i++)
		one_alloc(&a, &b, &alloc[i], i);
	tc_close(&a);
	tc_close(&b);
}

Test(server_range, modes_ext4)
{
	all_modes("ext4");
}

Test(server_range, modes_xfs)
{
	all_modes("xfs");
}

Test(server_range, modes_tmpfs)
{
	all_modes("tmpfs");
}

/* ---- no space ---- */

/* Whether the change was made; else why not. */
static bool took(struct tc *a, u_int *err)
{
	int type;

	while ((type = tc_recv(a, SOON)) == RF_BREAK)
		tc_ack(a, br(a)->id);
	*err = type == RF_ERROR ? a->msg.body.rf_body_u.error.err : 0;
	if (type == RF_APPLIED)
		EXPECT(a, RF_RELEASED);
	return type == RF_APPLIED;
}

/* On a full disk: whole or not at all. */
static void full(const char *type)
{
	static const struct {
		int mode;
		size_t off, len;
	} t[] = {
	    {0, 0, CAP},          {KEEP, 0, CAP},       {0, SIZE - 10, 20 * BLK},
	    {ZERO, 4 * BLK, CAP}, {INSERT, BLK, BLK},   {INSERT, 2 * BLK, 16 * BLK},
	    {COLLAPSE, BLK, BLK}, {PUNCH, 3 * BLK, 10},
	};
	struct tc_at where = {.path = "f"};
	static struct model m;
	off_t len = 1 << 30;
	unsigned i, refused = 0;
	struct tc a;
	rf_status s;
	u_int err;
	int fd;

	on(type);
	model_fill(&m, SIZE, 1);
	model_put(&m, "f");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	where.fid = &s.fid;
	sync();
	fd = open(at("rest"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	for (i = 0; len >= 512; i++)
		if (fallocate(fd, KEEP, (off_t)i << 30, len))
			len /= 2;
	close(fd);
	for (i = 0; i < sizeof(t) / sizeof(*t); i++) {
		where.off = t[i].off;
		tc_falloc(&a, &where, i + 1, t[i].mode, t[i].len);
		if (took(&a, &err))
			model_falloc(&m, t[i].mode, t[i].off, t[i].len);
		else
			cr_assert(eq(u32, err, ENOSPC), "row %u on %s", i, type);
		refused += err == ENOSPC;
		same(&m, "f");
	}
	fprintf(stderr, "%s: %u refused\n", type, refused);
	cr_assert(refused > 0);
	tc_close(&a);
}

Test(server_range, full_ext4)
{
	full("ext4");
}

Test(server_range, full_xfs)
{
	full("xfs");
}

/* ---- clone, dedupe, copy ---- */

static struct model from, to;
static rf_status sf, st_to;
static struct tc_at src, dst;
static uint64_t request = 100;

static void pair(struct tc *a, size_t from_size, size_t to_size)
{
	model_fill(&from, from_size, 3);
	model_fill(&to, to_size, 90);
	model_put(&from, "from");
	model_put(&to, "to");
	sf = tc_find(a, "from", RF_LK_READ);
	st_to = tc_find(a, "to", RF_LK_READ | RF_LK_WRITE);
	src = (struct tc_at){&sf.fid, "from", 0, 0};
	dst = (struct tc_at){&st_to.fid, "to", 0, 0};
}

/* Whatever it is, it must do n bytes of len, and b be told of [off, off + blen). */
static void remap_ok(struct tc *a, struct tc *b, u_int kind, size_t len, size_t n, size_t off,
		     size_t blen)
{
	rf_status sb = tc_find(b, "to", RF_LK_READ);

	tc_remap(a, &src, &dst, ++request, kind, len);
	if (blen) {
		EXPECT(b, RF_BREAK);
		cr_assert(br(b)->known);
		cr_assert(eq(u32, br(b)->ranges.ranges_len, 1));
		cr_assert(eq(u64, br(b)->ranges.ranges_val->off, off));
		cr_assert(eq(u64, br(b)->ranges.ranges_val->len, blen));
		cr_assert(eq(sz, b->len, 0));
		tc_ack(b, br(b)->id);
	}
	EXPECT(a, RF_APPLIED);
	cr_assert(eq(u64, applied(a)->off, n));
	cr_assert(eq(u64, applied(a)->status.fid.ino, st_to.fid.ino));
	cr_assert(ne(int, applied(a)->status.dv == sb.dv, blen != 0));
	EXPECT(a, RF_RELEASED);
	if (blen)
		model_copy(&to, dst.off, &from, src.off, n);
	cr_assert(eq(u64, tc_find(b, "to", RF_LK_READ).size, to.size));
	same(&to, "to");
	same(&from, "from");
}

static void remap_err(struct tc *a, u_int kind, size_t len, u_int err)
{
	tc_remap(a, &src, &dst, ++request, kind, len);
	ERROR(a, err);
	same(&to, "to");
	same(&from, "from");
}

static void copies(const char *type)
{
	struct tc a, b;

	on(type);
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	pair(&a, SIZE, SIZE);
	src.off = 10;
	dst.off = 77;
	remap_ok(&a, &b, RF_REMAP_COPY, BLK, BLK, 77, BLK);
	/* Less than asked at the end of the source; nothing behind it. */
	src.off = 5 * BLK;
	remap_ok(&a, &b, RF_REMAP_COPY, BLK, 100, 77, 100);
	src.off = SIZE;
	remap_ok(&a, &b, RF_REMAP_COPY, BLK, 0, 0, 0);
	src.off = 1 << 30;
	remap_ok(&a, &b, RF_REMAP_COPY, BLK, 0, 0, 0);
	/* It makes the file larger, with a hole in between. */
	src.off = 0;
	dst.off = 8 * BLK + 1;
	remap_ok(&a, &b, RF_REMAP_COPY, BLK, BLK, SIZE, 8 * BLK + 1 + BLK - SIZE);
	/* Numbers that are none. */
	src.off = (uint64_t)1 << 63;
	remap_err(&a, RF_REMAP_COPY, 1, EINVAL);
	src.off = 0;
	dst.off = INT64_MAX;
	remap_err(&a, RF_REMAP_COPY, 1, EINVAL);
	dst.off = 0;
	remap_err(&a, 0, BLK, EINVAL);
	remap_err(&a, 4, BLK, EINVAL);
	remap_err(&a, RF_REMAP_COPY, UINT64_MAX, EINVAL);
	/* In one file. */
	dst = src;
	dst.off = 3 * BLK;
	remap_err(&a, RF_REMAP_COPY, 3 * BLK + 1, EINVAL);
	tc_find(&a, "from", RF_LK_READ | RF_LK_WRITE);
	tc_remap(&a, &src, &dst, ++request, RF_REMAP_COPY, 2 * BLK);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	cr_assert(eq(u64, applied(&a)->off, 2 * BLK));
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	model_copy(&from, 3 * BLK, &from, 0, 2 * BLK);
	same(&from, "from");
	tc_close(&a);
	tc_close(&b);
}

Test(server_range, copy_ext4)
{
	copies("ext4");
}

Test(server_range, copy_xfs)
{
	copies("xfs");
}

Test(server_range, copy_tmpfs)
{
	copies("tmpfs");
}

static void no_clones(const char *type)
{
	struct tc a;

	on(type);
	tc_open(&a, sock, 1);
	pair(&a, SIZE, SIZE);
	remap_err(&a, RF_REMAP_CLONE, BLK, EOPNOTSUPP);
	remap_err(&a, RF_REMAP_DEDUPE, BLK, EOPNOTSUPP);
	/* That comes first. */
	src.off = 100 * BLK;
	remap_err(&a, RF_REMAP_CLONE, 0, EOPNOTSUPP);
	remap_err(&a, RF_REMAP_CLONE, 1, EOPNOTSUPP);
	remap_err(&a, RF_REMAP_DEDUPE, 0, EOPNOTSUPP);
	remap_err(&a, RF_REMAP_DEDUPE, 1, EOPNOTSUPP);
	src.off = UINT64_MAX;
	remap_err(&a, RF_REMAP_CLONE, UINT64_MAX, EOPNOTSUPP);
	remap_err(&a, RF_REMAP_DEDUPE, UINT64_MAX, EOPNOTSUPP);
	tc_close(&a);
}

Test(server_range, no_clone_ext4)
{
	no_clones("ext4");
}

Test(server_range, no_clone_tmpfs)
{
	no_clones("tmpfs");
}

Test(server_range, clone)
{
	struct tc a, b;

	on("xfs");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	pair(&a, SIZE, SIZE);
	src.off = BLK;
	dst.off = 3 * BLK;
	remap_ok(&a, &b, RF_REMAP_CLONE, 2 * BLK, 2 * BLK, 3 * BLK, 2 * BLK);
	/* To the end of the source; past the end of the file. */
	dst.off = 8 * BLK;
	remap_ok(&a, &b, RF_REMAP_CLONE, 0, SIZE - BLK, SIZE, 8 * BLK - BLK);
	remap_err(&a, RF_REMAP_CLONE, 100, EINVAL);
	src.off = 1;
	remap_err(&a, RF_REMAP_CLONE, BLK, EINVAL);
	src.off = 100 * BLK;
	remap_err(&a, RF_REMAP_CLONE, BLK, EINVAL);
	remap_err(&a, RF_REMAP_CLONE, 0, EINVAL);
	src.off = UINT64_MAX;
	remap_err(&a, RF_REMAP_CLONE, BLK, EINVAL);
	src.off = 0;
	dst.off = INT64_MAX - 4095;
	remap_err(&a, RF_REMAP_CLONE, BLK, EINVAL);
	tc_close(&a);
	tc_close(&b);
}

Test(server_range, dedupe)
{
	struct stat before, after;
	struct tc a, b;

	on("xfs");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	pair(&a, SIZE, SIZE);
	/* Different: nothing happens. */
	remap_ok(&a, &b, RF_REMAP_DEDUPE, 2 * BLK, 0, 0, 0);
	src.off = dst.off = BLK;
	remap_ok(&a, &b, RF_REMAP_COPY, 2 * BLK, 2 * BLK, BLK, 2 * BLK);
	cr_assert(not(stat(at("to"), &before)));
	remap_ok(&a, &b, RF_REMAP_DEDUPE, 2 * BLK, 2 * BLK, 0, 0);
	cr_assert(not(stat(at("to"), &after)));
	cr_assert(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
	remap_ok(&a, &b, RF_REMAP_DEDUPE, 3 * BLK, 0, 0, 0);
	/* Nothing, and more than there is. */
	remap_ok(&a, &b, RF_REMAP_DEDUPE, 0, 0, 0, 0);
	remap_err(&a, RF_REMAP_DEDUPE, 1 << 30, EINVAL);
	src.off = 1;
	remap_err(&a, RF_REMAP_DEDUPE, BLK, EINVAL);
	tc_close(&a);
	tc_close(&b);
}

/* ---- holes ---- */

static void seek(struct tc *a, const rf_fid *fid, uint64_t off, int whence, uint64_t want)
{
	const struct tc_at where = {fid, "f", off, 0};

	tc_seek(a, &where, whence);
	EXPECT(a, RF_SEEK_R);
	cr_assert(eq(u64, a->msg.body.rf_body_u.seek_r.off, want));
}

static void seek_err(struct tc *a, const rf_fid *fid, uint64_t off, int whence, u_int err)
{
	const struct tc_at where = {fid, "f", off, 0};

	tc_seek(a, &where, whence);
	ERROR(a, err);
}

/* Data in blocks 2 and 3 of 8. */
static void holes(const char *type)
{
	struct tc_at where = {.path = "f", .off = 0};
	struct tc a;
	rf_status s;

	on(type);
	put_file("f", "");
	cr_assert(not(truncate(at("f"), 8 * BLK)));
	others_write("f", 2 * BLK, "x");
	others_write("f", 4 * BLK - 1, "x");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	seek(&a, &s.fid, 0, SEEK_DATA, 2 * BLK);
	seek(&a, &s.fid, 0, SEEK_HOLE, 0);
	seek(&a, &s.fid, 2 * BLK + 5, SEEK_DATA, 2 * BLK + 5);
	seek(&a, &s.fid, 2 * BLK + 5, SEEK_HOLE, 4 * BLK);
	seek_err(&a, &s.fid, 4 * BLK, SEEK_DATA, ENXIO);
	seek_err(&a, &s.fid, 8 * BLK, SEEK_HOLE, ENXIO);
	seek_err(&a, &s.fid, UINT64_MAX, SEEK_DATA, ENXIO);
	seek_err(&a, &s.fid, 0, SEEK_SET, EINVAL);
	seek_err(&a, &s.fid, 0, SEEK_END, EINVAL);
	seek_err(&a, &s.fid, 0, -1, EINVAL);
	/* It follows the client's own changes. */
	where.fid = &s.fid;
	where.off = 2 * BLK;
	tc_falloc(&a, &where, 1, PUNCH, BLK);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	seek(&a, &s.fid, 0, SEEK_DATA, 3 * BLK);
	tc_close(&a);
}

Test(server_range, holes_ext4)
{
	holes("ext4");
}

Test(server_range, holes_xfs)
{
	holes("xfs");
}

Test(server_range, holes_tmpfs)
{
	holes("tmpfs");
}

/* ---- two files, one order ---- */

/* An engine whose stores, and reads, take until somebody says so. */
static struct gate {
	_Atomic int shut, reads_shut, entered;
} * gate;
static struct store_ops gate_ops;

static int gate_store(struct store_file *file, const struct store_cred *cred,
		      struct store_change *change, bool nowait)
{
	if (nowait)
		return -EAGAIN;
	gate->entered++;
	while (gate->shut)
		usleep(1000);
	return store_dir.store(file, cred, change, false);
}

static ssize_t gate_read(struct store_file *file, const struct store_cred *cred, void *buf,
			 size_t len, uint64_t off, bool nowait)
{
	ssize_t n;

	if (nowait)
		return -EAGAIN;
	n = store_dir.read(file, cred, buf, len, off, false);
	gate->entered++;
	while (gate->reads_shut)
		usleep(1000);
	return n;
}

static void setup_gated(void)
{
	setup_at("/tmp");
	gate = mmap(NULL, sizeof(*gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(gate != MAP_FAILED);
	gate_ops = store_dir;
	gate_ops.store = gate_store;
	gate_ops.read = gate_read;
	config.ops = &gate_ops;
	start_server();
}

TestSuite(server_two, .init = setup_gated, .fini = teardown, .timeout = 300);

static rf_status x, y;
static struct tc_at in_x, in_y;

/* Two files that client a may do all with; stores from now on stop in the engine. */
static void two_files(struct tc *a)
{
	put_file("x", "xxxx");
	put_file("y", "yyyy");
	tc_open(a, sock, 1);
	x = tc_find(a, "x", RF_LK_READ | RF_LK_WRITE);
	y = tc_find(a, "y", RF_LK_READ | RF_LK_WRITE);
	in_x = (struct tc_at){&x.fid, "x", 0, 0};
	in_y = (struct tc_at){&y.fid, "y", 0, 0};
	gate->shut = 1;
}

/* All that was sent so far stands in its queues. */
static void arrived(struct tc *tc)
{
	tc_ping(tc);
	EXPECT(tc, RF_PONG);
}

static void stuck(struct tc *a, const rf_fid *fid, const char *name, uint64_t id, const char *text)
{
	int n = gate->entered;

	tc_store(a, fid, name, id, 0, text, false);
	while (gate->entered == n)
		usleep(1000);
}

static void applied_next(struct tc *tc)
{
	cr_assert(eq(int, reply(tc), RF_APPLIED));
}

/* Behind the store that came before it, ahead of the one that came after; nobody reads in between. */
static void in_its_place(bool to_source)
{
	struct tc a, b;

	two_files(&a);
	tc_open(&b, sock, 2);
	tc_find(&b, "x", RF_LK_READ);
	tc_find(&b, "y", RF_LK_READ);
	if (to_source)
		stuck(&a, &x.fid, "x", 1, "1111");
	else
		stuck(&a, &y.fid, "y", 1, "1111");
	in_y.off = 2;
	tc_remap(&a, &in_x, &in_y, 2, RF_REMAP_COPY, 4);
	tc_store(&a, &x.fid, "x", 3, 0, "33", false);
	tc_store(&a, &y.fid, "y", 4, 0, "44", false);
	arrived(&a);
	tc_fetch(&b, &y.fid, "y", 0, 100, false);
	tc_fetch(&b, &x.fid, "x", 0, 100, false);
	NOTHING(&b);
	gate->shut = 0;
	cr_assert(eq(int, reply(&b), RF_FETCH_R));
	if (b.msg.body.rf_body_u.fetch_r.status.fid.ino == x.fid.ino)
		cr_assert(eq(int, reply(&b), RF_FETCH_R));
	while (b.msg.body.type != RF_FETCH_R ||
	       b.msg.body.rf_body_u.fetch_r.status.fid.ino != y.fid.ino)
		cr_assert(ne(int, reply(&b), 0));
	cr_assert(eq(sz, b.len, 6));
	cr_assert(not(memcmp(b.payload, to_source ? "441111" : "44xxxx", 6)));
	while (strcmp(get_file("x"), to_source ? "3311" : "33xx") != 0)
		cr_assert(ne(int, reply(&a), 0));
	tc_close(&a);
	tc_close(&b);
}

Test(server_two, behind_a_store_to_the_source)
{
	in_its_place(true);
}

Test(server_two, behind_a_store_to_the_file)
{
	in_its_place(false);
}

/* What was read before the copy is not what is answered after it. */
Test(server_two, read_across)
{
	struct tc a, b;

	two_files(&a);
	tc_open(&b, sock, 2);
	tc_find(&b, "y", RF_LK_READ);
	gate->reads_shut = 1;
	tc_fetch(&b, &y.fid, "y", 0, 100, true);
	while (!gate->entered)
		usleep(1000);
	tc_remap(&a, &in_x, &in_y, 1, RF_REMAP_COPY, 4);
	EXPECT(&a, RF_APPLIED);
	gate->reads_shut = 0;
	cr_assert(eq(int, reply(&b), RF_FETCH_R));
	cr_assert(eq(sz, b.len, 4));
	cr_assert(not(memcmp(b.payload, "xxxx", 4)));
	cr_assert(eq(u64, b.msg.body.rf_body_u.fetch_r.status.dv, applied(&a)->status.dv));
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

/* Each would take what the other has. */
Test(server_two, crosswise)
{
	struct tc a, b;
	uint64_t i;

	two_files(&a);
	tc_open(&b, sock, 2);
	tc_find(&b, "x", RF_LK_READ | RF_LK_WRITE);
	tc_find(&b, "y", RF_LK_READ | RF_LK_WRITE);
	stuck(&a, &x.fid, "x", 1, "1111");
	stuck(&a, &y.fid, "y", 2, "2222");
	for (i = 0; i < 10; i++) {
		tc_remap(&a, &in_x, &in_y, 10 + i, RF_REMAP_COPY, 1);
		arrived(&a);
		tc_remap(&b, &in_y, &in_x, 10 + i, RF_REMAP_COPY, 2);
		arrived(&b);
	}
	gate->shut = 0;
	for (i = 0; i < 10;) {
		int type = tc_recv(&b, 5);

		cr_assert(type == 0 || type == RF_BREAK || type == RF_APPLIED ||
			  type == RF_RELEASED);
		i += type == RF_RELEASED;
		if (type == RF_BREAK)
			tc_ack(&b, br(&b)->id);
		/* Each waits for what the other acknowledges. */
		while ((type = tc_recv(&a, 0)) > 0)
			if (type == RF_BREAK)
				tc_ack(&a, br(&a)->id);
	}
	/* "1222": 1 from x first, the second byte from y. */
	cr_assert(eq(str, (char *)get_file("y"), "1222"));
	cr_assert(eq(str, (char *)get_file("x"), "1211"));
	tc_close(&a);
	tc_close(&b);
}

/* Its connection is lost while it waits: it is done, once, and says so when it is asked for again. */
Test(server_two, lost_connection)
{
	struct tc a;

	two_files(&a);
	stuck(&a, &x.fid, "x", 1, "1111");
	in_y.off = 4;
	tc_remap(&a, &in_x, &in_y, 2, RF_REMAP_COPY, 3);
	arrived(&a);
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_remap(&a, &in_x, &in_y, 2, RF_REMAP_COPY, 3);
	arrived(&a);
	gate->shut = 0;
	applied_next(&a);
	cr_assert(eq(u64, applied(&a)->off, 3));
	cr_assert(eq(u64, applied(&a)->status.size, 7));
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("y"), "yyyy111"));
	/* And again. */
	others_write("x", 0, "9");
	tc_remap(&a, &in_x, &in_y, 2, RF_REMAP_COPY, 3);
	applied_next(&a);
	cr_assert(eq(u64, applied(&a)->off, 3));
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	cr_assert(eq(str, (char *)get_file("y"), "yyyy111"));
	tc_close(&a);
}

/* A source that is not there any more: whoever waits for the file goes on. */
Test(server_two, no_such_source)
{
	struct tc a;
	rf_fid gone;

	two_files(&a);
	gone = x.fid;
	gone.gen++;
	in_x.fid = &gone;
	stuck(&a, &y.fid, "y", 1, "1");
	tc_remap(&a, &in_x, &in_y, 2, RF_REMAP_COPY, 4);
	tc_store(&a, &y.fid, "y", 3, 1, "3", false);
	gate->shut = 0;
	applied_next(&a);
	EXPECT(&a, RF_RELEASED);
	ERROR(&a, ESTALE);
	applied_next(&a);
	cr_assert(eq(str, (char *)get_file("y"), "13yy"));
	tc_close(&a);
}

/* Of two exports, or of none. */
Test(server_two, other_volume)
{
	struct rf_msg m = {.body.type = RF_REMAP};
	rf_remap *r = &m.body.rf_body_u.remap;
	struct tc a;

	stop_server(SIGTERM);
	config.export[1].name = "z";
	config.export[1].where = base;
	config.nexports = 2;
	start_server();
	two_files(&a);
	r->kind = RF_REMAP_COPY;
	r->src.fid = x.fid;
	r->src.path = "x";
	r->file.fid = y.fid;
	r->file.path = "y";
	r->file.volume = a.volume;
	r->src.volume = a.volume + 1;
	r->request = 1;
	r->len = 1;
	/* Not attached to. */
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, -1);
	tc_close(&a);
	tc_open(&a, sock, 1);
	m.body.type = RF_VOLUME;
	m.body.rf_body_u.volume.name = "z";
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_VOLUME_R);
	memset(&m, 0, sizeof(m));
	m.body.type = RF_REMAP;
	r->kind = RF_REMAP_COPY;
	r->src.fid = x.fid;
	r->src.path = "x";
	r->file.fid = y.fid;
	r->file.path = "y";
	r->file.volume = a.volume;
	r->src.volume = a.msg.body.rf_body_u.volume_r.volume;
	cr_assert(ne(u32, r->src.volume, r->file.volume));
	r->request = 1;
	tc_send(&a, &m, NULL, 0);
	ERROR(&a, EXDEV);
	tc_close(&a);
}
