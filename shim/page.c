/* SPDX-License-Identifier: MIT */
/*
 * page.c - page words from the program's side: mkwrite and its twins, waiting, and the copy that
 * survives holes (DESIGN 11, steps 3 to 5).
 *
 *	UPTODATE: take a free twin, copy the page from the alias, CAS -> DIRTY|key|twin.
 *	Lost the CAS: give the twin back, look again.
 *	DIRTY under another key: have it flushed under that one first, then start over.
 *	The vnode is frozen: no store to any page, DIRTY ones neither, until it is not.
 *
 * The twin is complete before the CAS, so that a program that dies at any point leaves either a
 * clean page and an unreferenced twin (the agent frees it) or a dirty page with a good twin.
 * `dirtied` is set before the CAS and with the slot held; the agent clears it before it scans and
 * sets it again if a slot names the vnode: so it is never clear over a dirty page.
 *
 * A page is dirty under one key at a time, and a flush write-protects it everywhere before it is
 * clean: so whoever has a PTE that the page may be stored through without a fault has been here
 * under the key that its word names.
 *
 * Counters: mkwrite, mkwrite-lost, key-flush, back-pressure.
 * Locks: the caller's slot; twins by CAS on their owner word.
 */
#include <string.h>

#include "core.h"
#include "undo.h"

/*
 * Programs start in different places of the pool, and go round in a window that fits the caches
 * before they touch new pages of it.  A window that is full is not searched every time, but in
 * steps of TWIN_STEP.  The hints only save probes; races on them are harmless.
 */
#define TWIN_WINDOW 1024u
#define TWIN_STEP 16u

static int twin_try(struct ctx *c, uint32_t i)
{
	uint32_t z = 0;

	return atomic_load_explicit(&c->twins->owner[i], memory_order_relaxed) == 0 &&
	       atomic_compare_exchange_strong(&c->twins->owner[i], &z, c->proc->id);
}

static int twin_get(struct ctx *c)
{
	uint32_t n = c->ntwins, win = n < TWIN_WINDOW ? n : TWIN_WINDOW;
	uint32_t home = (uint32_t)((uint64_t)c->proc->id * TWIN_WINDOW % n);
	uint32_t at = atomic_load_explicit(&c->twin_near, memory_order_relaxed);

	for (uint32_t k = 0; k < TWIN_STEP; k++) {
		uint32_t i = (home + (at + k) % win) % n;

		if (twin_try(c, i)) {
			atomic_store_explicit(&c->twin_near, at + k + 1, memory_order_relaxed);
			return (int)i;
		}
	}
	atomic_store_explicit(&c->twin_near, at + TWIN_STEP, memory_order_relaxed);
	at = atomic_load_explicit(&c->twin_far, memory_order_relaxed);
	for (uint32_t k = 0; k < n; k++) {
		uint32_t i = (home + win + (at + k) % n) % n;

		if (twin_try(c, i)) {
			atomic_store_explicit(&c->twin_far, at + k + 1, memory_order_relaxed);
			return (int)i;
		}
	}
	return -ENOMEM;
}

static void twin_put(struct ctx *c, uint32_t i)
{
	atomic_store_explicit(&c->twins->owner[i], 0, memory_order_release);
}

int page_mkwrite(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t key, uint64_t *seen)
{
	rf_word *word = vnode_word(vn, page);
	const char *alias = atomic_load(&vn->alias);
	size_t left;

	/*
	 * One look does for all of the slot's life: frozen is set in the exclusive side, which has
	 * come and gone before the slot was claimed (then it shows here: slot_try_masked has seen
	 * `invalidate` go, which went after it), or waits for the slot to be let go of.
	 */
	if (atomic_load(&atomic_load(&vn->st)->frozen))
		return -EINPROGRESS;
	for (;;) {
		uint64_t w = atomic_load(word);
		int t;

		switch (rf_w_state(w)) {
		case RF_PG_DIRTY:
			return rf_w_key(w) == key ? 0 : -EBUSY;
		case RF_PG_UPTODATE:
			break;
		case RF_PG_EMPTY:
			return -EFAULT;
		default:
			*seen = w;
			return -EAGAIN;
		}
		t = twin_get(c);
		if (t < 0)
			return t;
		page_copy_slot = true;
		left = page_copy(rf_twin(c->twins, c->ntwins, (uint32_t)t),
				 alias + page * RF_PAGE_SIZE, RF_PAGE_SIZE);
		page_copy_slot = false;
		if (left) {
			/* A hole under an UPTODATE word: being dropped, or somebody punched the
			 * cache. */
			twin_put(c, (uint32_t)t);
			if (atomic_load(word) == w)
				return -EFAULT;
			continue;
		}
		atomic_store(&atomic_load(&vn->st)->dirtied, 1);
		if (atomic_compare_exchange_strong(word, &w,
						   rf_w_clean(w, RF_PG_DIRTY, 0) |
						       (uint64_t)(uint32_t)t << RF_W_TWIN_SHIFT |
						       (uint64_t)key << RF_W_KEY_SHIFT)) {
			count(c, RF_R_MKWRITE);
			if (__builtin_expect(c->mode & CTX_NO_SHARED_SIDE, 0))
				rf_syscall(
				    SYS_sched_yield); /* of no use but to show what follows */
			return 0;
		}
		twin_put(c, (uint32_t)t);
		count(c, RF_R_MKWRITE_LOST);
	}
}

