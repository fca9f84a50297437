/* SPDX-License-Identifier: MIT */
/*
 * store.h - what refault-server asks of an engine: the thing that really keeps files.
 *
 * One struct store_ops an engine, as a kernel file system has its file_operations.  The engine that
 * is built in, store_dir (tools/store/dir.c), serves a plain directory.  The server owns
 * DataVersions, promises, leases, request ids and the order of changes; an engine owns names,
 * bytes, rights, and knows when somebody else changed a file.
 *
 * Rules.
 *
 * Threads: every call may come from any thread, several at a time, but for these promises of the
 * caller: changes (store, append, resize, fallocate, remap) of one file come one at a time,
 * and none of a file that is the source of a remap; forget comes when
 * nothing else runs on that file; open, close, watch and watch_read come from one thread.  Reads do
 * run beside a change; the server throws away what they read then.
 *
 * Waiting: with nowait, a call that would have to wait for a disk returns -EAGAIN and has done
 * nothing; the server then repeats it without, in a pool thread.
 *
 * Rights: a call that takes a cred must succeed or fail as it would for a process with just these
 * rights at this moment, whatever the engine could do itself, and whatever was allowed before.
 *
 * Whole or not at all: a change that returns an error has changed no byte and no size, unless it
 * sets torn.
 *
 * Names: a file whose last name is gone can be read, and not be changed any more: -ESTALE.
 *
 * Errors are -errno.
 */
#ifndef REFAULT_STORE_H
#define REFAULT_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

struct store_vol;  /* a served tree; the engine's own */
struct store_file; /* a file that the server knows; the engine's own */

/* Whose rights.  Made by store_cred_new, shared by reference: requests outlive connections. */
struct store_cred {
	_Atomic unsigned refs;
	uint64_t serial; /* never 0, never used twice */
	uid_t uid;
	gid_t gid;
	size_t ngroups;
	gid_t groups[];
};

struct store_attr {
	rf_fid fid;
	uint64_t size;
	uint64_t blocks; /* of 512 bytes */
	int64_t mtime,
	    ctime; /* ns; every change of the content moves ctime, as far as the clock goes */
	uint32_t mode, uid, gid, nlink;
};

/*
 * What undoes a change that a crash of the server cut in half.  It lies in memory that outlives the
 * process (a shared mapping of a file); the server hands one to each change.  The engine fills it in
 * before it changes the first byte and arms it last, with release order; the server disarms it when
 * the change is remembered as done.  After a crash the server calls recover() for what is still
 * armed and not remembered as done.  The engine need not arm it for what cannot be seen half done
 * and may be done twice.
 *
 * FINISH and REMAP cannot be undone and are done again, whole: nobody was told of them yet, and
 * nobody else has changed either file.
 */
enum {
	STORE_UNDO_BYTES = 1, /* put back range[] from data, the last first; cut to size */
	STORE_UNDO_APPEND,    /* data was being appended at size: cut to size */
	STORE_UNDO_FINISH,    /* fallocate range[] by mode, cut to size: done */
	/* collapse, insert: done if the file has `end` bytes, not if `size`.  range[0]: before a
	 * collapse the file in whole blocks, as which it is shifted; nothing was there before an
	 * insertion, and behind it something: if that has not moved it is cut to size */
	STORE_UNDO_SHIFT,
	STORE_UNDO_REMAP /* remap (mode: RF_REMAP_*) range[1] of src to range[0]: done.  data: its path */
};
#define STORE_UNDO_DATA ((size_t)1 << 20) /* == RF_MAX_DATA */
struct store_undo {
	_Atomic uint32_t armed; /* STORE_UNDO_*; 0: no */
	uint32_t nranges;
	uint32_t mode;
	rf_fid fid, src;
	uint64_t size; /* a smaller file is never made larger */
	uint64_t end;  /* how large the change could make it: others made it larger than that */
	uint64_t len;  /* of data */
	rf_range range[RF_MAX_RANGES]; /* BYTES: inside size; may overlap */
	unsigned char data[STORE_UNDO_DATA];
};

/* A change: what is asked, and what became of it. */
struct store_change {
	/* store: ranges and their data, one after the other.  append: data.  fallocate: ranges[0].
	 * After success ranges, data and len say what was written: what lay past the end of file
	 * and was not to extend it is gone from them. */
	rf_range *ranges;
	size_t nranges;
	unsigned char *data;
	size_t len;
	bool may_extend;
	bool soon; /* sync will be called: better begin to write it to the disk now */

	/* resize: to size; grow_only: never below what it is. */
	uint64_t size;
	bool grow_only;

	int mode; /* fallocate: FALLOC_FL_* */

	/* remap: kind is RF_REMAP_*; ranges[0] is where in the file, its len as asked. */
	unsigned kind;
	uint64_t src_off;
	const char *src_path; /* its last known name, for the undo record */

	bool nameless; /* who asks removed the last name itself; else such a file is -ESTALE */

