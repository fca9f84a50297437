/* SPDX-License-Identifier: MIT */
/*
 * w_io.c - calls that read and write files.
 *
 * A managed descriptor goes to io.c.  On any other the kernel does it, unless the program's buffer
 * lies in a managed mapping (user.h).
 *
 * Counters, locks: none of its own.
 */
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "user.h"

#define DIRECT_IOV 64
#define DIRECT_UNIT 512 /* no disk has smaller blocks */

/* Neither the descriptor nor the buffer is ours: the kernel's business alone. */
static inline bool plain(struct ctx *c, int fd, const void *buf, size_t n)
{
	return likely(!file_entry(c, fd)) && likely(!map_hits(c, buf, n));
}

static inline bool plain_iov(struct ctx *c, int fd, const struct iovec *iov, int cnt)
{
	return likely(!file_entry(c, fd)) && likely(!iov_hits(c, iov, (size_t)cnt));
}

/* ---- what is not plain.  off: IO_POS, an offset, or below that for one that is invalid ---- */

/* What is left of an iovec behind its first n bytes. */
static int iov_skip(struct iovec *to, const struct iovec *iov, int cnt, size_t n)
{
	int k = 0;

	for (int i = 0; i < cnt; i++) {
		const size_t skip = n < iov[i].iov_len ? n : iov[i].iov_len;

		n -= skip;
		if (iov[i].iov_len > skip)
			to[k++] =
			    (struct iovec){(char *)iov[i].iov_base + skip, iov[i].iov_len - skip};
	}
	return k;
}

/*
 * Straight into the pages.  A part that came before EFAULT is not lost: the rest is asked for anew,
 * behind it; the position is where the kernel left it.
 */
static ssize_t read_direct(struct ctx *c, int fd, const struct iovec *iov, int cnt, off_t off,
			   int flags, bool *done)
{
	struct iovec rest[DIRECT_IOV];
	struct pin_call pins;
	ssize_t n = 0, r = -1;
	int k, tries = 0;
	bool whole;

	*done = false;
	if (cnt > DIRECT_IOV)
		return r;
	pin_call_begin(c, &pins, RF_PIN_LONG);
	whole = iov_populate(c, iov, (size_t)cnt, true, &pins);
	while (!pins.missed && (k = iov_skip(rest, iov, cnt, (size_t)n)) > 0) {
		*done = true;
		r = off == IO_POS && !flags
			? c->real.readv(fd, rest, k)
			: c->real.preadv2(fd, rest, k, off == IO_POS ? off : off + n, flags);
		if (r < 0 && errno == EFAULT && whole && ++tries < POPULATE_TRIES) {
			whole = iov_populate(c, rest, (size_t)k, true, NULL);
			continue;
		}
		if (r <= 0)
			break;
		n += r;
		if (r % DIRECT_UNIT) /* the end of the file */
			break;
	}
	pin_call_end(&pins);
	return n ? n : r;
}

/* A file or a disk that was opened O_DIRECT: what is read from it is not consumed. */
static bool is_direct(int fd)
{
	long fl = rf_syscall(SYS_fcntl, fd, F_GETFL);
	struct stat st;

	return fl >= 0 && (fl & O_DIRECT) && !rf_syscall(SYS_fstat, fd, &st) &&
	       (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
}

__attribute__((noinline, cold)) static ssize_t
slow_read(struct ctx *c, int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	bool done;
	ssize_t r;

	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	if (f) {
		r = io_read(c, f, fd, iov, cnt, off, flags);
		file_done(&held);
		return wrap_ret(r);
	}
	if (!iov_hits(c, iov, (size_t)cnt))
		return off == IO_POS && !flags ? c->real.readv(fd, iov, cnt)
					       : c->real.preadv2(fd, iov, cnt, off, flags);
	if (is_direct(fd)) {
		r = read_direct(c, fd, iov, cnt, off, flags, &done);
		if (done)
			return r;
	}
	return BOUNCED_FROM(c, fd, iov, (size_t)cnt,
			    off == IO_POS && !flags ? c->real.readv(fd, b_, 1)
						    : c->real.preadv2(fd, b_, 1, off, flags));
}

__attribute__((noinline, cold)) static ssize_t
slow_write(struct ctx *c, int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	ssize_t r;

	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	if (f) {
		r = io_write(c, f, fd, iov, cnt, off, flags);
		file_done(&held);
		return wrap_ret(r);
	}
	return POPULATED(c, iov, (size_t)cnt,
			 off == IO_POS && !flags ? c->real.writev(fd, iov, cnt)
						 : c->real.pwritev2(fd, iov, cnt, off, flags));
}

/* -1 is the descriptor's position for preadv2 and pwritev2 only. */
static inline off_t at(off_t off)
{
	return off < 0 ? LONG_MIN : off;
}

/* ---- read ---- */

ssize_t w_read(int fd, void *buf, size_t n)
{
	struct ctx *c = ctx_get();

	if (plain(c, fd, buf, n))
		return c->real.read(fd, buf, n);
	return slow_read(c, fd, &(struct iovec){buf, n}, 1, IO_POS, 0);
}

ssize_t w_pread(int fd, void *buf, size_t n, off_t off)
{
	struct ctx *c = ctx_get();

	if (plain(c, fd, buf, n))
		return c->real.pread(fd, buf, n, off);
	return slow_read(c, fd, &(struct iovec){buf, n}, 1, at(off), 0);
}
WRAP_ALIAS(pread64, pread);

ssize_t w_readv(int fd, const struct iovec *iov, int cnt)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.readv(fd, iov, cnt);
	return slow_read(c, fd, iov, cnt, IO_POS, 0);
}

