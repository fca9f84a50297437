/* SPDX-License-Identifier: MIT */
/*
 * map_advice.c - madvise, mlock and mlockall where managed mappings are concerned.
 *
 * A range may hold managed mappings, others, and gaps.  It is gone through in order of addresses: what
 * is not managed is the kernel's, piece by piece; managed pieces are ours where the kernel would do
 * harm or could do nothing: it would punch the cache behind the server's back (REMOVE), or get
 * EFAULT from a page without PTE (POPULATE, mlock), or find nothing to read ahead (WILLNEED).
 *
 * Locked mappings are always locked "on fault": then the kernel never makes PTEs by itself, neither now
 * nor when mremap makes one longer, which is before it is registered again and would leave writable
 * PTEs that nobody knows of, and zeros in the cache's holes.  What mlock is to make present is
 * populated here.  Under MCL_FUTURE map.c changes each to that right after mmap, which makes no PTEs
 * either, as it is PROT_NONE until it is registered (v).
 *
 * Counters, locks: none of its own.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "io.h"
#include "map.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#endif

#define COPY_TRIES 1000u /* of a page that others take away as fast as it comes */

struct walk {
	uintptr_t at; /* done up to here */
	int advice;   /* -1: mlock */
	bool gap;     /* part of it is not mapped: told in the end */
};

/* Up to `to` nothing is managed. */
static int native(struct walk *w, uintptr_t to)
{
	int r = 0;

	if (w->at < to && w->advice < 0)
		r = (int)rf_syscall(SYS_mlock, w->at, to - w->at);
	else if (w->at < to)
		r = (int)rf_syscall(SYS_madvise, w->at, to - w->at, w->advice);
	w->at = to;
	if (r != -ENOMEM || w->advice == MADV_POPULATE_READ || w->advice == MADV_POPULATE_WRITE)
		return r;
	w->gap = true;
	return 0;
}

static int punch(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi)
{
	const uint64_t a[4] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       map_page(e, lo) << RF_PAGE_SHIFT, hi - lo};

	if (e->flags & RF_MAP_LOCKED)
		return -EINVAL;
	if ((e->flags & (RF_MAP_SHARED | RF_MAP_WRITE)) != (RF_MAP_SHARED | RF_MAP_WRITE))
		return -EACCES;
	return agent_request(c, RF_OP_FALLOC, e->vnode, file_key(e->l->file), a, NULL, 0, NULL,
			     sys_getmask());
}

/* Whether it comes or not: natively, too, nobody would be told. */
static void ahead(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi)
{
	struct vnode *vn = e->l->vn;
	const uint64_t end = RF_PAGES(atomic_load(&atomic_load(&vn->st)->i_size));
	const uint64_t first = map_page(e, lo), n = (hi - lo) >> RF_PAGE_SHIFT;

	if (first < end)
		agent_fault(c, vn, file_key(e->l->file), first, n < end - first ? n : end - first,
			    RF_FAULT_NOWAIT);
}

/* The program's own copies of all pages: the kernel makes them on a store that stores nothing. */
int map_copy(struct ctx *c, uintptr_t lo, uintptr_t hi)
{
	sys_mask m;
	int r = 0;

	for (uintptr_t a = lo; a < hi && !r; a += RF_PAGE_SIZE)
		for (uint32_t tries = 0; !r; tries++) {
			m = sys_block_all();
			r = fault_resolve(c, a, true, false, m);
			sys_setmask(m);
			if (!r)
				r = (int)rf_syscall(SYS_madvise, a, RF_PAGE_SIZE,
						    MADV_POPULATE_WRITE);
			if (!r)
				break;
			if (r == -EFAULT && tries < COPY_TRIES)
				r = 0; /* dropped in between */
		}
	return r;
}

