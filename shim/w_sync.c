/* SPDX-License-Identifier: MIT */
/*
 * w_sync.c - durability, size and allocation of managed files.
 *
 * fsync and fdatasync flush to the server and have it make the bytes durable; the file underneath
 * has none of them.  A write-back error since the last report is reported here, once an open file.
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "anchor.h"
#include "io.h"

static int ask(struct ctx *c, struct file *f, enum rf_op op, uint64_t a, uint64_t b, uint64_t d)
{
	const uint64_t arg[4] = {a, b, d};

	return agent_request(c, op, atomic_load(&f->vn)->id, file_key(f), arg, NULL, 0, NULL,
			     sys_getmask());
}

/* Runs `call` with f, as `held`, and gives it back; f may be an error. */
#define WITH(f, call)                                                                              \
	({                                                                                         \
		int r_ = sys_err(f) ? (int)(long)(f) : (call);                                     \
		if (!sys_err(f))                                                                   \
			file_done(&held);                                                          \
		r_;                                                                                \
	})

int w_fsync(int fd)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.fsync(fd);
	return wrap_ret(WITH(f, file_flush(c, f, 0, 0, RF_FLUSH_DURABLE)));
}

int w_fdatasync(int fd)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.fdatasync(fd);
	return wrap_ret(WITH(f, file_flush(c, f, 0, 0, RF_FLUSH_DURABLE)));
}

static int range_flush(struct ctx *c, struct file *f, off_t off, off_t n, unsigned flags)
{
	uint64_t first, pages;

	if (off < 0 || n < 0 || off > INT64_MAX - n ||
	    (flags & ~(unsigned)(SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				 SYNC_FILE_RANGE_WAIT_AFTER)))
		return -EINVAL;
	if (!flags)
		return 0;
	first = (uint64_t)off >> RF_PAGE_SHIFT;
	pages = n ? RF_PAGES(off + n) - first : IO_LAST_PAGE + 1 - first;
	if (flags & (SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER))
		return file_flush(c, f, first, pages, 0);
	return agent_flush(c, atomic_load(&f->vn), first, pages, RF_FLUSH_NOWAIT);
}

int w_sync_file_range(int fd, off_t off, off_t n, unsigned flags)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.sync_file_range(fd, off, n, flags);
	return wrap_ret(WITH(f, range_flush(c, f, off, n, flags)));
}

/* Everything of this host. */
static int flush_host(struct ctx *c)
{
	const uint64_t arg[4] = {0, 0, RF_FLUSH_DURABLE};

	return agent_request(c, RF_OP_FLUSH, 0, 0, arg, NULL, 0, NULL, sys_getmask());
}

int w_syncfs(int fd)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);
	int r = c->real.syncfs(fd);

	if (!f)
		return r;
	if (r) {
		if (!sys_err(f))
			file_done(&held);
		return r;
	}
	return wrap_ret(WITH(f, flush_host(c)));
}

void w_sync(void)
{
	struct ctx *c = ctx_get();
	int saved = errno;

	if (atomic_load(&c->attached) & 1)
		flush_host(c);
	errno = saved;
	c->real.sync();
}

/* ---- size ---- */

static int set_size(struct ctx *c, struct file *f, off_t len)
{
	int r;

	if (len < 0 || !file_writable(f))
		return -EINVAL;
	r = io_newsize(c, f, (uint64_t)len);
	return r ? r : ask(c, f, RF_OP_SETSIZE, (uint64_t)len, 0, 0);
}

int w_ftruncate(int fd, off_t len)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.ftruncate(fd, len);
	return wrap_ret(WITH(f, set_size(c, f, len)));
}
WRAP_ALIAS(ftruncate64, ftruncate);

/* By O_PATH: the close of any other descriptor would drop the program's locks on the file. */
int w_truncate(const char *path, off_t len)
{
	struct ctx *c = ctx_get();
	int fd, r, saved;

	if (!c->nvol || len < 0 || !anchor_maybe(c, AT_FDCWD, path, 0) || file_foreign(c))
		return c->real.truncate(path, len);
	r = (int)rf_syscall(SYS_faccessat2, AT_FDCWD, path, W_OK, AT_EACCESS);
	if (r && r != -ENOSYS)
		return wrap_ret(r);
	fd = c->real.open(path, O_PATH | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	r = file_adopt(c, fd, path, O_WRONLY);
	if (r > 0)
		r = w_ftruncate(fd, len);
	else
		r = r ? (int)wrap_ret(r) : c->real.truncate(path, len);
	saved = errno;
	if (w_close(fd) && !r)
		return -1;
	errno = saved;
	return r;
}
WRAP_ALIAS(truncate64, truncate);

/*
 * What vfs_fallocate and inode_newsize_ok say before the file system is asked, in their order; the
 * rest, and what the file system lacks, is the server's errno.
 */
static int allocate(struct ctx *c, struct file *f, int mode, off_t off, off_t len)
{
	const uint64_t most = (IO_LAST_PAGE + 1) << RF_PAGE_SHIFT;
	int r = 0;

	if (off < 0 || len <= 0)
		return -EINVAL;
	switch (mode & ~FALLOC_FL_KEEP_SIZE) {
	case 0:
	case FALLOC_FL_UNSHARE_RANGE:
	case FALLOC_FL_ZERO_RANGE:
		break;
	case FALLOC_FL_PUNCH_HOLE:
		if (!(mode & FALLOC_FL_KEEP_SIZE))
			return -EOPNOTSUPP;
		break;
	case FALLOC_FL_COLLAPSE_RANGE:
	case FALLOC_FL_INSERT_RANGE:
		if (mode & FALLOC_FL_KEEP_SIZE)
			return -EOPNOTSUPP;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (!file_writable(f))
		return -EBADF;
	if ((uint64_t)off + (uint64_t)len > most)
		return -EFBIG;
	/* A hole, a collapse and an insert are not asked for the limit. */
	if (!(mode & ~(FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_ZERO_RANGE)))
		r = io_newsize(c, f, (uint64_t)(off + len));
	return r ? r : ask(c, f, RF_OP_FALLOC, (uint64_t)mode, (uint64_t)off, (uint64_t)len);
}

int w_fallocate(int fd, int mode, off_t off, off_t len)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.fallocate(fd, mode, off, len);
	return wrap_ret(WITH(f, allocate(c, f, mode, off, len)));
}
WRAP_ALIAS(fallocate64, fallocate);

/* Returns the error, leaves errno. */
int w_posix_fallocate(int fd, off_t off, off_t len)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = file_get(c, fd, &held);

	if (!f)
		return c->real.posix_fallocate(fd, off, len);
	return -WITH(f, allocate(c, f, 0, off, len));
}
WRAP_ALIAS(posix_fallocate64, posix_fallocate);
