/* SPDX-License-Identifier: MIT */
/*
 * req.c - requests of programs.
 *
 * A request waits on its vnode's list.  serve() looks at it whenever something happened to the
 * vnode and the vnode is not busy: it finishes the request, or asks for what is missing
 * (validation, pages, write-back, a connection) and leaves it there.  So nothing has to remember
 * how far it was, and a lost connection needs no special case.
 *
 * Programs wait REFAULT_TIMEOUT for a server that was there once (EHOSTDOWN), or that is and does
 * not answer (ETIMEDOUT); an open on a server that was never reached fails at once.  What was dirty
 * stays so, and what was sent may still be carried out.  Waiting requests are looked at by a timer,
 * since the silence of a server is no event.
 *
 * Back-pressure: a program that finds no twin for a store asks for a flush of all files; it goes on
 * when an eighth of the twins is free, or everything is flushed.
 *
 * Counters: flush, garbage.
 * Locks: none.
 */
#include "req.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "change.h"
#include "fetch.h"
#include "freeze.h"
#include "inval.h"
#include "key.h"
#include "reject.h"
#include "seek.h"
#include "server.h"
#include "structural.h"

#define PATIENCE_MIN 20u  /* ms */
#define PATIENCE_MAX 500u /* ms */
#define REQS_MAX 4096u    /* of one program under way; it has RF_CELLS cells */
#define AHEADS_MAX 32u    /* readaheads under way of one file; more advice is not taken */
#define ANSWER_PAGES 256u /* a FAULT is answered when so many of its pages are there */

/* ---- patience ---- */

/* Of these requests, those that have waited long enough are looked at once more, and then say so. */
static void look_again(struct ag *ag, struct ag_list *reqs)
{
	struct ag_req *req, *part;

	ag_for_each (req, reqs, by_proc) {
		if (ag_now() - req->born < ag->conf->timeout_ns)
			continue;
		if (req->vn)
			ag_vn_kick(req->vn);
		for (uint32_t id = 1; req->parts && id <= ag->vnode_high; id++)
			if (ag->vnode[id])
				ag_for_each (part, &ag->vnode[id]->reqs, link)
					if (part->parent == req)
						ag_vn_kick(part->vn);
	}
}

static void on_patience(uv_timer_t *h)
{
	struct ag *ag = h->data;
	struct ag_peer *peer;
	struct ag_proc *p;
	bool any = false;

	ag_for_each (p, &ag->procs, link) {
		any |= !ag_list_empty(&p->reqs);
		look_again(ag, &p->reqs);
	}
	ag_for_each (peer, &ag->peers, link) {
		any |= !ag_list_empty(&peer->reqs);
		look_again(ag, &peer->reqs);
	}
	ag->look_shorts = true;
	ag_settle(ag);
	if (!any)
		uv_timer_stop(h);
}

static void patience(struct ag *ag)
{
	const uint64_t ms =
	    ag_min(ag_max(ag->conf->timeout_ns / AG_MS / 16, PATIENCE_MIN), PATIENCE_MAX);

	if (uv_is_active((uv_handle_t *)&ag->patience))
		return;
	ag->patience.data = ag;
	uv_timer_start(&ag->patience, on_patience, ms, ms);
}

int ag_req_ready(struct ag_req *req, uint64_t op_seq, const char **why)
{
	int r = ag_volume_ready(req->vn->vol, req->born, why);

	if (r > 0 && ag_ops_silent(req->vn, op_seq, req->born)) {
		*why = "it does not answer to a change";
		r = -ETIMEDOUT;
	}
	return r;
}

/* ---- made and ended ---- */

struct ag_req *ag_req_new(struct ag *ag, struct ag_proc *p, struct ag_vnode *vn)
{
	struct ag_req *req = ag_alloc(sizeof(*req));

	req->ag = ag;
	req->proc = p;
	req->vn = vn;
	req->born = ag_now();
	req->reply = -1;
	ag_list_init(&req->link);
	ag_list_init(&req->by_proc);
	if (p) {
		ag_list_add(&p->reqs, &req->by_proc);
		p->nreqs++;
		patience(ag);
	}
	return req;
}

struct ag_req *ag_req_by_peer(struct ag_peer *p, struct ag_vnode *vn, uint32_t index)
{
	struct ag_req *req = ag_req_new(p->ag, NULL, vn);

	req->peer = p;
	req->index = index;
	ag_list_add(&p->reqs, &req->by_proc);
	ag_list_add(&vn->reqs, &req->link);
	patience(p->ag);
	ag_vn_kick(vn);
	return req;
}

