/* SPDX-License-Identifier: MIT */
/*
 * task.h - work that needs a vnode for itself for a while.
 *
 * A vnode runs one task at a time, in the order in which they came; while one runs or waits, frames
 * from the server about the vnode wait behind it, so that what happens to a vnode happens in stream
 * order.  A task is a chain of steps; each of the functions below arranges for the next step to be
 * called, at once or later.  No step waits for an RPC: that is why a break, which is a task, never
 * does.
 */
#ifndef AGENT_TASK_H
#define AGENT_TASK_H

#include "ag.h"
#include "protocol.h"

struct ag_hold;
struct ag_op;
struct ag_proc;
struct ag_req;
struct ag_task;

typedef void (*ag_step)(struct ag_task *t);

struct ag_run {
	uint64_t page, n;
};

struct ag_task {
	struct ag_list link; /* vn->tasks; the running one is vn->task and in no list */
	struct ag_vnode *vn;
	ag_step step; /* the first, then the next */

	/* invalidate_lock, strips and other waits */
	struct ag_list slow; /* ag->slow, while waiting */
	uint64_t since;
	bool locked;   /* `invalidate` is set */
	bool safe;     /* no slot named the vnode when it was taken */
	bool stripped; /* all strips were acknowledged */
	bool left; /* but PTEs of pinned pages stayed: only for what will be acknowledged late */
	uint32_t orders; /* strips not acknowledged */

	/* the worker: punch these pages, then set the size */
	uv_work_t work;
	struct ag_run *run;
	size_t nruns, runs_cap;
	bool resize;
	uint64_t size;
	int err;

	/* what it is about; see the steps that use it */
	rf_status st;
	bool have_st;
	uint64_t sent_at; /* of the request that st answers */
	uint32_t conn;    /* server's connection that it came by */
	uint32_t mass;    /* mass breaks until then */
	uint64_t break_id;
	rf_range *range; /* own copy */
	uint32_t nranges;
	bool bytes, drop, punch, exact;
	bool evict;   /* pages [page, end) go, they are at the server */
	bool unsure;  /* there are dirty ones among them: the version is not known */
	bool repeat;  /* st may be of long ago */
	bool discard; /* dirty pages go, too */
	bool ack;     /* a break: acknowledge break_id at the end */
	uint64_t dv_before;
	void *data; /* own copy */
	size_t len;
	uint64_t page, end;
	struct ag_op *op;
	struct ag_hold *hold; /* to be frozen */
	struct ag_req *req;   /* waits for it */
	void (*done)(struct ag_task *t);
};

struct ag_task *ag_task_new(struct ag_vnode *vn, ag_step first);
void ag_task_post(struct ag_task *t);       /* behind the others */
void ag_task_post_front(struct ag_task *t); /* before the others */
/* Run what can be run. */
void ag_tasks_run(struct ag_vnode *vn);
/* The last thing that a task does.  Unlocks, frees. */
void ag_task_end(struct ag_task *t);
void ag_task_free(struct ag_task *t);
bool ag_vn_busy(const struct ag_vnode *vn);

/* Take invalidate_lock; next with t->safe telling whether all slots were let go of in time. */
void ag_task_lock(struct ag_task *t, ag_step next);
void ag_task_unlock(struct ag_task *t);
/* Have every program that maps the vnode strip it; next with t->stripped. */
void ag_task_strip(struct ag_task *t, ag_step next);
/* No program that maps the vnode owes an answer, and no slot names it. */
bool ag_vn_quiet(struct ag_vnode *vn);
/* Punch t->run and resize in a worker (at once, if there is nothing to do); next with t->err. */
void ag_task_work(struct ag_task *t, ag_step next);
/* More pages to punch. */
void ag_task_punch(struct ag_task *t, uint64_t page, uint64_t n);

/* A stripper's answer; a program that can give none any more. */
void ag_task_stripped(struct ag_proc *p, const struct rf_strip *s);
void ag_task_forget_proc(struct ag_proc *p);

/* The fast timer: look at what waits. */
void ag_task_slow(struct ag_task *t, uint64_t now);

#endif
