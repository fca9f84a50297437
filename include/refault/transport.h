/* SPDX-License-Identifier: MIT */
/*
 * transport.h - how agents reach servers.  An address is SCHEME:REST; one ops table a scheme, so
 * that TCP with TLS can be added beside "unix".  Implemented by tools/wire.
 */
#ifndef REFAULT_TRANSPORT_H
#define REFAULT_TRANSPORT_H

#include <stddef.h>
#include <sys/types.h>

/* Who is at the other end.  uid and gid as the server's kernel vouches for them. */
struct rf_peer {
	uid_t uid;
	gid_t gid;
	pid_t pid;
};

struct rf_transport {
	const char *scheme;
	/* Listen at REST.  Returns a non-blocking listening descriptor, or -errno. A stale unix
	 * socket is replaced, a live one is -EADDRINUSE. */
	int (*listen)(const char *rest);
	/* Connect to REST.  Returns a non-blocking descriptor, or -errno. Never blocks for long. */
	int (*connect)(const char *rest);
	/* Accept; -EAGAIN when nobody waits.  Fills peer. */
	int (*accept)(int lfd, struct rf_peer *peer);
	/* The peer's supplementary groups, at most max of them: how many there are, or -errno. */
	ssize_t (*groups)(int fd, gid_t *groups, size_t max);
	/* Forget the address (unlink the socket). */
	void (*unlisten)(const char *rest);
};

/* The transport of addr and the rest behind the colon; NULL if the scheme is unknown. */
const struct rf_transport *rf_transport_find(const char *addr, const char **rest);

#endif
