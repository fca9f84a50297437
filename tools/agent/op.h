/* SPDX-License-Identifier: MIT */
/*
 * op.h - a change on its way to the server: RF_STORE, RF_APPEND, RF_SET_SIZE, RF_FALLOC, RF_REMAP,
 * RF_SYNC.
 */
#ifndef AGENT_OP_H
#define AGENT_OP_H

#include "journal.h"
#include "pages.h"
#include "vnode.h"

struct ag_hold;
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
	struct ag_req *req;   /* who waits for just this one; NULL for STORE and for the dead */
	struct ag_slot *slot; /* where all of it lies that is sent; NULL: SYNC */
	enum rf_type type;
	enum ag_op_state state;
	bool armed;   /* the slot says all of it: it was sent, or is about to be */
	bool again;   /* sent more than once: the answer may be of long ago */
	bool applied; /* once; a repeat is not applied again, here neither */
	uint64_t seq, request, since;
	uint64_t walk;  /* STORE: the walk that collected it, see reject.h */
	uint64_t apply; /* vn->applies when it was applied; SYNC: when it was sent */
	uint32_t key;   /* under which it is made */
	bool durable, may_extend;
	bool soon;            /* STORE: a durable one, or SYNC, follows */
	bool program;         /* asked for by a program: it gets the error, nothing is excised */
	struct ag_hold *hold; /* the gate that it goes through: open when the cache has followed */
	bool settle;          /* applied by a server that forgot it: only SYNC is left to ask for */
	uint64_t memory;      /* of the server that it was sent to */
	uint64_t off;         /* applied: APPEND's offset, REMAP's bytes */

	/* In the slot. */
	struct ag_slot_page *page;
	uint32_t npages;
	/* STORE: ranges and bytes; APPEND: bytes; FALLOC: the range; REMAP: that, and src's name */
	struct ag_change change;

	uint64_t size; /* SET_SIZE */
	bool grow_only;
	uint32_t mode;          /* FALLOC */
	struct ag_slot_src src; /* REMAP */
};

/* NULL: no slot is free (see ag_slot_take); never for SYNC. */
struct ag_op *ag_op_new(struct ag_vnode *vn, enum rf_type type, bool spare);
/* Write all of it to its slot, for the next agent.  Its loud pages are DIRTY from now on. */
void ag_op_arm(struct ag_op *op);
/* Send it, or have it sent when the server is there (a STORE is undone).  It may be gone after. */
void ag_op_send(struct ag_op *op);
void ag_ops_resend(struct ag_vnode *vn);
/* What the agent before had sent and not seen released.  Returns how many there are. */
uint32_t ag_ops_adopt(struct ag_vnode *vn);
/* Every second: what was sent and is not answered for too long keeps nobody from storing. */
void ag_ops_overdue(struct ag_vnode *vn);
/* A program's change, by its request id. */
struct ag_op *ag_op_find(struct ag_vnode *vn, uint64_t request);
/* It is over: out of vn->ops, freed. */
void ag_op_end(struct ag_op *op);
/* All of its pages DIRTY again, and what was sent of them is to be sent again. */
void ag_op_undo(struct ag_op *op);
/* The word of its i-th page now, unless others have changed it. */
uint64_t ag_op_word(const struct ag_op *op, uint32_t i);
/* All that was sent is in the file, or is not; SYNC changes nothing. */
bool ag_ops_drained(const struct ag_vnode *vn);
/* The server's size when all that is under way is applied. */
uint64_t ag_ops_size(const struct ag_vnode *vn);
/* Nothing up to seq is under way any more; is not applied. */
bool ag_ops_done(const struct ag_vnode *vn, uint64_t seq);
bool ag_ops_applied(const struct ag_vnode *vn, uint64_t seq);
/* The server was sent something up to seq, and has said nothing to it since for too long. */
bool ag_ops_silent(const struct ag_vnode *vn, uint64_t seq, uint64_t since);
/* A bit a byte of a page that is on its way though it is DIRTY; NULL if there is no such thing. */
uint8_t *ag_op_inflight(const struct ag_vnode *vn, uint64_t page);

#endif
