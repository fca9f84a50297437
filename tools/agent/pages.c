/* SPDX-License-Identifier: MIT */
/*
 * pages.c - page words, diff, merge, the guard, the status table.
 *
 * Counters: none.
 * Locks: words and bytes by CAS against programs; the status table by its entries' sequence
 * numbers, the agent is the only writer.
 */
#include "pages.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "util.h"

#define WORDS (RF_PAGE_SIZE / 8)
#define LINE 64u

bool ag_word_move(rf_word *word, uint64_t w, uint64_t to)
{
	if (!atomic_compare_exchange_strong(word, &w, to))
		return false;
	/* Waiters compare the low half; nobody sleeps on a state that nobody waits for. */
	if (rf_w_state(w) == RF_PG_WRITEBACK || rf_w_state(w) == RF_PG_REJECTED)
		ag_futex_wake(word);
	return true;
}

uint64_t ag_words_take(rf_word *word, uint64_t n)
{
	uint64_t i;

	for (i = 0; i < n; i++) {
		uint64_t w = atomic_load_explicit(&word[i], memory_order_relaxed);

		if (rf_w_state(w) != RF_PG_UPTODATE || (w & RF_W_SYNC) ||
		    !atomic_compare_exchange_strong(&word[i], &w,
						    rf_w_clean(w, RF_PG_WRITEBACK, 1)))
			break;
	}
	return i;
}

uint64_t ag_words_gone(rf_word *word, uint64_t n)
{
	uint64_t moved = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t w = atomic_load_explicit(&word[i], memory_order_relaxed);

		if (rf_w_state(w) == RF_PG_WRITEBACK && !ag_w_twinned(w))
			moved += atomic_compare_exchange_strong(&word[i], &w,
								rf_w_clean(w, RF_PG_EMPTY, 0));
	}
	return moved;
}

void ag_words_wake(rf_word *word, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		ag_futex_wake(&word[i]);
}

/* ---- diff ---- */

/* n more changed bytes at off.  Inline: for a line that is all changed n is known. */
static inline __attribute__((always_inline)) bool put(struct ag_change *c, uint64_t off,
						      const unsigned char *b, uint32_t n)
{
	rf_range *r = c->n ? &c->range[c->n - 1] : NULL;

	if (c->size - c->len < n)
		return false;
	if (r && r->off + r->len == off) {
		r->len += n;
	} else {
		if (!c->range || c->n == c->cap)
			return false;
		c->range[c->n++] = (rf_range){off, n};
	}
	memcpy(c->data + c->len, b, n);
	c->len += n;
	return true;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "byte k of a word is bits 8k and up");

/* A bit for each byte of x that is not zero. */
static unsigned bytes_set(uint64_t x)
{
	const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
	uint64_t high = (((x & low) + low) | x) & ~low;

	return (unsigned)((high >> 7) * 0x0102040810204080u >> 56);
}

/* Not 0 if a byte of x is zero. */
static uint64_t byte_zero(uint64_t x)
{
	return (x - 0x0101010101010101u) & ~x & 0x8080808080808080u;
}

/* Put the runs of bytes whose bits are set. */
static bool put_runs(struct ag_change *c, uint64_t off, uint64_t bytes, unsigned m)
{
	unsigned char b[8];

	memcpy(b, &bytes, 8);
	if (m == 0xff)
		return put(c, off, b, 8);
	while (m) {
		unsigned from = (unsigned)__builtin_ctz(m);
		unsigned to = from + (unsigned)__builtin_ctz(~(m >> from));

		if (!put(c, off + from, b + from, to - from))
			return false;
		m &= ~0u << to;
	}
	return true;
}

/* Programs may be storing: each byte is read once, and what was compared is what is sent. */
static void read_once(void *to, const void *from)
{
	memcpy(to, from, LINE);
	__asm__ volatile("" : : : "memory");
}

/* One cache line, at most limit bytes of it.  Mostly none of its bytes has changed, or all have. */
static bool diff_line(struct ag_change *c, const unsigned char *p, const unsigned char *t,
		      const _Atomic uint8_t *mark, uint64_t off, uint32_t limit)
{
	uint64_t word[LINE / 8], x[LINE / 8], m = 0, any = 0, same = 0;

	read_once(word, p);
	read_once(x, t);
	for (uint32_t i = 0; i < LINE / 8; i++) {
		x[i] ^= word[i];
		any |= x[i];
	}
	if (mark)
		m = atomic_load_explicit((_Atomic uint64_t *)mark, memory_order_relaxed);
	if (!any && !m)
		return true;
	for (uint32_t i = 0; i < LINE / 8; i++)
		same |= byte_zero(x[i]);
	if (limit >= LINE && (!same || m == UINT64_MAX))
		return put(c, off, (const unsigned char *)word, LINE);
	for (uint32_t i = 0; i < LINE / 8 && i * 8 < limit; i++) {
		unsigned b = (unsigned)(m >> i * 8 & 0xff) | bytes_set(x[i]);

		if (limit - i * 8 < 8)
			b &= (1u << (limit - i * 8)) - 1;
		if (!put_runs(c, off + i * 8, word[i], b))
			return false;
	}
	return true;
}

