/* SPDX-License-Identifier: MIT */
/*
 * pin.c - pins: looked for, and what is taken from under them.
 *
 * Pins lie in their programs' proc areas, where programs take and give them back by themselves; here
 * they are only read, again and again, and what is read is checked: a program that scribbles there
 * makes its own user's truncates wait, for as long as their policy says, no more.  A pin that is being
 * given back, or taken, while we read is as good as gone, or not there yet; who must see all of
 * them looks when none can be taken (pin.h).
 *
 * Orphans are noted in the pin itself, so that they are gone with it, and are still known after a
 * crash of the agent.
 *
 * Counters: sequester.
 * Locks: none; a pin's ticket tells it from the next one in its place.
 */
#include "pin.h"

#include <inttypes.h>

#define PAGES ((uint64_t)1 << 36)

struct pin {
	struct ag_proc *proc;
	struct rf_pin *mem;
	uint32_t ticket, vnode, owner, flags;
	uint64_t page, end;
};

static bool pin_read(struct ag_proc *p, uint32_t i, struct pin *pin)
{
	struct rf_pin *m = &p->mem->pin[i];
	uint64_t n;

	pin->vnode = atomic_load_explicit(&m->vnode, memory_order_acquire);
	if (!pin->vnode)
		return false;
	pin->proc = p;
	pin->mem = m;
	pin->ticket = atomic_load(&m->taken);
	pin->owner = atomic_load(&m->owner);
	pin->flags = atomic_load(&m->flags);
	pin->page = atomic_load(&m->page);
	n = atomic_load(&m->npages);
	if (atomic_load(&m->taken) != pin->ticket || atomic_load(&m->vnode) != pin->vnode)
		return false;
	if (!pin->ticket || pin->page >= PAGES || !n)
		return false;
	pin->end = pin->page + ag_min(n, PAGES - pin->page);
	return true;
}

/* What of [first, end) the pin holds, but for what it lost at either side; false: nothing. */
static bool pin_holds(const struct pin *pin, uint64_t *first, uint64_t *end)
{
	const bool lossy = atomic_load(&pin->mem->orphan_ticket) == pin->ticket;

	*first = ag_max(*first, pin->page);
	*end = ag_min(*end, pin->end);
	for (uint32_t i = 0; lossy && i < RF_PIN_ORPHANS && *first < *end; i++) {
		uint64_t lost = atomic_load(&pin->mem->orphan[i].first);
		uint64_t lost_end = atomic_load(&pin->mem->orphan[i].end);

		if (*first >= lost && *first < lost_end)
			*first = lost_end;
		if (*end > lost && *end <= lost_end)
			*end = lost;
	}
	return *first < *end;
}

/* All pins of a vnode that touch [first, end): zeroed but for these three, then pin is one of them. */
struct walk {
	const struct ag_vnode *vn;
	uint64_t first, end;
	struct ag_list *at; /* of ag->procs; NULL: the first */
	uint32_t i;
	struct pin pin;
};

static bool walk_next(struct walk *w)
{
	struct ag *ag = w->vn->ag;

	for (w->at = w->at ? w->at : ag->procs.next; w->at != &ag->procs;
	     w->at = w->at->next, w->i = 0) {
		struct ag_proc *p = ag_of(w->at, struct ag_proc, link);
		uint32_t n = (uint32_t)ag_min(atomic_load(&p->mem->pins_used), RF_PINS);

		while (w->i < n)
			if (pin_read(p, w->i++, &w->pin) && w->pin.vnode == w->vn->id &&
			    w->pin.page < w->end && w->pin.end > w->first)
				return true;
	}
	return false;
}

unsigned ag_pins(struct ag_vnode *vn, uint64_t first, uint64_t end, const struct ag_proc *p,
		 uint32_t tid, bool *own)
{
	struct walk w = {.vn = vn, .first = first, .end = end};
	const struct ag_proc *dead = NULL;
	unsigned n = 0;

	*own = false;
	while (walk_next(&w)) {
		uint64_t lo = first, hi = end;

		if (w.pin.proc == dead || !pin_holds(&w.pin, &lo, &hi))
			continue;
		if (ag_proc_dead(w.pin.proc)) {
			dead = w.pin.proc;
			continue;
		}
		*own |= w.pin.proc == p && w.pin.owner == tid;
		n++;
	}
	return n;
}

