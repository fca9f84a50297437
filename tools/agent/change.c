/* SPDX-License-Identifier: MIT */
/*
 * change.c - what changes a page cache as a whole: one task each, made of steps.
 *
 * All follow one order: words of pages that go are moved to WRITEBACK with the next generation, so
 * that nobody uses or dirties them any more; read_gen moves, for optimistic readers; a worker
 * punches and truncates; then sizes and version are published, the words become EMPTY, and waiters
 * wake.
 *
 * A clean page may be dropped at any time (DESIGN 11, rule 10).  A dirty page goes only in a cut, a
 * punch or an excision, with no slot naming the vnode; if there was one all the same, it is zeroed
 * in place instead.
 *
 * Counters: drop, excise, in-place, merge, strip (task.c).
 * Locks: invalidate_lock, exclusive, through ag_task_lock; page words by CAS.
 */
#include "change.h"

#include "brk.h"
#include "debug.h"
#include "fetch.h"
#include "journal.h"
#include "op.h"
#include "pin.h"
#include "proc.h"
#include "server.h"
#include "vnode.h"

/* ---- bytes of one page, guarded ---- */

struct touch {
	void *page, *twin;
	const uint8_t *inflight;
	const _Atomic uint8_t *mark;
	const void *bytes;
	const uint8_t *which;
	uint32_t from, to;
};

static void do_zero(void *arg)
{
	struct touch *t = arg;

	ag_zero(t->page, t->from, t->to);
}

static void do_store(void *arg)
{
	struct touch *t = arg;

	ag_store(t->page, t->bytes, t->which, t->from, t->to);
}

static void do_merge(void *arg)
{
	struct touch *t = arg;

	ag_merge(t->page, t->twin, t->mark, t->inflight, t->bytes, t->which, t->from, t->to);
}

/* A clean page changes in place.  False: it was not clean any more when we looked. */
static bool clean_in_place(struct ag_vnode *vn, uint64_t page, uint64_t w, void (*fn)(void *),
			   struct touch *t)
{
	rf_word *word = &vn->word[page];
	const uint64_t busy = rf_w_clean(w, RF_PG_WRITEBACK, 1);

	if (!ag_word_move(word, w, busy))
		return false;
	if (ag_guard(fn, t)) { /* a program punched it */
		ag_word_move(word, busy, rf_w_clean(busy, RF_PG_EMPTY, 0));
		ag_vn_uncached(vn, 1);
		return true;
	}
	ag_word_move(word, busy, rf_w_clean(busy, RF_PG_UPTODATE, 0));
	return true;
}

/* The next agent does it again, if we do not come to the end. */
static void merge_begin(struct ag_vnode *vn, uint64_t page, const struct touch *t,
			const void *bytes)
{
	struct ag_merging *m = &vn->ag->journal->merging;

	m->page = page;
	m->from = t->from;
	m->to = t->to;
	m->some = t->which != NULL;
	memcpy(m->bytes, bytes, t->to - t->from);
	if (t->which)
		memcpy(m->which, t->which, sizeof(m->which));
	atomic_store_explicit(&m->vnode, vn->id, memory_order_release);
}

static void merge_end(struct ag_vnode *vn)
{
	atomic_store_explicit(&vn->ag->journal->merging.vnode, 0, memory_order_release);
}

static void merge(struct ag_vnode *vn, uint64_t page, uint64_t w, struct touch *t)
{
	t->twin = ag_twin(vn->ag, w);
	t->mark = ag_twin_mark(vn->ag, w);
	t->inflight = ag_op_inflight(vn, page);
	if (t->twin)
		ag_guard(do_merge, t);
}

void ag_merge_adopt(struct ag_vnode *vn)
{
	const struct ag_merging *m = &vn->ag->journal->merging;
	struct touch t = {
	    .bytes = m->bytes, .which = m->some ? m->which : NULL, .from = m->from, .to = m->to};
	uint64_t w;

	if (atomic_load(&m->vnode) != vn->id)
		return;
	if (m->page < ag_vn_pages(vn) && t.from < t.to && t.to <= RF_PAGE_SIZE) {
		t.page = ag_vn_page(vn, m->page);
		w = atomic_load(&vn->word[m->page]);
		if (ag_w_twinned(w))
			merge(vn, m->page, w, &t);
	}
	merge_end(vn);
}

