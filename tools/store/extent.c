/* SPDX-License-Identifier: MIT */
/*
 * extent.c - what changes where a file's bytes lie: fallocate, clone, dedupe, copy; and where there
 * are none (SEEK_HOLE).
 *
 * All of it is the file system's own, by the call that a local program would make, so that what
 * it lacks or refuses (alignment, ranges past the end) has its errno.  Only copying is also done by
 * reading and writing.
 *
 * Whole or not at all.  What a file system refuses it refuses before the first block.  If it fails
 * later the change is torn: old blocks are gone; but for these: allocation is undone by putting
 * the size back, what is to be zeroed is allocated beforehand, and an insertion that runs out of space
 * has moved nothing yet (the one thing that needs space, to split the extent at the offset, comes
 * first) but the size; a collapse begins with freeing blocks, so if it has as many as before it was
 * out of space before it began.  A copy that fails in the middle is shorter.
 *
 * Killed in the middle.  A dying thread finishes its system call first, and until then the state
 * file is locked, so a next server sees what the calls left:
 *
 *	alloc, unshare		nothing but the size can be seen: put back (UNDO_BYTES)
 *	punch, zero		done again (UNDO_FINISH)
 *	collapse, insert	ext4 and xfs do not look for signals while they shift, so it is done or
 *				not, which the size says (UNDO_SHIFT); it must not be done again.
 *				But xfs does when it then cuts a collapsed file inside a block, and
 *				leaves the size: so the file is of whole blocks meanwhile.  An
 *				insertion that is out of space by then has grown the file and
 *				moved nothing: the first data behind the offset is where it was
 *	clone, copy		these do look for signals: done again (UNDO_REMAP).  The source is as it
 *				was: it is held like the file itself, and ranges that
 *				overlap in one file are refused
 *	dedupe			changes no byte: done again if the client asks again
 *
 * Locks: none.
 */
#include "dir.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>
#include <unistd.h>

#define INLINE (1u << 20)      /* allocated in memory at once; more takes too long for the caller */
#define COPY_BUF (1u << 20)    /* by reading and writing */
#define DEDUPE_MAX (16u << 20) /* what all file systems compare in one call */

/* ---- fallocate ---- */

/* The mode is one that Linux has. */
static bool known(int mode)
{
	switch (mode) {
	case 0:
	case FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_COLLAPSE_RANGE:
	case FALLOC_FL_INSERT_RANGE:
	case FALLOC_FL_UNSHARE_RANGE:
	case FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE:
		return true;
	default:
		return false;
	}
}

static bool shifts(int mode)
{
	return mode == FALLOC_FL_COLLAPSE_RANGE || mode == FALLOC_FL_INSERT_RANGE;
}

/* What is old under the range is gone when this fails halfway. */
static bool zeroes(int mode)
{
	return mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
}

/* A signal ends some of these early; what they have done so far does not have to be undone. */
static int call(int fd, int mode, const rf_range *r)
{
	int err;

	do
		err = fallocate(fd, mode, (off_t)r->off, (off_t)r->len) ? -errno : 0;
	while (err == -EINTR && !shifts(mode));
	return err;
}

/* The file's size, up to the end of its last block. */
static uint64_t whole_blocks(const struct dir_change *c)
{
	uint64_t size = c->ch->before.size, part;
	struct statfs st;

	if (fstatfs(c->fd, &st) || st.f_bsize <= 0)
		return size;
	part = size % (uint64_t)st.f_bsize;
	return part ? size - part + (uint64_t)st.f_bsize : size;
}

static int collapse(const struct dir_change *c)
{
	const uint64_t size = c->ch->before.size, whole = whole_blocks(c);
	const rf_range *r = c->ch->ranges;
	int err;

	if (whole != size && ftruncate(c->fd, (off_t)whole))
		return -errno;
	err = call(c->fd, FALLOC_FL_COLLAPSE_RANGE, r);
	if (whole != size && ftruncate(c->fd, (off_t)(err ? size : size - r->len)))
		return -EIO;
	return err;
}

