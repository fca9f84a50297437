/* SPDX-License-Identifier: MIT */
/*
 * key.h - under which identity files are opened: the user's own uid, or the key that REFAULT_KEY
 * names.
 */
#ifndef SHIM_KEY_H
#define SHIM_KEY_H

#include <stdint.h>

#define KEY_MAX 255 /* bytes of a name, and of a secret */

struct ctx;

struct key {
	uint16_t name_len, secret_len; /* both 0: the user's own uid */
	char name[KEY_MAX];
	char secret[KEY_MAX];
};

/* REFAULT_KEY's value, at the start: it is kept, for the file is read at every open. */
void key_config(struct ctx *c, const char *file);

/*
 * The key of now.  0; -ENOKEY: it cannot be had, and a line on stderr has said why, once a cause.
 * The caller wipes *k (key_wipe), also after an error.  Raw system calls; errno is left alone.
 */
int key_read(const struct ctx *c, struct key *k);
void key_wipe(struct key *k);

#endif
