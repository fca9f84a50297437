/* SPDX-License-Identifier: MIT */
/*
 * structural.c - truncate, fallocate, clone, dedupe and copy: from the request to the change that is
 * sent.  What follows here when the server has made it is a task (op.c, change.c).
 *
 *	gate	of the file, and of a REMAP's source, both at once (freeze.h)
 *	drain	what was sent before is in the file, or is not; no STORE follows it
 *	freeze	in invalidate_lock: no pin holds what will go, and from now on nobody stores
 *	flush	what the server must have before it moves it; through the gate
 *	send	the change, which has the gate, and what is frozen, from now on
 *
 * Every stage but the first is left without waiting for what may never come: a pin, a stopped thread
 * that holds a slot, a lost connection.  Then the request gives way: it thaws, opens the gates, and
 * begins anew a little later, until its time is over (pins: what the request says, -ETXTBSY; else
 * REFAULT_TIMEOUT, -EBUSY).  Meanwhile the file is everybody's.
 *
 * What is flushed: COLLAPSE and INSERT move everything from where they cut to the end of the file;
 * REMAP reads its source, and replaces pages of the file whole.  Truncate, punch and zero flush
 * nothing: what goes is dropped when the server has said yes, and one that refuses loses nobody's
 * data.  Allocation and UNSHARE change nothing that is cached, and freeze nothing.
 *
 * A flush that the server refuses ends the request with that error, as in a kernel.
 *
 * Counters: structural, give-way, pin-wait.
 * Locks: gate and frozen, through freeze.h.
 */
#include "structural.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#include "freeze.h"
#include "key.h"
#include "pin.h"
#include "server.h"

#define PIN_LOOK AG_MS
#define AGAIN (20 * AG_MS) /* after having given way to who knows what */
#define CLEAN_TRIES 5u     /* flushes of a page that does not become clean at once */
#define MODES                                                                                      \
	(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_COLLAPSE_RANGE |                  \
	 FALLOC_FL_INSERT_RANGE | FALLOC_FL_UNSHARE_RANGE)

enum stage { GATE, DRAIN, FREEZE, FLUSH };

/* Pages of a file. */
struct span {
	struct ag_vnode *vn; /* NULL: none */
	uint64_t first, end;
	uint32_t errseq; /* of the file before the flush */
};

struct ag_structural {
	struct ag_req *req;
	struct ag_list slow;         /* ag->slow_changes, until again_at */
	struct ag_vnode *src;        /* of a REMAP, maybe the file itself; else NULL */
	struct ag_gate_wait wait[2]; /* for both gates, if it is another file */
	enum stage stage;
	struct ag_hold *hold; /* from DRAIN on; then the change has it */
	uint64_t again_at;
	unsigned flushes;
	bool pause; /* between two of them */

	/* Looked up before it is frozen. */
	struct span clean[2];          /* must be at the server as they are here */
	uint64_t gone_first, gone_end; /* pages that it takes away: no pin may hold them */
	uint64_t pinned_at;            /* since when one does */
	bool sequester;
};

/* ---- arguments ---- */

static int check_falloc(uint64_t mode, uint64_t off, uint64_t len)
{
	if (off > INT64_MAX || !len || len > INT64_MAX)
		return -EINVAL;
	if (mode & ~(uint64_t)(MODES | FALLOC_FL_KEEP_SIZE))
		return -EOPNOTSUPP;
	switch (mode & MODES) {
	case 0:
	case FALLOC_FL_UNSHARE_RANGE:
	case FALLOC_FL_ZERO_RANGE:
		break;
	case FALLOC_FL_PUNCH_HOLE:
		if (!(mode & FALLOC_FL_KEEP_SIZE))
			return -EOPNOTSUPP;
		break;
	case FALLOC_FL_COLLAPSE_RANGE:
	case FALLOC_FL_INSERT_RANGE:
		if (mode & FALLOC_FL_KEEP_SIZE)
			return -EOPNOTSUPP;
		break;
	default:
		return -EOPNOTSUPP;
	}
	return off + len > AG_SIZE_MAX ? -EFBIG : 0;
}