/*
 * Cut off or punched.  In a dirty page nothing of it may stay behind as a change, or the zeros
 * would win over what comes there later: no mark, and no difference to what becomes the twin.
 */
void ag_page_zero(struct ag_vnode *vn, uint64_t page, uint32_t from, uint32_t to)
{
	rf_word *word = &vn->word[page];
	struct touch t = {.page = ag_vn_page(vn, page), .from = from, .to = to};
	_Atomic uint8_t *mark;
	uint8_t *inflight;

	if (from >= to)
		return;
	for (;;) {
		uint64_t w = atomic_load(word);

		if (ag_w_twinned(w)) {
			t.twin = ag_twin(vn->ag, w);
			merge_begin(vn, page, &t, ag_zeros);
			ag_guard(do_zero, &t);
			if (t.twin)
				ag_zero(t.twin, from, to);
			merge_end(vn);
			inflight = ag_op_inflight(vn, page);
			if (inflight) /* what arrives of it is not the twin's */
				ag_unmark((_Atomic uint8_t *)inflight, from, to);
			mark = ag_twin_mark(vn->ag, w);
			if (mark)
				ag_unmark(mark, from, to);
			return;
		}
		if (rf_w_state(w) != RF_PG_UPTODATE || clean_in_place(vn, page, w, do_zero, &t))
			return;
	}
}

/* The server's bytes [from, to) of a page, or which of them, are these now. */
static void page_bytes(struct ag_vnode *vn, uint64_t page, uint32_t from, uint32_t to,
		       const void *bytes, const uint8_t *which)
{
	rf_word *word = &vn->word[page];
	struct touch t = {
	    .page = ag_vn_page(vn, page), .bytes = bytes, .which = which, .from = from, .to = to};

	for (;;) {
		uint64_t w = atomic_load(word);

		if (ag_w_twinned(w)) {
			merge_begin(vn, page, &t, bytes);
			merge(vn, page, w, &t);
			merge_end(vn);
			ag_count(vn->ag, RF_R_MERGE, 1);
			return;
		}
		if (rf_w_state(w) != RF_PG_UPTODATE || clean_in_place(vn, page, w, do_store, &t))
			return;
	}
}

void ag_page_theirs(struct ag_vnode *vn, uint64_t page, const void *bytes, uint32_t len)
{
	page_bytes(vn, page, 0, len, bytes, NULL);
}

/* ---- words of pages that go ---- */

void ag_take_clean(struct ag_task *t, uint64_t first, uint64_t end, uint64_t max)
{
	struct ag_vnode *vn = t->vn;
	struct ag_scan s = ag_scan(vn, first, ag_min(end, ag_vn_pages(vn)));
	uint64_t page;

	while (max && ag_scan_next(&s, &page)) {
		const uint64_t n = ag_words_take(&vn->word[page], ag_min(max, s.upto - page));

		if (!n)
			continue;
		ag_task_punch(t, page, n);
		ag_count(vn->ag, RF_R_DROP, n);
		max -= n;
		s.page = page + n;
	}
}

bool ag_take_any(struct ag_task *t, uint64_t page)
{
	struct ag_vnode *vn = t->vn;
	rf_word *word = &vn->word[page];
	uint64_t w;

	ag_assert(t->locked);
	do {
		w = atomic_load(word);
		if (rf_w_state(w) == RF_PG_EMPTY || (w & RF_W_SYNC))
			return rf_w_state(w) == RF_PG_EMPTY;
		if (ag_w_twinned(w) && !t->safe)
			return false;
	} while (!ag_word_move(word, w, rf_w_clean(w, RF_PG_WRITEBACK, 1)));
	if (ag_w_owns_twin(w))
		ag_twin_free(vn->ag, rf_w_twin(w));
	return true;
}

