/* SPDX-License-Identifier: MIT */
/*
 * op.c - changes on their way to the server.
 *
 * Protocol.  Each is answered twice: APPLIED, when the change is in the file, in stream order with
 * breaks: the version steps over our own change if it was the version before; RELEASED, when nobody
 * can see the old bytes any more.  A program's flush waits for RELEASED.
 *
 * All of a change lies in a slot of the journal, armed before the first byte goes out and put back
 * when it is over.  So the slots are the changes that a server may know of, and a change is never
 * made anew of what may have been applied, seen, and overwritten by others: it is sent again as it
 * was, under its id, which the server does not apply twice (as long as it remembers: vol->memory).
 * That holds for a connection that is lost and for an agent that is:
 *
 *	Lost connection: what was SENT is LOST, and goes out again, in order, before anything else
 *	about the file.  Pages must not stand still until then: they are loud now, see flush.c.
 *	Crash: the next agent makes LOST changes of all armed slots.  A page of them that is as it
 *	was is loud; one that is not, was finished or cut off, and is not part of it any more.
 *	WRITEBACK pages of no armed slot were never sent, and are DIRTY.
 *	A flush that was told to wait for the agent's changes still does: they are all here,
 *	wb_inflight counts them, and those that are applied and not durable left `unstable` set.
 *	A program that waits for its change sends the request again, with the same id, and finds the
 *	change here; or it is answered before it does.
 *
 * A server that remembers nothing of before: a STORE that was not applied is diffed anew, an APPEND
 * fails and so does what moves bytes, sizes and holes are asked for again, what was applied is made durable by SYNC.  The last is
 * also what becomes of a change that waits for its release while so many others are made that its
 * id may be forgotten (RF_REMEMBER): repeated it would be applied again.
 *
 * What a program asked for holds the gate of the file (freeze.h) until the cache has followed; what
 * is frozen is thawed when the connection is lost, see unsure().
 *
 * The answer to a repeat is the one of then: if it does not fit the version here, the version is
 * forgotten, since bytes that were thought to be on their way have been left out of merges.
 *
 * Counters: store, redirty (flush.c), resend, reject (reject.c).
 * Locks: page words by CAS; a word is moved on only if it is still the one that was sent.
 */
#include "op.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "change.h"
#include "fetch.h"
#include "freeze.h"
#include "key.h"
#include "reject.h"
#include "req.h"
#include "server.h"

static struct ag_op *op_make(struct ag_vnode *vn, struct ag_slot *s, enum rf_type type)
{
	struct ag_op *op = ag_alloc(sizeof(*op));

	op->vn = vn;
	op->type = type;
	op->slot = s;
	if (s) {
		op->page = s->page;
		op->change = (struct ag_change){
		    .range = s->range, .cap = RF_MAX_RANGES, .data = s->data, .size = RF_MAX_DATA};
	}
	ag_list_init(&op->slow);
	ag_list_add(&vn->ops, &op->link);
	return op;
}

struct ag_op *ag_op_new(struct ag_vnode *vn, enum rf_type type, bool spare)
{
	struct ag_slot *s = type == RF_SYNC ? NULL : ag_slot_take(vn, spare);
	struct ag_op *op;

	if (!s && type != RF_SYNC)
		return NULL;
	op = op_make(vn, s, type);
	op->seq = ++vn->op_seq;
	op->request = (uint64_t)vn->ag->life << 40 | ++vn->ag->request;
	vn->unapplied++;
	if (type != RF_SYNC)
		atomic_fetch_add(&vn->st->wb_inflight, 1);
	return op;
}

void ag_op_end(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	if (!op->applied)
		vn->unapplied--;
	if (op->hold)
		ag_hold_end(op->hold);
	if (op->type != RF_SYNC)
		atomic_fetch_sub(&vn->st->wb_inflight, 1);
	ag_list_del(&op->link);
	ag_list_del(&op->slow);
	if (op->slot)
		ag_slot_put(vn, op->slot);
	if (vn->wind && !vn->unapplied)
		ag_excise(vn, 0, 0);
	ag_gate_wake(vn);
	free(op);
}

uint8_t *ag_op_inflight(const struct ag_vnode *vn, uint64_t page)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		for (uint32_t i = 0; op->armed && !op->applied && i < op->npages; i++)
			if (op->page[i].page == page && op->page[i].loud)
				return op->slot->bits[i];
	return NULL;
}

