/* SPDX-License-Identifier: MIT */
/*
 * task.c - tasks: a vnode's queue, the exclusive side of invalidate_lock, strips, workers.
 *
 * invalidate_lock, exclusive: set `invalidate`, fence, look for slots that name the vnode; spin for
 * LOCK_SPIN, then look every millisecond; after LOCK_WAIT go on without having been alone (safe =
 * false): then only what needs nobody's co-operation is done, which is punching clean pages.
 * A slot of a dead program is no slot.
 *
 * Strips: one order to every program that maps the vnode; what is not acknowledged within
 * STRIP_WAIT (or cannot be sent) leaves stripped = false, with the same consequence.
 *
 * Workers: fallocate and ftruncate take the memfd's inode lock, which a program's pwrite may hold;
 * so they never run on the loop.
 *
 * Counters: strip, drop (by the callers).
 * Locks: this is invalidate_lock; wakes its futex.
 */
#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "debug.h"
#include "proc.h"
#include "vnode.h"

#define LOCK_SPIN (50 * AG_US)
#define LOCK_WAIT (20 * AG_MS)
#define STRIP_WAIT (20 * AG_MS)

/* A strip that was not acknowledged yet. */
struct order {
	struct ag_list link;  /* proc->orders */
	struct ag_task *task; /* NULL: nobody waits for it any more */
	uint32_t seq, vnode;
};

/* ---- the queue ---- */

struct ag_task *ag_task_new(struct ag_vnode *vn, ag_step first)
{
	struct ag_task *t = ag_alloc(sizeof(*t));

	t->vn = vn;
	t->step = first;
	ag_list_init(&t->link);
	ag_list_init(&t->slow);
	return t;
}

void ag_task_post(struct ag_task *t)
{
	ag_list_add(&t->vn->tasks, &t->link);
	ag_vn_kick(t->vn);
}

void ag_task_post_front(struct ag_task *t)
{
	ag_list_insert(&t->vn->tasks, &t->link);
	ag_vn_kick(t->vn);
}

bool ag_vn_busy(const struct ag_vnode *vn)
{
	return vn->task || !ag_list_empty(&vn->tasks);
}

void ag_tasks_run(struct ag_vnode *vn)
{
	struct ag_task *t;

	while (!vn->task && (t = ag_first(&vn->tasks, struct ag_task, link))) {
		ag_list_del(&t->link);
		vn->task = t;
		t->step(t);
	}
}

void ag_task_free(struct ag_task *t)
{
	ag_list_del(&t->link);
	ag_list_del(&t->slow);
	free(t->run);
	free(t->range);
	free(t->data);
	free(t);
}

void ag_task_end(struct ag_task *t)
{
	struct ag_vnode *vn = t->vn;

	ag_assert(vn->task == t && !t->orders);
	ag_task_unlock(t);
	if (t->done)
		t->done(t);
	vn->task = NULL;
	ag_task_free(t);
	ag_vn_kick(vn);
}

/* ---- invalidate_lock ---- */

static void wait_slow(struct ag_task *t)
{
	ag_list_add(&t->vn->ag->slow, &t->slow);
	ag_fast_start(t->vn->ag);
}

void ag_task_lock(struct ag_task *t, ag_step next)
{
	struct ag_vnode *vn = t->vn;
	struct ag *ag = vn->ag;

	ag_assert(vn->task == t && !t->locked);
	t->step = next;
	t->since = ag_now();
	t->locked = true;
	atomic_store(&vn->st->invalidate, 1);
	atomic_thread_fence(memory_order_seq_cst);
	while (ag_slots_busy(ag, vn->id, 0, 0)) {
		if (ag_now() - t->since > LOCK_SPIN) {
			wait_slow(t);
			return;
		}
		ag_relax();
	}
	t->safe = true;
	next(t);
}

void ag_task_unlock(struct ag_task *t)
{
	if (!t->locked)
		return;
	ag_assert(t->vn->task == t);
	t->locked = false;
	atomic_store(&t->vn->st->invalidate, 0);
	ag_futex_wake(&t->vn->st->invalidate);
}

/* ---- strips ---- */

void ag_task_strip(struct ag_task *t, ag_step next)
{
	struct ag_vnode *vn = t->vn;
	struct ag *ag = vn->ag;
	struct ag_proc *p;
	bool lost = false;

	t->step = next;
	t->since = ag_now();
	ag_count(ag, RF_R_STRIP, 1);
	ag_for_each (p, &ag->procs, link) {
		struct rf_strip s = {
		    .seq = p->strip_seq + 1, .vnode = vn->id, .flags = t->ack ? RF_STRIP_PINS : 0};
		struct order *o;

		if (!ag_proc_maps(p, vn->id))
			continue;
		if (p->strip < 0 || ag_send(p->strip, &s, sizeof(s), NULL, 0)) {
			lost |= !ag_proc_dead(p);
			continue;
		}
		o = ag_alloc(sizeof(*o));
		p->strip_seq++;
		o->task = t;
		o->seq = s.seq;
		o->vnode = vn->id;
		ag_list_add(&p->orders, &o->link);
		t->orders++;
	}
	t->stripped = !lost;
	if (!t->orders) {
		next(t);
		return;
	}
	wait_slow(t);
}