/* From the first page that cannot be had on there is nothing: -EFAULT, as natively. */
static int populate(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		    bool write)
{
	sys_mask m = sys_block_all(); /* as in the handler: a slot is held in there */
	int r = 0;

	for (uintptr_t a = lo; a < hi && !r; a += RF_PAGE_SIZE)
		r = fault_resolve(c, a, write, false, m);
	sys_setmask(m);
	if (r)
		return -EFAULT;
	/* The page is un-protected: now the kernel makes the program's own copy of it. */
	if (write && !(e->flags & RF_MAP_SHARED))
		r = (int)rf_syscall(SYS_madvise, lo, hi - lo, MADV_POPULATE_WRITE);
	if (r == -EFAULT && !map_copy(c, lo, hi)) /* one was dropped in between */
		r = 0;
	return r;
}

static int advise(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi, void *arg)
{
	struct walk *w = arg;
	int r = native(w, lo);

	if (r)
		return r;
	w->at = hi;
	switch (w->advice) {
	case MADV_REMOVE:
		return punch(c, e, lo, hi);
	case MADV_WILLNEED:
		ahead(c, e, lo, hi);
		return 0;
	case MADV_POPULATE_READ:
		return map_prot(e) & PROT_READ ? populate(c, e, lo, hi, false) : -EINVAL;
	case MADV_POPULATE_WRITE:
		return map_may_store(e) ? populate(c, e, lo, hi, true) : -EINVAL;
	case MADV_DOFORK: /* the child gets its own mapping whatever the program says */
	case MADV_DONTFORK:
		return 0;
	case MADV_DONTNEED:
		if (e->flags & RF_MAP_LOCKED)
			return -EINVAL;
		return map_uncopy(c, e, lo, hi, w->advice);
	case MADV_DONTNEED_LOCKED:
	case MADV_GUARD_INSTALL:
		return map_uncopy(c, e, lo, hi, w->advice);
	}
	return (int)rf_syscall(SYS_madvise, lo, hi - lo, w->advice);
}

int map_madvise(struct ctx *c, void *addr, size_t len, int advice)
{
	const uintptr_t a = (uintptr_t)addr, end = a + RF_PAGES(len) * RF_PAGE_SIZE;
	struct walk w = {.at = a, .advice = advice};
	int r;

	if ((a & (RF_PAGE_SIZE - 1)) || end <= a || advice < 0) /* wrong, or nothing to do */
		return (int)rf_syscall(SYS_madvise, addr, len, advice);
	r = map_each(c, addr, end - a, advise, &w);
	if (!r)
		r = native(&w, end);
	return r ? r : w.gap ? -ENOMEM : 0;
}

/* ---- locking ---- */

static int make_present(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
			void *arg)
{
	struct walk *w = arg;
	int r = w ? native(w, lo) : 0;

	if (r)
		return r;
	if (w)
		w->at = hi;
	/* As natively: a private page that may be stored to becomes the program's own. */
	r = map_prot(e) & (PROT_READ | PROT_WRITE)
		? populate(c, e, lo, hi, !(e->flags & RF_MAP_SHARED) && map_may_store(e))
		: -EFAULT;
	return w && r ? -ENOMEM : 0;
}

void map_lock_populate(struct ctx *c, const void *addr, size_t len)
{
	map_each(c, addr, len, make_present, NULL);
}