static void req_free(struct ag_req *req)
{
	if (req->op)
		req->op->req = NULL;
	if (req->task)
		req->task->req = NULL;
	if (req->call)
		req->call->arg = NULL;
	if (req->vn && req->q.op == RF_OP_FLUSH) {
		ag_pass_stop(&req->pass);
		if (req->behind) {
			req->vn->behind = false;
			req->ag->look_shorts = true;
			req->ag->again |= !ag_list_empty(&req->ag->shorts);
			ag_vn_kick(req->vn);
		}
	}
	if (req->change)
		ag_structural_free(req);
	if (req->hold)
		ag_hold_end(req->hold);
	if (req->parts && req->vn) /* they go on for nobody */
		ag_req_orphan(req, req->vn);
	ag_list_del(&req->link);
	ag_list_del(&req->by_proc);
	if (req->proc)
		req->proc->nreqs--;
	if (req->reply >= 0)
		close(req->reply);
	free(req->path);
	free(req->data);
	free(req);
}

static void part_done(struct ag_req *parent, int err)
{
	if (err && !parent->err)
		parent->err = err;
	if (--parent->parts)
		return;
	if (parent->vn)
		ag_vn_kick(parent->vn);
	else
		ag_req_finish(parent, parent->err, 0);
}

void ag_req_finish(struct ag_req *req, int err, uint64_t ret0)
{
	struct ag_req *parent = req->parent;
	struct ag_peer *peer = req->peer;

	if (req->proc)
		ag_proc_answer(req->proc, req->q.cell, req->q.seq, err, ret0, 0);
	if (peer && req->vn)
		ag_peer_tell(peer, req->index, ret0, err, req->vn->path);
	req_free(req);
	if (peer)
		ag_peer_told(peer);
	if (parent)
		part_done(parent, err);
}

void ag_req_orphan(struct ag_req *req, struct ag_vnode *vn)
{
	struct ag_req *part;

	ag_for_each (part, &vn->reqs, link)
		if (part->parent == req) {
			part->parent = NULL;
			part->through = part->pass.through = NULL;
			req->parts--;
		}
}

void ag_req_forget_proc(struct ag_proc *p)
{
	struct ag_req *req;

	while ((req = ag_first(&p->reqs, struct ag_req, by_proc))) {
		/* Parts of a flush of all go on for nobody. */
		for (uint32_t id = 1; req->parts && id <= p->ag->vnode_high; id++)
			if (p->ag->vnode[id])
				ag_req_orphan(req, p->ag->vnode[id]);
		req_free(req);
	}
}

void ag_req_forget_peer(struct ag_peer *p)
{
	struct ag_req *req;

	while ((req = ag_first(&p->reqs, struct ag_req, by_proc)))
		req_free(req);
}

/* ---- FAULT ---- */

static bool cached(const struct ag_vnode *vn, uint64_t first, uint64_t end)
{
	for (; first < end; first++)
		if (!rf_w_cached(atomic_load_explicit(&vn->word[first], memory_order_acquire)))
			return false;
	return true;
}

/* The server was asked about this file, and has said nothing for too long. */
static bool silent(const struct ag_vnode *vn)
{
	struct ag_call *c;

	if (vn->asking && ag_overdue(vn->ag, vn->asked_at))
		return true;
	ag_for_each (c, &vn->fetches, by_vn)
		if (ag_overdue(vn->ag, c->sent_at))
			return true;
	return false;
}

/*
 * Readahead, which nobody waits for: it goes on as long as there is something to ask for and somebody to
 * ask, a few calls at a time.
 */
static int serve_ahead(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const uint64_t at = req->q.arg[0], pages = ag_min(RF_PAGES(vn->ssize), ag_vn_pages(vn));
	const uint64_t end = at + ag_min(req->q.arg[1], pages - ag_min(at, pages));
	const char *why;

	if (at < end && ag_volume_ready(vn->vol, req->born, &why) > 0 &&
	    !(silent(vn) && ag_overdue(vn->ag, req->born))) {
		vn->key = req->q.key;
		req->q.arg[0] = ag_fetch_ahead(vn, at, end);
		req->q.arg[1] -= req->q.arg[0] - at;
		if (req->q.arg[0] < end)
			return 0;
	}
	ag_req_finish(req, 0, 0);
	return 1;
}