uint64_t ag_op_word(const struct ag_op *op, uint32_t i)
{
	const struct ag_slot_page *p = &op->page[i];

	return op->armed && p->loud ? rf_w_to(p->word, RF_PG_DIRTY) : p->word;
}

struct ag_op *ag_op_find(struct ag_vnode *vn, uint64_t request)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		if (op->program && op->request == request)
			return op;
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
		} else if (op->type == RF_SET_SIZE && op->grow_only) {
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

bool ag_ops_drained(const struct ag_vnode *vn)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		if (!op->applied && op->type != RF_SYNC)
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

/*
 * A page is DIRTY again while it is on its way: bits says what of it is, and what is marked from
 * now on was written after that.
 */
static void make_loud(struct ag_op *op, uint32_t i)
{
	struct ag_vnode *vn = op->vn;
	const uint64_t w = op->page[i].word;
	_Atomic uint8_t *mark = ag_twin_mark(vn->ag, w);

	if (atomic_load(&vn->word[op->page[i].page]) != w)
		return; /* cut off, or dropped: the twin is another page's by now */
	if (mark)
		ag_unmark_bits(mark, op->slot->bits[i]);
	atomic_store(&vn->st->dirtied, 1);
	ag_word_move(&vn->word[op->page[i].page], w, rf_w_to(w, RF_PG_DIRTY));
}

void ag_op_arm(struct ag_op *op)
{
	struct ag_slot *s = op->slot;

	s->type = op->type;
	s->key = op->key;
	s->seq = op->seq;
	s->request = op->request;
	s->memory = op->memory;
	s->durable = op->durable;
	s->may_extend = op->may_extend;
	s->program = op->program;
	s->size = op->size;
	s->grow_only = op->grow_only;
	s->mode = op->mode;
	s->src = op->src;
	s->npages = op->npages;
	s->nranges = op->change.n;
	s->len = op->change.len;
	for (uint32_t i = 0; i < op->npages; i++)
		if (op->page[i].loud)
			ag_sent_bits(&op->change, op->page[i].page, s->bits[i]);
	ag_slot_arm(op->vn->ag, s);
	op->armed = true;
	for (uint32_t i = 0; i < op->npages; i++)
		if (op->page[i].loud)
			make_loud(op, i);
}

void ag_op_undo(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	struct ag *ag = vn->ag;

	atomic_store(&vn->st->dirtied, 1);
	for (uint32_t i = 0; i < op->npages; i++) {
		const struct ag_slot_page *p = &op->page[i];
		const uint64_t w = ag_op_word(op, i);

		if (rf_w_state(w) == RF_PG_WRITEBACK)
			ag_word_move(&vn->word[p->page], w, rf_w_to(w, RF_PG_DIRTY));
		else if (atomic_load(&vn->word[p->page]) == w)
			ag_twin_mark_again(ag, rf_w_twin(w), op->slot->bits[i]);
	}
}

/* False: one of its pages was dropped meanwhile, and what is there now is without the change. */
static bool pages_applied(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	struct ag *ag = vn->ag;
	bool all = true;

	for (uint32_t i = 0; i < op->npages; i++) {
		struct ag_slot_page *p = &op->page[i];
		rf_word *word = &vn->word[p->page];
		const uint64_t w = ag_op_word(op, i);
		void *twin = ag_twin(ag, w);

		if (p->word == AG_SLOT_DONE)
			continue;
		if (rf_w_state(w) == RF_PG_WRITEBACK) {
			if (ag_word_move(word, w, rf_w_clean(w, RF_PG_UPTODATE, 0)))
				ag_twin_free(ag, rf_w_twin(w));
			else
				all = false;
		} else if (twin && atomic_load(word) == w) {
			ag_sent_arrived(&op->change, p->page, op->slot->bits[i], twin);
		} else {
			all = false;
		}
	}
	atomic_signal_fence(memory_order_seq_cst);
	op->slot->applied = 1;
	return all;
}

/* ---- answers ---- */

/* A program waits for it; also one whose request this agent has not got. */
static void answer(struct ag_op *op, int err)
{
	if (op->req && err)
		ag_req_op(op->req, op, err, 0);
	else if (op->req)
		ag_req_op_released(op->req, op);
	else if (op->program)
		ag_proc_changed(op->vn->ag, op->request, err, op->off);
}

static void op_failed(struct ag_op *op, const rf_error *e)
{
	struct ag_vnode *vn = op->vn;
	int err = e->err && e->err < 4096 ? (int)e->err : EIO;
	bool ours = op->type == RF_STORE || (op->type == RF_SET_SIZE && !op->program);

	if (op->applied || op->type == RF_SYNC) {
		rf_errseq_set(vn->st, err);
		ag_log("%s: cannot be made durable: %s (%s)", vn->path, strerror(err), e->what);
	} else if (ours && ag_rejection(err) != AG_REJECT_NOT && vn->ag->conf->no_excise) {
		rf_errseq_set(vn->st, err);
		ag_op_undo(op);
	} else if (ag_rejection(err) == AG_REJECT_PAGES && op->npages > 1) {
		/* Which of its pages it is about, smaller STOREs will tell. */
		vn->batch =
		    vn->batch ? (uint32_t)ag_min(vn->batch, op->npages / 2) : op->npages / 2;
		ag_op_undo(op);
		ag_reqs_op_lost(vn, op);
	} else if (ours && ag_rejection(err) != AG_REJECT_NOT) {
		ag_reject(op, err, e->what, true);
		if (ag_rejection(err) == AG_REJECT_RECORD)
			ag_reject_record(op, err);
	} else if (ours) {
		ag_log("%s: write-back failed: %s (%s); it will be tried again", vn->path,
		       strerror(err), e->what);
		ag_op_undo(op);
		ag_reqs_op_error(vn, op, -err);
	}
	answer(op, -err);
	ag_op_end(op);
}

/* ---- what changes here ---- */

/* The file goes on with other bytes at these places, or may: nothing cached of them is right any more. */
static bool moves(const struct ag_op *op)
{
	return (op->type == RF_FALLOC &&
		(op->mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))) ||
	       (op->type == RF_REMAP && op->src.kind != RF_REMAP_DEDUPE);
}

