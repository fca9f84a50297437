/* SPDX-License-Identifier: MIT */
/*
 * core.h - requests, slots, pages and mappings: what the wrappers are made of.
 *
 * All return 0 (or a count) or -errno and leave errno alone, unless said otherwise.
 */
#ifndef SHIM_CORE_H
#define SHIM_CORE_H

#include <refault/agent.h>
#include <stddef.h>
#include <sys/types.h>

#include "ctx.h"
#include "key.h"
#include "sys.h"
#include "vnode.h"

/* ---- agent (agent.c) ---- */

/*
 * Be attached to the agent, starting it if need be (start = true).  Idempotent; after fork the
 * child attaches anew.  -errno; one line on stderr says why, once.  Takes ctx->attach_lock.
 */
int agent_attach(struct ctx *c, bool start);

/*
 * Send a request and wait for the answer; key: of the open file, where agent.h asks for it.  Is sent
 * again over an agent's restart; -EIO: it may or may not have been done.  ret may be NULL.
 * Async-signal-safe; waits with the signal mask `mask` (that of the interrupted code), so that the
 * program's handlers run and may even jump out.  Never call with a slot or ctx->lock held.
 */
int agent_request(struct ctx *c, enum rf_op op, uint32_t vnode, uint32_t key, const uint64_t arg[4],
		  const void *var, size_t len, uint64_t ret[2], sys_mask mask);

/* Agent and supervisor are both gone: nobody will finish what is waited for.  One system call. */
bool agent_gone(const struct ctx *c);

/* RF_OP_OPEN under that key: *out gets a reference, *number is the key's from now on. */
int agent_open(struct ctx *c, const struct rf_open *o, const char *addr, const char *name,
	       const char *path, const struct key *key, struct vnode **out, uint32_t *number);

/* RF_OP_CLOSE: no answer is waited for. */
void agent_close(struct ctx *c, uint32_t vnode, uint32_t opens);

/* Shorthand for RF_OP_FAULT from a wrapper. -ENXIO: past EOF. */
int agent_fault(struct ctx *c, struct vnode *vn, uint32_t key, uint64_t page, uint64_t npages,
		uint32_t flags);
int agent_fault_masked(struct ctx *c, struct vnode *vn, uint32_t key, uint64_t page,
		       uint64_t npages, uint32_t flags, sys_mask mask); /* async-signal-safe */
/* Shorthand for RF_OP_FLUSH; npages 0 = all.  Skips the request when nothing can be dirty, in
 * flight, or (durable) unstable. */
int agent_flush(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t npages, uint32_t flags);

/* ---- slots (slot.c) ---- */

/*
 * The shared side of invalidate_lock for pages [page, page + n), n <= RF_CLAIM_MAX_PAGES.  Blocks
 * all signals (slot_enter) and waits while the exclusive side is held.  The caller may not wait,
 * take a lock, or touch memory that can fault on managed pages until slot_leave.
 * The _masked forms are for code that runs with all signals blocked already; slot_try_masked
 * returns -EAGAIN (nothing claimed) instead of waiting.  -ESTALE: the vnode is gone.
 */
struct slot_ref {
	struct rf_slot *slot;
	sys_mask old;
};
int slot_enter(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, struct slot_ref *s);
void slot_leave(struct slot_ref *s);
int slot_try_masked(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, struct slot_ref *s);
void slot_leave_masked(struct slot_ref *s);
/* The vnode has lost its last reference: until no slot of this process names it. */
void slot_quiesce(struct ctx *c, uint32_t vnode);
int slot_wait_lock(struct ctx *c, struct vnode *vn); /* until `invalidate` is clear; nothing held */

/* ---- pages (page.c) ---- */

/*
 * Make a cached page DIRTY with a complete twin.  Slot held.  0: it is DIRTY (was, or is now);
 * -EAGAIN: WRITEBACK or REJECTED: leave the slot, page_wait, start over;
 * -EFAULT: not cached: leave, agent_fault, start over; -ENOMEM: no free twin: leave, page_reclaim,
 * start over; -EBUSY: DIRTY under another key: leave, page_flush_other, start over, not for ever;
 * -EINPROGRESS: the vnode is frozen, whatever the page is: leave, vnode_thaw, start over.
 */
int page_mkwrite(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t key, uint64_t *seen);
/* -EHOSTDOWN, here, in slot_wait_lock and vnode_thaw: no agent is left that could end the wait. */
int page_wait(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t seen);
int page_reclaim(struct ctx *c, sys_mask mask);
/* As often in vain, one after the other: those who hold the twins (pins) do not give them back. */
#define PAGE_RECLAIMS 100u
int page_flush_other(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, sys_mask mask);
/* After pwrite() of [off, off+len) inside one page, slot still held: mark these bytes as
 * explicitly written, so that equal bytes are carried by the flush too. */
void page_mark_written(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t off, uint32_t len);

/* Copy n bytes; stops at the first byte of src that faults as a hole or past EOF (src must be the
 * alias of a vnode).  Returns the bytes NOT copied.  dst may be any memory of the program. */
size_t page_copy(void *dst, const void *src, size_t n);
/* The same between memory of the program and ours; stops where a managed mapping has no page to give. */
size_t page_copy_user(struct ctx *c, void *dst, const void *src, size_t n);
/* Set by the handler when a page_copy of this thread stopped at a mapping, and not at an alias. */
extern __thread bool page_copy_efault __attribute__((visibility("hidden")));
/* This thread copies in a slot, between memory of ours: the handler does not ask the table, which somebody
 * may be changing who waits for the slot. */
extern __thread bool page_copy_slot __attribute__((visibility("hidden")));

/* ---- mappings (map.c): what mmap and friends do for managed descriptors ---- */

/* Does [p, p + n) touch a managed mapping?  One compare for programs that have none near. */
static inline bool map_hits(const struct ctx *c, const void *p, size_t n)
{
	uintptr_t a = (uintptr_t)p;
	return a < atomic_load_explicit(&c->map_hi, memory_order_relaxed) &&
	       a + n > atomic_load_explicit(&c->map_lo, memory_order_relaxed);
}
/* Touch every page of [p, p + n) that is in a managed mapping (write: as by a store, so that the
 * kernel may store there), so that a system call does not meet EFAULT.  Pages past EOF are left.
 * pins, if not NULL, gets pins on what is of shared mappings, taken first.  -errno: not all is there. */
struct pin_call;
int map_populate(struct ctx *c, const void *p, size_t n, bool write, struct pin_call *pins);

/* ---- faults (fault.c), stripper (strip.c), fork (fork.c), log (log.c) ---- */

int fault_install(struct ctx *c);         /* SIGBUS handler or the handler thread; once */
void fork_init(struct ctx *c);            /* atfork handlers */
int strip_start(struct ctx *c, int sock); /* the helper; takes the socket */
void strip_quiesce(
    struct ctx *c); /* it is not in the middle of what it read from the table before */
void strip_forget(struct ctx *c); /* in a fork child: it was the parent's */

/* One line on stderr, "refault: ...", built without stdio; %s %d %u %x %l (uint64_t) only.
 * Async-signal-safe; keeps errno. */
void log_line(const char *fmt, ...);
/* The same, only if REFAULT_LOG asks for it. */
#define log_debug(c, ...)                                                                          \
	do {                                                                                       \
		if ((c)->verbose)                                                                  \
			log_line(__VA_ARGS__);                                                     \
	} while (0)

static inline void count(const struct ctx *c, enum rf_reason r)
{
	if (c->proc)
		atomic_fetch_add_explicit(&c->proc->count[r], 1, memory_order_relaxed);
}

#endif
