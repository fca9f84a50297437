/* SPDX-License-Identifier: MIT */
/*
 * ctx.h - the library's one context, and the one global that leads to it.
 *
 * Life: ctx_get() makes it on the first interposed call (other libraries' constructors may come
 * before ours).  Until a volume is configured nothing else happens; until one is touched no agent
 * is looked for, no handler installed, no memory mapped.
 *
 * Locks, outermost first: attach_lock -> lock -> once_lock.  All block all signals; the first two
 * are taken by the fork handlers.  attach_lock may be held across the attach handshake; lock never
 * across a request.
 */
#ifndef SHIM_CTX_H
#define SHIM_CTX_H

#include <refault/state.h>
#include <refault/refault.h>
#include <signal.h>

#include "real.h"
#include "sys.h"

#define CTX_VOLUMES 32
#define CTX_FDS (1u << 20) /* descriptors that can be managed */
#define CTX_FD_BASE 512    /* internal descriptors are at or above the soft limit or this */

struct file;
struct vnode;
struct map_local;
struct map_entry;
struct pin_record;

struct place; /* anchor.c */

struct volume {
	const char *conf; /* the path as configured, without trailing slashes */
	size_t conf_len;
	const char *addr; /* "unix:/run/x.sock" */
	const char *name; /* export */
	const struct place
	    *_Atomic place; /* where that path leads; NULL: nowhere, or not looked yet */
	_Atomic uint32_t looked, said;
	uint32_t pins; /* rf_pins() of its option; 0: as c->pins */
};

enum {
	CTX_NO_CONTINUE_WP = 1, /* before 6.4, or REFAULT_DISABLE=continue-wp */
	CTX_FAULT_THREAD = 2,   /* REFAULT_FAULTS=thread */
	CTX_NO_SHARED_SIDE = 4, /* REFAULT_DISABLE=invalidate-lock: files go bad, tests show how */
};

struct ctx {
	struct real real;

	/* configuration, constant after the start */
	struct volume vol[CTX_VOLUMES];
	uint32_t nvol; /* 0: the library only passes calls through */
	int verbose;
	const char *key_file; /* REFAULT_KEY; NULL: the user's own uid */
	uint32_t mode;        /* CTX_* */
	uint32_t pins;        /* REFAULT_PINS, as rf_pins(); 0: not set */

	/* the agent */
	struct sys_lock attach_lock;
	_Atomic uint32_t
	    attached; /* counts attaches; 0: not attached; odd values only when attached */
	pid_t pid;    /* that attached */
	int (*clock)(clockid_t, struct timespec *); /* libc's own, whatever a program interposes */
	int sock, hup;        /* request socket; its closing tells the stripper */
	int uffd, uffd_alias; /* -1: none yet.  Of the mappings; of the aliases (often the same) */
	uint64_t uffd_features;
	struct rf_proc *proc;
	const struct rf_host *host;
	struct rf_twins *twins;
	uint32_t ntwins; /* as it was at attach: what a program scribbles there is not believed */

	/* descriptors and vnodes */
	struct sys_lock
	    once_lock; /* innermost: first looks and first times of anchor.c, w_stdio.c */
	struct sys_lock lock;
	struct file *_Atomic *_Atomic fds; /* CTX_FDS entries, sparse; NULL until one is managed */
	_Atomic uint32_t fd_top;           /* one above the highest ever entered */
	struct file *file_pool;
	struct vnode *vnode_pool;
	_Atomic uint32_t nfiles, nvnodes; /* high-water marks of the pools */

	/* mappings: rf_proc.map is the table; map_local what only this process knows of one */
	_Atomic uintptr_t map_lo, map_hi; /* bounding box, empty: lo > hi */
	struct map_local *local_pool;
	_Atomic int mlock_future; /* MCL_FUTURE and MCL_ONFAULT, if mlockall() said so */

	/* pins (pin.c) */
	_Atomic uint32_t pin_ticket, pin_hint;
	_Atomic uint64_t pin_group, pin_pages; /* pages: of refault_pin */
	struct pin_record *pin_record;
	uint32_t pin_records;

	/* the stripper (strip.c) */
	_Atomic uint32_t strip_busy; /* it is between reading the table and madvise */
	_Atomic uint32_t strip_turn; /* counts what it strips */
	_Atomic uint64_t
	    lease_next; /* CLOCK_MONOTONIC ns when it looks next, UINT64_MAX: not by itself */
	int poke;       /* eventfd that makes it look now */
	pid_t strip_pid;
	void *strip_stack;

	struct { /* large reservations of ours, which mlockall() does not mean */
		void *p;
		size_t n;
	} own[3];
	uint32_t nown;

	bool fork_ready;
	_Atomic uint32_t cell_turn, cell_waiters; /* futex: a cell was given back; who waits */
	_Atomic uint32_t twin_near, twin_far;     /* hints: where a free twin was last found */
	struct {                                  /* between the fork handlers, under both locks */
		struct map_entry *e;
		uint32_t n;
		uint64_t bytes;
		sys_mask m1, m2;
	} fork;

	/* SIGBUS stays the program's */
	_Atomic uint32_t bus_installed;
	struct sigaction user_bus;
};

extern struct ctx *rf_ctx __attribute__((visibility("hidden")));

/* Private memory of our own, for good: reserved whole, had as it is touched.  At most three of them; an
 * error as sys_mmap's.  Takes no lock: not from two threads. */
void *ctx_reserve(struct ctx *c, size_t n);

/* What ctx_get does the first time: symbols, configuration, inherited descriptors. */
struct ctx *ctx_make(void);

/* Never NULL.  Safe before our constructor, in handlers, from several threads at once. */
static inline struct ctx *ctx_get(void)
{
	struct ctx *c = __atomic_load_n(&rf_ctx, __ATOMIC_ACQUIRE);
	return __builtin_expect(c != NULL, 1) ? c : ctx_make();
}

#endif
