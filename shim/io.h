/* SPDX-License-Identifier: MIT */
/*
 * io.h - reading and writing managed files, and private buffers between the program's memory and
 * the kernel.  Counts or -errno; errno is left alone.
 */
#ifndef SHIM_IO_H
#define SHIM_IO_H

#include <sys/uio.h>

#include "file.h"
#include "undo.h"

#define IO_MAX 0x7ffff000u /* the kernel's MAX_RW_COUNT */
#define IO_POS (-1)        /* as offset: the descriptor's position */
#define IO_LAST_PAGE ((UINT64_C(1) << 36) - 1)

/* w_stat.c: the vnode, held on this host, that would lose its last name with that one; else 0. */
uint32_t stat_last_name(struct ctx *c, int dir, const char *path);

/* The promise holds, or was asked for anew: size and times in the header are as fresh as a read. */
int io_validate(struct ctx *c, struct vnode *vn, uint32_t key);

ssize_t io_read(struct ctx *c, struct file *f, int fd, const struct iovec *iov, int cnt, off_t off,
		int rwf);
ssize_t io_write(struct ctx *c, struct file *f, int fd, const struct iovec *iov, int cnt, off_t off,
		 int rwf);
off_t io_seek(struct ctx *c, struct file *f, int fd, off_t off, int whence);

/* Have now what a write of [off, off + n) would have to ask the agent for: the pages inside i_size. */
int io_reserve(struct ctx *c, struct file *f, uint64_t off, size_t n);

/* As inode_newsize_ok: -EFBIG (and SIGXFSZ sent) if the file is to become larger than it may. */
int io_newsize(struct ctx *c, struct file *f, uint64_t size);

/* -EFBIG (and SIGXFSZ sent) if the file may not reach past `end`, else how far it may. */
int64_t io_limit(uint64_t start, uint64_t end);

/*
 * Private, populated memory of at least n bytes that no strip can take away under the kernel.
 * NULL: none.  Small ones come from a pool of IO_BUFS.
 */
#define IO_BUF (128u * 1024)
void *io_buf_get(size_t n);
void io_buf_put(void *p, size_t n);

/* The same over a call that may be jumped out of.  NULL: none, and nothing to release. */
struct io_hold {
	void *p;
	size_t n;
	struct undo undo;
};
void *io_hold(struct io_hold *h, size_t n);
void io_release(struct io_hold *h);

#endif
