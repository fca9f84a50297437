/* SPDX-License-Identifier: MIT */
/*
 * inval.c - bulk invalidation of a file.
 *
 * One task, in the manner of change.c: invalidate_lock; what is clean is taken, in one pass over its
 * words; one punch of each run; the promise is given up, so that whoever touches the file next asks the
 * server, and no answer to a question of before counts.  The version is forgotten, too, so that what is
 * dirty and stays is merged with what the server says then.
 * A page that stays is still in page tables, where no promise would protect it: then the file is
 * stripped.
 *
 * FLUSH writes back first, through the gate and with stores frozen (freeze.h), so that a store is either
 * in what is written, or waits and goes to a page that was fetched anew.  While the server is away
 * nothing is frozen, and when the program is told so nothing was dropped.  A page that does not become
 * clean (a stopped thread is about to store to it) stays.
 *
 * DISCARD takes dirty pages, too, as an excision does, but nobody is told of an error.  A STORE that
 * is on its way then may still arrive: if it does, its ranges are dropped here once more (op.c), and
 * it shows.  What was extended here and not sent is cut off.
 *
 * A range is advice (posix_fadvise): its clean pages go, as they may at any time, and that is all.  No
 * promise is given up and nothing is stripped, so the rest of the file stays where it is.
 *
 * Each file is a request of its own, which needs that file alone: a volume can be invalidated while
 * its files are opened, closed and flushed by whomever.
 *
 * Counters: invalidate, drop (change.c).
 * Locks: gate and frozen, through freeze.h; invalidate_lock, exclusive, through ag_task_lock; page words
 * by CAS.
 */
#include "inval.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "change.h"
#include "freeze.h"
#include "pin.h"
#include "server.h"

#define FLUSH_TRIES 5u

/* ---- the task ---- */

static void inval_end(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page;

	ag_all_gone(t);
	if (t->left) { /* pinned pages are in page tables still: validate though nobody asks */
		ag_vn_forget_version(vn);
		vn->want_valid = true;
	}
	t->size = 0;
	while (ag_scan_next(&s, &page))
		t->size += rf_w_state(atomic_load(&vn->word[page])) != RF_PG_EMPTY;
	ag_task_end(t);
}

/* Who could not be stripped sees no clean page any more: none is left. */
static void inval_stripped(struct ag_task *t)
{
	t->err = 0;
	if (!t->stripped || !t->safe) {
		atomic_fetch_add(&t->vn->st->read_gen, 1);
		ag_take_clean(t, 0, UINT64_MAX, UINT64_MAX);
	}
	ag_task_work(t, inval_end);
}

static void inval_worked(struct ag_task *t)
{
	ag_all_gone(t);
	if (!t->err && t->vn->ncached && ag_vn_mapped(t->vn))
		ag_task_strip(t, inval_stripped);
	else
		inval_end(t);
}

/* Dirty pages of [first, end) go, but for those that somebody is about to store to. */
static void discard(struct ag_task *t, uint64_t first, uint64_t end)
{
	struct ag_vnode *vn = t->vn;
	struct ag_scan s = ag_scan(vn, first, end);
	uint64_t page;

	while (ag_scan_next(&s, &page)) {
		if (!ag_w_twinned(atomic_load(&vn->word[page])) || !ag_take_any(t, page))
			continue;
		ag_task_punch(t, page, 1);
		ag_count(vn->ag, RF_R_DROP, 1);
	}
}

/* Pages [first, end) go, but for those that are pinned. */
static void take(struct ag_task *t, uint64_t first, uint64_t end)
{
	while (first < end) {
		uint64_t pin = first, upto = end;

		if (!ag_pins_first(t->vn, &pin, &upto))
			pin = upto = end;
		ag_take_clean(t, first, pin, UINT64_MAX);
		if (t->discard)
			discard(t, first, pin);
		first = upto;
	}
}

