/* SPDX-License-Identifier: MIT */
/*
 * server.c - connections to file servers: made when something waits, kept alive by pings, taken
 * down with everything that was promised over them.
 *
 * Protocol.  connect, HELLO, HELLO_R: up; then VOLUME for every export in use.  PING every third of
 * the lease; PONG moves the end of all promises that have not ended to one lease after the ping was
 * sent.  A promise that ended while the PONG was under way stays ended, since the server may have
 * counted the same.  Frames about a vnode that is busy wait in its queue of tasks.
 *
 * Lost: every promise is void (cb_s_break), all mapped files are stripped, and only when the last
 * is the next HELLO may go out, because HELLO lets other hosts' changes through.  A program that does
 * not co-operate loses the clean pages, which are punched; dirty ones cannot be, and others' bytes
 * cannot be merged into them before HELLO.  So HELLO waits until they could be stripped, or until the
 * last promise would have ended, after which the server waits for us no longer (`leased`, which a
 * crash outlives).  Attempts begin again as long as something waits, with BACKOFF_MIN to BACKOFF_MAX
 * between them.
 *
 * Counters: mass-break, wire-sent, wire-received, reconnect, garbage.
 * Locks: none.
 */
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <refault/transport.h>

#include "brk.h"
#include "change.h"
#include "fetch.h"
#include "req.h"
#include "vnode.h"

#define SERVERS_MAX 256u
#define BACKOFF_MIN 50u    /* ms */
#define BACKOFF_MAX 1000u  /* ms */
#define LEASE_MIN 30u      /* ms: a server that grants less cannot be kept up with */
#define HELLO_WAIT 5000u   /* ms */
#define ANSWER_MIN AG_SEC  /* whatever REFAULT_TIMEOUT says: a server that is there gets so long */
#define HEAD (128u * 1024) /* an encoded message without payload: 4096 ranges and a path */

/* What the socket did not take: bytes of ours, then what is left of a call's payload, in its place. */
struct tx {
	struct ag_list link;
	uint32_t xid;
	size_t len, off;
	const unsigned char *payload;
	size_t payload_len;
	unsigned char data[];
};

static void on_timer(uv_timer_t *h);
static void attempt(struct ag_server *srv);
static void attempt_stripped(struct ag_server *srv);

/* ---- by name ---- */

struct ag_server *ag_server_get(struct ag *ag, const char *addr)
{
	struct ag_server *srv;
	unsigned n = 0;

	ag_for_each (srv, &ag->servers, link) {
		if (!strcmp(srv->addr, addr))
			return srv;
		n++;
	}
	if (n >= SERVERS_MAX)
		return NULL;
	srv = ag_alloc(sizeof(*srv));
	srv->ag = ag;
	srv->addr = ag_memdup(addr, strlen(addr) + 1);
	srv->index = UINT32_MAX;
	srv->fd = -1;
	srv->backoff = BACKOFF_MIN;
	rf_rx_init(&srv->rx);
	ag_list_init(&srv->tx);
	ag_list_init(&srv->calls);
	ag_list_init(&srv->volumes);
	ag_list_init(&srv->vnodes);
	ag_list_init(&srv->unstripped);
	uv_timer_init(&ag->loop, &srv->timer);
	srv->timer.data = srv;
	ag_list_add(&ag->servers, &srv->link);
	return srv;
}

struct ag_volume *ag_volume_get(struct ag_server *srv, const char *name)
{
	struct ag_volume *vol;

	ag_for_each (vol, &srv->volumes, link)
		if (!strcmp(vol->name, name))
			return vol;
	vol = ag_alloc(sizeof(*vol));
	vol->srv = srv;
	vol->name = ag_memdup(name, strlen(name) + 1);
	ag_list_add(&srv->volumes, &vol->link);
	return vol;
}

