/* SPDX-License-Identifier: MIT */
/*
 * io.c - descriptors in the loop, packets with descriptors, shared memory.
 *
 * Counters: none.  Locks: none.
 */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static void on_poll(uv_poll_t *h, int status, int events)
{
	struct ag_io *io = ag_of(h, struct ag_io, poll);
	struct ag *ag = io->ag;

	/* An error is for the owner's next read to find. */
	io->fn(io->arg, status < 0 ? UV_READABLE | UV_DISCONNECT : events);
	ag_settle(ag);
}

struct ag_io *ag_io_add(struct ag *ag, int fd, int events, void (*fn)(void *, int), void *arg)
{
	struct ag_io *io = calloc(1, sizeof(*io));

	if (!io)
		return NULL;
	if (uv_poll_init(&ag->loop, &io->poll, fd)) {
		free(io);
		return NULL;
	}
	io->ag = ag;
	io->fn = fn;
	io->arg = arg;
	uv_poll_start(&io->poll, events, on_poll);
	return io;
}

void ag_io_events(struct ag_io *io, int events)
{
	uv_poll_start(&io->poll, events, on_poll);
}

static void on_closed(uv_handle_t *h)
{
	free(ag_of(h, struct ag_io, poll));
}

void ag_io_del(struct ag_io *io)
{
	if (!io)
		return;
	uv_poll_stop(&io->poll);
	uv_close((uv_handle_t *)&io->poll, on_closed);
}

ssize_t ag_recv(int sock, void *buf, size_t len, int *fd, unsigned nfd, unsigned *got)
{
	union {
		char buf[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = {buf, len};
	struct msghdr h = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = u.buf,
			   .msg_controllen = sizeof(u.buf)};
	bool many = false;
	ssize_t n;

	*got = 0;
	do
		n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < k; i++) {
			int f;
			memcpy(&f, CMSG_DATA(c) + i * sizeof(int), sizeof(f));
			if (*got < nfd) {
				fd[(*got)++] = f;
			} else {
				close(f);
				many = true;
			}
		}
	}
	return many || (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ? -EBADMSG : n;
}

int ag_send(int sock, const void *buf, size_t len, const int *fd, unsigned nfd)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (nfd) {
		memset(&u, 0, sizeof(u));
		h.msg_control = u.buf;
		h.msg_controllen = CMSG_SPACE(nfd * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfd * sizeof(int));
		memcpy(CMSG_DATA(c), fd, nfd * sizeof(int));
	}
	do
		n = sendmsg(sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int ag_shared(const char *name, uint64_t size, unsigned seals, void **map)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) || fcntl(fd, F_ADD_SEALS, seals))
		goto fail;
	*map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (*map == MAP_FAILED)
		goto fail;
	return fd;
fail:
	r = -errno;
	close(fd);
	return r;
}
