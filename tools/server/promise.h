/* SPDX-License-Identifier: MIT */
/* promise.h - who holds which file, and who waits for whom.  Source: promise.c. */
#ifndef SRV_PROMISE_H
#define SRV_PROMISE_H

#include "client.h"

/* A client that has found this file by a name. */
struct srv_holder {
	LIST_ENTRY(srv_holder) in_file;
	LIST_ENTRY(srv_holder) in_client;
	struct srv_file *file;
	struct srv_client *client;
	bool promise;
	uint64_t found; /* the identities which have, by handle: others have to first */
	int64_t
	    readable; /* seconds since the epoch: one could read it, breaks may carry bytes till then */
	uint64_t until;   /* ms; not 0: the promise was forgotten and ends then at the latest */
	uint64_t unacked; /* the break that ended the promise, until it is acknowledged */
};

/* A break that is not acknowledged, and at most one change that waits for it. */
struct srv_brk {
	TAILQ_ENTRY(srv_brk) link;
	uint64_t id;
	uint64_t until;
	struct srv_holder *holder; /* NULL: it forgot the file, or id is 0: a ghost's */
	struct srv_wait *wait;
};

/* A change that is applied (or a SYNC): RELEASED when left and syncing are 0. */
struct srv_wait {
	TAILQ_ENTRY(srv_wait) link;
	TAILQ_ENTRY(srv_wait) sync_link;
	struct srv_client *client;
	struct srv_conn *conn; /* NULL: lost */
	uint32_t xid;
	bool change; /* request is its id */
	uint64_t request;
	unsigned left;
	bool syncing;
	int err;
};

/* What a break says. */
struct srv_note {
	uint64_t dv_before;
	bool known;
	rf_range *ranges;
	size_t nranges;
	const void *data; /* NULL: not pushed along */
	size_t len;
};

struct srv_holder *srv_holder_find(struct srv_file *file, struct srv_client *client);
struct srv_holder *srv_holder_get(struct srv_file *file, struct srv_client *client);
void srv_holder_drop(struct srv_holder *h);
/* It gave the file up, or came back: nothing waits for it. */
void srv_holder_release(struct srv_holder *h);
void srv_promise(struct srv_holder *h);
/* ms that the client may count on the promise that it has; 0: none. */
uint32_t srv_promise_ms(const struct srv_holder *h);
/* It may still show content from before its break. */
bool srv_holder_busy(const struct srv_holder *h);

/* Tell all holders but changer (NULL: all); wait (may be NULL) is held up until they answered. */
void srv_break(struct srv_file *file, const struct srv_note *note, struct srv_client *changer,
	       struct srv_wait *wait);
/*
 * wait is held up until all breaks of this file that others were sent are acknowledged, too, and
 * those are back who were here before a restart.
 */
void srv_breaks_wait(struct srv_file *file, struct srv_wait *wait);
/* False: no such break was ever sent. */
bool srv_ack(struct srv_client *client, uint64_t id);
/* Nobody waits for this client any more. */
void srv_brks_end(struct srv_client *client);
/* Forget all promises; clients are told. */
void srv_forget_all(struct srv *srv);
void srv_lease_timer(uv_timer_t *timer);

struct srv_wait *srv_wait_new(struct srv_client *client, struct srv_conn *conn, uint32_t xid);
void srv_wait_check(struct srv_wait *wait);
void srv_wait_free(struct srv_wait *wait);

#endif