/* The pages that it is about, of a REMAP of so many bytes. */
static void evict_what(const struct ag_op *op, struct ag_task *t, uint64_t bytes)
{
	const uint64_t off = op->change.range->off;

	t->evict = true;
	t->page = off >> RF_PAGE_SHIFT;
	t->end = op->type == RF_FALLOC ? UINT64_MAX : bytes ? RF_PAGES(off + bytes) : t->page;
}

/* Others may go on, and store. */
static void open_gate(struct ag_op *op)
{
	if (op->hold)
		ag_hold_end(op->hold);
	op->hold = NULL;
}

/* The change of the cache is complete, too. */
static void changed_here(struct ag_task *t)
{
	if (!t->err)
		t->op->slot->applied = 1;
	open_gate(t->op);
}

static void thaw_here(struct ag_task *t)
{
	if (t->op->hold)
		ag_hold_thaw(t->op->hold);
}

/*
 * It was sent, and nobody knows when there will be an answer: stores do not wait for it any longer.
 * Until it comes, and after, pages that it is about are fetched anew; the gate stays shut, so that
 * nothing of this host overtakes it.  What is dirty by then was stored after it, and is merged.
 */
static void unsure(struct ag_op *op)
{
	struct ag_task *t;

	if (!op->hold || op->applied)
		return;
	ag_hold_keep(op->hold, op->vn);
	if (!moves(op)) {
		ag_hold_thaw(op->hold);
		return;
	}
	t = ag_task_new(op->vn, ag_step_evict);
	evict_what(op, t, op->change.range->len ? op->change.range->len : AG_SIZE_MAX);
	t->op = op; /* there until the task is over, as answers wait behind tasks */
	t->done = thaw_here;
	ag_task_post(t);
}

void ag_ops_overdue(struct ag_vnode *vn)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		if (op->hold && vn->frozen && !ag_vn_busy(vn) && op->state == AG_OP_SENT &&
		    ag_overdue(vn->ag, op->since))
			unsure(op);
}