bool ag_pins_first(struct ag_vnode *vn, uint64_t *first, uint64_t *end)
{
	struct walk w = {.vn = vn, .first = *first, .end = *end};
	const struct ag_proc *known = NULL;
	uint64_t from = *end, to = 0;
	bool dead = false;

	while (walk_next(&w)) {
		uint64_t lo = *first, hi = *end;

		if (!pin_holds(&w.pin, &lo, &hi) || lo > from || (lo == from && hi <= to))
			continue;
		if (w.pin.proc != known)
			dead = ag_proc_dead(w.pin.proc);
		known = w.pin.proc;
		if (dead)
			continue;
		from = lo;
		to = hi;
	}
	if (from < *end) {
		*first = from;
		*end = to;
	}
	return to != 0;
}

bool ag_pins_long(struct ag_vnode *vn, uint64_t first, uint64_t end)
{
	struct walk w = {.vn = vn, .first = first, .end = end};

	while (walk_next(&w)) {
		uint64_t lo = first, hi = end;

		if ((w.pin.flags & RF_PIN_LONG) && pin_holds(&w.pin, &lo, &hi))
			return true;
	}
	return false;
}

/* The first of a pin's ranges of orphans, from the i-th on, that touches [first, end); RF_PIN_ORPHANS: none. */
static uint32_t touching(const struct rf_pin *m, uint32_t i, uint64_t first, uint64_t end)
{
	for (; i < RF_PIN_ORPHANS; i++) {
		uint64_t lost = atomic_load(&m->orphan[i].first);
		uint64_t lost_end = atomic_load(&m->orphan[i].end);

		if (lost < lost_end && lost <= end && lost_end >= first)
			break;
	}
	return i;
}

/*
 * [first, end) of the pin is not of the file any more.  How many pages more that are.  If we die in
 * between, what is noted is true, and not all of it.
 */
static uint64_t orphan(const struct pin *pin, uint64_t first, uint64_t end)
{
	struct rf_pin *m = pin->mem;
	uint64_t n = end - first, lost, lost_end, lo = first, hi = end;
	uint32_t to = RF_PIN_ORPHANS, i;

	if (atomic_load(&m->orphan_ticket) != pin->ticket) {
		for (i = 0; i < RF_PIN_ORPHANS; i++)
			atomic_store(&m->orphan[i].end, 0);
		atomic_store(&m->orphans, 0);
		atomic_store(&m->orphan_ticket, pin->ticket);
	}
	for (i = touching(m, 0, first, end); i < RF_PIN_ORPHANS;
	     i = touching(m, i + 1, first, end)) {
		lost = atomic_load(&m->orphan[i].first);
		lost_end = atomic_load(&m->orphan[i].end);
		lo = ag_min(lo, lost);
		hi = ag_max(hi, lost_end);
		lost = ag_max(lost, first);
		lost_end = ag_max(ag_min(lost_end, end), lost);
		n -= ag_min(n, lost_end - lost);
		to = ag_min(to, i);
	}
	atomic_fetch_add(&m->orphans, n);
	for (i = 0; to == RF_PIN_ORPHANS && i < RF_PIN_ORPHANS; i++)
		if (atomic_load(&m->orphan[i].end) <= atomic_load(&m->orphan[i].first))
			to = i;
	if (to == RF_PIN_ORPHANS)
		return n;
	atomic_store(&m->orphan[to].first, lo);
	atomic_store(&m->orphan[to].end, hi);
	for (i = to; (i = touching(m, i + 1, lo, hi)) < RF_PIN_ORPHANS;)
		atomic_store(&m->orphan[i].end, 0);
	return n;
}

void ag_pins_orphan(struct ag_vnode *vn, uint64_t first, uint64_t end)
{
	struct walk w = {.vn = vn, .first = first, .end = end};

	while (first < end && walk_next(&w)) {
		uint64_t lo = first, hi = end;

		if (pin_holds(&w.pin, &lo, &hi))
			ag_count(vn->ag, RF_R_SEQUESTER, orphan(&w.pin, lo, hi));
	}
}

void ag_pins_show(struct ag *ag, FILE *f)
{
	struct ag_vnode *vn;
	struct ag_proc *p;
	struct pin pin;

	ag_for_each (p, &ag->procs, link) {
		uint32_t n = (uint32_t)ag_min(atomic_load(&p->mem->pins_used), RF_PINS);

		for (uint32_t i = 0; i < n; i++) {
			if (!pin_read(p, i, &pin) ||
			    atomic_load(&pin.mem->orphan_ticket) != pin.ticket)
				continue;
			vn = ag_vn_get(ag, pin.vnode);
			if (vn && !ag_proc_dead(p))
				fprintf(f, "orphans: %s pages %" PRIu64 " program %d\n", vn->path,
					atomic_load(&pin.mem->orphans), (int)p->pid);
		}
	}
}
