/* SPDX-License-Identifier: MIT */
/*
 * pin.h - pages that I/O uses right now: told to the agent, so that a truncate does as the program
 * wants it (state.h, struct rf_pin; refault.h).
 *
 * Functions return 0 or -errno and leave errno alone.
 */
#ifndef SHIM_PIN_H
#define SHIM_PIN_H

#include "core.h"
#include "undo.h"

/*
 * A pin on pages [page, page + n), with all signals blocked (SYS_MASK_ALL).  -EAGAIN, -EINPROGRESS:
 * nothing taken: slot_wait_lock, vnode_thaw, start over; -ENOMEM: RF_PINS are in use; -ESTALE.
 */
int pin_take_masked(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t n, uint32_t flags,
		    struct rf_pin **out);
void pin_give(struct rf_pin *pin);

/*
 * The pins of one system call.  They are given back also if a signal handler jumps out of it, or the
 * thread is cancelled in it.  What does not fit goes without: a call does not fail for want of pins.
 */
#define PIN_CALL_MAX 16u
struct pin_call {
	uint32_t flags;  /* RF_PIN_* of all */
	bool missed;     /* a piece goes without */
	uint32_t attach; /* a fork child that comes out of the call has none of these pins */
	_Atomic uint32_t n;
	struct rf_pin *pin[PIN_CALL_MAX];
	struct undo undo;
};
void pin_call_begin(struct ctx *c, struct pin_call *p, uint32_t flags);
void pin_call_end(struct pin_call *p);
/* One piece more; all signals are blocked, waits are with the mask `mask`. */
void pin_call_add(struct ctx *c, struct pin_call *p, struct vnode *vn, uint64_t page, uint64_t n,
		  sys_mask mask);

/* What this thread's requests about that vnode say in rf_req.pins. */
uint32_t pin_policy(struct ctx *c, uint32_t vnode);
/* PIN_POLICY; 0: it is not. */
#define PIN_POLICY "fail, sequester or wait[:SECONDS[:fail|:sequester]]"
uint32_t pin_parse(const char *s);

/* [lo, hi) is unmapped: what refault_pin took there goes.  ctx->lock held. */
void pin_forget(struct ctx *c, uintptr_t lo, uintptr_t hi);
/* It is at `to` now.  ctx->lock held. */
void pin_move(struct ctx *c, uintptr_t lo, uintptr_t hi, uintptr_t to);
/* Nothing maps that vnode any more.  ctx->lock held. */
void pin_gone(struct ctx *c, uint32_t vnode);
/* In a fork child: they were the parent's. */
void pin_fork_child(struct ctx *c);

#endif
