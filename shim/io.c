/* SPDX-License-Identifier: MIT */
/*
 * io.c - read and write on managed files.
 *
 * Reading.  No slot, no system call for cached pages.  Words and read_gen, copy from the alias,
 * words and read_gen again; what changed is copied again.  A page that changes in place under the
 * copy may come out as a mixture of before and after, as with the kernel's own read(); it cannot
 * come out older than the last flush that had returned when read() was called: the promise was
 * valid then, and the breaking host waits for this one.
 *
 * Writing, in chunks of 64 KiB: copy the source into a private buffer (it may be managed memory,
 * and the memfd's inode lock is held over the copy in the kernel); have the pages cached; slot;
 * mkwrite; pwrite; mark the range as written; leave.  A frozen vnode is waited for without a slot.
 *
 * Position.  It is the kernel's, shared by all who share the open file.  It is reserved before
 * the transfer, by one lseek(fd, n, SEEK_CUR), which the kernel does under its position lock: two
 * threads, or two processes, get ranges that do not overlap, as with native read() and write().
 * What a short transfer did not use is given back with a relative lseek: sums of relative moves
 * commute, so the position ends where it would natively.  The one difference: between the two, a
 * concurrent transfer starts behind the reserved end.  Reads shorten n by what they see of EOF
 * first, so that is left to files that shrink, and to errors.
 *
 * Counters: read, read-retry, write.
 * Locks: slots (slot.c); buffers by compare and swap.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io.h"

#define CHUNK (64u * 1024)
#define RUN 32u     /* pages copied between two looks at their words */
#define TRIES 1000u /* of a page that others take away as fast as it comes */

/* ---- buffers ---- */

#define BUFS 8u

static struct {
	_Atomic uint32_t taken; /* a bit each */
	void *_Atomic mem[BUFS];
} bufs;

