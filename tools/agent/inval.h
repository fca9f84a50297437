/* SPDX-License-Identifier: MIT */
/*
 * inval.h - bulk invalidation: for programs (RF_OP_INVALIDATE) and for the command (RF_OP_INFO).
 */
#ifndef AGENT_INVAL_H
#define AGENT_INVAL_H

#include "peer.h"
#include "req.h"

/* Flags that mean something, for all of a file (pages 0) or so many: 0, else -EINVAL. */
int ag_inval_check(uint64_t pages, uint64_t flags);
/* Go on with an RF_OP_INVALIDATE. */
void ag_inval_serve(struct ag_req *req);

/*
 * What follows the word "invalidate": struct rf_inval and what it announces.  Answered through the
 * peer, at once or when all files are done.  -EINVAL: it makes no sense, and nothing was begun.
 */
int ag_inval_peer(struct ag_peer *p, const void *buf, size_t len);

#endif
