/* SPDX-License-Identifier: MIT */
/*
 * brk.c - breaks: three ways, the cheapest that holds.
 *
 * Bytes known, and the version is the one before: stored in place, merged into what is dirty; the
 * promise goes on, nobody is stripped.  Ranges known: the clean pages among them are dropped, the
 * rest stays mapped and valid; if one of them is dirty, this is not enough.  Else: the promise
 * ends, every program that maps the file strips it, the pages stay for the next validation to
 * judge.
 *
 * None of it waits for a write-back, for a fetch or for an answer of the server, but for one case:
 * a program whose stripper does not answer still has the file mapped.  Its clean pages are punched;
 * its dirty ones have to be merged before the break can be acknowledged, which takes a FETCH, which
 * waits for nobody.  If the server does not give the file any more, they have to be stripped, or our lease
 * to end.
 *
 * Counters: break, in-place (change.c).
 * Locks: see task.c.
 */
#include "brk.h"

#include <string.h>

#include "change.h"
#include "server.h"
#include "vnode.h"

void ag_brk_ack(struct ag_server *srv, uint32_t conn, uint64_t id)
{
	struct rf_msg m = {.body.type = RF_BREAK_ACK};

	if (srv->conn != conn || srv->state != AG_UP)
		return;
	m.body.rf_body_u.break_ack.id = id;
	ag_server_send(srv, &m);
}

void ag_brk_ack_late(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	vn->late = ag_realloc(vn->late, (vn->nlate + 1) * sizeof(*vn->late));
	vn->late[vn->nlate++] = (struct ag_late_ack){t->conn, t->break_id};
	vn->want_valid = true;
	ag_vn_set_dv(vn, 0);
}

void ag_brk_acks(struct ag_vnode *vn)
{
	for (uint32_t i = 0; i < vn->nlate; i++)
		ag_brk_ack(vn->vol->srv, vn->late[i].conn, vn->late[i].id);
	vn->nlate = 0;
}

static void acknowledge(struct ag_task *t)
{
	if (t->ack)
		ag_brk_ack(t->vn->vol->srv, t->conn, t->break_id);
}

static bool any_dirty(struct ag_vnode *vn, const rf_range *r, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (ag_vn_dirty_in(vn, r[i].off, r[i].len))
			return true;
	return false;
}

/* Ranges that are in order, inside a file, and have as many bytes as were sent (if any were). */
static bool sane(const rf_break *b, size_t len)
{
	uint64_t sum = 0;

	if (b->status.size > AG_SIZE_MAX)
		return false;
	for (u_int i = 0; i < b->ranges.ranges_len; i++) {
		const rf_range *r = &b->ranges.ranges_val[i];

		if (r->off > AG_SIZE_MAX || r->len > AG_SIZE_MAX)
			return false;
		sum += r->len;
	}
	return !len || (b->known && sum == len);
}

void ag_brk(struct ag_vnode *vn, const rf_break *b, const void *payload, size_t len)
{
	struct ag_server *srv = vn->vol->srv;
	const uint32_t n = b->ranges.ranges_len;
	const rf_range *r = b->ranges.ranges_val;
	struct ag_task *t;

	if (!sane(b, len)) {
		ag_server_garbage(srv, "a break that makes no sense");
		return;
	}
	ag_count(vn->ag, RF_R_BREAK, 1);
	atomic_fetch_add(&vn->st->cb_break, 1);
	vn->epoch++;
	t = ag_task_new(vn, ag_step_strip);
	t->ack = true;
	t->conn = srv->conn;
	t->break_id = b->id;
	t->done = acknowledge;
	/* A file that others cut while it was extended here: what lies between is old, too. */
	if (b->known && !(vn->size > vn->ssize && b->status.size < vn->ssize) &&
	    b->status.promise_ms && ag_vn_valid(vn) && vn->dv == b->dv_before &&
	    (len || !any_dirty(vn, r, n))) {
		t->step = ag_step_change;
		t->have_st = true;
		t->st = b->status;
		t->dv_before = b->dv_before;
		t->range = ag_memdup(r, n * sizeof(*r));
		t->nranges = n;
		t->bytes = len != 0;
		t->drop = !len && n;
		t->data = ag_memdup(payload, len);
		t->len = len;
	} else {
		ag_vn_unpromise(vn);
		if (vn->target) { /* what is being merged is old already */
			vn->target = 0;
			vn->nmerge = 0;
		}
	}
	ag_task_post_front(t);
}
