/* SPDX-License-Identifier: MIT */
/*
 * fetch.c - validation, fetching, filling, merging.
 *
 * Protocol.  STATUS and FETCH ask for a promise.  The answer's version decides: ours -> the promise
 * holds and pages may be filled; another -> revalidate (change.c), then fill.  An answer to a
 * request that was sent before the version last changed here, and that is of another version, may
 * be of an older one: it is thrown away and asked again (vn->epoch).
 *
 * Filling.  UFFDIO_COPY on our own registered mapping puts a page in whole or not at all; then the
 * word goes EMPTY -> UPTODATE.  EEXIST means that an agent died between the two, or that a program
 * wrote past us: the word says that nobody uses the page, so it is overwritten in place.  A page that
 * was cut off while somebody was about to store to it goes EMPTY -> DIRTY instead.
 *
 * Keys.  What a program waits for is asked under its key, which becomes vn->key; readahead, merges
 * and what breaks wait for go under that one.  A refusal is an answer to those who asked under the
 * same key; others ask again under their own.
 *
 * Readahead.  A request that continues a stream doubles its window from WINDOW_MIN to WINDOW_MAX;
 * from then on up to AHEAD requests are kept under way.  The page asked for goes first.
 *
 * Counters: validate, fetch, fetch-page.
 * Locks: page words by CAS.
 */
#include "fetch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <refault/uffd.h>

#include "brk.h"
#include "change.h"
#include "debug.h"
#include "key.h"
#include "req.h"
#include "server.h"

#define WINDOW_MIN 16u
#define WINDOW_MAX (RF_MAX_DATA >> RF_PAGE_SHIFT)
#define WINDOW_FIRST 32u
#define AHEAD 4u
#define UNDER_WAY_MAX 16u /* FETCH calls for one file, but for pages somebody waits for */

/* ---- versions ---- */

int ag_fetch_judge(struct ag_vnode *vn, const rf_status *st, const struct ag_call *c)
{
	uint64_t until = st->promise_ms ? c->sent_at + st->promise_ms * AG_MS : 0;

	if (c->sent_at <= vn->anew)
		return -1;
	if (vn->dv && vn->dv == st->dv) {
		ag_vn_status(vn, st);
		if (until > vn->until || !ag_vn_valid(vn))
			ag_vn_promise(vn, until);
		return 1;
	}
	if (vn->target && vn->target == st->dv) {
		vn->target_until = ag_max(vn->target_until, until);
		return 1;
	}
	return c->epoch == vn->epoch ? 0 : -1;
}

struct ag_task *ag_fetch_revalidate(struct ag_vnode *vn, const rf_status *st,
				    const struct ag_call *c)
{
	struct ag_task *t = ag_task_new(vn, ag_step_revalidate);

	t->st = *st;
	t->have_st = true;
	t->sent_at = c->sent_at;
	t->mass = vn->vol->srv->mass;
	ag_task_post_front(t);
	return t;
}

/* ---- merging ---- */

void ag_fetch_merge_add(struct ag_vnode *vn, uint64_t page)
{
	if (!(vn->nmerge & (vn->nmerge - 1)))
		vn->merge =
		    ag_realloc(vn->merge, (vn->nmerge ? 2 * vn->nmerge : 1) * sizeof(*vn->merge));
	vn->merge[vn->nmerge++] = page;
}