	struct store_undo *undo; /* NULL: a crash may leave half of it */

	/* Out.  Valid after success, and after an error if touched. */
	struct store_attr before; /* right before */
	struct store_attr after;  /* right after */
	uint64_t off;             /* append: where; remap: bytes done */
	bool touched;             /* before and after are filled in */
	bool torn;                /* with an error: it could not be undone */
};

/* What watch reports. */
enum {
	STORE_CONTENT = 1, /* somebody else may have changed the content */
	STORE_ATTR = 2,    /* mode, owner or names changed; the content did not */
	STORE_LOST = 4,    /* file is NULL: reports were lost, look at every file */
};
typedef void store_changed_fn(void *arg, void *priv, unsigned what);

struct store_ops {
	const char *name;

	/* Serve what is at `where`.  On error *why is a static text that says what is wrong. */
	int (*open)(const char *where, struct store_vol **vol, const char **why);
	/* All its files have been forgotten. */
	void (*close)(struct store_vol *vol);

	/*
	 * The regular file at path, below the tree and never outside it.  flags: RF_LK_*; READ and
	 * WRITE ask for these rights now; CREATE makes it with mode, as a file of cred.  -EISDIR
	 * for a directory, -EINVAL for other things that are no regular file, -EACCES for a path
	 * that leaves the tree.  cred NULL (with flags 0): with the server's own rights.
	 */
	int (*lookup)(struct store_vol *vol, const struct store_cred *cred, const char *path,
		      unsigned flags, unsigned mode, bool nowait, struct store_file **file,
		      struct store_attr *attr);
	void (*forget)(struct store_file *file);

	/* Attributes.  Never waits for a disk: the file is held. */
	int (*status)(struct store_file *file, struct store_attr *attr);

	/* Bytes from off; fewer at end of file.  nowait and not all there: -EAGAIN. */
	ssize_t (*read)(struct store_file *file, const struct store_cred *cred, void *buf,
			size_t len, uint64_t off, bool nowait);

	int (*store)(struct store_file *file, const struct store_cred *cred,
		     struct store_change *change, bool nowait);
	int (*append)(struct store_file *file, const struct store_cred *cred,
		      struct store_change *change, bool nowait);
	int (*resize)(struct store_file *file, const struct store_cred *cred,
		      struct store_change *change, bool nowait);
	int (*fallocate)(struct store_file *file, const struct store_cred *cred,
			 struct store_change *change, bool nowait);
	/* NULL: -EOPNOTSUPP.  Changes file; src is read under src_cred. */
	int (*remap)(struct store_file *file, const struct store_cred *cred, struct store_file *src,
		     const struct store_cred *src_cred, struct store_change *change, bool nowait);

	/* The next data (whence SEEK_DATA) or hole (SEEK_HOLE) from off on; -ENXIO.  Where holes are
	 * not known, all is data. */
	off_t (*seek)(struct store_file *file, const struct store_cred *cred, uint64_t off,
		      int whence, bool nowait);

	/*
	 * Do what undo says, with the server's own rights; path is the file's last known name.  1:
	 * the change is in the file, whole; 0: it is not there at all; -EEXIST: others' bytes came
	 * behind it, so that some of it stays; -ESTALE: no such file any more.  Called before
	 * anything else is asked of vol.  NULL: this engine arms none.
	 */
	int (*recover)(struct store_vol *vol, const char *path, const struct store_undo *undo);

	/* Make content and size durable.  Returns 1 at once if nothing here ever is (a tmpfs). */
	bool (*never_durable)(struct store_vol *vol);
	int (*sync)(struct store_file *file); /* as the server itself: no right is needed */

	/*
	 * Reports of changes by others.  watch returns a descriptor that becomes readable when
	 * there are some (then call watch_read, which calls fn for each), or -errno if this engine
	 * has to be polled.  watch_file starts reporting on one file, with priv as its name; own
	 * changes (through this table) are not reported.  What status says after watch_file
	 * returned is either still so or will be reported.
	 */
	int (*watch)(struct store_vol *vol, store_changed_fn *fn, void *arg);
	void (*watch_read)(struct store_vol *vol);
	int (*watch_file)(struct store_file *file, void *priv);
};

extern const struct store_ops store_dir;

/* NULL: out of memory. */
struct store_cred *store_cred_new(uid_t uid, gid_t gid, const gid_t *groups, size_t ngroups);
struct store_cred *store_cred_get(struct store_cred *cred);
void store_cred_put(struct store_cred *cred);

/*
 * Make the calling thread act with these rights (NULL: the process's own) until the next call.
 * -EACCES: this process may not, or it did not take effect.
 */
int store_cred_enter(const struct store_cred *cred);
/* Whether this process can act for others at all (it runs as root). */
bool store_cred_any(void);
/* Give up what no peer may ever use through us.  Call once, before there are threads. */
int store_cred_limit(void);

#endif
