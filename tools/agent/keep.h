/* SPDX-License-Identifier: MIT */
/*
 * keep.h - what must outlive a crash of the agent: descriptors with a few words about each.
 *
 * The supervisor holds the table.  The agent sends it what it makes (PUT) and lets go of (DEL) over
 * a socketpair, and after a crash the next agent, a fork of the supervisor, finds the table in its
 * memory and the descriptors open.
 */
#ifndef AGENT_KEEP_H
#define AGENT_KEEP_H

#include <stddef.h>
#include <stdint.h>

#include "util.h"

enum ag_keep_kind {
	AG_KEEP_LISTEN = 1, /* id 0: the listening socket */
	AG_KEEP_HOST,       /* id 0: host, twins, journal; struct ag_keep_host */
	AG_KEEP_PROC,       /* id: proc id: connection, proc, userfaultfd, stripper, pidfd */
	AG_KEEP_VNODE,      /* id: vnode: data, state; struct ag_keep_vnode and strings */
	AG_KEEP_USE,        /* id: proc << 32 | vnode; struct ag_keep_use */
	AG_KEEP_KEY,        /* id: number of the key; struct ag_keep_key and strings */
};

#define AG_KEEP_FDS 5
#define AG_KEEP_META 8192

struct ag_keep_host {
	uint8_t client[16];
};
struct ag_keep_proc {
	uint32_t pid, turn;
};
struct ag_keep_vnode {
	uint64_t ino, gen; /* the server's file id */
	uint32_t server;   /* index in rf_host */
	uint16_t addr_len, name_len, path_len, extend_key;
	/* addr, name, path */
};
struct ag_keep_use {
	uint32_t opens, pad;
	uint64_t keys; /* set of those that it opened the file under */
};
struct ag_keep_key {
	uint16_t name_len, secret_len;
	/* name, secret */
};

struct ag_keep {
	struct ag_list link;
	enum ag_keep_kind kind;
	uint64_t id;
	uint32_t nfd;
	int fd[AG_KEEP_FDS];
	uint32_t len;
	unsigned char *meta;
};

/* Entries by kind and id, in the order in which they came within a chain. */
#define AG_KEEP_CHAINS 1024u
struct ag_keeptab {
	struct ag_list chain[AG_KEEP_CHAINS];
};

void ag_keeptab_init(struct ag_keeptab *tab);
struct ag_keep *ag_keep_find(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id);
/* Takes the descriptors.  What is there under that id keeps its descriptors if nfd is 0. */
int ag_keep_set(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id, const int *fd,
		uint32_t nfd, const void *meta, uint32_t len);
/* Closes the descriptors. */
void ag_keep_remove(struct ag_keeptab *tab, enum ag_keep_kind kind, uint64_t id);

/* The agent's side of the socketpair.  Sending never waits long: the supervisor does nothing else.
 */
int ag_keep_put(int sock, enum ag_keep_kind kind, uint64_t id, const int *fd, uint32_t nfd,
		const void *meta, uint32_t len);
int ag_keep_del(int sock, enum ag_keep_kind kind, uint64_t id);
/* The supervisor's side: one message.  1: there was one, 0: end of file, -EAGAIN, -errno. */
int ag_keep_receive(int sock, struct ag_keeptab *tab);

#endif
