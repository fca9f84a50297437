/* SPDX-License-Identifier: MIT */
/*
 * key.c - identities towards servers.
 *
 * A key gets the lowest free number of the host when a file is first opened under it, and keeps it:
 * page words, requests, open files and changes under way name it.  Only when all numbers are taken
 * is it looked which of them nobody names any more, and these are forgotten.  A server is shown a
 * key right before the first call under it on each connection.
 *
 * Secrets are in the memory of agent and supervisor, and on the way to servers; never in a log.
 *
 * Counters: none.
 * Locks: none.
 */
#include "key.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keep.h"
#include "op.h"
#include "req.h"
#include "server.h"
#include "vnode.h"

struct ag_key {
	char *name;
	size_t secret_len;
	unsigned char secret[RF_MAX_SECRET];
};

_Static_assert(RF_KEYS == RF_MAX_KEYS, "a key's number is its handle");
_Static_assert(RF_KEYS == 64, "sets of keys are 64 bits");

/* ---- which are in use ---- */

static uint64_t used_by_pages(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, UINT64_MAX);
	uint64_t page, used = 0;

	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (ag_w_owns_twin(w))
			used |= AG_KEY_BIT(rf_w_key(w));
	}
	return used;
}

static uint64_t used_by_vnode(struct ag_vnode *vn)
{
	uint64_t used = used_by_pages(vn);
	struct ag_req *req;
	struct ag_use *u;
	struct ag_op *op;

	ag_for_each (u, &vn->uses, by_vnode)
		used |= u->keys;
	ag_for_each (req, &vn->reqs, link)
		used |= AG_KEY_BIT(req->q.key);
	ag_for_each (op, &vn->ops, link)
		used |= AG_KEY_BIT(op->key);
	if (vn->size > vn->ssize)
		used |= AG_KEY_BIT(vn->extend_key);
	return used;
}

static uint64_t used(struct ag *ag)
{
	struct ag_req *req;
	uint64_t set = AG_KEY_BIT(0);

	ag_for_each (req, &ag->opens, link)
		set |= AG_KEY_BIT(req->q.key);
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id])
			set |= used_by_vnode(ag->vnode[id]);
	return set;
}

/* ---- made and forgotten ---- */

static void wipe(struct ag_key *k)
{
	explicit_bzero(k->secret, sizeof(k->secret));
	free(k->name);
	free(k);
}

static struct ag_key *key_new(const char *name, size_t name_len, const void *secret,
			      size_t secret_len)
{
	struct ag_key *k = ag_alloc(sizeof(*k));

	k->name = ag_alloc(name_len + 1);
	memcpy(k->name, name, name_len);
	memcpy(k->secret, secret, secret_len);
	k->secret_len = secret_len;
	return k;
}

/* The number means nothing from now on; the next key that gets it is shown to all servers anew. */
static void forget(struct ag *ag, uint32_t key)
{
	struct ag_server *srv;

	wipe(ag->key[key]);
	ag->key[key] = NULL;
	ag_keep_del(ag->keep, AG_KEEP_KEY, key);
	ag_for_each (srv, &ag->servers, link)
		srv->shown &= ~AG_KEY_BIT(key);
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id] && ag->vnode[id]->key == key)
			ag->vnode[id]->key = 0;
}

/* The lowest number that no key has; 0: none. */
static uint32_t free_number(const struct ag *ag)
{
	for (uint32_t key = 1; key < RF_KEYS; key++)
		if (!ag->key[key])
			return key;
	return 0;
}

static void forget_unused(struct ag *ag)
{
	const uint64_t set = used(ag);

	for (uint32_t key = 1; key < RF_KEYS; key++)
		if (ag->key[key] && !(set & AG_KEY_BIT(key)))
			forget(ag, key);
}

/* A name is a word that can be printed. */
static bool sound(const char *name, size_t name_len, size_t secret_len)
{
	if (!name_len || name_len > RF_MAX_NAME || !secret_len || secret_len > RF_MAX_SECRET)
		return false;
	for (size_t i = 0; i < name_len; i++)
		if ((unsigned char)name[i] <= ' ' || name[i] == 0x7f)
			return false;
	return true;
}

