/* SPDX-License-Identifier: MIT */
/*
 * dir.h - inside the engine that serves a plain directory: dir.c (names, bytes) and watch.c
 * (changes by others).
 */
#ifndef REFAULT_STORE_DIR_H
#define REFAULT_STORE_DIR_H

#include <pthread.h>
#include <sys/queue.h>
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

/* Source: watch.c. */
int dir_watch(struct store_vol *vol, store_changed_fn *fn, void *arg);
void dir_watch_read(struct store_vol *vol);
int dir_watch_file(struct store_file *file, void *priv);
void dir_unwatch_file(struct store_file *file);
void dir_watch_close(struct store_vol *vol);

#endif