int ag_server_index(struct ag_server *srv, uint32_t want)
{
	struct ag *ag = srv->ag;

	if (srv->index != UINT32_MAX)
		return want == UINT32_MAX || want == srv->index ? 0 : -EPROTO;
	if (want == UINT32_MAX)
		for (want = 0; want < RF_MAX_SERVERS && ag->server[want]; want++)
			;
	if (want >= RF_MAX_SERVERS || ag->server[want])
		return -ENFILE;
	srv->index = want;
	ag->server[want] = srv;
	return 0;
}

/* ---- sending ---- */

static void broken(struct ag_server *srv, int err, const char *why)
{
	if (srv->broken || srv->fd < 0)
		return;
	srv->broken = true;
	srv->ag->again = true;
	srv->err = err;
	snprintf(srv->why, sizeof(srv->why), "%s", why);
}

static void queue(struct ag_server *srv, uint32_t xid, const struct iovec iov[2], size_t skip)
{
	const size_t head = iov[0].iov_len - ag_min(skip, iov[0].iov_len);
	struct tx *tx = malloc(sizeof(*tx) + head);

	if (!tx) {
		broken(srv, -ENOMEM, "out of memory");
		return;
	}
	tx->xid = xid;
	tx->off = 0;
	tx->len = head;
	memcpy(tx->data, (char *)iov[0].iov_base + iov[0].iov_len - head, head);
	skip -= iov[0].iov_len - head;
	tx->payload_len = iov[1].iov_len - skip;
	tx->payload = tx->payload_len ? (unsigned char *)iov[1].iov_base + skip : NULL;
	if (ag_list_empty(&srv->tx))
		ag_io_events(srv->io, UV_READABLE | UV_WRITABLE);
	ag_list_add(&srv->tx, &tx->link);
}

static void send_frame(struct ag_server *srv, struct rf_msg *m, const void *payload, size_t len)
{
	static unsigned char *head;
	struct iovec iov[2];
	struct msghdr h = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};
	ssize_t n;

	if (srv->fd < 0 || srv->broken)
		return;
	if (!head)
		head = ag_alloc(HEAD);
	n = rf_wire_encode(head, HEAD, m, len);
	if (n < 0) {
		broken(srv, (int)n, "a message cannot be encoded");
		return;
	}
	iov[0] = (struct iovec){head, (size_t)n};
	iov[1] = (struct iovec){(void *)(uintptr_t)payload, len};
	if (!ag_list_empty(&srv->tx)) {
		queue(srv, m->xid, iov, 0);
		return;
	}
	do
		n = sendmsg(srv->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN) {
		broken(srv, -errno, strerror(errno));
		return;
	}
	if (n < 0)
		n = 0;
	ag_count(srv->ag, RF_R_WIRE_SENT, (uint64_t)n);
	if ((size_t)n < iov[0].iov_len + len)
		queue(srv, m->xid, iov, (size_t)n);
}

static void flush_tx(struct ag_server *srv)
{
	struct tx *tx;

	ag_for_each (tx, &srv->tx, link) {
		while (tx->len + tx->payload_len) {
			struct iovec iov[2] = {{tx->data + tx->off, tx->len},
					       {(void *)(uintptr_t)tx->payload, tx->payload_len}};
			struct msghdr h = {.msg_iov = iov, .msg_iovlen = 2};
			ssize_t n = sendmsg(srv->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
			size_t k;

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN)
				return;
			if (n < 0) {
				broken(srv, -errno, strerror(errno));
				return;
			}
			ag_count(srv->ag, RF_R_WIRE_SENT, (uint64_t)n);
			k = ag_min((size_t)n, tx->len);
			tx->off += k;
			tx->len -= k;
			if (tx->payload_len) {
				tx->payload += (size_t)n - k;
				tx->payload_len -= (size_t)n - k;
			}
		}
		ag_list_del(&tx->link);
		free(tx);
	}
	ag_io_events(srv->io, UV_READABLE);
}

/* It was not even sent to its end: what an answer lets go of may be its payload. */
static bool unsent(const struct ag_server *srv, uint32_t xid)
{
	struct tx *tx;

	ag_for_each (tx, &srv->tx, link)
		if (tx->xid == xid)
			return true;
	return false;
}