bool ag_vn_quiet(struct ag_vnode *vn)
{
	struct ag_proc *p;

	ag_for_each (p, &vn->ag->procs, link)
		if (ag_proc_maps(p, vn->id) && (p->strip < 0 || !ag_list_empty(&p->orders)) &&
		    !ag_proc_dead(p))
			return false;
	return !ag_slots_busy(vn->ag, vn->id, 0, 0);
}

static void order_end(struct order *o)
{
	struct ag_task *t = o->task;

	ag_list_del(&o->link);
	free(o);
	if (t && !--t->orders) {
		ag_list_del(&t->slow);
		t->step(t);
	}
}

void ag_task_stripped(struct ag_proc *p, const struct rf_strip *s)
{
	struct order *o;

	ag_for_each (o, &p->orders, link)
		if (o->seq == s->seq) {
			if (o->task)
				o->task->left |= s->left != 0;
			order_end(o);
			return;
		}
}

void ag_task_forget_proc(struct ag_proc *p)
{
	const bool lost = p->strip < 0 && !ag_proc_dead(p);
	struct order *o;

	/* A program that is gone is as good as an answer; one that lost its stripper is not. */
	ag_for_each (o, &p->orders, link) {
		if (o->task && lost)
			o->task->stripped = false;
		order_end(o);
	}
}

/* Not everybody answered in time. */
static void strip_give_up(struct ag_task *t)
{
	struct ag *ag = t->vn->ag;
	struct ag_proc *p;
	struct order *o;

	ag_for_each (p, &ag->procs, link)
		ag_for_each (o, &p->orders, link)
			if (o->task == t) {
				o->task = NULL;
				if (ag_proc_dead(p))
					continue;
				t->stripped = false;
				ag_log("%s: the stripper of program %d did not answer within %d ms",
				       t->vn->path, (int)p->pid, (int)(STRIP_WAIT / AG_MS));
			}
	t->orders = 0;
}

void ag_task_slow(struct ag_task *t, uint64_t now)
{
	struct ag *ag = t->vn->ag;

	if (t->orders) {
		if (now < t->since + STRIP_WAIT)
			return;
		strip_give_up(t);
	} else {
		t->safe = !ag_slots_busy(ag, t->vn->id, 0, 0);
		if (!t->safe && now < t->since + LOCK_WAIT)
			return;
		if (!t->safe)
			ag_log("%s: a slot was held for more than %d ms", t->vn->path,
			       (int)(LOCK_WAIT / AG_MS));
	}
	ag_list_del(&t->slow);
	t->step(t);
}

/* ---- workers ---- */

void ag_task_punch(struct ag_task *t, uint64_t page, uint64_t n)
{
	struct ag_run *r = t->nruns ? &t->run[t->nruns - 1] : NULL;

	if (r && r->page + r->n == page) {
		r->n += n;
		return;
	}
	if (!t->run || t->nruns == t->runs_cap) {
		t->runs_cap = t->runs_cap ? 2 * t->runs_cap : 16;
		t->run = ag_realloc(t->run, t->runs_cap * sizeof(*r));
	}
	r = &t->run[t->nruns++];
	*r = (struct ag_run){page, n};
}

/* In a worker thread. */
static void do_work(uv_work_t *w)
{
	struct ag_task *t = ag_of(w, struct ag_task, work);
	int fd = t->vn->data_fd;

	t->err = 0;
	for (size_t i = 0; i < t->nruns; i++)
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(t->run[i].page << RF_PAGE_SHIFT),
			      (off_t)(t->run[i].n << RF_PAGE_SHIFT)))
			t->err = -errno;
	if (t->resize && ftruncate(fd, (off_t)t->size))
		t->err = -errno;
}

static void work_done(uv_work_t *w, int status)
{
	struct ag_task *t = ag_of(w, struct ag_task, work);
	struct ag *ag = t->vn->ag;

	(void)status;
	if (t->err)
		ag_log("%s: the page cache could not be changed: %s", t->vn->path,
		       strerror(-t->err));
	t->step(t);
	ag_settle(ag);
}

void ag_task_work(struct ag_task *t, ag_step next)
{
	t->step = next;
	t->err = 0;
	if (!t->nruns && !t->resize) {
		next(t);
		return;
	}
	t->err = uv_queue_work(&t->vn->ag->loop, &t->work, do_work, work_done);
	if (t->err)
		next(t);
}
