/* SPDX-License-Identifier: MIT */
/*
 * dir.c - the engine that is built in: it serves a plain directory.
 *
 * A file that the server knows is an O_PATH descriptor: it names the inode whatever becomes of its
 * names, and grants nothing.  Each operation opens it anew through /proc/self/fd with the peer's
 * rights, so that the kernel itself decides; only a descriptor for reading is kept (readahead lives
 * in it), and then the right is asked for anew each time.  Descriptors for writing are never kept:
 * they would make exec of a freshly written program fail with ETXTBSY.
 *
 * Names are looked up by openat2 with RESOLVE_BENEATH, NO_MAGICLINKS and NO_XDEV from the export's
 * root: no "..", symlink or mount leads out.
 *
 * Whole or not at all.  Before a store the bytes that it will overwrite are read, into the server's
 * undo record if there is one.  If they are in memory that costs little and says at the same time
 * that the store will not wait for a disk.  Without an undo record, for one range that is not in
 * memory its blocks are allocated beforehand instead, and only the pages at its edges are read; then
 * nothing is left that could fail halfway.
 *
 * SIGKILL ends a write between two pages, and even inside one if its source is not in memory just
 * then; so every store and append arms the undo record, however small: the old bytes are read
 * anyway.  If neither the peer nor the server itself may read the file it is not armed, and a crash
 * may leave half of a store.  An append is cut off again only if what is at its place are its own
 * bytes.  A truncation cannot be undone; file systems mostly do not stop in the middle of one, and
 * it is finished after a crash.
 *
 * Many small ranges go through a mapping (scatter.c); fallocate, clone, dedupe, copy and SEEK_DATA
 * are in extent.c.
 *
 * Locks: vol->lock for the kept descriptors and for what watch.c needs to know of our own changes;
 * never held across a call that can wait.
 */
#include "dir.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_OPENS 128 /* descriptors kept for reading, a volume */
#define MAX_MADE 256  /* descriptors kept from creation, a volume */
#define RACE_TRIES 32 /* RESOLVE_BENEATH says EAGAIN when a rename races with ".." */
#define PAGE 4096u
#define SOON (4u * 1024 * 1024) /* larger writes are done sooner than more of them */

/* ---- attributes and identity ---- */

const char *dir_proc(int fd, char buf[DIR_PROC_LEN])
{
	snprintf(buf, DIR_PROC_LEN, "/proc/self/fd/%d", fd);
	return buf;
}

uint64_t dir_hash(int type, const void *handle, size_t n)
{
	const unsigned char *p = handle;
	uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)(unsigned)type; /* FNV-1a */
	size_t i;

	for (i = 0; i < n; i++)
		hash = (hash ^ p[i]) * 0x100000001b3u;
	return hash;
}

/*
 * The kernel's file handle holds the inode's generation, needs no right to read the file, and is
 * what fanotify reports: its hash is the generation.  Where there are no handles, the birth time.
 */
uint64_t dir_generation(int fd, bool *handle)
{
	struct {
		struct file_handle h;
		unsigned char space[MAX_HANDLE_SZ];
	} fh = {.h.handle_bytes = MAX_HANDLE_SZ};
	struct statx stx;
	int mnt;

	*handle = !name_to_handle_at(fd, "", &fh.h, &mnt, AT_EMPTY_PATH);
	if (*handle)
		return dir_hash(fh.h.handle_type, fh.h.f_handle, fh.h.handle_bytes);
	if (!statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) && (stx.stx_mask & STATX_BTIME))
		return (uint64_t)stx.stx_btime.tv_sec * 1000000000u + stx.stx_btime.tv_nsec;
	return 0;
}

static int64_t ns(const struct timespec *ts)
{
	return (int64_t)ts->tv_sec * 1000000000 + ts->tv_nsec;
}

int dir_attr(struct store_file *file, int fd, struct store_attr *attr)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	attr->fid = file->fid;
	attr->size = (uint64_t)st.st_size;
	attr->blocks = (uint64_t)st.st_blocks;
	attr->mtime = ns(&st.st_mtim);
	attr->ctime = ns(&st.st_ctim);
	attr->mode = st.st_mode;
	attr->uid = st.st_uid;
	attr->gid = st.st_gid;
	attr->nlink = (uint32_t)st.st_nlink;
	return 0;
}

static int dir_status(struct store_file *file, struct store_attr *attr)
{
	return dir_attr(file, file->fd, attr);
}

/* ---- volumes ---- */