static void inval_locked(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	atomic_fetch_add(&vn->st->read_gen, 1);
	vn->anew = ag_now();
	ag_vn_forget_version(vn);
	take(t, 0, ag_vn_pages(vn));
	if (t->discard && vn->size > vn->ssize) {
		ag_vn_wind(vn, true);
		ag_excise(vn, 0, 0);
	}
	ag_task_work(t, inval_worked);
}

static void invalidate(struct ag_task *t)
{
	ag_vn_unpromise(t->vn);
	t->vn->epoch++;
	atomic_thread_fence(memory_order_seq_cst);
	ag_task_lock(t, inval_locked);
}

/* ---- advice ---- */

static void dropped(struct ag_task *t)
{
	ag_all_gone(t);
	ag_task_end(t);
}

static void drop_range(struct ag_task *t)
{
	t->err = 0;
	atomic_fetch_add(&t->vn->st->read_gen, 1);
	take(t, t->page, ag_min(t->end, ag_vn_pages(t->vn)));
	ag_task_work(t, dropped);
}

/* ---- the request ---- */

static void inval_done(struct ag_task *t)
{
	struct ag_req *req = t->req;

	if (!req)
		return;
	req->task = NULL;
	req->err = t->err ? t->err : req->err;
	req->ret = t->size;
}

int ag_inval_check(uint64_t pages, uint64_t flags)
{
	return flags & ~(uint64_t)(RF_INVAL_FLUSH | RF_INVAL_DISCARD) ||
		       flags == (RF_INVAL_FLUSH | RF_INVAL_DISCARD) || (pages && flags)
		   ? -EINVAL
		   : 0;
}

static void drop(struct ag_req *req)
{
	const uint64_t first = req->q.arg[0], n = req->q.arg[1];
	struct ag_task *t = ag_task_new(req->vn, n ? drop_range : invalidate);

	req->asked = true;
	req->op_seq = req->vn->op_seq;
	t->page = first;
	t->end = first + ag_min(n, UINT64_MAX - first);
	t->discard = req->q.arg[2] & RF_INVAL_DISCARD;
	t->done = inval_done;
	t->req = req;
	req->task = t;
	ag_task_post(t);
}

/* Pages that have to be written back, and can become clean. */
static uint64_t to_flush(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page, n = 0;

	while (ag_scan_next(&s, &page)) {
		const uint64_t w = atomic_load(&vn->word[page]);

		n += ag_w_twinned(w) && !(w & RF_W_SYNC) && !ag_pinned_long(vn, page);
	}
	return n;
}

static void let_go(struct ag_req *req)
{
	if (req->parts)
		ag_req_orphan(req, req->vn);
	if (req->hold)
		ag_hold_end(req->hold);
	req->hold = NULL;
	req->flushes = 0;
}

/* What the server refused was excised; who asked for the flush is told, too. */
static int refusal(const struct ag_req *req)
{
	struct rf_vnode *st = req->vn->st;
	const int err = atomic_load(&st->wb_err);

	if (!req->flushes ||
	    (req->errseq | RF_ERRSEQ_SEEN) == (atomic_load(&st->errseq) | RF_ERRSEQ_SEEN))
		return 0;
	return err > 0 && err < 4096 ? -err : -EIO;
}

/* Frozen, and nothing is dirty any more that can be clean: 1.  0: not yet, or it is over. */
static int flushed(struct ag_req *req)
{
	struct ag_vnode *vn = req->vn;
	const uint64_t n = to_flush(vn);
	const char *why;
	int r = req->err;

	/* A gate opens when the server has answered. */
	if (!r && (n || vn->size > vn->ssize || (vn->gate && vn->gate != req->hold))) {
		r = ag_req_ready(req, vn->op_seq, &why);
		if (!r)
			let_go(req); /* stores do not wait for the server to come back */
		if (!r)
			return 0;
	}
	if (r < 0) {
		let_go(req);
		ag_req_finish(req, r, n);
		return 0;
	}
	if (!req->hold) {
		req->hold = ag_hold_new(vn, NULL, req->born);
		if (!req->hold)
			return 0; /* who opens it looks at us */
		req->hold->tell = vn;
		ag_hold_freeze(req->hold, false, NULL);
	}
	if (req->hold->under_way || req->parts)
		return 0;
	if (req->flushes == FLUSH_TRIES || (!n && vn->size <= vn->ssize)) {
		req->err = refusal(req);
		return 1;
	}
	if (!req->flushes++)
		req->errseq = atomic_load(&vn->st->errseq);
	ag_req_flush_part(req, vn, req->hold, 0, UINT64_MAX);
	return 0;
}

