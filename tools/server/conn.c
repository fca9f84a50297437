/* SPDX-License-Identifier: MIT */
/*
 * conn.c - connections.
 *
 * A connection is a raw descriptor under uv_poll.  Whatever a wake-up brings is handled at once;
 * what is to be sent collects on each connection and goes out in one sendmsg each when the callback
 * ends (srv_flush).
 *
 * Nobody can fill our memory: a connection with too much under way, or with answers that it does
 * not read, is not read from until that has gone; one that does not read its breaks either is
 * closed. A frame that makes no sense ends its connection with one line on stderr.
 *
 * Counters: srv->nconns.  Locks: none (loop thread).
 */
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client.h"
#include "op.h"

#define OUT_CHUNK (16u * 1024)
#define HOLD_MS 1
#define OUT_EAGER (64u * 1024) /* sent at once: the peer works on it while we read the next */
#define OUT_PAUSE (4u * 1024 * 1024)
#define OUT_MAX (16u * 1024 * 1024)
#define PENDING_OPS 256u
#define PENDING_BYTES (8u * 1024 * 1024)
#define READS 16 /* a wake-up; then others have their turn */
#define IOVS 64
#define MAX_CONNS 4096u
#define MAX_CONNS_UID 512u
#define MAX_GROUPS 65536u

void srv_log(const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	/* clang-tidy 14 goes wrong here if given several files. */
	vsnprintf(line, sizeof(line), fmt, ap); /* NOLINT(clang-analyzer-valist.Uninitialized) */
	va_end(ap);
	fprintf(stderr, "refault-server: %s\n", line);
}

static void conn_log(const struct srv_conn *conn, const char *what)
{
	srv_log("peer uid %u pid %d%s%s: %s", (unsigned)conn->peer.uid, (int)conn->peer.pid,
		conn->host[0] ? " " : "", conn->host, what);
}

/* ---- out ---- */

struct srv_out *srv_out_new(size_t cap)
{
	struct srv_out *out = malloc(sizeof(*out) + cap);

	if (out) {
		out->cap = cap;
		out->len = 0;
		out->off = 0;
	}
	return out;
}

void srv_kick(struct srv_conn *conn)
{
	if (conn->ready || conn->dead)
		return;
	conn->ready = true;
	TAILQ_INSERT_TAIL(&conn->srv->ready, conn, ready_link);
}

void srv_send_out(struct srv_conn *conn, struct srv_out *out)
{
	if (conn->dead) {
		free(out);
		return;
	}
	STAILQ_INSERT_TAIL(&conn->out, out, link);
	conn->out_bytes += out->len;
	srv_kick(conn);
}

/* More than the message can need. */
static size_t bound(const struct rf_msg *msg)
{
	size_t n = 512;

	if (msg->body.type == RF_ERROR)
		n += strlen(msg->body.rf_body_u.error.what);
	if (msg->body.type == RF_BREAK)
		n += (size_t)msg->body.rf_body_u.brk.ranges.ranges_len * 16;
	return n;
}

static void put(struct srv_conn *conn, struct rf_msg *msg, const void *payload, size_t len)
{
	struct srv_out *out;
	size_t need;
	ssize_t n;

	if (conn->dead)
		return;
	need = bound(msg) + len;
	out = STAILQ_LAST(&conn->out, srv_out, link);
	if (!out || out->cap - out->len < need) {
		out = srv_out_new(need > OUT_CHUNK ? need : OUT_CHUNK);
		if (!out) {
			srv_garbage(conn, "out of memory for an answer");
			return;
		}
		STAILQ_INSERT_TAIL(&conn->out, out, link);
	}
	n = rf_wire_encode(out->data + out->len, out->cap - out->len - len, msg, len);
	if (n < 0) {
		srv_garbage(conn, "an answer did not fit a frame");
		return;
	}
	out->len += (size_t)n;
	if (len)
		memcpy(out->data + out->len, payload, len);
	out->len += len;
	conn->out_bytes += (size_t)n + len;
}

void srv_send(struct srv_conn *conn, struct rf_msg *msg, const void *payload, size_t len)
{
	put(conn, msg, payload, len);
	srv_kick(conn);
}

static void on_hold(uv_timer_t *timer)
{
	struct srv *srv = timer->data;
	struct srv_conn *conn;

	TAILQ_FOREACH(conn, &srv->conns, link)
	if (conn->held)
		srv_kick(conn);
	srv_flush(srv);
}

void srv_send_lazy(struct srv_conn *conn, struct rf_msg *msg)
{
	struct srv *srv = conn->srv;

	put(conn, msg, NULL, 0);
	if (conn->dead || conn->ready || conn->held)
		return;
	conn->held = true;
	if (!srv->nheld++)
		uv_timer_start(&srv->hold, on_hold, HOLD_MS, 0);
}

/* It is sent, or never will be. */
static void unhold(struct srv_conn *conn)
{
	if (!conn->held)
		return;
	conn->held = false;
	if (!--conn->srv->nheld)
		uv_timer_stop(&conn->srv->hold);
}