/* Pages that were taken and are punched or cut off by now. */
static void gone(struct ag_vnode *vn, uint64_t first, uint64_t end)
{
	struct ag_scan s = ag_scan(vn, first, end);
	uint64_t page, n, moved;

	while (ag_scan_next(&s, &page)) {
		n = s.upto - page;
		moved = ag_words_gone(&vn->word[page], n);
		ag_vn_uncached(vn, moved);
		if (moved && ag_procs_wait(vn->ag))
			ag_words_wake(&vn->word[page], n);
		s.page = page + n;
	}
}

void ag_all_gone(struct ag_task *t)
{
	for (size_t i = 0; i < t->nruns; i++)
		gone(t->vn, t->run[i].page, t->run[i].page + t->run[i].n);
	t->nruns = 0;
}

/*
 * Pages of [t->page, t->end) go, which were flushed and could not become dirty.  Some may be all the
 * same: what a LONG pin keeps so, though nothing is stored there, goes, too.  What programs stored to
 * because the connection was lost is merged with what comes, and so are pages that are never punched.
 */
static void evict(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	const uint64_t size = t->resize ? ag_min(t->size, vn->size) : vn->size;
	struct ag_scan s = ag_scan(vn, t->page, ag_min(t->end, RF_PAGES(size)));
	uint64_t page;

	ag_take_clean(t, t->page, ag_min(t->end, RF_PAGES(size)), UINT64_MAX);
	while (ag_scan_next(&s, &page)) {
		const uint64_t w = atomic_load(&vn->word[page]);

		if (rf_w_state(w) == RF_PG_EMPTY ||
		    (rf_w_state(w) == RF_PG_WRITEBACK && !ag_w_twinned(w)))
			continue;
		if (vn->frozen && ag_pinned_long(vn, page) && ag_take_any(t, page))
			ag_task_punch(t, page, 1);
		else
			t->unsure = true;
	}
	/* Nobody could take a pin since the frozen change asked for them; once thawed, what is pinned came
	 * after it, and is not in the cache yet, or dirty. */
	if (vn->frozen)
		ag_pins_orphan(vn, t->page, t->end);
}

/* ---- size ---- */

/*
 * Truncating takes a page also from whoever is between mkwrite and its store, and stands still there: that
 * store may come when the file is longer again.  So the page will be DIRTY when it is filled: its
 * twin stays with the word.
 */
static bool cut_named(struct ag_vnode *vn, uint64_t page)
{
	rf_word *word = &vn->word[page];
	uint64_t w;

	if (!ag_slots_busy(vn->ag, vn->id, page, 1))
		return false;
	do {
		w = atomic_load(word);
		if (!ag_w_owns_twin(w) || !ag_twin(vn->ag, w) || (w & RF_W_SYNC))
			return false;
		if (rf_w_state(w) == RF_PG_EMPTY)
			return true;
	} while (!ag_word_move(word, w, ag_w_cut(w)));
	ag_twin_unmark(vn->ag, rf_w_twin(w));
	ag_vn_uncached(vn, 1);
	return true;
}

/* The file will be that long: prepare, and tell the worker. */
static void size_begin(struct ag_task *t, uint64_t size)
{
	struct ag_vnode *vn = t->vn;
	const uint32_t tail = (uint32_t)ag_min(vn->size, size) & (RF_PAGE_SIZE - 1);
	struct ag_scan s;
	uint64_t page;

	if (size == vn->size)
		return;
	if (size > vn->size) {
		t->err = ag_vn_capacity(vn, RF_PAGES(size));
		if (t->err)
			return;
	}
	/* Stores past EOF must not show when the file grows, nor what is cut off. */
	if (tail)
		ag_page_zero(vn, ag_min(vn->size, size) >> RF_PAGE_SHIFT, tail, RF_PAGE_SIZE);
	ag_pins_orphan(vn, RF_PAGES(size), ag_vn_pages(vn));
	s = ag_scan(vn, RF_PAGES(size), ag_vn_pages(vn));
	while (ag_scan_next(&s, &page)) {
		bool safe = t->safe;

		if (!safe && cut_named(vn, page))
			continue;
		t->safe = true; /* truncating takes the pages from whoever uses them */
		ag_take_any(t, page);
		t->safe = safe;
	}
	t->resize = true;
	t->size = size;
}