static uint32_t remap_src(const struct rf_req *q)
{
	return (uint32_t)q->arg[0];
}
static uint32_t remap_key(const struct rf_req *q)
{
	return (uint32_t)(q->arg[0] >> 32) & 0xff;
}
static uint32_t remap_kind(const struct rf_req *q)
{
	return (uint32_t)(q->arg[0] >> 40);
}

int ag_structural_check(struct ag *ag, struct ag_vnode *vn, const struct rf_req *q)
{
	const uint64_t *a = q->arg;
	const struct ag_vnode *src;

	if (q->op == RF_OP_SETSIZE)
		return a[0] > INT64_MAX ? -EINVAL : a[0] > AG_SIZE_MAX ? -EFBIG : 0;
	if (q->op == RF_OP_FALLOC)
		return check_falloc(a[0], a[1], a[2]);
	src = ag_vn_get(ag, remap_src(q));
	if (!src)
		return -ESTALE;
	if (src->vol != vn->vol)
		return -EXDEV;
	if (remap_kind(q) < RF_KIND_CLONE || remap_kind(q) > RF_KIND_COPY || a[1] > AG_SIZE_MAX)
		return -EINVAL;
	return a[2] > AG_SIZE_MAX || a[3] > AG_SIZE_MAX || a[2] + a[3] > AG_SIZE_MAX ? -EFBIG : 0;
}

/* ---- made and freed ---- */

void ag_structural_new(struct ag_req *req)
{
	struct ag_structural *c = req->change = ag_alloc(sizeof(*c));

	c->req = req;
	ag_list_init(&c->slow);
	for (unsigned i = 0; i < 2; i++) {
		ag_list_init(&c->wait[i].link);
		c->wait[i].vn = req->vn;
	}
	if (req->q.op == RF_OP_REMAP)
		c->src = ag_vn_get(req->ag, remap_src(&req->q));
	if (c->src && c->src != req->vn) { /* this keeps the source, too */
		ag_list_add(&req->vn->gate_waits, &c->wait[0].link);
		ag_list_add(&c->src->gate_waits, &c->wait[1].link);
	}
}

static void get_in_line(struct ag_structural *c)
{
	if (ag_list_empty(&c->wait[0].link)) /* one gate: what vn->reqs says is the order */
		return;
	c->wait[0].born = c->wait[1].born = c->req->born;
}

static void leave_line(struct ag_structural *c)
{
	if (!c->wait[0].born)
		return;
	c->wait[0].born = c->wait[1].born = 0;
	if (c->hold) /* who opens it looks at the others */
		return;
	ag_gate_wake(c->req->vn);
	ag_gate_wake(c->src);
}

/* Its flushes go on for nobody, the file is everybody's. */
static void let_go(struct ag_structural *c)
{
	if (c->req->parts) {
		ag_req_orphan(c->req, c->req->vn);
		if (c->src)
			ag_req_orphan(c->req, c->src);
	}
	if (c->hold)
		ag_hold_end(c->hold);
	c->hold = NULL;
	c->stage = GATE;
}

void ag_structural_free(struct ag_req *req)
{
	struct ag_structural *c = req->change;

	let_go(c);
	leave_line(c);
	ag_list_del(&c->slow);
	for (unsigned i = 0; i < 2; i++)
		ag_list_del(&c->wait[i].link);
	free(c);
	req->change = NULL;
}

static void look_again(struct ag_structural *c, uint64_t after)
{
	c->again_at = ag_now() + after;
	ag_list_add(&c->req->ag->slow_changes, &c->slow);
	ag_fast_start(c->req->ag);
}

static void give_way(struct ag_structural *c, uint64_t after)
{
	ag_count(c->req->ag, RF_R_GIVE_WAY, 1);
	let_go(c);
	look_again(c, after);
}

/* It cannot be had now, and perhaps never. */
static void busy(struct ag_structural *c)
{
	struct ag_req *req = c->req;

	if (ag_now() - req->born >= req->ag->conf->timeout_ns) {
		ag_log(
		    "%s: a program stands still with a page of it in use; the change is not made",
		    req->vn->path);
		ag_req_finish(req, -EBUSY, 0);
		return;
	}
	give_way(c, AGAIN);
}