void srv_error(struct srv_conn *conn, uint32_t xid, int err, const char *what)
{
	char text[RF_MAX_NAME + 1];
	struct rf_msg msg = {.xid = xid, .body.type = RF_ERROR};

	snprintf(text, sizeof(text), "%s", what);
	msg.body.rf_body_u.error.err = (u_int)(err < 0 ? -err : err);
	msg.body.rf_body_u.error.what = text;
	srv_send(conn, &msg, NULL, 0);
}

static void on_io(uv_poll_t *poll, int status, int events);

static void poll_for(struct srv_conn *conn)
{
	int events = (conn->paused ? 0 : UV_READABLE) | (conn->blocked ? UV_WRITABLE : 0);

	if (events == conn->events)
		return;
	conn->events = events;
	if (events)
		uv_poll_start(&conn->poll, events, on_io);
	else
		uv_poll_stop(&conn->poll);
}

/* Send what the socket takes. */
static void conn_write(struct srv_conn *conn)
{
	struct iovec iov[IOVS];
	struct msghdr mh = {.msg_iov = iov};
	struct srv_out *out;
	ssize_t n;
	size_t want;

	unhold(conn);
	while (!STAILQ_EMPTY(&conn->out)) {
		mh.msg_iovlen = 0;
		want = 0;
		STAILQ_FOREACH(out, &conn->out, link)
		{
			iov[mh.msg_iovlen].iov_base = out->data + out->off;
			iov[mh.msg_iovlen].iov_len = out->len - out->off;
			want += out->len - out->off;
			if (++mh.msg_iovlen == IOVS)
				break;
		}
		n = sendmsg(conn->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == ENOBUFS))
			break;
		if (n < 0) {
			srv_conn_drop(conn);
			return;
		}
		want -= (size_t)n;
		conn->out_bytes -= (size_t)n;
		while (n > 0) {
			out = STAILQ_FIRST(&conn->out);
			if ((size_t)n < out->len - out->off) {
				out->off += (size_t)n;
				break;
			}
			n -= (ssize_t)(out->len - out->off);
			STAILQ_REMOVE_HEAD(&conn->out, link);
			free(out);
		}
		if (want)
			break;
	}
	conn->blocked = !STAILQ_EMPTY(&conn->out);
	if (conn->blocked && conn->out_bytes > OUT_MAX) {
		srv_garbage(conn, "does not read what it is sent");
		return;
	}
	poll_for(conn);
}

/* ---- in ---- */

static bool busy(const struct srv_conn *conn)
{
	return conn->out_bytes > OUT_PAUSE || conn->pending > PENDING_OPS ||
	       conn->pending_bytes > PENDING_BYTES;
}

static void conn_message(struct srv_conn *conn, struct rf_msg *msg, void *payload, size_t len)
{
	if (conn->client) {
		srv_renew(conn->client);
		srv_request(conn, msg, payload, len);
		return;
	}
	if (msg->body.type != RF_HELLO)
		srv_refuse(conn, msg->xid, EPROTO, "the first call must be HELLO");
	else if (len)
		srv_garbage(conn, "HELLO with a payload");
	else
		srv_hello(conn, msg->xid, &msg->body.rf_body_u.hello);
	rf_wire_free(msg);
}

static void conn_frames(struct srv_conn *conn)
{
	void *frame, *payload;
	struct rf_msg msg;
	ssize_t n;
	size_t len;

	for (;;) {
		if (conn->dead)
			return;
		conn->paused = busy(conn);
		if (conn->paused)
			break;
		n = rf_rx_next(&conn->rx, &frame);
		if (n == 0)
			break;
		if (n < 0 || rf_wire_decode(frame, (size_t)n, &msg, &payload, &len)) {
			srv_garbage(conn, "sent a frame that is none; connection closed");
			return;
		}
		conn_message(conn, &msg, payload, len);
		if (conn->out_bytes >= OUT_EAGER && !conn->blocked && !conn->dead)
			conn_write(conn);
	}
	poll_for(conn);
}

static void conn_read(struct srv_conn *conn)
{
	ssize_t n;
	int i;

	for (i = 0; i < READS && !conn->dead && !conn->paused; i++) {
		n = rf_rx_read(&conn->rx, conn->fd);
		if (n == -EAGAIN)
			return;
		if (n == -EPROTO) {
			srv_garbage(conn, "sent a frame that is none; connection closed");
			return;
		}
		if (n <= 0) {
			if (conn->srv->verbose)
				conn_log(conn, n ? strerror((int)-n) : "closed its connection");
			srv_conn_drop(conn);
			return;
		}
		conn_frames(conn);
		if (conn->rx.end < conn->rx.cap)
			return;
	}
}

void srv_flush(struct srv *srv)
{
	struct srv_conn *conn;

	while ((conn = TAILQ_FIRST(&srv->ready))) {
		TAILQ_REMOVE(&srv->ready, conn, ready_link);
		conn->ready = false;
		conn_write(conn);
		if (!conn->dead && conn->paused && !busy(conn))
			conn_frames(conn);
	}
}

