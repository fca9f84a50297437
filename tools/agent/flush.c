/* SPDX-License-Identifier: MIT */
/*
 * flush.c - write-back of dirty pages (DESIGN 11, step 8).
 *
 * For a batch of pages: DIRTY -> WRITEBACK; fence; wait until no slot names them (SLOT_SPIN at
 * once, then until SLOT_WAIT by the fast timer); write-protect them in every program; diff against
 * the twins; send.  From the protection on the pages stand still, and they stay WRITEBACK, with
 * their twins, until the server has applied them.
 *
 * A page that does not become quiet (a slot named it for too long, a program's mapping table would
 * not stand still, it holds a synchronisation object, it is pinned) is loud: it is DIRTY again as soon as what is
 * sent of it has been copied.  A bit a byte in the slot of the journal says what of it is on its way
 * (op.c): merges leave these bytes alone, and they are the twin's when they have been applied.  Until
 * then the page is in no other batch.
 *
 * A batch is one STORE, of pages that are dirty under one key; where the key changes, the next
 * begins.
 *
 * `dirtied` (set by programs before every CAS to DIRTY, slot held) is cleared at the beginning of a
 * walk over the whole file, while wb_inflight is raised so that nobody takes the file for clean; it
 * is set again if a slot named the file just then, or if a page stays DIRTY.
 *
 * Counters: flush-page, flush-bytes, store, redirty.
 * Locks: page words by CAS; slots are only looked at.
 */
#include "flush.h"

#include <errno.h>
#include <string.h>

#include "key.h"
#include "pin.h"
#include "proc.h"
#include "reject.h"
#include "req.h"
#include "server.h"

#define BATCH (RF_MAX_DATA >> RF_PAGE_SHIFT)
#define BREATH 16u    /* batches, before others have their turn: pinned pages may have no changes */
#define STORES_MAX 8u /* under way for one file */
#define SLOT_SPIN (30 * AG_US)
#define SLOT_WAIT (5 * AG_MS)
#define GAP 32u /* pages between two dirty ones that are protected along, for one call less */

/* ---- quiet or not ---- */

static bool slots_busy(const struct ag_op *op)
{
	const struct ag_slot_page *first = &op->page[0], *last = &op->page[op->npages - 1];

	return ag_slots_busy(op->vn->ag, op->vn->id, first->page, last->page - first->page + 1);
}

/*
 * What is pinned stays as it is: it is loud, however it is stored to.  After the look at the slots, in
 * which pins are taken.
 */
static void mark_pinned(struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;

	if (!ag_pins_long(vn, op->page[0].page, op->page[op->npages - 1].page + 1))
		return;
	for (uint32_t i = 0; i < op->npages; i++)
		op->page[i].pinned = ag_pinned_long(vn, op->page[i].page);
}

static int protect(const struct ag_op *op)
{
	uint32_t i = 0, k;
	int r = 0;

	while (i < op->npages) {
		if (op->page[i].pinned) {
			i++;
			continue;
		}
		for (k = i + 1; k < op->npages && !op->page[k].pinned &&
				op->page[k].page - op->page[k - 1].page <= GAP;
		     k++)
			;
		r = ag_procs_protect(op->vn->ag, op->vn->id, op->page[i].page,
				     op->page[k - 1].page);
		if (r)
			break;
		i = k;
	}
	return r;
}

/* ---- the bytes ---- */

struct diff {
	struct ag_change *change;
	const void *page, *twin;
	const _Atomic uint8_t *mark;
	uint64_t off;
	uint32_t limit;
	ssize_t r;
};

static void do_diff(void *arg)
{
	struct diff *d = arg;

	d->r = d->twin ? ag_diff(d->change, d->page, d->twin, d->mark, d->off, d->limit)
		       : ag_diff_all(d->change, d->page, d->off, d->limit);
}

/* The page goes back to be flushed another time. */
static void page_undo(struct ag_vnode *vn, const struct ag_slot_page *p)
{
	atomic_store(&vn->st->dirtied, 1);
	ag_word_move(&vn->word[p->page], p->word, rf_w_to(p->word, RF_PG_DIRTY));
}

/*
 * Diff one page of the batch.  1: it has changes and stays in the op.  0: it has none and is done.
 * -ENOSPC: the STORE is full; the page is as it was.
 */
