/* SPDX-License-Identifier: MIT */
/*
 * freeze.c - gate and frozen.
 *
 * Freezing is one short task a vnode, one after the other: invalidate_lock, so that nobody is between
 * mkwrite and its store; the writable page table entries go, which only DIRTY pages have; frozen is
 * set, and the lock let go of.  From then on mkwrite says "frozen" whatever the page is, and whoever
 * wants to store waits without a slot, while pages are filled, mapped and read.  No lock is held
 * over what the holder then asks of a server.
 *
 * Nothing here waits: a mapping table that is just being changed, or what look found, ends the
 * attempt, and the holder gives way and tries again (structural.c).
 *
 * frozen and gate are our own words, vn->frozen and vn->gate; programs are told in st->frozen, where
 * one that scribbles can only harm its own user's stores.
 *
 * After a crash nobody knows who held what: changes in the journal take their gates again, and may
 * go on being frozen (op.c); all else is thawed.
 *
 * Counters: none.
 * Locks: this is gate and frozen; invalidate_lock, of one vnode at a time.
 */
#include "freeze.h"

#include <errno.h>
#include <stdlib.h>

#include "debug.h"
#include "pin.h"
#include "proc.h"

#define GAP 32u /* pages between two dirty ones that are protected along, for one call less */

/* ---- gates ---- */

bool ag_gate_free(const struct ag_vnode *vn, uint64_t born)
{
	struct ag_gate_wait *w;

	ag_for_each (w, &vn->gate_waits, link)
		if (w->born && w->born < born)
			return false;
	return !vn->gate;
}

struct ag_hold *ag_hold_new(struct ag_vnode *vn, struct ag_vnode *other, uint64_t born)
{
	struct ag_hold *h;

	if (other == vn)
		other = NULL;
	if (!ag_gate_free(vn, born) || (other && !ag_gate_free(other, born)))
		return NULL;
	h = ag_alloc(sizeof(*h));
	h->since = ag_now();
	h->vn[0] = other && other->id < vn->id ? other : vn;
	h->vn[1] = h->vn[0] == vn ? other : vn;
	for (unsigned i = 0; i < 2; i++)
		if (h->vn[i])
			h->vn[i]->gate = h;
	return h;
}

void ag_gate_wake(struct ag_vnode *vn)
{
	struct ag_gate_wait *w;

	ag_vn_kick(vn);
	ag_for_each (w, &vn->gate_waits, link)
		ag_vn_kick(w->vn);
}

static void let_go(struct ag_hold *h, unsigned i)
{
	struct ag_vnode *vn = h->vn[i];

	ag_vn_thaw(vn);
	vn->gate = NULL;
	h->vn[i] = NULL;
	ag_gate_wake(vn);
}

void ag_hold_keep(struct ag_hold *h, const struct ag_vnode *vn)
{
	for (unsigned i = 0; i < 2; i++)
		if (h->vn[i] && h->vn[i] != vn)
			let_go(h, i);
}

void ag_hold_end(struct ag_hold *h)
{
	ag_hold_keep(h, NULL);
	h->tell = NULL;
	h->over = true;
	if (!h->under_way)
		free(h);
}

/* ---- frozen ---- */

void ag_vn_thaw(struct ag_vnode *vn)
{
	if (!vn->frozen)
		return;
	vn->frozen = false;
	atomic_store(&vn->st->frozen, 0);
	ag_futex_wake(&vn->st->frozen);
}

void ag_hold_thaw(struct ag_hold *h)
{
	h->frozen = false;
	for (unsigned i = 0; i < 2; i++)
		if (h->vn[i])
			ag_vn_thaw(h->vn[i]);
}

void ag_freeze_adopt(struct ag_vnode *vn)
{
	vn->frozen = atomic_load(&vn->st->frozen) != 0;
}

/*
 * Only what is DIRTY can have page table entries that are stored through.  What a LONG pin covers keeps
 * them: the kernel stores there, and cannot wait.
 */
static int protect_dirty(struct ag_vnode *vn)
{
	const bool pinned = ag_pins_long(vn, 0, UINT64_MAX);
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page, first = 0, end = 0; /* to be protected; end 0: nothing yet */
	int r = 0;

	while (!r && ag_scan_next(&s, &page)) {
		const bool keep = pinned && ag_pinned_long(vn, page);

		if (!ag_w_twinned(atomic_load(&vn->word[page])))
			continue;
		if (end && (keep || page - end >= GAP)) {
			r = ag_procs_protect(vn->ag, vn->id, first, end - 1);
			end = 0;
		}
		if (keep)
			continue;
		if (!end)
			first = page;
		end = page + 1;
	}
	if (!r && end)
		r = ag_procs_protect(vn->ag, vn->id, first, end - 1);
	return r;
}

static void step_freeze(struct ag_task *t);

static void freeze_next(struct ag_hold *h, unsigned i)
{
	struct ag_task *t = ag_task_new(h->vn[i], step_freeze);

	t->hold = h;
	ag_task_post(t);
}

static void freeze_done(struct ag_task *t)
{
	struct ag_hold *h = t->hold;

	h->locked = NULL;
	if (!h->over && !h->err && t->vn == h->vn[0] && h->vn[1]) {
		freeze_next(h, 1);
		return;
	}
	h->under_way = false;
	if (h->over) {
		free(h);
		return;
	}
	h->frozen = !h->err;
	if (h->err)
		ag_hold_thaw(h);
	if (h->tell)
		ag_vn_kick(h->tell);
}

static void freeze_locked(struct ag_task *t)
{
	struct ag_hold *h = t->hold;
	struct ag_vnode *vn = t->vn;

	if (!h->over) {
		h->err = h->look ? h->look(h, t) : 0;
		if (!h->err && !vn->ag->conf->no_freeze && protect_dirty(vn) && h->strict)
			h->err = -EBUSY;
		if (!h->err && !vn->ag->conf->no_freeze) {
			ag_assert(vn->gate == h && t->locked);
			ag_assert(vn == h->vn[0] ||
				  (vn == h->vn[1] && h->vn[0]->frozen && h->vn[0]->id < vn->id));
			vn->frozen = true;
			atomic_store(&vn->st->frozen, 1);
		}
	}
	ag_task_end(t);
}

static void step_freeze(struct ag_task *t)
{
	t->done = freeze_done;
	t->hold->locked = t->vn;
	ag_task_lock(t, freeze_locked);
}

void ag_hold_freeze(struct ag_hold *h, bool strict,
		    int (*look)(struct ag_hold *h, struct ag_task *t))
{
	h->strict = strict;
	h->look = look;
	h->err = 0;
	h->under_way = true;
	freeze_next(h, 0);
}
