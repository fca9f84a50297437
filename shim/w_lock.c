/* SPDX-License-Identifier: MIT */
/*
 * w_lock.c - file locks.  They are the kernel's, on the file underneath; but an unlock is a flush:
 * whoever gets the lock next, on whatever host, sees what was stored under it.
 *
 *	unlock, or from exclusive to shared		flush, then let the kernel unlock
 *	lock						nothing: who held it before has flushed, and
 *							that had taken the old bytes from this host
 *							before it returned
 *	close, exit					drop locks without saying so: file_close and
 *							file_exit flush where an exclusive lock was
 *							taken (vnode.locks)
 *
 * The flush reports nothing: what was refused is said at the next fsync, msync or close, as always.
 * Without a list of locks, a downgrade by fcntl() cannot be told from a first read lock; so any read
 * lock flushes where an exclusive one was taken before.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <sys/file.h>

#include "file.h"

/* About to go to that type (of fcntl's): flush what a lock of that kind covered, or note that one does. */
static void prepare(struct ctx *c, int fd, short type, uint32_t kind)
{
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	struct vnode *vn;

	if (!f || sys_err(f))
		return;
	vn = atomic_load(&f->vn);
	if (type == F_WRLCK)
		atomic_fetch_or(&vn->locks, kind);
	else if (type == F_UNLCK || (atomic_load(&vn->locks) & kind))
		agent_flush(c, vn, 0, 0, 0);
	file_done(&held);
}

static bool plain(struct ctx *c, int fd)
{
	return __builtin_expect(!file_entry(c, fd), 1) || file_foreign(c);
}

int w_flock(int fd, int op)
{
	struct ctx *c = ctx_get();
	const int how = op & ~LOCK_NB, saved = errno;

	if (!plain(c, fd) && (how == LOCK_UN || how == LOCK_SH || how == LOCK_EX))
		prepare(c, fd,
			how == LOCK_EX   ? F_WRLCK
			: how == LOCK_SH ? F_RDLCK
					 : F_UNLCK,
			VNODE_LOCK_OPEN);
	errno = saved;
	return c->real.flock(fd, op);
}

void lock_fcntl(struct ctx *c, int fd, int cmd, long arg)
{
	const bool posix = cmd == F_SETLK || cmd == F_SETLKW;
	const struct flock *fl = (const struct flock *)arg;
	const int saved = errno;

	if ((!posix && cmd != F_OFD_SETLK && cmd != F_OFD_SETLKW) || plain(c, fd) ||
	    (uintptr_t)arg < RF_PAGE_SIZE)
		return;
	prepare(c, fd, fl->l_type, posix ? VNODE_LOCK_POSIX : VNODE_LOCK_OPEN);
	errno = saved;
}

int w_lockf(int fd, int cmd, off_t len)
{
	struct ctx *c = ctx_get();
	const int saved = errno;

	if (!plain(c, fd) && (cmd == F_ULOCK || cmd == F_LOCK || cmd == F_TLOCK))
		prepare(c, fd, cmd == F_ULOCK ? F_UNLCK : F_WRLCK, VNODE_LOCK_POSIX);
	errno = saved;
	return c->real.lockf(fd, cmd, len);
}
WRAP_ALIAS(lockf64, lockf);