static void size_end(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	const uint64_t old = ag_vn_pages(vn);

	if (!t->resize)
		return;
	t->resize = false;
	if (t->err)
		return;
	ag_vn_set_size(vn, t->size);
	gone(vn, ag_vn_pages(vn), old);
}

/* The size that the server's new status makes, with what was extended here and not sent yet. */
static uint64_t size_of(const struct ag_vnode *vn, const rf_status *st)
{
	return vn->size > vn->ssize ? ag_max(vn->size, st->size) : st->size;
}

/* ---- revalidate ---- */

static void reval_worked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	const bool failed = t->err != 0;
	struct ag_scan s;
	uint64_t page;

	size_end(t);
	ag_all_gone(t);
	ag_vn_status(vn, &t->st);
	if (failed) {
		ag_fetch_failed(vn, t->err); /* who asks next tries again */
		ag_task_end(t);
		return;
	}
	vn->nmerge = 0;
	s = ag_scan(vn, 0, ag_vn_pages(vn));
	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (!ag_w_twinned(w) && rf_w_state(w) != RF_PG_UPTODATE)
			continue;
		if (page < RF_PAGES(t->st.size))
			ag_fetch_merge_add(vn, page);
		else
			page_bytes(vn, page, 0, RF_PAGE_SIZE, ag_zeros, NULL);
	}
	ag_task_unlock(t);
	vn->target = t->st.dv;
	/* The promise may be void by now, and the next HELLO be out; the version is as good as any. */
	vn->target_until = t->st.promise_ms && t->mass == vn->vol->srv->mass
			       ? t->sent_at + t->st.promise_ms * AG_MS
			       : 0;
	if (t->data)
		ag_fetch_fill(vn, t->page, t->data, t->len, t->st.size);
	ag_fetch_merged(vn);
	ag_task_end(t);
}

static void reval_locked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	atomic_fetch_add(&vn->st->read_gen, 1);
	t->err = 0;
	size_begin(t, size_of(vn, &t->st));
	if (t->err) { /* nothing was taken */
		reval_worked(t);
		return;
	}
	ag_take_clean(t, 0, UINT64_MAX, UINT64_MAX);
	ag_task_work(t, reval_worked);
}

void ag_step_revalidate(struct ag_task *t)
{
	ag_vn_forget_version(t->vn);
	ag_task_lock(t, reval_locked);
}

/* ---- strips and breaks ---- */

static void strip_end(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	ag_all_gone(t);
	/* Programs that could not be stripped still see their dirty pages, and others their pinned
	 * ones, which were dirty when they were left: merge before we say done. */
	if (t->ack && (t->left || (!t->stripped && ag_vn_ndirty(vn)))) {
		ag_brk_ack_late(t);
		t->ack = false;
	}
	ag_task_end(t);
}

static void strip_done(struct ag_task *t)
{
	t->err = 0;
	t->stripped &= t->safe;
	if (!t->stripped) {
		/* No co-operation: the clean pages go, which takes them out of every page table. */
		atomic_fetch_add(&t->vn->st->read_gen, 1);
		ag_take_clean(t, 0, UINT64_MAX, UINT64_MAX);
	}
	ag_task_work(t, strip_end);
}

static void strip_locked(struct ag_task *t)
{
	ag_task_strip(t, strip_done);
}

void ag_step_strip(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	ag_vn_unpromise(vn);
	vn->epoch++;
	atomic_thread_fence(memory_order_seq_cst);
	/* Not mapped: whoever maps it now finds no promise. */
	if (!ag_vn_mapped(vn)) {
		t->stripped = true;
		ag_task_end(t);
		return;
	}
	ag_task_lock(t, strip_locked);
}

