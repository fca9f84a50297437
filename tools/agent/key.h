/* SPDX-License-Identifier: MIT */
/*
 * key.h - identities towards servers: 0 is the user's own uid, the others are named secrets.
 *
 * A key is one number for the whole host, whatever the server: it stands in page words and in the
 * requests of programs.  Keys are kept by the supervisor, since pages dirtied under one are written
 * back long after the program is gone.  Source: key.c.
 */
#ifndef AGENT_KEY_H
#define AGENT_KEY_H

#include "ag.h"
#include "protocol.h"

struct ag_keep;
struct ag_server;
struct ag_vnode;

#define AG_KEY_ANY UINT32_MAX

/* Sets of keys. */
#define AG_KEY_BIT(key) ((uint64_t)1 << ((key) % RF_KEYS))

/*
 * The number of that key, made if it is new.  The same name with another secret is another key.
 * -ENFILE: RF_KEYS are in use (attached programs, dirty pages); -EINVAL: empty or too long.
 */
int ag_key_get(struct ag *ag, const char *name, size_t name_len, const void *secret,
	       size_t secret_len);
/* After a restart. */
int ag_key_adopt(struct ag *ag, const struct ag_keep *k);
/* For people: "uid 1000" or the key's name; "?" if there is none of that number. */
const char *ag_key_name(const struct ag *ag, uint32_t key);
/* What a program says is one; else 0 is meant. */
uint32_t ag_key_check(const struct ag *ag, uint32_t key);

/*
 * The handle that names the key to this server, shown to it first if it has not been on this
 * connection.  Only while it is up.
 */
uint32_t ag_key_show(struct ag_server *srv, uint32_t key);
/* How a call names the file, under that key. */
rf_file ag_key_file(struct ag_vnode *vn, uint32_t key);

#endif
