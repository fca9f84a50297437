/* SPDX-License-Identifier: MIT */
/* client.h - a client: an agent, over all its connections.  Source: client.c. */
#ifndef SRV_CLIENT_H
#define SRV_CLIENT_H

#include "conn.h"
#include "ident.h"
#include "state.h"

/* The last requests that changed something, and what they were told. */
struct srv_memo {
	unsigned next, n;
	uint64_t id[SRV_MEMO];
	struct srv_memo_entry {
		rf_applied applied;
		int sync_err;
		bool before; /* the server was restarted since: of the status the fid only */
	} entry[SRV_MEMO];
};

struct srv_client {
	TAILQ_ENTRY(srv_client) link;
	struct srv *srv;
	uid_t uid; /* the same id from another user is another client */
	char id[16];
	struct srv_ident *ident[RF_MAX_KEYS]; /* by handle; NULL: never shown */
	struct srv_conn *conn;                /* NULL: away */
	uint64_t lease_end; /* ms: from then on its promises are nothing that anybody waits for */
	uint64_t away_since;
	unsigned nops;          /* requests under way, also of lost connections */
	struct srv_ops changes; /* those of them that change something */
	LIST_HEAD(, srv_holder) holders;
	TAILQ_HEAD(srv_brks, srv_brk) brks; /* breaks that it has not acknowledged, by id */
	TAILQ_HEAD(, srv_wait) waits;       /* its changes that are applied and not released */
	uint64_t last_brk;
	unsigned nbrks, nwaits;
	struct srv_memo *memo;
	struct srv_row *row; /* what outlives the server */
	bool ghost; /* of before a restart, not heard of since: may hold promises of then */
};

/* NULL: refused, the peer has been told. */
struct srv_client *srv_hello(struct srv_conn *conn, uint32_t xid, const rf_hello *hello);
/* A frame came in. */
void srv_renew(struct srv_client *client);
bool srv_lease_over(const struct srv_client *client);
/* The connection is gone; its promises last until the lease is over. */
void srv_client_away(struct srv_client *client);
/* Housekeeping: forget clients that are long gone.  Whether there is any client left. */
bool srv_clients_reap(struct srv *srv, bool all);

struct srv_memo_entry *srv_memo_find(struct srv_client *client, uint64_t request);
/* The request is done from now on, whatever becomes of the server. */
void srv_memo_add(struct srv_client *client, uint64_t request, const rf_applied *applied);

/* After a restart: a client of before, and what it had asked for. */
struct srv_client *srv_client_back(struct srv *srv, struct srv_row *row, uid_t uid,
				   const char id[16], uint64_t lease_end);
void srv_memo_back(struct srv_client *client, uint64_t request, const rf_fid *fid, uint64_t off);

#endif