void ag_inval_serve(struct ag_req *req)
{
	const bool flush = req->q.arg[2] & RF_INVAL_FLUSH;
	const char *why;
	int r;

	if (req->task)
		return;
	if (!req->asked) {
		if (!flush || flushed(req))
			drop(req);
		return;
	}
	let_go(req);
	/* Others do not see the old bytes either, as after any flush. */
	if (flush && !req->err && !ag_ops_done(req->vn, req->op_seq)) {
		r = ag_req_ready(req, req->op_seq, &why);
		if (r >= 0)
			return;
		req->err = r;
	}
	ag_req_finish(req, req->err, req->ret);
}

/* ---- the command ---- */

static void begin(struct ag_peer *p, struct ag_vnode *vn, uint32_t flags, uint32_t index)
{
	struct ag_req *req = ag_req_by_peer(p, vn, index);

	req->q.op = RF_OP_INVALIDATE;
	req->q.arg[2] = flags;
}

/* path is name, or below it; "": everything is. */
static bool below(const char *path, const char *name)
{
	const size_t n = strlen(name);

	return !n || (!strncmp(path, name, n) && (!path[n] || path[n] == '/'));
}

/* A NUL-terminated string of the packet that is no longer than most; NULL: there is none. */
static const char *next_name(const char **s, size_t *len, size_t most)
{
	const char *name = *s, *end = memchr(name, 0, ag_min(*len, most + 1));

	if (!end)
		return NULL;
	*len -= (size_t)(end + 1 - name);
	*s = end + 1;
	return name;
}

/* Of the files of a volume those that are one of these, or below; of many names the first counts. */
static int by_name(struct ag_peer *p, const char *s, size_t len, uint32_t flags)
{
	const char *volume = next_name(&s, &len, RF_MAX_NAME), *names = s;
	const size_t all = len;
	struct ag *ag = p->ag;

	if (!volume)
		return -EINVAL;
	while (len)
		if (!next_name(&s, &len, RF_MAX_PATH))
			return -EINVAL;
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		struct ag_vnode *vn = ag->vnode[id];
		bool meant = !all;
		uint32_t n = 0;

		if (!vn || strcmp(vn->vol->name, volume) != 0)
			continue;
		for (s = names, len = all; len && !meant; n++)
			meant = below(vn->path, next_name(&s, &len, RF_MAX_PATH));
		if (meant)
			begin(p, vn, flags, n ? n - 1 : 0);
	}
	return 0;
}

static int by_inode(struct ag_peer *p, const void *buf, size_t len, uint32_t n, uint32_t flags)
{
	const char *s = buf;
	uint64_t id[2]; /* dev, ino */

	if (len != n * sizeof(id))
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		struct ag_vnode *vn;

		memcpy(id, s + i * sizeof(id), sizeof(id));
		vn = ag_vn_get(p->ag, ag_stat_look(p->ag->host, id[0], id[1]));
		if (vn)
			begin(p, vn, flags, i);
	}
	return 0;
}

int ag_inval_peer(struct ag_peer *p, const void *buf, size_t len)
{
	struct rf_inval i;

	if (len < sizeof(i))
		return -EINVAL;
	memcpy(&i, buf, sizeof(i));
	buf = (const char *)buf + sizeof(i);
	len -= sizeof(i);
	if (ag_inval_check(0, i.flags))
		return -EINVAL;
	return i.files ? by_inode(p, buf, len, i.files, i.flags) : by_name(p, buf, len, i.flags);
}
