/* SPDX-License-Identifier: MIT */
/*
 * w_copy.c - calls that move bytes between descriptors without a buffer of the program: copy_file_range,
 * sendfile, splice, and the ioctls that clone and dedupe.
 *
 * Natively they act on the file underneath, so they are the kernel's only if neither end is managed.
 *
 *	two ends of one volume		copy_file_range, clone and dedupe are one request: the server
 *					copies, or shares the blocks
 *	other pairs			copied through a buffer by our own read and write; clone and dedupe
 *					are EXDEV, as between any two file systems
 *	managed file -> pipe		pages of ours are read into and given to the pipe by vmsplice, which
 *					waits, fills up and comes back short exactly as splice does
 *	pipe -> managed file		what the write will need is had before bytes are taken from the pipe,
 *					so that they are not lost if the file cannot take them; they are
 *					waited for by tee, which takes none, and which a signal ends or
 *					does not end as it would splice
 *
 * Checks come in the kernel's order: of the system call first, then generic_copy_file_checks,
 * do_sendfile, do_splice, vfs_clone_file_range and vfs_dedupe_file_range; what the file system
 * itself would say is the server's errno.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io.h"

#define PIECE                                                                                      \
	(64u << 20) /* of a copy at the server: in between, signals and other changes get in */
#define DEDUPE_MAX (UINT64_C(1) << 30) /* the kernel's, of one call */

static bool either_managed(struct ctx *c, int a, int b)
{
	return __builtin_expect(file_entry(c, a) || file_entry(c, b), 0);
}

/* The commonest pointer that is none: the kernel's EFAULT, not a crash. */
static bool pointer(const void *p)
{
	return (uintptr_t)p >= RF_PAGE_SIZE;
}

/*
 * An offset that lies in a managed mapping, where the kernel would get EFAULT, is given to it as a
 * copy.
 */
static off_t *off_in(const struct ctx *c, off_t *off, off_t *copy)
{
	if (__builtin_expect(!off || !map_hits(c, off, sizeof(*off)), 1))
		return off;
	*copy = *off;
	return copy;
}

static void off_out(off_t *off, const off_t *used)
{
	if (off != used && *off != *used)
		*off = *used;
}

/* ---- one end of a call ---- */

struct end {
	int fd;
	struct file *f; /* NULL: not managed */
	struct file_held held;
	off_t *off; /* the program's; NULL: at the position */
	off_t pos;
	int flags; /* F_GETFL */
	mode_t mode;
	uint64_t size;
};

static bool readable(const struct end *e)
{
	return (e->flags & O_ACCMODE) == O_RDONLY || (e->flags & O_ACCMODE) == O_RDWR;
}

static bool writable(const struct end *e)
{
	return (e->flags & O_ACCMODE) == O_WRONLY || (e->flags & O_ACCMODE) == O_RDWR;
}

/* 0 or -EBADF, or why a managed file cannot be had.  After 0: end_put, the last one first. */
static int end_get(struct ctx *c, struct end *e, int fd, off_t *off)
{
	struct stat st = {0};
	long r;

	*e = (struct end){.fd = fd, .off = off};
	r = file_hidden(c, fd) ? -EBADF : rf_syscall(SYS_fcntl, fd, F_GETFL);
	if (r < 0)
		return (int)r;
	if (r & O_PATH)
		return -EBADF;
	if (off && !pointer(off))
		return -EFAULT;
	e->flags = (int)r;
	rf_syscall(SYS_fstat, fd, &st);
	e->mode = st.st_mode;
	e->size = (uint64_t)st.st_size;
	e->f = file_get(c, fd, &e->held);
	if (sys_err(e->f))
		return (int)(long)e->f;
	e->pos = off ? *off : rf_syscall(SYS_lseek, fd, 0, SEEK_CUR);
	return 0;
}

static void end_put(struct end *e)
{
	if (e->f)
		file_done(&e->held);
}