struct ag_call *ag_call_new(struct ag_volume *vol, struct ag_vnode *vn,
			    bool (*reply)(struct ag_call *, struct rf_msg *, void *, size_t),
			    void *arg)
{
	struct ag_call *c = ag_alloc(sizeof(*c));

	c->srv = vol->srv;
	c->vol = vol;
	c->vn = vn;
	c->reply = reply;
	c->arg = arg;
	c->epoch = vn ? vn->epoch : 0;
	ag_list_init(&c->link);
	ag_list_init(&c->by_vn);
	return c;
}

static void call(struct ag_server *srv, struct ag_call *c, struct rf_msg *m, const void *payload,
		 size_t len)
{
	do
		c->xid = ++srv->xid;
	while (!c->xid);
	m->xid = c->xid;
	c->sent_at = ag_now();
	ag_list_add(&srv->calls, &c->link);
	send_frame(srv, m, payload, len);
}

void ag_call_send(struct ag_call *c, struct rf_msg *m, const void *payload, size_t len)
{
	call(c->srv, c, m, payload, len);
}

void ag_server_send(struct ag_server *srv, struct rf_msg *m)
{
	m->xid = 0;
	send_frame(srv, m, NULL, 0);
}

/* ---- being up ---- */

void ag_server_kick(struct ag_server *srv)
{
	struct ag_vnode *vn;

	ag_for_each (vn, &srv->vnodes, by_server)
		if (!ag_list_empty(&vn->reqs) || !ag_list_empty(&vn->ops) || vn->want_valid ||
		    vn->target)
			ag_vn_kick(vn);
	srv->ag->again = true; /* the opens */
}

static bool on_volume(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_volume *vol = c->vol;

	(void)payload;
	(void)len;
	vol->asked = false;
	if (!m)
		return false;
	if (m->body.type == RF_VOLUME_R) {
		vol->handle = m->body.rf_body_u.volume_r.volume;
		vol->memory = m->body.rf_body_u.volume_r.memory;
		vol->ready = true;
		vol->err = 0;
	} else if (m->body.type == RF_ERROR) {
		vol->err = m->body.rf_body_u.error.err ? -(int)m->body.rf_body_u.error.err : -EIO;
	} else {
		ag_server_garbage(c->srv, "an answer to VOLUME that is none");
	}
	ag_server_kick(c->srv);
	return false;
}

static void ask_volume(struct ag_volume *vol)
{
	struct rf_msg m = {.body.type = RF_VOLUME};

	if (vol->asked)
		return;
	vol->asked = true;
	m.body.rf_body_u.volume.name = vol->name;
	ag_call_send(ag_call_new(vol, NULL, on_volume, NULL), &m, NULL, 0);
}

static void schedule(struct ag_server *srv, uint64_t ms)
{
	uv_timer_start(&srv->timer, on_timer, ms, 0);
}

static bool on_hello(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_server *srv = c->srv;
	const rf_hello_r *r;
	struct ag_volume *vol;
	char why[128];

	(void)payload;
	(void)len;
	if (!m)
		return false;
	if (m->body.type == RF_ERROR) {
		snprintf(why, sizeof(why), "refused: %.100s", m->body.rf_body_u.error.what);
		broken(srv,
		       -(int)(m->body.rf_body_u.error.err ? m->body.rf_body_u.error.err : EPROTO),
		       why);
		return false;
	}
	r = &m->body.rf_body_u.hello_r;
	if (m->body.type == RF_HELLO_R && r->proto != RF_PROTO_VERSION) {
		snprintf(why, sizeof(why), "it speaks version %u of the protocol, this agent %u",
			 r->proto, (unsigned)RF_PROTO_VERSION);
		broken(srv, -EPROTO, why);
		return false;
	}
	if (m->body.type != RF_HELLO_R || r->lease_ms < LEASE_MIN) {
		ag_server_garbage(srv, "an answer to HELLO that is none");
		return false;
	}
	if (srv->ever) {
		ag_count(srv->ag, RF_R_RECONNECT, 1);
		ag_log("%s: connected again%s", srv->addr,
		       !srv->instance || r->instance == srv->instance
			   ? ""
			   : " (the server was restarted)");
	}
	srv->state = AG_UP;
	srv->down_at = 0;
	srv->ever = true;
	srv->err = 0;
	srv->why[0] = '\0';
	srv->instance = r->instance;
	srv->lease = r->lease_ms * AG_MS;
	srv->backoff = BACKOFF_MIN;
	srv->pinged = 0;
	schedule(srv, r->lease_ms / 3);
	ag_for_each (vol, &srv->volumes, link)
		ask_volume(vol);
	return false;
}

