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
 * not stand still, it holds a synchronisation object) is copied and is DIRTY again at once; the
 * copy is what was sent, and becomes the twin when it is applied.  Until then the page is in no
 * other batch.
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
#include <stdlib.h>
#include <string.h>

#include "proc.h"
#include "server.h"

#define BATCH (RF_MAX_DATA >> RF_PAGE_SHIFT)
#define STORES_MAX 8u /* under way for one file */
#define SLOT_SPIN (30 * AG_US)
#define SLOT_WAIT (5 * AG_MS)
#define GAP 32u /* pages between two dirty ones that are protected along, for one call less */

/* ---- quiet or not ---- */

static bool slots_busy(const struct ag_op *op)
{
	const struct ag_op_page *first = &op->page[0], *last = &op->page[op->npages - 1];

	return ag_slots_busy(op->vn->ag, op->vn->id, first->page, last->page - first->page + 1);
}

static int protect(const struct ag_op *op)
{
	uint32_t i = 0, k;
	int r = 0;

	while (i < op->npages) {
		for (k = i + 1; k < op->npages && op->page[k].page - op->page[k - 1].page <= GAP;
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

/* Buffers for one batch; what a STORE keeps is copied out of them in its true size. */
static struct ag_change *scratch(void)
{
	static struct ag_change c;

	if (!c.range) {
		c.cap = RF_MAX_RANGES;
		c.size = RF_MAX_DATA;
		c.range = malloc(c.cap * sizeof(*c.range));
		c.data = malloc(c.size);
		if (!c.range || !c.data) {
			free(c.range);
			free(c.data);
			c.range = NULL;
			return NULL;
		}
	}
	c.n = 0;
	c.len = 0;
	return &c;
}

/* The page goes back to be flushed another time. */
static void page_undo(struct ag_vnode *vn, const struct ag_op_page *p)
{
	atomic_store(&vn->st->dirtied, 1);
	ag_word_move(&vn->word[p->page], p->word, rf_w_to(p->word, RF_PG_DIRTY));
}

/*
 * Diff one page of the batch.  1: it has changes and stays in the op.  0: it has none and is done.
 * -ENOSPC: the STORE is full; the page is as it was.
 */
static int take_page(struct ag_op *op, struct ag_op_page *p, struct ag_change *c, bool quiet)
{
	struct ag_vnode *vn = op->vn;
	const uint64_t off = p->page << RF_PAGE_SHIFT;
	struct diff d = {.change = c,
			 .page = ag_vn_page(vn, p->page),
			 .twin = ag_twin(vn->ag, p->word),
			 .mark = ag_twin_mark(vn->ag, p->word),
			 .off = off};
	struct ag_change was = *c;
	uint64_t last = c->n ? c->range[c->n - 1].len : 0;

	d.limit = off >= vn->size ? 0 : (uint32_t)ag_min(RF_PAGE_SIZE, vn->size - off);
	if (p->word & RF_W_SYNC)
		quiet = false;
	if (!quiet) {
		p->snap = ag_page_dup(d.page);
		if (!p->snap) {
			page_undo(vn, p);
			return 0;
		}
		d.page = p->snap;
	}
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
	if (d.r < 0) {
		free(p->snap);
		p->snap = NULL;
		return -ENOSPC;
	}
	if (!quiet) {
		ag_count(vn->ag, RF_R_REDIRTY, 1);
		page_undo(vn, p);
		if (!d.r) {
			free(p->snap);
			p->snap = NULL;
		}
	} else if (!d.r) {
		if (ag_word_move(&vn->word[p->page], p->word,
				 rf_w_clean(p->word, RF_PG_UPTODATE, 0)))
			ag_twin_free(vn->ag, rf_w_twin(p->word));
	}
	if (d.r) {
		ag_count(vn->ag, RF_R_FLUSH_PAGE, 1);
		ag_count(vn->ag, RF_R_FLUSH_BYTES, (uint64_t)d.r);
	}
	return d.r > 0;
}

/* Move pages [from, ..) of op to a new op behind it. */
static struct ag_op *split(struct ag_op *op, uint32_t from)
{
	struct ag_op *rest = ag_op_new(op->vn, RF_STORE);

	rest->npages = op->npages - from;
	rest->page = ag_memdup(op->page + from, rest->npages * sizeof(*rest->page));
	rest->durable = op->durable;
	rest->soon = op->soon;
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
	struct ag_change *c;

	ag_list_del(&op->slow);
	while (op) {
		struct ag_vnode *vn = op->vn;
		struct ag_op *rest = NULL;
		uint32_t i, k = 0;

		c = scratch();
		if (!c) {
			ag_op_undo(op);
			ag_op_end(op);
			return;
		}
		for (i = 0; i < op->npages; i++) {
			int r = take_page(op, &op->page[i], c, quiet && !op->page[i].loud);

			if (r < 0) {
				rest = split(op, i);
				break;
			}
			if (r)
				op->page[k++] = op->page[i];
		}
		op->npages = k;
		if (!c->n) {
			ag_op_end(op);
			op = rest;
			continue;
		}
		op->change.n = op->change.cap = c->n;
		op->change.len = op->change.size = c->len;
		op->change.range = ag_memdup(c->range, c->n * sizeof(*c->range));
		op->change.data = ag_memdup(c->data, c->len);
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

	op->state = AG_OP_PREP;
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
			      .durable = durable};
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

/* Collect up to BATCH pages.  *held: it ended at a page that has to wait. */
static struct ag_op *collect(struct ag_pass *p, bool *held)
{
	struct ag_vnode *vn = p->vn;
	struct ag_scan s = ag_scan(vn, p->page, ag_min(p->end, ag_vn_pages(vn)));
	bool copies = false, more = false;
	struct ag_op *op;
	uint64_t page;

	ag_for_each (op, &vn->ops, link)
		for (uint32_t i = 0; i < op->npages; i++)
			copies |= op->page[i].snap != NULL;
	op = NULL;
	*held = false;
	while (!*held && !more && ag_scan_next(&s, &page)) {
		rf_word *word = &vn->word[page];
		uint64_t w = atomic_load_explicit(word, memory_order_acquire);
		uint64_t to = rf_w_to(w, RF_PG_WRITEBACK);

		if (rf_w_state(w) != RF_PG_DIRTY)
			continue;
		*held = copies && ag_op_snapshot(vn, page);
		more = op && op->npages == BATCH;
		p->page = page;
		if (*held || more || !ag_word_move(word, w, to))
			continue;
		if (!op)
			op = ag_op_new(vn, RF_STORE);
		if (!(op->npages & (op->npages - 1)))
			op->page = ag_realloc(op->page, (op->npages ? 2 * op->npages : 1) *
							    sizeof(*op->page));
		op->page[op->npages++] = (struct ag_op_page){.page = page, .word = to};
	}
	if (!*held && !more)
		p->page = p->end;
	return op;
}

bool ag_pass_step(struct ag_pass *p)
{
	struct ag_vnode *vn = p->vn;
	struct ag_op *op;
	bool held;

	if (!p->begun)
		pass_begin(p);
	while (p->page < p->end) {
		if (vn->gate || stores_under_way(vn) >= STORES_MAX ||
		    vn->vol->srv->state != AG_UP || !vn->vol->ready)
			return false;
		op = collect(p, &held);
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