/* Both ends or none. */
static int ends_get(struct ctx *c, struct end *a, int afd, off_t *aoff, struct end *b, int bfd,
		    off_t *boff)
{
	int r = end_get(c, a, afd, aoff);

	if (r)
		return r;
	r = end_get(c, b, bfd, boff);
	if (r)
		end_put(a);
	return r;
}

/* The size as of now. */
static int end_size(struct ctx *c, struct end *e)
{
	struct vnode *vn;
	int r;

	if (!e->f)
		return 0;
	vn = atomic_load(&e->f->vn);
	r = io_validate(c, vn, file_key(e->f));
	if (!r)
		e->size = atomic_load(&atomic_load(&vn->st)->i_size);
	return r;
}

/* n bytes were moved: say so where the program looks. */
static void end_moved(struct end *e, size_t n)
{
	e->pos += (off_t)n;
	if (e->off)
		*e->off = e->pos;
	else
		rf_syscall(SYS_lseek, e->fd, e->pos, SEEK_SET);
}

/* As rw_verify_area: a range that a file can have. */
static bool sane(off_t pos, size_t n)
{
	return pos >= 0 && (ssize_t)n >= 0 && pos <= INT64_MAX - (off_t)n;
}

/* Both ends have vnodes: whether they are of one volume the agent knows. */
static int remap(struct ctx *c, uint32_t kind, const struct end *in, uint64_t from,
		 const struct end *out, uint64_t to, uint64_t n, uint64_t *done)
{
	const uint64_t arg[4] = {rf_remap_arg(atomic_load(&in->f->vn)->id, file_key(in->f), kind),
				 from, to, n};
	uint64_t ret[2] = {0};
	int r = agent_request(c, RF_OP_REMAP, atomic_load(&out->f->vn)->id, file_key(out->f), arg,
			      NULL, 0, ret, sys_getmask());

	*done = r ? 0 : ret[0];
	return r;
}

/*
 * Through a buffer, by our own read and write, from where the positions were when the call began: the
 * two may be one.  What could not be written is not taken.  A count, or -errno.
 */
static ssize_t move(struct end *in, struct end *out, size_t n)
{
	const bool seeks = S_ISREG(out->mode) || S_ISBLK(out->mode);
	struct io_hold hold;
	char *buf = io_hold(&hold, IO_BUF);
	ssize_t r = 0, w = 0;
	size_t done = 0;

	if (!buf)
		return -ENOMEM;
	while (done < n) {
		size_t len = n - done < IO_BUF ? n - done : IO_BUF;

		r = w_pread(in->fd, buf, len, in->pos + (off_t)done);
		if (r <= 0)
			break;
		w = seeks ? w_pwrite(out->fd, buf, (size_t)r, out->pos + (off_t)done)
			  : w_write(out->fd, buf, (size_t)r);
		done += w > 0 ? (size_t)w : 0;
		if (w <= 0 || (!seeks && w < r))
			break;
	}
	io_release(&hold);
	if (!done)
		return r < 0 || w < 0 ? -errno : 0;
	end_moved(in, done);
	if (seeks)
		end_moved(out, done);
	return (ssize_t)done;
}

/* ---- copy_file_range ---- */

/* n becomes what there is to copy.  1: nothing. */
static int copy_check(struct ctx *c, struct end *in, struct end *out, size_t *n)
{
	const uint64_t from = (uint64_t)in->pos, to = (uint64_t)out->pos;
	int64_t end;
	int r;

	if (S_ISDIR(in->mode) || S_ISDIR(out->mode))
		return -EISDIR;
	if (!S_ISREG(in->mode) || !S_ISREG(out->mode))
		return -EINVAL;
	if (!readable(in) || !writable(out) || (out->flags & O_APPEND))
		return -EBADF;
	if (from + *n < from || to + *n < to)
		return -EOVERFLOW;
	r = end_size(c, in);
	if (r)
		return r;
	if (from >= in->size)
		*n = 0;
	else if (*n > in->size - from)
		*n = (size_t)(in->size - from);
	end = io_limit(to, to + *n);
	if (end < 0)
		return (int)end;
	*n = (size_t)((uint64_t)end - to);
	if (in->f && out->f && atomic_load(&in->f->vn) == atomic_load(&out->f->vn) &&
	    to + *n > from && to < from + *n)
		return -EINVAL;
	if (!sane(in->pos, *n) || !sane(out->pos, *n))
		return -EINVAL;
	return !*n;
}

