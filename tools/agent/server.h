/* SPDX-License-Identifier: MIT */
/*
 * server.h - a file server, by its address.
 */
#ifndef AGENT_SERVER_H
#define AGENT_SERVER_H

#include <refault/wire.h>

#include "io.h"

struct ag_call;

enum ag_server_state { AG_DOWN, AG_HELLO, AG_UP };

struct ag_server {
	struct ag_list link; /* ag->servers */
	struct ag *ag;
	char *addr;
	uint32_t index; /* in rf_host, once a file of it is held; else UINT32_MAX */

	enum ag_server_state state;
	bool ever;     /* it was up once */
	bool broken;   /* to be taken down before we sleep */
	bool retrying; /* the timer runs for the next attempt */
	int fd;
	struct ag_io *io;
	struct rf_rx rx;
	struct ag_list tx; /* what the socket did not take yet */
	uint32_t conn;     /* counts connections */
	uint64_t shown;    /* set of keys that it knows on this one */
	uint32_t mass;     /* counts mass breaks */
	uint32_t xid;
	uint64_t instance, lease;
	uv_timer_t timer; /* ping, or the next attempt */
	uint64_t backoff, tried_at;
	uint64_t pinged;           /* the ping that was not answered yet, or 0 */
	unsigned stripping;        /* files to be stripped before HELLO */
	struct ag_list unstripped; /* those that could not be */
	time_t down_at;            /* since when programs may notice; 0 if it is up */
	int err; /* why it is down: -errno and a text; 0 before the first attempt */
	char why[160];

	uint32_t slots; /* of the journal that its files have */

	struct ag_list calls, volumes, vnodes;
};

/* An export, attached to by name. */
struct ag_volume {
	struct ag_list link;
	struct ag_server *srv;
	char *name;
	uint32_t handle;
	uint64_t
	    memory; /* as long as it is this, the server remembers what it did for us; 0: not */
	bool ready, asked;
	int err; /* the server does not serve it */
};

/*
 * A call that was not (completely) answered.  reply() is called for each answer, with m NULL when
 * the connection was lost; it returns whether another answer is to come.
 */
struct ag_call {
	struct ag_list link;  /* srv->calls */
	struct ag_list by_vn; /* vn->fetches */
	struct ag_server *srv;
	struct ag_vnode *vn;
	struct ag_volume *vol; /* LOOKUP: the answer's file is of this volume */
	void *arg;
	bool (*reply)(struct ag_call *c, struct rf_msg *m, void *payload, size_t len);
	uint32_t xid;
	uint64_t sent_at, epoch;
	uint64_t page, npages; /* FETCH */
	uint32_t key;          /* FETCH, STATUS: it is made under */
};

/* By address, made if it is not known.  NULL: out of memory, or too many. */
struct ag_server *ag_server_get(struct ag *ag, const char *addr);
struct ag_volume *ag_volume_get(struct ag_server *srv, const char *name);
/* Its index in rf_host, taken now if it has none.  -ENFILE. */
int ag_server_index(struct ag_server *srv, uint32_t want);

/*
 * Something waits for this volume.  1: calls can be made.  0: it is being connected to.  -errno:
 * not now; why says more.  born is when the wait began: it ends after REFAULT_TIMEOUT.
 */
int ag_volume_ready(struct ag_volume *vol, uint64_t born, const char **why);
/* Whoever has waited since then for an answer has waited long enough. */
bool ag_overdue(const struct ag *ag, uint64_t since);

/* A call about vn (may be NULL).  NULL: out of memory.  Sending never fails: a broken connection is
 * taken down later, and then reply() is told.  The payload stays as it is until then or until the
 * answer: it is sent from where it is. */
struct ag_call *ag_call_new(struct ag_volume *vol, struct ag_vnode *vn,
			    bool (*reply)(struct ag_call *, struct rf_msg *, void *, size_t),
			    void *arg);
void ag_call_send(struct ag_call *c, struct rf_msg *m, const void *payload, size_t len);
/* A message that is not answered. */
void ag_server_send(struct ag_server *srv, struct rf_msg *m);

/* It sent what makes no sense. */
void ag_server_garbage(struct ag_server *srv, const char *what);
/* Take a broken connection down: all promises are void, all mapped files are stripped. */
void ag_server_lost(struct ag_server *srv);
/* All its promises are void.  before_hello: the next HELLO waits for the strips. */
void ag_server_mass_break(struct ag_server *srv, bool before_hello);
void ag_server_kick(struct ag_server *srv);
/* The server does not give it any more: its breaks are acknowledged when no program shows what is old. */
void ag_server_let_go(struct ag_vnode *vn);
/* The fast timer: look at what could not be stripped.  False: there is nothing. */
bool ag_servers_slow(struct ag *ag, uint64_t now);

/* Handle a frame now; for tasks that carry a frame that had to wait. */
struct ag_task;
void ag_frame_step(struct ag_task *t);

#endif
