/* SPDX-License-Identifier: MIT */
/*
 * info.c - ask this user's agent, never start one.
 */
#include <err.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <refault/agent.h>

#include "cmd.h"

/* Longer than the agent's own patience with a server (REFAULT_TIMEOUT, 30 s). */
enum { ANSWER_SECONDS = 60 };

/* RUNTIME as agent.h defines it. */
static bool runtime_dir(char *buf, size_t len)
{
	const char *set = getenv("REFAULT_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	unsigned uid = (unsigned)geteuid();
	struct stat st;
	int n;

	if (set && *set) {
		n = snprintf(buf, len, "%s", set);
		return (size_t)n < len;
	}
	snprintf(buf, len, "/run/user/%u", uid);
	if (lstat(buf, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == uid)
		n = snprintf(buf, len, "/run/user/%u/refault", uid);
	else if (xdg && *xdg)
		n = snprintf(buf, len, "%s/refault", xdg);
	else
		n = snprintf(buf, len, "/tmp/refault-%u", uid);
	return (size_t)n < len;
}

/* Somebody else's directory could hold somebody else's agent. */
static bool ours(const char *dir, bool *none)
{
	struct stat st;

	if (lstat(dir, &st)) {
		if (errno == ENOENT && none)
			*none = true;
		else if (errno == ENOENT)
			warnx("no agent is running (there is no %s)", dir);
		else
			warn("%s", dir);
		return false;
	}
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077)) {
		warnx("%s: should be a directory of yours with mode 0700", dir);
		return false;
	}
	return true;
}

int agent_connect(bool *none)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = ANSWER_SECONDS};
	char dir[PATH_MAX];

	if (!runtime_dir(dir, sizeof(dir)) ||
	    (size_t)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/agent.sock", dir) >=
		sizeof(sa.sun_path)) {
		warnx("the path of the runtime directory is too long for a socket");
		return -1;
	}
	if (!ours(dir, none))
		return -1;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		warn("socket");
		return -1;
	}
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		if ((errno == ENOENT || errno == ECONNREFUSED) && none)
			*none = true;
		else if (errno == ENOENT || errno == ECONNREFUSED)
			warnx("no agent is running at %s", sa.sun_path);
		else
			warn("%s", sa.sun_path);
		close(fd);
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	return fd;
}

ssize_t agent_recv(int fd, void *buf, size_t len)
{
	ssize_t n;

	do
		n = recv(fd, buf, len, 0);
	while (n < 0 && errno == EINTR);
	return n;
}

int cmd_info(const char *word)
{
	struct {
		struct rf_req req;
		char word[16];
	} packet = {.req = {.op = RF_OP_INFO, .version = RF_AGENT_VERSION}};
	static char text[RF_REQ_MAX];
	ssize_t n;
	int ret = 1;

	int fd = agent_connect(NULL);
	if (fd < 0)
		return 1;
	size_t len = strlcpy(packet.word, word, sizeof(packet.word));
	if (send(fd, &packet, offsetof(typeof(packet), word) + len, MSG_NOSIGNAL) < 0) {
		warn("agent");
		goto out;
	}
	while ((n = agent_recv(fd, text, sizeof(text))) > 0)
		fwrite(text, 1, (size_t)n, stdout);
	if (n < 0 && errno != ECONNRESET) {
		warnx("the agent does not answer: %s", strerror(errno));
		goto out;
	}
	if (fflush(stdout))
		warn("standard output");
	else
		ret = 0;
out:
	close(fd);
	return ret;
}