/* By the server.  A count, or why nothing was done. */
static ssize_t copy_remote(struct ctx *c, struct end *in, struct end *out, size_t n)
{
	uint64_t done = 0, got = 0;
	int r = 0;

	while (!r && done < n) {
		r = remap(c, RF_KIND_COPY, in, (uint64_t)in->pos + done, out,
			  (uint64_t)out->pos + done, n - done < PIECE ? n - done : PIECE, &got);
		if (!got)
			break;
		done += got;
	}
	if (!done)
		return r;
	if (out->flags & O_DSYNC) {
		uint64_t first = (uint64_t)out->pos >> RF_PAGE_SHIFT;

		r = file_flush(c, out->f, first, RF_PAGES((uint64_t)out->pos + done) - first,
			       RF_FLUSH_DURABLE);
		if (r)
			return r;
	}
	end_moved(in, done);
	end_moved(out, done);
	return (ssize_t)done;
}

static ssize_t copy_range(struct ctx *c, struct end *in, struct end *out, size_t n)
{
	ssize_t r = copy_check(c, in, out, &n);

	if (r)
		return r < 0 ? r : 0;
	n = n < IO_MAX ? n : IO_MAX;
	r = in->f && out->f ? copy_remote(c, in, out, n) : -EXDEV;
	return r == -EXDEV || r == -EOPNOTSUPP ? move(in, out, n) : r;
}

ssize_t w_copy_file_range(int in, off_t *ioff, int out, off_t *ooff, size_t n, unsigned flags)
{
	struct ctx *c = ctx_get();
	off_t copy[2], *off[2];
	struct end a, b;
	ssize_t r;

	if (!either_managed(c, in, out)) {
		off[0] = off_in(c, ioff, &copy[0]);
		off[1] = off_in(c, ooff, &copy[1]);
		r = c->real.copy_file_range(in, off[0], out, off[1], n, flags);
		off_out(ioff, off[0]);
		off_out(ooff, off[1]);
		return r;
	}
	r = ends_get(c, &a, in, ioff, &b, out, ooff);
	if (r)
		return wrap_ret(r);
	r = flags ? -EINVAL : copy_range(c, &a, &b, n);
	end_put(&b);
	end_put(&a);
	return wrap_ret(r);
}

/* ---- pipes ---- */

static void pages_unmap(void *arg)
{
	const struct iovec *v = arg;

	rf_syscall(SYS_munmap, v->iov_base, v->iov_len);
}

/*
 * Pages of our own, given to the pipe: it waits for room for one, takes as many as there is room
 * for, and nobody else has them when our mapping is gone.
 */
