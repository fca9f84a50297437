/* SPDX-License-Identifier: MIT */
/*
 * invalidate.c - refault_invalidate and refault_finvalidate: take a file out of this host's cache.
 *
 * The agent does it (tools/agent/inval.c): it takes pages out of every program, this one included, so
 * nothing is left to do here.  One request, which takes nobody's lock.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <refault/refault.h>
#include <unistd.h>

#include "file.h"

#define API __attribute__((visibility("default")))

static ssize_t invalidate(struct ctx *c, struct file *f, int flags)
{
	const uint64_t arg[4] = {0, 0,
				 (flags & REFAULT_FLUSH ? RF_INVAL_FLUSH : 0) |
				     (flags & REFAULT_DISCARD ? RF_INVAL_DISCARD : 0)};
	struct vnode *vn = atomic_load(&f->vn);
	uint64_t ret[2];
	int r = agent_request(c, RF_OP_INVALIDATE, vn->id, file_key(f), arg, NULL, 0, ret,
			      sys_getmask());
	int e = flags & REFAULT_FLUSH ? file_error(f) : 0;

	return e ? e : r ? r : (ssize_t)ret[0];
}

static int check(int flags)
{
	return flags & ~(REFAULT_FLUSH | REFAULT_DISCARD) ||
		       flags == (REFAULT_FLUSH | REFAULT_DISCARD)
		   ? -EINVAL
		   : 0;
}

API ssize_t refault_finvalidate(int fd, int flags)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f;
	ssize_t r = check(flags);

	if (r)
		return wrap_ret(r);
	if (rf_syscall(SYS_fcntl, fd, F_GETFD) < 0 || file_hidden(c, fd))
		return wrap_ret(-EBADF);
	f = file_get(c, fd, &held);
	if (!f)
		return wrap_ret(-EINVAL);
	if (sys_err(f))
		return wrap_ret((ssize_t)f);
	r = invalidate(c, f, flags);
	file_done(&held);
	return wrap_ret(r);
}

/* By O_PATH: the close of any other descriptor would drop the program's locks on the file. */
API ssize_t refault_invalidate(const char *path, int flags)
{
	struct ctx *c = ctx_get();
	ssize_t r = check(flags);
	int fd, saved;

	if (r)
		return wrap_ret(r);
	fd = c->real.open(path, O_PATH | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	r = file_adopt(c, fd, path, O_RDONLY);
	r = r < 0 ? wrap_ret(r) : refault_finvalidate(fd, flags);
	saved = errno;
	close(fd);
	errno = saved;
	return r;
}