void ag_structurals_slow(struct ag *ag, uint64_t now)
{
	struct ag_structural *c;

	ag_for_each (c, &ag->slow_changes, slow)
		if (now >= c->again_at) {
			ag_list_del(&c->slow);
			ag_vn_kick(c->req->vn);
		}
}

/* ---- what it is about ---- */

/* Takes something away, or moves it. */
static bool freezes(const struct rf_req *q)
{
	return q->op != RF_OP_FALLOC || (q->arg[0] & (MODES & ~FALLOC_FL_UNSHARE_RANGE));
}

/* How many bytes a REMAP asks for; 0: all there are. */
static uint64_t remap_asked(const struct rf_req *q)
{
	return remap_kind(q) == RF_KIND_COPY ? ag_min(q->arg[3], RF_COPY_MAX) : q->arg[3];
}

/* How many it is about, as far as is known here. */
static uint64_t remap_len(const struct ag_structural *c)
{
	const uint64_t off = c->req->q.arg[1], len = remap_asked(&c->req->q);
	const uint64_t left = c->src->size > off ? c->src->size - off : 0;

	return len ? ag_min(len, left) : left;
}

/* How long the file is to be, if it becomes longer. */
static uint64_t size_wanted(const struct ag_structural *c)
{
	const uint64_t *a = c->req->q.arg;

	if (c->req->q.op == RF_OP_SETSIZE)
		return a[0];
	if (c->src)
		return remap_kind(&c->req->q) == RF_KIND_DEDUPE ? 0 : a[2] + remap_len(c);
	if (a[0] & FALLOC_FL_INSERT_RANGE)
		return c->req->vn->size + a[2];
	return a[0] & (FALLOC_FL_KEEP_SIZE | FALLOC_FL_COLLAPSE_RANGE) ? 0 : a[1] + a[2];
}

static void look_up(struct ag_structural *c)
{
	const struct rf_req *q = &c->req->q;
	const uint64_t *a = q->arg;
	struct ag_vnode *vn = c->req->vn;
	uint64_t len;

	memset(c->clean, 0, sizeof(c->clean));
	c->gone_first = c->gone_end = 0;
	if (q->op == RF_OP_SETSIZE) {
		c->gone_first = RF_PAGES(a[0]);
		c->gone_end = UINT64_MAX;
		return;
	}
	if (!c->src) {
		if (a[0] & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
			c->gone_first = RF_PAGES(a[1]);
			c->gone_end = (a[1] + a[2]) >> RF_PAGE_SHIFT;
		} else if (a[0] & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
			c->gone_first = a[1] >> RF_PAGE_SHIFT;
			c->gone_end = UINT64_MAX;
			c->clean[0] = (struct span){vn, c->gone_first, c->gone_end, 0};
		}
		return;
	}
	/* Another host may be making the source longer right now. */
	len = remap_asked(q) ? remap_asked(q) : AG_SIZE_MAX;
	c->clean[0] = (struct span){vn, a[2] >> RF_PAGE_SHIFT, RF_PAGES(a[2] + len), 0};
	c->clean[1] = (struct span){c->src, a[1] >> RF_PAGE_SHIFT, RF_PAGES(a[1] + len), 0};
	if (remap_kind(q) != RF_KIND_DEDUPE) {
		c->gone_first = c->clean[0].first;
		c->gone_end = RF_PAGES(a[2] + remap_len(c));
	}
}

/* ---- pins ---- */

/*
 * 0: none is in the way.  -EAGAIN: wait, the bound is not reached.  -ETXTBSY, -EDEADLK: what the
 * program is told.
 */
static int pins(struct ag_structural *c)
{
	struct ag_req *req = c->req;
	const uint32_t policy = req->q.pins ? req->q.pins : RF_PINS_DEFAULT;
	const uint64_t wait = (policy & RF_PINS_WAIT_MAX) * AG_MS, now = ag_now();
	bool own;

	c->sequester = false;
	if (c->gone_first >= c->gone_end ||
	    !ag_pins(req->vn, c->gone_first, c->gone_end, req->proc, req->q.tid, &own))
		return 0;
	if (wait && own)
		return -EDEADLK;
	if (!c->pinned_at) {
		c->pinned_at = now;
		if (wait)
			ag_count(req->ag, RF_R_PIN_WAIT, 1);
	}
	if (now - c->pinned_at < wait)
		return -EAGAIN;
	if (policy >> 28 != RF_PINS_SEQUESTER)
		return -ETXTBSY;
	c->sequester = true;
	return 0;
}

