/* SPDX-License-Identifier: MIT */
/*
 * op.c - changes on their way to the server.
 *
 * Protocol.  Each is answered twice: APPLIED, when the change is in the file, in stream order with
 * breaks: the version steps over our own change if it was the version before; RELEASED, when nobody
 * can see the old bytes any more.  A program's flush waits for RELEASED.
 *
 * A connection that is lost: a STORE that was not applied is forgotten, its pages are DIRTY again
 * and the next flush makes a new one from them.  Everything else (also a STORE that was applied but
 * not released) is sent again, with the same request id, which the server does not apply twice.
 *
 * Rejection.  A STORE that the server refuses for good marks its pages REJECTED, counts an error
 * and has them excised; a refusal for other reasons leaves them DIRTY for the next flush.
 *
 * Counters: store, redirty (flush.c), excise (change.c).
 * Locks: page words by CAS; a word is moved on only if it is still the one that was sent.
 */
#include "op.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "change.h"
#include "fetch.h"
#include "key.h"
#include "req.h"
#include "server.h"

struct ag_op *ag_op_new(struct ag_vnode *vn, enum rf_type type)
{
	struct ag_op *op = ag_alloc(sizeof(*op));

	op->vn = vn;
	op->type = type;
	op->seq = ++vn->op_seq;
	op->request = (uint64_t)vn->ag->life << 40 | ++vn->ag->request;
	vn->unapplied++;
	ag_list_init(&op->slow);
	ag_list_add(&vn->ops, &op->link);
	if (type != RF_SYNC)
		atomic_fetch_add(&vn->st->wb_inflight, 1);
	return op;
}

void ag_op_end(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	if (!op->applied)
		vn->unapplied--;
	if (op->gated)
		vn->gate = false;
	if (op->type != RF_SYNC)
		atomic_fetch_sub(&vn->st->wb_inflight, 1);
	ag_list_del(&op->link);
	ag_list_del(&op->slow);
	for (uint32_t i = 0; i < op->npages; i++)
		free(op->page[i].snap);
	free(op->page);
	free(op->change.range);
	free(op->change.data);
	ag_vn_kick(vn);
	free(op);
}

void *ag_op_snapshot(const struct ag_vnode *vn, uint64_t page)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		for (uint32_t i = 0; !op->applied && i < op->npages; i++)
			if (op->page[i].page == page && op->page[i].snap)
				return op->page[i].snap;
	return NULL;
}

uint64_t ag_ops_size(const struct ag_vnode *vn)
{
	uint64_t size = vn->ssize;
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link) {
		if (op->applied)
			continue;
		if (op->type == RF_STORE && op->may_extend && op->change.n) {
			const rf_range *r = &op->change.range[op->change.n - 1];
			size = ag_max(size, r->off + r->len);
		} else if (op->type == RF_SET_SIZE && op->grow_only && !op->keep_size) {
			size = ag_max(size, op->size);
		}
	}
	return size;
}

bool ag_ops_done(const struct ag_vnode *vn, uint64_t seq)
{
	struct ag_op *op = ag_first(&vn->ops, struct ag_op, link);

	return !op || op->seq > seq;
}

bool ag_ops_applied(const struct ag_vnode *vn, uint64_t seq)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		if (op->seq <= seq && !op->applied)
			return false;
	return true;
}

bool ag_ops_silent(const struct ag_vnode *vn, uint64_t seq, uint64_t since)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		if (op->seq <= seq && op->state == AG_OP_SENT &&
		    ag_overdue(vn->ag, ag_max(op->since, since)))
			return true;
	return false;
}

/* ---- pages ---- */

void ag_op_undo(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	atomic_store(&vn->st->dirtied, 1);
	for (uint32_t i = 0; i < op->npages; i++) {
		struct ag_op_page *p = &op->page[i];

		if (!p->snap)
			ag_word_move(&vn->word[p->page], p->word, rf_w_to(p->word, RF_PG_DIRTY));
	}
}

static void pages_applied(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	struct ag *ag = vn->ag;

	for (uint32_t i = 0; i < op->npages; i++) {
		struct ag_op_page *p = &op->page[i];
		rf_word *word = &vn->word[p->page];
		void *twin = ag_twin(ag, p->word);

		if (!p->snap) {
			if (ag_word_move(word, p->word, rf_w_clean(p->word, RF_PG_UPTODATE, 0)))
				ag_twin_free(ag, rf_w_twin(p->word));
		} else if (twin && atomic_load(word) == rf_w_to(p->word, RF_PG_DIRTY)) {
			memcpy(twin, p->snap, RF_PAGE_SIZE);
			ag_twin_unmark(ag, rf_w_twin(p->word));
		}
		free(p->snap);
		p->snap = NULL;
	}
}

