/* SPDX-License-Identifier: MIT */
/*
 * ag.h - the agent's context.  Everything hangs off it; one thread, one libuv loop.
 *
 * The files, in the order in which one depends on another:
 *
 *	main conf keep super	start, options; what outlives a crash; the supervisor
 *	pages			pure: page words, diff, merge, the guard, the status table
 *	agent io		context, loop, timers, memory, going on after a crash; descriptors
 *	peer proc		connections that are not a program yet; attached programs
 *	task freeze		work that needs a vnode for itself: invalidate_lock, strips, workers; gates
 *	vnode pin change fetch	files: made; in use by I/O; dropped, resized, changed, stripped; validated, filled
 *	journal op		changes on their way to the server, where a crash does not reach them
 *	flush reject		write-back; what becomes of changes that the server refuses
 *	brk server key		breaks; connections to servers, leases, mass breaks; identities
 *	structural inval seek	truncate and its kin; bulk invalidation; where the holes are
 *	req info		requests of programs; the status text
 */
#ifndef AGENT_AG_H
#define AGENT_AG_H

#include <refault/agent.h>
#include <refault/state.h>
#include <uv.h>

#include "conf.h"
#include "util.h"

struct ag_io;
struct ag_journal;
struct ag_key;
struct ag_server;
struct ag_slots;
struct ag_vnode;

#define AG_FID_CHAINS 1024u
#define AG_UNUSED_MAX 1024u /* vnodes kept that no program holds; fewer if descriptors are few */

struct ag {
	const struct ag_conf *conf;
	uv_loop_t loop;
	uv_timer_t fast;     /* 1 ms, only while something waits for programs */
	uv_timer_t tick;     /* dirty_expire, only while there is something to look at */
	uv_timer_t pool;     /* while twins are taken or freed */
	uv_timer_t second;   /* housekeeping */
	uv_timer_t patience; /* only while programs wait: REFAULT_TIMEOUT */
	uv_signal_t term, intr;
	unsigned life;
	uint64_t boot, started;
	uint8_t client[16];

	int keep;
	int listen;
	int uffd; /* of our own mappings of the page caches */
	int host_fd, host_ro, twins_fd, journal_fd;
	struct ag_io *listen_io, *keep_io;
	struct rf_host *host;
	struct rf_twins *twins;
	uint64_t twins_size;
	uint64_t twins_freed; /* so far */
	uint32_t ntwins;      /* not read from the pool, where programs can write */
	uint32_t pool_used;   /* twins in use when it was last looked */
	uint32_t twin_high;   /* none from here on was seen in use since the pool was trimmed */
	uint32_t nprocs;

	struct ag_journal *journal;
	struct ag_slots *slots; /* which of its are free */
	struct ag_list starved; /* vnodes that wait for one */

	struct ag_list procs, peers, servers;
	struct ag_server *server[RF_MAX_SERVERS];
	struct ag_key *key[RF_KEYS]; /* by number; 0 has none */

	struct ag_vnode **vnode; /* by id, RF_MAX_VNODES */
	uint32_t last_vnode, vnode_high, nvnodes, nunused, unused_max;
	struct ag_list fid[AG_FID_CHAINS];
	struct ag_list unused; /* vnodes that no program holds, the longest unused first */

	struct ag_list kicked;   /* vnodes to look at before we sleep */
	struct ag_list soon;     /* vnodes to look at with the fast timer */
	struct ag_list slow;     /* tasks that wait for programs: the fast timer looks after them */
	struct ag_list slow_ops; /* stores that wait for slots, likewise */
	struct ag_list slow_changes; /* structural changes that try again, likewise */
	struct ag_list opens;        /* RF_OP_OPEN that wait for a server */
	struct ag_list shorts;       /* FLUSHes of all that wait for free twins */
	bool look_shorts; /* a file was written back: it may be time to go on with others */
	bool running, again, fast_on;

	uint64_t cached; /* pages in all caches */
	uint64_t budget; /* of these */
	uint32_t drop_hand;
	bool dropping, stopping;
	uint64_t request; /* ids of changing calls */
	uint64_t walk;    /* counts walks over dirty pages */
	uint64_t busy_at; /* when there last was a reason to stay */
	uint64_t term_at; /* 0, or told to stop then */
	int64_t asleep;   /* CLOCK_BOOTTIME - CLOCK_MONOTONIC */

	unsigned char *packet; /* RF_REQ_MAX */
	uint64_t count[RF_REASONS], gone[RF_REASONS];
};

static inline void ag_count(struct ag *ag, enum rf_reason r, uint64_t n)
{
	ag->count[r] += n;
}

/* Run an agent: the child of the supervisor.  Returns its exit status. */
struct ag_start;
int ag_run(struct ag_start *start);

/*
 * Every callback of the loop ends with this: look at kicked vnodes and lost servers until nothing
 * is left to do.  Calls from inside itself do nothing.
 */
void ag_settle(struct ag *ag);

/* Have ag_slow entries looked at every millisecond. */
void ag_fast_start(struct ag *ag);

/* Start or stop the timers as there is work for them. */
void ag_timers(struct ag *ag);

/* Open a userfaultfd that can fill: as root, unprivileged, or through /dev.  -errno. */
int ag_uffd_open(void);

/* Drop clean pages if there are more than the budget. */
void ag_memory(struct ag *ag);

/* A socket that listens at RUNTIME/agent.sock, replacing what is there.  -errno. */
int ag_listen_make(const struct ag_conf *conf);

#endif
