/* SPDX-License-Identifier: MIT */
/*
 * io.h - a descriptor in the loop.  The descriptor stays the caller's.
 */
#ifndef AGENT_IO_H
#define AGENT_IO_H

#include "ag.h"

struct ag_io {
	uv_poll_t poll;
	struct ag *ag;
	void (*fn)(void *arg, int events); /* UV_READABLE | UV_WRITABLE | UV_DISCONNECT */
	void *arg;
};

/* NULL: out of memory, or the descriptor cannot be polled. */
struct ag_io *ag_io_add(struct ag *ag, int fd, int events, void (*fn)(void *, int), void *arg);
void ag_io_events(struct ag_io *io, int events);
/* The callback is not called any more.  Then the descriptor may be closed.  NULL is fine. */
void ag_io_del(struct ag_io *io);

/*
 * One packet into buf; up to nfd descriptors into fd, *got says how many (close them).  Returns the
 * packet's length, 0 at end of file, -EAGAIN, -EBADMSG if it did not fit, -errno.
 */
ssize_t ag_recv(int sock, void *buf, size_t len, int *fd, unsigned nfd, unsigned *got);
/* One packet with descriptors; -EAGAIN if it cannot go now. */
int ag_send(int sock, const void *buf, size_t len, const int *fd, unsigned nfd);

/* A sealed memfd of that size, mapped.  Returns the descriptor or -errno. */
int ag_shared(const char *name, uint64_t size, unsigned seals, void **map);

#endif