static void wait_over(void *arg)
{
	const uint32_t *attach = arg;

	if (*attach == atomic_load(&rf_ctx->attached)) /* else it was a fork child's parent's */
		atomic_fetch_sub(&rf_ctx->proc->waiting, 1);
}

int page_wait(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t seen)
{
	uint32_t attach = atomic_load(&c->attached);
	rf_word *word = vnode_word(vn, page);
	struct undo undo;
	int r = 0;

	debug_free(DEBUG_ALL, "waits for a page");
	/* Raised first: whoever changes the word after that look sees it, and wakes us. */
	atomic_fetch_add(&c->proc->waiting, 1);
	undo_begin(&undo, wait_over, &attach);
	if (atomic_load(word) == seen)
		r = sys_futex_wait(sys_word_futex(word), (uint32_t)seen, 100);
	undo_end(&undo);
	return r == -ETIMEDOUT && agent_gone(c) ? -EHOSTDOWN : 0;
}

int page_reclaim(struct ctx *c, sys_mask mask)
{
	const uint64_t arg[4] = {0};

	count(c, RF_R_BACK_PRESSURE);
	return agent_request(c, RF_OP_FLUSH, 0, 0, arg, NULL, 0, NULL, mask);
}

/*
 * All pages that the caller wants, so that two who write to the same ones under two keys do not take
 * them from each other one by one for ever.  If it is refused, the page was excised, and whoever
 * stores next starts from the server's content.  One that could not be made quiet stays as it is.
 */
int page_flush_other(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t n, sys_mask mask)
{
	const uint64_t arg[4] = {page, n, RF_FLUSH_APPLIED};

	count(c, RF_R_KEY_FLUSH);
	return agent_request(c, RF_OP_FLUSH, vn->id, 0, arg, NULL, 0, NULL, mask);
}

void page_mark_written(struct ctx *c, struct vnode *vn, uint64_t page, uint32_t off, uint32_t len)
{
	uint64_t w = atomic_load(vnode_word(vn, page));
	const uint32_t t = rf_w_twin(w), end = off + len;
	_Atomic uint8_t *mark;

	/* A flush that did not wait for this slot has taken the bytes by their difference. */
	if (rf_w_state(w) != RF_PG_DIRTY || t >= c->ntwins)
		return;
	mark = rf_twin_mark(c->twins, c->ntwins, t);
	for (uint32_t at = off; at < end;) {
		uint32_t to = (at | 7) + 1 < end ? (at | 7) + 1 : end;

		if (at % 64 == 0 && end - at >= 64) {
			/* All of them: no need to keep what others set. */
			atomic_store_explicit((_Atomic uint64_t *)&mark[at / 8], UINT64_MAX,
					      memory_order_relaxed);
			at += 64;
			continue;
		}
		atomic_fetch_or_explicit(&mark[at / 8],
					 (uint8_t)((0xffu << (at & 7)) & (0xffu >> (-to & 7))),
					 memory_order_relaxed);
		at = to;
	}
	atomic_fetch_or_explicit(&c->twins->owner[t], RF_TWIN_MARKED, memory_order_release);
}

__thread bool page_copy_efault, page_copy_slot;

size_t page_copy_user(struct ctx *c, void *dst, const void *src, size_t n)
{
	if (__builtin_expect(!map_hits(c, dst, n) && !map_hits(c, src, n), 1)) {
		memcpy(dst, src, n);
		return 0;
	}
	return page_copy(dst, src, n);
}

/*
 * `rep movsb` keeps its progress in registers: the handler, on a fault in the alias while the
 * instruction pointer is here, jumps to page_copy_end, and rcx says what is left.
 */
#if defined(__x86_64__)
__attribute__((noinline)) size_t page_copy(void *dst, const void *src, size_t n)
{
	__asm__ volatile(".globl page_copy_insn, page_copy_end\n"
			 ".hidden page_copy_insn, page_copy_end\n"
			 "page_copy_insn: rep movsb\n"
			 "page_copy_end:"
			 : "+D"(dst), "+S"(src), "+c"(n)
			 :
			 : "memory");
	return n;
}
#else
__attribute__((noinline)) size_t page_copy(void *dst, const void *src, size_t n)
{
	uint64_t tmp;
	__asm__ volatile(".globl page_copy_insn, page_copy_end\n"
			 ".hidden page_copy_insn, page_copy_end\n"
			 "page_copy_insn:\n"
			 "1: cbz %2, page_copy_end\n"
			 "   ldrb %w3, [%1], #1\n"
			 "   strb %w3, [%0], #1\n"
			 "   sub %2, %2, #1\n"
			 "   b 1b\n"
			 "page_copy_end:"
			 : "+r"(dst), "+r"(src), "+r"(n), "=&r"(tmp)
			 :
			 : "memory");
	return n;
}
#endif
