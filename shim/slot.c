/* SPDX-License-Identifier: MIT */
/*
 * slot.c - the shared side of invalidate_lock (DESIGN 6).
 *
 *	claim = (vnode, page, npages); seq_cst fence; invalidate set -> claim = 0, wait, again.
 *
 * The agent does the mirror image: invalidate = 1; seq_cst fence; wait while a claim names the
 * vnode.  One of the two always sees the other.
 *
 * Counters: lock-wait.
 * Locks: none; a slot belongs to one thread, found by its tid, and is taken over when that thread
 * is gone.
 */
#include <sched.h>

#include "core.h"

/* attach: which attach the slot belongs to; a fork child has another proc area. */
static __thread struct {
	struct rf_slot *slot;
	uint32_t attach;
} mine;

static struct rf_slot *slot_take(struct ctx *c)
{
	uint32_t tid = (uint32_t)rf_syscall(SYS_gettid);
	struct rf_proc *p = c->proc;

	for (;;) {
		for (uint32_t i = 0; i < RF_SLOTS; i++) {
			struct rf_slot *s = &p->slot[i];
			uint32_t o = atomic_load(&s->owner);

			if (o != 0 && o != tid) {
				/* Only when all are taken is it worth a system call to look for the dead. */
				if (atomic_load(&p->slots_used) < RF_SLOTS || atomic_load(&s->claim) ||
				    rf_syscall(SYS_tgkill, c->pid, o, 0) != -ESRCH)
					continue;
			}
			if (o != tid && !atomic_compare_exchange_strong(&s->owner, &o, tid))
				continue;
			uint32_t used = atomic_load(&p->slots_used);
			while (used < i + 1 &&
			       !atomic_compare_exchange_weak(&p->slots_used, &used, i + 1))
				;
			mine.slot = s;
			mine.attach = atomic_load(&c->attached);
			return s;
		}
		rf_syscall(SYS_sched_yield); /* more than RF_SLOTS threads alive */
	}
}

int slot_try_masked(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, struct slot_ref *s)
{
	struct rf_slot *sl = mine.slot;

	if (!sl || mine.attach != atomic_load_explicit(&c->attached, memory_order_relaxed))
		sl = slot_take(c);
	atomic_store_explicit(&sl->claim, rf_claim(vn->id, page, n), memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
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
	return 0;
}

void slot_leave_masked(struct slot_ref *s)
{
	atomic_store_explicit(&s->slot->claim, 0, memory_order_release);
}

void slot_quiesce(struct ctx *c, uint32_t vnode)
{
	struct rf_proc *p = c->proc;

	if (!p)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < atomic_load(&p->slots_used); i++)
		while (rf_claim_vnode(atomic_load(&p->slot[i].claim)) == vnode)
			rf_syscall(SYS_sched_yield);
}

void slot_wait_lock(struct vnode *vn)
{
	struct rf_vnode *st = atomic_load(&vn->st);

	while (atomic_load(&st->invalidate))
		sys_futex_wait(&st->invalidate, 1, 1000);
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
		slot_wait_lock(vn);
	}
}

void slot_leave(struct slot_ref *s)
{
	slot_leave_masked(s);
	sys_setmask(s->old);
}