static void pages_rejected(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	for (uint32_t i = 0; i < op->npages; i++) {
		struct ag_op_page *p = &op->page[i];
		uint64_t w = p->snap ? rf_w_to(p->word, RF_PG_DIRTY) : p->word;

		/* Test and set: excised once. */
		if (ag_word_move(&vn->word[p->page], w, rf_w_clean(w, RF_PG_REJECTED, 1)))
			ag_twin_free(vn->ag, rf_w_twin(w));
	}
}

/* ---- answers ---- */

static bool rejection(int err)
{
	switch (err) {
	case EACCES:
	case EPERM:
	case EROFS:
	case EDQUOT:
	case ENOSPC:
	case EFBIG:
	case EKEYEXPIRED:
	case EKEYREVOKED:
	case EKEYREJECTED:
	case ENOENT:
	case ESTALE:
	case EIO:
		return true;
	}
	return false;
}

static void wb_error(struct ag_vnode *vn, int err)
{
	rf_errseq_set(vn->st, err);
}

static void op_failed(struct ag_op *op, const rf_error *e)
{
	struct ag_vnode *vn = op->vn;
	int err = e->err ? (int)e->err : EIO;
	bool ours = op->type == RF_STORE || (op->type == RF_SET_SIZE && !op->program);
	bool told = true; /* by the error sequence */

	if (op->applied || op->type == RF_SYNC) {
		wb_error(vn, err);
		ag_log("%s: cannot be made durable: %s (%s)", vn->path, strerror(err), e->what);
	} else if (ours && rejection(err)) {
		wb_error(vn, err);
		ag_log(
		    "%s: the server refused the write-back of %u pages: %s (%s); they are dropped",
		    vn->path, op->npages, strerror(err), e->what);
		pages_rejected(op);
		ag_task_post(ag_task_new(vn, ag_step_excise));
	} else if (ours) {
		ag_log("%s: write-back failed: %s (%s); it will be tried again", vn->path,
		       strerror(err), e->what);
		ag_op_undo(op);
		told = false;
	}
	if (!told)
		ag_reqs_op_error(vn, op, -err);
	if (op->req)
		ag_req_op(op->req, op, -err, 0);
	ag_op_end(op);
}

/* What else changes here because a size operation was applied. */
static void change_here(struct ag_op *op, const rf_applied *a)
{
	struct ag_vnode *vn = op->vn;
	struct ag_task *t = ag_task_new(vn, ag_step_change);

	t->have_st = true;
	t->st = a->status;
	t->dv_before = a->dv_before;
	t->exact = op->type == RF_SET_SIZE && !op->grow_only;
	if (op->type == RF_PUNCH) {
		t->punch = true;
		t->nranges = 1;
		t->range = ag_memdup(op->change.range, sizeof(*t->range));
	} else if (op->type == RF_APPEND) {
		t->bytes = true;
		t->nranges = 1;
		t->range = ag_alloc(sizeof(*t->range));
		*t->range = (rf_range){a->off, op->change.len};
		t->data = ag_memdup(op->change.data, op->change.len);
		t->len = op->change.len;
	}
	ag_task_post_front(t);
}

static void op_applied(struct ag_op *op, const rf_applied *a)
{
	struct ag_vnode *vn = op->vn;
	bool spoiled = false;

	op->state = AG_OP_APPLIED;
	if (op->applied)
		return;
	op->applied = true;
	vn->unapplied--;
	if (op->req)
		ag_req_op(op->req, op, 0, a->off);
	if (op->type != RF_STORE) {
		change_here(op, a);
		if (op->gated)
			vn->gate = op->gated =
			    false; /* the change is in front of whatever comes now */
		return;
	}
	for (uint32_t i = 0; vn->target && i < op->npages; i++)
		spoiled |= ag_fetch_to_merge(vn, op->page[i].page);
	pages_applied(op);
	if (!op->durable) {
		vn->unstable_seq = op->seq;
		atomic_store(&vn->st->unstable, 1);
	}
	ag_vn_status(vn, &a->status);
	if (vn->dv && vn->dv == a->dv_before) {
		ag_vn_set_dv(vn, a->status.dv);
	} else if (vn->target && vn->target == a->dv_before && !spoiled) {
		vn->target = a->status.dv;
	} else {
		/* Somebody else's change came before ours; its break did, too. */
		ag_vn_unpromise(vn);
		vn->target = 0;
		vn->nmerge = 0;
	}
	vn->epoch++;
	if (vn->ssize > vn->size) {
		struct ag_task *t = ag_task_new(vn, ag_step_change);

		t->resize = true;
		t->size = vn->ssize;
		ag_task_post_front(t);
	}
}

/* A STORE that was not applied: the next flush makes another one of its pages. */
static void undo(struct ag_op *op)
{
	ag_op_undo(op);
	ag_reqs_op_lost(op->vn, op);
	ag_op_end(op);
}

/*
 * The connection was lost, and the STORE may have been applied, seen, and overwritten by others: it
 * is sent again as it was, under its id, and never made anew.  Its pages must not stand still until
 * then: what is in flight is copied, and they are DIRTY again.  False: it cannot be kept.
 */