static int dir_vol_open(const char *where, struct store_vol **out, const char **why)
{
	struct store_vol *vol;
	struct statfs sfs;
	int err;

	*why = "out of memory";
	vol = calloc(1, sizeof(*vol));
	if (!vol)
		return -ENOMEM;
	store_cred_enter(NULL);
	vol->dirfd = open(where, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (vol->dirfd < 0) {
		err = -errno;
		*why = err == -ENOENT    ? "there is no such directory; make it first"
		       : err == -ENOTDIR ? "not a directory; export the directory that holds it"
		       : err == -EACCES  ? "no right to go there"
					 : "cannot be opened";
		goto out_free;
	}
	if (access("/proc/self/fd", X_OK)) {
		err = -errno;
		*why = "/proc is not mounted; the server needs it";
		goto out_dir;
	}
	if (fstatfs(vol->dirfd, &sfs)) {
		err = -errno;
		*why = "cannot be examined";
		goto out_dir;
	}
	vol->ram = sfs.f_type == TMPFS_MAGIC || sfs.f_type == RAMFS_MAGIC;
	vol->watch_fd = -1;
	if (dir_scatter_init()) {
		err = -errno;
		*why = "cannot handle SIGBUS";
		goto out_dir;
	}
	TAILQ_INIT(&vol->opens);
	RB_INIT(&vol->watched);
	pthread_mutex_init(&vol->lock, NULL);
	*out = vol;
	return 0;

out_dir:
	close(vol->dirfd);
out_free:
	free(vol);
	return err;
}

static void dir_vol_close(struct store_vol *vol)
{
	dir_watch_close(vol);
	pthread_mutex_destroy(&vol->lock);
	close(vol->dirfd);
	free(vol);
}

static bool dir_never_durable(struct store_vol *vol)
{
	return vol->ram;
}

/* ---- names ---- */

static int beneath(struct store_vol *vol, const char *path, uint64_t flags, unsigned mode,
		   bool cached)
{
	struct open_how how = {
	    .flags = flags | O_CLOEXEC,
	    .mode = mode,
	    .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV |
		       (cached ? RESOLVE_CACHED : 0),
	};
	int fd, tries = 0;

	do
		fd = (int)syscall(SYS_openat2, vol->dirfd, path, &how, sizeof(how));
	while (fd < 0 && (errno == EINTR || (errno == EAGAIN && !cached && ++tries < RACE_TRIES)));
	if (fd >= 0)
		return fd;
	if (errno == ELOOP || errno == EXDEV)
		return -EACCES;
	if (errno == EAGAIN && !cached)
		return -EBUSY;
	return -errno;
}

static int may(int fd, unsigned want)
{
	int mode = (want & RF_LK_READ ? R_OK : 0) | (want & RF_LK_WRITE ? W_OK : 0);

	if (!mode)
		return 0;
	return syscall(SYS_faccessat2, fd, "", mode, AT_EMPTY_PATH | AT_EACCESS) ? -errno : 0;
}

static int reopen(struct store_file *file, int flags, bool nowait);

/*
 * Find or make: an O_PATH descriptor.  *made is the descriptor of the creation, or -1.  Looked up
 * first: opening what is there for creation would ask for rights that nobody needs.
 */
static int find(struct store_vol *vol, const char *path, unsigned flags, unsigned mode, bool nowait,
		int *made)
{
	const uint64_t create = O_RDWR | O_CREAT | O_NOCTTY | O_NONBLOCK;
	char proc[DIR_PROC_LEN];
	int fd, tries;

	*made = -1;
	if (nowait && (flags & (RF_LK_CREATE | RF_LK_EXCL)) == (RF_LK_CREATE | RF_LK_EXCL))
		return -EAGAIN;
	for (tries = 0; tries < RACE_TRIES; tries++) {
		if (!(flags & RF_LK_CREATE) || !(flags & RF_LK_EXCL)) {
			fd = beneath(vol, path, O_PATH, 0, nowait);
			if (fd != -ENOENT || !(flags & RF_LK_CREATE))
				return fd;
			if (nowait)
				return -EAGAIN;
		}
		*made = beneath(vol, path, create | O_EXCL, mode & 07777, false);
		/* A symlink to where nothing is: the kernel's open makes the target. */
		if (*made == -EEXIST && !(flags & RF_LK_EXCL) && tries) {
			*made = beneath(vol, path, create, mode & 07777, false);
			if (*made == -EACCES || *made == -EISDIR)
				*made = -EEXIST;
		}
		if (*made >= 0) {
			fd = open(dir_proc(*made, proc), O_PATH | O_CLOEXEC);
			if (fd >= 0)
				return fd;
			fd = -errno;
			close(*made);
			*made = -1;
			return fd;
		}
		fd = *made;
		*made = -1;
		if (fd != -EEXIST || (flags & RF_LK_EXCL))
			return fd;
	}
	return -EACCES;
}

static void keep_made(struct store_file *file, const struct store_cred *cred, int made,
		      const struct store_attr *attr)
{
	struct store_vol *vol = file->vol;
	bool keep = !(attr->mode & 0200);

	if (keep) {
		pthread_mutex_lock(&vol->lock);
		keep = vol->nmade < MAX_MADE;
		vol->nmade += keep;
		pthread_mutex_unlock(&vol->lock);
	}
	if (!keep) {
		close(made);
		return;
	}
	file->made = made;
	file->made_uid = cred->uid;
	file->made_mode = attr->mode;
}

static int dir_lookup(struct store_vol *vol, const struct store_cred *cred, const char *path,
		      unsigned flags, unsigned mode, bool nowait, struct store_file **out,
		      struct store_attr *attr)
{
	struct store_file *file;
	int fd, made, err;
	struct stat st;
	bool handle;

	err = store_cred_enter(cred);
	if (err)
		return err;
	fd = find(vol, path, flags, mode, nowait, &made);
	if (fd < 0)
		return fd;
	file = calloc(1, sizeof(*file));
	if (!file) {
		err = -ENOMEM;
		goto out_fd;
	}
	file->vol = vol;
	file->fd = fd;
	file->made = -1;
	err = fstat(fd, &st) ? -errno : 0;
	if (err)
		goto out_file;
	if (!S_ISREG(st.st_mode)) {
		err = S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
		goto out_file;
	}
	if (made < 0)
		err = may(fd, flags);
	if (err)
		goto out_file;
	file->fid.ino = st.st_ino;
	file->fid.gen = dir_generation(fd, &handle);
	err = dir_attr(file, fd, attr);
	if (err)
		goto out_file;
	*out = file;
	/* In an overlay the peer's own open has made the file: read-only when it is done with it.
	 */
	if (made < 0 && (flags & RF_LK_CREATE) && (flags & RF_LK_WRITE) && !(mode & 0200) &&
	    st.st_uid == cred->uid && !st.st_size) {
		made = reopen(file, O_RDWR, nowait);
		attr->mode = (st.st_mode & S_IFMT) | mode;
	}
	if (made >= 0)
		keep_made(file, cred, made, attr);
	return 0;

out_file:
	free(file);
out_fd:
	close(fd);
	if (made >= 0)
		close(made);
	return err;
}

/* ---- reading ---- */

void dir_open_put(struct store_vol *vol, struct dir_open *o)
{
	unsigned refs;

	if (!o)
		return;
	pthread_mutex_lock(&vol->lock);
	refs = --o->refs;
	pthread_mutex_unlock(&vol->lock);
	if (!refs) {
		close(o->fd);
		free(o);
	}
}

static struct dir_open *open_cached(struct store_file *file, uid_t uid)
{
	struct dir_open *o;

	pthread_mutex_lock(&file->vol->lock);
	o = file->ro;
	if (o && o->uid == uid)
		o->refs++;
	else
		o = NULL;
	pthread_mutex_unlock(&file->vol->lock);
	return o;
}

/* Make o (NULL: none) the file's kept descriptor; what has to go goes. */
static void open_keep(struct store_file *file, struct dir_open *o)
{
	struct store_vol *vol = file->vol;
	struct dir_open *old, *oldest = NULL;
	struct store_file *victim;

	pthread_mutex_lock(&vol->lock);
	old = file->ro;
	if (old) {
		TAILQ_REMOVE(&vol->opens, file, ro_link);
		vol->nopens--;
	}
	file->ro = o;
	if (o) {
		o->refs++;
		if (vol->nopens >= MAX_OPENS) {
			victim = TAILQ_FIRST(&vol->opens);
			TAILQ_REMOVE(&vol->opens, victim, ro_link);
			vol->nopens--;
			oldest = victim->ro;
			victim->ro = NULL;
		}
		TAILQ_INSERT_TAIL(&vol->opens, file, ro_link);
		vol->nopens++;
	}
	pthread_mutex_unlock(&vol->lock);
	dir_open_put(vol, old);
	dir_open_put(vol, oldest);
}

/* Open the file again, as the thread acts. O_NONBLOCK: do not wait for somebody's lease to end. */
static int reopen(struct store_file *file, int flags, bool nowait)
{
	char proc[DIR_PROC_LEN];
	int fd;

	flags |= O_CLOEXEC | O_NOCTTY | (nowait ? O_NONBLOCK : 0);
	do
		fd = open(dir_proc(file->fd, proc), flags);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

int dir_open_read(struct store_file *file, const struct store_cred *cred, bool nowait,
		  struct dir_open **out)
{
	struct dir_open *o;
	int fd, err;

	err = store_cred_enter(cred);
	if (err)
		return err;
	o = open_cached(file, cred->uid);
	if (o) {
		err = may(file->fd, RF_LK_READ);
		if (err) {
			dir_open_put(file->vol, o);
			return err;
		}
		*out = o;
		return 0;
	}
	fd = reopen(file, O_RDONLY, nowait);
	if (fd < 0)
		return fd;
	o = malloc(sizeof(*o));
	if (!o) {
		close(fd);
		return -ENOMEM;
	}
	o->fd = fd;
	o->uid = cred->uid;
	o->refs = 1;
	open_keep(file, o);
	*out = o;
	return 0;
}

ssize_t dir_read_all(int fd, void *buf, size_t len, uint64_t off, bool resident)
{
	size_t done = 0;
	ssize_t n;

	while (done < len) {
		struct iovec iov = {(char *)buf + done, len - done};

		n = preadv2(fd, &iov, 1, (off_t)(off + done), resident ? RWF_NOWAIT : 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EOPNOTSUPP && resident ? -EAGAIN : -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static ssize_t dir_read(struct store_file *file, const struct store_cred *cred, void *buf,
			size_t len, uint64_t off, bool nowait)
{
	struct dir_open *o;
	ssize_t n;
	int err;

	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EINVAL;
	err = dir_open_read(file, cred, nowait, &o);
	if (err)
		return err;
	n = dir_read_all(o->fd, buf, len, off, nowait && !file->vol->ram);
	dir_open_put(file->vol, o);
	return n;
}

/* ---- changing ---- */

/* The creator of a read-only file goes on writing through the descriptor of its creation. */
static int open_made(struct store_file *file, const struct store_cred *cred)
{
	struct stat st;
	int fd;

	if (file->made < 0 || file->made_uid != cred->uid)
		return -EACCES;
	if (fstat(file->made, &st) || st.st_mode != file->made_mode || st.st_uid != cred->uid)
		return -EACCES;
	fd = fcntl(file->made, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? -errno : fd;
}

static void change_close(struct dir_change *c)
{
	dir_scatter_unmap(&c->scatter);
	if (c->rfd >= 0 && c->rfd != c->fd)
		close(c->rfd);
	close(c->fd);
	if (!c->ch->undo)
		free(c->old);
}

int dir_change_begin(struct dir_change *c, struct store_file *file, const struct store_cred *cred,
		     struct store_change *ch, bool nowait)
{
	int err;

	memset(c, 0, sizeof(*c));
	c->file = file;
	c->ch = ch;
	c->nowait = nowait;
	ch->touched = false;
	ch->torn = false;
	err = store_cred_enter(cred);
	if (err)
		return err;
	c->fd = c->rfd = reopen(file, O_RDWR, nowait);
	if (c->fd == -EACCES)
		c->fd = reopen(file, O_WRONLY, nowait);
	if (c->fd == -EACCES)
		c->fd = c->rfd = open_made(file, cred);
	if (c->fd < 0)
		return c->fd;
	if (c->rfd < 0 && ch->undo) {
		c->rfd = store_cred_enter(NULL) ? -1 : reopen(file, O_RDONLY, nowait);
		err = store_cred_enter(cred);
	}
	if (!err)
		err = dir_attr(file, c->fd, &ch->before);
	/* Without a name nobody would ever see it, but who took it away and goes on. */
	if (!err && !ch->before.nlink && !ch->nameless)
		err = -ESTALE;
	if (err) {
		change_close(c);
		return err;
	}
	pthread_mutex_lock(&file->vol->lock);
	file->changing++;
	pthread_mutex_unlock(&file->vol->lock);
	return 0;
}

int dir_change_end(struct dir_change *c, bool touched, int err)
{
	struct store_file *file = c->file;
	struct store_change *ch = c->ch;
	int serr;

	serr = dir_attr(file, c->fd, &ch->after);
	if (serr && touched) {
		err = serr;
		ch->torn = true;
		ch->after = ch->before;
	}
	ch->touched = !serr || touched;
	pthread_mutex_lock(&file->vol->lock);
	file->changing--;
	if (touched) {
		file->own = true;
		file->own_ctime = ch->after.ctime;
		file->own_size = ch->after.size;
	}
	pthread_mutex_unlock(&file->vol->lock);
	change_close(c);
	return err;
}

/* How much of a range is inside limit. */
static uint64_t inside(const rf_range *r, uint64_t limit)
{
	if (r->off >= limit)
		return 0;
	return r->len < limit - r->off ? r->len : limit - r->off;
}

/* The page that holds off can be written in part without waiting for a disk. */
static int edge(struct dir_change *c, uint64_t off, uint64_t size, bool resident)
{
	unsigned char b;
	ssize_t n;

	if (off % PAGE == 0 || off / PAGE * PAGE >= size)
		return 0;
	if (c->rfd < 0)
		return resident ? -EAGAIN : 0;
	n = dir_read_all(c->rfd, &b, 1, off / PAGE * PAGE, resident);
	return n < 0 ? (int)n : 0;
}

/* Read what ranges will overwrite.  resident: only if that needs no disk. */
static int undo_read(struct dir_change *c, uint64_t limit, bool resident)
{
	struct store_change *ch = c->ch;
	uint64_t size = ch->before.size, total = 0, pos = 0;
	unsigned char *old;
	size_t i;
	ssize_t n;

	if (limit < size)
		size = limit;
	for (i = 0; i < ch->nranges; i++)
		total += inside(&ch->ranges[i], size);
	if (ch->undo && (total > STORE_UNDO_DATA || ch->nranges > RF_MAX_RANGES))
		return -EINVAL;
	old = ch->undo ? ch->undo->data : malloc(total ? total : 1);
	if (!old)
		return -ENOMEM;
	if (c->scatter.p && dir_scatter_copy(&c->scatter, old, false) == ch->nranges) {
		c->old = old;
		return 0;
	}
	for (i = 0; i < ch->nranges; i++) {
		uint64_t len = inside(&ch->ranges[i], size);

		if (!len)
			continue;
		n = dir_read_all(c->rfd, old + pos, len, ch->ranges[i].off, resident);
		if (n < 0) {
			if (!ch->undo)
				free(old);
			return (int)n;
		}
		if ((uint64_t)n < len) /* somebody else truncates it: zeros then */
			memset(old + pos + n, 0, len - (uint64_t)n);
		pos += len;
	}
	c->old = old;
	return 0;
}

void dir_undo_arm(struct dir_change *c, uint32_t how, uint64_t size, uint64_t end, uint64_t len)
{
	struct store_undo *u = c->ch->undo;

	u->fid = c->file->fid;
	u->size = size;
	u->end = end;
	u->len = len;
	atomic_store_explicit(&u->armed, how, memory_order_release);
}

/* The old bytes have been read: from here on a crash is undone. */
static void store_arm(struct dir_change *c, uint64_t limit)
{
	struct store_change *ch = c->ch;
	struct store_undo *u = ch->undo;
	uint64_t size = ch->before.size, end = size, total = 0;
	size_t i;

	if (!u || !c->old)
		return;
	u->nranges = 0;
	for (i = 0; i < ch->nranges; i++) {
		const rf_range *r = &ch->ranges[i];
		uint64_t len = inside(r, limit < size ? limit : size), to = inside(r, limit);

		if (to && r->off + to > end)
			end = r->off + to;
		if (!len)
			continue;
		u->range[u->nranges].off = r->off;
		u->range[u->nranges++].len = len;
		total += len;
	}
	dir_undo_arm(c, STORE_UNDO_BYTES, size, end, total);
}

/* Allocate what ranges will write, so that writing cannot run out of space. */
static int allocate(struct dir_change *c, uint64_t limit)
{
	struct store_change *ch = c->ch;
	size_t i;

	for (i = 0; i < ch->nranges; i++) {
		uint64_t len = inside(&ch->ranges[i], limit);

		if (len &&
		    fallocate(c->fd, FALLOC_FL_KEEP_SIZE, (off_t)ch->ranges[i].off, (off_t)len))
			return -errno;
	}
	return 0;
}

/*
 * Make sure that the store can be undone, or cannot fail halfway.  *touched: blocks were allocated.
 * Without the right to read, allocation is all that can be done, and all waiting is possible.
 */
static int store_prepare(struct dir_change *c, uint64_t limit, bool *touched)
{
	struct store_change *ch = c->ch;
	uint64_t size = ch->before.size;
	rf_range *r = ch->ranges;
	int err;

	if (ch->nranges >= DIR_SCATTER_MIN && c->rfd == c->fd)
		dir_scatter_map(&c->scatter, c->fd, ch->ranges, ch->nranges, size);
	if (c->rfd >= 0) {
		err = undo_read(c, limit, !c->file->vol->ram);
		if (err != -EAGAIN)
			return err;
	}
	if (c->nowait)
		return -EAGAIN;
	if (c->rfd >= 0 && (ch->nranges > 1 || ch->undo))
		return undo_read(c, limit, false);
	if (ch->nranges == 1) {
		err = edge(c, r->off, size, false);
		if (!err)
			err = edge(c, r->off + inside(r, limit), size, false);
		if (err)
			return err;
	}
	*touched = true;
	err = allocate(c, limit);
	if (err == -EOPNOTSUPP && c->rfd >= 0)
		return undo_read(c, limit, false);
	if (err == -EOPNOTSUPP)
		return 0;
	/* Blocks past the end go back; if that fails they go with the file. */
	if (err && ftruncate(c->fd, (off_t)size))
		return err;
	return err;
}

int dir_write_all(int fd, const void *buf, size_t len, uint64_t off, size_t *done)
{
	ssize_t n;

	*done = 0;
	while (*done < len) {
		n = pwrite(fd, (const char *)buf + *done, len - *done, (off_t)(off + *done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		*done += (size_t)n;
	}
	return 0;
}

/*
 * Put back the first n ranges, `part` bytes of the last of them, and the size; last range first: they
 * may overlap.  No more than was written: behind it may be a hole, and space is what has run out.
 */
static void store_undo(struct dir_change *c, uint64_t limit, size_t n, uint64_t part)
{
	struct store_change *ch = c->ch;
	uint64_t size = ch->before.size, pos = 0;
	struct store_attr now = {0};
	size_t i, done;

	if (limit > size)
		limit = size;
	for (i = 0; i < n; i++)
		pos += inside(&ch->ranges[i], limit);
	if (pos && !c->old)
		ch->torn = true;
	for (i = n; i-- > 0 && !ch->torn;) {
		uint64_t len = inside(&ch->ranges[i], limit);

		pos -= len;
		if (i == n - 1 && len > part)
			len = part;
		if (len && dir_write_all(c->fd, c->old + pos, len, ch->ranges[i].off, &done))
			ch->torn = true;
	}
	if (dir_attr(c->file, c->fd, &now) || (now.size != size && ftruncate(c->fd, (off_t)size)))
		ch->torn = true;
}

/* Forget what was clipped: ranges and data become what was written. */
static void compact(struct store_change *ch, uint64_t limit)
{
	size_t i, n = 0, from = 0, to = 0;

	for (i = 0; i < ch->nranges; i++) {
		rf_range r = ch->ranges[i];
		uint64_t len = inside(&r, limit);

		if (to != from)
			memmove(ch->data + to, ch->data + from, len);
		from += r.len;
		to += len;
		r.len = len;
		if (len)
			ch->ranges[n++] = r;
	}
	ch->nranges = n;
	ch->len = to;
}

/* The disk works on what was stored while more comes in; errors are sync's to tell. */
static void write_soon(const struct dir_change *c, uint64_t total)
{
	const rf_range *first = &c->ch->ranges[0], *last = &c->ch->ranges[c->ch->nranges - 1];
	struct store_file *f = c->file;
	const uint64_t end = last->off + last->len;

	if (!c->ch->soon || f->vol->ram)
		return;
	if (!f->soon_bytes || first->off < f->soon_off)
		f->soon_off = first->off;
	if (!f->soon_bytes || end > f->soon_end)
		f->soon_end = end;
	f->soon_bytes += total;
	if (f->soon_bytes < SOON || c->nowait)
		return;
	if (f->soon_off < f->soon_end)
		sync_file_range(c->fd, (off_t)f->soon_off, (off_t)(f->soon_end - f->soon_off),
				SYNC_FILE_RANGE_WRITE);
	f->soon_bytes = 0;
}

/*
 * Write all ranges.  Through the mapping if there is one; the first then once more by a system call,
 * for those who watch the file.
 */
static int store_write(struct dir_change *c, uint64_t limit)
{
	struct store_change *ch = c->ch;
	size_t i, n = ch->nranges, done, pos = 0;
	int err;

	if (c->scatter.p) {
		c->scattered = dir_scatter_copy(&c->scatter, ch->data, true);
		n = c->scattered == n ? 1 : n;
	}
	for (i = 0; i < n; i++) {
		uint64_t len = inside(&ch->ranges[i], limit);

		err = dir_write_all(c->fd, ch->data + pos, len, ch->ranges[i].off, &done);
		if (err) {
			if (c->scattered <= i)
				store_undo(c, limit, i + 1, done);
			else
				store_undo(c, limit, c->scattered + (c->scattered < ch->nranges),
					   UINT64_MAX);
			return err;
		}
		pos += ch->ranges[i].len;
	}
	return 0;
}

static int dir_store(struct store_file *file, const struct store_cred *cred,
		     struct store_change *ch, bool nowait)
{
	uint64_t limit, total = 0;
	struct dir_change c;
	bool touched = false;
	size_t i;
	int err;

	for (i = 0; i < ch->nranges; i++) {
		const rf_range *r = &ch->ranges[i];

		if (r->off > INT64_MAX || r->len > INT64_MAX - r->off || r->len > ch->len - total)
			return -EINVAL;
		total += r->len;
	}
	if (total != ch->len)
		return -EINVAL;
	if (nowait && ch->nranges >= DIR_SCATTER_MIN)
		return -EAGAIN; /* it takes its time */
	err = dir_change_begin(&c, file, cred, ch, nowait);
	if (err)
		return err;
	limit = ch->may_extend ? INT64_MAX : ch->before.size;
	for (i = 0, total = 0; i < ch->nranges; i++)
		total += inside(&ch->ranges[i], limit);
	if (!total)
		goto out_compact;
	err = store_prepare(&c, limit, &touched);
	if (err)
		return dir_change_end(&c, touched, err);
	touched = true;
	store_arm(&c, limit);
	err = store_write(&c, limit);
	if (err)
		return dir_change_end(&c, true, err);
	write_soon(&c, total);
out_compact:
	compact(ch, limit);
	return dir_change_end(&c, touched, 0);
}

static int dir_append(struct store_file *file, const struct store_cred *cred,
		      struct store_change *ch, bool nowait)
{
	struct store_attr now = {0};
	struct dir_change c;
	size_t done = 0;
	off_t start = 0, pos;
	ssize_t n;
	int err;

	err = dir_change_begin(&c, file, cred, ch, nowait);
	if (err)
		return err;
	ch->off = ch->before.size;
	if (!ch->len)
		return dir_change_end(&c, false, 0);
	if (nowait && !file->vol->ram) {
		err = edge(&c, ch->before.size, ch->before.size, true);
		if (err)
			return dir_change_end(&c, false, err);
	}
	if (ch->undo && ch->len <= STORE_UNDO_DATA) {
		memcpy(ch->undo->data, ch->data, ch->len);
		ch->undo->nranges = 0;
		dir_undo_arm(&c, STORE_UNDO_APPEND, ch->off, ch->off + ch->len, ch->len);
	}
	/* RWF_APPEND and not an offset: others may append to the same file. */
	while (done < ch->len) {
		struct iovec iov = {ch->data + done, ch->len - done};

		n = pwritev2(c.fd, &iov, 1, -1, RWF_APPEND);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			err = n < 0 ? -errno : -EIO;
			break;
		}
		pos = lseek(c.fd, 0, SEEK_CUR) - n;
		if (!done)
			start = pos;
		else if (pos != start + (off_t)done) {
			ch->torn = true;
			err = -EIO;
			break;
		}
		done += (size_t)n;
	}
	ch->off = (uint64_t)start;
	if (err && done && !ch->torn) {
		if (dir_attr(file, c.fd, &now) || now.size != (uint64_t)start + done ||
		    ftruncate(c.fd, start))
			ch->torn = true;
	}
	return dir_change_end(&c, done || err, err);
}

static int dir_resize(struct store_file *file, const struct store_cred *cred,
		      struct store_change *ch, bool nowait)
{
	uint64_t size, end = ch->size;
	struct store_attr now = {0};
	struct dir_change c;
	int err;

	if (end > INT64_MAX)
		return -EFBIG;
	err = dir_change_begin(&c, file, cred, ch, nowait);
	if (err)
		return err;
	size = ch->before.size;
	if (ch->grow_only ? end <= size : end == size)
		return dir_change_end(&c, false, 0);
	if (nowait && !file->vol->ram) {
		/* Freeing may wait for the journal; growing only for the last page. */
		err = end < size ? -EAGAIN : edge(&c, size, size, true);
		if (err)
			return dir_change_end(&c, false, err);
	}
	if (ch->undo) {
		ch->undo->nranges = 0;
		if (end < size)
			dir_undo_arm(&c, STORE_UNDO_FINISH, end, 0, 0);
		else
			dir_undo_arm(&c, STORE_UNDO_BYTES, size, end, 0);
	}
	if (ftruncate(c.fd, (off_t)end)) {
		err = -errno;
		ch->torn = dir_attr(file, c.fd, &now) || now.size != size;
	}
	return dir_change_end(&c, true, err);
}

/* ---- after a crash ---- */

/* The bytes of one range, a page at a time; what is so already is left alone: it may be a hole. */
static int recover_range(int fd, const rf_range *r, const unsigned char *old)
{
	unsigned char now[PAGE];
	uint64_t at, len;
	size_t done;
	ssize_t n;
	int err;

	for (at = 0; at < r->len; at += len) {
		len = r->len - at < PAGE ? r->len - at : PAGE;
		n = dir_read_all(fd, now, len, r->off + at, false);
		if (n < 0)
			return (int)n;
		if ((uint64_t)n == len && !memcmp(now, old + at, len))
			continue;
		err = dir_write_all(fd, old + at, len, r->off + at, &done);
		if (err)
			return err;
	}
	return 0;
}

static int recover_bytes(int fd, const struct store_undo *u, uint64_t size)
{
	uint64_t pos = u->len;
	uint32_t i;
	int err;

	for (i = u->nranges; i-- > 0;) {
		pos -= u->range[i].len;
		err = recover_range(fd, &u->range[i], u->data + pos);
		if (err)
			return err;
	}
	if (size == u->size)
		return 0;
	if (size > u->end)
		return -EEXIST;
	return ftruncate(fd, (off_t)(size < u->size ? size : u->size)) ? -errno : 0;
}

static int recover_append(int fd, const struct store_undo *u, uint64_t size)
{
	uint64_t len;
	unsigned char *now;
	ssize_t n;

	if (size <= u->size)
		return 0;
	len = size - u->size < u->len ? size - u->size : u->len;
	now = malloc(len);
	if (!now)
		return -ENOMEM;
	n = dir_read_all(fd, now, len, u->size, false);
	if (n >= 0 && ((uint64_t)n < len || memcmp(now, u->data, len) != 0))
		n = -EEXIST;
	free(now);
	if (n < 0)
		return (int)n;
	if (len == u->len)
		return 1;
	return ftruncate(fd, (off_t)u->size) ? -errno : 0;
}

int dir_recover_open(struct store_vol *vol, const char *path, const rf_fid *fid, int flags,
		     struct stat *st)
{
	struct store_file file = {.vol = vol};
	bool handle;
	int fd, err;

	err = store_cred_enter(NULL);
	if (err)
		return err;
	file.fd = beneath(vol, path, O_PATH, 0, false);
	if (file.fd < 0)
		return file.fd == -ENOENT || file.fd == -ENOTDIR ? -ESTALE : file.fd;
	err = fstat(file.fd, st) ? -errno : 0;
	if (!err && (!S_ISREG(st->st_mode) || st->st_ino != fid->ino ||
		     dir_generation(file.fd, &handle) != fid->gen))
		err = -ESTALE;
	fd = err ? err : reopen(&file, flags, false);
	close(file.fd);
	return fd;
}

static int dir_recover(struct store_vol *vol, const char *path, const struct store_undo *u)
{
	struct stat st = {0};
	int fd, err;

	fd = dir_recover_open(vol, path, &u->fid, O_RDWR, &st);
	if (fd < 0)
		return fd;
	switch (atomic_load(&u->armed)) {
	case STORE_UNDO_BYTES:
		err = recover_bytes(fd, u, (uint64_t)st.st_size);
		break;
	case STORE_UNDO_APPEND:
		err = recover_append(fd, u, (uint64_t)st.st_size);
		break;
	case STORE_UNDO_SHIFT:
		err = dir_recover_shift(fd, u, (uint64_t)st.st_size);
		break;
	case STORE_UNDO_REMAP:
		err = dir_recover_remap(vol, fd, u);
		break;
	default:
		err = dir_recover_finish(fd, u, (uint64_t)st.st_size);
		break;
	}
	close(fd);
	return err;
}

/* ---- durability, and the end ---- */

static int dir_sync(struct store_file *file)
{
	int fd, err;

	if (file->vol->ram)
		return 0;
	err = store_cred_enter(NULL);
	if (err)
		return err;
	fd = reopen(file, O_RDONLY, false);
	if (fd == -EACCES)
		fd = reopen(file, O_WRONLY, false);
	if (fd == -EACCES && file->made >= 0)
		fd = fcntl(file->made, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return fd;
	err = fdatasync(fd) ? -errno : 0;
	close(fd);
	return err;
}

static void dir_forget(struct store_file *file)
{
	struct store_vol *vol = file->vol;

	dir_unwatch_file(file);
	open_keep(file, NULL);
	if (file->made >= 0) {
		close(file->made);
		pthread_mutex_lock(&vol->lock);
		vol->nmade--;
		pthread_mutex_unlock(&vol->lock);
	}
	close(file->fd);
	free(file);
}

const struct store_ops store_dir = {
    .name = "dir",
    .open = dir_vol_open,
    .close = dir_vol_close,
    .lookup = dir_lookup,
    .forget = dir_forget,
    .status = dir_status,
    .read = dir_read,
    .store = dir_store,
    .append = dir_append,
    .resize = dir_resize,
    .fallocate = dir_fallocate,
    .remap = dir_remap,
    .seek = dir_seek,
    .recover = dir_recover,
    .never_durable = dir_never_durable,
    .sync = dir_sync,
    .watch = dir_watch,
    .watch_read = dir_watch_read,
    .watch_file = dir_watch_file,
};
