/* SPDX-License-Identifier: MIT */
/*
 * w_io.c - calls that move bytes.
 *
 * A managed descriptor goes to io.c.  On any other the kernel does it, unless the program's buffer
 * lies in a managed mapping, where the kernel would get EFAULT from a page without PTE:
 *
 *	what takes from the buffer (write, send)	pin and populate it, call, and again on EFAULT:
 *							nothing was taken then
 *	what consumes (read, recv)			through a private buffer, never again: after
 *							EFAULT a datagram would be gone
 *	what reads past the page cache (O_DIRECT)	straight into the buffer, pinned and made dirty:
 *							after EFAULT a file can be read again
 *
 * Pages that are pinned for such a read stay DIRTY until it is done (state.h), for a device stores to
 * them past the page tables.
 *
 * Counters, locks: none of its own.
 */
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "pin.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define DIRECT_IOV 64
#define DIRECT_UNIT 512        /* no disk has smaller blocks */
#define BOUNCE_MAX (64u << 20) /* a larger read into a managed mapping comes back short */

/* Neither the descriptor nor the buffer is ours: the kernel's business alone. */
static inline bool plain(struct ctx *c, int fd, const void *buf, size_t n)
{
	return likely(!file_entry(c, fd)) && likely(!map_hits(c, buf, n));
}

static bool iov_hits(const struct ctx *c, const struct iovec *iov, int cnt)
{
	if (likely(!atomic_load_explicit(&c->map_hi, memory_order_relaxed)) || cnt < 0 ||
	    cnt > IOV_MAX)
		return false;
	for (int i = 0; i < cnt; i++)
		if (map_hits(c, iov[i].iov_base, iov[i].iov_len))
			return true;
	return false;
}

static inline bool plain_iov(struct ctx *c, int fd, const struct iovec *iov, int cnt)
{
	return likely(!file_entry(c, fd)) && likely(!iov_hits(c, iov, cnt));
}

/* ---- unmanaged descriptors, managed buffers ---- */

#define POPULATE_TRIES 100

/* What lies in managed mappings is there for the kernel to load (write: to store): true if all is. */
static bool iov_populate(struct ctx *c, const struct iovec *iov, int cnt, bool write,
			 struct pin_call *pins)
{
	bool all = true;

	for (int i = 0; i < cnt; i++)
		if (map_hits(c, iov[i].iov_base, iov[i].iov_len))
			all &= !map_populate(c, iov[i].iov_base, iov[i].iov_len, write, pins);
	return all;
}

/* The value of `call`, repeated while a strip comes between populating and the kernel's look. */
#define POPULATED(c, iov, cnt, call)                                                               \
	({                                                                                         \
		struct pin_call p_;                                                                \
		ssize_t r_;                                                                        \
		pin_call_begin(c, &p_, 0);                                                         \
		for (int tries_ = 0; tries_ < POPULATE_TRIES; tries_++) {                          \
			bool all_ = iov_populate(c, iov, cnt, false, tries_ ? NULL : &p_);         \
			r_ = (call);                                                               \
			if (r_ >= 0 || errno != EFAULT || !all_)                                   \
				break;                                                             \
		}                                                                                  \
		pin_call_end(&p_);                                                                 \
		r_;                                                                                \
	})

static size_t iov_bytes(const struct iovec *iov, int cnt)
{
	size_t n = 0;

	for (int i = 0; i < cnt; i++)
		n += iov[i].iov_len < BOUNCE_MAX - n ? iov[i].iov_len : BOUNCE_MAX - n;
	return n;
}

/* False, and EFAULT: part of it has no place to go, and is lost. */
static bool scatter(struct ctx *c, const struct iovec *iov, const char *src, size_t n)
{
	for (; n; iov++) {
		size_t len = iov->iov_len < n ? iov->iov_len : n;

		if (page_copy_user(c, iov->iov_base, src, len)) {
			errno = EFAULT;
			return false;
		}
		src += len;
		n -= len;
	}
	return true;
}

