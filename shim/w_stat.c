/* SPDX-License-Identifier: MIT */
/*
 * w_stat.c - size, blocks and times of files that this host holds; all else is the kernel's.
 *
 * A managed descriptor: the vnode's header, after its promise was found valid or was renewed.  A
 * name, or another descriptor: by device and inode in the agent's table, which holds every file
 * that any program of this user has open, and where no promise holds the agent asks first.  For a
 * name in a volume the library attaches to an agent that runs; none is started, and a program that
 * only asks about other files never attaches.
 *
 * Times.  utimes() sets those of the file underneath, which the agent does not hear of.  So mtime
 * and ctime are shown as a pair from where ctime is later: the kernel's after utimes() here, the
 * server's after a change there.
 *
 * Counters, locks: none; entries are read under their sequence number.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "anchor.h"
#include "io.h"

#define RETRY_NS UINT64_C(1000000000) /* between looks for an agent that does not run */

struct times {
	uint64_t size, blocks;
	int64_t mtime, ctime;
	uint64_t until; /* of the table: a promise for it ends */
};

/* What is asked about: a descriptor (path NULL), or a name. */
struct asked {
	int fd;
	const char *path;
};

static struct asked asked_at(int dir, const char *path, int flags)
{
	if ((flags & AT_EMPTY_PATH) && (!path || !*path))
		path = NULL;
	return (struct asked){dir, path};
}

static bool attached(struct ctx *c, struct asked a)
{
	static _Atomic uint64_t failed_at;
	struct timespec t;
	uint64_t now;

	if (atomic_load_explicit(&c->attached, memory_order_acquire) & 1)
		return true;
	if (!a.path || file_foreign(c))
		return false;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	if (atomic_load(&failed_at) && now - atomic_load(&failed_at) < RETRY_NS)
		return false;
	if (!anchor_names(c, a.fd, a.path))
		return false;
	atomic_store(&failed_at, now);
	return agent_attach(c, false) == 0;
}

/* The table's entry.  False: no program of this host has the file. */
static bool held(struct ctx *c, uint64_t dev, uint64_t ino, struct times *t, uint32_t *vnode)
{
	uint32_t i = rf_stat_hash(dev, ino);

	for (uint32_t n = 0; n < RF_STAT_BUCKETS; n++, i = (i + 1) & (RF_STAT_BUCKETS - 1)) {
		const struct rf_stat_entry *e = &c->host->stat[i];
		bool mine;

		for (uint32_t tries = 0;; tries++) {
			uint32_t seq = atomic_load_explicit(&e->seq, memory_order_acquire);

			t->until = atomic_load_explicit(&e->cb_expires_at, memory_order_acquire);
			*vnode = atomic_load_explicit(&e->vnode, memory_order_relaxed);
			mine = *vnode && *vnode != RF_STAT_TOMB &&
			       atomic_load_explicit(&e->dev, memory_order_relaxed) == dev &&
			       atomic_load_explicit(&e->ino, memory_order_relaxed) == ino;
			t->size = atomic_load_explicit(&e->size, memory_order_relaxed);
			t->blocks = atomic_load_explicit(&e->blocks, memory_order_relaxed);
			t->mtime = atomic_load_explicit(&e->mtime, memory_order_relaxed);
			t->ctime = atomic_load_explicit(&e->ctime, memory_order_relaxed);
			atomic_thread_fence(memory_order_acquire);
			if (!(seq & 1) &&
			    atomic_load_explicit(&e->seq, memory_order_relaxed) == seq)
				break;
			if (tries > 100000)
				return false; /* its writer died in the middle */
		}
		if (mine)
			return true;
		if (!*vnode)
			return false;
	}
	return false;
}

static void of_vnode(struct ctx *c, struct vnode *vn, uint32_t key, struct times *t)
{
	const struct rf_vnode *st;

	io_validate(c, vn, key); /* not to be had: what was last known */
	st = atomic_load(&vn->st);
	t->size = atomic_load(&st->i_size);
	t->mtime = atomic_load(&st->mtime);
	t->ctime = atomic_load(&st->ctime);
}

/* True: *t is to be shown. */
static bool lookup(struct ctx *c, struct asked a, uint64_t dev, uint64_t ino, uint32_t mode,
		   struct times *t)
{
	const uint64_t arg[4] = {IO_LAST_PAGE, 1, RF_FAULT_RANDOM};
	struct file_held h;
	struct file *f;
	uint32_t id;