static void arm(struct dir_change *c)
{
	struct store_change *ch = c->ch;
	struct store_undo *u = ch->undo;
	const rf_range *r = ch->ranges;
	uint64_t size = ch->before.size, end = r->off + r->len;
	off_t data;

	if (!u)
		return;
	u->nranges = 0;
	if (zeroes(ch->mode)) {
		u->mode = (uint32_t)ch->mode;
		u->nranges = 1;
		u->range[0] = *r;
		dir_undo_arm(c, STORE_UNDO_FINISH, UINT64_MAX, 0, 0);
	} else if (ch->mode == FALLOC_FL_INSERT_RANGE) {
		/* Without any data nothing can be seen to move. */
		data = lseek(c->fd, (off_t)r->off, SEEK_DATA);
		u->nranges = data >= 0;
		u->range[0] = (rf_range){r->off, (uint64_t)data - r->off};
		dir_undo_arm(c, STORE_UNDO_SHIFT, size, size + r->len, 0);
	} else if (ch->mode == FALLOC_FL_COLLAPSE_RANGE) {
		u->nranges = 1;
		u->range[0] = (rf_range){0, whole_blocks(c)};
		dir_undo_arm(c, STORE_UNDO_SHIFT, size, size - r->len, 0);
	} else if (!(ch->mode & FALLOC_FL_KEEP_SIZE) && end > size) {
		dir_undo_arm(c, STORE_UNDO_BYTES, size, end, 0);
	}
}

/* Nothing was done: these are said before anything is. */
static bool refused(int err)
{
	return err == -EOPNOTSUPP || err == -ENOSYS || err == -ENOTTY || err == -EPERM ||
	       err == -ENODEV || err == -ETXTBSY || err == -EFBIG || err == -EXDEV || err == -EBADF;
}

/*
 * After an error: does the file look as if it was changed?  A clone that is refused for what it asks
 * (EINVAL) may have had blocks allocated for dirty pages before.
 */
static bool moved(const struct dir_change *c, int err)
{
	const struct store_attr *was = &c->ch->before;
	struct store_attr now = {0};

	return dir_attr(c->file, c->fd, &now) || now.size != was->size || now.ctime != was->ctime ||
	       (err != -EINVAL && now.blocks != was->blocks);
}

/* Mode failed with err: put back what can be. */
static bool torn(const struct dir_change *c, int mode, int err)
{
	const bool space = err == -ENOSPC || err == -EDQUOT;
	struct store_attr now = {0};

	if (refused(err) || err == -EINVAL || !moved(c, err))
		return false;
	if (mode == FALLOC_FL_COLLAPSE_RANGE)
		return !space || dir_attr(c->file, c->fd, &now) ||
		       now.blocks < c->ch->before.blocks;
	if (mode == FALLOC_FL_INSERT_RANGE && !space)
		return true;
	return ftruncate(c->fd, (off_t)c->ch->before.size) || zeroes(mode);
}

int dir_fallocate(struct store_file *file, const struct store_cred *cred, struct store_change *ch,
		  bool nowait)
{
	const rf_range *r = ch->ranges;
	struct dir_change c;
	int mode, err;

	if (ch->nranges != 1 || !r->len || r->len > INT64_MAX || r->off > INT64_MAX)
		return -EINVAL;
	if (!known(ch->mode))
		return -EOPNOTSUPP;
	if (r->len > INT64_MAX - r->off)
		return -EFBIG;
	if (nowait && (!file->vol->ram || r->len > INLINE))
		return -EAGAIN;
	err = dir_change_begin(&c, file, cred, ch, nowait);
	if (err)
		return err;
	arm(&c);
	mode = ch->mode;
	if (mode & FALLOC_FL_ZERO_RANGE && !file->vol->ram)
		mode = FALLOC_FL_KEEP_SIZE;
	err = mode == FALLOC_FL_COLLAPSE_RANGE ? collapse(&c) : call(c.fd, mode, r);
	if (!err && mode != ch->mode)
		err = call(c.fd, mode = ch->mode, r);
	if (err)
		ch->torn = torn(&c, mode, err);
	return dir_change_end(&c, true, err);
}

/* ---- two files ---- */

/* One of them, or both: a part of `in` and a part of `out`. */
struct span {
	int in, out;
	uint64_t in_off, out_off, len;
};

