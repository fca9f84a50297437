/* SPDX-License-Identifier: MIT */
/*
 * proc.h - an attached program.
 */
#ifndef AGENT_PROC_H
#define AGENT_PROC_H

#include "io.h"
#include "keep.h"

struct ag_proc {
	struct ag_list link; /* ag->procs */
	struct ag *ag;
	struct rf_proc *mem;
	uint32_t id, turn; /* turn: how often that id was given out before */
	pid_t pid;
	int conn, mem_fd, uffd, strip, pidfd;
	struct ag_io *conn_io, *strip_io, *pid_io;
	struct ag_list uses;   /* struct ag_use: vnodes it holds */
	struct ag_list reqs;   /* its requests under way */
	struct ag_list orders; /* strips that it has not acknowledged */
	uint32_t strip_seq, nreqs;
	bool suspect; /* something hung up: ask the userfaultfd until it is dead */
	uint64_t suspect_at;
};

/* A program holds a vnode. */
struct ag_use {
	struct ag_list by_proc, by_vnode;
	struct ag_proc *proc;
	struct ag_vnode *vn;
	uint32_t opens;
	uint64_t keys; /* set of those that it opened the file under */
};

/*
 * Take a program in.  Takes the descriptors: conn, uffd, strip.  Returns NULL with text filled in
 * if it is refused (the caller closes them then).
 */
struct ag_proc *ag_proc_attach(struct ag *ag, int conn, pid_t pid, int uffd, int strip, char *text,
			       size_t len);
/* The answer to its ATTACH. */
void ag_proc_welcome(struct ag_proc *p);
/* After a restart. */
int ag_proc_adopt(struct ag *ag, const struct ag_keep *k);
/* Wake everybody who waits for an answer: the request has to be sent again. */
void ag_proc_resend(struct ag_proc *p);

/* Whether it is dead.  It is let go of later, never from inside. */
bool ag_proc_dead(struct ag_proc *p);
/* Look at all that hung up, let go of the dead.  From the loop's timers and callbacks only. */
void ag_procs_check(struct ag *ag);

/* What it sent makes no sense: end of this program's connection. */
void ag_proc_garbage(struct ag_proc *p, const char *what);

/* Answer in a cell, if the program still waits for it. */
void ag_proc_answer(struct ag_proc *p, uint32_t cell, uint32_t seq, int err, uint64_t ret0,
		    uint64_t ret1);

/* The request id of a change that it asks for, once in a long time; and the answer to that one, which
 * it may wait for without our having its request. */
uint64_t ag_proc_change(const struct ag_proc *p, uint32_t cell, uint32_t seq);
void ag_proc_changed(struct ag *ag, uint64_t id, int err, uint64_t off);

/* Whether it does. */
bool ag_proc_waits(struct ag_proc *p, uint32_t cell, uint32_t seq);

/* A slot of any program names one of these pages (npages 0: any page) of the vnode. */
bool ag_slots_busy(struct ag *ag, uint32_t vnode, uint64_t first, uint64_t npages);

/*
 * Write-protect [first, last] of the vnode wherever it is mapped.  -EBUSY: a mapping table is just
 * being changed, try again later.
 */
int ag_procs_protect(struct ag *ag, uint32_t vnode, uint64_t first, uint64_t last);

/* Threads of any program may sleep on a page word. */
bool ag_procs_wait(struct ag *ag);

/* Whether the program maps the vnode; true also if its table cannot be read now. */
bool ag_proc_maps(struct ag_proc *p, uint32_t vnode);
bool ag_procs_map(struct ag *ag, uint32_t vnode);

#endif
