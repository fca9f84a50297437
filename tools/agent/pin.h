/* SPDX-License-Identifier: MIT */
/*
 * pin.h - pages that I/O of programs uses right now (state.h, struct rf_pin).
 */
#ifndef AGENT_PIN_H
#define AGENT_PIN_H

#include <stdio.h>

#include "proc.h"
#include "vnode.h"

/*
 * How many pins of live programs touch pages [first, end), but for what was sequestered of them
 * before.  *own: one of them is of thread tid of p.  Final while no pin can be taken: with
 * invalidate_lock held and no slot naming the vnode, and frozen set before it is let go of.
 */
unsigned ag_pins(struct ag_vnode *vn, uint64_t first, uint64_t end, const struct ag_proc *p,
		 uint32_t tid, bool *own);

/*
 * The first pages of [*first, *end) that one pin of a live program touches, or several that begin with
 * the same page; false: nobody's.  For who leaves out what is pinned, however long that is.
 */
bool ag_pins_first(struct ag_vnode *vn, uint64_t *first, uint64_t *end);

/*
 * A LONG pin holds a page of [first, end), and was not sequestered there: keep it DIRTY and where it is.
 * After looking for slots.
 */
bool ag_pins_long(struct ag_vnode *vn, uint64_t first, uint64_t end);
static inline bool ag_pinned_long(struct ag_vnode *vn, uint64_t page)
{
	return ag_pins_long(vn, page, page + 1);
}

/* These pages are being dropped all the same: count and show them until they are unpinned. */
void ag_pins_orphan(struct ag_vnode *vn, uint64_t first, uint64_t end);

/* For `refault status`: a line for each pin that has orphans. */
void ag_pins_show(struct ag *ag, FILE *f);

#endif