ssize_t ag_diff(struct ag_change *c, const void *page, const void *twin,
		const _Atomic uint8_t *mark, uint64_t off, uint32_t limit)
{
	const unsigned char *p = page, *t = twin;
	const uint32_t n = c->n;
	const size_t len = c->len;
	const uint64_t last = n ? c->range[n - 1].len : 0;

	for (uint32_t at = 0; at < limit; at += LINE)
		if (!diff_line(c, p + at, t + at, mark ? mark + at / 8 : NULL, off + at,
			       limit - at)) {
			c->n = n;
			c->len = len;
			if (n)
				c->range[n - 1].len = last;
			return -ENOSPC;
		}
	return (ssize_t)(c->len - len);
}

ssize_t ag_diff_all(struct ag_change *c, const void *page, uint64_t off, uint32_t len)
{
	return put(c, off, page, len) ? (ssize_t)len : -ENOSPC;
}

/* ---- merge and stores ---- */

/* All ones in bytes [from, to) of a word, in memory order. */
static uint64_t byte_mask(uint32_t from, uint32_t to)
{
	unsigned char m[8] = {0};
	uint64_t w;

	memset(m + from, 0xff, to - from);
	memcpy(&w, m, 8);
	return w;
}

/* All ones in the bytes in which x is zero. */
static uint64_t zero_bytes(uint64_t x)
{
	unsigned char b[8];
	uint64_t w;

	memcpy(b, &x, 8);
	for (int i = 0; i < 8; i++)
		b[i] = b[i] ? 0 : 0xff;
	memcpy(&w, b, 8);
	return w;
}

/* All ones in the bytes whose bit is set. */
static uint64_t marked_bytes(uint8_t bits)
{
	unsigned char b[8];
	uint64_t w;

	for (int i = 0; i < 8; i++)
		b[i] = bits >> i & 1 ? 0xff : 0;
	memcpy(&w, b, 8);
	return w;
}

/* Change the bytes under mask by CAS: others may store to the rest. */
static void set_bytes(_Atomic uint64_t *word, uint64_t mask, uint64_t bytes)
{
	uint64_t w = atomic_load_explicit(word, memory_order_relaxed);

	if (mask == UINT64_MAX) {
		atomic_store_explicit(word, bytes, memory_order_release);
		return;
	}
	while (!atomic_compare_exchange_weak(word, &w, (w & ~mask) | (bytes & mask)))
		;
}

/* The bytes for word i of a page out of a buffer that begins at byte `from` of it. */
static uint64_t word_of(const void *bytes, uint32_t i, uint32_t from, uint32_t lo, uint32_t hi)
{
	unsigned char b[8] = {0};
	uint64_t w;

	memcpy(b + lo, (const unsigned char *)bytes + (i * 8 + lo - from), hi - lo);
	memcpy(&w, b, 8);
	return w;
}

void ag_merge(void *page, void *twin, const _Atomic uint8_t *mark, const uint8_t *inflight,
	      const void *theirs, const uint8_t *which, uint32_t from, uint32_t to)
{
	_Atomic uint64_t *p = page, *t = twin;

	for (uint32_t i = from / 8; i < WORDS && i * 8 < to; i++) {
		uint32_t lo = i * 8 < from ? from - i * 8 : 0, hi = to - i * 8 < 8 ? to - i * 8 : 8;
		uint64_t new = word_of(theirs, i, from, lo, hi);
		uint64_t mask = byte_mask(lo, hi) & (which ? marked_bytes(which[i]) : UINT64_MAX);
		uint64_t old, mine, free;

		if (inflight)
			mask &= ~marked_bytes(inflight[i]);
		if (!mask)
			continue;
		old = atomic_load(&t[i]);
		free = mask & ~(mark ? marked_bytes(atomic_load(&mark[i])) : 0);
		mine = atomic_load(&p[i]);
		for (;;) {
			uint64_t take = free & zero_bytes(mine ^ old);

			if (!((mine ^ new) & take) ||
			    atomic_compare_exchange_weak(&p[i], &mine,
							 (mine & ~take) | (new &take)))
				break;
		}
		atomic_store(&t[i], (old & ~mask) | (new &mask));
	}
}

