/* SPDX-License-Identifier: MIT */
/*
 * keep.c - the table of what outlives a crash of the agent, and the messages that fill it.
 *
 * Protocol (SEQPACKET, agent -> supervisor only): struct msg, then the meta bytes; descriptors as
 * SCM_RIGHTS.  A message that was sent is there, even if the sender is dead when it is read.
 *
 * Counters: none.  Locks: none, both sides have one thread.
 */
#include "keep.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define PATIENCE 2000 /* ms, with a supervisor that does not read */

enum { PUT = 1, DEL = 2 };

struct msg {
	uint32_t op, kind;
	uint64_t id;
	uint32_t nfd, len;
};

static struct ag_list *chain_of(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id)
{
	uint64_t h = (id * 8 + (uint64_t)kind) * 0x9e3779b97f4a7c15u;

	return &tab->chain[h >> 40 & (AG_KEEP_CHAINS - 1)];
}

void ag_keeptab_init(struct ag_keeptab *tab)
{
	for (unsigned i = 0; i < AG_KEEP_CHAINS; i++)
		ag_list_init(&tab->chain[i]);
}

struct ag_keep *ag_keep_find(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id)
{
	struct ag_keep *k;

	ag_for_each (k, chain_of(tab, kind, id), link)
		if (k->kind == kind && k->id == id)
			return k;
	return NULL;
}

static void close_fds(const int *fd, uint32_t nfd)
{
	for (uint32_t i = 0; i < nfd; i++)
		if (fd[i] >= 0)
			close(fd[i]);
}

static void free_meta(struct ag_keep *k)
{
	if (k->len) /* it may be a secret */
		explicit_bzero(k->meta, k->len);
	free(k->meta);
}

int ag_keep_set(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id, const int *fd,
		uint32_t nfd, const void *meta, uint32_t len)
{
	struct ag_keep *k = ag_keep_find(tab, kind, id);
	unsigned char *m = NULL;

	if (len) {
		m = malloc(len);
		if (!m)
			return -ENOMEM;
		memcpy(m, meta, len);
	}
	if (!k) {
		k = calloc(1, sizeof(*k));
		if (!k) {
			free(m);
			return -ENOMEM;
		}
		k->kind = kind;
		k->id = id;
		ag_list_add(chain_of(tab, kind, id), &k->link);
	}
	free_meta(k);
	k->meta = m;
	k->len = len;
	if (nfd) {
		close_fds(k->fd, k->nfd);
		k->nfd = nfd;
		memcpy(k->fd, fd, nfd * sizeof(int));
	}
	return 0;
}

void ag_keep_remove(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id)
{
	struct ag_keep *k = ag_keep_find(tab, kind, id);

	if (!k)
		return;
	close_fds(k->fd, k->nfd);
	ag_list_del(&k->link);
	free_meta(k);
	free(k);
}

static int send_msg(int sock, const struct msg *m, const int *fd, const void *meta)
{
	union {
		char buf[CMSG_SPACE(AG_KEEP_FDS * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov[2] = {{(void *)(uintptr_t)m, sizeof(*m)},
			       {(void *)(uintptr_t)meta, m->len}};
	struct msghdr h = {.msg_iov = iov, .msg_iovlen = m->len ? 2 : 1};
	ssize_t n;

	if (m->nfd) {
		memset(&u, 0, sizeof(u));
		h.msg_control = u.buf;
		h.msg_controllen = CMSG_SPACE(m->nfd * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(m->nfd * sizeof(int));
		memcpy(CMSG_DATA(c), fd, m->nfd * sizeof(int));
	}
	do {
		struct pollfd p = {.fd = sock, .events = POLLOUT};

		n = sendmsg(sock, &h, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN && poll(&p, 1, PATIENCE) == 0)
			return -ETIMEDOUT;
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	return n < 0 ? -errno : 0;
}

int ag_keep_put(int sock, enum ag_keep_kind kind, uint64_t id, const int *fd, uint32_t nfd,
		const void *meta, uint32_t len)
{
	struct msg m = {.op = PUT, .kind = kind, .id = id, .nfd = nfd, .len = len};

	if (sock < 0)
		return -ENOTCONN;
	if (nfd > AG_KEEP_FDS || len > AG_KEEP_META)
		return -EMSGSIZE;
	return send_msg(sock, &m, fd, meta);
}

int ag_keep_del(int sock, enum ag_keep_kind kind, uint64_t id)
{
	struct msg m = {.op = DEL, .kind = kind, .id = id};

	return sock < 0 ? -ENOTCONN : send_msg(sock, &m, NULL, NULL);
}

int ag_keep_receive(int sock, struct ag_keeptab *tab)
{
	static unsigned char meta[AG_KEEP_META];
	union {
		char buf[CMSG_SPACE(AG_KEEP_FDS * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct msg m = {0};
	struct iovec iov[2] = {{&m, sizeof(m)}, {meta, sizeof(meta)}};
	struct msghdr h = {
	    .msg_iov = iov, .msg_iovlen = 2, .msg_control = u.buf, .msg_controllen = sizeof(u.buf)};
	int fd[AG_KEEP_FDS], r = -EPROTO;
	uint32_t nfd = 0;
	ssize_t n;

	do
		n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			nfd = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fd, CMSG_DATA(c), nfd * sizeof(int));
		}
	if (n >= (ssize_t)sizeof(m) && m.nfd == nfd && m.len == (size_t)n - sizeof(m)) {
		if (m.op == PUT) {
			r = ag_keep_set(tab, m.kind, m.id, fd, nfd, meta, m.len);
			explicit_bzero(meta, m.len);
			if (!r)
				return 1;
		} else if (m.op == DEL) {
			ag_keep_remove(tab, m.kind, m.id);
			r = 1;
		}
	}
	close_fds(fd, nfd);
	return r;
}
