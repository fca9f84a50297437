/* SPDX-License-Identifier: MIT */
/* conn.h - a connection: frames in, frames out.  Source: conn.c. */
#ifndef SRV_CONN_H
#define SRV_CONN_H

#include "srv.h"

/* Bytes on their way out. */
struct srv_out {
	STAILQ_ENTRY(srv_out) link;
	size_t cap, len, off; /* off: sent already */
	unsigned char data[];
};

struct srv_conn {
	TAILQ_ENTRY(srv_conn) link;
	TAILQ_ENTRY(srv_conn) ready_link;
	struct srv *srv;
	struct srv_client *client; /* NULL before HELLO */
	struct rf_peer peer;
	struct store_cred *cred; /* the peer's */
	int fd;
	uv_poll_t poll;
	int events;
	struct rf_rx rx;
	STAILQ_HEAD(, srv_out) out;
	size_t out_bytes;
	struct srv_ops ops; /* requests that are not answered yet */
	size_t pending_bytes;
	unsigned pending;
	uint64_t volumes; /* bit set: attached */
	uint64_t shown;   /* bit set: this handle has been shown */
	bool ready, held, blocked, paused, dead;
	char host[64];
};

void srv_accept(uv_poll_t *poll, int status, int events);
/* Send what is on srv->ready, take up what was paused.  Every callback of the loop ends with it. */
void srv_flush(struct srv *srv);
void srv_kick(struct srv_conn *conn);
void srv_send(struct srv_conn *conn, struct rf_msg *msg, const void *payload, size_t len);
/*
 * The same, but not at once: with whatever is sent to that client next, at most HOLD_MS later.  For
 * APPLIED while acknowledgements are out: RELEASED mostly follows within microseconds, and the
 * client need not be woken twice, nor before the holders that everybody waits for.
 */
void srv_send_lazy(struct srv_conn *conn, struct rf_msg *msg);
struct srv_out *srv_out_new(size_t cap);
void srv_send_out(struct srv_conn *conn, struct srv_out *out);
void srv_error(struct srv_conn *conn, uint32_t xid, int err, const char *what);
/* Close, forget; requests go on without it. */
void srv_conn_drop(struct srv_conn *conn);
/* An error, and the end. */
void srv_refuse(struct srv_conn *conn, uint32_t xid, int err, const char *what);
/* The same without an answer, with one line that says why. */
void srv_garbage(struct srv_conn *conn, const char *why);

#endif