/* The value of `call`, which receives into b_[0], then in the place of iov. */
#define BOUNCED(iov, cnt, call)                                                                    \
	({                                                                                         \
		struct iovec b_[1] = {{NULL, iov_bytes(iov, cnt)}};                                \
		ssize_t r_ = -1;                                                                   \
		b_->iov_base = io_buf_get(b_->iov_len);                                            \
		errno = b_->iov_base ? errno : ENOMEM;                                             \
		if (b_->iov_base) {                                                                \
			r_ = (call);                                                               \
			if (r_ > 0 &&                                                              \
			    !scatter(c, iov, b_->iov_base,                                         \
				     (size_t)r_ < b_->iov_len ? (size_t)r_ : b_->iov_len))         \
				r_ = -1;                                                           \
			io_buf_put(b_->iov_base, b_->iov_len);                                     \
		}                                                                                  \
		r_;                                                                                \
	})

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
	whole = iov_populate(c, iov, cnt, true, &pins);
	while (!pins.missed && (k = iov_skip(rest, iov, cnt, (size_t)n)) > 0) {
		*done = true;
		r = off == IO_POS && !flags
			? c->real.readv(fd, rest, k)
			: c->real.preadv2(fd, rest, k, off == IO_POS ? off : off + n, flags);
		if (r < 0 && errno == EFAULT && whole && ++tries < POPULATE_TRIES) {
			whole = iov_populate(c, rest, k, true, NULL);
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
	struct file *f = file_get(c, fd);
	bool done;
	ssize_t r;

	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	if (f) {
		r = io_read(c, f, fd, iov, cnt, off, flags);
		file_put(c, f);
		return wrap_ret(r);
	}
	if (!iov_hits(c, iov, cnt))
		return off == IO_POS && !flags ? c->real.readv(fd, iov, cnt)
					       : c->real.preadv2(fd, iov, cnt, off, flags);
	if (is_direct(fd)) {
		r = read_direct(c, fd, iov, cnt, off, flags, &done);
		if (done)
			return r;
	}
	return BOUNCED(iov, cnt,
		       off == IO_POS && !flags ? c->real.readv(fd, b_, 1)
					       : c->real.preadv2(fd, b_, 1, off, flags));
}

__attribute__((noinline, cold)) static ssize_t
slow_write(struct ctx *c, int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
	struct file *f = file_get(c, fd);
	ssize_t r;

	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	if (f) {
		r = io_write(c, f, fd, iov, cnt, off, flags);
		file_put(c, f);
		return wrap_ret(r);
	}
	return POPULATED(c, iov, cnt,
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

/* ---- position, and pages for pipes ---- */

off_t w_lseek(int fd, off_t off, int whence)
{
	struct ctx *c = ctx_get();
	struct file *f = whence == SEEK_SET || whence == SEEK_CUR ? NULL : file_get(c, fd);

	if (likely(!f))
		return c->real.lseek(fd, off, whence);
	if (!sys_err(f)) {
		off = io_seek(c, f, fd, off, whence);
		file_put(c, f);
	} else {
		off = (off_t)f;
	}
	return wrap_ret(off);
}
WRAP_ALIAS(lseek64, lseek);

/*
 * Pages of mappings become the pipe's.  The pin is for the call: what the pipe holds afterwards lives on
 * by itself, whatever becomes of the file.  From a pipe to memory it is a read.
 */
ssize_t w_vmsplice(int fd, const struct iovec *iov, size_t cnt, unsigned flags)
{
	struct ctx *c = ctx_get();
	const int n = cnt <= IOV_MAX ? (int)cnt : IOV_MAX + 1;

	if (likely(!iov_hits(c, iov, n)))
		return c->real.vmsplice(fd, iov, cnt, flags);
	if ((rf_syscall(SYS_fcntl, fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
		return BOUNCED(iov, n, c->real.vmsplice(fd, b_, 1, flags));
	return POPULATED(c, iov, n, c->real.vmsplice(fd, iov, cnt, flags));
}

/* ---- sockets: never managed ---- */

ssize_t w_send(int fd, const void *buf, size_t n, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {(void *)(uintptr_t)buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.send(fd, buf, n, flags);
	return POPULATED(c, &v, 1, c->real.send(fd, buf, n, flags));
}

ssize_t w_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *to,
		 socklen_t tl)
{
	struct ctx *c = ctx_get();
	struct iovec v[2] = {{(void *)(uintptr_t)buf, n}, {(void *)(uintptr_t)to, to ? tl : 0}};

	if (likely(!iov_hits(c, v, 2)))
		return c->real.sendto(fd, buf, n, flags, to, tl);
	return POPULATED(c, v, 2, c->real.sendto(fd, buf, n, flags, to, tl));
}

ssize_t w_sendmsg(int fd, const struct msghdr *m, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v[2] = {{m->msg_name, m->msg_name ? m->msg_namelen : 0},
			     {m->msg_control, m->msg_control ? m->msg_controllen : 0}};
	const int n = m->msg_iovlen <= IOV_MAX ? (int)m->msg_iovlen : IOV_MAX + 1;

	if (likely(!iov_hits(c, m->msg_iov, n) && !iov_hits(c, v, 2)))
		return c->real.sendmsg(fd, m, flags);
	iov_populate(c, v, 2, false, NULL);
	return POPULATED(c, m->msg_iov, n <= IOV_MAX ? n : 0, c->real.sendmsg(fd, m, flags));
}

ssize_t w_recv(int fd, void *buf, size_t n, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.recv(fd, buf, n, flags);
	return BOUNCED(&v, 1, c->real.recv(fd, b_->iov_base, b_->iov_len, flags));
}

ssize_t w___recv_chk(int fd, void *buf, size_t n, size_t buflen, int flags)
{
	return n > buflen ? ctx_get()->real.__recv_chk(fd, buf, n, buflen, flags)
			  : w_recv(fd, buf, n, flags);
}

ssize_t w_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *from, socklen_t *fl)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.recvfrom(fd, buf, n, flags, from, fl);
	return BOUNCED(&v, 1, c->real.recvfrom(fd, b_->iov_base, b_->iov_len, flags, from, fl));
}

ssize_t w___recvfrom_chk(int fd, void *buf, size_t n, size_t buflen, int flags,
			 struct sockaddr *from, socklen_t *fl)
{
	return n > buflen ? ctx_get()->real.__recvfrom_chk(fd, buf, n, buflen, flags, from, fl)
			  : w_recvfrom(fd, buf, n, flags, from, fl);
}

static ssize_t recvmsg_into(struct ctx *c, int fd, struct msghdr *m, struct iovec *b, int flags)
{
	struct msghdr copy = *m;
	ssize_t r;

	copy.msg_iov = b;
	copy.msg_iovlen = 1;
	r = c->real.recvmsg(fd, &copy, flags);
	m->msg_namelen = copy.msg_namelen;
	m->msg_controllen = copy.msg_controllen;
	m->msg_flags = copy.msg_flags;
	return r;
}

ssize_t w_recvmsg(int fd, struct msghdr *m, int flags)
{
	struct ctx *c = ctx_get();

	if (likely(!iov_hits(c, m->msg_iov, (int)m->msg_iovlen)))
		return c->real.recvmsg(fd, m, flags);
	return BOUNCED(m->msg_iov, (int)m->msg_iovlen, recvmsg_into(c, fd, m, b_, flags));
}
