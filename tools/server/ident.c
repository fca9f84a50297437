/* SPDX-License-Identifier: MIT */
/*
 * ident.c - who a request is made for: the peer as the kernel vouches for it, or a key that it has
 * shown.
 *
 * A client names its identities by handles, which it shows on each connection.  They are kept with
 * the client: a key that is shown again under its handle is the same identity as before, and
 * files that were found under it stay found.  A handle that means somebody else has found nothing.
 *
 * What rights an identity has is asked when a request is carried out.  The rights of a key are made
 * out once per load of the directory, and are the same store_cred as long as they are the same
 * rights: engines keep things by its serial.
 *
 * Locks: none (loop thread).
 */
#include "ident.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "promise.h"

static struct srv_ident *ident_new(struct srv_client *client, unsigned handle,
				   struct store_cred *peer)
{
	struct srv_ident *id = srv_alloc(sizeof(*id));

	id->refs = 1;
	id->client = client;
	id->handle = handle;
	id->loads = UINT64_MAX;
	id->peer = store_cred_get(peer);
	id->expires = SRV_NEVER;
	return id;
}

static struct srv_ident *ident_get(struct srv_ident *id)
{
	id->refs++;
	return id;
}

void srv_ident_put(struct srv_ident *id)
{
	if (!id || --id->refs)
		return;
	store_cred_put(id->peer);
	store_cred_put(id->cred);
	free(id->name);
	explicit_bzero(&id->secret, sizeof(id->secret));
	free(id);
}

static bool same_rights(const struct store_cred *a, const struct store_cred *b)
{
	return a->uid == b->uid && a->gid == b->gid && a->ngroups == b->ngroups &&
	       !memcmp(a->groups, b->groups, a->ngroups * sizeof(*a->groups));
}

/* ---- handles ---- */

/* What was found under this handle was found by somebody else. */
static void found_nothing(const struct srv_ident *id)
{
	struct srv_holder *h;

	LIST_FOREACH(h, &id->client->holders, in_client)
	h->found &= ~((uint64_t)1 << id->handle);
}

static void handle_set(struct srv_ident *id)
{
	struct srv_ident **at = &id->client->ident[id->handle];

	found_nothing(id);
	srv_ident_put(*at);
	*at = id;
}

void srv_ident_peer(struct srv_client *client, struct store_cred *peer)
{
	struct srv_ident *was = client->ident[0];

	if (!was || !same_rights(was->peer, peer))
		handle_set(ident_new(client, 0, peer));
}

void srv_ident_show(struct srv_conn *conn, const rf_key *key)
{
	struct srv_client *client = conn->client;
	struct srv_ident *id, *was;

	if (!key->handle || key->handle >= RF_MAX_KEYS) {
		srv_garbage(conn, "showed a key under a number that is none; connection closed");
		return;
	}
	conn->shown |= (uint64_t)1 << key->handle;
	was = client->ident[key->handle];
	id = ident_new(client, key->handle, conn->cred);
	id->name = srv_alloc(strlen(key->name) + 1);
	memcpy(id->name, key->name, strlen(key->name));
	srv_secret_set(&id->secret, key->secret.secret_val, key->secret.secret_len);
	if (was && !strcmp(was->name, id->name) && srv_secret_same(&was->secret, &id->secret) &&
	    same_rights(was->peer, id->peer))
		srv_ident_put(id);
	else
		handle_set(id);
}

struct srv_ident *srv_ident_of(struct srv_conn *conn, uint32_t handle)
{
	if (handle >= RF_MAX_KEYS || !(conn->shown >> handle & 1))
		return NULL;
	return ident_get(conn->client->ident[handle]);
}

void srv_idents_free(struct srv_client *client)
{
	unsigned i;

	for (i = 0; i < RF_MAX_KEYS; i++)
		srv_ident_put(client->ident[i]);
}

/* ---- rights ---- */

/* Groups: with another uid or gid than the peer's, its other groups would be nobody's. */
static struct store_cred *cred_for(const struct srv_rights *r, const struct store_cred *peer)
{
	bool other = r->has_uid || r->has_gid;
	const gid_t *groups = r->has_groups ? r->groups : peer->groups;
	size_t n = r->has_groups ? r->ngroups : other ? 0 : peer->ngroups;

	return store_cred_new(r->has_uid ? r->uid : peer->uid, r->has_gid ? r->gid : peer->gid,
			      groups, n);
}

/* Without root there is nobody to act for but the server's own user. */
static bool can_act(const struct store_cred *cred, const struct store_cred *peer)
{
	return store_cred_any() || same_rights(cred, peer) ||
	       (cred->uid == geteuid() && cred->gid == getegid() && !cred->ngroups);
}

static void learn(struct srv_ident *id)
{
	struct srv *srv = id->client->srv;
	const struct srv_key *key = srv_key_find(&srv->keys, id->name);
	const struct srv_rights *r = key ? &key->rights : NULL;
	struct store_cred *cred;

	id->loads = srv->keys.loads;
	id->expires = SRV_NEVER;
	id->err = 0;
	if (!r || (r->secret.len && !srv_secret_same(&r->secret, &id->secret)))
		id->err = -EKEYREJECTED;
	else if (r->revoked)
		id->err = -EKEYREVOKED;
	if (id->err)
		return;
	id->expires = r->expires;
	cred = cred_for(r, id->peer);
	if (!cred) {
		id->err = -ENOMEM;
	} else if (!can_act(cred, id->peer)) {
		id->err = -EKEYREJECTED;
		store_cred_put(cred);
	} else if (id->cred && same_rights(id->cred, cred)) {
		store_cred_put(cred);
	} else {
		if (id->client->ident[id->handle] == id)
			found_nothing(id);
		store_cred_put(id->cred);
		id->cred = cred;
	}
}

bool srv_in_time(int64_t until)
{
	struct timespec now;

	if (until == SRV_NEVER)
		return true;
	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec < until;
}

int srv_ident_cred(struct srv_ident *id, struct store_cred **cred)
{
	*cred = NULL;
	if (!id)
		return -EKEYREJECTED;
	if (!id->name) {
		*cred = store_cred_get(id->peer);
		return 0;
	}
	if (id->loads != id->client->srv->keys.loads || id->err == -ENOMEM)
		learn(id);
	if (id->err)
		return id->err;
	if (!srv_in_time(id->expires))
		return -EKEYEXPIRED;
	*cred = store_cred_get(id->cred);
	return 0;
}
