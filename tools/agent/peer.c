/* SPDX-License-Identifier: MIT */
/*
 * peer.c - the listening socket, and connections until they are attached programs.
 *
 * The first packet decides: ATTACH makes a program of it (proc.c), INFO is answered in text packets
 * and closed, "invalidate" when all that it asks for is done.  Only our own user is let in.
 *
 * Counters: garbage.
 * Locks: none.
 */
#include "peer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "inval.h"
#include "proc.h"

#define PEERS_MAX 256u
#define CHUNK (32u * 1024)
#define SILENCE (30 * AG_SEC)

static void peer_free(struct ag_peer *p, bool close_fd)
{
	ag_req_forget_peer(p);
	if (p->out)
		fclose(p->out);
	ag_io_del(p->io);
	ag_list_del(&p->link);
	if (close_fd)
		close(p->fd);
	free(p->text);
	free(p);
}

static void garbage(struct ag_peer *p, const char *what)
{
	ag_count(p->ag, RF_R_GARBAGE, 1);
	ag_log("process %d: %s; its connection is closed", (int)p->pid, what);
	peer_free(p, true);
}

/* ---- INFO ---- */

static void send_text(struct ag_peer *p)
{
	while (p->off < p->len) {
		size_t n = ag_min(p->len - p->off, CHUNK);
		int r = ag_send(p->fd, p->text + p->off, n, NULL, 0);

		if (r == -EAGAIN) {
			ag_io_events(p->io, UV_WRITABLE);
			return;
		}
		if (r)
			break;
		p->off += n;
	}
	peer_free(p, true);
}

void ag_peer_tell(struct ag_peer *p, uint32_t index, uint64_t stay, int err, const char *path)
{
	fprintf(p->out, "%u %" PRIu64 " %d %s", index, stay, -err, path);
	fputc(0, p->out);
}

void ag_peer_told(struct ag_peer *p)
{
	if (!ag_list_empty(&p->reqs))
		return;
	fputs("done", p->out);
	if (fclose(p->out)) {
		free(p->text);
		p->text = NULL;
	}
	p->out = NULL;
	p->since = ag_now();
	send_text(p);
}

static void invalidate(struct ag_peer *p, const void *buf, size_t len)
{
	p->out = open_memstream(&p->text, &p->len);
	if (!p->out) {
		peer_free(p, true);
		return;
	}
	if (ag_inval_peer(p, buf, len))
		garbage(p, "asked for an invalidation of what makes no sense");
	else
		ag_peer_told(p);
}

static void info(struct ag_peer *p, const char *word, size_t len)
{
	static const char inval[] = "invalidate";
	struct ag *ag = p->ag;
	char buf[160];

	if (len == 6 && !memcmp(word, "status", 6)) {
		p->text = ag_info_status(ag, &p->len);
	} else if (len == 4 && !memcmp(word, "ping", 4)) {
		snprintf(buf, sizeof(buf), "agent: pid %d\n", (int)getpid());
		p->text = strdup(buf);
	} else if (len == 4 && !memcmp(word, "stop", 4)) {
		if (ag->nprocs) {
			snprintf(buf, sizeof(buf),
				 "agent: %u programs are attached; it stops when they are gone\n",
				 ag->nprocs);
		} else {
			snprintf(buf, sizeof(buf), "agent: pid %d stops\n", (int)getpid());
		}
		p->text = strdup(buf);
		ag->stopping = true;
		ag_timers(ag);
	} else if (len >= sizeof(inval) && !memcmp(word, inval, sizeof(inval))) {
		invalidate(p, word + sizeof(inval), len - sizeof(inval));
		return;
	} else {
		garbage(p, "asked for something unknown");
		return;
	}
	if (p->text && !p->len)
		p->len = strlen(p->text);
	send_text(p);
}

/* ---- ATTACH ---- */

