/* SPDX-License-Identifier: MIT */
/*
 * debug.h - what must be so, above all of the lock order (state.h), asserted in builds with RF_DEBUG
 * (make DEBUG=1) and nothing in others.  A failed one is a line in the log and SIGABRT; the
 * supervisor starts the next agent.
 *
 *	one running task a vnode, and only it holds the invalidate_lock	task.c
 *	dirty pages are taken away only with it held			change.c
 *	nothing is filled while it is held				fetch.c
 *	what is frozen is gated, by whoever froze it; of two the smaller id first	freeze.c, vnode.c
 */
#ifndef AGENT_DEBUG_H
#define AGENT_DEBUG_H

#ifdef RF_DEBUG
#include <stdlib.h>

#include "util.h"

#define ag_assert(cond)                                                                            \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			ag_log("%s:%d: assertion failed, a bug: %s", __FILE__, __LINE__, #cond);   \
			abort();                                                                   \
		}                                                                                  \
	} while (0)
#else
#define ag_assert(cond) ((void)sizeof(!(cond)))
#endif

#endif
