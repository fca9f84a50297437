/* SPDX-License-Identifier: MIT */
/*
 * sys.h - what the library uses in the place of libc where libc may not be touched: in the fault
 * path, in the stripper, under the context's lock.  Raw system calls, no errno, no allocation.
 */
#ifndef SHIM_SYS_H
#define SHIM_SYS_H

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

#include <refault/uffd.h>

#include "debug.h"

#define sys_err(r) ((unsigned long)(r) >= -4095UL)

typedef struct {
	uint64_t bits;
} sys_mask; /* the kernel's sigset_t */

/* All signals but SIGBUS: page_copy's fix-up needs it, and blocked it would kill. */
#define SYS_MASK_ALL ((sys_mask){~(UINT64_C(1) << (SIGBUS - 1))})

static inline sys_mask sys_block_all(void)
{
	sys_mask all = SYS_MASK_ALL, old = {0};
	rf_syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &old, 8);
	return old;
}
static inline sys_mask sys_getmask(void)
{
	sys_mask m = {0};
	rf_syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &m, 8);
	return m;
}
static inline void sys_setmask(sys_mask m)
{
	rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &m, 0, 8);
}

/* Wait while *w == v, at most ms (< 0: for ever). 0, -EAGAIN, -EINTR, -ETIMEDOUT. */
static inline int sys_futex_wait(const _Atomic uint32_t *w, uint32_t v, int ms)
{
	struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
	return (int)rf_syscall(SYS_futex, w, FUTEX_WAIT, v, ms < 0 ? 0 : &t, 0, 0);
}
static inline void sys_futex_wake(_Atomic uint32_t *w)
{
	rf_syscall(SYS_futex, w, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}
/* The state half of a page word. */
static inline _Atomic uint32_t *sys_word_futex(_Atomic uint64_t *w)
{
	return (_Atomic uint32_t *)(void *)w;
}

static inline void *sys_mmap(void *a, size_t n, int prot, int flags, int fd, uint64_t off)
{
	return (void *)rf_syscall(SYS_mmap, a, n, prot, flags, fd, off);
}

/* Memory that comes as it is touched, and is not locked: under mlockall(MCL_FUTURE), too. */
static inline void *sys_reserve(size_t n, int prot, int flags, int fd)
{
	void *p = sys_mmap(NULL, n, PROT_NONE, flags, fd, 0);
	long r;

	if (sys_err(p))
		return p;
	rf_syscall(SYS_munlock, p, n);
	r = rf_syscall(SYS_mprotect, p, n, prot);
	if (!r)
		return p;
	rf_syscall(SYS_munmap, p, n);
	return (void *)r;
}

/* No PTE is left of whole pages, locked or not; the program's own copies in private mappings go, too. */
static inline void sys_zap(uintptr_t a, uint64_t len)
{
	if (rf_syscall(SYS_madvise, a, len, MADV_DONTNEED) == -EINVAL)
		rf_syscall(SYS_madvise, a, len, MADV_DONTNEED_LOCKED);
}

/*
 * A mutex that a signal handler may take: all signals (but SIGBUS) are blocked while it is held,
 * and nobody holds it across a request to the agent or touches managed memory under it.
 */
struct sys_lock {
	_Atomic uint32_t w; /* 0 free, 1 held, 2 held and waited for */
	uint32_t rank;      /* DEBUG_*, for ever */
};
static inline sys_mask sys_lock(struct sys_lock *l)
{
	sys_mask m = sys_block_all();
	uint32_t z = 0;

	debug_take(l->rank);
	if (!atomic_compare_exchange_strong(&l->w, &z, 1))
		while (atomic_exchange(&l->w, 2) != 0)
			rf_syscall(SYS_futex, &l->w, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0);
	return m;
}
static inline void sys_unlock(struct sys_lock *l, sys_mask m)
{
	debug_drop(l->rank);
	if (atomic_exchange(&l->w, 0) == 2)
		rf_syscall(SYS_futex, &l->w, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	sys_setmask(m);
}

#endif
