/* SPDX-License-Identifier: MIT */
/*
 * file.h - managed descriptors: which number is which vnode.  The descriptor itself is the real
 * one, of the file underneath (the "anchor"); position, flags, locks and its life are the kernel's.
 *
 * The table is indexed by descriptor and read without a lock: file_get takes a reference and looks
 * again.  Objects come from a pool that is never given back, as vnodes do.  One object is one open
 * file as far as this process knows: dup shares it, an inherited descriptor has its own, and a fork
 * child has copies: of an error that was not told before the fork, parent and child are both told.
 *
 * Pending: an inherited descriptor (exec, fork of a program that had nothing mapped) is known to be
 * a volume's, but is opened at the agent only when it is first used.
 *
 * Internal descriptors (sockets, userfaultfd, memfds) are entered as FILE_HIDDEN, so that the
 * program's close() and dup2() leave them alone.
 *
 * A vfork child runs in its parent's memory with descriptors of its own: what it closes and
 * duplicates before exec must not be entered.  file_foreign() tells.
 */
#ifndef SHIM_FILE_H
#define SHIM_FILE_H

#include <fcntl.h>

#include "core.h"
#include "undo.h"

struct file {
	_Atomic uint32_t refs;   /* descriptors and calls under way; 0 = free */
	_Atomic uint32_t nfds;   /* descriptors */
	int flags;               /* access mode, O_SYNC, O_DSYNC; O_APPEND is asked of the kernel */
	_Atomic uint32_t errseq; /* the vnode's errseq that was seen here */
	_Atomic uint32_t key;    /* the agent's number of the identity that it was opened under */
	struct vnode *_Atomic vn; /* NULL: pending */
};

#define FILE_HIDDEN ((struct file *)8)

static inline struct file *file_entry(struct ctx *c, int fd)
{
	struct file *_Atomic *t = atomic_load_explicit(&c->fds, memory_order_acquire);

	if (__builtin_expect(!t, 1) || (unsigned)fd >= CTX_FDS)
		return NULL;
	return atomic_load_explicit(&t[fd], memory_order_acquire);
}

/*
 * NULL: fd is not managed.  sys_err(f): it is, but cannot be used (the agent is not to be had);
 * fail the call with that.  Else attached, f->vn is there, and file_done gives it back: or a jump out
 * of the call does, so *h is in its frame.
 */
struct file_held {
	struct file *f;
	struct undo undo;
};
struct file *file_get_slow(struct ctx *c, int fd, struct file_held *h);
static inline struct file *file_get(struct ctx *c, int fd, struct file_held *h)
{
	return __builtin_expect(!file_entry(c, fd), 1) ? NULL : file_get_slow(c, fd, h);
}
static inline void file_done(struct file_held *h)
{
	undo_end(&h->undo);
}
/* A reference without looking for the agent: f->vn may be NULL.  Never an error. */
struct file *file_ref(struct ctx *c, int fd);
void file_put(struct ctx *c, struct file *f);
/* One more on a file that the caller holds. */
static inline void file_hold(struct file *f)
{
	atomic_fetch_add(&f->refs, 1);
}

static inline bool file_hidden(struct ctx *c, int fd)
{
	return file_entry(c, fd) == FILE_HIDDEN;
}
static inline uint32_t file_key(const struct file *f)
{
	return atomic_load_explicit(&f->key, memory_order_relaxed);
}
static inline bool file_writable(const struct file *f)
{
	return (f->flags & O_ACCMODE) == O_WRONLY || (f->flags & O_ACCMODE) == O_RDWR;
}

/*
 * If fd is of a volume: open it at the agent and enter it.  flags: open's (O_TRUNC is carried out);
 * text: the name it was opened by.  1: managed; 0: none of ours; -errno: it is a volume's and
 * cannot be had, or (O_TRUNC) not be truncated.  Nothing is closed.
 */
int file_adopt(struct ctx *c, int fd, const char *text, int flags);

/* fd is now another descriptor of f (a reference is held), or of nothing managed (NULL).  What was
 * there before is let go. */
void file_enter(struct ctx *c, int fd, struct file *f);
/* Take fd out; its reference goes to the caller, for file_close. */
struct file *file_remove(struct ctx *c, int fd);
/*
 * After file_remove: flush if it was the last descriptor or takes locks with it, put.  tell: returns
 * the write-back error, if any; without, it stays to be told.
 */
int file_close(struct ctx *c, struct file *f, bool tell);
/* The kernel is about to close `to` on its own, to make it a copy of fd: locks may go with it. */
void file_replace(struct ctx *c, int fd, int to);
/* fcntl() is about to be called: if it unlocks, flush (w_lock.c).  Keeps errno. */
void lock_fcntl(struct ctx *c, int fd, int cmd, long arg);

/*
 * A write-back error since it was last asked on this open file: once, then 0.  Told by fsync,
 * fdatasync, msync(MS_SYNC), sync_file_range if it waits, write with O_SYNC or O_DSYNC, and by close
 * if the file was open for writing: as with fs/afs, a mere reader's close does not fail.
 */
int file_error(struct file *f);
/* Flush what may be dirty of f, and report. */
int file_flush(struct ctx *c, struct file *f, uint64_t page, uint64_t npages, uint32_t flags);

/* Internal descriptors: to a high number, close-on-exec, entered.  Never fails: if there is no room
 * above, fd stays where it is.  unhide closes. */
int fd_hide(struct ctx *c, int fd);
void fd_unhide(struct ctx *c, int fd);

/* We are a vfork child.  One system call. */
bool file_foreign(struct ctx *c);
/* We are a child whose fork handlers did not run. */
bool file_orphan(struct ctx *c);

/* At the start, if there are volumes: the table. */
int file_init(struct ctx *c);
/* Then: find inherited descriptors of volumes. */
void file_inherit(struct ctx *c);
/* In a fork child, before anything else: the table is its own now. */
void file_fork_child(struct ctx *c);
/* The program ends: what it wrote goes out. */
void file_exit(struct ctx *c);

/* stdio's own streams go through the wrappers from now on (w_stdio.c).  Cheap when done. */
void stdio_init(struct ctx *c);
/* exit() flushes stdio after our destructor: do stdout's now, if it is managed. */
void stdio_exit(struct ctx *c);

#endif