bool ag_overdue(const struct ag *ag, uint64_t since)
{
	return ag_now() - since > ag_max(ag->conf->timeout_ns, ANSWER_MIN);
}

int ag_volume_ready(struct ag_volume *vol, uint64_t born, const char **why)
{
	struct ag_server *srv = vol->srv;
	const struct ag *ag = srv->ag;

	if (srv->state == AG_UP && !srv->broken) {
		if (vol->ready)
			return 1;
		if (vol->err) {
			*why = "no such volume there";
			return vol->err;
		}
		ask_volume(vol);
		*why = "it does not answer";
		return ag_overdue(ag, born) ? -EHOSTDOWN : 0;
	}
	if (srv->state == AG_DOWN && !srv->broken && (!srv->retrying || srv->tried_at < born))
		attempt(srv);
	*why = srv->why[0] ? srv->why : "it does not answer";
	if (srv->err && srv->tried_at >= born &&
	    (!srv->ever || ag_now() - born >= ag->conf->timeout_ns))
		return srv->ever ? -EHOSTDOWN : srv->err;
	/* Neither refused nor made: it takes connections and says nothing. */
	return ag_overdue(ag, born) ? -EHOSTDOWN : 0;
}

/* ---- leases ---- */

static bool on_pong(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_server *srv = c->srv;
	uint64_t now = ag_now(), until = c->sent_at + srv->lease;
	struct ag_vnode *vn;

	(void)payload;
	(void)len;
	if (!m)
		return false;
	if (m->body.type != RF_PONG) {
		ag_server_garbage(srv, "an answer to PING that is none");
		return false;
	}
	srv->pinged = 0;
	ag_for_each (vn, &srv->vnodes, by_server) {
		/* What a program's stripper took back stays so. */
		if (vn->until > now && atomic_load(&vn->st->cb_expires_at) > now &&
		    until > vn->until)
			ag_vn_promise(vn, until);
		if (vn->target_until > now)
			vn->target_until = ag_max(vn->target_until, until);
	}
	return false;
}

static void ping(struct ag_server *srv)
{
	struct rf_msg m = {.body.type = RF_PING};
	struct ag_call *c;

	if (srv->pinged) {
		if (ag_now() - srv->pinged > srv->lease)
			broken(srv, -ETIMEDOUT, "no answer within a lease");
		return;
	}
	c = ag_alloc(sizeof(*c));
	c->srv = srv;
	c->reply = on_pong;
	ag_list_init(&c->by_vn);
	srv->pinged = ag_now();
	call(srv, c, &m, NULL, 0);
}

/* What the server promised in answer to what was sent then ends before that. */
static void leased(struct ag_server *srv, uint64_t sent_at)
{
	const uint64_t until = sent_at + srv->lease;
	_Atomic uint64_t *at;

	if (srv->index == UINT32_MAX)
		return; /* it has no files here */
	at = &srv->ag->host->server[srv->index].leased;
	if (srv->state == AG_UP && atomic_load(at) < until)
		atomic_store(at, until);
}

static uint64_t lease_end(const struct ag_server *srv)
{
	return srv->index == UINT32_MAX ? 0
					: atomic_load(&srv->ag->host->server[srv->index].leased);
}

