/* SPDX-License-Identifier: MIT */
/*
 * undo.h - what a wrapper holds while it waits, and must not keep when a signal handler jumps out of the
 * wait, or the thread is cancelled in it.
 *
 * glibc's older pthread_cleanup_push does that: what it is given runs also when longjmp leaves the frame
 * (the newer one, behind the macro of that name, knows of cancellation only).  A jump between having
 * something and telling undo of it leaks it: where that matters, signals are blocked meanwhile.  glibc
 * takes what has run off its list when the whole jump is done: another jump, by a handler that comes in
 * between, would run it a second time.  So each is done once at the most.
 */
#ifndef SHIM_UNDO_H
#define SHIM_UNDO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

void _pthread_cleanup_push(struct _pthread_cleanup_buffer *b, void (*fn)(void *), void *arg);
void _pthread_cleanup_pop(struct _pthread_cleanup_buffer *b, int run);

struct undo {
	struct _pthread_cleanup_buffer b;
	void (*_Atomic fn)(void *); /* NULL: has run */
	void *arg;
};

static inline void undo_run(void *arg)
{
	struct undo *u = arg;
	void (*fn)(void *) = atomic_load_explicit(&u->fn, memory_order_relaxed);

	/* Who jumps out of here before this store does it instead: it is this thread's alone. */
	atomic_store_explicit(&u->fn, NULL, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	if (fn)
		fn(u->arg);
}

/* In the frame that waits, or one that outlives it; in the order of a stack. */
static inline void undo_begin(struct undo *u, void (*fn)(void *), void *arg)
{
	atomic_init(&u->fn, fn);
	u->arg = arg;
	_pthread_cleanup_push(&u->b, undo_run, u);
}
/* It is done here and now. */
static inline void undo_end(struct undo *u)
{
	_pthread_cleanup_pop(&u->b, 1);
}

#endif
