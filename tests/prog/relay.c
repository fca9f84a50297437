/* SPDX-License-Identifier: MIT */
/*
 * relay LISTEN TARGET - stands between a host and its server, both unix sockets.
 *
 * A command a line on stdin, "ok" a line on stdout:
 *
 *	hold	what the server says stays here, on connections that are made meanwhile, too
 *	pass	it goes on
 *	cut	all connections end, and what is held back is lost
 *	last	the connection on which the server says something next ends right behind that
 *
 * What the host says always goes through: so the server has done what it was asked, and the host
 * has not heard of it.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { N = 64, BUF = 1 << 16 };

static struct {
	int host, server; /* -1: free */
} pair[N];
static bool held, last;

static void fail(const char *what)
{
	fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int at(const char *path, bool bound)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
		fail(path);
	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (bound) {
		if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, N))
			fail(path);
	} else if (connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		close(fd);
		return -1;
	}
	return fd;
}

static void drop(int i)
{
	close(pair[i].host);
	close(pair[i].server);
	pair[i].host = pair[i].server = -1;
}

static void take(int listener, const char *target)
{
	int host = accept(listener, NULL, NULL), server = host < 0 ? -1 : at(target, false);

	for (int i = 0; server >= 0 && i < N; i++)
		if (pair[i].host < 0) {
			pair[i].host = host;
			pair[i].server = server;
			return;
		}
	close(host);
	close(server);
}

/* False: one of the two is gone. */
static bool pump(int from, int to)
{
	static char buf[BUF];
	ssize_t n = read(from, buf, sizeof(buf)), done = 0, k;

	while (done < n) {
		k = write(to, buf + done, (size_t)(n - done));
		if (k <= 0)
			return false;
		done += k;
	}
	return n > 0;
}

static bool answer(int i)
{
	const bool more = !last;

	last = false;
	return pump(pair[i].server, pair[i].host) && more;
}

static void obey(void)
{
	char line[64];

	if (!fgets(line, sizeof(line), stdin))
		exit(0);
	if (!strcmp(line, "cut\n")) {
		for (int i = 0; i < N; i++)
			if (pair[i].host >= 0)
				drop(i);
	} else if (!strcmp(line, "last\n")) {
		last = true;
	} else {
		held = !strcmp(line, "hold\n");
	}
	puts("ok");
}

int main(int argc, char **argv)
{
	struct pollfd p[2 + 2 * N];
	int listener;

	if (argc != 3) {
		fputs("usage: relay LISTEN TARGET\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdin, NULL, _IONBF, 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	listener = at(argv[1], true);
	for (int i = 0; i < N; i++)
		pair[i].host = pair[i].server = -1;
	puts("ok");
	for (;;) {
		p[0] = (struct pollfd){.fd = 0, .events = POLLIN};
		p[1] = (struct pollfd){.fd = listener, .events = POLLIN};
		for (int i = 0; i < N; i++) {
			p[2 + 2 * i] = (struct pollfd){.fd = pair[i].host, .events = POLLIN};
			p[3 + 2 * i] =
			    (struct pollfd){.fd = held ? -1 : pair[i].server, .events = POLLIN};
		}
		if (poll(p, 2 + 2 * N, -1) < 0)
			fail("poll");
		for (int i = 0; i < N; i++)
			if ((p[2 + 2 * i].revents && !pump(pair[i].host, pair[i].server)) ||
			    (p[3 + 2 * i].revents && !answer(i)))
				drop(i);
		if (p[1].revents)
			take(listener, argv[2]);
		if (p[0].revents)
			obey();
	}
}