static void on_io(uv_poll_t *poll, int status, int events)
{
	struct srv_conn *conn = poll->data;
	struct srv *srv = conn->srv;

	if (status < 0) {
		srv_conn_drop(conn);
	} else {
		if (events & UV_WRITABLE)
			srv_kick(conn);
		if (events & UV_READABLE)
			conn_read(conn);
	}
	srv_flush(srv);
}

/* ---- come and go ---- */

static void on_closed(uv_handle_t *handle)
{
	struct srv_conn *conn = handle->data;

	close(conn->fd);
	/* Not before: the request that is being handled may lie in the receive buffer. */
	rf_rx_free(&conn->rx);
	store_cred_put(conn->cred);
	free(conn);
}

void srv_conn_drop(struct srv_conn *conn)
{
	struct srv *srv = conn->srv;
	struct srv_client *client = conn->client;
	struct srv_out *out;
	struct srv_op *op;

	if (conn->dead)
		return;
	unhold(conn);
	conn->dead = true;
	TAILQ_REMOVE(&srv->conns, conn, link);
	srv->nconns--;
	if (conn->ready)
		TAILQ_REMOVE(&srv->ready, conn, ready_link);
	while ((op = TAILQ_FIRST(&conn->ops))) {
		TAILQ_REMOVE(&conn->ops, op, in_conn);
		op->conn = NULL;
	}
	while ((out = STAILQ_FIRST(&conn->out))) {
		STAILQ_REMOVE_HEAD(&conn->out, link);
		free(out);
	}
	if (client && client->conn == conn)
		srv_client_away(client);
	/* The peer learns it now, not when the loop comes round. */
	shutdown(conn->fd, SHUT_RDWR);
	uv_close((uv_handle_t *)&conn->poll, on_closed);
}

void srv_garbage(struct srv_conn *conn, const char *why)
{
	if (conn->dead)
		return;
	conn_log(conn, why);
	srv_conn_drop(conn);
}

void srv_refuse(struct srv_conn *conn, uint32_t xid, int err, const char *what)
{
	if (conn->dead)
		return;
	srv_error(conn, xid, err, what);
	conn_write(conn);
	srv_garbage(conn, what);
}

static struct store_cred *peer_cred(struct srv *srv, int fd, const struct rf_peer *peer)
{
	struct store_cred *cred;
	gid_t small[64], *groups = small;
	ssize_t n = srv->transport->groups(fd, small, 64);

	if (n > 64) {
		groups = calloc((size_t)n, sizeof(*groups));
		if (!groups || n > (ssize_t)MAX_GROUPS)
			n = -ENOMEM;
		else
			n = srv->transport->groups(fd, groups, (size_t)n);
	}
	cred = n < 0 ? NULL : store_cred_new(peer->uid, peer->gid, groups, (size_t)n);
	if (groups != small)
		free(groups);
	return cred;
}

static unsigned conns_of(const struct srv *srv, uid_t uid)
{
	struct srv_conn *conn;
	unsigned n = 0;

	TAILQ_FOREACH(conn, &srv->conns, link)
	n += conn->peer.uid == uid;
	return n;
}

static void conn_new(struct srv *srv, int fd, const struct rf_peer *peer)
{
	struct srv_conn *conn;
	struct store_cred *cred;

	if (srv->nconns >= MAX_CONNS || conns_of(srv, peer->uid) >= MAX_CONNS_UID) {
		srv_log("uid %u has too many connections; one more refused", (unsigned)peer->uid);
		close(fd);
		return;
	}
	cred = peer_cred(srv, fd, peer);
	if (!cred) {
		srv_log("uid %u: its groups cannot be learned; refused", (unsigned)peer->uid);
		close(fd);
		return;
	}
	conn = srv_alloc(sizeof(*conn));
	conn->srv = srv;
	conn->fd = fd;
	conn->peer = *peer;
	conn->cred = cred;
	rf_rx_init(&conn->rx);
	STAILQ_INIT(&conn->out);
	TAILQ_INIT(&conn->ops);
	if (uv_poll_init(&srv->loop, &conn->poll, fd)) {
		srv_log("cannot watch a connection; refused");
		store_cred_put(cred);
		close(fd);
		free(conn);
		return;
	}
	conn->poll.data = conn;
	TAILQ_INSERT_TAIL(&srv->conns, conn, link);
	srv->nconns++;
	if (srv->verbose)
		conn_log(conn, "connected");
	poll_for(conn);
}

void srv_accept(uv_poll_t *poll, int status, int events)
{
	struct srv *srv = poll->data;
	struct rf_peer peer;
	int fd;

	(void)events;
	if (status < 0)
		return;
	for (;;) {
		fd = srv->transport->accept(srv->lfd, &peer);
		if (fd >= 0) {
			conn_new(srv, fd, &peer);
			continue;
		}
		if (fd != -EMFILE && fd != -ENFILE)
			break;
		/* Let it in to turn it away; else we would wake up for it for ever. */
		srv_log("out of descriptors; a connection is refused (raise the limit: ulimit -n)");
		close(srv->spare_fd);
		fd = srv->transport->accept(srv->lfd, &peer);
		if (fd >= 0)
			close(fd);
		srv->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			break;
	}
	srv_flush(srv);
}