/* ---- a change that is known whole ---- */

/* New bytes of one page. */
struct gather {
	struct ag_vnode *vn;
	uint64_t page;
	uint32_t from, to; /* from the first to the last; 0, 0: none yet */
	uint8_t which[RF_MARK_SIZE];
	unsigned char bytes[RF_PAGE_SIZE];
};

static void gather_put(struct gather *g)
{
	if (!g->to)
		return;
	page_bytes(g->vn, g->page, g->from, g->to, g->bytes + g->from, g->which);
	g->from = g->to = 0;
	memset(g->which, 0, sizeof(g->which));
}

/* All ranges of a page at once: a word of which several bytes changed must not be seen half new. */
static void put_bytes(struct ag_task *t)
{
	struct gather g = {.vn = t->vn};
	const unsigned char *p = t->data;
	size_t left = t->len;

	for (uint32_t i = 0; i < t->nranges; i++) {
		uint64_t off = t->range[i].off, n = ag_min(t->range[i].len, left);

		left -= n;
		while (n) {
			uint32_t at = (uint32_t)off & (RF_PAGE_SIZE - 1);
			uint32_t k = (uint32_t)ag_min(n, RF_PAGE_SIZE - at);

			if (off >> RF_PAGE_SHIFT != g.page)
				gather_put(&g);
			if (off < t->vn->size) {
				g.page = off >> RF_PAGE_SHIFT;
				g.from = g.to ? (uint32_t)ag_min(g.from, at) : at;
				g.to = (uint32_t)ag_max(g.to, at + k);
				memcpy(g.bytes + at, p, k);
				ag_which(g.which, at, at + k);
			}
			off += k;
			p += k;
			n -= k;
		}
	}
	gather_put(&g);
	ag_count(t->vn->ag, RF_R_IN_PLACE, 1);
}

/* [off, end) becomes zero: whole pages go, and what cannot go is zeroed. */
static void punch(struct ag_task *t, uint64_t off, uint64_t end)
{
	const uint64_t first = RF_PAGES(off), last = end >> RF_PAGE_SHIFT;
	struct ag_vnode *vn = t->vn;
	struct ag_scan s = ag_scan(vn, first, last);
	uint64_t page;

	if (off >= end)
		return;
	if (first > last) { /* inside one page */
		ag_page_zero(vn, last, (uint32_t)(off & (RF_PAGE_SIZE - 1)),
			     (uint32_t)(end & (RF_PAGE_SIZE - 1)));
		return;
	}
	if (off & (RF_PAGE_SIZE - 1))
		ag_page_zero(vn, first - 1, (uint32_t)(off & (RF_PAGE_SIZE - 1)), RF_PAGE_SIZE);
	ag_page_zero(vn, last, 0, (uint32_t)(end & (RF_PAGE_SIZE - 1)));
	ag_pins_orphan(vn, first, last);
	while (ag_scan_next(&s, &page)) {
		if (rf_w_state(atomic_load(&vn->word[page])) == RF_PG_EMPTY)
			continue;
		if (!ag_take_any(t, page)) {
			ag_page_zero(vn, page, 0, RF_PAGE_SIZE);
			continue;
		}
		ag_task_punch(t, page, 1);
		ag_count(vn->ag, RF_R_DROP, 1);
	}
}

static bool ranges_dirty(const struct ag_task *t)
{
	for (uint32_t i = 0; i < t->nranges; i++)
		if (ag_vn_dirty_in(t->vn, t->range[i].off, t->range[i].len))
			return true;
	return false;
}

