/* SPDX-License-Identifier: MIT */
/*
 * client.c - who is who: clients outlive their connections.
 *
 * A client is an agent's id and its user.  Its lease runs from its last frame; when it ends nobody
 * waits for the client any more, whether its connection is there or not.  What it asked for and was
 * told is remembered, so that after a lost connection it can ask again without doing it twice.
 *
 * After a restart the clients of before are there again, without connections; those whose leases
 * last are ghosts until they come back: every change waits for them, whatever the file.
 *
 * Locks: none (loop thread).
 */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "op.h"

#define AWAY_MS (10u * 60 * 1000) /* how long requests are remembered for a client that is away */
#define MAX_CLIENTS_UID 256u
#define CLOCK_SLACK_MS 50u /* clocks do not run alike */

/* When a lease is over here: a host strips when it is over there, which takes a busy one a moment. */
static uint64_t with_slack(uint64_t lease_ms)
{
	return lease_ms + lease_ms / 8 + CLOCK_SLACK_MS;
}

static struct srv_client *client_find(struct srv *srv, uid_t uid, const char id[16], unsigned *nuid)
{
	struct srv_client *c;

	*nuid = 0;
	TAILQ_FOREACH(c, &srv->clients, link)
	{
		if (c->uid != uid)
			continue;
		++*nuid;
		if (!memcmp(c->id, id, sizeof(c->id)))
			return c;
	}
	return NULL;
}

void srv_renew(struct srv_client *client)
{
	client->lease_end = srv_now() + with_slack(client->srv->lease_ms);
	srv_row_lease(client->row, client->lease_end);
}

bool srv_lease_over(const struct srv_client *client)
{
	return srv_now() >= client->lease_end;
}

static void copy_host(struct srv_conn *conn, const char *host)
{
	size_t i;

	snprintf(conn->host, sizeof(conn->host), "%s", host);
	for (i = 0; conn->host[i]; i++)
		if (conn->host[i] < ' ' || conn->host[i] > '~')
			conn->host[i] = '?';
}

static struct srv_client *client_new(struct srv *srv, struct srv_row *row, uid_t uid,
				     const char id[16])
{
	struct srv_client *client = srv_alloc(sizeof(*client));

	client->srv = srv;
	client->row = row;
	client->uid = uid;
	memcpy(client->id, id, sizeof(client->id));
	LIST_INIT(&client->holders);
	TAILQ_INIT(&client->brks);
	TAILQ_INIT(&client->waits);
	TAILQ_INIT(&client->changes);
	TAILQ_INSERT_TAIL(&srv->clients, client, link);
	return client;
}

static void unghost(struct srv_client *client)
{
	client->srv->nghosts -= client->ghost;
	client->ghost = false;
}

/* Its row goes, too, unless the server is ending. */
static void client_free(struct srv_client *client, bool ending)
{
	struct srv_holder *h;

	unghost(client);
	if (!ending)
		srv_row_free(client->srv, client->row);
	srv_brks_end(client);
	while ((h = LIST_FIRST(&client->holders)))
		srv_holder_drop(h);
	TAILQ_REMOVE(&client->srv->clients, client, link);
	srv_idents_free(client);
	free(client->memo);
	free(client);
}

/* Away, and nothing waits for it or will miss it within its lease. */
static bool client_idle(struct srv_client *c)
{
	return !c->conn && !c->nops && TAILQ_EMPTY(&c->waits) &&
	       ((LIST_EMPTY(&c->holders) && !c->ghost) || srv_lease_over(c));
}

/* Forget the client of this user that has been away longest. */
static bool client_evict(struct srv *srv, uid_t uid)
{
	struct srv_client *c, *oldest = NULL;

	TAILQ_FOREACH(c, &srv->clients, link)
	if (c->uid == uid && client_idle(c) && (!oldest || c->away_since < oldest->away_since))
		oldest = c;
	if (oldest)
		client_free(oldest, false);
	return oldest != NULL;
}

struct srv_client *srv_hello(struct srv_conn *conn, uint32_t xid, const rf_hello *hello)
{
	struct rf_msg msg = {.xid = xid, .body.type = RF_HELLO_R};
	rf_hello_r *r = &msg.body.rf_body_u.hello_r;
	struct srv *srv = conn->srv;
	struct srv_client *client;
	struct srv_holder *h;
	struct srv_row *row;
	unsigned nuid;
	char text[128];