ssize_t w_preadv(int fd, const struct iovec *iov, int cnt, off_t off)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.preadv(fd, iov, cnt, off);
	return slow_read(c, fd, iov, cnt, at(off), 0);
}
WRAP_ALIAS(preadv64, preadv);

ssize_t w_preadv2(int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.preadv2(fd, iov, cnt, off, flags);
	return slow_read(c, fd, iov, cnt, off, flags);
}
WRAP_ALIAS(preadv64v2, preadv2);

/* The fortified spellings: the real ones abort when the buffer is too small. */
ssize_t w___read_chk(int fd, void *buf, size_t n, size_t buflen)
{
	return n > buflen ? ctx_get()->real.__read_chk(fd, buf, n, buflen) : w_read(fd, buf, n);
}

ssize_t w___pread_chk(int fd, void *buf, size_t n, off_t off, size_t buflen)
{
	return n > buflen ? ctx_get()->real.__pread_chk(fd, buf, n, off, buflen)
			  : w_pread(fd, buf, n, off);
}
WRAP_ALIAS(__pread64_chk, __pread_chk);

/* ---- write ---- */

ssize_t w_write(int fd, const void *buf, size_t n)
{
	struct ctx *c = ctx_get();

	if (plain(c, fd, buf, n))
		return c->real.write(fd, buf, n);
	return slow_write(c, fd, &(struct iovec){(void *)(uintptr_t)buf, n}, 1, IO_POS, 0);
}

ssize_t w_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	struct ctx *c = ctx_get();

	if (plain(c, fd, buf, n))
		return c->real.pwrite(fd, buf, n, off);
	return slow_write(c, fd, &(struct iovec){(void *)(uintptr_t)buf, n}, 1, at(off), 0);
}
WRAP_ALIAS(pwrite64, pwrite);

ssize_t w_writev(int fd, const struct iovec *iov, int cnt)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.writev(fd, iov, cnt);
	return slow_write(c, fd, iov, cnt, IO_POS, 0);
}

ssize_t w_pwritev(int fd, const struct iovec *iov, int cnt, off_t off)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.pwritev(fd, iov, cnt, off);
	return slow_write(c, fd, iov, cnt, at(off), 0);
}
WRAP_ALIAS(pwritev64, pwritev);

ssize_t w_pwritev2(int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
	struct ctx *c = ctx_get();

	if (plain_iov(c, fd, iov, cnt))
		return c->real.pwritev2(fd, iov, cnt, off, flags);
	return slow_write(c, fd, iov, cnt, off, flags);
}
WRAP_ALIAS(pwritev64v2, pwritev2);

/* ---- position ---- */

off_t w_lseek(int fd, off_t off, int whence)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = whence == SEEK_SET || whence == SEEK_CUR ? NULL : file_get(c, fd, &held);

	if (likely(!f))
		return c->real.lseek(fd, off, whence);
	if (!sys_err(f)) {
		off = io_seek(c, f, fd, off, whence);
		file_done(&held);
	} else {
		off = (off_t)f;
	}
	return wrap_ret(off);
}
WRAP_ALIAS(lseek64, lseek);