/* With the lock held: nobody takes a pin now, and nobody does when it is frozen. */
static int look(struct ag_hold *h, struct ag_task *t)
{
	struct ag_structural *c = h->arg;

	/* A store that may still come would be missing in what is flushed. */
	for (unsigned i = 0; !t->safe && i < 2; i++)
		if (c->clean[i].vn == t->vn && c->clean[i].first < c->clean[i].end &&
		    ag_slots_busy(t->vn->ag, t->vn->id, c->clean[i].first,
				  ag_min(c->clean[i].end, (uint64_t)1 << 36) - c->clean[i].first))
			return -EBUSY;
	return t->vn == c->req->vn ? pins(c) : 0;
}

/* ---- the flush ---- */

static void flush(struct ag_structural *c)
{
	for (unsigned i = 0; i < 2; i++) {
		struct span *s = &c->clean[i];

		if (!s->vn)
			continue;
		if (!c->flushes)
			s->errseq = atomic_load(&s->vn->st->errseq);
		ag_req_flush_part(c->req, s->vn, c->hold, s->first, ag_max(s->end, s->first + 1));
	}
	c->flushes++;
}

static bool is_clean(const struct ag_structural *c, const struct span *s)
{
	struct ag_scan scan = ag_scan(s->vn, s->first, ag_min(s->end, ag_vn_pages(s->vn)));
	uint64_t page;

	if (s->vn->size > s->vn->ssize || s->vn->wind)
		return false;
	while (ag_scan_next(&scan, &page)) {
		const uint64_t w = atomic_load(&s->vn->word[page]);

		/* What can be stored to without a fault is merged with what comes (change.c); what a
		 * pin keeps dirty was flushed, and stays, or is taken from it. */
		if (!ag_w_owns_twin(w) || rf_w_state(w) == RF_PG_EMPTY || (w & RF_W_SYNC) ||
		    ((c->sequester || s == &c->clean[1] || page < c->gone_first ||
		      page >= c->gone_end) &&
		     ag_pinned_long(s->vn, page)))
			continue;
		return false;
	}
	return true;
}

/* 1: all of it is at the server.  0: not yet.  -errno: it will not be. */
static int flushed(struct ag_structural *c)
{
	struct ag_req *req = c->req;
	bool clean = true;

	if (req->parts)
		return 0;
	if (req->err)
		return req->err;
	for (unsigned i = 0; i < 2; i++) {
		const struct span *s = &c->clean[i];
		int err;

		if (!s->vn)
			continue;
		err = atomic_load(&s->vn->st->wb_err);
		if (c->flushes && (s->errseq | RF_ERRSEQ_SEEN) !=
				      (atomic_load(&s->vn->st->errseq) | RF_ERRSEQ_SEEN))
			return err > 0 && err < 4096 ? -err : -EIO;
		clean &= is_clean(c, s);
	}
	if (clean)
		return 1;
	if (c->flushes == CLEAN_TRIES)
		return -EBUSY;
	c->pause = c->flushes && !c->pause;
	if (c->pause)
		look_again(c, AG_MS); /* whoever holds a slot may let go of it */
	else
		flush(c);
	return 0;
}

/* ---- the change ---- */

static void send_remap(struct ag_structural *c, struct ag_op *op)
{
	const struct rf_req *q = &c->req->q;
	struct ag_vnode *src = c->src;

	op->src.fid = src->fid;
	op->src.off = q->arg[1];
	op->src.key = ag_key_check(src->ag, remap_key(q));
	op->src.kind = remap_kind(q);
	op->src.nameless = atomic_load(&src->st->nameless) != 0;
	op->change.range[0] = (rf_range){q->arg[2], remap_asked(q)};
	op->change.n = 1;
	op->change.len = ag_min(strlen(src->path), RF_MAX_PATH);
	memcpy(op->change.data, src->path, op->change.len);
	op->change.data[op->change.len] = '\0';
}