static int take_page(struct ag_op *op, struct ag_slot_page *p)
{
	struct ag_vnode *vn = op->vn;
	struct ag_change *c = &op->change;
	const uint64_t off = p->page << RF_PAGE_SHIFT;
	struct diff d = {.change = c,
			 .page = ag_vn_page(vn, p->page),
			 .twin = ag_twin(vn->ag, p->word),
			 .mark = ag_twin_mark(vn->ag, p->word),
			 .off = off};
	struct ag_change was = *c;
	uint64_t last = c->n ? c->range[c->n - 1].len : 0;

	d.limit = off >= vn->size ? 0 : (uint32_t)ag_min(RF_PAGE_SIZE, vn->size - off);
	if (ag_guard(do_diff, &d)) {
		/* A program punched it, past us: there is nothing left to send. */
		c->n = was.n;
		c->len = was.len;
		if (c->n)
			c->range[c->n - 1].len = last;
		d.r = 0;
		ag_log("%s: dirty page %llu vanished from the cache", vn->path,
		       (unsigned long long)p->page);
	}
	if (d.r < 0)
		return -ENOSPC;
	if (p->loud)
		ag_count(vn->ag, RF_R_REDIRTY, 1);
	if (d.r) {
		ag_count(vn->ag, RF_R_FLUSH_PAGE, 1);
		ag_count(vn->ag, RF_R_FLUSH_BYTES, (uint64_t)d.r);
		return 1;
	}
	if (p->loud)
		page_undo(vn, p);
	else if (ag_word_move(&vn->word[p->page], p->word, rf_w_clean(p->word, RF_PG_UPTODATE, 0)))
		ag_twin_free(vn->ag, rf_w_twin(p->word));
	return 0;
}

/* Move pages [from, ..) of op to a new op behind it.  NULL: they are flushed another time. */
static struct ag_op *split(struct ag_op *op, uint32_t from)
{
	struct ag_op *rest = ag_op_new(op->vn, RF_STORE, true);

	for (uint32_t i = from; !rest && i < op->npages; i++)
		page_undo(op->vn, &op->page[i]);
	if (!rest) {
		ag_reqs_op_lost(op->vn, op);
		op->npages = from;
		return NULL;
	}
	rest->npages = op->npages - from;
	memcpy(rest->page, op->page + from, rest->npages * sizeof(*rest->page));
	rest->durable = op->durable;
	rest->soon = op->soon;
	rest->key = op->key;
	rest->walk = op->walk;
	op->durable = false;
	op->npages = from;
	/* Who waits for op waits for it, too. */
	rest->seq = op->seq;
	ag_list_del(&rest->link);
	ag_list_insert(&op->link, &rest->link);
	return rest;
}

/* The slots are let go of, or it was waited long enough: protect, diff, send. */
static void batch_go(struct ag_op *op, bool quiet)
{
	ag_list_del(&op->slow);
	while (op) {
		struct ag_vnode *vn = op->vn;
		struct ag_op *rest = NULL;
		uint32_t i, k = 0;

		for (i = 0; i < op->npages; i++) {
			struct ag_slot_page *p = &op->page[i];
			int r;

			p->loud |= !quiet || p->pinned || (p->word & RF_W_SYNC);
			r = take_page(op, p);
			if (r < 0) {
				rest = split(op, i);
				break;
			}
			if (r)
				op->page[k++] = *p;
		}
		op->npages = k;
		if (!op->change.n) {
			ag_op_end(op);
			op = rest;
			continue;
		}
		op->may_extend = vn->size > vn->ssize;
		ag_count(vn->ag, RF_R_STORE, 1);
		ag_op_send(op);
		op = rest;
	}
}

/* Protected, or -EBUSY: try again later. */
static bool batch_try(struct ag_op *op, bool last)
{
	struct ag_vnode *vn = op->vn;
	bool busy = slots_busy(op);
	int r;

	if (busy && !last)
		return false;
	/* Looked at before protecting: who claims a slot from now on finds WRITEBACK. */
	for (uint32_t i = 0; busy && i < op->npages; i++)
		op->page[i].loud = ag_slots_busy(vn->ag, vn->id, op->page[i].page, 1);
	mark_pinned(op);
	r = protect(op);
	if (r == -EBUSY && !last)
		return false;
	if (r && r != -EBUSY)
		ag_log("%s: pages cannot be protected: %s", vn->path, strerror(-r));
	batch_go(op, !r);
	return true;
}

static void batch_start(struct ag_op *op)
{
	uint64_t since = ag_now();

	op->since = since;
	atomic_thread_fence(memory_order_seq_cst);
	while (slots_busy(op) && ag_now() - since < SLOT_SPIN)
		ag_relax();
	if (batch_try(op, false))
		return;
	ag_list_add(&op->vn->ag->slow_ops, &op->slow);
	ag_fast_start(op->vn->ag);
}

void ag_flush_slow(struct ag_op *op, uint64_t now)
{
	struct ag_vnode *vn = op->vn;

	if (batch_try(op, now >= op->since + SLOT_WAIT))
		ag_vn_kick(vn);
}

/* ---- the walk ---- */

