/* SPDX-License-Identifier: MIT */
/* ident.h - who a request is made for.  Source: ident.c. */
#ifndef SRV_IDENT_H
#define SRV_IDENT_H

#include "key.h"

struct srv_client;
struct srv_conn;

/* The peer itself, or a key that it has shown. */
struct srv_ident {
	unsigned refs; /* the client's handle, requests under way */
	struct srv_client *client;
	unsigned handle;
	struct store_cred *peer;
	char *name; /* NULL: the peer itself */
	struct srv_secret secret;

	/* What the key directory said when it had been loaded so often. */
	uint64_t loads;
	int err;
	int64_t expires;
	struct store_cred *cred; /* if err is 0 */
};

/* The client has a connection: handle 0 is its peer. */
void srv_ident_peer(struct srv_client *client, struct store_cred *peer);
/* RF_KEY. */
void srv_ident_show(struct srv_conn *conn, const rf_key *key);
/* What a handle means on this connection, one reference more; NULL: it was never shown. */
struct srv_ident *srv_ident_of(struct srv_conn *conn, uint32_t handle);
void srv_ident_put(struct srv_ident *ident);
/* All of the client's. */
void srv_idents_free(struct srv_client *client);

/* The rights it has now: 0 and *cred is one reference more, or -EKEY... */
int srv_ident_cred(struct srv_ident *ident, struct store_cred **cred);
/* Whether that moment (seconds since the epoch) is still to come. */
bool srv_in_time(int64_t until);

#endif
