/* SPDX-License-Identifier: MIT */
/*
 * op.h - a change on its way to the server: RF_STORE, RF_APPEND, RF_SET_SIZE, RF_PUNCH, RF_SYNC.
 */
#ifndef AGENT_OP_H
#define AGENT_OP_H

#include "pages.h"
#include "vnode.h"

struct ag_req;

enum ag_op_state {
	AG_OP_PREP,    /* a STORE that waits for slots to be let go of */
	AG_OP_SENT,    /* not answered */
	AG_OP_APPLIED, /* in the file; not released */
	AG_OP_LOST,    /* the connection went; to be sent again, with the same request id */
};

struct ag_op {
	struct ag_list link; /* vn->ops, by seq */
	struct ag_list slow; /* ag->slow_ops, while PREP waits */
	struct ag_vnode *vn;
	struct ag_req *req; /* who waits for just this one; NULL for STORE and for the dead */
	enum rf_type type;
	enum ag_op_state state;
	bool applied; /* once; a repeat is not applied again, here neither */
	uint64_t seq, request, since;
	uint32_t key; /* the identity that it is made under */
	bool durable, may_extend;
	bool soon;         /* STORE: a durable one, or SYNC, follows */
	bool program;      /* asked for by a program: it gets the error, nothing is excised */
	bool gated;        /* vn->gate is ours */
	bool settle;       /* applied by a server that is gone: only SYNC is left to ask for */
	uint64_t instance; /* of the server that it was sent to */

	struct ag_op_page {
		uint64_t page, word; /* the word as WRITEBACK */
		bool loud;           /* a slot named it for too long */
		void *snap;          /* not quiet: DIRTY again, and this is what was sent */
	} * page;
	uint32_t npages;
	struct ag_change change; /* STORE: ranges and bytes; APPEND: bytes; PUNCH: the range */

	/* SET_SIZE */
	uint64_t size, alloc_off;
	bool grow_only, keep_size;
};

struct ag_op *ag_op_new(struct ag_vnode *vn, enum rf_type type);
/* Send it, or have it sent when the server is there (a STORE is undone).  It may be gone after. */
void ag_op_send(struct ag_op *op);
void ag_ops_resend(struct ag_vnode *vn);
/* It is over: out of vn->ops, freed. */
void ag_op_end(struct ag_op *op);
/* All of its pages DIRTY again. */
void ag_op_undo(struct ag_op *op);
/* The server's size when all that is under way is applied. */
uint64_t ag_ops_size(const struct ag_vnode *vn);
/* Nothing up to seq is under way any more; is not applied. */
bool ag_ops_done(const struct ag_vnode *vn, uint64_t seq);
bool ag_ops_applied(const struct ag_vnode *vn, uint64_t seq);
/* The server was sent something up to seq, and has said nothing to it since for too long. */
bool ag_ops_silent(const struct ag_vnode *vn, uint64_t seq, uint64_t since);
/* What was sent of a page that is DIRTY all the same; NULL if there is no such thing. */
void *ag_op_snapshot(const struct ag_vnode *vn, uint64_t page);

#endif