static void stripped(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	struct ag_server *srv = vn->vol->srv;

	srv->stripping--;
	if (!t->stripped && ag_now() < vn->unstripped_until && ag_vn_ndirty(vn)) {
		ag_log(
		    "%s: a program does not let go of changed pages; until it does, or our lease "
		    "ends, changes of other hosts wait",
		    vn->path);
		ag_list_del(&vn->unstripped);
		ag_list_add(&srv->unstripped, &vn->unstripped);
		ag_fast_start(srv->ag);
	} else if (!vn->want_valid) {
		ag_brk_acks(vn);
	}
	attempt_stripped(srv);
}

/* Have it stripped, for what is dirty and old would be seen; others wait for that, but no longer. */
static void let_go(struct ag_vnode *vn, uint64_t until)
{
	struct ag_task *t = ag_task_new(vn, ag_step_strip);

	ag_list_del(&vn->unstripped);
	vn->unstripped_until = until;
	vn->vol->srv->stripping++;
	t->done = stripped;
	ag_task_post(t);
}

void ag_server_let_go(struct ag_vnode *vn)
{
	let_go(vn, ag_now() + vn->vol->srv->lease);
}

/* Once more, when it can be expected to do. */
static bool strip_again(struct ag_server *srv, uint64_t now)
{
	struct ag_vnode *vn;

	ag_for_each (vn, &srv->unstripped, unstripped) {
		if (now >= vn->unstripped_until) {
			ag_list_del(&vn->unstripped);
			if (!vn->want_valid)
				ag_brk_acks(vn);
		} else if (ag_vn_quiet(vn)) {
			let_go(vn, vn->unstripped_until);
		}
	}
	if (ag_list_empty(&srv->unstripped))
		attempt_stripped(srv);
	return !ag_list_empty(&srv->unstripped);
}

bool ag_servers_slow(struct ag *ag, uint64_t now)
{
	struct ag_server *srv;
	bool any = false;

	ag_for_each (srv, &ag->servers, link)
		any |= !ag_list_empty(&srv->unstripped) && strip_again(srv, now);
	return any;
}

void ag_server_mass_break(struct ag_server *srv, bool before_hello)
{
	struct ag_vnode *vn;

	ag_count(srv->ag, RF_R_MASS_BREAK, 1);
	srv->mass++;
	if (srv->index != UINT32_MAX)
		atomic_fetch_add(&srv->ag->host->server[srv->index].cb_s_break, 1);
	ag_for_each (vn, &srv->vnodes, by_server) {
		ag_vn_unpromise(vn);
		vn->epoch++;
		vn->target = 0;
		vn->nmerge = 0;
		if (!ag_vn_mapped(vn))
			continue;
		if (before_hello)
			let_go(vn, lease_end(srv));
		else
			ag_task_post(ag_task_new(vn, ag_step_strip));
	}
}

/* ---- receiving ---- */

static struct ag_vnode *vnode_of_break(struct ag_server *srv, const rf_break *b)
{
	struct ag_volume *vol;

	ag_for_each (vol, &srv->volumes, link)
		if (vol->ready && vol->handle == b->volume)
			return ag_vn_find(srv->ag, vol, &b->status.fid);
	return NULL;
}

/* True if it has to wait, and does. */
static bool must_wait(struct ag_server *srv, struct ag_vnode *vn, const void *frame, size_t len)
{
	struct ag_task *t;

	if (!vn || !ag_vn_busy(vn))
		return false;
	t = ag_task_new(vn, ag_frame_step);
	t->conn = srv->conn;
	t->mass = srv->mass;
	t->data = ag_memdup(frame, len);
	t->len = len;
	ag_task_post(t);
	return true;
}

/* queued: it waited already.  void_: a mass break went by meanwhile, and what it promises is void.
 */
