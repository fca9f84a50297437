/* SPDX-License-Identifier: MIT */
/*
 * slot.c - the shared side of invalidate_lock (DESIGN 6).
 *
 *	CAS claim 0 -> (vnode, page, npages), a full fence;
 *	invalidate set -> claim = 0, wait, again.
 *
 * The agent does the mirror image: invalidate = 1; seq_cst fence; wait while a claim names the
 * vnode.  One of the two always sees the other.
 *
 * REFAULT_DISABLE=invalidate-lock leaves all that out, so that tests can show what it is for.
 *
 * Counters: lock-wait.
 * Locks: none.  A slot belongs to whoever's claim is in it; a thread goes on using the one
 * it found.
 */
#include <sched.h>

#include "core.h"

/* attach: which attach the slot belongs to; a fork child has another proc area. */
static __thread struct {
	struct rf_slot *slot; /* where this thread found one last: a hint */
	uint32_t attach;
} mine;

/* What those hold who do without. */
static struct rf_slot no_slot;

/* Claimed by CAS, which is the fence, too. */
static bool slot_claim(struct rf_slot *s, uint64_t claim)
{
	uint64_t free = 0;

	return atomic_load_explicit(&s->claim, memory_order_relaxed) == 0 &&
	       atomic_compare_exchange_strong(&s->claim, &free, claim);
}

/* A slot that nobody uses right now; best one that no other thread has as its hint. */
static struct rf_slot *slot_find(struct ctx *c, uint64_t claim)
{
	const uint32_t tid = (uint32_t)rf_syscall(SYS_gettid);
	struct rf_proc *p = c->proc;

	for (uint32_t pass = 0;; pass++) {
		for (uint32_t i = 0; i < RF_SLOTS; i++) {
			struct rf_slot *s = &p->slot[i];
			uint32_t o = atomic_load_explicit(&s->owner, memory_order_relaxed), used;

			if (!pass && o != tid &&
			    (o || !atomic_compare_exchange_strong(&s->owner, &o, tid)))
				continue;
			/* The agent looks at slots below slots_used only: first this, then the
			 * claim. */
			used = atomic_load(&p->slots_used);
			while (used < i + 1 &&
			       !atomic_compare_exchange_weak(&p->slots_used, &used, i + 1))
				;
			if (!slot_claim(s, claim))
				continue;
			mine.slot = s;
			mine.attach = atomic_load(&c->attached);
			return s;
		}
		if (pass)
			rf_syscall(SYS_sched_yield);
	}
}

int slot_try_masked(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, struct slot_ref *s)
{
	const uint64_t claim = rf_claim(vn->id, page, n);
	struct rf_slot *sl = mine.slot;

	if (c->mode & CTX_NO_SHARED_SIDE) {
		if (!atomic_load(&vn->refs))
			return -ESTALE;
		s->slot = &no_slot;
		debug_take(DEBUG_SLOT);
		return 0;
	}
	if (!sl || mine.attach != atomic_load_explicit(&c->attached, memory_order_relaxed) ||
	    !slot_claim(sl, claim))
		sl = slot_find(c, claim);
	/* From here on the views stay: the last vnode_put waits for claims (slot_quiesce). */
	if (!atomic_load(&vn->refs)) {
		atomic_store_explicit(&sl->claim, 0, memory_order_release);
		return -ESTALE;
	}
	if (atomic_load(&atomic_load(&vn->st)->invalidate)) {
		atomic_store_explicit(&sl->claim, 0, memory_order_release);
		return -EAGAIN;
	}
	s->slot = sl;
	debug_take(DEBUG_SLOT);
	return 0;
}

void slot_leave_masked(struct slot_ref *s)
{
	debug_drop(DEBUG_SLOT);
	atomic_store_explicit(&s->slot->claim, 0, memory_order_release);
}

void slot_quiesce(struct ctx *c, uint32_t vnode)
{
	struct rf_proc *p = c->proc;

	debug_free(DEBUG_SLOT, "waits for slots");
	if (!p)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < atomic_load(&p->slots_used); i++)
		while (rf_claim_vnode(atomic_load(&p->slot[i].claim)) == vnode)
			rf_syscall(SYS_sched_yield);
}

int slot_wait_lock(struct ctx *c, struct vnode *vn)
{
	struct rf_vnode *st = atomic_load(&vn->st);

	debug_free(DEBUG_ALL, "waits for invalidate_lock");
	while (atomic_load(&st->invalidate))
		if (sys_futex_wait(&st->invalidate, 1, 1000) == -ETIMEDOUT && agent_gone(c))
			return -EHOSTDOWN;
	return 0;
}

int slot_enter(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, struct slot_ref *s)
{
	int r;

	for (;;) {
		s->old = sys_block_all();
		r = slot_try_masked(c, vn, page, n, s);
		if (!r)
			return 0;
		sys_setmask(s->old);
		if (r != -EAGAIN)
			return r;
		count(c, RF_R_LOCK_WAIT);
		r = slot_wait_lock(c, vn);
		if (r)
			return r;
	}
}

void slot_leave(struct slot_ref *s)
{
	slot_leave_masked(s);
	sys_setmask(s->old);
}
