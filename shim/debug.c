/* SPDX-License-Identifier: MIT */
/*
 * debug.c - a violated lock order ends the program (debug.h).  Raw system calls: it may be the fault
 * path that is wrong.
 *
 * Counters, locks: none.
 */
#include "core.h"

#ifdef RF_DEBUG
__thread uint32_t debug_held;

static const char *name_of(uint32_t held)
{
	return held & DEBUG_SLOT   ? "a slot"
	       : held & DEBUG_ONCE ? "ctx->once_lock"
	       : held & DEBUG_LOCK ? "ctx->lock"
	       : held              ? "ctx->attach_lock"
				   : "nothing";
}

void debug_fail(const char *what, uint32_t rank)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} dfl = {0};
	const sys_mask none = {0};
	const int tid = (int)rf_syscall(SYS_gettid);

	log_line("lock order: thread %d %s%s%s with %s held; this is a bug in the library", tid,
		 what, rank ? " " : "", rank ? name_of(rank) : "", name_of(debug_held));
	rf_syscall(SYS_rt_sigaction, SIGABRT, &dfl, 0, 8);
	sys_setmask(none);
	rf_syscall(SYS_tgkill, rf_syscall(SYS_getpid), tid, SIGABRT);
	for (;;)
		rf_syscall(SYS_exit_group, 134);
}
#endif