	if (!c->nvol || !S_ISREG(mode))
		return false;
	f = a.path ? NULL : file_get(c, a.fd, &h);
	if (f && !sys_err(f)) {
		if (!held(c, dev, ino, t, &id))
			t->blocks = (atomic_load(&atomic_load(&f->vn)->st)->i_size + 511) / 512;
		of_vnode(c, atomic_load(&f->vn), file_key(f), t);
		file_done(&h);
		return true;
	}
	if (!anchor_dev(c, dev) || !attached(c, a) || !held(c, dev, ino, t, &id))
		return false;
	if (!vnode_until(c, t->until)) { /* whoever asks; not to be had: what was last known */
		agent_request(c, RF_OP_FAULT, id, 0, arg, NULL, 0, NULL, sys_getmask());
		return held(c, dev, ino, t, &id); /* forgotten meanwhile: *t is of another */
	}
	return true;
}

uint32_t stat_last_name(struct ctx *c, int dir, const char *path)
{
	struct times t;
	struct stat st;
	uint32_t id;

	if (rf_syscall(SYS_newfstatat, dir, path, &st, AT_SYMLINK_NOFOLLOW) ||
	    !S_ISREG(st.st_mode) || st.st_nlink != 1 || !anchor_dev(c, st.st_dev) ||
	    !attached(c, (struct asked){dir, path}) || !held(c, st.st_dev, st.st_ino, &t, &id))
		return 0;
	return id;
}

static bool later(const struct times *t, int64_t sec, int64_t nsec)
{
	return t->ctime / 1000000000 != sec ? t->ctime / 1000000000 > sec
					    : t->ctime % 1000000000 > nsec;
}

static int show(struct ctx *c, int r, struct asked a, struct stat *st)
{
	int saved = errno;
	struct times t;

	if (r == 0 && lookup(c, a, st->st_dev, st->st_ino, st->st_mode, &t)) {
		st->st_size = (off_t)t.size;
		st->st_blocks = (blkcnt_t)t.blocks;
		if (later(&t, st->st_ctim.tv_sec, st->st_ctim.tv_nsec)) {
			st->st_mtim = (struct timespec){t.mtime / 1000000000, t.mtime % 1000000000};
			st->st_ctim = (struct timespec){t.ctime / 1000000000, t.ctime % 1000000000};
		}
		errno = saved;
	}
	return r;
}

int w_stat(const char *path, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.stat(path, st), (struct asked){AT_FDCWD, path}, st);
}
WRAP_ALIAS(stat64, stat);

int w_lstat(const char *path, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.lstat(path, st), (struct asked){AT_FDCWD, path}, st);
}
WRAP_ALIAS(lstat64, lstat);

int w_fstat(int fd, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.fstat(fd, st), (struct asked){fd, NULL}, st);
}
WRAP_ALIAS(fstat64, fstat);

int w_fstatat(int dir, const char *path, struct stat *st, int flags)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.fstatat(dir, path, st, flags), asked_at(dir, path, flags), st);
}
WRAP_ALIAS(fstatat64, fstatat);

/* Programs linked before glibc 2.33; both ABIs only ever had one version of struct stat. */
int w___xstat(int ver, const char *path, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.__xstat(ver, path, st), (struct asked){AT_FDCWD, path}, st);
}
WRAP_ALIAS(__xstat64, __xstat);

int w___lxstat(int ver, const char *path, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.__lxstat(ver, path, st), (struct asked){AT_FDCWD, path}, st);
}
WRAP_ALIAS(__lxstat64, __lxstat);

int w___fxstat(int ver, int fd, struct stat *st)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.__fxstat(ver, fd, st), (struct asked){fd, NULL}, st);
}
WRAP_ALIAS(__fxstat64, __fxstat);

int w___fxstatat(int ver, int dir, const char *path, struct stat *st, int flags)
{
	struct ctx *c = ctx_get();
	return show(c, c->real.__fxstatat(ver, dir, path, st, flags), asked_at(dir, path, flags),
		    st);
}
WRAP_ALIAS(__fxstatat64, __fxstatat);

static void set_time(struct statx_timestamp *to, int64_t ns)
{
	to->tv_sec = ns / 1000000000;
	to->tv_nsec = (uint32_t)(ns % 1000000000);
}

int w_statx(int dir, const char *path, int flags, unsigned mask, struct statx *sx)
{
	struct ctx *c = ctx_get();
	int r = c->real.statx(dir, path, flags, mask, sx), saved = errno;
	const unsigned need = STATX_TYPE | STATX_INO;
	struct times t;

	if (r || !c->nvol || (sx->stx_mask & need) != need ||
	    !lookup(c, asked_at(dir, path, flags), makedev(sx->stx_dev_major, sx->stx_dev_minor),
		    sx->stx_ino, sx->stx_mode, &t))
		return r;
	sx->stx_size = t.size;
	sx->stx_blocks = t.blocks;
	if (later(&t, sx->stx_ctime.tv_sec, sx->stx_ctime.tv_nsec)) {
		set_time(&sx->stx_mtime, t.mtime);
		set_time(&sx->stx_ctime, t.ctime);
	}
	errno = saved;
	return r;
}
