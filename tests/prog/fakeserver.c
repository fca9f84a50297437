/* SPDX-License-Identifier: MIT */
/*
 * fakeserver SOCKET version|garbage|closes - a server that agents should refuse.
 *
 * version: answers HELLO by a HELLO_R with another protocol version.  garbage: by bytes that are no
 * frame.  closes: hangs up at once.  Says "listening", serves until it is killed.
 */
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* include/refault/protocol.x: frame header, then rf_msg of xid, type, body. */
static void hello_version(int fd, uint32_t xid)
{
	uint32_t f[] = {htonl(4 + 6 * 4),
			htonl(6 * 4),
			xid,
			htonl(2 /* HELLO_R */),
			htonl(9999 /* proto */),
			0,
			htonl(1) /* instance */,
			htonl(30000)};

	if (write(fd, f, sizeof(f)) != sizeof(f))
		warn("write");
}

int main(int argc, char **argv)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	char buf[4096], junk[512];

	if (argc != 3)
		errx(2, "usage: fakeserver SOCKET version|garbage|closes");
	strncpy(sa.sun_path, argv[1], sizeof(sa.sun_path) - 1);
	memset(junk, 0xa5, sizeof(junk));
	int l = socket(AF_UNIX, SOCK_STREAM, 0);
	if (l < 0 || bind(l, (struct sockaddr *)&sa, sizeof(sa)) || chmod(argv[1], 0777) ||
	    listen(l, 8))
		err(1, "%s", argv[1]);
	puts("listening");
	fflush(stdout);
	for (;;) {
		int fd = accept(l, NULL, NULL);
		if (fd < 0)
			err(1, "accept");
		ssize_t n = argv[2][0] == 'c' ? 0 : read(fd, buf, sizeof(buf));
		if (n >= 12 && argv[2][0] == 'v') {
			uint32_t xid;
			memcpy(&xid, buf + 8, 4);
			hello_version(fd, xid);
		} else if (n > 0 && write(fd, junk, sizeof(junk)) < 0) {
			warn("write");
		}
		if (n > 0 && shutdown(fd, SHUT_WR) == 0)
			while (read(fd, buf, sizeof(buf)) > 0)
				continue;
		close(fd);
	}
}
