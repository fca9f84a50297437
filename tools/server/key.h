/* SPDX-License-Identifier: MIT */
/* key.h - the directory of keys: named secrets and the rights that go with them.  Source: key.c. */
#ifndef SRV_KEY_H
#define SRV_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/tree.h>
#include <sys/types.h>

#include <refault/store.h>

#define SRV_NEVER INT64_MAX

/* Padded with zeros, so that comparing does not tell how long it is. */
struct srv_secret {
	unsigned char len; /* 0: none */
	char bytes[RF_MAX_SECRET];
};

/* What a key file says. */
struct srv_rights {
	struct srv_secret secret;
	bool has_uid, has_gid, has_groups; /* else the peer's own */
	bool revoked;
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t ngroups;
	int64_t expires; /* seconds since the epoch */
};

struct srv_key {
	RB_ENTRY(srv_key) link;
	struct srv_rights rights;
	uint64_t seen; /* srv_keys.loads when it was last there */
	char *name;
};

RB_HEAD(srv_key_tree, srv_key);

struct srv_keys {
	const char *dir; /* NULL: there are no keys */
	struct srv_key_tree tree;
	uint64_t loads; /* moves with every reload */
};

/*
 * Parse the n bytes of a key file, which are changed, and one more.  0 (*out is to be freed), or
 * -EINVAL, what is wrong, and in which line (0: in all of it).
 */
int srv_rights_parse(char *text, size_t n, struct srv_rights *out, const char **why,
		     unsigned *line);
void srv_rights_free(struct srv_rights *rights);

/*
 * Read the directory, also anew.  False with one line if it cannot be used; keys are as they were
 * then.  A file that is no good is a key that is revoked, with one line; so is one that is not there
 * any more.
 */
bool srv_keys_load(struct srv_keys *keys);
void srv_keys_free(struct srv_keys *keys);
/* NULL: there never was one of that name. */
const struct srv_key *srv_key_find(struct srv_keys *keys, const char *name);

/* Of at most RF_MAX_SECRET bytes. */
void srv_secret_set(struct srv_secret *secret, const void *bytes, size_t n);
/* In a time that does not depend on what they are. */
bool srv_secret_same(const struct srv_secret *a, const struct srv_secret *b);

#endif