/* 0: go on when something happens.  1: it was finished. */
static int serve_fault(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const uint64_t first = req->q.arg[0], pages = ag_vn_pages(vn);
	const uint64_t n = ag_max(req->q.arg[1], 1);
	const uint64_t end = n > pages - ag_min(first, pages) ? pages : first + n;
	const uint64_t want = ag_min(end, first + ANSWER_PAGES);
	const char *why = "";
	bool valid = ag_vn_valid(vn);
	int r;

	if (req->q.arg[2] & RF_FAULT_NOWAIT)
		return serve_ahead(req);
	if (valid && first >= pages) {
		ag_req_finish(req, -ENXIO, 0);
		return 1;
	}
	if (valid && cached(vn, first, want)) {
		ag_req_finish(req, 0, 0);
		return 1;
	}
	r = ag_volume_ready(vn->vol, req->born, &why);
	if (r > 0 && silent(vn) && ag_overdue(vn->ag, req->born)) {
		why = "the server does not answer";
		r = -ETIMEDOUT;
	}
	if (r < 0) {
		ag_debug("%s: %s", vn->path, why);
		ag_req_finish(req, r, 0);
		return 1;
	}
	if (!r)
		return 0;
	vn->key = req->q.key;
	if (first < pages && !cached(vn, first, want)) {
		/* The stream is looked at once; after that only what is still missing is. */
		r = ag_fetch_pages(vn, first, want,
				   req->asked || (req->q.arg[2] & RF_FAULT_RANDOM));
		if (r) {
			ag_req_finish(req, r, 0);
			return 1;
		}
		req->asked = true;
	}
	if (!valid)
		ag_fetch_status(vn);
	if (valid && cached(vn, first, want)) { /* zeros were filled in */
		ag_req_finish(req, 0, 0);
		return 1;
	}
	return 0;
}

void ag_reqs_fail(struct ag_vnode *vn, uint32_t key, uint64_t first, uint64_t end, int err)
{
	struct ag_req *req;

	ag_for_each (req, &vn->reqs, link) {
		uint64_t a = req->q.arg[0], n = ag_max(req->q.arg[1], 1);

		if (req->q.op == RF_OP_FAULT && (key == AG_KEY_ANY || key == req->q.key) &&
		    a < end && (n >= UINT64_MAX - a || a + n > first))
			ag_req_finish(req, err ? err : -EIO, 0);
	}
}

/* ---- FLUSH ---- */

static void pass_again(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	uint64_t a = req->q.arg[0], n = req->q.arg[1];

	ag_pass_stop(&req->pass);
	ag_pass_init(&req->pass, vn, n ? a : 0, n && n < UINT64_MAX - a ? a + n : UINT64_MAX,
		     req->q.arg[2] & RF_FLUSH_DURABLE);
	req->pass.through = req->through;
	req->passed = false;
}

static void sync_send(struct ag_req *req)
{
	struct ag_op *op = ag_op_new(req->vn, RF_SYNC, false);

	op->key = req->vn->key;
	op->durable = true;
	req->synced = true;
	req->op_seq = op->seq;
	ag_op_send(op);
}

/* The file was extended here, and no store carries its last byte.  False: not now. */
static bool extend_send(struct ag_vnode *vn)
{
	struct ag_op *op = ag_op_new(vn, RF_SET_SIZE, false);

	if (!op)
		return false;
	op->key = vn->extend_key;
	op->grow_only = true;
	op->size = vn->size;
	ag_op_send(op);
	return true;
}

/* There is nothing that a server would have to be told. */
static bool all_clean(struct ag_vnode *vn)
{
	return ag_list_empty(&vn->ops) && vn->size <= vn->ssize &&
	       !atomic_load(&vn->st->unstable) && !ag_vn_ndirty(vn);
}

/* Everything that the walk sent is where the flush wants it. */
static bool flush_arrived(const struct ag_req *req)
{
	return req->q.arg[2] & RF_FLUSH_APPLIED ? ag_ops_applied(req->vn, req->op_seq)
						: ag_ops_done(req->vn, req->op_seq);
}

static int serve_flush(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const bool durable = req->q.arg[2] & RF_FLUSH_DURABLE;
	const bool applied = req->q.arg[2] & RF_FLUSH_APPLIED;
	const char *why = "";
	int r;

	if (!req->passed || !flush_arrived(req)) {
		r = ag_req_ready(req, req->passed ? req->op_seq : vn->op_seq, &why);
		if (r <= 0 && all_clean(vn)) {
			ag_req_finish(req, 0, 0);
			return 1;
		}
		if (r < 0 && (req->proc || req->parent)) {
			ag_log("%s: cannot be written back: %s", vn->path, why);
			ag_req_finish(req, r, 0);
			return 1;
		}
		if (r <= 0)
			return 0;
	}
	if (!req->passed) {
		if (!ag_pass_step(&req->pass))
			return 0;
		if ((!vn->gate || vn->gate == req->through) && !vn->wind &&
		    vn->size > ag_ops_size(vn) &&
		    (req->through || req->pass.end >= ag_vn_pages(vn)) && !extend_send(vn)) {
			pass_again(req);
			return 0;
		}
		req->passed = true;
		req->op_seq = vn->op_seq;
	}
	if (!flush_arrived(req))
		return 0;
	if (!req->synced && !req->err && !applied && durable && atomic_load(&vn->st->unstable)) {
		r = ag_volume_ready(vn->vol, req->born, &why);
		if (r < 0 && (req->proc || req->parent)) {
			ag_req_finish(req, r, 0);
			return 1;
		}
		if (r > 0)
			sync_send(req);
		return 0;
	}
	if (req->pass.refused)
		ag_reject_told(vn, req->pass.walk);
	ag_req_finish(req, req->err, 0);
	return 1;
}