static void *populated(size_t n)
{
	void *p = sys_mmap(NULL, n, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	return sys_err(p) ? NULL : p;
}

void *io_buf_get(size_t n)
{
	uint32_t t = atomic_load(&bufs.taken);

	while (n <= IO_BUF && t != (1u << BUFS) - 1) {
		uint32_t i = (uint32_t)__builtin_ctz(~t);
		void *p;

		if (!atomic_compare_exchange_weak(&bufs.taken, &t, t | 1u << i))
			continue;
		p = atomic_load(&bufs.mem[i]);
		if (!p) {
			p = populated(IO_BUF);
			atomic_store(&bufs.mem[i], p);
		}
		if (!p)
			atomic_fetch_and(&bufs.taken, ~(1u << i));
		return p;
	}
	return populated(n ? n : 1);
}

void io_buf_put(void *p, size_t n)
{
	for (uint32_t i = 0; i < BUFS; i++)
		if (atomic_load_explicit(&bufs.mem[i], memory_order_relaxed) == p) {
			atomic_fetch_and(&bufs.taken, ~(1u << i));
			return;
		}
	rf_syscall(SYS_munmap, p, n ? n : 1);
}

static void hold_put(void *arg)
{
	const struct io_hold *h = arg;

	io_buf_put(h->p, h->n);
}

void *io_hold(struct io_hold *h, size_t n)
{
	h->p = io_buf_get(n);
	h->n = n;
	if (h->p)
		undo_begin(&h->undo, hold_put, h);
	return h->p;
}

void io_release(struct io_hold *h)
{
	undo_end(&h->undo);
}

/* ---- checks that the kernel makes first ---- */

/* Total length, clamped; -EINVAL, -EFAULT.  As far as the kernel checks before it copies. */
static ssize_t iov_total(const struct iovec *iov, int cnt)
{
	size_t n = 0;

	if (cnt < 0 || cnt > IOV_MAX)
		return -EINVAL;
	for (int i = 0; i < cnt; i++) {
		if (iov[i].iov_len > SSIZE_MAX || n + iov[i].iov_len > SSIZE_MAX)
			return -EINVAL;
#ifdef __x86_64__
		if ((intptr_t)((uintptr_t)iov[i].iov_base + iov[i].iov_len) < 0)
			return -EFAULT;
#endif
		n += iov[i].iov_len;
	}
	return n < IO_MAX ? (ssize_t)n : (ssize_t)IO_MAX;
}

/* The commonest pointer that is none: an error, not a crash.  Others are the program's SIGSEGV. */
static bool no_memory(const struct iovec *iov)
{
	return iov->iov_len && (uintptr_t)iov->iov_base < RF_PAGE_SIZE;
}

int64_t io_limit(uint64_t start, uint64_t end)
{
	uint64_t lim[2] = {UINT64_MAX, 0};
	const uint64_t most = (IO_LAST_PAGE + 1) << RF_PAGE_SHIFT;

	rf_syscall(SYS_prlimit64, 0, 1 /* RLIMIT_FSIZE */, 0, lim);
	if (start >= lim[0]) {
		rf_syscall(SYS_tgkill, rf_syscall(SYS_getpid), rf_syscall(SYS_gettid), SIGXFSZ);
		return -EFBIG;
	}
	if (start >= most)
		return -EFBIG;
	end = end < lim[0] ? end : lim[0];
	return (int64_t)(end < most ? end : most);
}

/* ---- reading ---- */

static uint64_t size_of(const struct vnode *vn)
{
	return atomic_load_explicit(&atomic_load_explicit(&vn->st, memory_order_acquire)->i_size,
				    memory_order_acquire);
}

static uint32_t read_gen(const struct vnode *vn)
{
	return atomic_load_explicit(&atomic_load_explicit(&vn->st, memory_order_acquire)->read_gen,
				    memory_order_acquire);
}

int io_validate(struct ctx *c, struct vnode *vn, uint32_t key)
{
	int r;

	if (__builtin_expect(vnode_valid(c, vn), 1))
		return 0;
	r = agent_fault(c, vn, key, IO_LAST_PAGE, 1, RF_FAULT_RANDOM);
	return r == -ENXIO ? 0 : r;
}

int io_newsize(struct ctx *c, struct file *f, uint64_t size)
{
	struct vnode *vn = atomic_load(&f->vn);
	uint64_t lim[2] = {UINT64_MAX, 0};
	int64_t end;
	int r;

	if (size > (IO_LAST_PAGE + 1) << RF_PAGE_SHIFT)
		return -EFBIG;
	rf_syscall(SYS_prlimit64, 0, 1 /* RLIMIT_FSIZE */, 0, lim);
	if (size <= lim[0])
		return 0;
	r = io_validate(c, vn, file_key(f));
	if (r || size <= size_of(vn))
		return r;
	end = io_limit(size - 1, size);
	return end < 0 ? (int)end : 0;
}

/*
 * [off, off + n) lies in pages from `page`, at most RUN; all words cached, none changed while the
 * bytes were copied.  gen: read_gen from before EOF was looked at.  Returns the bytes that are good,
 * from the start.  *room: at most so many fit, dst is no memory behind them.
 */
static size_t copy_run(struct ctx *c, struct vnode *vn, uint32_t gen, char *dst, uint64_t off,
		       size_t n, size_t *room)
{
	const struct rf_vnode *st = atomic_load_explicit(&vn->st, memory_order_acquire);
	uint64_t page = off >> RF_PAGE_SHIFT, seen[RUN + 1];
	uint32_t pages = (uint32_t)(RF_PAGES(off + n) - page), good = 0;
	rf_word *word = vnode_word(vn, page);
	size_t left;

	debug_free(DEBUG_ALL, "copies to the program's memory");
	while (good < pages) {
		seen[good] = atomic_load_explicit(&word[good], memory_order_acquire);
		if (!rf_w_cached(seen[good]))
			break;
		good++;
	}
	if (!good)
		return 0;
	if (good < pages)
		n = (size_t)(((page + good) << RF_PAGE_SHIFT) - off);
	page_copy_efault = false;
	left = page_copy(dst, atomic_load_explicit(&vn->alias, memory_order_acquire) + off, n);
	if (left && page_copy_efault) {
		*room = n - left;
		return 0;
	}
	atomic_thread_fence(memory_order_acquire);
	for (uint32_t i = 0; i < good; i++) {
		uint64_t w = atomic_load_explicit(&word[i], memory_order_relaxed);

		if (rf_w_gen(w) != rf_w_gen(seen[i]) || !rf_w_cached(w)) {
			count(c, RF_R_READ_RETRY);
			n = i ? (size_t)(((page + i) << RF_PAGE_SHIFT) - off) : 0;
			return left ? 0 : n;
		}
	}
	if (left || atomic_load_explicit(&st->read_gen, memory_order_relaxed) != gen) {
		count(c, RF_R_READ_RETRY);
		return 0;
	}
	return n;
}

/* Promise checked.  Short at EOF; -errno only if nothing was read. */
static ssize_t read_at(struct ctx *c, struct file *f, char *dst, size_t n, uint64_t off,
		       bool nowait)
{
	struct vnode *vn = atomic_load_explicit(&f->vn, memory_order_relaxed);
	size_t done = 0, room = SIZE_MAX;
	int r = 0;

	for (uint32_t tries = 0; done < n; tries++) {
		uint32_t gen = read_gen(vn); /* first, so that it tells when EOF moves behind us */
		uint64_t at = off + done, size = size_of(vn), page = at >> RF_PAGE_SHIFT;
		size_t len = n - done, got;

		if (at >= size)
			break;
		if (len > size - at)
			len = (size_t)(size - at);
		if (len > (size_t)(((page + RUN) << RF_PAGE_SHIFT) - at))
			len = (size_t)(((page + RUN) << RF_PAGE_SHIFT) - at);
		r = vnode_cover(c, vn, RF_PAGES(at + len));
		if (r && r != -EAGAIN)
			break;
		got = r ? 0 : copy_run(c, vn, gen, dst + done, at, len, &room);
		if (room != SIZE_MAX && !got) { /* what it has room for, then no more */
			n = done + room;
			room = SIZE_MAX;
			r = n ? 0 : -EFAULT;
			continue;
		}
		if (got) {
			done += got;
			tries = 0;
			continue;
		}
		if (!r && tries < 4 && rf_w_cached(atomic_load(vnode_word(vn, page))))
			continue; /* it changed just now */
		if (nowait) {
			r = -EAGAIN;
			break;
		}
		if (n - done < size - at)
			size = off + n;
		r = agent_fault(c, vn, file_key(f), page, RF_PAGES(size) - page, 0);
		if (r && r != -ENXIO)
			break;
		r = 0;
		if (tries > TRIES) {
			r = -EIO;
			break;
		}
	}
	return done ? (ssize_t)done : r;
}

static off_t seek(int fd, off_t off, int whence)
{
	return rf_syscall(SYS_lseek, fd, off, whence);
}

ssize_t io_read(struct ctx *c, struct file *f, int fd, const struct iovec *iov, int cnt, off_t off,
		int rwf)
{
	struct vnode *vn = atomic_load_explicit(&f->vn, memory_order_acquire);
	const bool pos = off == IO_POS, nowait = rwf & RWF_NOWAIT;
	ssize_t n = iov_total(iov, cnt), done = 0, r = 0;

	if (n < 0)
		return n;
	if (!pos && off < 0)
		return -EINVAL;
	if ((f->flags & O_ACCMODE) == O_WRONLY)
		return -EBADF;
	if (!pos && off > INT64_MAX - n)
		return -EINVAL;
	if (rwf & ~(RWF_HIPRI | RWF_NOWAIT | RWF_DSYNC | RWF_SYNC | RWF_APPEND))
		return -EOPNOTSUPP;
	if (!n)
		return 0;
	if (nowait && !vnode_valid(c, vn))
		return -EAGAIN;
	if (!pos &&
	    (uint64_t)off + 256 <= atomic_load_explicit(&vn->alias_len, memory_order_relaxed)) {
		/* On their way from memory while the promise is looked at; a hole does no harm. */
		const char *src = atomic_load_explicit(&vn->alias, memory_order_relaxed) + off;

		__builtin_prefetch(src);
		__builtin_prefetch(src + 64);
		__builtin_prefetch(src + 128);
		__builtin_prefetch(src + 192);
	}
	r = io_validate(c, vn, file_key(f));
	if (r)
		return r;
	count(c, RF_R_READ);
	if (pos) {
		uint64_t size = size_of(vn);

		off = seek(fd, 0, SEEK_CUR);
		if (off < 0)
			return off;
		if ((uint64_t)off >= size)
			return 0;
		if ((uint64_t)n > size - (uint64_t)off)
			n = (ssize_t)(size - (uint64_t)off);
		off = seek(fd, n, SEEK_CUR);
		if (off < 0)
			return off;
		off -= n;
	}
	for (int i = 0; i < cnt && done < n; i++) {
		size_t len = iov[i].iov_len;

		if (len > (size_t)(n - done))
			len = (size_t)(n - done);
		r = no_memory(&iov[i]) && (uint64_t)(off + done) < size_of(vn)
			? -EFAULT
			: read_at(c, f, iov[i].iov_base, len, (uint64_t)(off + done), nowait);
		if (r < 0)
			break;
		done += r;
		if ((size_t)r < len)
			break;
	}
	if (pos && done < n)
		seek(fd, done - n, SEEK_CUR);
	return done ? done : r < 0 ? r : 0;
}

/* ---- writing ---- */

/* Pages [page, page + n) are in the cache, under a promise. */
static int have_pages(struct ctx *c, struct file *f, uint64_t page, uint32_t n)
{
	struct vnode *vn = atomic_load(&f->vn);
	int r = 0;

	if (!vnode_valid(c, vn))
		r = agent_fault(c, vn, file_key(f), page, n, RF_FAULT_WRITE | RF_FAULT_RANDOM);
	if (!r)
		r = vnode_cover(c, vn, page + n);
	if (r == -EAGAIN)
		return -ENXIO;
	for (uint32_t i = 0; i < n && !r; i++)
		if (rf_w_state(atomic_load(vnode_word(vn, page + i))) == RF_PG_EMPTY)
			r = agent_fault(c, vn, file_key(f), page + i, n - i,
					RF_FAULT_WRITE | RF_FAULT_RANDOM);
	return r;
}

int io_reserve(struct ctx *c, struct file *f, uint64_t off, size_t n)
{
	const struct vnode *vn = atomic_load(&f->vn);
	const uint64_t first = off >> RF_PAGE_SHIFT, size = size_of(vn);
	int r = 0;

	if (off + n > size)
		n = off < size ? (size_t)(size - off) : 0;
	if (n)
		r = have_pages(c, f, first, (uint32_t)(RF_PAGES(off + n) - first));
	return r == -ENXIO ? 0 : r; /* cut off meanwhile: nothing to fetch */
}

/* One chunk from a private buffer to a place inside i_size.  Bytes written, or -errno; -ENXIO: it
 * is past EOF now. */
static ssize_t write_chunk(struct ctx *c, struct file *f, const char *buf, size_t n, uint64_t off)
{
	struct vnode *vn = atomic_load(&f->vn);
	const uint32_t key = file_key(f);
	const uint64_t page = off >> RF_PAGE_SHIFT;
	const uint32_t pages = (uint32_t)(RF_PAGES(off + n) - page);
	struct slot_ref slot;
	uint64_t seen = 0, bad;
	uint32_t tries = 0, shorts = 0;
	ssize_t r;

	for (;;) {
		r = have_pages(c, f, page, pages);
		if (r)
			return r;
		r = slot_enter(c, vn, page, pages, &slot);
		if (r)
			return r;
		if (off + n > size_of(vn)) {
			slot_leave(&slot);
			return -ENXIO;
		}
		for (bad = page; bad < page + pages; bad++) {
			r = page_mkwrite(c, vn, bad, key, &seen);
			if (r)
				break;
		}
		if (!r) {
			r = rf_syscall(SYS_pwrite64, vn->data_fd, buf, n, off);
			for (size_t at = 0; r > 0 && at < (size_t)r;) {
				uint64_t p = (off + at) >> RF_PAGE_SHIFT;
				uint32_t in = (uint32_t)(off + at) & (RF_PAGE_SIZE - 1);
				uint32_t len = (uint32_t)RF_PAGE_SIZE - in;

				if (len > (size_t)r - at)
					len = (uint32_t)((size_t)r - at);
				page_mark_written(c, vn, p, in, len);
				at += len;
			}
			slot_leave(&slot);
			return r;
		}
		slot_leave(&slot);
		if (r == -EAGAIN)
			r = page_wait(c, vn, bad, seen);
		else if (r == -EINPROGRESS)
			r = vnode_thaw(c, vn);
		else if (r == -ENOMEM && shorts++ < PAGE_RECLAIMS)
			r = page_reclaim(c, sys_getmask());
		else if (r == -EFAULT)
			r = agent_fault(c, vn, key, bad, 1, RF_FAULT_WRITE | RF_FAULT_RANDOM);
		else if (r == -EBUSY && tries++ < TRIES)
			r = page_flush_other(c, vn, bad, (uint32_t)(page + pages - bad),
					     sys_getmask());
		if (r && r != -EAGAIN)
			return r;
	}
}

/* Make the file reach `end`. */
static int extend(struct ctx *c, struct file *f, uint64_t end)
{
	struct vnode *vn = atomic_load(&f->vn);
	const uint64_t arg[4] = {end};

	if (end <= size_of(vn))
		return 0;
	return agent_request(c, RF_OP_EXTEND, vn->id, file_key(f), arg, NULL, 0, NULL,
			     sys_getmask());
}

/* Where the next bytes of an iovec come from. */
struct source {
	const struct iovec *iov;
	size_t at;
};

/* Bytes taken: fewer than n if a mapping has no page to give. */
static size_t take(struct ctx *c, struct source *s, char *buf, size_t n)
{
	const size_t all = n;

	debug_free(DEBUG_ALL, "copies from the program's memory");
	while (n) {
		size_t len = s->iov->iov_len - s->at, left;

		if (len > n)
			len = n;
		left = page_copy_user(c, buf, (const char *)s->iov->iov_base + s->at, len);
		if (left)
			return all - n + (len - left);
		buf += len;
		n -= len;
		s->at += len;
		if (s->at == s->iov->iov_len) {
			s->iov++;
			s->at = 0;
		}
	}
	return all;
}

static ssize_t write_at(struct ctx *c, struct file *f, struct source *s, size_t n, uint64_t off,
			char *buf)
{
	size_t done = 0;
	uint32_t tries = 0;
	ssize_t r = 0;

	while (!r && done < n) {
		uint64_t at = off + done;
		size_t len = CHUNK - (size_t)(at & (RF_PAGE_SIZE - 1)), got;

		if (len > n - done)
			len = n - done;
		got = take(c, s, buf, len);
		if (got < len)
			n = done + got;
		if (!got)
			return done ? (ssize_t)done : -EFAULT;
		len = got;
		r = extend(c, f, off + n);
		if (r)
			break;
		while ((r = write_chunk(c, f, buf, len, at)) == -ENXIO) {
			r = tries++ < TRIES ? extend(c, f, at + len) : -EIO;
			if (r)
				break; /* else it was truncated meanwhile: again */
		}
		if (r <= 0)
			break;
		done += (size_t)r;
		if ((size_t)r < len)
			break;
		r = 0;
	}
	return done ? (ssize_t)done : r;
}

/* O_APPEND: the server says where.  The position ends behind what was written. */
static ssize_t append(struct ctx *c, struct file *f, int fd, struct source *s, size_t n,
		      bool durable, bool pos, char *buf)
{
	struct vnode *vn = atomic_load(&f->vn);
	size_t done = 0;
	uint64_t ret[2] = {0}, at = 0;
	int r = 0;

	while (done < n) {
		const uint64_t arg[4] = {durable ? RF_FLUSH_DURABLE : 0}, size = size_of(vn);
		size_t len = n - done < RF_APPEND_MAX ? n - done : RF_APPEND_MAX, got;
		int64_t end = io_limit(size, size + len);

		if (end < 0) {
			r = (int)end;
			break;
		}
		len = (size_t)((uint64_t)end - size);
		got = take(c, s, buf, len);
		if (!got) {
			r = -EFAULT;
			break;
		}
		if (got < len)
			n = done + got;
		len = got;
		r = agent_request(c, RF_OP_APPEND, vn->id, file_key(f), arg, buf, len, ret,
				  sys_getmask());
		if (r)
			break;
		done += len;
		at = ret[0] + len;
	}
	if (done && pos)
		seek(fd, (off_t)at, SEEK_SET);
	return done ? (ssize_t)done : r;
}

ssize_t io_write(struct ctx *c, struct file *f, int fd, const struct iovec *iov, int cnt, off_t off,
		 int rwf)
{
	const bool pos = off == IO_POS;
	struct source s = {.iov = iov};
	ssize_t n = iov_total(iov, cnt), r;
	struct io_hold hold;
	bool durable;
	long flags;
	char *buf;
	int e;

	if (n < 0)
		return n;
	if (!pos && off < 0)
		return -EINVAL;
	if (!file_writable(f))
		return -EBADF;
	if (!pos && off > INT64_MAX - n)
		return -EINVAL;
	if (rwf & ~(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND))
		return -EOPNOTSUPP;
	if (!n)
		return 0;
	for (int i = 0; i < cnt; i++)
		if (no_memory(&iov[i]))
			return -EFAULT;
	/* Anybody who shares the open file may have changed O_APPEND by F_SETFL. */
	flags = rf_syscall(SYS_fcntl, fd, F_GETFL);
	if (flags < 0)
		return flags;
	durable = (f->flags & O_DSYNC) || (rwf & (RWF_DSYNC | RWF_SYNC));
	count(c, RF_R_WRITE);
	buf = io_hold(&hold, IO_BUF);
	if (!buf)
		return -ENOMEM;
	if ((flags & O_APPEND) || (rwf & RWF_APPEND)) {
		r = append(c, f, fd, &s, (size_t)n, durable, pos, buf);
		goto out;
	}
	if (pos) {
		off = seek(fd, n, SEEK_CUR);
		if (off < 0) {
			r = off == -EINVAL || off == -EOVERFLOW ? -EFBIG : off;
			goto out;
		}
		off -= n;
	}
	r = io_limit((uint64_t)off, (uint64_t)(off + n));
	if (r >= 0)
		r = write_at(c, f, &s, (size_t)(r - off), (uint64_t)off, buf);
	if (pos && r < n)
		seek(fd, (r > 0 ? r : 0) - n, SEEK_CUR);
	if (r > 0 && durable) {
		uint64_t first = (uint64_t)off >> RF_PAGE_SHIFT;

		e = file_flush(c, f, first, RF_PAGES(off + r) - first, RF_FLUSH_DURABLE);
		if (e && pos)
			seek(fd, -r, SEEK_CUR);
		r = e ? e : r;
	}
out:
	io_release(&hold);
	return r;
}

/* ---- position ---- */

off_t io_seek(struct ctx *c, struct file *f, int fd, off_t off, int whence)
{
	struct vnode *vn = atomic_load(&f->vn);
	uint64_t size, ret[2] = {0};
	int r;

	if (whence != SEEK_END && whence != SEEK_DATA && whence != SEEK_HOLE)
		return seek(fd, off, whence);
	r = io_validate(c, vn, file_key(f));
	if (r)
		return r;
	size = size_of(vn);
	if (whence == SEEK_END)
		return off > INT64_MAX - (off_t)size ? -EINVAL
						     : seek(fd, (off_t)size + off, SEEK_SET);
	if (off < 0 || (uint64_t)off >= size)
		return -ENXIO;
	r = agent_request(c, RF_OP_SEEK, vn->id, file_key(f),
			  (const uint64_t[4]){(uint64_t)off, (uint64_t)whence}, NULL, 0, ret,
			  sys_getmask());
	return r ? r : seek(fd, (off_t)ret[0], SEEK_SET);
}