void ag_store(void *page, const void *bytes, const uint8_t *which, uint32_t from, uint32_t to)
{
	_Atomic uint64_t *p = page;

	for (uint32_t i = from / 8; i < WORDS && i * 8 < to; i++) {
		uint32_t lo = i * 8 < from ? from - i * 8 : 0, hi = to - i * 8 < 8 ? to - i * 8 : 8;
		uint64_t mask = byte_mask(lo, hi) & (which ? marked_bytes(which[i]) : UINT64_MAX);

		if (mask)
			set_bytes(&p[i], mask, word_of(bytes, i, from, lo, hi));
	}
}

void ag_which(uint8_t *which, uint32_t from, uint32_t to)
{
	for (uint32_t i = from / 8; i * 8 < to; i++) {
		uint32_t lo = i * 8 < from ? from - i * 8 : 0, hi = to - i * 8 < 8 ? to - i * 8 : 8;

		which[i] |= (uint8_t)((0xffu << lo) & (0xffu >> (8 - hi)));
	}
}

void ag_zero(void *page, uint32_t from, uint32_t to)
{
	_Atomic uint64_t *p = page;

	for (uint32_t i = from / 8; i < WORDS && i * 8 < to; i++) {
		uint32_t lo = i * 8 < from ? from - i * 8 : 0, hi = to - i * 8 < 8 ? to - i * 8 : 8;

		set_bytes(&p[i], byte_mask(lo, hi), 0);
	}
}

void ag_unmark(_Atomic uint8_t *mark, uint32_t from, uint32_t to)
{
	for (uint32_t i = from / 8; i * 8 < to; i++) {
		uint32_t lo = i * 8 < from ? from - i * 8 : 0, hi = to - i * 8 < 8 ? to - i * 8 : 8;

		atomic_fetch_and(&mark[i], (uint8_t) ~((0xffu << lo) & (0xffu >> (8 - hi))));
	}
}

void ag_unmark_bits(_Atomic uint8_t *mark, const uint8_t *bits)
{
	for (uint32_t i = 0; i < RF_MARK_SIZE; i++)
		if (bits[i])
			atomic_fetch_and(&mark[i], (uint8_t)~bits[i]);
}

void ag_mark_bits(_Atomic uint8_t *mark, const uint8_t *bits)
{
	for (uint32_t i = 0; i < RF_MARK_SIZE; i++)
		if (bits[i])
			atomic_fetch_or(&mark[i], bits[i]);
}

/* ---- what was sent ---- */

/* A piece of a page that a change carries: its bytes [from, to). */
struct piece {
	uint32_t from, to;
	const unsigned char *bytes;
	uint32_t i; /* the range to look at next, and its bytes */
	const unsigned char *data;
};

static bool next_piece(const struct ag_change *c, uint64_t page, struct piece *p)
{
	const uint64_t lo = page << RF_PAGE_SHIFT, hi = lo + RF_PAGE_SIZE;

	while (p->i < c->n && c->range[p->i].off < hi) {
		const rf_range *r = &c->range[p->i++];
		const uint64_t start = ag_max(r->off, lo), end = ag_min(r->off + r->len, hi);

		p->bytes = p->data + (start - r->off);
		p->data += r->len;
		if (start >= end)
			continue;
		p->from = (uint32_t)(start - lo);
		p->to = (uint32_t)(end - lo);
		return true;
	}
	return false;
}

void ag_sent_bits(const struct ag_change *c, uint64_t page, uint8_t *bits)
{
	struct piece p = {.data = c->data};

	memset(bits, 0, RF_MARK_SIZE);
	while (next_piece(c, page, &p))
		ag_which(bits, p.from, p.to);
}

void ag_sent_arrived(const struct ag_change *c, uint64_t page, const uint8_t *bits, void *twin)
{
	struct piece p = {.data = c->data};
	unsigned char *t = twin;

	while (next_piece(c, page, &p))
		for (uint32_t k = p.from; k < p.to; k++)
			if (bits[k / 8] & 1u << k % 8)
				t[k] = p.bytes[k - p.from];
}

/* ---- the guard ---- */

static sigjmp_buf guard_env;
static volatile sig_atomic_t guard_on;