static void dispatch(struct ag_server *srv, void *frame, size_t len, bool queued, bool void_)
{
	struct ag_vnode *vn = NULL;
	struct ag_call *c = NULL, *it;
	size_t plen;
	void *payload;
	uint64_t sent_at;
	struct rf_msg m;

	if (rf_wire_decode(frame, len, &m, &payload, &plen)) {
		ag_server_garbage(srv, "a frame that does not decode");
		return;
	}
	if (m.body.type == RF_BREAK) {
		rf_break *b = &m.body.rf_body_u.brk;

		vn = vnode_of_break(srv, b);
		if (!vn)
			ag_brk_ack(srv, srv->conn, b->id);
		else if (queued)
			ag_brk(vn, b, payload, plen);
		else if (!must_wait(srv, vn, frame, len)) {
			ag_brk(vn, b, payload, plen);
			ag_tasks_run(vn); /* others wait for it */
		}
		goto out;
	}
	if (m.body.type == RF_INIT_STATE) {
		ag_log("%s: the server forgot its promises", srv->addr);
		ag_server_mass_break(srv, false);
		goto out;
	}
	ag_for_each (it, &srv->calls, link)
		if (it->xid == m.xid) {
			c = it;
			break;
		}
	if (!c || !m.xid || unsent(srv, m.xid)) {
		ag_server_garbage(srv, "an answer that nobody waits for");
		goto out;
	}
	vn = c->vn;
	if (!vn && c->vol && m.body.type == RF_STATUS_R)
		vn = ag_vn_find(srv->ag, c->vol, &m.body.rf_body_u.status_r.fid);
	if (!queued && must_wait(srv, vn, frame, len))
		goto out;
	sent_at = c->sent_at;
	if (void_)
		c->sent_at = 0;
	if (!c->reply(c, &m, payload, plen)) {
		ag_list_del(&c->link);
		ag_list_del(&c->by_vn);
		free(c);
	}
	leased(srv, sent_at);
out:
	rf_wire_free(&m);
}

void ag_frame_step(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	struct ag_server *srv = vn->vol->srv;

	vn->task = NULL; /* what the frame makes goes before what waits behind it */
	if (srv->conn == t->conn && !srv->broken && srv->fd >= 0)
		dispatch(srv, t->data, t->len, true, t->mass != srv->mass);
	ag_task_free(t);
	ag_vn_kick(vn);
}

/* One read a wake-up: who waits for what it brought goes on before we look for more. */
static void on_readable(struct ag_server *srv)
{
	ssize_t n, r = rf_rx_read(&srv->rx, srv->fd);
	void *frame;

	if (r == -EAGAIN)
		return;
	if (r <= 0) {
		if (r == -EPROTO)
			ag_server_garbage(srv, "what is no frame");
		else
			broken(srv, r ? (int)r : -ECONNRESET,
			       r ? strerror((int)-r) : "the server closed the connection");
		return;
	}
	ag_count(srv->ag, RF_R_WIRE_RECEIVED, (uint64_t)r);
	while (!srv->broken && (n = rf_rx_next(&srv->rx, &frame)) != 0) {
		if (n < 0) {
			ag_server_garbage(srv, "what is no frame");
			return;
		}
		dispatch(srv, frame, (size_t)n, false, false);
	}
}

static void on_server(void *arg, int events)
{
	struct ag_server *srv = arg;

	if (events & UV_WRITABLE)
		flush_tx(srv);
	if (events & ~UV_WRITABLE)
		on_readable(srv);
}

void ag_server_garbage(struct ag_server *srv, const char *what)
{
	char why[128];

	if (srv->broken)
		return;
	ag_count(srv->ag, RF_R_GARBAGE, 1);
	snprintf(why, sizeof(why), "the server sent %s", what);
	ag_log("%s: %s; the connection is closed", srv->addr, why);
	broken(srv, -EPROTO, why);
}

/* ---- up and down ---- */

static bool wanted(struct ag_server *srv)
{
	struct ag_vnode *vn;

	if (ag_req_wants(srv))
		return true;
	ag_for_each (vn, &srv->vnodes, by_server)
		if (!ag_list_empty(&vn->reqs) || ag_vn_unclean(vn) || vn->want_valid ||
		    ag_vn_mapped(vn))
			return true;
	return false;
}

static void later(struct ag_server *srv)
{
	if (!wanted(srv)) {
		uv_timer_stop(&srv->timer);
		return;
	}
	srv->retrying = true;
	schedule(srv, srv->backoff);
	srv->backoff = ag_min(2 * srv->backoff, BACKOFF_MAX);
}