int map_mlock(struct ctx *c, const void *addr, size_t len, unsigned flags)
{
	const uintptr_t lo = (uintptr_t)addr & ~(RF_PAGE_SIZE - 1);
	const uintptr_t hi = ((uintptr_t)addr + len + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
	struct walk w = {.at = lo, .advice = -1};
	int r = (int)rf_syscall(SYS_mlock2, addr, len, flags | MLOCK_ONFAULT);

	if (!r)
		r = map_flags(c, lo, hi, 0, RF_MAP_LOCKED);
	if (r || (flags & MLOCK_ONFAULT))
		return r;
	r = map_each(c, (void *)lo, hi - lo, make_present, &w);
	if (!r)
		r = native(&w, hi);
	return r ? r : w.gap ? -ENOMEM : 0;
}

int map_munlock(struct ctx *c, const void *addr, size_t len)
{
	const uintptr_t lo = (uintptr_t)addr & ~(RF_PAGE_SIZE - 1);
	const uintptr_t hi = ((uintptr_t)addr + len + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
	int r = (int)rf_syscall(SYS_munlock, addr, len);

	return r ? r : map_flags(c, lo, hi, RF_MAP_LOCKED, 0);
}

/*
 * mlockall(MCL_CURRENT) would populate what the library has reserved, more than a gigabyte of it, and
 * count it against RLIMIT_MEMLOCK.  So the program's mappings are locked one by one, as /proc has them;
 * first all on fault, which only the limit can refuse, then what is not managed for good.
 */
static bool reserved(struct ctx *c, uintptr_t lo, uintptr_t hi)
{
	for (uint32_t i = 0; i < c->nown; i++)
		if (lo < (uintptr_t)c->own[i].p + c->own[i].n && hi > (uintptr_t)c->own[i].p)
			return true;
	return false;
}

/* ENOMEM is of the limit, or of a mapping that another thread has just unmapped: that is no error. */
static int lock_on_fault(uintptr_t lo, uintptr_t hi)
{
	int r = -ENOMEM;

	for (int tries = 0; r == -ENOMEM && tries < 10; tries++) {
		r = (int)rf_syscall(SYS_mlock2, lo, hi - lo, MLOCK_ONFAULT);
		if (r == -ENOMEM && rf_syscall(SYS_msync, lo, hi - lo, MS_ASYNC) == -ENOMEM)
			r = 0;
	}
	return r;
}

static int lock_line(struct ctx *c, const char *line, bool populate)
{
	bool ours = strstr(line, " /memfd:refault-");
	struct map_entry e;
	char *rest;
	uintptr_t lo = strtoul(line, &rest, 16), hi = strtoul(rest + 1, NULL, 16);
	uint32_t seq;

	if (reserved(c, lo, hi) || (intptr_t)lo < 0 /* vsyscall */)
		return 0;
	if (populate && !ours)
		rf_syscall(SYS_mlock, lo, hi - lo);
	else if (!populate && (!ours || (c->proc && map_find(c, lo, &e, &seq))))
		return lock_on_fault(lo, hi);
	return 0;
}

static int lock_lines(struct ctx *c, char *buf, bool populate)
{
	int fd = (int)rf_syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
	long n, have = 0;
	int r = fd < 0 ? fd : 0;

	while (!r && (n = rf_syscall(SYS_read, fd, buf + have, IO_BUF - 1 - have)) > 0) {
		char *at = buf, *end;

		have += n;
		buf[have] = '\0';
		for (; !r && (end = strchr(at, '\n')); at = end + 1) {
			*end = '\0';
			r = lock_line(c, at, populate);
		}
		have -= at - buf;
		memmove(buf, at, (size_t)have);
	}
	if (fd >= 0)
		rf_syscall(SYS_close, fd);
	return r;
}

int map_mlockall(struct ctx *c, int flags)
{
	const uintptr_t all = ~(uintptr_t)0 & ~(RF_PAGE_SIZE - 1);
	struct io_hold hold;
	char *buf;
	int r;

	atomic_store(&c->mlock_future, flags & MCL_FUTURE ? flags & (MCL_FUTURE | MCL_ONFAULT) : 0);
	r = (int)(flags & MCL_FUTURE ? rf_syscall(SYS_mlockall, flags & ~MCL_CURRENT)
				     : rf_syscall(SYS_munlockall));
	if (!flags && c->proc)
		map_flags(c, 0, all, RF_MAP_LOCKED, 0);
	if (r || !(flags & MCL_CURRENT))
		return r;
	buf = io_hold(&hold, IO_BUF);
	if (!buf)
		return -ENOMEM;
	r = lock_lines(c, buf, false);
	if (!r && c->proc)
		r = map_flags(c, 0, all, 0, RF_MAP_LOCKED);
	if (!r && !(flags & MCL_ONFAULT)) {
		lock_lines(c, buf, true);
		if (c->proc)
			map_lock_populate(c, NULL, all);
	}
	io_release(&hold);
	if (r)
		map_mlockall(c, 0);
	return r;
}
