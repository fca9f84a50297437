/* SPDX-License-Identifier: MIT */
/*
 * w_fd.c - descriptors: made, copied, closed.
 *
 * open.  The kernel opens first, as it always would; then a look at the descriptor says whether it
 * is a volume's (anchor.c), and the file is opened at the agent as well.  Only O_TRUNC is held back
 * where the name may be a volume's: on a managed file it is the server's to truncate; if it turns
 * out unmanaged, ftruncate() does the same with the same errors (truncate(), for O_RDONLY | O_TRUNC).
 * Names are the kernel's, so O_EXCL
 * was decided by it and is not asked of the server again.  O_PATH, O_DIRECTORY and O_TMPFILE are
 * never managed.
 *
 * A vfork child (file_foreign) gets the kernel's calls and nothing else: its descriptors are
 * copies, the table is its parent's.  What it opens is adopted by the program that it execs.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <linux/close_range.h>
#include <string.h>
#include <unistd.h>

#include "anchor.h"
#include "file.h"

/* ---- open ---- */

/* This very call made the file (O_EXCL), and the server would not have it: take it away again. */
static void undo_create(int dir, const char *path, int fd)
{
	struct stat a = {0}, b = {0};

	if (rf_syscall(SYS_fstat, fd, &a) == 0 &&
	    rf_syscall(SYS_newfstatat, dir, path, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
	    a.st_ino == b.st_ino && a.st_dev == b.st_dev && a.st_nlink == 1)
		rf_syscall(SYS_unlinkat, dir, path, 0);
}

/* open(O_RDONLY | O_TRUNC): the descriptor cannot do it, its name can. */
static int truncate_link(int fd)
{
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return w_truncate(link, 0) ? -errno : 0;
}

/* fd was opened natively, with `held` taken from the flags.  Returns it, or -1 with errno. */
static int opened(struct ctx *c, int fd, int dir, const char *path, int flags, int held)
{
	const bool by_name = held && (flags & O_ACCMODE) == O_RDONLY;
	int saved = errno, r = 0;

	if (by_name) {
		r = truncate_link(fd);
		flags &= ~O_TRUNC;
	}
	if (!r)
		r = file_adopt(c, fd, path, flags);
	if (r == 0 && held && !by_name)
		r = (int)rf_syscall(SYS_ftruncate, fd, 0);
	if (r >= 0) {
		errno = saved;
		return fd;
	}
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		undo_create(dir, path, fd);
	rf_syscall(SYS_close, fd);
	errno = -r;
	return -1;
}

static int do_open(struct ctx *c, int dir, const char *path, int flags, mode_t mode)
{
	int fd, held = 0;

	if ((flags & (O_TRUNC | O_PATH)) == O_TRUNC &&
	    anchor_maybe(c, dir, path, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0))
		held = O_TRUNC;
	fd = dir == AT_FDCWD ? c->real.open(path, flags & ~held, mode)
			     : c->real.openat(dir, path, flags & ~held, mode);
	if (fd < 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			anchor_missed(c, path);
		return fd;
	}
	return opened(c, fd, dir, path, flags, held);
}

int w_open(const char *path, int flags, mode_t mode)
{
	struct ctx *c = ctx_get();

	if (!c->nvol)
		return c->real.open(path, flags, mode);
	return do_open(c, AT_FDCWD, path, flags, mode);
}
WRAP_ALIAS(open64, open);

int w_openat(int dir, const char *path, int flags, mode_t mode)
{
	struct ctx *c = ctx_get();

	if (!c->nvol)
		return c->real.openat(dir, path, flags, mode);
	return do_open(c, dir, path, flags, mode);
}
WRAP_ALIAS(openat64, openat);

int w_creat(const char *path, mode_t mode)
{
	return w_open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
WRAP_ALIAS(creat64, creat);

/* The fortified spellings: without a mode.  The real ones abort if one is needed. */
int w___open_2(const char *path, int flags)
{
	struct ctx *c = ctx_get();

	if (!c->nvol || (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE)
		return c->real.__open_2(path, flags);
	return do_open(c, AT_FDCWD, path, flags, 0);
}
WRAP_ALIAS(__open64_2, __open_2);

int w___openat_2(int dir, const char *path, int flags)
{
	struct ctx *c = ctx_get();

	if (!c->nvol || (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE)
		return c->real.__openat_2(dir, path, flags);
	return do_open(c, dir, path, flags, 0);
}
WRAP_ALIAS(__openat64_2, __openat_2);

static int made_temp(struct ctx *c, int fd, const char *path, int flags)
{
	if (fd < 0 || !c->nvol)
		return fd;
	return opened(c, fd, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | (flags & O_SYNC), 0);
}

int w_mkstemp(char *t)
{
	struct ctx *c = ctx_get();
	return made_temp(c, c->real.mkstemp(t), t, 0);
}
WRAP_ALIAS(mkstemp64, mkstemp);

int w_mkostemp(char *t, int flags)
{
	struct ctx *c = ctx_get();
	return made_temp(c, c->real.mkostemp(t, flags), t, flags);
}
WRAP_ALIAS(mkostemp64, mkostemp);

int w_mkstemps(char *t, int suffix)
{
	struct ctx *c = ctx_get();
	return made_temp(c, c->real.mkstemps(t, suffix), t, 0);
}
WRAP_ALIAS(mkstemps64, mkstemps);

int w_mkostemps(char *t, int suffix, int flags)
{
	struct ctx *c = ctx_get();
	return made_temp(c, c->real.mkostemps(t, suffix, flags), t, flags);
}
WRAP_ALIAS(mkostemps64, mkostemps);

/* ---- close ---- */

int w_close(int fd)
{
	struct ctx *c = ctx_get();
	struct file *f = file_entry(c, fd);
	int r, e;

	if (__builtin_expect(!f, 1))
		return c->real.close(fd);
	if (f == FILE_HIDDEN && !file_foreign(c))
		return wrap_ret(-EBADF);
	if (file_foreign(c))
		return c->real.close(fd);
	f = file_remove(c, fd);
	e = f ? file_close(c, f, true) : 0;
	r = c->real.close(fd);
	return r ? r : wrap_ret(e);
}

/* close_range, around internal descriptors. */
static int close_around(struct ctx *c, unsigned first, unsigned last, int flags)
{
	unsigned top = atomic_load(&c->fd_top), from = first, fd;
	int r = 0;

	for (fd = first; fd < top && fd <= last; fd++) {
		struct file *f = file_entry(c, (int)fd);

		if (f && f != FILE_HIDDEN && (f = file_remove(c, (int)fd)))
			file_close(c, f, false);
		if (f != FILE_HIDDEN)
			continue;
		if (fd > from)
			r = c->real.close_range(from, fd - 1, flags);
		if (r)
			return r;
		flags &= ~CLOSE_RANGE_UNSHARE; /* once is enough */
		from = fd + 1;
	}
	return from <= last ? c->real.close_range(from, last, flags) : 0;
}

int w_close_range(unsigned first, unsigned last, int flags)
{
	struct ctx *c = ctx_get();

	if (first >= atomic_load(&c->fd_top) || first > last || (flags & CLOSE_RANGE_CLOEXEC) ||
	    (flags & ~CLOSE_RANGE_UNSHARE) || file_foreign(c))
		return c->real.close_range(first, last, flags);
	return close_around(c, first, last, flags);
}

void w_closefrom(int first)
{
	struct ctx *c = ctx_get();

	first = first < 0 ? 0 : first;
	if ((unsigned)first >= atomic_load(&c->fd_top) || file_foreign(c) ||
	    close_around(c, (unsigned)first, ~0u, 0))
		c->real.closefrom(first);
}

/* ---- dup ---- */

/* `to` is now a copy of fd (or the call failed: -1); f is what file_ref(fd) gave before. */
static int dupped(struct ctx *c, struct file *f, int fd, int to)
{
	int saved = errno;

	if (to >= 0 && fd != to && (f || file_entry(c, to)) && !file_foreign(c))
		file_enter(c, to, f);
	else if (f)
		file_put(c, f);
	errno = saved;
	return to;
}

int w_dup(int fd)
{
	struct ctx *c = ctx_get();
	struct file *f = file_ref(c, fd);

	return dupped(c, f, fd, c->real.dup(fd));
}

int w_dup2(int fd, int to)
{
	struct ctx *c = ctx_get();
	struct file *f;

	if (file_hidden(c, to) && !file_foreign(c))
		return wrap_ret(-EBADF);
	f = file_ref(c, fd);
	file_replace(c, fd, to);
	return dupped(c, f, fd, c->real.dup2(fd, to));
}

int w_dup3(int fd, int to, int flags)
{
	struct ctx *c = ctx_get();
	struct file *f;

	if (file_hidden(c, to) && !file_foreign(c))
		return wrap_ret(-EBADF);
	f = file_ref(c, fd);
	file_replace(c, fd, to);
	return dupped(c, f, fd, c->real.dup3(fd, to, flags));
}

int w_fcntl(int fd, int cmd, long arg)
{
	struct ctx *c = ctx_get();
	struct file *f;

	if (cmd != F_DUPFD && cmd != F_DUPFD_CLOEXEC) {
		lock_fcntl(c, fd, cmd, arg);
		return c->real.fcntl(fd, cmd, arg);
	}
	f = file_ref(c, fd);
	return dupped(c, f, fd, c->real.fcntl(fd, cmd, arg));
}
WRAP_ALIAS(fcntl64, fcntl);

/* ---- the end without exit() ---- */

void w__exit(int status)
{
	struct ctx *c = ctx_get();

	file_exit(c);
	c->real._exit(status);
}
WRAP_ALIAS(_Exit, _exit);

void w_quick_exit(int status)
{
	struct ctx *c = ctx_get();

	file_exit(c);
	c->real.quick_exit(status);
}