static void change_worked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	bool failed = t->err != 0;

	size_end(t);
	ag_all_gone(t);
	if (t->drop && ranges_dirty(t)) {
		/* Dirtied while we came: it cannot be dropped, so this is a break like any other.
		 */
		ag_vn_unpromise(vn);
		ag_task_strip(t, strip_done);
		return;
	}
	if (t->bytes && !failed)
		put_bytes(t);
	if (!t->have_st)
		vn->extend_err = t->err;
	if (t->have_st) {
		bool ours = vn->dv && vn->dv == t->dv_before && !failed;

		if (t->repeat && !t->exact)
			ag_vn_accepted(vn, t->st.size);
		else
			ag_vn_status(vn, &t->st);
		if (ours && !t->unsure)
			ag_vn_set_dv(vn, t->st.dv);
		else if (vn->target || t->repeat || failed || t->unsure)
			ag_vn_forget_version(vn);
		else
			ag_vn_unpromise(vn);
		vn->epoch++;
	}
	ag_task_end(t);
}

/* How long the file is after it. */
static uint64_t change_size(const struct ag_task *t)
{
	const struct ag_vnode *vn = t->vn;

	if (!t->have_st)
		return ag_max(vn->size, t->size);
	if (t->exact)
		return t->st.size;
	return t->repeat ? vn->size : size_of(vn, &t->st);
}

static void change_locked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	uint64_t size = change_size(t);

	atomic_fetch_add(&vn->st->read_gen, 1);
	t->err = 0;
	if (!t->resize)
		size = vn->size;
	t->resize = false;
	size_begin(t, size);
	if (t->err && !t->evict) {
		change_worked(t);
		return;
	}
	if (t->evict) {
		t->unsure |= t->err != 0;
		evict(t);
	}
	for (uint32_t i = 0; t->drop && i < t->nranges; i++)
		ag_take_clean(t, t->range[i].off >> RF_PAGE_SHIFT,
			      RF_PAGES(t->range[i].off + t->range[i].len), UINT64_MAX);
	if (t->punch)
		punch(t, t->range[0].off, ag_min(t->range[0].off + t->range[0].len, vn->size));
	ag_task_work(t, change_worked);
}

bool ag_change_in_place(const struct ag_task *t)
{
	return !t->drop && !t->punch && (!t->evict || t->page >= t->end) &&
	       (!t->have_st || change_size(t) == t->vn->size);
}

void ag_step_change(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	/*
	 * The answer to a repeat that still fits is as good as any.  Of another one counts only
	 * what is to be cut or punched here; the rest may have changed since.
	 */
	t->repeat &= !vn->dv || vn->dv != t->dv_before;
	t->bytes &= !t->repeat;
	if (t->have_st) {
		if (ag_change_in_place(t)) {
			change_worked(t);
			return;
		}
		t->resize = true;
	} else if (t->resize && (t->size <= vn->size || ag_vn_capacity(vn, RF_PAGES(t->size)))) {
		vn->extend_err = t->size > vn->size ? -EFBIG : 0;
		t->resize = false;
		ag_task_end(t);
		return;
	} else if (t->resize &&
		   (!(vn->size & (RF_PAGE_SIZE - 1)) ||
		    rf_w_state(atomic_load(&vn->word[vn->size >> RF_PAGE_SHIFT])) == RF_PG_EMPTY)) {
		change_locked(t); /* growing by holes only: nobody need be kept away */
		return;
	}
	ag_task_lock(t, change_locked);
}

/* ---- a change that may have been made ---- */

static void evict_worked(struct ag_task *t)
{
	ag_all_gone(t);
	ag_vn_forget_version(t->vn);
	ag_task_end(t);
}

static void evict_locked(struct ag_task *t)
{
	atomic_fetch_add(&t->vn->st->read_gen, 1);
	evict(t);
	ag_task_work(t, evict_worked);
}

void ag_step_evict(struct ag_task *t)
{
	ag_vn_unpromise(t->vn);
	ag_task_lock(t, evict_locked);
}

/* ---- memory ---- */

static void drop_worked(struct ag_task *t)
{
	const struct ag_run *last = t->nruns ? &t->run[t->nruns - 1] : NULL;

	t->vn->drop_at = last ? last->page + last->n : 0;
	if (!last) {
		/* All that is left is dirty, or was never there. */
		ag_vn_recount(t->vn);
		t->vn->no_drop = ag_now() + AG_SEC;
	}
	ag_all_gone(t);
	ag_task_end(t);
}