static void attach(struct ag_peer *p, const struct rf_req *q, int *fd, unsigned nfd)
{
	struct rf_attach_r r = {.version = RF_AGENT_VERSION};
	struct ag *ag = p->ag;
	struct ag_proc *proc;

	if (q->version != RF_AGENT_VERSION) {
		r.err = -EPROTO;
		snprintf(
		    r.text, sizeof(r.text),
		    "the library speaks version %u, this agent %u: `refault stop`, and start again",
		    q->version, (unsigned)RF_AGENT_VERSION);
	} else if (nfd != 2) {
		r.err = -EPROTO;
		snprintf(r.text, sizeof(r.text), "ATTACH carries two descriptors, not %u", nfd);
	} else {
		ag_io_del(p->io);
		p->io = NULL;
		proc = ag_proc_attach(ag, p->fd, p->pid, fd[0], fd[1], r.text, sizeof(r.text));
		if (proc) {
			ag_proc_welcome(proc);
			peer_free(p, false);
			return;
		}
		r.err = -ECONNREFUSED;
	}
	for (unsigned i = 0; i < nfd; i++)
		close(fd[i]);
	ag_log("process %d: not attached: %s", (int)p->pid, r.text);
	ag_send(p->fd, &r, sizeof(r), NULL, 0);
	peer_free(p, true);
}

static void on_peer(void *arg, int events)
{
	struct ag_peer *p = arg;
	struct ag *ag = p->ag;
	struct rf_req q;
	unsigned nfd;
	int fd[4];
	ssize_t n;

	if (p->text && !p->out) {
		if (events & UV_WRITABLE)
			send_text(p);
		return;
	}
	n = ag_recv(p->fd, ag->packet, RF_REQ_MAX, fd, 4, &nfd);
	if (n == -EAGAIN)
		return;
	if (n >= (ssize_t)sizeof(q) && !p->out) {
		memcpy(&q, ag->packet, sizeof(q));
		n -= (ssize_t)sizeof(q);
		if (q.op == RF_OP_ATTACH && !n) {
			attach(p, &q, fd, nfd);
			return;
		}
		if (q.op == RF_OP_INFO && !nfd && q.version == RF_AGENT_VERSION) {
			info(p, (const char *)ag->packet + sizeof(q), (size_t)n);
			return;
		}
	}
	for (unsigned i = 0; i < nfd; i++)
		close(fd[i]);
	if (n == 0 || n == -ECONNRESET)
		peer_free(p, true);
	else
		garbage(p, p->out ? "said more before it was answered"
				  : "sent what is neither ATTACH nor INFO");
}

/* ---- the door ---- */

static void take(struct ag *ag, int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct ag_peer *p;
	unsigned n = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) || cred.uid != geteuid()) {
		ag_log("process %d of user %u was sent away: this is the agent of user %u",
		       (int)cred.pid, (unsigned)cred.uid, (unsigned)geteuid());
		close(fd);
		return;
	}
	/* Who connects and says nothing shall not keep others out: the oldest goes. */
	ag_for_each (p, &ag->peers, link)
		n++;
	if (n >= PEERS_MAX)
		peer_free(ag_first(&ag->peers, struct ag_peer, link), true);
	p = ag_alloc(sizeof(*p));
	p->ag = ag;
	p->fd = fd;
	p->pid = cred.pid;
	p->since = ag_now();
	ag_list_init(&p->reqs);
	p->io = ag_io_add(ag, fd, UV_READABLE, on_peer, p);
	if (!p->io) {
		close(fd);
		free(p);
		return;
	}
	ag_list_add(&ag->peers, &p->link);
	ag->busy_at = ag_now();
}

void ag_peers_check(struct ag *ag)
{
	struct ag_peer *p;

	ag_for_each (p, &ag->peers, link)
		if (!p->out && ag_now() - p->since > SILENCE)
			peer_free(p, true);
}

void ag_peer_accept(void *arg, int events)
{
	struct ag *ag = arg;
	int fd;

	(void)events;
	while ((fd = accept4(ag->listen, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
		take(ag, fd);
	if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
		ag_log("cannot accept a connection: %s", strerror(errno));
}