/* What else changes here because something other than a STORE was applied. */
static void change_here(struct ag_op *op, const rf_applied *a)
{
	struct ag_vnode *vn = op->vn;
	struct ag_task *t = ag_task_new(vn, ag_step_change);

	t->have_st = true;
	t->st = a->status;
	t->dv_before = a->dv_before;
	t->exact = op->type == RF_SET_SIZE && !op->grow_only;
	t->repeat = op->again;
	/* It is there until the task is over: answers about the file wait behind tasks. */
	t->op = op;
	t->done = changed_here;
	if (moves(op)) {
		evict_what(op, t, a->off);
	} else if (op->type == RF_FALLOC &&
		   (op->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))) {
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

/* A STORE has arrived of which pages were dropped here (truncated, discarded): they go once more. */
static void drop_here(struct ag_op *op, const rf_applied *a)
{
	struct ag_task *t = ag_task_new(op->vn, ag_step_change);

	t->have_st = true;
	t->st = a->status;
	t->dv_before = a->dv_before;
	t->repeat = op->again;
	t->drop = true;
	t->nranges = op->change.n;
	t->range = ag_memdup(op->change.range, op->change.n * sizeof(*t->range));
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
	op->apply = ++vn->applies;
	vn->unapplied--;
	ag_gate_wake(vn);
	if (!op->durable) {
		vn->unstable_at = op->apply;
		atomic_store(&vn->st->unstable, 1);
	}
	op->off = op->slot->off = a->off;
	op->slot->nth = ++vn->ag->journal->changes;
	if (op->req)
		ag_req_op(op->req, op, 0, a->off);
	if (op->type != RF_STORE) {
		/* The source of a REMAP may be stored to again. */
		if (op->hold)
			ag_hold_keep(op->hold, vn);
		change_here(op, a);
		return;
	}
	if (vn->batch)
		vn->batch = vn->batch < AG_JOURNAL_PAGES ? 2 * vn->batch : 0;
	for (uint32_t i = 0; vn->target && i < op->npages; i++)
		spoiled |= ag_fetch_to_merge(vn, op->page[i].page);
	if (!pages_applied(op)) {
		drop_here(op, a);
		return;
	}
	if (vn->dv && vn->dv == a->dv_before) {
		ag_vn_status(vn, &a->status);
		ag_vn_set_dv(vn, a->status.dv);
	} else if (vn->target && vn->target == a->dv_before && !spoiled) {
		ag_vn_status(vn, &a->status);
		vn->target = a->status.dv;
	} else if (op->again) {
		ag_vn_accepted(vn, a->status.size);
		ag_vn_forget_version(vn);
	} else {
		/*
		 * Somebody else's change came before ours; its break did, too.  If that cut the file,
		 * it is cut here when it is validated: what lies behind was not extended here.
		 */
		rf_status st = a->status;

		st.size = ag_max(st.size, vn->ssize);
		ag_vn_status(vn, &st);
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

/* The connection was lost.  Its pages must not stand still until there is another. */
static void keep_for_resend(struct ag_op *op)
{
	op->state = AG_OP_LOST;
	for (uint32_t i = 0; !op->applied && i < op->npages; i++) {
		struct ag_slot_page *p = &op->page[i];

		if (p->loud || p->word == AG_SLOT_DONE)
			continue;
		ag_sent_bits(&op->change, p->page, op->slot->bits[i]);
		atomic_signal_fence(memory_order_seq_cst);
		p->loud = 1;
		make_loud(op, i);
	}
	unsure(op);
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
		keep_for_resend(op);
		return false;
	}
	switch (m->body.type) {
	case RF_ERROR:
		op_failed(op, &m->body.rf_body_u.error);
		return false;
	case RF_APPLIED:
		a = &m->body.rf_body_u.applied;
		if (op->state != AG_OP_SENT || op->type == RF_SYNC || op->settle ||
		    a->status.size > AG_SIZE_MAX || a->off > AG_SIZE_MAX ||
		    a->status.fid.ino != vn->fid.ino || a->status.fid.gen != vn->fid.gen)
			break;
		op_applied(op, a);
		return true;
	case RF_RELEASED:
		if (op->state != (op->type == RF_SYNC || op->settle ? AG_OP_SENT : AG_OP_APPLIED))
			break;
		/* The server synced the file after it had applied this. */
		if (op->durable && vn->unstable_at <= op->apply)
			atomic_store(&vn->st->unstable, 0);
		answer(op, 0);
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

/*
 * The server still knows its id: not if it has forgotten all, and perhaps not if it was applied
 * long ago and only its release is waited for.  Changes that were applied and not answered count.
 */
static bool remembered(const struct ag_op *op)
{
	const struct ag_volume *vol = op->vn->vol;

	return vol->memory && op->memory == vol->memory &&
	       (!op->applied ||
		op->vn->ag->journal->changes - op->slot->nth + vol->srv->slots < RF_REMEMBER);
}

/* The server does not know what it was asked before.  False: op is gone. */
static bool forgotten(struct ag_op *op)
{
	if (op->applied) {
		op->settle = true;
	} else if (op->type == RF_STORE) {
		undo(op);
		return false;
	} else if (op->type == RF_APPEND || moves(op)) {
		op_failed(op, &unknown);
		return false;
	}
	return true;
}

void ag_op_send(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	const struct ag_volume *vol = vn->vol;
	struct rf_msg m = {.body.type = op->type};
	rf_file file;
	const void *payload = NULL;
	size_t len = 0;

	if (vol->srv->state != AG_UP || !vol->ready) {
		if (op->type == RF_STORE && !op->armed)
			undo(op);
		else
			op->state = AG_OP_LOST; /* ag_ops_resend does it */
		return;
	}
	if (op->armed && !remembered(op) && !forgotten(op))
		return;
	if (op->armed)
		ag_count(vn->ag, RF_R_RESEND, 1);
	op->again = op->armed;
	if (!op->settle) /* that one does not know its id, and never will */
		op->memory = vol->memory;
	if (op->armed)
		op->slot->memory = op->memory;
	else if (op->slot)
		ag_op_arm(op);
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
		break;
	}
	case RF_FALLOC: {
		rf_falloc *f = &m.body.rf_body_u.falloc;
		f->file = file;
		f->request = op->request;
		f->mode = op->mode;
		f->range = op->change.range[0];
		break;
	}
	case RF_REMAP: {
		rf_remap *r = &m.body.rf_body_u.remap;
		r->kind = op->src.kind;
		r->src = file;
		r->src.key = ag_key_show(vol->srv, op->src.key);
		r->src.fid = op->src.fid;
		r->src.path = (char *)op->change.data;
		r->src.nameless = op->src.nameless;
		r->src_off = op->src.off;
		r->file = file;
		r->request = op->request;
		r->dst_off = op->change.range[0].off;
		r->len = op->change.range[0].len;
		break;
	}
	default:
		m.body.rf_body_u.sync.file = file;
		m.body.rf_body_u.sync.durable = op->durable;
		op->apply = vn->applies;
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

/* ---- after a crash ---- */

/* A page of a change that the agent before had sent: still on its way, or done with. */
static void page_adopt(struct ag_op *op, uint32_t i)
{
	struct ag_vnode *vn = op->vn;
	struct ag_slot_page *p = &op->page[i];
	const uint64_t now = atomic_load(&vn->word[p->page]);

	if (p->page < ag_vn_pages(vn) && now == p->word) {
		if (!p->loud)
			ag_sent_bits(&op->change, p->page, op->slot->bits[i]);
		atomic_signal_fence(memory_order_seq_cst);
		p->loud = 1;
		make_loud(op, i);
	} else if (!p->loud || now != ag_op_word(op, i)) {
		p->loud = 0;
		p->word = AG_SLOT_DONE;
	}
}

static void adopt(struct ag_vnode *vn, struct ag_slot *s)
{
	struct ag_op *op = op_make(vn, s, s->type);

	op->armed = true;
	op->state = AG_OP_LOST;
	op->applied = s->applied;
	op->seq = s->seq;
	op->request = s->request;
	op->key = ag_key_check(vn->ag, s->key);
	op->memory = s->memory;
	op->durable = s->durable;
	op->may_extend = s->may_extend;
	op->program = s->program;
	op->off = s->off;
	op->size = s->size;
	op->grow_only = s->grow_only;
	op->mode = s->mode;
	op->src = s->src;
	op->npages = op->applied ? 0 : s->npages;
	op->change.n = s->nranges;
	op->change.len = s->len;
	vn->op_seq = ag_max(vn->op_seq, op->seq);
	atomic_fetch_add(&vn->st->wb_inflight, 1);
	if (op->type == RF_REMAP)
		op->slot->data[op->change.len] = '\0';
	if (!op->applied) {
		vn->unapplied++;
		if (op->program)
			op->hold = ag_hold_new(vn, NULL, 0);
		unsure(op);
	}
	if (s->rejected) {
		ag_reject(op, (int)s->rejected, "found after a crash", true);
		ag_op_end(op);
		return;
	}
	for (uint32_t i = 0; i < op->npages; i++)
		page_adopt(op, i);
}

uint32_t ag_ops_adopt(struct ag_vnode *vn)
{
	struct ag_slot *s;
	struct ag_op *op;
	uint32_t n = 0;

	while ((s = ag_slot_adopt(vn))) {
		if (vn->ag->conf->no_journal) {
			ag_slot_put(vn, s);
		} else if (!ag_slot_sound(s, vn->cap)) {
			ag_log("%s: after the crash: a change on its way makes no sense", vn->path);
			ag_slot_put(vn, s);
		} else {
			adopt(vn, s);
		}
	}
	ag_for_each (op, &vn->ops, link)
		n++;
	return n;
}
