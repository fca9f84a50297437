/* SPDX-License-Identifier: MIT */
/*
 * peer.h - a connection that is no program's yet, or that asks for information.
 */
#ifndef AGENT_PEER_H
#define AGENT_PEER_H

#include <stdio.h>

#include "io.h"

struct ag_peer {
	struct ag_list link; /* ag->peers */
	struct ag *ag;
	struct ag_io *io;
	int fd;
	pid_t pid;
	uint64_t since;
	struct ag_list
	    reqs; /* INVALIDATE: files that are not done; `out` collects what is to be said */
	FILE *out;
	char *text; /* the answer, and how much of it went */
	size_t len, off;
};

/* Take all who knock. */
void ag_peer_accept(void *ag, int events);

/* Those that said nothing for too long go. */
void ag_peers_check(struct ag *ag);

/* A file that it asked to be invalidated is done; it is one of p->reqs no more. */
void ag_peer_tell(struct ag_peer *p, uint32_t index, uint64_t stay, int err, const char *path);
void ag_peer_told(struct ag_peer *p);

/* What `refault status` shows; malloc'd. */
char *ag_info_status(struct ag *ag, size_t *len);

#endif
