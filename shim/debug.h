/* SPDX-License-Identifier: MIT */
/*
 * debug.h - the lock order of the library (state.h, ctx.h), asserted in builds with RF_DEBUG (make
 * DEBUG=1); nothing at all in others.
 *
 * Each thread has a set of what it holds.  A lock may be taken if nothing of its rank or behind it is
 * held; whoever waits, asks the agent or touches the program's memory holds none that the comment
 * there rules out.  What is violated is told in one line, and the program ends with SIGABRT.
 */
#ifndef SHIM_DEBUG_H
#define SHIM_DEBUG_H

#include <stdint.h>

/* Outermost first. */
enum debug_rank {
	DEBUG_ATTACH = 1, /* ctx->attach_lock */
	DEBUG_LOCK = 2,   /* ctx->lock */
	DEBUG_ONCE = 4,   /* ctx->once_lock */
	DEBUG_SLOT = 8,
	DEBUG_ALL = 15,
};

#ifdef RF_DEBUG
extern __thread uint32_t debug_held __attribute__((visibility("hidden")));

/* Says what, and what is held; does not return. */
__attribute__((noreturn)) void debug_fail(const char *what, uint32_t rank);

static inline void debug_take(uint32_t rank)
{
	if (rank && debug_held >= rank)
		debug_fail("takes", rank);
	debug_held |= rank;
}

static inline void debug_drop(uint32_t rank)
{
	if (rank && !(debug_held & rank))
		debug_fail("lets go of what it does not hold", rank);
	debug_held &= ~rank;
}

/* About to do what must not be done while any of rank is held. */
static inline void debug_free(uint32_t rank, const char *what)
{
	if (debug_held & rank)
		debug_fail(what, 0);
}

/* A fork child: the locks that its parent held over the fork are free here. */
static inline void debug_forget(void)
{
	debug_held = 0;
}
#else
static inline void debug_take(uint32_t rank)
{
	(void)rank;
}
static inline void debug_drop(uint32_t rank)
{
	(void)rank;
}
static inline void debug_free(uint32_t rank, const char *what)
{
	(void)rank;
	(void)what;
}
static inline void debug_forget(void)
{
}
#endif

#endif