static ssize_t file_to_pipe(struct ctx *c, struct end *in, int out, size_t n, unsigned flags)
{
	long room = rf_syscall(SYS_fcntl, out, F_GETPIPE_SZ);
	struct iovec v = {.iov_len = n < IO_MAX ? n : IO_MAX};
	struct undo undo;
	ssize_t r;
	void *p;

	if (room > 0 && v.iov_len > (size_t)room)
		v.iov_len = (size_t)room;
	p = sys_mmap(NULL, v.iov_len, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (sys_err(p))
		return -ENOMEM;
	v.iov_base = p;
	undo_begin(&undo, pages_unmap, &v);
	r = io_read(c, in->f, in->fd, &v, 1, in->pos, 0);
	if (r > 0) {
		struct iovec got = {p, (size_t)r};

		r = rf_syscall(SYS_vmsplice, out, &got, 1, flags & SPLICE_F_NONBLOCK);
	} else if (!r) { /* room is waited for at the end of the file, too */
		struct pollfd p_room = {.fd = out, .events = POLLOUT};

		r = rf_syscall(SYS_ppoll, &p_room, 1,
			       flags & SPLICE_F_NONBLOCK ? &(struct timespec){0} : NULL, NULL, 0);
		r = r < 0 ? r : r ? 0 : -EAGAIN;
	}
	undo_end(&undo);
	if (r > 0)
		end_moved(in, (size_t)r);
	return r;
}

static void pipe_close(void *arg)
{
	const int *p = arg;

	rf_syscall(SYS_close, p[0]);
	rf_syscall(SYS_close, p[1]);
}

/* 1: there is a byte, or was just now; 0: no writer is left; -EAGAIN, -EINTR. */
static int pipe_wait(int fd, bool wait)
{
	struct undo undo;
	int p[2];
	long r = rf_syscall(SYS_pipe2, p, O_CLOEXEC);

	if (r)
		return (int)r;
	undo_begin(&undo, pipe_close, p);
	do {
		r = rf_syscall(SYS_tee, fd, p[1], 1, wait ? 0 : SPLICE_F_NONBLOCK);
		if (!r) /* no writer, or another reader was faster */
			r = rf_syscall(SYS_tee, fd, p[1], 1, SPLICE_F_NONBLOCK);
	} while (r == -EAGAIN && wait);
	undo_end(&undo);
	return (int)r;
}

/* Bytes in the pipe, at least one if it is to wait; 0: no writer is left; -EAGAIN, -EINTR. */
static ssize_t pipe_bytes(int fd, bool wait)
{
	int avail = 0;
	long r = rf_syscall(SYS_ioctl, fd, FIONREAD, &avail);

	return r ? r : avail ? avail : pipe_wait(fd, wait);
}

/* What is there, without waiting.  A pipe before Linux 6.4 knows no RWF_NOWAIT: if another reader
 * was faster, this waits for the next bytes. */
static ssize_t pipe_take(int fd, void *buf, size_t n)
{
	struct iovec v = {buf, n};
	ssize_t r = rf_syscall(SYS_preadv2, fd, &v, 1, -1L, -1L, RWF_NOWAIT);

	return r == -EOPNOTSUPP ? rf_syscall(SYS_read, fd, buf, n) : r;
}

static ssize_t pipe_to_file(struct ctx *c, int in, struct end *out, size_t n, bool wait)
{
	struct io_hold hold;
	char *buf = io_hold(&hold, IO_BUF);
	struct iovec v = {.iov_base = buf};
	ssize_t r = 0, w;
	size_t done = 0;
	int64_t end;
	int avail;

	if (!buf)
		return -ENOMEM;
	while (done < n) {
		r = done ? rf_syscall(SYS_ioctl, in, FIONREAD, &avail) : pipe_bytes(in, wait);
		r = done && !r ? avail : r;
		if (r <= 0)
			break;
		v.iov_len = (size_t)r < n - done ? (size_t)r : n - done;
		v.iov_len = v.iov_len < IO_BUF ? v.iov_len : IO_BUF;
		end = io_limit((uint64_t)out->pos, (uint64_t)out->pos + v.iov_len);
		r = end < 0 ? end : 0;
		if (!r) {
			v.iov_len = (size_t)(end - out->pos);
			r = io_reserve(c, out->f, (uint64_t)out->pos, v.iov_len);
		}
		if (r)
			break;
		r = pipe_take(in, buf, v.iov_len);
		if (r == -EAGAIN)
			continue; /* another reader was faster */
		if (r <= 0)
			break;
		v.iov_len = (size_t)r;
		w = io_write(c, out->f, out->fd, &v, 1, out->pos, 0);
		if (w > 0) {
			end_moved(out, (size_t)w);
			done += (size_t)w;
		}
		if (w != r) {
			r = w < 0 ? w : -EIO;
			break;
		}
	}
	io_release(&hold);
	return done ? (ssize_t)done : r;
}

static ssize_t splice_ends(struct ctx *c, struct end *in, struct end *out, size_t n, unsigned flags)
{
	const bool ipipe = S_ISFIFO(in->mode), opipe = S_ISFIFO(out->mode);
	/* O_NONBLOCK of a file says nothing. */
	const bool wait = !((ipipe ? in : out)->flags & O_NONBLOCK) && !(flags & SPLICE_F_NONBLOCK);

	if ((ipipe && in->off) || (opipe && out->off))
		return -ESPIPE;
	if (!readable(in) || !writable(out))
		return -EBADF;
	if (ipipe) {
		if ((out->flags & O_APPEND) || !sane(out->pos, n))
			return -EINVAL;
		return pipe_to_file(c, in->fd, out, n, wait);
	}
	if (!opipe || !sane(in->pos, n))
		return -EINVAL;
	return file_to_pipe(c, in, out->fd, n, wait ? 0 : SPLICE_F_NONBLOCK);
}

ssize_t w_splice(int in, off_t *ioff, int out, off_t *ooff, size_t n, unsigned flags)
{
	const unsigned all = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT;
	struct ctx *c = ctx_get();
	off_t copy[2], *off[2];
	struct end a, b;
	ssize_t r;

	if (!either_managed(c, in, out) || !n || (flags & ~all)) {
		off[0] = off_in(c, ioff, &copy[0]);
		off[1] = off_in(c, ooff, &copy[1]);
		r = c->real.splice(in, off[0], out, off[1], n, flags);
		off_out(ioff, off[0]);
		off_out(ooff, off[1]);
		return r;
	}
	r = ends_get(c, &a, in, ioff, &b, out, ooff);
	if (r)
		return wrap_ret(r);
	r = splice_ends(c, &a, &b, n, flags);
	end_put(&b);
	end_put(&a);
	return wrap_ret(r);
}

/* ---- sendfile ---- */

static ssize_t send_ends(struct ctx *c, struct end *in, struct end *out, size_t n)
{
	const bool seeks = rf_syscall(SYS_lseek, in->fd, 0, SEEK_CUR) >= 0;

	if (!readable(in))
		return -EBADF;
	if (in->off && !seeks)
		return -ESPIPE;
	if (seeks && !sane(in->pos, n))
		return -EINVAL;
	if (!writable(out))
		return -EBADF;
	n = n < IO_MAX ? n : IO_MAX;
	if (S_ISFIFO(out->mode))
		return n ? file_to_pipe(c, in, out->fd, n,
					out->flags & O_NONBLOCK ? SPLICE_F_NONBLOCK : 0)
			 : 0;
	if ((out->flags & O_APPEND) || !seeks)
		return -EINVAL;
	return move(in, out, n);
}

ssize_t w_sendfile(int out, int in, off_t *off, size_t n)
{
	struct ctx *c = ctx_get();
	off_t copy, *used;
	struct end a, b;
	ssize_t r;

	if (!either_managed(c, in, out)) {
		used = off_in(c, off, &copy);
		r = c->real.sendfile(out, in, used, n);
		off_out(off, used);
		return r;
	}
	r = ends_get(c, &a, in, off, &b, out, NULL);
	if (r)
		return wrap_ret(r);
	r = send_ends(c, &a, &b, n);
	end_put(&b);
	end_put(&a);
	return wrap_ret(r);
}
WRAP_ALIAS(sendfile64, sendfile);

/* ---- clone and dedupe ---- */

static int clone_ends(struct ctx *c, struct end *src, struct end *dst,
		      const struct file_clone_range *a)
{
	const uint64_t to = a->dest_offset, n = a->src_length;
	uint64_t done;
	int64_t end;
	int r;

	if (!src->f || !dst->f)
		return -EXDEV;
	if (!readable(src) || !writable(dst) || (dst->flags & O_APPEND))
		return -EBADF;
	if (!sane((off_t)a->src_offset, n) || !sane((off_t)to, n))
		return -EINVAL;
	r = end_size(c, src);
	if (r)
		return r;
	if (a->src_offset < src->size) { /* else it is the server that says why not */
		end = io_limit(to, to + (n ? n : src->size - a->src_offset));
		if (end < 0)
			return (int)end;
		if ((uint64_t)end < to + (n ? n : src->size - a->src_offset))
			return -EINVAL;
	}
	r = remap(c, RF_KIND_CLONE, src, a->src_offset, dst, to, n, &done);
	return r ? r : n && done != n ? -EINVAL : 0;
}

static int clone_range(struct ctx *c, int fd, const struct file_clone_range *a)
{
	struct end dst, src;
	int r = ends_get(c, &dst, fd, NULL, &src, (int)a->src_fd, NULL);

	if (r)
		return r;
	r = clone_ends(c, &src, &dst, a);
	end_put(&src);
	end_put(&dst);
	return r;
}

/* A file system that cannot dedupe says so before anything else: asked for what changes nothing. */
static bool no_dedupe(struct ctx *c, const struct end *src)
{
	uint64_t done;

	return src->f && remap(c, RF_KIND_DEDUPE, src, 0, src, 0, 1, &done) == -EOPNOTSUPP;
}

/* The status of one destination. */
static int dedupe_one(struct ctx *c, struct end *src, const struct file_dedupe_range *a,
		      uint64_t len, struct file_dedupe_range_info *to, bool *asked)
{
	struct end dst;
	uint64_t done = 0;
	int r = end_get(c, &dst, (int)to->dest_fd, NULL);

	if (r)
		return r;
	if (to->reserved || !sane((off_t)to->dest_offset, len)) {
		r = -EINVAL;
	} else if (!src->f || !dst.f) {
		r = -EXDEV;
	} else if (len) {
		r = remap(c, RF_KIND_DEDUPE, src, a->src_offset, &dst, (uint64_t)to->dest_offset,
			  len, &done);
		*asked = r != -EXDEV;
	}
	to->bytes_deduped = done;
	if (!r && len && !done)
		r = FILE_DEDUPE_RANGE_DIFFERS;
	end_put(&dst);
	return r;
}

static int dedupe(struct ctx *c, struct end *src, struct file_dedupe_range *a)
{
	uint64_t len = a->src_length < DEDUPE_MAX ? a->src_length : DEDUPE_MAX;
	bool asked = false;
	int r;

	if (!readable(src) || a->reserved1 || a->reserved2)
		return -EINVAL;
	if (S_ISDIR(src->mode))
		return -EISDIR;
	if (!S_ISREG(src->mode) || !sane((off_t)a->src_offset, a->src_length))
		return -EINVAL;
	r = end_size(c, src);
	if (r)
		return r;
	if (a->src_offset + a->src_length > src->size)
		return no_dedupe(c, src) ? -EOPNOTSUPP : -EINVAL;
	for (unsigned i = 0; i < a->dest_count; i++) {
		a->info[i].bytes_deduped = 0;
		a->info[i].status = FILE_DEDUPE_RANGE_SAME;
	}
	for (unsigned i = 0; i < a->dest_count; i++) {
		r = dedupe_one(c, src, a, len, &a->info[i], &asked);
		if (r == -EOPNOTSUPP)
			return r;
		a->info[i].status = r;
	}
	return !asked && no_dedupe(c, src) ? -EOPNOTSUPP : 0;
}

static int dedupe_range(struct ctx *c, int fd, struct file_dedupe_range *a)
{
	struct end src;
	int r;

	if (offsetof(struct file_dedupe_range, info) + a->dest_count * sizeof(a->info[0]) >
	    RF_PAGE_SIZE)
		return -ENOMEM;
	r = end_get(c, &src, fd, NULL);
	if (r)
		return r;
	r = dedupe(c, &src, a);
	end_put(&src);
	return r;
}

static bool dedupe_managed(struct ctx *c, int fd, const struct file_dedupe_range *a)
{
	bool any = file_entry(c, fd);

	for (unsigned i = 0; i < a->dest_count && i < RF_PAGE_SIZE / sizeof(a->info[0]); i++)
		any |= file_entry(c, (int)a->info[i].dest_fd) != NULL;
	return any;
}

/* What is left of a file behind the position. */
static int unread(struct ctx *c, int fd, int *n)
{
	struct end e;
	int r = end_get(c, &e, fd, NULL);

	if (r)
		return r;
	r = end_size(c, &e);
	if (!r && !pointer(n))
		r = -EFAULT;
	if (!r)
		*n = (int)(e.size - (uint64_t)e.pos);
	end_put(&e);
	return r;
}

/* XFS's older fallocate, which any file system takes. */
struct space {
	int16_t type, whence;
	int64_t start, len;
	int32_t pad[6];
};
#define SPACE(nr) _IOW('X', nr, struct space)

static int space(struct ctx *c, int fd, int mode, const struct space *s)
{
	int64_t start;
	struct end e;
	int r;

	if (!pointer(s))
		return wrap_ret(-EFAULT);
	r = end_get(c, &e, fd, NULL);
	if (r)
		return wrap_ret(r);
	r = s->whence == SEEK_END ? end_size(c, &e) : s->whence < 0 || s->whence > 2 ? -EINVAL : 0;
	start = (int64_t)((uint64_t)s->start + (s->whence == SEEK_CUR   ? (uint64_t)e.pos
						: s->whence == SEEK_END ? e.size
									: 0));
	end_put(&e);
	return r ? wrap_ret(r) : w_fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, start, s->len);
}

