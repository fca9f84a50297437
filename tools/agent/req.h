/* SPDX-License-Identifier: MIT */
/*
 * req.h - a request of a program (or of the agent itself: proc NULL) that is not answered yet.
 */
#ifndef AGENT_REQ_H
#define AGENT_REQ_H

#include "flush.h"

struct ag_call;
struct ag_hold;
struct ag_peer;
struct ag_structural;

struct ag_req {
	struct ag_list link;    /* vn->reqs, ag->opens or ag->shorts */
	struct ag_list by_proc; /* proc->reqs, peer->reqs */
	struct ag *ag;
	struct ag_proc *proc;
	struct ag_vnode *vn; /* NULL for an OPEN that has not found it yet, and for FLUSH of all */
	struct rf_req q;
	uint64_t born;
	int err;

	bool asked;           /* the first step is done */
	struct ag_task *task; /* that it waits for */
	struct ag_op *op;     /* the one change that it waits for */
	uint64_t ret;

	struct ag_structural *change; /* SETSIZE, FALLOC, REMAP */

	/* FLUSH */
	struct ag_hold
	    *through; /* it goes through the gate that this holds, and extends the file, too */
	struct ag_pass pass;
	bool passed, synced, behind;
	uint64_t op_seq;
	struct ag_req *parent; /* a part of a FLUSH of all, or of a structural change */
	unsigned parts;
	uint64_t freed; /* FLUSH of all for want of twins: ag->twins_freed then */

	/* OPEN */
	int reply;
	struct ag_volume *vol;
	struct ag_call *call;
	struct rf_open open;
	char *path;

	/* INVALIDATE: with FLUSH; for the command */
	struct ag_hold *hold;
	unsigned flushes;
	uint32_t errseq; /* before the first */
	struct ag_peer *peer;
	uint32_t index; /* of what it asked for */

	size_t len; /* APPEND */
	unsigned char *data;
};

struct ag_req *ag_req_new(struct ag *ag, struct ag_proc *p, struct ag_vnode *vn);
/* One of the command's, on the vnode's list. */
struct ag_req *ag_req_by_peer(struct ag_peer *p, struct ag_vnode *vn, uint32_t index);
/* Answer it, and free it. */
void ag_req_finish(struct ag_req *req, int err, uint64_t ret0);

/* A packet of a program; takes the descriptors. */
void ag_req_packet(struct ag_proc *p, void *buf, size_t len, const int *fd, unsigned nfd);
/* The program is gone; the peer is. */
void ag_req_forget_proc(struct ag_proc *p);
void ag_req_forget_peer(struct ag_peer *p);

/* Go on with what waits on this vnode; on an open. */
void ag_reqs_serve(struct ag_vnode *vn);
void ag_opens_serve(struct ag *ag);
void ag_shorts_serve(struct ag *ag);
/* Write everything back; nobody waits. */
void ag_flush_all_behind(struct ag *ag);
/* The same, but for what is pinned and so keeps its twin. */
void ag_flush_for_twins(struct ag *ag);
/* Twins that are taken, by looking at every step'th. */
uint32_t ag_twins_used(const struct ag *ag, uint32_t step);
/* Whether an open waits for this server. */
bool ag_req_wants(const struct ag_server *srv);

/* FAULTs under this key (AG_KEY_ANY: all) that need one of these pages cannot be served. */
void ag_reqs_fail(struct ag_vnode *vn, uint32_t key, uint64_t first, uint64_t end, int err);
/* A change failed; was lost and undone: flushes of the file have to know. */
void ag_reqs_op_error(struct ag_vnode *vn, const struct ag_op *op, int err);
void ag_reqs_op_lost(struct ag_vnode *vn, const struct ag_op *op);
/* The change that req waits for was applied at off (err: it was not); was released: req is over. */
void ag_req_op(struct ag_req *req, struct ag_op *op, int err, uint64_t off);
void ag_req_op_released(struct ag_req *req, struct ag_op *op);

/* ---- for requests that are served elsewhere (structural.c) ---- */

/*
 * Whether req can go on with the server: 1 yes, 0 not now, -errno with *why never.  What up to
 * op_seq was sent without an answer counts.
 */
int ag_req_ready(struct ag_req *req, uint64_t op_seq, const char **why);
/* Answer, and free. */
void ag_req_finish(struct ag_req *req, int err, uint64_t ret0);
/* The agent before had sent its change already: that one is waited for.  req may be gone. */
bool ag_req_adopt(struct ag_req *req);
/* Its change, not sent yet.  NULL: no slot is free. */
struct ag_op *ag_req_op_new(struct ag_req *req, enum rf_type type);
/* That was sent, or refused.  1: req is finished. */
int ag_req_sent(struct ag_req *req);
/* A flush of pages [first, end), applied, through that gate, as a part of parent; errors in parent->err. */
void ag_req_flush_part(struct ag_req *parent, struct ag_vnode *vn, struct ag_hold *through,
		       uint64_t first, uint64_t end);
/* Parts of req on that vnode go on for nobody. */
void ag_req_orphan(struct ag_req *req, struct ag_vnode *vn);

#endif
