/* SPDX-License-Identifier: MIT */
/* op.h - a request while it is worked on.  Source: op.c. */
#ifndef SRV_OP_H
#define SRV_OP_H

#include "file.h"

struct srv_op {
	uv_work_t work;
	TAILQ_ENTRY(srv_op) in_conn;
	TAILQ_ENTRY(srv_op) in_file;
	TAILQ_ENTRY(srv_op) in_client;
	struct srv_conn *conn; /* NULL: lost */
	struct srv_client *client;
	struct srv_volume *vol;
	struct srv_ident *ident; /* whose request it is; NULL: nobody's */
	struct store_cred *cred; /* what that may do, as of when the op was last taken up */
	struct rf_msg msg;
	uint32_t xid;
	unsigned char *payload;
	size_t len;
	unsigned char *owned; /* what payload lies in, once it is ours; NULL: the receive buffer */
	size_t charged;

	bool replay; /* applied before: only its durability is asked for */
	bool untold; /* and APPLIED, because that was before a restart: at change.off */

	struct srv_file *file;
	bool found; /* the file, by a name, for this op */

	/* A REMAP and the op that holds its source point at each other while both are there. */
	struct srv_op *other;
	bool source;  /* it is that one; its message is a STATUS of the source */
	bool held;    /* the source waits for the REMAP, or the REMAP for its source */
	int src_err;  /* REMAP without other: why */
	rf_range dst; /* REMAP: where to */

	/* between loop thread and pool thread */
	int err;
	ssize_t got;
	struct store_file *sf;
	struct store_attr attr;
	struct store_change change;
	struct srv_out *out;
	size_t want;
	uint64_t seq;
	unsigned tries;
};

/* Take over msg and look at payload (which is good until return).  After HELLO only. */
void srv_request(struct srv_conn *conn, struct rf_msg *msg, void *payload, size_t len);
/* Undo records may be free: go on with the changes that wait for one. */
void srv_op_undo(struct srv *srv);
/* The file is not busy any more: go on with its queue. */
void srv_op_next(struct srv_file *file);
/* The request of this client that changes something, with this id, that is under way. */
struct srv_op *srv_op_find(struct srv_client *client, uint64_t request);

#endif