int w_ioctl(int fd, unsigned long req, void *arg)
{
	struct ctx *c = ctx_get();
	struct file_clone_range whole = {.src_fd = (int)(intptr_t)arg};

	if (__builtin_expect(!atomic_load_explicit(&c->fd_top, memory_order_relaxed), 1))
		return c->real.ioctl(fd, req, arg);
	switch (req) {
	case FICLONE:
		if (either_managed(c, fd, (int)whole.src_fd))
			return wrap_ret(clone_range(c, fd, &whole));
		break;
	case FICLONERANGE:
		if (pointer(arg) &&
		    either_managed(c, fd, (int)((struct file_clone_range *)arg)->src_fd))
			return wrap_ret(clone_range(c, fd, arg));
		break;
	case FIDEDUPERANGE:
		if (pointer(arg) && dedupe_managed(c, fd, arg))
			return wrap_ret(dedupe_range(c, fd, arg));
		break;
	case FIONREAD:
		if (file_entry(c, fd))
			return wrap_ret(unread(c, fd, arg));
		break;
	case SPACE(40): /* RESVSP, and with 64 behind */
	case SPACE(42):
		if (file_entry(c, fd))
			return space(c, fd, 0, arg);
		break;
	case SPACE(41): /* UNRESVSP */
	case SPACE(43):
		if (file_entry(c, fd))
			return space(c, fd, FALLOC_FL_PUNCH_HOLE, arg);
		break;
	case SPACE(57): /* ZERO_RANGE */
		if (file_entry(c, fd))
			return space(c, fd, FALLOC_FL_ZERO_RANGE, arg);
		break;
	case FS_IOC_FIEMAP: /* of the file underneath; callers have SEEK_DATA */
		if (file_entry(c, fd))
			return wrap_ret(-EOPNOTSUPP);
		break;
	}
	return c->real.ioctl(fd, req, arg);
}
