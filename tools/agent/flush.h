/* SPDX-License-Identifier: MIT */
/*
 * flush.h - write-back of dirty pages.
 */
#ifndef AGENT_FLUSH_H
#define AGENT_FLUSH_H

#include "op.h"

struct ag_hold;

/*
 * One walk over the dirty pages of [page, end), in steps: what cannot be sent now (too much under
 * way, a page whose last snapshot is) ends the step, and the next call goes on from there.
 */
struct ag_pass {
	struct ag_vnode *vn;
	uint64_t page, end;
	bool whole; /* all of the file: afterwards `dirtied` can be clear */
	bool begun, durable;
	bool unpinned;           /* it is to free twins: not what is pinned */
	struct ag_hold *through; /* whose gate does not stop it */
	uint64_t walk;           /* what it finds dirty under one key is a record, see reject.h */
	uint64_t refused;        /* set of keys under which nothing is asked for any more */
	int err;                 /* why */
};

void ag_pass_init(struct ag_pass *p, struct ag_vnode *vn, uint64_t page, uint64_t end,
		  bool durable);
/* True when the walk is at its end. */
bool ag_pass_step(struct ag_pass *p);
/* Give up a walk that was begun and not ended. */
void ag_pass_stop(struct ag_pass *p);

/* The server refuses whoever has that key: what the walk still finds under it is rejected. */
void ag_pass_refused(struct ag_pass *p, uint32_t key, int err);

/* The fast timer: a STORE that waits for slots. */
void ag_flush_slow(struct ag_op *op, uint64_t now);

#endif
