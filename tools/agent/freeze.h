/* SPDX-License-Identifier: MIT */
/*
 * freeze.h - who keeps other changes, and stores, out of a file: gate and frozen (state.h, Locks).
 *
 * A structural change holds the gates of one vnode, or of two, from before its flush until the cache
 * has followed the server: others like it wait, and so do STOREs and extensions.  In between it may
 * freeze them.  Source: freeze.c.
 */
#ifndef AGENT_FREEZE_H
#define AGENT_FREEZE_H

#include "task.h"
#include "vnode.h"

struct ag_hold {
	struct ag_vnode *vn[2]; /* held; the smaller id first; NULL: none, or let go of */
	struct ag_vnode *tell;  /* kicked when it was frozen, or was not; NULL: nobody */
	void *arg;              /* for look */
	uint64_t since;
	bool frozen; /* both */
	int err;     /* why not: what look said; -EBUSY: a program's pages cannot be protected */

	/* While it is being frozen: */
	bool strict;
	int (*look)(struct ag_hold *h, struct ag_task *t);
	struct ag_vnode *locked; /* its invalidate_lock is held */
	bool under_way, over;    /* a task is about it; it is to be freed with that task */
};

/*
 * Who needs two gates waits for each like this.  In line: who came later gets neither of them before,
 * else those who need but one would always find it free first.
 */
struct ag_gate_wait {
	struct ag_list link; /* vn->gate_waits */
	struct ag_vnode *vn; /* kicked when something happens to the gate */
	uint64_t born;       /* in line since; 0: not */
};

/* For who has waited since born. */
bool ag_gate_free(const struct ag_vnode *vn, uint64_t born);
/* Both gates (other may be NULL, or the same).  NULL: one of them is not free. */
struct ag_hold *ag_hold_new(struct ag_vnode *vn, struct ag_vnode *other, uint64_t born);
/* Opens what is still held, thaws it, frees. */
void ag_hold_end(struct ag_hold *h);
/* Let go of all but vn. */
void ag_hold_keep(struct ag_hold *h, const struct ag_vnode *vn);

/*
 * Soon: no page becomes DIRTY, none that is can be stored to (h->frozen), or h->err says why not and
 * nothing is frozen.  look (NULL: none) is asked for each vnode with its invalidate_lock held, before
 * it is frozen; t->safe: no slot names it.  A slot that is held all the same is a store that may
 * still come.  strict: not if a program's pages cannot be protected, because it stands still in the
 * middle of an mmap().
 */
void ag_hold_freeze(struct ag_hold *h, bool strict,
		    int (*look)(struct ag_hold *h, struct ag_task *t));
void ag_hold_thaw(struct ag_hold *h);

/* Something happened that who waits for this gate may have waited for. */
void ag_gate_wake(struct ag_vnode *vn);
/* After a crash: what was frozen is, until somebody says otherwise. */
void ag_freeze_adopt(struct ag_vnode *vn);
void ag_vn_thaw(struct ag_vnode *vn);

#endif