void ag_reqs_op_error(struct ag_vnode *vn, const struct ag_op *op, int err)
{
	struct ag_req *req;

	if (op->program)
		return;
	ag_for_each (req, &vn->reqs, link)
		if (req->q.op == RF_OP_FLUSH && !req->err &&
		    (!req->passed || req->op_seq >= op->seq))
			req->err = err;
}

void ag_reqs_op_lost(struct ag_vnode *vn, const struct ag_op *op)
{
	struct ag_req *req;

	ag_for_each (req, &vn->reqs, link) {
		const uint64_t walk = req->pass.walk;

		if (req->q.op != RF_OP_FLUSH || (req->passed && req->op_seq < op->seq))
			continue;
		pass_again(req);
		req->pass.walk = walk; /* what is refused of it is still one record */
	}
}

static struct ag_req *flush_new(struct ag_vnode *vn, struct ag_proc *p, const struct rf_req *q)
{
	struct ag_req *req = ag_req_new(vn->ag, p, vn);

	req->q = *q;
	req->q.op = RF_OP_FLUSH;
	ag_pass_init(&req->pass, vn, 0, 0, false);
	pass_again(req);
	ag_list_add(&vn->reqs, &req->link);
	ag_count(vn->ag, RF_R_FLUSH, 1);
	ag_vn_kick(vn);
	return req;
}

void ag_req_flush_part(struct ag_req *parent, struct ag_vnode *vn, struct ag_hold *through,
		       uint64_t first, uint64_t end)
{
	struct ag_req *req =
	    flush_new(vn, NULL, &(struct rf_req){.arg = {first, end - first, RF_FLUSH_APPLIED}});

	req->born = parent->born;
	req->parent = parent;
	req->through = req->pass.through = through;
	parent->parts++;
}

/* Start it; nobody waits.  One is enough: the next comes with dirty_expire. */
static void flush_start(struct ag_vnode *vn, const struct rf_req *q, bool unpinned)
{
	struct ag_req *req;

	if (vn->behind)
		return;
	vn->behind = true;
	req = flush_new(vn, NULL, q);
	req->behind = true;
	req->pass.unpinned = unpinned;
}

void ag_vn_flush_behind(struct ag_vnode *vn)
{
	flush_start(vn, &(struct rf_req){0}, false);
}

void ag_flush_for_twins(struct ag *ag)
{
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id] && ag_vn_unclean(ag->vnode[id]))
			flush_start(ag->vnode[id], &(struct rf_req){0}, true);
}

void ag_flush_all_behind(struct ag *ag)
{
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id] && ag_vn_unclean(ag->vnode[id]))
			ag_vn_flush_behind(ag->vnode[id]);
}

/* Everything of this host, for sync(). */
static void flush_all(struct ag *ag, struct ag_proc *p, const struct rf_req *q)
{
	struct ag_req *req = ag_req_new(ag, p, NULL);
	struct rf_req part = {.arg = {0, 0, q->arg[2] & RF_FLUSH_DURABLE, 0}};

	req->q = *q;
	req->parts = 1;
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		struct ag_vnode *vn = ag->vnode[id];

		if (!vn || !ag_vn_unclean(vn))
			continue;
		flush_new(vn, NULL, &part)->parent = req;
		req->parts++;
	}
	part_done(req, 0);
}

/* ---- want of twins ---- */

uint32_t ag_twins_used(const struct ag *ag, uint32_t step)
{
	uint32_t n = 0;

	for (uint32_t i = 1; i < ag->ntwins; i += step)
		n += atomic_load_explicit(&ag->twins->owner[i], memory_order_relaxed) != 0;
	return n * step;
}

static void short_new(struct ag *ag, struct ag_proc *p, const struct rf_req *q)
{
	struct ag_req *req = ag_req_new(ag, p, NULL);

	req->q = *q;
	req->freed = ag->twins_freed;
	ag_list_add(&ag->shorts, &req->link);
	ag_flush_for_twins(ag);
	ag->look_shorts = true;
	ag->again = true;
}

/*
 * What a program that has waited for twins since born can hope for.  1: something is being written
 * back.  0: not now, but it may come.  -errno: nothing will be.  *idle: there is nothing to be, as
 * far as the walks that were begun know.
 */
static int hope(struct ag *ag, uint64_t born, bool *idle)
{
	const char *why;
	int best = INT_MIN;

	for (uint32_t id = 1; id <= ag->vnode_high && best <= 0; id++) {
		struct ag_vnode *vn = ag->vnode[id];
		int r;

		if (!vn || !vn->behind)
			continue;
		r = ag_volume_ready(vn->vol, born, &why);
		if (r > 0 && ag_ops_silent(vn, UINT64_MAX, born))
			r = -ETIMEDOUT;
		else if (r < 0)
			r = -EHOSTDOWN;
		best = best < r ? r : best;
	}
	*idle = best == INT_MIN;
	return *idle ? 0 : best;
}

