/* SPDX-License-Identifier: MIT */
/*
 * transport.c - addresses to descriptors.  The table at the end is all that others see.
 *
 * unix:PATH  a stream socket.  Anybody may connect (mode 0666): the server learns from SO_PEERCRED
 *            who it is and acts with that user's rights.
 *
 * Locks: listen holds flock on the socket's directory from "is this socket dead?" until it listens
 * itself, so that of two servers that start at once one sees the other alive.
 */
#include <refault/transport.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* The kernel may give less. */
#define REPLY_SNDBUF (1 << 20) /* one fetch of RF_MAX_DATA in few writes, and no more for a peer */
#define CALL_SNDBUF (4 << 20)  /* a write-back's stores: the next are made while these are read */

static int unix_addr(const char *rest, struct sockaddr_un *sa)
{
	size_t n = strlen(rest);

	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	if (!n)
		return -EINVAL;
	if (n >= sizeof(sa->sun_path))
		return -ENAMETOOLONG;
	memcpy(sa->sun_path, rest, n);
	return 0;
}

static int unix_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

static void unix_tune(int fd, int n)
{
	/* Forced where we may; otherwise up to net.core.wmem_max. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &n, sizeof(n)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &n, sizeof(n));
}

/* 0 if the address is a socket that nobody listens on (it is removed), else why it must stay. */
static int unix_clear(const struct sockaddr_un *sa)
{
	struct stat st;
	int fd, err;

	if (lstat(sa->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -ENOTSOCK;
	fd = unix_socket();
	if (fd < 0)
		return fd;
	err = connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) ? errno : 0;
	close(fd);
	if (err != ECONNREFUSED && err != ENOENT)
		return -EADDRINUSE;
	if (unlink(sa->sun_path) && errno != ENOENT)
		return -errno;
	return 0;
}

static int unix_listen(const char *rest)
{
	struct sockaddr_un sa;
	char dir[sizeof(sa.sun_path)];
	int fd, lock, err;

	err = unix_addr(rest, &sa);
	if (err)
		return err;
	memcpy(dir, sa.sun_path, sizeof(dir)); /* dirname changes it */
	lock = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lock < 0 && errno != EACCES)
		return -errno;
	if (lock >= 0)
		flock(lock, LOCK_EX);

	err = unix_clear(&sa);
	if (err)
		goto out_lock;
	fd = unix_socket();
	if (fd < 0) {
		err = fd;
		goto out_lock;
	}
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		err = -errno;
		goto out_fd;
	}
	if (chmod(sa.sun_path, 0666) || listen(fd, SOMAXCONN)) {
		err = -errno;
		unlink(sa.sun_path);
		goto out_fd;
	}
	err = fd;
	goto out_lock;

out_fd:
	close(fd);
out_lock:
	if (lock >= 0)
		close(lock);
	return err;
}

static int unix_connect(const char *rest)
{
	struct sockaddr_un sa;
	int fd, err;

	err = unix_addr(rest, &sa);
	if (err)
		return err;
	fd = unix_socket();
	if (fd < 0)
		return fd;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		err = -errno;
		close(fd);
		return err;
	}
	unix_tune(fd, CALL_SNDBUF);
	return fd;
}

static int unix_accept(int lfd, struct rf_peer *peer)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int fd, err;

	do
		fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0)
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len)) {
		err = -errno;
		close(fd);
		return err;
	}
	peer->uid = cred.uid;
	peer->gid = cred.gid;
	peer->pid = cred.pid;
	unix_tune(fd, REPLY_SNDBUF);
	return fd;
}

static ssize_t unix_groups(int fd, gid_t *groups, size_t max)
{
	socklen_t len = (socklen_t)(max * sizeof(*groups));

	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) && errno != ERANGE)
		return -errno;
	return (ssize_t)(len / sizeof(*groups));
}

static void unix_unlisten(const char *rest)
{
	unlink(rest);
}

static const struct rf_transport transports[] = {
    {
	.scheme = "unix",
	.listen = unix_listen,
	.connect = unix_connect,
	.accept = unix_accept,
	.groups = unix_groups,
	.unlisten = unix_unlisten,
    },
};

const struct rf_transport *rf_transport_find(const char *addr, const char **rest)
{
	const char *colon = strchr(addr, ':');
	size_t i;

	if (!colon)
		return NULL;
	for (i = 0; i < sizeof(transports) / sizeof(transports[0]); i++) {
		const char *s = transports[i].scheme;

		if (strlen(s) == (size_t)(colon - addr) && !strncmp(s, addr, strlen(s))) {
			*rest = colon + 1;
			return &transports[i];
		}
	}
	return NULL;
}