void ag_pass_init(struct ag_pass *p, struct ag_vnode *vn, uint64_t page, uint64_t end, bool durable)
{
	*p = (struct ag_pass){.vn = vn,
			      .page = page,
			      .end = end,
			      .whole = !page && end == UINT64_MAX,
			      .durable = durable,
			      .walk = ++vn->ag->walk};
}

void ag_pass_refused(struct ag_pass *p, uint32_t key, int err)
{
	p->refused |= AG_KEY_BIT(key);
	p->err = err;
}

static void pass_begin(struct ag_pass *p)
{
	struct ag_vnode *vn = p->vn;

	p->begun = true;
	if (!p->whole)
		return;
	atomic_fetch_add(&vn->st->wb_inflight, 1);
	atomic_exchange(&vn->st->dirtied, 0);
	atomic_thread_fence(memory_order_seq_cst);
	/* Who holds a slot now may have set it before, and dirty a page after. */
	if (ag_slots_busy(vn->ag, vn->id, 0, 0))
		atomic_store(&vn->st->dirtied, 1);
}

static void pass_end(struct ag_pass *p)
{
	if (p->begun && p->whole)
		atomic_fetch_sub(&p->vn->st->wb_inflight, 1);
	p->begun = false;
}

void ag_pass_stop(struct ag_pass *p)
{
	if (p->begun && p->whole)
		atomic_store(&p->vn->st->dirtied, 1);
	pass_end(p);
}

static unsigned stores_under_way(const struct ag_vnode *vn)
{
	struct ag_op *op;
	unsigned n = 0;

	ag_for_each (op, &vn->ops, link)
		n += op->type == RF_STORE && !op->applied;
	return n;
}

/* Pages that are DIRTY though part of them is on its way. */
static bool any_loud(const struct ag_vnode *vn)
{
	struct ag_op *op;

	ag_for_each (op, &vn->ops, link)
		for (uint32_t i = 0; op->armed && !op->applied && i < op->npages; i++)
			if (op->page[i].loud)
				return true;
	return false;
}

/* Collect up to `batch` pages of one key.  *held: it ended because a page, or a slot, is not free. */
static struct ag_op *collect(struct ag_pass *p, bool *held)
{
	struct ag_vnode *vn = p->vn;
	struct ag_scan s = ag_scan(vn, p->page, ag_min(p->end, ag_vn_pages(vn)));
	const uint32_t batch = vn->batch ? vn->batch : BATCH;
	const bool loud = any_loud(vn), pins = p->unpinned && ag_pins_long(vn, p->page, p->end);
	struct ag_op *op = NULL;
	bool more = false;
	uint64_t page;

	*held = false;
	while (!*held && !more && ag_scan_next(&s, &page)) {
		rf_word *word = &vn->word[page];
		uint64_t w = atomic_load_explicit(word, memory_order_acquire);
		uint64_t to = rf_w_to(w, RF_PG_WRITEBACK);
		uint32_t key;

		if (rf_w_state(w) != RF_PG_DIRTY)
			continue;
		if (pins && ag_pinned_long(vn, page)) {
			atomic_store(&vn->st->dirtied, 1);
			continue;
		}
		key = ag_key_check(vn->ag, rf_w_key(w));
		*held = loud && ag_op_inflight(vn, page);
		more = op && (op->npages == batch || op->key != key);
		p->page = page;
		if (*held || more)
			continue;
		if (!op) {
			op = ag_op_new(vn, RF_STORE, false);
			*held = !op;
			if (!op)
				continue;
			op->state = AG_OP_PREP;
			op->key = key;
			op->walk = p->walk;
		}
		if (ag_word_move(word, w, to))
			op->page[op->npages++] = (struct ag_slot_page){.page = page, .word = to};
	}
	if (!*held && !more)
		p->page = p->end;
	if (op && !op->npages) { /* somebody else was faster */
		ag_op_end(op);
		op = NULL;
	}
	return op;
}

bool ag_pass_step(struct ag_pass *p)
{
	struct ag_vnode *vn = p->vn;
	struct ag_op *op;
	unsigned n = 0;
	bool held;

	if (!p->begun)
		pass_begin(p);
	while (p->page < p->end) {
		if ((vn->gate && vn->gate != p->through) || stores_under_way(vn) >= STORES_MAX ||
		    vn->vol->srv->state != AG_UP || !vn->vol->ready)
			return false;
		if (n++ == BREATH) {
			ag_vn_kick_soon(vn);
			return false;
		}
		op = collect(p, &held);
		if (op && p->refused & AG_KEY_BIT(op->key)) {
			ag_reject(op, p->err, "", false);
			ag_op_end(op);
			return false; /* when it is excised */
		}
		if (op) {
			op->durable = p->durable && p->page == p->end;
			op->soon = p->durable;
			batch_start(op);
		}
		if (held)
			return false;
	}
	pass_end(p);
	return true;
}