static void change_send(struct ag_structural *c)
{
	const struct rf_req *q = &c->req->q;
	struct ag_op *op = ag_req_op_new(c->req, q->op == RF_OP_SETSIZE  ? RF_SET_SIZE
						 : q->op == RF_OP_FALLOC ? RF_FALLOC
									 : RF_REMAP);

	if (!op) {
		give_way(c, AGAIN);
		return;
	}
	op->hold = c->hold;
	op->hold->tell = NULL;
	c->hold = NULL;
	if (c->src) {
		send_remap(c, op);
	} else if (q->op == RF_OP_SETSIZE) {
		op->size = q->arg[0];
	} else {
		op->mode = (uint32_t)q->arg[0];
		op->change.range[0] = (rf_range){q->arg[1], q->arg[2]};
		op->change.n = 1;
	}
	ag_count(c->req->ag, RF_R_STRUCTURAL, 1);
	ag_op_send(op);
}

/* ---- the stages ---- */

static bool drained(const struct ag_structural *c)
{
	return ag_ops_drained(c->req->vn) && (!c->src || ag_ops_drained(c->src));
}

/* The gates, if they are free, and the pins that were in the way are gone. */
static void take_gate(struct ag_structural *c)
{
	struct ag_req *req = c->req;
	int r = c->pinned_at ? pins(c) : 0;

	if (r == -EAGAIN) {
		leave_line(c);
		look_again(c, PIN_LOOK);
		return;
	}
	if (r) {
		ag_req_finish(req, r, 0);
		return;
	}
	c->hold = ag_hold_new(req->vn, c->src, req->born);
	if (!c->hold) {
		get_in_line(c);
		return; /* who opens it looks at us */
	}
	leave_line(c);
	c->hold->tell = req->vn;
	c->hold->arg = c;
	c->flushes = 0;
	c->pause = false;
	c->stage = DRAIN;
	ag_vn_kick(req->vn);
}

static void drain(struct ag_structural *c)
{
	struct ag_req *req = c->req;

	if (!drained(c))
		return;
	if (!ag_vn_fits(req->vn, size_wanted(c))) {
		ag_req_finish(req, -EFBIG, 0);
		return;
	}
	look_up(c);
	if (!freezes(&req->q)) {
		change_send(c);
		return;
	}
	c->stage = FREEZE;
	ag_hold_freeze(c->hold, c->clean[0].vn != NULL, look);
}

static void frozen(struct ag_structural *c)
{
	const int err = c->hold->err;

	if (c->hold->under_way)
		return;
	if (err == -EAGAIN) {
		give_way(c, PIN_LOOK);
	} else if (err == -EBUSY) {
		busy(c);
	} else if (err) {
		ag_req_finish(c->req, err, 0);
	} else {
		c->stage = FLUSH;
		ag_vn_kick(c->req->vn);
	}
}

static void serve_flush(struct ag_structural *c)
{
	const int r = flushed(c);

	if (r > 0)
		change_send(c);
	else if (r == -EBUSY)
		busy(c);
	else if (r)
		ag_req_finish(c->req, r, 0);
}

void ag_structural_serve(struct ag_req *req)
{
	struct ag_structural *c = req->change;
	const char *why = "";
	int r;

	if (req->op || req->asked) {
		ag_req_sent(req);
		return;
	}
	if (c->stage == GATE && ag_req_adopt(req))
		return;
	r = ag_req_ready(req, req->vn->op_seq, &why);
	if (r > 0 && c->src && ag_ops_silent(c->src, c->src->op_seq, req->born))
		r = -ETIMEDOUT;
	if (r < 0 ||
	    (req->q.op == RF_OP_REMAP && !req->q.arg[3] && remap_kind(&req->q) != RF_KIND_CLONE)) {
		ag_req_finish(req, r < 0 ? r : 0, 0);
		return;
	}
	if (!r)
		let_go(c); /* what was frozen is not to wait for the server to come back */
	if (!r || !ag_list_empty(&c->slow))
		return;
	switch (c->stage) {
	case GATE:
		take_gate(c);
		break;
	case DRAIN:
		drain(c);
		break;
	case FREEZE:
		frozen(c);
		break;
	case FLUSH:
		serve_flush(c);
		break;
	}
}