static void on_sigbus(int sig)
{
	if (guard_on)
		siglongjmp(guard_env, 1);
	/* Not ours: runs again with the default action, and the supervisor starts the next agent.
	 */
	signal(sig, SIG_DFL);
}

int ag_guard_install(void)
{
	/* NODEFER: siglongjmp leaves the mask as it is, and there may be a next time. */
	struct sigaction sa = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};

	return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
}

int ag_guard(void (*fn)(void *arg), void *arg)
{
	if (sigsetjmp(guard_env, 0)) {
		guard_on = 0;
		return -EFAULT;
	}
	guard_on = 1;
	atomic_signal_fence(memory_order_seq_cst);
	fn(arg);
	atomic_signal_fence(memory_order_seq_cst);
	guard_on = 0;
	return 0;
}

/* ---- the status table ---- */

static void stat_begin(struct rf_stat_entry *e)
{
	atomic_fetch_add(&e->seq, 1);
	atomic_thread_fence(memory_order_seq_cst);
}

static void stat_end(struct rf_stat_entry *e)
{
	atomic_fetch_add(&e->seq, 1);
}

uint32_t ag_stat_find(struct rf_host *host, uint64_t dev, uint64_t ino, uint32_t vnode)
{
	uint32_t at = rf_stat_hash(dev, ino), free = UINT32_MAX;
	struct rf_stat_entry *e;

	for (uint32_t k = 0; k < RF_STAT_BUCKETS; k++, at = (at + 1) & (RF_STAT_BUCKETS - 1)) {
		uint32_t v;

		e = &host->stat[at];
		v = atomic_load(&e->vnode);
		if (v == 0 || v == RF_STAT_TOMB) {
			if (free == UINT32_MAX)
				free = at;
			if (v == 0)
				break;
		} else if (atomic_load(&e->dev) == dev && atomic_load(&e->ino) == ino) {
			if (v == vnode)
				return at;
			free = at; /* another file took that name */
			break;
		}
	}
	if (free == UINT32_MAX)
		return free;
	e = &host->stat[free];
	stat_begin(e);
	atomic_store(&e->cb_expires_at, 0);
	atomic_store(&e->dev, dev);
	atomic_store(&e->ino, ino);
	atomic_store(&e->vnode, vnode);
	stat_end(e);
	return free;
}

uint32_t ag_stat_look(struct rf_host *host, uint64_t dev, uint64_t ino)
{
	uint32_t at = rf_stat_hash(dev, ino);

	for (uint32_t k = 0; k < RF_STAT_BUCKETS; k++, at = (at + 1) & (RF_STAT_BUCKETS - 1)) {
		const struct rf_stat_entry *e = &host->stat[at];
		const uint32_t v = atomic_load(&e->vnode);

		if (!v)
			break;
		if (v != RF_STAT_TOMB && atomic_load(&e->dev) == dev && atomic_load(&e->ino) == ino)
			return v;
	}
	return 0;
}

void ag_stat_write(struct rf_host *host, uint32_t i, uint32_t vnode, const struct ag_stat *st)
{
	struct rf_stat_entry *e = &host->stat[i];

	if (atomic_load(&e->vnode) != vnode)
		return;
	stat_begin(e);
	atomic_store(&e->size, st->size);
	atomic_store(&e->blocks, st->blocks);
	atomic_store(&e->mtime, st->mtime);
	atomic_store(&e->ctime, st->ctime);
	stat_end(e);
}

void ag_stat_promise(struct rf_host *host, uint32_t i, uint32_t vnode, uint64_t until)
{
	if (atomic_load(&host->stat[i].vnode) == vnode)
		atomic_store(&host->stat[i].cb_expires_at, until);
}

void ag_stat_drop(struct rf_host *host, uint32_t i, uint32_t vnode)
{
	uint32_t next = (i + 1) & (RF_STAT_BUCKETS - 1);
	struct rf_stat_entry *e = &host->stat[i];

	if (atomic_load(&e->vnode) != vnode)
		return;
	stat_begin(e);
	atomic_store(&e->vnode, RF_STAT_TOMB);
	stat_end(e);
	/* Tombs in front of an empty entry are not needed. */
	if (atomic_load(&host->stat[next].vnode) != 0)
		return;
	while (atomic_load(&host->stat[i].vnode) == RF_STAT_TOMB) {
		e = &host->stat[i];
		stat_begin(e);
		atomic_store(&e->vnode, 0);
		stat_end(e);
		i = (i - 1) & (RF_STAT_BUCKETS - 1);
	}
}
