/* SPDX-License-Identifier: MIT */
/*
 * invalidate.c - `refault invalidate`: have this user's agent take files out of its cache.
 *
 * Files are told by device and inode, as programs here see them, a batch of them a packet (agent.h,
 * struct rf_inval); with --volume by the names that the server knows.  What the agent does not hold is
 * not cached, and nothing to do.  A batch may be asked again: an agent that died in the middle of
 * it did some, and did not say so.
 */
#include <err.h>
#include <errno.h>
#include <fts.h>
#include <getopt.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <refault/agent.h>

#include "cmd.h"

enum { BATCH = 4096, TRIES = 5, USAGE = 2 };

static const char word[] = "invalidate"; /* its NUL goes along */

static const char usage_text[] =
    "usage: refault invalidate [--flush | --discard] [--verbose] PATH...\n"
    "       refault invalidate [--flush | --discard] [--verbose] --volume NAME [PATH]...\n"
    "\n"
    "Take files, or all files below directories, out of this host's cache and of all programs'\n"
    "mappings, so that the next touch asks the server.  Files that are not cached are left out.\n"
    "\n"
    "-f, --flush        write back first what is dirty; programs' stores wait meanwhile\n"
    "-d, --discard      throw away what is dirty: what programs stored is lost\n"
    "-V, --volume NAME  PATHs are names inside this export, as the server knows them; without a "
    "PATH\n"
    "                   all of it is meant\n"
    "-v, --verbose      name each file that was cached\n"
    "-h, --help\n"
    "\n"
    "Exit status: 0; 1 if pages stayed or a file could not be done; 2 for wrong usage.\n";

struct inval {
	uint32_t flags;
	bool verbose;
	int status;
	unsigned char *packet; /* RF_REQ_MAX */
	size_t len;

	/* a batch: the pairs are in the packet */
	uint32_t files;
	char *name[BATCH];

	char *answer; /* of all packets of one answer */
	size_t got, room;
};

/* ---- one packet, one answer ---- */

static void put(struct inval *v, const void *p, size_t n)
{
	memcpy(v->packet + v->len, p, n);
	v->len += n;
}

static void packet_begin(struct inval *v)
{
	struct rf_req req = {.op = RF_OP_INFO, .version = RF_AGENT_VERSION};
	struct rf_inval i = {.flags = v->flags};

	v->len = 0;
	put(v, &req, sizeof(req));
	put(v, word, sizeof(word));
	put(v, &i, sizeof(i));
}

/* The whole answer ends with "done".  0; 1: nobody is there; -1: it ended before. */
static int ask_once(struct inval *v)
{
	bool none = false;
	int fd = agent_connect(&none);
	ssize_t n;

	if (fd < 0)
		return none ? 1 : -1;
	if (v->flags & RF_INVAL_FLUSH) /* takes as long as there is to write */
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0},
			   sizeof(struct timeval));
	v->got = 0;
	if (send(fd, v->packet, v->len, MSG_NOSIGNAL) < 0) {
		close(fd);
		return -1;
	}
	for (;;) {
		if (v->room - v->got < RF_REQ_MAX) {
			v->room = 2 * v->room + RF_REQ_MAX;
			v->answer = realloc(v->answer, v->room);
			if (!v->answer)
				err(1, "memory");
		}
		n = agent_recv(fd, v->answer + v->got, v->room - v->got);
		if (n <= 0)
			break;
		v->got += (size_t)n;
	}
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		warnx("the agent does not answer");
		v->status = 1;
		v->got = 0;
		close(fd);
		return 1;
	}
	close(fd);
	return v->got >= 4 && memcmp(v->answer + v->got - 4, "done", 4) == 0 ? 0 : -1;
}

static void one_file(struct inval *v, const char *name, unsigned long long stay, int e)
{
	if (!stay && !e) {
		if (v->verbose)
			printf("%s: out of the cache\n", name);
		return;
	}
	v->status = 1;
	if (e && (stay || e == EHOSTDOWN || e == ETIMEDOUT))
		warnx("%s: cannot be written back: %s; %llu dirty pages stay", name, strerror(e),
		      stay);
	else if (e)
		warnx("%s: write-back was refused: %s; what was stored is lost, see refault status",
		      name, strerror(e));
	else if (v->flags)
		warnx("%s: %llu pages stay, programs have them in use", name, stay);
	else
		warnx("%s: %llu dirty pages stay; --flush writes them back", name, stay);
}

static void told(struct inval *v)
{
	const char *s = v->answer, *end = v->answer + v->got - 4;

	while (s < end) {
		const char *next = memchr(s, 0, (size_t)(end - s));
		unsigned long long stay;
		unsigned index;
		int e, at = 0;

		if (!next || sscanf(s, "%u %llu %d %n", &index, &stay, &e, &at) != 3 || !at) {
			warnx(
			    "the agent's answer is not understood; restart it with `refault stop`");
			v->status = 1;
			return;
		}
		one_file(v, index < v->files ? v->name[index] : s + at, stay, e);
		s = next + 1;
	}
}