	copy_host(conn, hello->host);
	if (hello->proto != RF_PROTO_VERSION) {
		snprintf(text, sizeof(text),
			 "protocol version %u asked for, %u is spoken here; update the older side",
			 hello->proto, RF_PROTO_VERSION);
		srv_refuse(conn, xid, EPROTO, text);
		return NULL;
	}
	if (!store_cred_any() && conn->peer.uid != geteuid()) {
		snprintf(text, sizeof(text),
			 "this server runs as uid %u and serves that user only (run it as root to "
			 "serve all)",
			 (unsigned)geteuid());
		srv_refuse(conn, xid, EACCES, text);
		return NULL;
	}
	client = client_find(srv, conn->peer.uid, hello->client, &nuid);
	if (!client && nuid >= MAX_CLIENTS_UID && !client_evict(srv, conn->peer.uid)) {
		srv_refuse(conn, xid, EUSERS,
			   "too many clients of this user; try again in some minutes");
		return NULL;
	}
	if (!client) {
		row = srv_row_new(srv, conn->peer.uid, hello->client);
		if (!row) {
			srv_refuse(conn, xid, EUSERS,
				   "too many clients to remember; try again in some minutes");
			return NULL;
		}
		client = client_new(srv, row, conn->peer.uid, hello->client);
	} else {
		if (client->conn)
			srv_conn_drop(client->conn);
		unghost(client);
		srv_brks_end(client);
		LIST_FOREACH(h, &client->holders, in_client)
		srv_holder_release(h);
	}
	client->conn = conn;
	conn->client = client;
	conn->shown = 1;
	srv_ident_peer(client, conn->cred);
	srv_renew(client);
	r->proto = RF_PROTO_VERSION;
	r->instance = srv->instance;
	r->lease_ms = srv->lease_ms;
	srv_send(conn, &msg, NULL, 0);
	srv_tick_start(srv);
	return client;
}

void srv_client_away(struct srv_client *client)
{
	struct srv_conn *conn = client->conn;
	struct srv_holder *h;
	struct srv_wait *w;

	client->conn = NULL;
	client->away_since = srv_now();
	/* Nobody has to wait for one that left nothing, after a restart either. */
	h = LIST_FIRST(&client->holders);
	while (h && !srv_holder_busy(h))
		h = LIST_NEXT(h, in_client);
	if (!h)
		srv_row_lease(client->row, 0);
	TAILQ_FOREACH(w, &client->waits, link)
	if (w->conn == conn)
		w->conn = NULL;
}

bool srv_clients_reap(struct srv *srv, bool all)
{
	struct srv_client *c, *next;

	if (all)
		TAILQ_FOREACH(c, &srv->clients, link)
	srv_brks_end(c);
	for (c = TAILQ_FIRST(&srv->clients); c; c = next) {
		next = TAILQ_NEXT(c, link);
		if (c->ghost && srv_lease_over(c))
			unghost(c);
		if (all || (client_idle(c) && srv_now() - c->away_since > AWAY_MS))
			client_free(c, all);
	}
	return !TAILQ_EMPTY(&srv->clients);
}

struct srv_memo_entry *srv_memo_find(struct srv_client *client, uint64_t request)
{
	struct srv_memo *m = client->memo;
	unsigned i;

	for (i = 0; m && i < m->n; i++)
		if (m->id[i] == request)
			return &m->entry[i];
	return NULL;
}

static struct srv_memo_entry *memo_next(struct srv_client *client, uint64_t request)
{
	struct srv_memo *m = client->memo;
	struct srv_memo_entry *e;

	if (!m)
		m = client->memo = srv_alloc(sizeof(*m));
	m->id[m->next] = request;
	e = &m->entry[m->next];
	memset(e, 0, sizeof(*e));
	m->next = (m->next + 1) % SRV_MEMO;
	if (m->n < SRV_MEMO)
		m->n++;
	return e;
}

void srv_memo_add(struct srv_client *client, uint64_t request, const rf_applied *applied)
{
	struct srv_memo_entry *e = memo_next(client, request);

	e->applied = *applied;
	e->applied.status.promise_ms = 0;
	srv_row_remember(client->row, request, &applied->status.fid, applied->off);
}

/* ---- after a restart ---- */

struct srv_client *srv_client_back(struct srv *srv, struct srv_row *row, uid_t uid,
				   const char id[16], uint64_t lease_end)
{
	struct srv_client *client = client_new(srv, row, uid, id);
	uint64_t now = srv_now(), most = now + with_slack(SRV_LEASE_MAX_MS);

	client->away_since = now;
	client->lease_end = lease_end < most ? lease_end : most;
	client->ghost = client->lease_end > now;
	srv->nghosts += client->ghost;
	return client;
}

void srv_memo_back(struct srv_client *client, uint64_t request, const rf_fid *fid, uint64_t off)
{
	struct srv_memo_entry *e = memo_next(client, request);

	e->applied.off = off;
	e->applied.status.fid = *fid;
	e->before = true;
}
