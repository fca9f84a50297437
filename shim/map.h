/* SPDX-License-Identifier: MIT */
/*
 * map.h - managed mappings.  The table (rf_proc.map) is shared with the agent, which needs the
 * addresses to write-protect them; what only this process needs hangs off map_local.
 */
#ifndef SHIM_MAP_H
#define SHIM_MAP_H

#include <sys/mman.h>

#include "core.h"

struct file;

/* One mmap() call's worth; several table entries share it after a split. Pool, type-stable. */
struct map_local {
	_Atomic uint32_t refs;
	struct file *file; /* the open file it was made from: write-back errors are told once */
	struct vnode *vn;  /* the file's */
	uint64_t pgoff0, npages; /* what `copied` covers */
	/*
	 * MAP_PRIVATE: a bit a page, set before the page is un-protected for its first store.  From
	 * then on it may be the program's own copy: never stripped, never protected again.
	 */
	_Atomic uint64_t *copied;
	/* PTEs may have been made since it was last stripped; set before they are, see strip.c */
	_Atomic uint32_t touched;
	uint64_t until;    /* stripper's: the end of the last promise that it saw */
	uint64_t stripped; /* stripper's: which look at the leases stripped it last */
	/* fault-around: where the next fault of a sequential reader would be, and how much to map
	 */
	_Atomic uint64_t next_page;
	_Atomic uint32_t window;
};

/* A snapshot of a table entry. */
struct map_entry {
	uintptr_t start, end;
	uint64_t pgoff;
	uint32_t vnode, flags, local;
	struct map_local *l;
};

/* The entry that holds addr.  False: none.  Async-signal-safe, no lock. *seq for map_moved. */
bool map_find(struct ctx *c, uintptr_t addr, struct map_entry *e, uint32_t *seq);
/* Entry i of the table as it is now: 1; 0 past the end; -EAGAIN: it is just changing. */
int map_try(struct ctx *c, uint32_t i, struct map_entry *e, uint32_t *seq);
static inline bool map_moved(const struct ctx *c, uint32_t seq)
{
	return atomic_load(&c->proc->map_seq) != seq;
}
static inline bool map_copied(const struct map_local *l, uint64_t page)
{
	uint64_t i = page - l->pgoff0;
	return l->copied && (atomic_load(&l->copied[i / 64]) >> i % 64 & 1);
}

static inline uint64_t map_page(const struct map_entry *e, uintptr_t a)
{
	return e->pgoff + ((a - e->start) >> RF_PAGE_SHIFT);
}

/* What the program may do there, PROT_*; whether it may store, to its own copy if it is private. */
int map_prot(const struct map_entry *e);
static inline bool map_may_store(const struct map_entry *e)
{
	return (e->flags & RF_MAP_WRITE) && (map_prot(e) & PROT_WRITE);
}

/* Is there a managed piece in [lo, hi)?  ctx->lock held. */
bool map_any(const struct ctx *c, uintptr_t lo, uintptr_t hi);

/* fn for every managed piece of [addr, addr + len), which is held meanwhile, until it returns not 0. */
typedef int (*map_fn)(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		      void *arg);
int map_each(struct ctx *c, const void *addr, size_t len, map_fn fn, void *arg);

void *map_mmap(struct ctx *c, struct file *f, void *addr, size_t len, int prot, int flags,
	       uint64_t off);
int map_munmap(struct ctx *c, void *addr, size_t len);
void *map_mremap(struct ctx *c, void *addr, size_t old_len, size_t new_len, int flags, void *to);
int map_mprotect(struct ctx *c, void *addr, size_t len, int prot);
int map_msync(struct ctx *c, void *addr, size_t len, int flags);
/* Change the flags of every entry in [lo, hi), splitting where it begins and ends. */
int map_flags(struct ctx *c, uintptr_t lo, uintptr_t hi, uint32_t clear, uint32_t set);

/* map_advice.c */
int map_madvise(struct ctx *c, void *addr, size_t len, int advice);
int map_mlock(struct ctx *c, const void *addr, size_t len, unsigned flags);
int map_munlock(struct ctx *c, const void *addr, size_t len);
int map_mlockall(struct ctx *c, int flags); /* flags that make sense; 0: munlockall */
void map_lock_populate(struct ctx *c, const void *addr, size_t len);
/* Pages of a private mapping become the program's own, whole pages from lo to hi. */
int map_copy(struct ctx *c, uintptr_t lo, uintptr_t hi);
/* An madvise that throws them away: what is there from then on is the file's again. */
int map_uncopy(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi, int advice);
/* mmap() of something else over managed mappings (MAP_FIXED): forget them first. */
int map_forget(struct ctx *c, void *addr, size_t len);

/* Fork: copy the table before, build everything anew in the child. */
int map_fork_prepare(struct ctx *c);
void map_fork_parent(struct ctx *c);
void map_fork_reserve(struct ctx *c); /* before the child maps anything else */
int map_fork_child(struct ctx *c);

/* Resolve one fault; see fault.c. */
int fault_resolve(struct ctx *c, uintptr_t addr, bool write, bool present, sys_mask mask);

#endif