void ag_shorts_serve(struct ag *ag)
{
	const uint32_t enough = ag->ntwins / 8 + 1;
	const bool look = ag->look_shorts;
	struct ag_req *req;
	bool idle;
	int r;

	ag->look_shorts = false;
	ag_for_each (req, &ag->shorts, link) {
		const uint64_t freed = ag->twins_freed - req->freed;

		if (freed >= enough) {
			ag_req_finish(req, 0, 0);
			continue;
		}
		if (!look)
			continue;
		r = hope(ag, req->born, &idle);
		if (idle && !req->asked) {
			/* Once more: a walk that was under way had gone past some. */
			req->asked = true;
			ag_flush_for_twins(ag);
			ag->look_shorts = ag->again = true;
		} else if (idle || (r <= 0 && freed)) {
			ag_req_finish(req, 0, 0);
		} else if (r < 0) {
			ag_req_finish(req, r, 0);
		}
	}
}

/* ---- extensions, appends, and what structural changes share with them ---- */

static int serve_extend(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const char *why;
	struct ag_task *t;
	int r;

	if (vn->gate) {
		r = ag_req_ready(req, vn->op_seq, &why);
		if (r < 0)
			ag_req_finish(req, r, 0);
		return r < 0;
	}
	if (req->q.arg[0] > AG_SIZE_MAX) {
		ag_req_finish(req, -EFBIG, 0);
		return 1;
	}
	if (vn->size >= req->q.arg[0] || (req->asked && vn->extend_err)) {
		ag_req_finish(req, vn->size >= req->q.arg[0] ? 0 : vn->extend_err, vn->size);
		return 1;
	}
	/* If it was asked: what came of it was cut off again, by a refusal or by another host. */
	req->asked = true;
	ag_vn_extend_key(vn, req->q.key);
	t = ag_task_new(vn, ag_step_change);
	t->resize = true;
	t->size = req->q.arg[0];
	ag_task_post(t);
	return 0;
}

/* The same when the request is sent again to the next agent; the server does it once. */
static uint64_t change_id(const struct ag_req *req)
{
	return ag_proc_change(req->proc, req->q.cell, req->q.seq);
}

bool ag_req_adopt(struct ag_req *req)
{
	struct ag_op *op = ag_op_find(req->vn, change_id(req));

	if (!op)
		return false;
	if (op->req) {
		req_free(req); /* the same request, sent twice */
		return true;
	}
	req->asked = true;
	req->op = op;
	req->ret = op->off;
	op->req = req;
	return true;
}

struct ag_op *ag_req_op_new(struct ag_req *req, enum rf_type type)
{
	struct ag_op *op = ag_op_new(req->vn, type, false);

	if (!op)
		return NULL;
	op->request = change_id(req);
	op->program = true;
	op->key = req->q.key;
	op->req = req;
	req->asked = true;
	req->op = op;
	return op;
}

int ag_req_sent(struct ag_req *req)
{
	const char *why = "";
	int r;

	if (req->op) {
		/* Nobody waits for it any more; it may be carried out all the same. */
		r = ag_req_ready(req, req->op->seq, &why);
		if (r < 0)
			ag_req_finish(req, r, 0);
		return r < 0;
	}
	ag_req_finish(req, req->err, req->ret); /* refused */
	return 1;
}

/* On its own: no stores before it is applied, none under way when it goes. */
static int serve_append(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const char *why = "";
	struct ag_op *op;
	int r;

	if (req->op || req->asked)
		return ag_req_sent(req);
	if (ag_req_adopt(req))
		return 0;
	r = ag_req_ready(req, vn->op_seq, &why);
	if (r < 0) {
		ag_req_finish(req, r, 0);
		return 1;
	}
	if (!r || !ag_gate_free(vn, req->born) || vn->unapplied)
		return 0;
	if (vn->size > vn->ssize) {
		/* It goes to the end of the file as programs here see it. */
		ag_vn_flush_behind(vn);
		return 0;
	}
	op = ag_req_op_new(req, RF_APPEND);
	if (!op)
		return 0;
	op->hold = ag_hold_new(vn, NULL, req->born);
	op->durable = req->q.arg[0] & RF_FLUSH_DURABLE;
	memcpy(op->change.data, req->data, req->len);
	op->change.len = req->len;
	ag_op_send(op);
	return 0;
}

void ag_req_op(struct ag_req *req, struct ag_op *op, int err, uint64_t off)
{
	if (err) {
		req->err = err;
		op->req = NULL;
		req->op = NULL;
		ag_vn_kick(req->vn);
	}
	req->ret = off;
}

