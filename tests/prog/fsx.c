/* SPDX-License-Identifier: MIT */
/*
 * fsx - everything that can be done to a file's content, at random, against a model in memory.
 *
 *	fsx [-s SEED] [-n OPS] [-p PROCESSES] [-r READERS] [-e KIND]... [-x model@OP|file@OP]
 *	    [-o LIST] [-i LIST] DIR WRAPPER...
 *
 * Each WRAPPER is a host: PROCESSES players are started by it, in DIR as it sees it.  This process has
 * no library and plays the third party: DIR is the server's own directory to it.  The files fsx.0,
 * fsx.1 ... must be there, and empty.  WRAPPER `native` stands for no library at all: this shows
 * that the model is what the kernel does.
 *
 * Players take turns.  Between two processes of a host nothing need be done for the one to see what the
 * other did; who hands over to another host flushes first; who comes after the third party looks
 * until its change has arrived.  In a `mixed` stretch nobody flushes: hosts store to other bytes each.
 *
 * READERS more look at the files all the while, so that pages are fetched, mapped and thrown away at any
 * moment.
 *
 * Each op follows from the seed, its number and the model, so the same seed, processes and hosts give the
 * same ops again on the same file system.  -o writes them to LIST, the seed first, then a line each, -i does what
 * LIST says instead: lines may be taken out.  -n stops after so many; -e leaves out a kind, or a mode of
 * fallocate.  What a file system lacks is asked of it
 * first; such a call must fail the same way and change nothing.
 *
 * -x at this op changes a byte of the model, or of the file behind everybody's back: shows that it is found.
 */
#include <dlfcn.h>
#include <linux/fs.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "fsx_model.h"

enum {
	MAPS = 2,     /* that live long, of each file: one to store to, one to read */
	SHOWN = 40,   /* last ops that are shown on failure */
	HANG = 300,   /* seconds for an op */
	SETTLE = 120, /* seconds for the third party's change to arrive */
	MIXED_OPS = 60,
	CHILD_OPS = 12,
	DEFAULT_OPS = 10000,
};

/* What a player has of a file. */
struct mine {
	int fd, append_fd; /* -1: not open */
	char *map[MAPS];
	char path[200];
};

static unsigned me; /* player */
static bool in_child;
static struct mine mine[FILES];
static unsigned char buf[MAX_SIZE + PAGE], bytes[MAX_SIZE];
static sigjmp_buf bus;
static volatile sig_atomic_t touching;
static uint64_t excluded; /* kinds */
static ssize_t (*finvalidate)(int fd, int flags);

static unsigned host_of(unsigned player)
{
	return player / b->procs; /* the third party's is behind the last */
}

static bool third(void)
{
	return me == b->players;
}

/* ---- telling ---- */

static void print_op(FILE *to, uint32_t n)
{
	const struct op *o = &b->op[n];
	char who[16];

	if (o->player == b->players)
		snprintf(who, sizeof(who), "third");
	else
		snprintf(who, sizeof(who), "%c%u", 'A' + (int)host_of(o->player),
			 o->player % b->procs);
	fprintf(to, "%8u %-5s %-10s f%u off 0x%x len 0x%x, f%u off 0x%x, how %u%s", n, who,
		kinds[o->kind].name, o->file, o->off, o->len, o->file2, o->off2, o->how,
		o->mixed ? ", mixed" : "");
	if (n < b->n && o->result < 0)
		fprintf(to, " = %s\n", strerror((int)-o->result));
	else if (n < b->n)
		fprintf(to, " = 0x%" PRIx64 "\n", o->result);
	else
		fprintf(to, "\n");
}

static _Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&b->failed, 1))
		_exit(1);
	fprintf(stderr, "fsx: seed %" PRIu64 ", op %u%s: ", b->seed, b->n,
		in_child ? ", in a fork child" : "");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nfsx: sizes 0x%zx 0x%zx 0x%zx; the last ops:\n", model(0)->size,
		model(1)->size, model(2)->size);
	for (uint32_t n = b->n < SHOWN ? 1 : b->n - SHOWN + 1; n <= b->n; n++)
		print_op(stderr, n);
	syscall(SYS_futex, &b->turn, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	_exit(1);
}

/* Where got differs from the model, but for bytes that another host has not flushed; n: nowhere. */
static size_t differs(const struct model *m, size_t off, const unsigned char *got, size_t n)
{
	const unsigned char *want = m->data + off;
	unsigned mark = host_of(me) + 1;

	if (memcmp(got, want, n) == 0)
		return n;
	for (size_t i = 0; i < n; i++)
		if (got[i] != want[i] &&
		    (m->unflushed[off + i] == 0 || m->unflushed[off + i] == mark))
			return i;
	return n;
}

static void compare(unsigned file, size_t off, const unsigned char *got, size_t n, const char *how)
{
	const struct model *m = model(file);
	size_t at = differs(m, off, got, n), wrong = 0, last = at;

	if (at == n)
		return;
	for (size_t i = at; i < n; i++)
		if (got[i] != m->data[off + i]) {
			wrong++;
			last = i;
		}
	uint32_t owner = m->owner[off + at];
	fprintf(stderr, "fsx: last touched by op\n");
	print_op(stderr, owner);
	fail("f%u, %s of 0x%zx bytes at 0x%zx: at 0x%zx found 0x%02x, should be 0x%02x; %zu bytes "
	     "up to 0x%zx are wrong; last touched by op %u, size is 0x%zx",
	     file, how, n, off, off + at, got[at], m->data[off + at], wrong, off + last, owner,
	     m->size);
}

/* A call's value, or -errno. */
#define CALL(x)                                                                                    \
	__extension__({                                                                            \
		int64_t r_ = (int64_t)(x);                                                         \
		r_ < 0 ? -(int64_t)errno : r_;                                                     \
	})

static void expect(const char *what, int64_t got, int64_t want)
{
	b->op[b->n].result = got;
	if (got == want)
		return;
	fail("%s: got %" PRId64 "%s%s, should be %" PRId64 "%s%s", what, got, got < 0 ? " " : "",
	     got < 0 ? strerror((int)-got) : "", want, want < 0 ? " " : "",
	     want < 0 ? strerror((int)-want) : "");
}

/* ---- what a player has ---- */

static int fd_of(unsigned file)
{
	struct mine *f = &mine[file];

	if (f->fd < 0)
		f->fd = open(f->path, O_RDWR | O_CLOEXEC);
	if (f->fd < 0)
		fail("open %s: %s", f->path, strerror(errno));
	return f->fd;
}