static void attempt(struct ag_server *srv)
{
	struct rf_msg m = {.body.type = RF_HELLO};
	rf_hello *h = &m.body.rf_body_u.hello;
	const struct rf_transport *tr;
	const char *rest;
	char host[RF_MAX_NAME + 1], name[128] = "?";
	struct ag_call *c;
	int fd;

	srv->retrying = false;
	srv->tried_at = ag_now();
	if (!srv->down_at)
		srv->down_at = time(NULL);
	if (srv->stripping || !ag_list_empty(&srv->unstripped))
		return; /* attempt_stripped comes back here */
	tr = rf_transport_find(srv->addr, &rest);
	fd = tr ? tr->connect(rest) : -EPROTONOSUPPORT;
	if (fd >= 0)
		srv->io = ag_io_add(srv->ag, fd, UV_READABLE, on_server, srv);
	if (fd >= 0 && !srv->io) {
		close(fd);
		fd = -ENOMEM;
	}
	if (fd < 0) {
		srv->err = fd;
		snprintf(srv->why, sizeof(srv->why), "%s",
			 tr ? strerror(-fd) : "no such kind of address (unix:PATH is known)");
		ag_server_kick(srv);
		later(srv);
		return;
	}
	srv->fd = fd;
	srv->conn++;
	srv->shown = 0;
	srv->state = AG_HELLO;
	srv->err = 0;
	schedule(srv, HELLO_WAIT);
	gethostname(name, sizeof(name) - 1);
	snprintf(host, sizeof(host), "%s uid %u pid %d", name, (unsigned)getuid(), (int)getpid());
	h->proto = RF_PROTO_VERSION;
	memcpy(h->client, srv->ag->client, sizeof(srv->ag->client));
	h->host = host;
	c = ag_alloc(sizeof(*c));
	c->srv = srv;
	c->reply = on_hello;
	ag_list_init(&c->by_vn);
	call(srv, c, &m, NULL, 0);
}

static void on_timer(uv_timer_t *h)
{
	struct ag_server *srv = h->data;
	struct ag *ag = srv->ag;

	switch (srv->state) {
	case AG_DOWN:
		srv->retrying = false;
		if (wanted(srv))
			attempt(srv);
		ag_server_kick(srv); /* some may have waited long enough */
		break;
	case AG_HELLO:
		broken(srv, -ETIMEDOUT, "no answer to HELLO");
		break;
	case AG_UP:
		ping(srv);
		schedule(srv, srv->lease / AG_MS / 3);
		break;
	}
	ag_settle(ag);
}

void ag_server_lost(struct ag_server *srv)
{
	struct ag_volume *vol;
	struct ag_call *c;
	struct tx *tx;
	bool was_up = srv->state == AG_UP;

	srv->broken = false;
	ag_io_del(srv->io);
	srv->io = NULL;
	close(srv->fd);
	srv->fd = -1;
	srv->state = AG_DOWN;
	if (!srv->down_at)
		srv->down_at = time(NULL);
	srv->conn++;
	rf_rx_free(&srv->rx);
	rf_rx_init(&srv->rx);
	ag_for_each (tx, &srv->tx, link) {
		ag_list_del(&tx->link);
		free(tx);
	}
	ag_for_each (vol, &srv->volumes, link)
		vol->ready = vol->asked = false;
	if (was_up) {
		ag_log("%s: connection lost: %s", srv->addr, srv->why);
		ag_server_mass_break(srv, true);
	}
	/* Who is told may not make new calls: the server is down. */
	ag_for_each (c, &srv->calls, link) {
		ag_list_del(&c->link);
		c->reply(c, NULL, NULL, 0);
		ag_list_del(&c->by_vn);
		free(c);
	}
	ag_server_kick(srv);
	later(srv);
}

static void attempt_stripped(struct ag_server *srv)
{
	if (!srv->stripping && ag_list_empty(&srv->unstripped) && srv->state == AG_DOWN &&
	    !srv->retrying && wanted(srv))
		attempt(srv);
}