void ag_req_op_released(struct ag_req *req, struct ag_op *op)
{
	/*
	 * Now, while the change is still in the journal: a program that was not answered sends its
	 * request again to the next agent, which would take the server's repeat for an answer of now.
	 */
	op->req = NULL;
	req->op = NULL;
	ag_req_finish(req, req->err, req->ret);
}

/* ---- OPEN ---- */

static void open_answer(struct ag_req *req, int err, const char *text)
{
	struct rf_open_r r = {.err = err};
	struct ag_vnode *vn = req->vn;

	if (err) {
		snprintf(r.text, sizeof(r.text), "%s", text);
		ag_send(req->reply, &r, sizeof(r), NULL, 0);
	} else {
		r.vnode = vn->id;
		r.key = req->q.key;
		ag_vn_stat_add(vn, req->open.dev, req->open.ino);
		if (!ag_send(req->reply, &r, sizeof(r), (int[]){vn->data_fd, vn->state_fd}, 2))
			ag_vn_use(vn, req->proc, 1, AG_KEY_BIT(req->q.key));
	}
	req_free(req);
}

/* The vnode is there: what the program finds is as of now. */
static void finish_open(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const char *why;

	vn->key = req->q.key;
	if (!ag_vn_valid(vn) && (!req->asked || vn->asking) && !silent(vn) &&
	    ag_volume_ready(vn->vol, req->born, &why) > 0) {
		req->asked = true;
		ag_fetch_status(vn);
		return;
	}
	open_answer(req, 0, "");
}

/* Errors of the file system speak for themselves; those of keys do not. */
static void refusal(const struct ag_req *req, int err, char *text, size_t len)
{
	const char *what = NULL;

	switch (err) {
	case EKEYREVOKED:
		what = "was revoked";
		break;
	case EKEYEXPIRED:
		what = "has expired";
		break;
	case EKEYREJECTED:
	case ENOKEY:
		what = "is unknown there, or its secret differs";
		break;
	}
	text[0] = '\0';
	if (what)
		snprintf(text, len, "key %.40s %s (server %s)", ag_key_name(req->ag, req->q.key),
			 what, req->vol->srv->addr);
}

static bool on_lookup(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_req *req = c->arg;
	struct ag *ag = c->srv->ag;
	const rf_status *st;
	struct ag_vnode *vn;
	char text[120];
	int err;

	(void)payload;
	(void)len;
	ag->again = true;
	if (req)
		req->call = NULL;
	if (!m)
		return false; /* asked again when the server is back */
	if (m->body.type == RF_ERROR) {
		const rf_error *e = &m->body.rf_body_u.error;

		if (req) {
			refusal(req, (int)e->err, text, sizeof(text));
			open_answer(req, e->err ? -(int)e->err : -EIO, text);
		}
		return false;
	}
	st = &m->body.rf_body_u.status_r;
	if (m->body.type != RF_STATUS_R || !st->dv) {
		ag_server_garbage(c->srv, "an answer to LOOKUP that is none");
		return false;
	}
	if (!req)
		return false;
	vn = ag_vn_find(ag, c->vol, &st->fid);
	if (!vn) {
		vn = ag_vn_new(c->vol, st, req->path, &err);
		if (!vn) {
			snprintf(text, sizeof(text), "the agent cannot hold it: %s",
				 strerror(-err));
			open_answer(req, err, text);
			return false;
		}
		ag_vn_promise(vn, st->promise_ms ? c->sent_at + st->promise_ms * AG_MS : 0);
	} else {
		ag_vn_path(vn, req->path);
		/* Another version, older or newer: STATUS will tell. */
		c->epoch = vn->epoch - 1;
		if (ag_fetch_judge(vn, st, c) < 0)
			ag_vn_unpromise(vn);
	}
	req->vn = vn;
	ag_list_del(&req->link);
	ag_list_add(&vn->reqs, &req->link);
	ag_vn_kick(vn);
	return false;
}

static void serve_open(struct ag_req *req)
{
	struct rf_msg m = {.body.type = RF_LOOKUP};
	rf_lookup *l = &m.body.rf_body_u.lookup;
	struct ag_server *srv = req->vol->srv;
	const char *why = "";
	char text[120];
	int r;

	if (req->call && !ag_overdue(req->ag, req->call->sent_at))
		return;
	r = ag_volume_ready(req->vol, req->born, &why);
	if (r > 0 && req->call) {
		why = "it does not answer";
		r = -ETIMEDOUT;
	}
	if (r < 0) {
		snprintf(text, sizeof(text), "server %.40s, volume %.20s: %.40s", srv->addr,
			 req->vol->name, why);
		/* ENOENT is of the socket or the volume; the program would take it for the file's.
		 */
		open_answer(req, r == -ENOENT ? -EHOSTDOWN : r, text);
		return;
	}
	if (!r)
		return;
	l->volume = req->vol->handle;
	l->key = ag_key_show(srv, req->q.key);
	l->flags = req->open.flags;
	l->mode = req->open.mode;
	l->path = req->path;
	req->call = ag_call_new(req->vol, NULL, on_lookup, req);
	ag_call_send(req->call, &m, NULL, 0);
}

