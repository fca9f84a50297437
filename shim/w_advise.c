/* SPDX-License-Identifier: MIT */
/*
 * w_advise.c - advice about managed files: posix_fadvise, readahead.
 *
 * WILLNEED and readahead have the agent start to fetch, and wait for nothing.  DONTNEED starts to write
 * back what is dirty and drops what is clean, of whole pages only, as the kernel does.  The rest only
 * tells how the file will be read, which the agent sees for itself.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <unistd.h>

#include "io.h"

/* The last byte of a range that begins at off; n 0: as far as there is. */
static uint64_t last_byte(uint64_t off, uint64_t n)
{
	const uint64_t end = off + n;

	return !n || end < n || end > INT64_MAX ? INT64_MAX : end - 1;
}

static int will_need(struct ctx *c, struct file *f, uint64_t off, uint64_t n)
{
	const uint64_t first = off >> RF_PAGE_SHIFT, end = (last_byte(off, n) >> RF_PAGE_SHIFT) + 1;

	if (end > first)
		agent_fault(c, atomic_load(&f->vn), file_key(f), first, end - first,
			    RF_FAULT_NOWAIT);
	return 0; /* whatever became of it */
}

/* Pages that are not whole in the range stay, but for the last one of the file. */
static int dont_need(struct ctx *c, struct file *f, uint64_t off, uint64_t n)
{
	struct vnode *vn = atomic_load(&f->vn);
	const uint64_t last = last_byte(off, n), first = RF_PAGES(off);
	uint64_t end = (last + 1) >> RF_PAGE_SHIFT;
	uint64_t arg[4] = {first};

	if (last + 1 == atomic_load(&atomic_load(&vn->st)->i_size))
		end = RF_PAGES(last + 1);
	if (end <= first)
		return 0;
	agent_flush(c, vn, first, end - first, RF_FLUSH_NOWAIT);
	arg[1] = first || last != INT64_MAX ? end - first : 0;
	agent_request(c, RF_OP_INVALIDATE, vn->id, file_key(f), arg, NULL, 0, NULL, sys_getmask());
	return 0;
}

static int advise(struct ctx *c, struct file *f, off_t off, off_t n, int advice)
{
	if (n < 0)
		return -EINVAL;
	switch (advice) {
	case POSIX_FADV_NORMAL:
	case POSIX_FADV_SEQUENTIAL:
	case POSIX_FADV_RANDOM:
	case POSIX_FADV_NOREUSE:
		return 0;
	case POSIX_FADV_WILLNEED:
		return off < 0 ? 0 : will_need(c, f, (uint64_t)off, (uint64_t)n);
	case POSIX_FADV_DONTNEED:
		return off < 0 ? 0 : dont_need(c, f, (uint64_t)off, (uint64_t)n);
	}
	return -EINVAL;
}

/* Returns the error, leaves errno. */
int w_posix_fadvise(int fd, off_t off, off_t n, int advice)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	int r;

	if (!f)
		return c->real.posix_fadvise(fd, off, n, advice);
	if (sys_err(f))
		return (int)-(long)f;
	r = advise(c, f, off, n, advice);
	file_done(&held);
	return -r;
}
WRAP_ALIAS(posix_fadvise64, posix_fadvise);

ssize_t w_readahead(int fd, off64_t off, size_t n)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	int r;

	if (!f)
		return c->real.readahead(fd, off, n);
	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	r = (f->flags & O_ACCMODE) == O_WRONLY ? -EBADF
	    : (ssize_t)n < 0                   ? -EINVAL
	    : off < 0                          ? 0
					       : will_need(c, f, (uint64_t)off, n);
	file_done(&held);
	return wrap_ret((ssize_t)r);
}