static bool keep_for_resend(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	if (op->state != AG_OP_SENT)
		return false;
	for (uint32_t i = 0; i < op->npages; i++) {
		struct ag_op_page *p = &op->page[i];

		if (p->snap)
			continue;
		p->snap = ag_page_dup(ag_vn_page(vn, p->page));
		if (!p->snap)
			return false;
		atomic_store(&vn->st->dirtied, 1);
		ag_word_move(&vn->word[p->page], p->word, rf_w_to(p->word, RF_PG_DIRTY));
	}
	op->state = AG_OP_LOST;
	return true;
}

static bool on_answer(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_op *op = c->arg;
	struct ag_vnode *vn = op->vn;
	const rf_applied *a;

	(void)payload;
	(void)len;
	ag_vn_kick(vn);
	if (!m) {
		if (op->type != RF_STORE || op->applied)
			op->state = AG_OP_LOST;
		else if (!keep_for_resend(op))
			undo(op);
		return false;
	}
	switch (m->body.type) {
	case RF_ERROR:
		op_failed(op, &m->body.rf_body_u.error);
		return false;
	case RF_APPLIED:
		a = &m->body.rf_body_u.applied;
		if (op->state != AG_OP_SENT || op->type == RF_SYNC ||
		    a->status.size > AG_SIZE_MAX || a->status.fid.ino != vn->fid.ino ||
		    a->status.fid.gen != vn->fid.gen)
			break;
		op_applied(op, a);
		return true;
	case RF_RELEASED:
		if (op->state != (op->type == RF_SYNC || op->settle ? AG_OP_SENT : AG_OP_APPLIED))
			break;
		if (op->durable && vn->unstable_seq <= op->seq)
			atomic_store(&vn->st->unstable, 0);
		if (op->type == RF_SYNC)
			vn->barrier = false;
		if (op->req)
			ag_req_op_released(op->req, op);
		ag_op_end(op);
		return false;
	default:
		break;
	}
	ag_server_garbage(c->srv, "an answer to a change that is none");
	return true;
}

/* ---- sending ---- */

static const rf_error unknown = {.err = EIO,
				 .what = (char *)(uintptr_t) "the server was restarted"};

void ag_op_send(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	struct rf_msg m = {.body.type = op->type};
	rf_file file;
	const void *payload = NULL;
	size_t len = 0;

	if (vn->vol->srv->state != AG_UP || !vn->vol->ready) {
		if (op->type == RF_STORE && !op->applied && !op->instance)
			undo(op);
		else
			op->state = AG_OP_LOST; /* ag_ops_resend does it */
		return;
	}
	if (op->instance && op->instance != vn->vol->srv->instance) {
		/* It does not remember ids of before. */
		if (op->applied) {
			op->settle = true;
		} else if (op->type == RF_STORE) {
			undo(op);
			return;
		} else if (op->type == RF_APPEND) {
			op_failed(op, &unknown);
			return;
		}
	}
	op->instance = vn->vol->srv->instance;
	file = ag_key_file(vn, op->key);
	if (op->settle)
		m.body.type = RF_SYNC;
	switch (m.body.type) {
	case RF_STORE: {
		rf_store *s = &m.body.rf_body_u.store;
		s->file = file;
		s->base_dv = vn->dv;
		s->request = op->request;
		s->may_extend = op->may_extend;
		s->durable = op->durable;
		s->soon = op->soon;
		s->ranges.ranges_len = op->change.n;
		s->ranges.ranges_val = op->change.range;
		payload = op->change.data;
		len = op->change.len;
		break;
	}
	case RF_APPEND: {
		rf_append *a = &m.body.rf_body_u.append;
		a->file = file;
		a->request = op->request;
		a->durable = op->durable;
		payload = op->change.data;
		len = op->change.len;
		break;
	}
	case RF_SET_SIZE: {
		rf_set_size *s = &m.body.rf_body_u.set_size;
		s->file = file;
		s->request = op->request;
		s->size = op->size;
		s->grow_only = op->grow_only;
		s->alloc_off = op->alloc_off;
		s->keep_size = op->keep_size;
		break;
	}
	case RF_PUNCH: {
		rf_punch *p = &m.body.rf_body_u.punch;
		p->file = file;
		p->request = op->request;
		p->range = op->change.range[0];
		break;
	}
	default:
		m.body.rf_body_u.sync.file = file;
		m.body.rf_body_u.sync.durable = true;
		break;
	}
	op->state = AG_OP_SENT;
	op->since = ag_now();
	ag_call_send(ag_call_new(vn->vol, vn, on_answer, op), &m, payload, len);
}

void ag_ops_resend(struct ag_vnode *vn)
{
	struct ag_op *op;
	const char *why;

	ag_for_each (op, &vn->ops, link)
		if (op->state == AG_OP_LOST) {
			if (ag_volume_ready(vn->vol, 0, &why) <= 0)
				return;
			ag_op_send(op);
		}
}
