/* SPDX-License-Identifier: MIT */
/*
 * anchor.h - what stands under a managed descriptor, and how it leads to a volume and a name there.
 *
 * In an overlay volume the anchor is the real file: the descriptor is the kernel's own, and its
 * link in /proc/self/fd says where in the volume it lies.  Volumes without a directory underneath
 * will answer the same question in another way; nobody else asks it.
 */
#ifndef SHIM_ANCHOR_H
#define SHIM_ANCHOR_H

#include <limits.h>
#include <sys/stat.h>

#include "ctx.h"

struct anchor {
	struct volume *vol;
	const char *rel; /* name inside the volume; points into path */
	struct stat st;
	char path[PATH_MAX];
};

/* fd is of a regular file of a volume: true, and *a is filled.  A few system calls at most; one for
 * files on other devices.  text: the name it was opened by, if known. */
bool anchor_of_fd(struct ctx *c, int fd, const char *text, struct anchor *a);

/* text could not be opened: if a volume should be there, say so, once. */
void anchor_missed(struct ctx *c, const char *text);

/* Could dir/path be an existing regular file of a volume?  One system call.  True may be wrong. */
bool anchor_maybe(struct ctx *c, int dir, const char *path, int at_flags);

/* Does the text of dir/path lie in a volume?  At most one system call; symlinks are not followed.
 */
bool anchor_names(struct ctx *c, int dir, const char *path);

/* Is dev a usable volume's? */
bool anchor_dev(struct ctx *c, uint64_t dev);

#endif