static size_t merge_find(const struct ag_vnode *vn, uint64_t page)
{
	size_t lo = 0, hi = vn->nmerge;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (vn->merge[mid] < page)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool ag_fetch_to_merge(const struct ag_vnode *vn, uint64_t page)
{
	size_t i = merge_find(vn, page);

	return vn->target && i < vn->nmerge && vn->merge[i] == page;
}

static void merge_done(struct ag_vnode *vn, uint64_t page)
{
	size_t i = merge_find(vn, page);

	memmove(&vn->merge[i], &vn->merge[i + 1], (vn->nmerge - i - 1) * sizeof(*vn->merge));
	vn->nmerge--;
}

void ag_fetch_merged(struct ag_vnode *vn)
{
	uint64_t dv = vn->target;

	if (!dv || vn->nmerge)
		return;
	vn->target = 0;
	free(vn->merge);
	vn->merge = NULL;
	ag_vn_set_dv(vn, dv);
	if (vn->target_until)
		ag_vn_promise(vn, vn->target_until);
	ag_vn_kick(vn);
}

/* ---- filling ---- */

struct copy {
	void *dst;
	const void *src;
	size_t len;
};

static void do_copy(void *arg)
{
	struct copy *c = arg;

	memcpy(c->dst, c->src, c->len);
}

/* A page is there.  One that was cut off under a slot is DIRTY from the beginning (change.c). */
static bool filled(struct ag_vnode *vn, uint64_t page, const void *bytes)
{
	rf_word *word = &vn->word[page];
	const uint64_t w = atomic_load(word);
	void *twin = ag_twin(vn->ag, w);

	if (rf_w_state(w) != RF_PG_EMPTY)
		return false;
	if (!twin)
		return ag_word_move(word, w, rf_w_clean(w, RF_PG_UPTODATE, 0));
	memcpy(twin, bytes, RF_PAGE_SIZE);
	atomic_store(&vn->st->dirtied, 1);
	return ag_word_move(word, w, rf_w_to(w, RF_PG_DIRTY));
}

/* Whole pages [page, page + n), all EMPTY. */
static int fill_run(struct ag_vnode *vn, uint64_t page, uint64_t n, const unsigned char *data)
{
	struct ag *ag = vn->ag;
	uint64_t done = 0;

	ag_assert(!vn->task || !vn->task->locked);
	while (done < n) {
		char *dst = ag_vn_page(vn, page + done);
		const unsigned char *src = data + (done << RF_PAGE_SHIFT);
		uint64_t copied = 0, k;
		int r = rf_uffd_copy(ag->uffd, (uintptr_t)dst, src, (n - done) << RF_PAGE_SHIFT,
				     &copied);

		k = copied >> RF_PAGE_SHIFT;
		if (!k && r == -EEXIST) {
			struct copy c = {dst, src, RF_PAGE_SIZE};

			if (ag_guard(do_copy, &c))
				return -EFAULT;
			k = 1;
		} else if (!k && r != -EAGAIN) {
			ag_log("%s: page %" PRIu64 " cannot be filled: %s", vn->path, page + done,
			       strerror(-r));
			return r;
		}
		for (; k; k--, done++) {
			if (filled(vn, page + done, data + (done << RF_PAGE_SHIFT))) {
				ag_vn_cached(vn);
				ag_count(ag, RF_R_FETCH_PAGE, 1);
			}
		}
	}
	return 0;
}

static bool page_empty(const struct ag_vnode *vn, uint64_t page)
{
	return rf_w_state(atomic_load_explicit(&vn->word[page], memory_order_relaxed)) ==
	       RF_PG_EMPTY;
}

void ag_fetch_fill(struct ag_vnode *vn, uint64_t page, const void *data, size_t len, uint64_t size)
{
	const uint64_t full = len >> RF_PAGE_SHIFT;
	const uint64_t end = ag_min(page + full, ag_vn_pages(vn));
	const uint32_t tail = (uint32_t)(len & (RF_PAGE_SIZE - 1));
	unsigned char last[RF_PAGE_SIZE];
	uint64_t p, n;
	int r;

	for (p = page; p < end; p += n) {
		const unsigned char *src =
		    (const unsigned char *)data + ((p - page) << RF_PAGE_SHIFT);

		n = 1;
		if (page_empty(vn, p)) {
			while (p + n < end && page_empty(vn, p + n))
				n++;
			r = fill_run(vn, p, n, src);
			if (r) /* no memory, or a program truncated the cache */
				ag_reqs_fail(vn, AG_KEY_ANY, p, p + n, r);
			for (uint64_t k = p; vn->nmerge && k < p + n; k++)
				if (ag_fetch_to_merge(vn, k)) /* a program emptied its word */
					merge_done(vn, k);
		} else if (ag_fetch_to_merge(vn, p)) {
			ag_page_theirs(vn, p, src, RF_PAGE_SIZE);
			merge_done(vn, p);
		}
	}
	/* The rest of the last page, which ends at the server's end of file, is zeros. */
	p = page + full;
	if (tail && p < ag_vn_pages(vn) && (p << RF_PAGE_SHIFT) + tail >= size) {
		memcpy(last, (const unsigned char *)data + (full << RF_PAGE_SHIFT), tail);
		memset(last + tail, 0, RF_PAGE_SIZE - tail);
		if (page_empty(vn, p)) {
			r = fill_run(vn, p, 1, last);
			if (r)
				ag_reqs_fail(vn, AG_KEY_ANY, p, p + 1, r);
		} else if (ag_fetch_to_merge(vn, p)) {
			ag_page_theirs(vn, p, last, RF_PAGE_SIZE);
			merge_done(vn, p);
		}
	}
	ag_vn_kick(vn);
	ag_memory(vn->ag);
}

/* ---- STATUS ---- */

static bool about_identity(int err)
{
	switch (err) {
	case EACCES:
	case EPERM:
	case ENOKEY:
	case EKEYEXPIRED:
	case EKEYREVOKED:
	case EKEYREJECTED:
		return true;
	}
	return false;
}

/* Breaks wait, and this key is no good: somebody here may hold the file under one that is. */
static bool another_key(struct ag_vnode *vn, uint32_t key)
{
	uint64_t keys = 0;
	struct ag_use *u;

	vn->refused |= AG_KEY_BIT(key);
	ag_for_each (u, &vn->uses, by_vnode)
		keys |= u->keys;
	keys &= ~vn->refused;
	if (keys)
		vn->key = (uint32_t)__builtin_ctzll(keys);
	return keys != 0;
}

/* Breaks wait for a merge that will not come: what is dirty has to be stripped after all. */
static void never_valid(struct ag_vnode *vn, const char *why)
{
	if (!vn->want_valid)
		return;
	ag_log("%s: what is changed here is not merged with what others change: %s", vn->path, why);
	vn->want_valid = false;
	vn->refused = 0;
	ag_server_let_go(vn);
}

void ag_fetch_failed(struct ag_vnode *vn, int err)
{
	ag_log("%s: it cannot be held on this host: %s", vn->path, strerror(-err));
	ag_reqs_fail(vn, AG_KEY_ANY, 0, UINT64_MAX, err);
	never_valid(vn, "it cannot be held");
}

/* The server does not give [first, end); all of the file if it was to be merged. */
static void refused(struct ag_call *c, uint64_t first, uint64_t end, int err)
{
	struct ag_vnode *vn = c->vn;

	if (vn->target) {
		size_t i = merge_find(vn, first);

		if (i < vn->nmerge && vn->merge[i] < end) {
			first = 0;
			end = UINT64_MAX;
		}
		vn->target = 0;
		vn->nmerge = 0;
		vn->epoch++;
	}
	ag_reqs_fail(vn, c->key, first, end, -err);
	if (vn->want_valid && !(about_identity(err) && another_key(vn, c->key)))
		never_valid(vn, "the server does not give the file");
}

static bool on_status(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_vnode *vn = c->vn;
	const rf_status *st;

	(void)payload;
	(void)len;
	vn->asking--;
	ag_vn_kick(vn);
	if (!m)
		return false;
	if (m->body.type == RF_ERROR) {
		refused(c, 0, UINT64_MAX, (int)m->body.rf_body_u.error.err);
		return false;
	}
	st = &m->body.rf_body_u.status_r;
	if (m->body.type != RF_STATUS_R || st->fid.ino != vn->fid.ino ||
	    st->fid.gen != vn->fid.gen || st->size > AG_SIZE_MAX) {
		ag_server_garbage(c->srv, "an answer to STATUS that is none");
		return false;
	}
	if (!st->promise_ms) {
		ag_log("%s: the server gives no promise for it", vn->path);
		ag_reqs_fail(vn, AG_KEY_ANY, 0, UINT64_MAX, -EIO);
	}
	if (!ag_fetch_judge(vn, st, c))
		ag_fetch_revalidate(vn, st, c);
	return false;
}

void ag_fetch_status(struct ag_vnode *vn)
{
	struct rf_msg m = {.body.type = RF_STATUS};
	struct ag_call *c;

	if (vn->asking || !ag_list_empty(&vn->fetches))
		return;
	c = ag_call_new(vn->vol, vn, on_status, NULL);
	c->key = vn->key;
	m.body.rf_body_u.status.file = ag_key_file(vn, vn->key);
	m.body.rf_body_u.status.promise = true;
	vn->asking++;
	vn->asked_at = ag_now();
	ag_count(vn->ag, RF_R_VALIDATE, 1);
	ag_call_send(c, &m, NULL, 0);
}

/* ---- FETCH ---- */

static bool on_fetch(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_vnode *vn = c->vn;
	const rf_status *st;
	uint64_t off = c->page << RF_PAGE_SHIFT, asked = c->npages << RF_PAGE_SHIFT;
	struct ag_task *t;

	ag_list_del(&c->by_vn);
	ag_vn_kick(vn);
	if (!m)
		return false;
	if (m->body.type == RF_ERROR) {
		refused(c, c->page, c->page + c->npages, (int)m->body.rf_body_u.error.err);
		return false;
	}
	st = &m->body.rf_body_u.fetch_r.status;
	if (m->body.type != RF_FETCH_R || m->body.rf_body_u.fetch_r.off != off || len > asked ||
	    st->fid.ino != vn->fid.ino || st->fid.gen != vn->fid.gen || st->size > AG_SIZE_MAX) {
		ag_server_garbage(c->srv, "an answer to FETCH that is none");
		return false;
	}
	if (len < asked && off + len < st->size) {
		/* Short, and not because the file ends there. */
		if (!len)
			ag_reqs_fail(vn, AG_KEY_ANY, c->page, c->page + c->npages, -EIO);
		len &= ~(size_t)(RF_PAGE_SIZE - 1);
	}
	switch (ag_fetch_judge(vn, st, c)) {
	case 1:
		ag_fetch_fill(vn, c->page, payload, len, st->size);
		ag_fetch_merged(vn);
		break;
	case 0:
		t = ag_fetch_revalidate(vn, st, c);
		t->page = c->page;
		t->data = ag_memdup(payload, len);
		t->len = len;
		break;
	}
	return false;
}

static bool under_way(const struct ag_vnode *vn, uint64_t page)
{
	struct ag_call *c;

	ag_for_each (c, &vn->fetches, by_vn)
		if (page >= c->page && page < c->page + c->npages)
			return true;
	return false;
}

static unsigned calls_under_way(const struct ag_vnode *vn)
{
	struct ag_call *c;
	unsigned n = 0;

	ag_for_each (c, &vn->fetches, by_vn)
		n++;
	return n;
}

static void fetch(struct ag_vnode *vn, uint64_t page, uint64_t npages)
{
	struct rf_msg m = {.body.type = RF_FETCH};
	struct ag_call *c = ag_call_new(vn->vol, vn, on_fetch, NULL);
	rf_fetch *f = &m.body.rf_body_u.fetch;

	c->page = page;
	c->npages = npages;
	c->key = vn->key;
	ag_list_add(&vn->fetches, &c->by_vn);
	f->file = ag_key_file(vn, vn->key);
	f->range.off = page << RF_PAGE_SHIFT;
	f->range.len = npages << RF_PAGE_SHIFT;
	f->promise = true;
	ag_count(vn->ag, RF_R_FETCH, 1);
	ag_call_send(c, &m, NULL, 0);
}

/* Fetch what of [at, end) is missing.  Returns the end of what is cached or under way now. */
static uint64_t fetch_missing(struct ag_vnode *vn, uint64_t at, uint64_t end, unsigned max)
{
	unsigned n = calls_under_way(vn);

	end = ag_min(end, ag_vn_pages(vn));
	while (at < end) {
		uint64_t k = 1;

		if (!page_empty(vn, at) || under_way(vn, at)) {
			at++;
			continue;
		}
		if (n++ >= max)
			break;
		/* A short one first: somebody waits for its first page. */
		while (at + k < end && k < (n == 1 ? WINDOW_FIRST : WINDOW_MAX) &&
		       page_empty(vn, at + k) && !under_way(vn, at + k))
			k++;
		fetch(vn, at, k);
		at += k;
	}
	return at;
}

uint64_t ag_fetch_ahead(struct ag_vnode *vn, uint64_t at, uint64_t end)
{
	return fetch_missing(vn, at, end, UNDER_WAY_MAX);
}

/* Pages past the server's end of file. */
static int fill_zeros(struct ag_vnode *vn, uint64_t first, uint64_t end)
{
	static const unsigned char zeros[64 * 1024];
	uint64_t p = ag_max(first, RF_PAGES(vn->ssize)), n;
	int r = 0;

	end = ag_min(end, ag_vn_pages(vn));
	for (; p < end && !r; p += n) {
		n = 1;
		if (!page_empty(vn, p))
			continue;
		while (p + n < end && n < sizeof(zeros) / RF_PAGE_SIZE && page_empty(vn, p + n))
			n++;
		r = fill_run(vn, p, n, zeros);
	}
	return r;
}

static struct ag_stream *stream_of(struct ag_vnode *vn, uint64_t page)
{
	for (unsigned i = 0; i < AG_STREAMS; i++) {
		struct ag_stream *s = &vn->stream[i];

		if (s->next != UINT64_MAX && page >= s->start && page <= s->next)
			return s;
	}
	return NULL;
}

int ag_fetch_pages(struct ag_vnode *vn, uint64_t first, uint64_t end, bool random)
{
	struct ag_stream *s = random ? NULL : stream_of(vn, first);
	uint64_t ahead;
	int r = ag_vn_valid(vn) ? fill_zeros(vn, first, end) : 0;

	if (r)
		return r;
	fetch_missing(vn, first, end, UINT_MAX); /* in any case */
	if (random)
		return 0;
	if (s) {
		s->window =
		    s->window ? (uint32_t)ag_min(2 * (uint64_t)s->window, WINDOW_MAX) : WINDOW_MIN;
	} else {
		s = &vn->stream[vn->stream_hand++ % AG_STREAMS];
		/* The beginning of a file, and large requests, are the beginning of a stream. */
		s->window = first == 0 || end - first >= WINDOW_MIN ? WINDOW_MIN : 0;
	}
	ahead = s->window == WINDOW_MAX ? AHEAD * WINDOW_MAX : s->window;
	ahead = ag_min(ahead, vn->ag->budget / 8); /* not what would push itself out again */
	end = ag_max(end, ag_min(first + ahead, RF_PAGES(vn->ssize)));
	s->start = first;
	s->next = fetch_missing(vn, first, end, UNDER_WAY_MAX);
	return 0;
}

void ag_fetch_want(struct ag_vnode *vn)
{
	const char *why;
	size_t i;

	if (vn->want_valid && vn->dv) {
		vn->want_valid = false;
		vn->refused = 0;
		ag_brk_acks(vn);
	}
	if (!vn->target && !vn->want_valid)
		return;
	if (ag_volume_ready(vn->vol, 0, &why) <= 0)
		return;
	if (!vn->target) {
		ag_fetch_status(vn);
		return;
	}
	for (i = 0; i < vn->nmerge && calls_under_way(vn) < UNDER_WAY_MAX;) {
		uint64_t page = vn->merge[i++], n = 1;

		if (under_way(vn, page))
			continue;
		while (i < vn->nmerge && n < WINDOW_MAX && vn->merge[i] == page + n &&
		       !under_way(vn, page + n))
			i++, n++;
		fetch(vn, page, n);
	}
}