void ag_opens_serve(struct ag *ag)
{
	struct ag_req *req;

	ag_for_each (req, &ag->opens, link)
		serve_open(req);
}

bool ag_req_wants(const struct ag_server *srv)
{
	struct ag_req *req;

	ag_for_each (req, &srv->ag->opens, link)
		if (req->vol->srv == srv)
			return true;
	return false;
}

static const char *open_parse(struct ag_proc *p, const struct rf_req *q, void *var, size_t len,
			      int reply)
{
	const struct rf_open *o = var;
	char *s = (char *)var + sizeof(*o), *secret;
	struct ag_server *srv;
	struct ag_req *req;
	char addr[256], name[RF_MAX_NAME + 1];
	int key = 0;

	if (len < sizeof(*o) || len != sizeof(*o) + (size_t)o->addr_len + (size_t)o->name_len +
					   (size_t)o->path_len + (size_t)o->key_len +
					   (size_t)o->secret_len)
		return "an OPEN of the wrong length";
	secret = s + o->addr_len + o->name_len + o->path_len + o->key_len;
	if (o->key_len)
		key = ag_key_get(p->ag, secret - o->key_len, o->key_len, secret, o->secret_len);
	explicit_bzero(secret, o->secret_len);
	if (key == -EINVAL || !o->addr_len || o->addr_len >= sizeof(addr) || !o->name_len ||
	    o->name_len >= sizeof(name) || !o->path_len || o->path_len > RF_MAX_PATH ||
	    memchr(s, 0, (size_t)o->addr_len + o->name_len + o->path_len))
		return "an OPEN with a name that is none";
	memcpy(addr, s, o->addr_len);
	addr[o->addr_len] = '\0';
	memcpy(name, s + o->addr_len, o->name_len);
	name[o->name_len] = '\0';
	req = ag_req_new(p->ag, p, NULL);
	req->q = *q;
	req->q.key = key > 0 ? (uint32_t)key : 0;
	req->open = *o;
	req->reply = reply;
	req->path = strndup(s + o->addr_len + o->name_len, o->path_len);
	if (key < 0) {
		snprintf(name, sizeof(name), "%u keys are in use on this host, no more fit",
			 RF_KEYS - 1);
		open_answer(req, key, name);
		return NULL;
	}
	srv = ag_server_get(p->ag, addr);
	if (!srv || !req->path) {
		open_answer(req, -ENFILE, "too many servers are known to the agent");
		return NULL;
	}
	req->vol = ag_volume_get(srv, name);
	ag_list_add(&p->ag->opens, &req->link);
	p->ag->again = true;
	return NULL;
}

/* ---- dispatch ---- */

void ag_reqs_serve(struct ag_vnode *vn)
{
	struct ag_req *req;

	ag_for_each (req, &vn->reqs, link) {
		switch (req->q.op) {
		case RF_OP_OPEN:
			finish_open(req);
			break;
		case RF_OP_FAULT:
			serve_fault(req);
			break;
		case RF_OP_FLUSH:
			serve_flush(req);
			break;
		case RF_OP_EXTEND:
			serve_extend(req);
			break;
		case RF_OP_APPEND:
			serve_append(req);
			break;
		case RF_OP_INVALIDATE:
			ag_inval_serve(req);
			break;
		case RF_OP_SEEK:
			ag_seek_serve(req);
			break;
		default:
			ag_structural_serve(req);
			break;
		}
		if (ag_vn_busy(vn))
			return;
	}
}

static void close_vnode(struct ag_proc *p, struct ag_vnode *vn, uint64_t opens)
{
	struct ag_use *u;

	ag_for_each (u, &vn->uses, by_vnode)
		if (u->proc == p) {
			if (u->opens > opens)
				u->opens -= (uint32_t)opens;
			else
				ag_vn_unuse(u);
			break;
		}
	ag_vn_trim(p->ag, false);
}

/* A fork child: it holds the file under any of the keys that its parent opened it under. */
static int adopt(struct ag_proc *p, struct ag_vnode *vn, const struct rf_req *q)
{
	uint64_t keys = AG_KEY_BIT(q->key);
	struct ag_use *u;

	ag_for_each (u, &vn->uses, by_vnode)
		keys |= u->keys;
	return ag_vn_use(vn, p, (uint32_t)ag_min(q->arg[0], 1u << 30), keys) ? 0 : -ENOMEM;
}