void ag_step_drop(struct ag_task *t)
{
	t->err = 0;
	atomic_fetch_add(&t->vn->st->read_gen, 1);
	ag_take_clean(t, t->page, UINT64_MAX, t->size);
	if (!t->nruns && t->page)
		ag_take_clean(t, 0, t->page, t->size);
	t->resize = false;
	ag_task_work(t, drop_worked);
}

/* ---- excision ---- */

static void excise_worked(struct ag_task *t)
{
	size_end(t);
	ag_all_gone(t);
	if (t->vn->wind && t->vn->size <= t->vn->ssize)
		ag_vn_wind(t->vn, false);
	ag_task_end(t);
}

static void do_revert(void *arg)
{
	struct touch *t = arg;

	ag_store(t->page, t->twin, NULL, 0, RF_PAGE_SIZE);
}

/*
 * A page that must not be punched, because somebody is about to store to it: it becomes what the
 * server last had, in place, and whatever is stored there from now on is a change to that.
 */
static void revert(struct ag_vnode *vn, uint64_t page, uint64_t w)
{
	struct touch t = {.page = ag_vn_page(vn, page), .twin = ag_twin(vn->ag, w)};

	if (t.twin) {
		ag_twin_unmark(vn->ag, rf_w_twin(w));
		ag_guard(do_revert, &t);
	}
	atomic_store(&vn->st->dirtied, 1);
	ag_word_move(&vn->word[page], w, rf_w_to(w, RF_PG_DIRTY));
}

static void excise_page(struct ag_task *t, uint64_t page, uint64_t w)
{
	struct ag_vnode *vn = t->vn;

	ag_count(vn->ag, RF_R_EXCISE, 1);
	if ((w & RF_W_SYNC) || ag_pinned_long(vn, page) ||
	    (!t->safe && ag_slots_busy(vn->ag, vn->id, page, 1))) {
		revert(vn, page, w);
		return;
	}
	if (ag_word_move(&vn->word[page], w, rf_w_clean(w, RF_PG_WRITEBACK, 0)))
		ag_twin_free(vn->ag, rf_w_twin(w));
	ag_task_punch(t, page, 1);
}

/*
 * Back to the server's end of file, but for what is dirty behind it, which may still be accepted.
 * Not under the hands of somebody who may be writing there.
 */
static void wind_back(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	struct ag_scan s = ag_scan(vn, vn->ssize >> RF_PAGE_SHIFT, ag_vn_pages(vn));
	uint64_t page, end = 0, size;

	if (!vn->wind || vn->unapplied || !t->safe)
		return;
	while (ag_scan_next(&s, &page))
		if (ag_w_twinned(atomic_load(&vn->word[page])))
			end = page + 1;
	size = ag_max(vn->ssize, ag_min(vn->size, end << RF_PAGE_SHIFT));
	if (size < vn->size)
		size_begin(t, size);
}

static void excise_locked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	const uint64_t pages = ag_vn_pages(vn);
	struct ag_scan s = ag_scan(vn, t->page, t->end ? ag_min(t->end, pages) : pages);
	uint64_t page;

	t->err = 0;
	atomic_fetch_add(&vn->st->read_gen, 1);
	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (rf_w_state(w) == RF_PG_REJECTED)
			excise_page(t, page, w);
	}
	wind_back(t);
	ag_task_work(t, excise_worked);
}

static void excise(struct ag_task *t)
{
	ag_task_lock(t, excise_locked);
}

static void excised(struct ag_task *t)
{
	atomic_fetch_sub(&t->vn->st->wb_inflight, 1);
}

void ag_excise(struct ag_vnode *vn, uint64_t page, uint64_t end)
{
	struct ag_task *t = ag_task_new(vn, excise);

	t->page = page;
	t->end = end;
	t->done = excised;
	atomic_fetch_add(&vn->st->wb_inflight, 1);
	ag_task_post(t);
}