static void keep(struct ag *ag, uint32_t key)
{
	struct ag_key *k = ag->key[key];
	unsigned char meta[sizeof(struct ag_keep_key) + RF_MAX_NAME + RF_MAX_SECRET];
	struct ag_keep_key h = {.name_len = (uint16_t)strlen(k->name),
				.secret_len = (uint16_t)k->secret_len};

	memcpy(meta, &h, sizeof(h));
	memcpy(meta + sizeof(h), k->name, h.name_len);
	memcpy(meta + sizeof(h) + h.name_len, k->secret, h.secret_len);
	ag_keep_put(ag->keep, AG_KEEP_KEY, key, NULL, 0, meta,
		    (uint32_t)sizeof(h) + h.name_len + h.secret_len);
	explicit_bzero(meta, sizeof(meta));
}

static bool equal(const struct ag_key *k, const char *name, size_t name_len, const void *secret,
		  size_t secret_len)
{
	return strlen(k->name) == name_len && !memcmp(k->name, name, name_len) &&
	       k->secret_len == secret_len && !memcmp(k->secret, secret, secret_len);
}

int ag_key_get(struct ag *ag, const char *name, size_t name_len, const void *secret,
	       size_t secret_len)
{
	uint32_t key;

	if (!sound(name, name_len, secret_len))
		return -EINVAL;
	for (key = 1; key < RF_KEYS; key++)
		if (ag->key[key] && equal(ag->key[key], name, name_len, secret, secret_len))
			return (int)key;
	key = free_number(ag);
	if (!key) {
		forget_unused(ag);
		key = free_number(ag);
	}
	if (!key)
		return -ENFILE;
	ag->key[key] = key_new(name, name_len, secret, secret_len);
	keep(ag, key);
	return (int)key;
}

int ag_key_adopt(struct ag *ag, const struct ag_keep *k)
{
	struct ag_keep_key h;
	const char *name;

	if (k->len < sizeof(h) || !k->id || k->id >= RF_KEYS || ag->key[k->id])
		return -EPROTO;
	memcpy(&h, k->meta, sizeof(h));
	if (k->len != sizeof(h) + h.name_len + h.secret_len)
		return -EPROTO;
	name = (const char *)k->meta + sizeof(h);
	if (!sound(name, h.name_len, h.secret_len))
		return -EPROTO;
	ag->key[k->id] = key_new(name, h.name_len, name + h.name_len, h.secret_len);
	return 0;
}

/* ---- named and shown ---- */

const char *ag_key_name(const struct ag *ag, uint32_t key)
{
	static char uid[24];

	if (key)
		return key < RF_KEYS && ag->key[key] ? ag->key[key]->name : "?";
	snprintf(uid, sizeof(uid), "uid %u", (unsigned)geteuid());
	return uid;
}

uint32_t ag_key_check(const struct ag *ag, uint32_t key)
{
	return key < RF_KEYS && ag->key[key] ? key : 0;
}

uint32_t ag_key_show(struct ag_server *srv, uint32_t key)
{
	struct rf_msg m = {.body.type = RF_KEY};
	struct ag_key *k = key < RF_KEYS ? srv->ag->key[key] : NULL;
	rf_key *show = &m.body.rf_body_u.key;

	/* The server refuses a number that it was not shown. */
	if (!k || (srv->shown & AG_KEY_BIT(key)))
		return key;
	show->handle = key;
	show->name = k->name;
	show->secret.secret_len = (u_int)k->secret_len;
	show->secret.secret_val = (char *)k->secret;
	ag_server_send(srv, &m);
	srv->shown |= AG_KEY_BIT(key);
	return key;
}

rf_file ag_key_file(struct ag_vnode *vn, uint32_t key)
{
	return (rf_file){.volume = vn->vol->handle,
			 .key = ag_key_show(vn->vol->srv, key),
			 .fid = vn->fid,
			 .path = vn->path,
			 .nameless = atomic_load(&vn->st->nameless)};
}
