/* SPDX-License-Identifier: MIT */
/*
 * reject.c - what becomes of changes that the server refuses for good.
 *
 * Order.  The slot says that it was refused, then the pages are REJECTED, each by a CAS from just
 * the word that was sent (test and set: a page is excised once), then the error is counted, then
 * told in the log and in the ring; last a task takes invalidate_lock, punches the pages and winds
 * the size back (change.c).  A crash at any point: the next agent finds the slot and does what is
 * missing; errseq in the slot tells whether the error was counted.
 *
 * A store that comes while this happens.  The page was quiet: it waits for the word, which becomes
 * EMPTY, and then starts from the server's content.  The page was DIRTY again: until it is punched,
 * what is stored goes the way of the page, as part of what was refused.  Who holds a slot that names
 * it (between mkwrite and its store) is waited for; if that takes too long the page is not punched
 * but becomes its twin again, in place, and stays DIRTY: what is stored after that is a change to
 * clean content.
 *
 * A record is what one walk finds dirty under one key.  If it is refused because of who or where,
 * what the walk has collected and not sent, and what it still finds, is rejected without asking.
 * STOREs that are under way are refused by the server itself.
 *
 * Size.  vn->wind: nothing extends the file on behalf of this host but stores that carry the bytes;
 * when none is left it has the server's size.
 *
 * Counters: reject, excise (change.c).
 * Locks: page words by CAS.
 */
#include "reject.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "change.h"
#include "key.h"
#include "req.h"

enum ag_rejection ag_rejection(int err)
{
	switch (err) {
	case EACCES:
	case EPERM:
	case EROFS:
	case EKEYEXPIRED:
	case EKEYREVOKED:
	case EKEYREJECTED:
	case ENOENT:
	case ESTALE:
		return AG_REJECT_RECORD;
	case EDQUOT:
	case ENOSPC:
	case EFBIG:
	case EIO:
		return AG_REJECT_PAGES;
	}
	return AG_REJECT_NOT;
}

/* Returns how many there are, also of those that were marked before a crash. */
static uint32_t mark_pages(const struct ag_op *op)
{
	struct ag_vnode *vn = op->vn;
	uint32_t n = 0;

	for (uint32_t i = 0; i < op->npages; i++) {
		rf_word *word = &vn->word[op->page[i].page];
		const uint64_t w = ag_op_word(op, i), to = ag_w_reject(w);

		n += ag_word_move(word, w, to) || atomic_load(word) == to;
	}
	return n;
}

/* Where it is in the file. */
static rf_range extent(const struct ag_op *op)
{
	const struct ag_change *c = &op->change;
	rf_range r = {0};

	if (op->type == RF_SET_SIZE) {
		r.off = ag_min(op->vn->ssize, op->size);
		r.len = op->size - r.off;
	} else if (c->n) {
		r.off = c->range[0].off;
		r.len = c->range[c->n - 1].off + c->range[c->n - 1].len - r.off;
	} else if (op->npages) {
		r.off = op->page[0].page << RF_PAGE_SHIFT;
		r.len = ag_min((op->page[op->npages - 1].page + 1) << RF_PAGE_SHIFT, op->vn->size) -
			r.off;
	}
	return r;
}

/* One entry a record; NULL: it has one already. */
static struct ag_reject *note(const struct ag_op *op, int err, uint32_t pages, rf_range r)
{
	struct ag_vnode *vn = op->vn;
	struct ag_journal *j = vn->ag->journal;
	const char *key = ag_key_name(vn->ag, op->key);
	struct ag_reject *e;

	for (uint64_t i = j->nrejects; i-- && j->nrejects - i <= AG_REJECTS;) {
		e = &j->reject[i % AG_REJECTS];
		if (e->request == op->request)
			return NULL; /* a crash came in between */
		if (!op->walk || e->walk != op->walk || e->vnode != vn->id || e->err != err ||
		    strncmp(e->key, key, sizeof(e->key) - 1) != 0)
			continue;
		e->len = ag_max(e->off + e->len, r.off + r.len);
		e->off = ag_min(e->off, r.off);
		e->len -= e->off;
		e->pages += pages;
		e->request = op->request;
		return NULL;
	}
	e = &j->reject[j->nrejects % AG_REJECTS];
	memset(e, 0, sizeof(*e));
	e->time = (int64_t)ag_clock(CLOCK_REALTIME);
	e->request = op->request;
	e->walk = op->walk;
	e->off = r.off;
	e->len = r.len;
	e->pages = pages;
	e->vnode = vn->id;
	e->err = err;
	strncpy(e->key, key, sizeof(e->key) - 1);
	strncpy(e->path, vn->path, sizeof(e->path) - 1);
	j->nrejects++;
	return e;
}

void ag_reject(struct ag_op *op, int err, const char *what, bool asked)
{
	struct ag_vnode *vn = op->vn;
	struct ag_slot *s = op->slot;
	const rf_range r = extent(op);
	struct ag_reject *first;
	uint32_t pages;

	if (!s->rejected) {
		if (!op->armed)
			ag_op_arm(op);
		s->errseq = atomic_load(&vn->st->errseq) | RF_ERRSEQ_SEEN;
		atomic_signal_fence(memory_order_seq_cst);
		s->rejected = (uint32_t)err;
	}
	pages = mark_pages(op);
	first = note(op, err, pages, r);
	if ((atomic_load(&vn->st->errseq) | RF_ERRSEQ_SEEN) == s->errseq)
		rf_errseq_set(vn->st, err);
	ag_count(vn->ag, RF_R_REJECT, 1);
	if (first && asked)
		first->told = pages;
	if (asked && first)
		ag_log("%s: the server refused what was written to bytes %" PRIu64 " to %" PRIu64
		       " under key %s: %s (%s); %u pages are dropped",
		       vn->path, r.off, r.off + r.len, ag_key_name(vn->ag, op->key), strerror(err),
		       what, pages);
	if (vn->size > vn->ssize)
		ag_vn_wind(vn, true);
	if (op->npages)
		ag_excise(vn, op->page[0].page, op->page[op->npages - 1].page + 1);
	else
		ag_excise(vn, 0, 0);
}

void ag_reject_record(struct ag_op *op, int err)
{
	struct ag_vnode *vn = op->vn;
	struct ag_req *req;
	struct ag_op *it;

	if (!op->walk)
		return;
	ag_for_each (req, &vn->reqs, link)
		if (req->q.op == RF_OP_FLUSH && req->pass.walk == op->walk)
			ag_pass_refused(&req->pass, op->key, err);
	ag_for_each (it, &vn->ops, link)
		if (it->walk == op->walk && it->key == op->key && it->state == AG_OP_PREP) {
			ag_reject(it, err, "", false);
			ag_op_end(it);
		}
}

void ag_reject_told(struct ag_vnode *vn, uint64_t walk)
{
	struct ag_journal *j = vn->ag->journal;

	for (unsigned i = 0; i < AG_REJECTS; i++) {
		struct ag_reject *e = &j->reject[i];

		if (e->walk != walk || e->vnode != vn->id || e->pages == e->told)
			continue;
		ag_log("%s: in all %u pages are dropped, of bytes %" PRIu64 " to %" PRIu64,
		       vn->path, e->pages, e->off, e->off + e->len);
		e->told = e->pages;
	}
}
