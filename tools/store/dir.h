/* SPDX-License-Identifier: MIT */
/*
 * dir.h - inside the engine that serves a plain directory: dir.c (names, bytes), extent.c (holes,
 * shifted and shared blocks), scatter.c (many small ranges) and watch.c (changes by others).
 */
#ifndef REFAULT_STORE_DIR_H
#define REFAULT_STORE_DIR_H

#include <pthread.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/tree.h>

#include <refault/store.h>

/* A descriptor for reading that is kept for its readahead state, and for which user. */
struct dir_open {
	int fd;
	uid_t uid;
	unsigned refs; /* under vol->lock */
};

/* How changes by others are noticed. */
enum dir_watch { DIR_WATCH_NONE, DIR_WATCH_FANOTIFY, DIR_WATCH_INOTIFY };

struct store_file {
	struct store_vol *vol;
	int fd; /* O_PATH */
	rf_fid fid;

	/* Reading: NULL or one reference; on vol->opens if set.  Under vol->lock. */
	struct dir_open *ro;
	TAILQ_ENTRY(store_file) ro_link;

	/*
	 * The descriptor of its creation, if its mode does not let the owner write: a program may
	 * create a file read-only and write it.  Good for made_uid as long as the mode is
	 * made_mode.
	 */
	int made;
	uid_t made_uid;
	uint32_t made_mode;

	/* Stored and not yet on its way to the disk, though it will have to be; see write_soon. */
	uint64_t soon_off, soon_end, soon_bytes;

	/* Watching.  own_*: after our last change (inotify cannot tell who); under vol->lock. */
	void *priv;
	uint64_t key; /* in vol->watched: hash of the file handle, or inotify's descriptor */
	bool watched;
	unsigned changing;
	bool own;
	int64_t own_ctime;
	uint64_t own_size;
	RB_ENTRY(store_file) watch_link;
};

TAILQ_HEAD(dir_opens, store_file);
RB_HEAD(dir_watched, store_file);

struct store_vol {
	int dirfd;
	bool ram; /* never waits for a disk, never durable */
	pthread_mutex_t lock;
	struct dir_opens opens; /* least recently opened first */
	unsigned nopens;
	unsigned nmade; /* loop thread and pool: under lock */

	enum dir_watch how;
	int watch_fd;
	struct dir_watched watched; /* loop thread only */
	store_changed_fn *changed;
	void *arg;
};

/* fstat with the fid known.  Source: dir.c. */
int dir_attr(struct store_file *file, int fd, struct store_attr *attr);
/* Path that reopens fd, for calls that take no O_PATH descriptor.  Source: dir.c. */
#define DIR_PROC_LEN 40
const char *dir_proc(int fd, char buf[DIR_PROC_LEN]);
/* The file's generation: tells a reused inode number apart.  Source: dir.c. */
uint64_t dir_generation(int fd, bool *handle);

/* Of a file handle's bytes.  Source: dir.c. */
uint64_t dir_hash(int type, const void *handle, size_t n);

/* Many small ranges.  Source: scatter.c. */
#define DIR_SCATTER_MIN 64 /* ranges from which on it is worth a mapping */
struct dir_scatter {
	unsigned char *p; /* NULL: not mapped */
	uint64_t off;
	size_t len;
	const rf_range *range;
	size_t n;
};
/* Once, before the others. */
int dir_scatter_init(void);
/* Map what holds the ranges.  False: they are not all inside size, or too far apart, or it cannot be. */
bool dir_scatter_map(struct dir_scatter *s, int fd, const rf_range *range, size_t n, uint64_t size);
/*
 * The bytes of all ranges, one after the other: from buf to the file if store, else to buf.  How many
 * ranges were copied; if not all, the one after these may have been in part.
 */
size_t dir_scatter_copy(const struct dir_scatter *s, void *buf, bool store);
void dir_scatter_unmap(struct dir_scatter *s);

/* One change under way: the descriptor, and what undoes it.  Source: dir.c. */
struct dir_change {
	struct store_file *file;
	struct store_change *ch;
	int fd;
	int rfd; /* for reading: the same, or one with the server's own rights, or -1 */
	bool nowait;
	/* The bytes that were in all ranges, one after the other; NULL: not read.  ch->undo's data
	 * if there is one. */
	unsigned char *old;
	struct dir_scatter scatter; /* a store of many ranges */
	size_t scattered;           /* of these, written through the mapping */
};
/* Open the file with these rights, and look at it. */
int dir_change_begin(struct dir_change *c, struct store_file *file, const struct store_cred *cred,
		     struct store_change *ch, bool nowait);
/* touched: the file was written to, whatever came of it. */
int dir_change_end(struct dir_change *c, bool touched, int err);
/* The rest of the record is filled in: from here on a crash is dealt with. */
void dir_undo_arm(struct dir_change *c, uint32_t how, uint64_t size, uint64_t end, uint64_t len);
/* The descriptor for reading with these rights, one reference. */
int dir_open_read(struct store_file *file, const struct store_cred *cred, bool nowait,
		  struct dir_open **out);
void dir_open_put(struct store_vol *vol, struct dir_open *o);
/* All of it, less only at end of file; resident: only what needs no disk, else -EAGAIN. */
ssize_t dir_read_all(int fd, void *buf, size_t len, uint64_t off, bool resident);
int dir_write_all(int fd, const void *buf, size_t len, uint64_t off, size_t *done);
/* After a crash: the file of that name and identity, as the server itself; -ESTALE: it is not. */
int dir_recover_open(struct store_vol *vol, const char *path, const rf_fid *fid, int flags,
		     struct stat *st);

/* Source: extent.c. */
int dir_fallocate(struct store_file *file, const struct store_cred *cred, struct store_change *ch,
		  bool nowait);
int dir_remap(struct store_file *file, const struct store_cred *cred, struct store_file *src,
	      const struct store_cred *src_cred, struct store_change *ch, bool nowait);
off_t dir_seek(struct store_file *file, const struct store_cred *cred, uint64_t off, int whence,
	       bool nowait);
/* As recover() of store.h, for STORE_UNDO_FINISH, _SHIFT and _REMAP. */
int dir_recover_finish(int fd, const struct store_undo *u, uint64_t size);
int dir_recover_shift(int fd, const struct store_undo *u, uint64_t size);
int dir_recover_remap(struct store_vol *vol, int fd, const struct store_undo *u);

/* Source: watch.c. */
int dir_watch(struct store_vol *vol, store_changed_fn *fn, void *arg);
void dir_watch_read(struct store_vol *vol);
int dir_watch_file(struct store_file *file, void *priv);
void dir_unwatch_file(struct store_file *file);
void dir_watch_close(struct store_vol *vol);

#endif