/* An agent that is killed is followed by another, who did not get the request. */
static void ask(struct inval *v)
{
	int r = -1;

	for (int i = 0; r < 0 && i < TRIES; i++)
		r = ask_once(v);
	if (!r) {
		told(v);
	} else if (r < 0) {
		warnx("the agent ends before it has answered; its log says why");
		v->status = 1;
	}
}

/* ---- by device and inode ---- */

static void batch_ask(struct inval *v)
{
	const size_t at = sizeof(struct rf_req) + sizeof(word) + offsetof(struct rf_inval, files);

	if (v->files) {
		memcpy(v->packet + at, &v->files, sizeof(v->files));
		ask(v);
	}
	while (v->files)
		free(v->name[--v->files]);
	packet_begin(v);
}

static void add(struct inval *v, const char *path, const struct stat *st)
{
	const uint64_t id[2] = {st->st_dev, st->st_ino};

	if (!S_ISREG(st->st_mode))
		return;
	v->name[v->files] = strdup(path);
	if (!v->name[v->files])
		err(1, "memory");
	put(v, id, sizeof(id));
	if (++v->files == BATCH)
		batch_ask(v);
}

static void by_path(struct inval *v, char *const *paths)
{
	FTS *fts = fts_open(paths, FTS_COMFOLLOW | FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, NULL);
	FTSENT *e;

	if (!fts)
		err(1, "fts_open");
	packet_begin(v);
	while (errno = 0, (e = fts_read(fts))) {
		if (e->fts_info == FTS_F) {
			add(v, e->fts_path, e->fts_statp);
		} else if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR ||
			   e->fts_info == FTS_NS) {
			warnx("%s: %s", e->fts_path, strerror(e->fts_errno));
			v->status = 1;
		}
	}
	if (errno)
		err(1, "fts_read");
	fts_close(fts);
	batch_ask(v);
}

/* ---- by name in a volume ---- */

static size_t no_slashes(const char **path)
{
	size_t n;

	while (**path == '/' || ((*path)[0] == '.' && ((*path)[1] == '/' || !(*path)[1])))
		++*path;
	n = strlen(*path);
	while (n && (*path)[n - 1] == '/')
		n--;
	return n;
}

static void by_name(struct inval *v, const char *volume, char **paths)
{
	const bool all = !*paths;
	size_t begun;

	packet_begin(v);
	put(v, volume, strlen(volume) + 1);
	begun = v->len;
	for (; *paths; paths++) {
		const char *path = *paths;
		size_t n = no_slashes(&path);

		if (n >= PATH_MAX) {
			warnx("%.40s...: %s", path, strerror(ENAMETOOLONG));
			v->status = 1;
			continue;
		}
		if (v->len + n + 1 > RF_REQ_MAX) {
			ask(v);
			v->len = begun;
		}
		put(v, path, n);
		put(v, "", 1);
	}
	if (v->len > begun || all)
		ask(v);
}

int cmd_invalidate(int argc, char **argv)
{
	static const struct option options[] = {
	    {"flush", no_argument, NULL, 'f'},        {"discard", no_argument, NULL, 'd'},
	    {"volume", required_argument, NULL, 'V'}, {"verbose", no_argument, NULL, 'v'},
	    {"help", no_argument, NULL, 'h'},         {0},
	};
	static struct inval v;
	const char *volume = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "fdV:vh", options, NULL)) >= 0) {
		switch (opt) {
		case 'f':
			v.flags |= RF_INVAL_FLUSH;
			break;
		case 'd':
			v.flags |= RF_INVAL_DISCARD;
			break;
		case 'V':
			volume = optarg;
			break;
		case 'v':
			v.verbose = true;
			break;
		case 'h':
			fputs(usage_text, stdout);
			return 0;
		default:
			fputs(usage_text, stderr);
			return USAGE;
		}
	}
	argv += optind;
	if ((v.flags & RF_INVAL_FLUSH) && (v.flags & RF_INVAL_DISCARD)) {
		warnx("--flush and --discard exclude each other");
		return USAGE;
	}
	if (volume && (!*volume || strlen(volume) > NAME_MAX)) {
		warnx("--volume: the name of an export has 1 to %d bytes", NAME_MAX);
		return USAGE;
	}
	if (!volume && !*argv) {
		fputs(usage_text, stderr);
		return USAGE;
	}
	v.packet = malloc(RF_REQ_MAX);
	if (!v.packet)
		err(1, "memory");
	if (volume)
		by_name(&v, volume, argv);
	else
		by_path(&v, argv);
	if (fflush(stdout))
		err(1, "standard output");
	return v.status;
}