/* Goes on for nobody; not more than what would push itself out of the cache again. */
static void ahead(struct ag_vnode *vn, const struct rf_req *q)
{
	struct ag_req *req;
	unsigned n = 0;

	ag_for_each (req, &vn->reqs, link)
		n += req->q.op == RF_OP_FAULT && (req->q.arg[2] & RF_FAULT_NOWAIT);
	if (n >= AHEADS_MAX)
		return;
	req = ag_req_new(vn->ag, NULL, vn);
	req->q = *q;
	req->q.arg[1] = ag_min(q->arg[1], vn->ag->budget / 8);
	ag_list_add(&vn->reqs, &req->link);
	ag_vn_kick(vn);
}

static void request(struct ag_proc *p, const struct rf_req *q, const void *var, size_t len)
{
	struct ag_vnode *vn = ag_vn_get(p->ag, q->vnode);
	struct ag_req *req;
	int r = 0;

	if (q->op == RF_OP_FLUSH && !q->vnode) {
		if (q->arg[2] & RF_FLUSH_DURABLE)
			flush_all(p->ag, p, q);
		else
			short_new(p->ag, p, q);
		return;
	}
	if (!vn) {
		ag_proc_answer(p, q->cell, q->seq, -ESTALE, 0, 0);
		return;
	}
	switch (q->op) {
	case RF_OP_CLOSE:
		close_vnode(p, vn, q->arg[0]);
		return;
	case RF_OP_NAMELESS:
		atomic_store(&vn->st->nameless, 1);
		ag_proc_answer(p, q->cell, q->seq, 0, 0, 0);
		return;
	case RF_OP_ADOPT:
		ag_proc_answer(p, q->cell, q->seq, adopt(p, vn, q), 0, 0);
		return;
	case RF_OP_FLUSH:
		if (q->arg[2] & RF_FLUSH_NOWAIT) {
			flush_start(vn, q, false);
			ag_proc_answer(p, q->cell, q->seq, 0, 0, 0);
			return;
		}
		flush_new(vn, p, q);
		return;
	case RF_OP_FAULT:
		if (!(q->arg[2] & RF_FAULT_NOWAIT))
			break;
		ag_proc_answer(p, q->cell, q->seq, 0, 0, 0);
		ahead(vn, q);
		return;
	case RF_OP_INVALIDATE:
		r = ag_inval_check(q->arg[1], q->arg[2]);
		break;
	case RF_OP_SEEK:
		r = q->arg[1] != SEEK_DATA && q->arg[1] != SEEK_HOLE ? -EINVAL
		    : q->arg[0] > AG_SIZE_MAX                        ? -ENXIO
								     : 0;
		break;
	case RF_OP_SETSIZE:
	case RF_OP_FALLOC:
	case RF_OP_REMAP:
	case RF_OP_APPEND:
		/* Sent again, and answered by then: it must not be done twice. */
		if (!ag_proc_waits(p, q->cell, q->seq))
			return;
		if (q->op == RF_OP_APPEND)
			r = len > RF_APPEND_MAX ? -EINVAL : 0;
		else
			r = ag_structural_check(p->ag, vn, q);
		break;
	}
	if (r) {
		ag_proc_answer(p, q->cell, q->seq, r, 0, 0);
		return;
	}
	req = ag_req_new(p->ag, p, vn);
	req->q = *q;
	if (q->op == RF_OP_APPEND) {
		req->data = ag_memdup(var, len);
		req->len = len;
	}
	ag_list_add(&vn->reqs, &req->link);
	if (q->op == RF_OP_SETSIZE || q->op == RF_OP_FALLOC || q->op == RF_OP_REMAP)
		ag_structural_new(req);
	ag_vn_kick(vn);
}

void ag_req_packet(struct ag_proc *p, void *buf, size_t len, const int *fd, unsigned nfd)
{
	const char *bad = NULL;
	struct rf_req q;

	if (len < sizeof(q)) {
		bad = "sent a packet that is too short";
		goto out;
	}
	memcpy(&q, buf, sizeof(q));
	q.key = ag_key_check(p->ag, q.key);
	buf = (char *)buf + sizeof(q);
	len -= sizeof(q);
	if (q.version != RF_AGENT_VERSION)
		bad = "sent a request of another version";
	else if (p->nreqs >= REQS_MAX)
		bad = "has too many requests under way";
	else if (q.op == RF_OP_OPEN && nfd == 1)
		bad = open_parse(p, &q, buf, len, fd[0]);
	else if (nfd || q.op < RF_OP_OPEN || q.op > RF_OP_SEEK || q.op == RF_OP_INFO)
		bad = "sent a request that makes no sense";
	else if (len && q.op != RF_OP_APPEND)
		bad = "sent a request with bytes that do not belong there";
	else
		request(p, &q, buf, len);
	if (!bad && nfd)
		return; /* taken */
out:
	for (unsigned i = 0; i < nfd; i++)
		close(fd[i]);
	if (bad)
		ag_proc_garbage(p, bad);
}