/* By reading and writing, for file systems that cannot. */
static ssize_t copy_bytes(const struct span *s)
{
	unsigned char *buf = malloc(COPY_BUF);
	uint64_t done = 0;
	ssize_t n = 0;
	size_t part;
	int err = 0;

	if (!buf)
		return -ENOMEM;
	while (!err && done < s->len) {
		part = s->len - done < COPY_BUF ? s->len - done : COPY_BUF;
		n = dir_read_all(s->in, buf, part, s->in_off + done, false);
		if (n <= 0)
			break;
		err = dir_write_all(s->out, buf, (size_t)n, s->out_off + done, &part);
		done += part;
	}
	free(buf);
	if (done)
		return (ssize_t)done;
	return err ? err : n;
}

/* How many bytes; an error only if that is none. */
static ssize_t copy_range(const struct span *s)
{
	off_t in = (off_t)s->in_off, out = (off_t)s->out_off;
	uint64_t done = 0;
	ssize_t n = 0;

	while (done < s->len) {
		n = copy_file_range(s->in, &in, s->out, &out, s->len - done, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	if (done || n == 0)
		return (ssize_t)done;
	if (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)
		return copy_bytes(s);
	return -errno;
}

static ssize_t clone_range(const struct span *s)
{
	struct file_clone_range arg = {.src_fd = s->in,
				       .src_offset = s->in_off,
				       .src_length = s->len,
				       .dest_offset = s->out_off};

	return ioctl(s->out, FICLONERANGE, &arg) ? -errno : (ssize_t)s->len;
}

/* 0 if any byte differs: what was shared before it came to light is as it was.  At most `part` at once. */
static ssize_t dedupe_range(const struct span *s, uint64_t part)
{
	alignas(struct file_dedupe_range) unsigned char
	    space[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
	struct file_dedupe_range *arg = (void *)space;
	uint64_t done = 0;
	int err;

	do {
		memset(space, 0, sizeof(space));
		arg->src_offset = s->in_off + done;
		arg->src_length = s->len - done < part ? s->len - done : part;
		arg->dest_count = 1;
		arg->info[0].dest_fd = s->out;
		arg->info[0].dest_offset = s->out_off + done;
		err = ioctl(s->in, FIDEDUPERANGE, arg) ? -errno : arg->info[0].status;
		if (err == FILE_DEDUPE_RANGE_DIFFERS)
			return 0;
		done += arg->info[0].bytes_deduped;
	} while (!err && arg->info[0].bytes_deduped && done < s->len);
	return done ? (ssize_t)done : err;
}

static bool overlap(const struct span *s)
{
	return s->in_off < s->out_off + s->len && s->out_off < s->in_off + s->len;
}

static bool within(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

static void arm_remap(struct dir_change *c, const struct store_file *src, const struct span *s)
{
	struct store_change *ch = c->ch;
	struct store_undo *u = ch->undo;
	size_t n = strlen(ch->src_path) + 1;

	/* What is no range will be refused. */
	if (!u || !s->len || !within(s->in_off, s->len, INT64_MAX) ||
	    !within(s->out_off, s->len, INT64_MAX))
		return;
	u->mode = ch->kind;
	u->src = src->fid;
	u->nranges = 2;
	u->range[0] = (rf_range){s->out_off, s->len};
	u->range[1] = (rf_range){s->in_off, s->len};
	memcpy(u->data, ch->src_path, n);
	dir_undo_arm(c, STORE_UNDO_REMAP, ch->before.size, 0, n);
}

/* How many bytes.  Clone and dedupe go to the kernel as they are, whatever they are: it refuses them in
 * its order. */
static ssize_t remap(struct dir_change *c, struct store_file *src, struct span *s, uint64_t in_size)
{
	const uint64_t rest = s->in_off < in_size ? in_size - s->in_off : 0;
	const uint64_t size = c->ch->before.size;
	const bool same = src == c->file;
	struct span to_end = *s;
	ssize_t n;

	switch (c->ch->kind) {
	case RF_REMAP_CLONE:
		to_end.len = s->len ? s->len : rest;
		arm_remap(c, src, &to_end);
		n = clone_range(s);
		return n < 0 ? n : (ssize_t)to_end.len;
	case RF_REMAP_DEDUPE:
		/* In parts only what is good as a whole. */
		if (!within(s->in_off, s->len, in_size) || !within(s->out_off, s->len, size) ||
		    (same && overlap(s)))
			return dedupe_range(s, s->len);
		return dedupe_range(s, DEDUPE_MAX);
	default:
		if (!within(s->in_off, s->len, INT64_MAX) || !within(s->out_off, s->len, INT64_MAX))
			return -EINVAL;
		s->len = s->len < rest ? s->len : rest;
		if (same && overlap(s))
			return -EINVAL;
		s->len = s->len < RF_COPY_MAX ? s->len : RF_COPY_MAX;
		arm_remap(c, src, s);
		return copy_range(s);
	}
}

int dir_remap(struct store_file *file, const struct store_cred *cred, struct store_file *src,
	      const struct store_cred *src_cred, struct store_change *ch, bool nowait)
{
	struct dir_change c;
	struct dir_open *in;
	struct span s;
	struct stat st;
	ssize_t n;
	int err;

	if (ch->nranges != 1)
		return -EINVAL;
	if (nowait)
		return -EAGAIN;
	/* A thread has one identity at a time. */
	err = dir_open_read(src, src_cred, false, &in);
	if (err)
		return err;
	err = dir_change_begin(&c, file, cred, ch, false);
	if (err)
		goto out_in;
	s = (struct span){in->fd, c.fd, ch->src_off, ch->ranges->off, ch->ranges->len};
	n = fstat(in->fd, &st) ? -errno : remap(&c, src, &s, (uint64_t)st.st_size);
	ch->off = n < 0 ? 0 : (uint64_t)n;
	if (n < 0 && ch->kind == RF_REMAP_CLONE && !refused((int)n))
		ch->torn = moved(&c, (int)n);
	err = dir_change_end(&c, true, n < 0 ? (int)n : 0);
out_in:
	dir_open_put(src->vol, in);
	return err;
}

/* ---- holes ---- */

off_t dir_seek(struct store_file *file, const struct store_cred *cred, uint64_t off, int whence,
	       bool nowait)
{
	struct dir_open *o;
	off_t to;
	int err;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	if (nowait && !file->vol->ram)
		return -EAGAIN;
	err = dir_open_read(file, cred, nowait, &o);
	if (err)
		return err;
	/* Reads of others through this descriptor say where they read. */
	to = off > INT64_MAX ? -ENXIO : lseek(o->fd, (off_t)off, whence);
	if (to == -1)
		to = -errno;
	dir_open_put(file->vol, o);
	return to;
}

/* ---- after a crash ---- */

int dir_recover_finish(int fd, const struct store_undo *u, uint64_t size)
{
	uint32_t i;
	int err;

	for (i = 0; i < u->nranges; i++) {
		err = call(fd, (int)u->mode, &u->range[i]);
		if (err)
			return refused(err) ? 0 : err;
	}
	if (size > u->size && ftruncate(fd, (off_t)u->size))
		return -errno;
	return 1;
}

int dir_recover_shift(int fd, const struct store_undo *u, uint64_t size)
{
	const rf_range *hole = &u->range[0]; /* up to the first data, as it was */
	const uint64_t len = u->size - u->end;

	if (size == u->size)
		return 0;
	if (u->end < u->size && size == hole->len) /* of whole blocks, not collapsed yet */
		return ftruncate(fd, (off_t)u->size) ? -errno : 0;
	if (u->end < u->size && size == hole->len - len) /* collapsed, of whole blocks still */
		return ftruncate(fd, (off_t)u->end) ? -errno : 1;
	if (size != u->end)
		return -EEXIST;
	if (u->end < u->size || !u->nranges ||
	    lseek(fd, (off_t)hole->off, SEEK_DATA) != (off_t)(hole->off + hole->len))
		return 1;
	return ftruncate(fd, (off_t)u->size) ? -errno : 0;
}

int dir_recover_remap(struct store_vol *vol, int fd, const struct store_undo *u)
{
	struct span s = {.out = fd,
			 .in_off = u->range[1].off,
			 .out_off = u->range[0].off,
			 .len = u->range[0].len};
	struct stat st;
	ssize_t n;

	s.in = dir_recover_open(vol, (const char *)u->data, &u->src, O_RDONLY, &st);
	if (s.in < 0)
		return s.in;
	n = u->mode == RF_REMAP_CLONE ? clone_range(&s) : copy_range(&s);
	close(s.in);
	if (n < 0)
		return refused((int)n) || n == -EINVAL ? 0 : (int)n;
	return (uint64_t)n == s.len ? 1 : -EIO;
}