static char *map_of(unsigned file, unsigned which)
{
	struct mine *f = &mine[file];

	if (!f->map[which]) {
		void *m = mmap(NULL, MAX_SIZE, which == 0 ? PROT_READ | PROT_WRITE : PROT_READ,
			       MAP_SHARED, fd_of(file), 0);
		if (m == MAP_FAILED)
			fail("mmap of %s: %s", f->path, strerror(errno));
		f->map[which] = m;
	}
	return f->map[which];
}

static void unmap(unsigned file, unsigned which)
{
	struct mine *f = &mine[file];

	if (f->map[which] && munmap(f->map[which], MAX_SIZE))
		fail("munmap: %s", strerror(errno));
	f->map[which] = NULL;
}

/* The file's page or pages at off, mapped for one use. */
static char *map_once(unsigned file, size_t off, size_t n, int prot, int flags, size_t *len)
{
	size_t start = off / PAGE * PAGE;

	*len = off + n - start;
	char *m = mmap(NULL, *len, prot, flags, fd_of(file), (off_t)start);
	if (m == MAP_FAILED)
		fail("mmap of f%u at 0x%zx: %s", file, start, strerror(errno));
	return m;
}

static void on_bus(int sig)
{
	if (touching)
		siglongjmp(bus, 1);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* false: SIGBUS */
static bool touch(void *to, const void *from, size_t n)
{
	if (sigsetjmp(bus, 1)) {
		touching = 0;
		return false;
	}
	touching = 1;
	memcpy(to, from, n);
	touching = 0;
	return true;
}

/* What op n stores: zeros, one byte's value, or all different. */
static void make_bytes(const struct op *o, size_t n)
{
	uint64_t s = sequence(b->seed, o->fill, 2);
	unsigned how = pick(&s, 16);

	if (how < 2) {
		memset(bytes, how == 0 ? 0 : (int)(o->fill & 0xff), n);
		return;
	}
	for (size_t i = 0; i < n; i += 8) {
		uint64_t v = random64(&s);
		memcpy(bytes + i, &v, n - i < 8 ? n - i : 8);
	}
}

static size_t page_end(size_t size)
{
	return (size + PAGE - 1) / PAGE * PAGE;
}

static size_t below(size_t n, size_t limit)
{
	return n < limit ? n : limit;
}

/* How much there is to read of n bytes at off. */
static size_t there(const struct model *m, size_t off, size_t n)
{
	return off >= m->size ? 0 : below(n, m->size - off);
}

/* In a mixed stretch nobody extends a file, or stores to what another host did not flush. */
static size_t storable(const struct op *o, size_t off, size_t n)
{
	const struct model *m = model(o->file);
	size_t i;

	if (!o->mixed)
		return n;
	n = there(m, off, n);
	for (i = 0;
	     i < n && (m->unflushed[off + i] == 0 || m->unflushed[off + i] == host_of(me) + 1);)
		i++;
	return i;
}

static void stored(const struct op *o, size_t off, size_t n)
{
	struct model *m = model(o->file);

	model_write(m, off, bytes, n);
	if (o->mixed) {
		memset(m->unflushed + off, (int)host_of(me) + 1, n);
		b->marks |= (uint8_t)(1 << host_of(me));
	}
}

static void flushed(unsigned file)
{
	struct model *m = model(file);
	unsigned mark = host_of(me) + 1;

	if (!(b->marks & 1 << host_of(me)))
		return;
	for (size_t i = 0; i < MAX_SIZE; i++)
		if (m->unflushed[i] == mark)
			m->unflushed[i] = 0;
}

static void flush(unsigned file, unsigned how)
{
	int64_t r;

	if (how % 4 == 2)
		r = CALL(fdatasync(fd_of(file)));
	else if (how % 4 == 3 && mine[file].map[0])
		r = CALL(msync(mine[file].map[0], MAX_SIZE, MS_SYNC));
	else
		r = CALL(fsync(fd_of(file)));
	expect("flush", r, 0);
	flushed(file);
}

static void flush_all(unsigned how)
{
	for (unsigned i = 0; i < FILES; i++)
		flush(i, how);
	b->marks &= (uint8_t) ~(1 << host_of(me));
}

/* ---- ops ---- */

static void whole(unsigned file)
{
	struct model *m = model(file);
	struct stat st;

	if (fstat(fd_of(file), &st))
		fail("fstat: %s", strerror(errno));
	expect("size by fstat", st.st_size, (int64_t)m->size);
	expect("pread of the whole file", CALL(pread(fd_of(file), buf, MAX_SIZE, 0)),
	       (int64_t)m->size);
	compare(file, 0, buf, m->size, "pread");
}

static void do_CHECK(const struct op *o)
{
	(void)o;
	for (unsigned i = 0; i < FILES; i++) {
		struct model *m = model(i);
		size_t n = m->polluted ? m->size : page_end(m->size);

		whole(i);
		if (third())
			continue;
		if (!touch(buf, map_of(i, i % MAPS), n))
			fail("f%u: SIGBUS below the end of file", i);
		compare(i, 0, buf, n, "mapped read of all");
	}
}

static void do_READ(const struct op *o)
{
	int fd = fd_of(o->file);
	size_t want = there(model(o->file), o->off, o->len);
	int64_t r;

	memset(buf, 0xa5, 64);
	if (o->how % 4 == 0) {
		struct iovec v[3] = {
		    {buf, o->len / 3},
		    {buf + o->len / 3, o->len / 5},
		    {buf + o->len / 3 + o->len / 5, o->len - o->len / 3 - o->len / 5}};
		r = CALL(preadv(fd, v, 3, o->off));
	} else if (o->how % 4 == 1) {
		expect("lseek", CALL(lseek(fd, o->off, SEEK_SET)), o->off);
		r = CALL(read(fd, buf, o->len));
		expect("position after read", CALL(lseek(fd, 0, SEEK_CUR)), o->off + (int64_t)want);
	} else {
		r = CALL(pread(fd, buf, o->len, o->off));
	}
	expect("read", r, (int64_t)want);
	compare(o->file, o->off, buf, want, "read");
}

static void do_WRITE(const struct op *o)
{
	int fd = fd_of(o->file);
	size_t n = storable(o, o->off, o->len);
	int64_t r;

	make_bytes(o, n);
	if (o->how % 4 == 0) {
		struct iovec v[2] = {{bytes, n / 3}, {bytes + n / 3, n - n / 3}};
		r = CALL(pwritev(fd, v, 2, o->off));
	} else if (o->how % 4 == 1) {
		expect("lseek", CALL(lseek(fd, o->off, SEEK_SET)), o->off);
		r = CALL(write(fd, bytes, n));
	} else {
		r = CALL(pwrite(fd, bytes, n, o->off));
	}
	expect("write", r, (int64_t)n);
	stored(o, o->off, n);
}

static void do_APPEND(const struct op *o)
{
	struct mine *f = &mine[o->file];
	struct model *m = model(o->file);
	size_t n = below(o->len, MAX_SIZE - m->size);

	if (f->append_fd < 0)
		f->append_fd = open(f->path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (f->append_fd < 0)
		fail("open %s to append: %s", f->path, strerror(errno));
	make_bytes(o, n);
	expect("append", CALL(write(f->append_fd, bytes, n)), (int64_t)n);
	stored(o, m->size, n);
}

static void do_MAPREAD(const struct op *o)
{
	struct model *m = model(o->file);
	size_t end = m->polluted ? m->size : page_end(m->size), len;
	size_t n = o->off >= end ? 0 : below(o->len, end - o->off);
	char *at;
	bool ok;

	if (n == 0)
		return;
	if (o->how % 4 < MAPS) {
		ok = touch(buf, map_of(o->file, o->how % 4) + o->off, n);
	} else {
		at = map_once(o->file, o->off, n, PROT_READ,
			      o->how % 4 == 2 ? MAP_SHARED : MAP_PRIVATE, &len);
		ok = touch(buf, at + o->off % PAGE, n);
		munmap(at, len);
	}
	if (!ok)
		fail("f%u: SIGBUS at 0x%x, 0x%zx bytes, size 0x%zx", o->file, o->off, n, m->size);
	compare(o->file, o->off, buf, n, "mapped read");
}

static void do_MAPWRITE(const struct op *o)
{
	struct model *m = model(o->file);
	size_t n = storable(o, o->off, there(m, o->off, o->len)), len = 0;
	char *at = NULL, *to;

	if (n == 0)
		return;
	make_bytes(o, n);
	if (o->how % 4 == 3) {
		at = map_once(o->file, o->off, n, PROT_READ | PROT_WRITE, MAP_SHARED, &len);
		to = at + o->off % PAGE;
	} else {
		to = map_of(o->file, 0) + o->off;
	}
	if (!touch(to, bytes, n))
		fail("f%u: SIGBUS at 0x%x, 0x%zx bytes, size 0x%zx", o->file, o->off, n, m->size);
	stored(o, o->off, n);
	if (o->how % 16 < 2 && !o->mixed)
		expect("msync",
		       CALL(msync(to - o->off % PAGE, n + o->off % PAGE,
				  o->how % 16 ? MS_SYNC : MS_ASYNC)),
		       0);
	if (at)
		munmap(at, len);
}

/* A read whose buffer is a mapping of another file, or of another place of the same one. */
static void do_READ_INTO(const struct op *o)
{
	struct model *from = model(o->file), *to = model(o->file2);
	size_t n = below(there(from, o->off, o->len), there(to, o->off2, o->len));

	if (n == 0 || (from == to && overlap(o->off, o->off2, n)))
		return;
	expect("pread into a mapping",
	       CALL(pread(fd_of(o->file), map_of(o->file2, 0) + o->off2, n, o->off)), (int64_t)n);
	model_copy(to, o->off2, from, o->off, n);
}

static void do_WRITE_FROM(const struct op *o)
{
	struct model *to = model(o->file), *from = model(o->file2);
	size_t n = there(from, o->off2, o->len);

	if (n == 0 || (from == to && overlap(o->off, o->off2, n)))
		return;
	expect("pwrite from a mapping",
	       CALL(pwrite(fd_of(o->file), map_of(o->file2, o->how % MAPS) + o->off2, n, o->off)),
	       (int64_t)n);
	model_copy(to, o->off, from, o->off2, n);
}

/* Stores behind the end of file, in its last page: they are never part of the file. */
static void do_POLLUTE(const struct op *o)
{
	struct model *m = model(o->file);
	size_t end = page_end(m->size);

	/* Linux promises less: tmpfs keeps them, ext4 and xfs lose them sooner or later. */
	if (end == m->size || b->native)
		return;
	memset(bytes, 0xee, PAGE);
	if (!touch(map_of(o->file, 0) + m->size, bytes, end - m->size))
		fail("f%u: SIGBUS in the last page", o->file);
	m->polluted = true;
}

static void do_PAST_EOF(const struct op *o)
{
	struct model *m = model(o->file);

	if (page_end(m->size) + PAGE > MAX_SIZE)
		return;
	if (touch(buf, map_of(o->file, o->how % MAPS) + page_end(m->size), 1))
		fail("f%u: no SIGBUS behind the last page", o->file);
}

static void do_TRUNCATE(const struct op *o)
{
	if (o->how % 4 == 0)
		expect("truncate", CALL(truncate(mine[o->file].path, o->off)), 0);
	else
		expect("ftruncate", CALL(ftruncate(fd_of(o->file), o->off)), 0);
	set_size(model(o->file), o->off);
}

static void do_OPEN_TRUNC(const struct op *o)
{
	struct mine *f = &mine[o->file];
	int fd = open(f->path, O_RDWR | O_TRUNC | O_CLOEXEC);

	if (fd < 0)
		fail("open %s with O_TRUNC: %s", f->path, strerror(errno));
	if (f->fd >= 0)
		close(f->fd);
	f->fd = fd;
	set_size(model(o->file), 0);
}

static void do_FALLOC(const struct op *o)
{
	struct model *m = model(o->file);

	if (o->how == INSERT && m->size + o->len > MAX_SIZE) /* in a list that was shortened */
		return;
	int64_t r = CALL(fallocate(fd_of(o->file), mode_flags[o->how], o->off, o->len));
	expect("fallocate", r, model_falloc(m, o->how, o->off, o->len));
}

static void do_CLONE(const struct op *o)
{
	struct file_clone_range c = {fd_of(o->file2), o->off2, o->len, o->off};
	int64_t r;

	if (o->len == 0 && o->off + there(model(o->file2), o->off2, MAX_SIZE) > MAX_SIZE)
		return;
	if (o->how % 8 == 0 && o->len == 0 && o->off == 0 && o->off2 == 0)
		r = CALL(ioctl(fd_of(o->file), FICLONE, fd_of(o->file2)));
	else
		r = CALL(ioctl(fd_of(o->file), FICLONERANGE, &c));
	expect("clone", r, model_clone(model(o->file), o->off, model(o->file2), o->off2, o->len));
}

static void do_DEDUPE(const struct op *o)
{
	struct model *to = model(o->file), *from = model(o->file2);
	size_t n = there(from, o->off2, o->len);
	union {
		struct file_dedupe_range range;
		char room[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
	} d = {.range = {.src_offset = o->off2, .src_length = o->len, .dest_count = 1}};
	struct file_dedupe_range_info *info = d.range.info;

	/* Mostly they are made equal first, or they never would be. */
	if (o->how % 4 && n && !(to == from && overlap(o->off, o->off2, n))) {
		memcpy(bytes, from->data + o->off2, n);
		if (o->how % 4 == 1)
			bytes[n / 2] ^= 1;
		expect("pwrite of what is to be deduped",
		       CALL(pwrite(fd_of(o->file), bytes, n, o->off)), (int64_t)n);
		model_write(to, o->off, bytes, n);
	}
	info->dest_fd = fd_of(o->file);
	info->dest_offset = o->off;
	int64_t r = CALL(ioctl(fd_of(o->file2), FIDEDUPERANGE, &d));
	if (r == 0)
		r = info->status;
	expect("dedupe", r, model_dedupe(to, o->off, from, o->off2, o->len));
	if (r == 0 &&
	    (info->bytes_deduped > o->len || info->bytes_deduped < o->len / b->block * b->block))
		fail("dedupe of 0x%x bytes did 0x%" PRIx64, o->len, (uint64_t)info->bytes_deduped);
}

static void do_COPY(const struct op *o)
{
	struct model *to = model(o->file), *from = model(o->file2);
	size_t want = there(from, o->off2, o->len);
	off_t in = o->off2, out = o->off;
	int64_t r, done = 0;

	if (o->how % 4 == 0) {
		expect("lseek", CALL(lseek(fd_of(o->file2), in, SEEK_SET)), in);
		if (o->file != o->file2)
			expect("lseek", CALL(lseek(fd_of(o->file), out, SEEK_SET)), out);
	}
	do {
		bool place = o->how % 4 == 0;
		r = CALL(copy_file_range(fd_of(o->file2), place ? NULL : &in, fd_of(o->file),
					 place && to != from ? NULL : &out, o->len - (size_t)done,
					 0));
		if (r <= 0)
			break;
		model_copy(to, o->off + (size_t)done, from, o->off2 + (size_t)done, (size_t)r);
		done += r;
		if (place)
			in += r;
		if (place && to != from)
			out += r;
		if (in != o->off2 + done || out != o->off + done)
			fail("copy_file_range did 0x%" PRIx64 " bytes, offsets are 0x%" PRIx64
			     " and 0x%" PRIx64,
			     done, (uint64_t)in, (uint64_t)out);
	} while ((size_t)done < want);
	if (o->how % 4 == 0 && r >= 0)
		expect("position after copy_file_range", CALL(lseek(fd_of(o->file2), 0, SEEK_CUR)),
		       in);
	if (b->probe[CAN_COPY])
		expect("copy_file_range", r, -b->probe[CAN_COPY]);
	else if (to == from && overlap(o->off, o->off2, want))
		expect("copy_file_range", r, -EINVAL);
	else if (r < 0)
		expect("copy_file_range", r, (int64_t)want);
	else
		expect("copy_file_range", done, (int64_t)want);
}

static void do_SENDFILE(const struct op *o)
{
	struct model *to = model(o->file), *from = model(o->file2);
	size_t want = there(from, o->off2, o->len), done = 0;
	off_t in = o->off2;

	if (to == from)
		return;
	expect("lseek", CALL(lseek(fd_of(o->file), o->off, SEEK_SET)), o->off);
	do {
		int64_t r = CALL(sendfile(fd_of(o->file), fd_of(o->file2), &in, o->len - done));
		if (r < 0)
			expect("sendfile", r, (int64_t)want);
		if (r == 0)
			break;
		model_copy(to, o->off + done, from, o->off2 + done, (size_t)r);
		done += (size_t)r;
	} while (done < want);
	expect("sendfile", (int64_t)done, (int64_t)want);
	expect("sendfile's offset", in, o->off2 + (int64_t)want);
	expect("position after sendfile", CALL(lseek(fd_of(o->file), 0, SEEK_CUR)),
	       o->off + (int64_t)want);
}

static void do_SPLICE(const struct op *o)
{
	struct model *to = model(o->file), *from = model(o->file2);
	size_t want = there(from, o->off2, o->len), done = 0;
	loff_t in = o->off2, out = o->off;
	int pipes[2];

	if (to == from || pipe2(pipes, O_CLOEXEC))
		return;
	while (done < want) {
		int64_t r = CALL(splice(fd_of(o->file2), &in, pipes[1], NULL, want - done, 0));
		if (r <= 0)
			expect("splice to a pipe", r, (int64_t)(want - done));
		for (int64_t left = r; left > 0;) {
			int64_t w =
			    CALL(splice(pipes[0], NULL, fd_of(o->file), &out, (size_t)left, 0));
			if (w <= 0)
				expect("splice from a pipe", w, left);
			model_copy(to, o->off + done, from, o->off2 + done, (size_t)w);
			done += (size_t)w;
			left -= w;
		}
	}
	expect("splice's offset", in, o->off2 + (int64_t)want);
	expect("splice's offset", out, o->off + (int64_t)want);
	close(pipes[0]);
	close(pipes[1]);
}

static void do_SEEK(const struct op *o)
{
	const struct model *m = model(o->file);
	bool hole = o->how % 2;
	int64_t r = CALL(lseek(fd_of(o->file), o->off, hole ? SEEK_HOLE : SEEK_DATA));
	size_t i, end = r < 0 ? m->size : (size_t)r;

	b->op[b->n].result = r;
	if (o->off >= m->size) {
		expect("lseek behind the end", r, -ENXIO);
		return;
	}
	if (r < 0 && (hole || r != -ENXIO))
		fail("lseek: %s", strerror((int)-r));
	if (end < o->off || end > m->size || (!hole && r >= 0 && end == m->size))
		fail("lseek from 0x%x for %s came to 0x%zx", o->off, hole ? "a hole" : "data", end);
	if (hole) {
		if (end < m->size && m->data[end])
			fail("lseek: hole at 0x%zx, where op %u stored", end, m->owner[end]);
		return;
	}
	for (i = o->off; i < end; i++)
		if (m->data[i])
			fail("lseek for data from 0x%x came to 0x%zx, but there is some at 0x%zx, "
			     "by op %u",
			     o->off, end, i, m->owner[i]);
}

static void do_FSYNC(const struct op *o)
{
	flush(o->file, o->how);
}

static void do_FLUSH(const struct op *o)
{
	flush_all(o->how);
}

static void do_INVALIDATE(const struct op *o)
{
	if (!finvalidate)
		return;
	int64_t r = CALL(finvalidate(fd_of(o->file), o->how % 2)); /* 1: REFAULT_FLUSH */
	if (r < 0 || (o->how % 2 && r > 0))
		expect("refault_finvalidate", r, 0);
}

static void do_ADVISE(const struct op *o)
{
	static const int advice[] = {POSIX_FADV_DONTNEED, POSIX_FADV_WILLNEED, POSIX_FADV_RANDOM,
				     POSIX_FADV_SEQUENTIAL};

	if (o->how % 5 == 4)
		expect("readahead", CALL(readahead(fd_of(o->file), o->off, o->len)), 0);
	else
		expect("posix_fadvise",
		       -posix_fadvise(fd_of(o->file), o->off, o->len, advice[o->how % 5]), 0);
}

/* Whole pages that there are, at off; 0: none. */
static size_t pages_there(const struct op *o)
{
	size_t start = o->off / PAGE * PAGE, end = page_end(model(o->file)->size);

	return start >= end ? 0 : below(page_end(o->len), end - start);
}

static void do_MADVISE(const struct op *o)
{
	static const int advice[] = {MADV_DONTNEED, MADV_WILLNEED, MADV_POPULATE_READ,
				     MADV_POPULATE_WRITE};
	static const char *const name[] = {"MADV_DONTNEED", "MADV_WILLNEED", "MADV_POPULATE_READ",
					   "MADV_POPULATE_WRITE"};
	size_t n = pages_there(o);

	if (n)
		expect(
		    name[o->how % 4],
		    CALL(madvise(map_of(o->file, 0) + o->off / PAGE * PAGE, n, advice[o->how % 4])),
		    0);
}

static void do_REMOVE(const struct op *o)
{
	size_t n = pages_there(o), start = o->off / PAGE * PAGE;

	if (n == 0)
		return;
	expect("MADV_REMOVE", CALL(madvise(map_of(o->file, 0) + start, n, MADV_REMOVE)),
	       model_falloc(model(o->file), PUNCH, start, n));
}

static void do_MINCORE(const struct op *o)
{
	unsigned char vec[MAX_SIZE / PAGE];
	size_t n = pages_there(o);

	if (n)
		expect("mincore", CALL(mincore(map_of(o->file, 1) + o->off / PAGE * PAGE, n, vec)),
		       0);
}

static void do_MLOCK(const struct op *o)
{
	size_t n = pages_there(o);
	char *at = map_of(o->file, o->how % MAPS) + o->off / PAGE * PAGE;

	if (n == 0)
		return;
	expect("mlock", CALL(mlock(at, n)), 0);
	expect("munlock", CALL(munlock(at, n)), 0);
}

static void do_UNMAP(const struct op *o)
{
	unmap(o->file, o->how % MAPS);
}

static void do_MREMAP(const struct op *o)
{
	struct mine *f = &mine[o->file];
	unsigned which = o->how % MAPS;
	void *to = mmap(NULL, MAX_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	map_of(o->file, which);
	if (to == MAP_FAILED || mremap(f->map[which], MAX_SIZE, MAX_SIZE,
				       MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		fail("mremap: %s", strerror(errno));
	f->map[which] = to;
}

static void do_REOPEN(const struct op *o)
{
	struct mine *f = &mine[o->file];

	for (unsigned i = 0; i < MAPS && o->how % 2; i++)
		unmap(o->file, i);
	if (f->append_fd >= 0)
		close(f->append_fd);
	if (f->fd >= 0 && close(f->fd))
		fail("close: %s", strerror(errno));
	f->fd = f->append_fd = -1;
}

static void do_STAT(const struct op *o)
{
	struct stat st = {0};

	if (o->how % 2)
		expect("stat", CALL(stat(mine[o->file].path, &st)), 0);
	else
		expect("fstat", CALL(fstat(fd_of(o->file), &st)), 0);
	expect("size", st.st_size, (int64_t)model(o->file)->size);
}

static void play(bool only_here);

/* A child goes on for some ops with what it inherited. */
static void do_FORK(const struct op *o)
{
	int status;

	b->child_end = b->n++ + o->len;
	pid_t pid = fork();
	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (pid == 0) {
		in_child = true;
		play(true);
		if (o->how % 2)
			_exit(0);
		exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		fail("a fork child ended with status 0x%x", (unsigned)status);
	b->child_end = --b->n;
}

static void (*const doers[])(const struct op *o) = {
#define X(name, weight, where) do_##name,
    OPS(X)
#undef X
};

/* ---- what comes next ---- */

static size_t some_offset(uint64_t *s, size_t size)
{
	size_t off;

	switch (pick(s, 8)) {
	case 0:
	case 1:
		off = pick(s, size + 1) / PAGE * PAGE;
		break;
	case 2:
		off = pick(s, size + 1) / b->block * b->block;
		break;
	case 3:
		off = size - pick(s, below(size, 300) + 1);
		break;
	case 4: /* wherever */
		off = pick(s, 8) ? pick(s, size + 1) : pick(s, MAX_SIZE + 1);
		break;
	default:
		off = pick(s, size + 1);
		break;
	}
	return off;
}

static size_t some_length(uint64_t *s)
{
	static const unsigned limits[] = {64,   64,       64,       PAGE,     PAGE,
					  PAGE, 2 * PAGE, 8 * PAGE, 8 * PAGE, 32 * PAGE};
	size_t n = pick(s, limits[pick(s, 10)]) + 1;

	return pick(s, 4) ? n : page_end(n);
}

static bool may_come(unsigned kind, unsigned where)
{
	return (kinds[kind].where & where) == where && !(b->excluded >> kind & 1);
}

static unsigned some_kind(uint64_t *s, unsigned where)
{
	unsigned all = 0, i, at;

	for (i = 0; i < KINDS; i++)
		if (may_come(i, where))
			all += kinds[i].weight;
	at = pick(s, all);
	for (i = 0;; i++) {
		if (!may_come(i, where))
			continue;
		if (at < kinds[i].weight)
			return i;
		at -= kinds[i].weight;
	}
}

static void choose_player(uint64_t *s, struct op *o, unsigned before)
{
	o->player = (uint8_t)before;
	if (b->n <= b->child_end ||
	    b->players == 0) /* the analyzer wants to know that there are some */
		return;
	if (b->mixed) {
		if (pick(s, 8) == 0)
			o->player = (uint8_t)pick(s, b->players);
	} else if (before == b->players ? pick(s, 2) == 0 : pick(s, 40) == 0) {
		o->player = (uint8_t)pick(s, b->players);
	} else if (pick(s, 1000) == 0) {
		o->player = (uint8_t)b->players;
	}
}

static void choose(struct op *o, unsigned before)
{
	static const uint8_t modes[] = {ALLOC,  KEEP,      PUNCH,    PUNCH,    PUNCH,
					ZERO,   ZERO_KEEP, COLLAPSE, COLLAPSE, COLLAPSE,
					INSERT, INSERT,    INSERT,   UNSHARE,  UNSHARE_KEEP};
	uint64_t s = sequence(b->seed, b->n, 1);

	memset(o, 0, sizeof(*o));
	o->fill = b->n;
	choose_player(&s, o, before);
	o->mixed = b->mixed != 0;
	if (b->n >= b->asked) { /* in the end everybody looks, the third party last */
		o->player = (uint8_t)below(b->n - b->asked, b->players);
		o->kind = CHECK;
		o->mixed = 0;
		return;
	}
	if (b->mixed && b->mixed <= b->hosts) { /* a stretch ends with everybody's flush */
		o->player = (uint8_t)((b->hosts - b->mixed) * b->procs);
		o->kind = FLUSH;
		o->how = (uint8_t)pick(&s, 256);
		b->mixed--;
		return;
	}
	if (b->mixed)
		b->mixed--;
	else if (b->hosts > 1 && b->n > b->child_end && o->player < b->players &&
		 pick(&s, 400) == 0 && b->n + 2 * MIXED_OPS < b->asked) {
		b->mixed = MIXED_OPS + b->hosts;
		o->kind = FLUSH;
		return;
	}
	o->file = (uint8_t)pick(&s, FILES);
	o->file2 = (uint8_t)pick(&s, FILES);
	o->how = (uint8_t)pick(&s, 256);
	do
		o->kind = (uint8_t)some_kind(&s, o->mixed                  ? MIXED
						 : o->player == b->players ? THIRD
									   : 0);
	while (o->kind == FORK && b->n <= b->child_end);

	const struct model *m = model(o->file), *m2 = model(o->file2);
	size_t off = some_offset(&s, m->size), off2 = some_offset(&s, m2->size);
	size_t n = some_length(&s);
	bool blocks = pick(&s, 8) != 0;

	switch (o->kind) {
	case TRUNCATE:
		off = pick(&s, 2) ? off : pick(&s, MAX_SIZE + 1);
		break;
	case FALLOC:
		do
			o->how = modes[pick(&s, sizeof(modes))];
		while (b->excluded >> (KINDS + o->how) & 1);
		if ((o->how == COLLAPSE || o->how == INSERT) && blocks) {
			off = off / b->block * b->block;
			n = (n + b->block - 1) / b->block * b->block;
		}
		if (o->how == INSERT)
			n = below(n, MAX_SIZE - m->size);
		break;
	case DEDUPE:
	case CLONE:
		if (blocks) {
			off = off / b->block * b->block;
			off2 = off2 / b->block * b->block;
		}
		if (pick(&s, 4) == 0 && off2 < m2->size) /* to the end */
			n = m2->size - off2;
		else if (blocks)
			n = (n + b->block - 1) / b->block * b->block;
		if (o->kind == CLONE && pick(&s, 16) == 0)
			n = off = off2 = 0;
		break;
	case FORK:
		n = 1 + pick(&s, CHILD_OPS);
		off = 0;
		break;
	default:
		break;
	}
	o->off = (uint32_t)below(off, MAX_SIZE);
	o->off2 = (uint32_t)below(off2, MAX_SIZE);
	/* No op makes a file larger than the model can be. */
	o->len = (uint32_t)below(n, MAX_SIZE - o->off);
}

/* ---- turns ---- */

static void wait_change(uint32_t seen)
{
	const struct timespec look = {0, 200000000};

	syscall(SYS_futex, &b->turn, FUTEX_WAIT, seen, &look, NULL, 0);
}

static void hand_to(unsigned player)
{
	atomic_store(&b->turn, player);
	syscall(SYS_futex, &b->turn, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Until everything that the third party did has arrived. */
static void settle(void)
{
	double end = now() + SETTLE;

	for (unsigned i = 0; i < FILES; i++)
		for (;;) {
			int64_t r = CALL(pread(fd_of(i), buf, MAX_SIZE, 0));
			if (r == (int64_t)model(i)->size &&
			    differs(model(i), 0, buf, model(i)->size) == model(i)->size)
				break;
			if (now() > end) {
				fprintf(stderr, "fsx: the third party's change did not arrive\n");
				whole(i);
			}
			pause_us(100);
		}
	b->settle[host_of(me)] = false;
}

static void lie(void)
{
	struct model *m = model(0);
	size_t at = m->size / 2;

	if (m->size == 0) {
		b->lie_at++;
		return;
	}
	unsigned char c = (unsigned char)(m->data[at] ^ 0xff);
	if (!b->lie_file)
		m->data[at] = c;
	else if (pwrite(fd_of(0), &c, 1, (off_t)at) != 1)
		fail("pwrite: %s", strerror(errno));
}

/* This player's turn: until an op is another's.  only_here: until a child's are done. */
static void play(bool only_here)
{
	for (;;) {
		struct op *o = &b->op[b->n];

		if (only_here && b->n > b->child_end)
			return;
		if (b->n >= b->made) {
			choose(o, b->n > 1 ? b->op[b->n - 1].player : 0);
			b->made = b->n + 1;
		}
		if (o->player != me) {
			if (only_here)
				return;
			if (third())
				memset(b->settle, 1, sizeof(b->settle));
			else if (host_of(o->player) != host_of(me) && !(o->mixed && o[-1].mixed))
				flush_all(b->n);
			hand_to(o->player);
			return;
		}
		if (!third() && b->settle[host_of(me)])
			settle();
		if (b->n == b->lie_at)
			lie();
		/* A list that was shortened may lack a stretch's last flush. */
		if (o->mixed || !(b->marks & ~(1 << host_of(me))))
			doers[o->kind](o);
		b->n++;
		if (b->n == b->total) {
			if (!only_here)
				hand_to(PLAYERS);
			return;
		}
	}
}

static void prepare(unsigned player, const char *dir)
{
	struct sigaction sa = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};

	me = player;
	for (int i = 0; i < FILES; i++) {
		mine[i].fd = mine[i].append_fd = -1;
		snprintf(mine[i].path, sizeof(mine[i].path), "%s/fsx.%d", dir, i);
	}
	sigaction(SIGBUS, &sa, NULL);
	void *sym = dlsym(RTLD_DEFAULT, "refault_finvalidate");
	memcpy(&finvalidate, &sym, sizeof(sym));
}

/* Somebody who looks at the files all the time, and at nothing that is found. */
static void look_on(void)
{
	uint64_t s = sequence(b->seed, me, 3);

	while (atomic_load(&b->turn) != PLAYERS && !atomic_load(&b->failed)) {
		unsigned file = pick(&s, FILES);
		int fd = fd_of(file);
		struct stat st;

		if (fstat(fd, &st) || st.st_size <= 0 || st.st_size > MAX_SIZE)
			continue;
		size_t size = (size_t)st.st_size, off = pick(&s, size);
		size_t n = below(pick(&s, 8 * PAGE) + 1, size - off), start = off / PAGE * PAGE;
		char *at = map_of(file, pick(&s, MAPS));
		switch (pick(&s, 8)) {
		case 0:
			posix_fadvise(fd, (off_t)off, (off_t)n,
				      pick(&s, 2) ? POSIX_FADV_WILLNEED : POSIX_FADV_DONTNEED);
			break;
		case 1:
			madvise(at + start, page_end(n),
				pick(&s, 2) ? MADV_WILLNEED : MADV_DONTNEED);
			break;
		case 2:
			if (finvalidate && pick(&s, 4) == 0)
				finvalidate(fd, 0);
			break;
		case 3:
			unmap(file, pick(&s, MAPS));
			break;
		case 4:
		case 5:
			if (pread(fd, buf, n, (off_t)off) < 0)
				fail("somebody's pread: %s", strerror(errno));
			break;
		default:
			touch(buf, at + off, n); /* or it was cut off just now */
			break;
		}
		pause_us(pick(&s, 2) * 50);
	}
}

static int player_main(int board_fd, unsigned player, const char *dir)
{
	struct stat st;

	if (fstat(board_fd, &st))
		err(1, "board");
	b = map_file(board_fd, (size_t)st.st_size, PROT_READ | PROT_WRITE);
	prepare(player, dir);
	if (!b->native && !dlsym(RTLD_DEFAULT, "refault_version"))
		fail("the library is not loaded");
	if (player > PLAYERS) {
		look_on();
		return 0;
	}
	for (;;) {
		uint32_t turn = atomic_load(&b->turn);
		if (turn == PLAYERS)
			return 0;
		if (atomic_load(&b->failed))
			_exit(1);
		if (turn == me)
			play(false);
		else
			wait_change(turn);
	}
}

/* ---- the third party ---- */

static int probe_file(const char *dir, const char *name)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	int fd = open_file(path, O_RDWR | O_CREAT | O_EXCL);
	memset(buf, 'x', MAX_SIZE);
	if (pwrite(fd, buf, MAX_SIZE, 0) != MAX_SIZE)
		err(1, "%s", path);
	unlink(path);
	return fd;
}

/* What the file system lacks, and how it says so. */
static void probe(const char *dir)
{
	int fd = probe_file(dir, "probe.1"), from = probe_file(dir, "probe.2");
	struct statvfs v;

	if (fstatvfs(fd, &v))
		err(1, "statvfs");
	b->block = (uint32_t)v.f_bsize;
	for (int i = 0; i < MODES; i++)
		b->probe[i] = fallocate(fd, mode_flags[i], 4 * PAGE, 4 * PAGE) ? errno : 0;

	struct file_clone_range c = {from, 0, 4 * PAGE, 0};
	union {
		struct file_dedupe_range range;
		char room[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
	} d = {.range = {.src_length = 4 * PAGE, .dest_count = 1}};
	d.range.info[0].dest_fd = fd;
	off_t in = 0, out = 0;
	b->probe[CAN_CLONE] = ioctl(fd, FICLONERANGE, &c) ? errno : 0;
	b->probe[CAN_DEDUPE] = ioctl(from, FIDEDUPERANGE, &d) ? errno
			       : d.range.info[0].status < 0   ? -d.range.info[0].status
							      : 0;
	b->probe[CAN_COPY] = copy_file_range(from, &in, fd, &out, PAGE, 0) < 0 ? errno : 0;
	close(fd);
	close(from);
}

static unsigned kind_named(const char *name)
{
	unsigned i;

	for (i = 0; i < KINDS && strcmp(name, kinds[i].name) != 0; i++)
		;
	return i;
}

static void read_list(const char *path, uint32_t most)
{
	FILE *f = fopen(path, "r");
	struct op o = {0};
	char name[32];
	unsigned v[8];

	if (!f)
		err(1, "%s", path);
	if (fscanf(f, "seed %" SCNu64, &b->seed) != 1)
		errx(2, "%s: the first line is no seed", path);
	b->asked = 1;
	while (fscanf(f, "%u %31s %u %u %u %u %u %u %u %u", &v[0], name, &v[1], &v[2], &v[3], &v[4],
		      &v[5], &v[6], &v[7], &o.fill) == 10) {
		const unsigned kind = kind_named(name);
		if (v[0] > b->players || kind == KINDS || v[1] >= FILES || v[2] >= FILES ||
		    v[3] > MAX_SIZE || v[4] > MAX_SIZE || v[5] > MAX_SIZE - v[3] || v[6] > 255 ||
		    (kind == FALLOC && v[6] >= MODES))
			errx(2, "%s: op %u is none", path, b->asked);
		if (b->asked > most)
			errx(2, "%s: more than %u ops, see -n", path, most);
		o.player = (uint8_t)v[0];
		o.kind = (uint8_t)kind;
		o.file = (uint8_t)v[1];
		o.file2 = (uint8_t)v[2];
		o.off = v[3];
		o.off2 = v[4];
		o.len = v[5];
		o.how = (uint8_t)v[6];
		o.mixed = (uint8_t)v[7];
		b->op[b->asked++] = o;
	}
	b->made = b->asked;
	fclose(f);
}

static void write_list(const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f)
		err(1, "%s", path);
	fprintf(f, "seed %" PRIu64 "\n", b->seed);
	for (uint32_t n = 1; n <= b->n && n < b->asked; n++) {
		const struct op *o = &b->op[n];
		fprintf(f, "%u %s %u %u %u %u %u %u %u %u\n", o->player, kinds[o->kind].name,
			o->file, o->file2, o->off, o->off2, o->len, o->how, o->mixed, o->fill);
	}
	if (fclose(f))
		err(1, "%s", path);
}

static pid_t start(unsigned player, char *wrapper, char *self, int board_fd, char *dir)
{
	char fd_text[16], player_text[16];

	snprintf(fd_text, sizeof(fd_text), "%d", board_fd);
	snprintf(player_text, sizeof(player_text), "%u", player);
	pid_t pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		if (strcmp(wrapper, "native") == 0)
			execl(self, self, "player", fd_text, player_text, dir, (char *)NULL);
		else
			execl(wrapper, wrapper, self, "player", fd_text, player_text, dir,
			      (char *)NULL);
		err(127, "%s", wrapper);
	}
	return pid;
}

/* Somebody ended before the end, or an op does not. */
static void watch(void)
{
	static uint32_t seen;
	static double since;
	int status;

	for (unsigned i = 0; i < PIDS; i++) {
		if (!b->pid[i] || waitpid(b->pid[i], &status, WNOHANG) <= 0)
			continue;
		b->pid[i] = 0;
		if (atomic_load(&b->turn) != PLAYERS)
			fail("process %u ended with status 0x%x", i, (unsigned)status);
	}
	if (b->n != seen || since == 0) {
		seen = b->n;
		since = now();
	}
	if (now() > since + HANG)
		fail("still not done after %d seconds", HANG);
}

static int third_main(void)
{
	while (!atomic_load(&b->failed)) {
		uint32_t turn = atomic_load(&b->turn);
		if (turn == PLAYERS)
			break;
		if (turn == me)
			play(false);
		else
			wait_change(turn);
		watch();
	}
	return atomic_load(&b->failed) != 0;
}

static int end_players(bool failed)
{
	int status, bad = 0;

	for (unsigned i = 0; i < PIDS; i++) {
		pid_t pid = b->pid[i];
		if (!pid)
			continue;
		if (failed) {
			pause_us(20000);
			kill(pid, SIGKILL);
		}
		if (waitpid(pid, &status, 0) == pid && status) {
			bad = 1;
			if (!failed)
				warnx("process %u ended with status 0x%x", i, (unsigned)status);
		}
	}
	return bad;
}

static void summary(double seconds)
{
	unsigned count[KINDS] = {0}, refused[KINDS] = {0};

	for (uint32_t n = 1; n < b->n; n++) {
		count[b->op[n].kind]++;
		refused[b->op[n].kind] += b->op[n].result < 0;
	}
	for (unsigned i = 0; i < KINDS; i++)
		printf(refused[i] ? "%s %u (%u fail), " : "%s %u, ", kinds[i].name, count[i],
		       refused[i]);
	printf("\n");
	printf("fsx: seed %" PRIu64 ": %u ops, %u players on %u hosts, in %.1f s: %.0f a second\n",
	       b->seed, b->asked - 1, b->players, b->hosts, seconds, (b->asked - 1) / seconds);
}

static void exclude(const char *name)
{
	unsigned i = kind_named(name), mode = 0;

	if (i == KINDS) {
		while (mode < MODES && strcmp(name, mode_name[mode]) != 0)
			mode++;
		if (mode == MODES)
			errx(2, "there is no kind or mode %s", name);
	}
	excluded |= 1ull << (i + mode);
}

static _Noreturn void usage(void)
{
	fprintf(stderr,
		"usage: fsx [-s SEED] [-n OPS] [-p PROCESSES] [-x model@OP|file@OP] [-o LIST] "
		"[-i LIST] DIR WRAPPER...\n");
	exit(2);
}

int main(int argc, char **argv)
{
	unsigned ops = DEFAULT_OPS, procs = 2, readers = 0;
	const char *in = NULL, *out = NULL, *lie_how = NULL;
	uint64_t seed = 1;
	int c, rc;

	if (argc == 5 && strcmp(argv[1], "player") == 0)
		return player_main(atoi(argv[2]), (unsigned)atoi(argv[3]), argv[4]);
	while ((c = getopt(argc, argv, "+s:n:p:r:e:x:o:i:")) != -1) {
		switch (c) {
		case 's':
			seed = strtoull(optarg, NULL, 10);
			break;
		case 'n':
			ops = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'p':
			procs = (unsigned)atoi(optarg);
			break;
		case 'r':
			readers = (unsigned)atoi(optarg);
			break;
		case 'e':
			exclude(optarg);
			break;
		case 'x':
			lie_how = optarg;
			break;
		case 'o':
			out = optarg;
			break;
		case 'i':
			in = optarg;
			break;
		default:
			usage();
		}
	}
	unsigned hosts = (unsigned)(argc - optind - 1);
	if (argc - optind < 2 || procs == 0 || hosts * procs >= PLAYERS ||
	    readers > PIDS - PLAYERS || ops > 100000000)
		usage();

	char *dir = argv[optind];
	size_t len = sizeof(*b) + (ops + PLAYERS + 2) * sizeof(b->op[0]);
	int fd = memfd_create("fsx", 0);
	if (fd < 0 || ftruncate(fd, (off_t)len))
		err(1, "memfd");
	b = map_file(fd, len, PROT_READ | PROT_WRITE);
	b->seed = seed;
	b->hosts = hosts;
	b->procs = procs;
	b->excluded = excluded;
	b->players = hosts * procs;
	b->n = 1;
	b->asked = ops + 1;
	b->native = strcmp(argv[optind + 1], "native") == 0;
	if (lie_how) {
		const char *at = strchr(lie_how, '@');
		if (!at)
			usage();
		b->lie_file = lie_how[0] == 'f';
		b->lie_at = (uint32_t)strtoul(at + 1, NULL, 10);
	}
	prepare(b->players, dir);
	probe(dir);
	if (in)
		read_list(in, ops);
	b->total = b->asked + b->players + 1;
	for (unsigned i = 0; i < b->players; i++)
		b->pid[i] = start(i, argv[optind + 1 + (int)host_of(i)], argv[0], fd, dir);
	for (unsigned i = 0; i < readers; i++)
		b->pid[b->players + i] =
		    start(PLAYERS + 1 + i, argv[optind + 1 + (int)(i % hosts)], argv[0], fd, dir);

	double began = now();
	atomic_store(&b->turn, b->players);
	rc = third_main();
	if (out)
		write_list(out);
	if (end_players(rc) || rc)
		return 1;
	summary(now() - began);
	return 0;
}
