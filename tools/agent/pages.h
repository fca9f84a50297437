/* SPDX-License-Identifier: MIT */
/*
 * pages.h - page words and page bytes: transitions, diff, merge.  Pure: no context, no system calls
 * but a futex wake.
 *
 * Bytes of a page cache may vanish under the agent, since a program can truncate or punch what it
 * was given: everything here that touches such bytes is called through ag_guard().
 */
#ifndef AGENT_PAGES_H
#define AGENT_PAGES_H

#include <refault/state.h>

#include "protocol.h"

/*
 * Twin 0 is never handed out (its owner is preset), so WRITEBACK with twin 0 is a clean page that
 * is being dropped or changed in place, and WRITEBACK with another twin a dirty page in flight.
 */
static inline bool ag_w_twinned(uint64_t w)
{
	enum rf_page_state s = rf_w_state(w);
	return (s == RF_PG_DIRTY || s == RF_PG_WRITEBACK) && rf_w_twin(w) != 0;
}

/* Its twin is in use.  Also of a page that was rejected, until it is excised, or cut off, see below. */
static inline bool ag_w_owns_twin(uint64_t w)
{
	enum rf_page_state s = rf_w_state(w);
	return ag_w_twinned(w) || ((s == RF_PG_REJECTED || s == RF_PG_EMPTY) && rf_w_twin(w) != 0);
}
/* The same page cut off while a slot named it: EMPTY, with its twin, gen + 1.  Filled, it is DIRTY. */
static inline uint64_t ag_w_cut(uint64_t w)
{
	return rf_w_to(w, RF_PG_EMPTY) + ((uint64_t)1 << RF_W_GEN_SHIFT);
}
/* The same page, DIRTY or WRITEBACK now, rejected: with its twin, gen + 1. */
static inline uint64_t ag_w_reject(uint64_t w)
{
	return rf_w_to(w, RF_PG_REJECTED) + ((uint64_t)1 << RF_W_GEN_SHIFT);
}

/* w -> to if nobody was faster; wakes who waits for the word. */
bool ag_word_move(rf_word *word, uint64_t w, uint64_t to);

/*
 * Many words at once, for a file that is dropped as a whole: the same transitions, each by CAS, and no
 * system call.
 *
 * ag_words_take: UPTODATE, without SYNC -> WRITEBACK, gen + 1: the pages at the beginning of n that
 *	are so; returns how many.
 * ag_words_gone: WRITEBACK without twin -> EMPTY, wherever among n; returns how many.  After it, if
 *	ag_procs_wait says that somebody may wait for one of them: ag_words_wake.
 */
uint64_t ag_words_take(rf_word *word, uint64_t n);
uint64_t ag_words_gone(rf_word *word, uint64_t n);
void ag_words_wake(rf_word *word, uint64_t n);

/* Byte ranges and their bytes, as a STORE carries them. */
struct ag_change {
	rf_range *range;
	uint32_t n, cap;
	unsigned char *data;
	size_t len, size;
};

/*
 * Append what differs between the first limit bytes of page and twin, or is marked (mark may be
 * NULL, else it is aligned to 8); off is the page's offset in the file.  Runs that touch are
 * joined.  Returns the number of bytes, or -ENOSPC with nothing appended.  Page and twin are read
 * to the end of the cache line that holds limit.
 */
ssize_t ag_diff(struct ag_change *c, const void *page, const void *twin,
		const _Atomic uint8_t *mark, uint64_t off, uint32_t limit);
/* Append [off, off + len) whole. */
ssize_t ag_diff_all(struct ag_change *c, const void *page, uint64_t off, uint32_t len);

/*
 * Three ways: bytes [from, to) of the page have become theirs on the server.  Where mine == twin
 * and it is not marked take theirs, by compare-and-swap on aligned words, as programs store at the
 * same time; the twin becomes theirs in any case, after the page, so that a crash in between sends
 * too much, never too little (nor that, if it is done again: struct ag_merging).  inflight: a bit a
 * byte that is on its way, or NULL; these come after theirs on the server, and page and twin are left
 * alone.  theirs points at the byte for `from`.  which: a bit a byte of the page, in the order of a
 * twin's marks, for those of [from, to) that are meant; NULL: all.  Bytes of one word change at once.
 */
void ag_merge(void *page, void *twin, const _Atomic uint8_t *mark, const uint8_t *inflight,
	      const void *theirs, const uint8_t *which, uint32_t from, uint32_t to);

/* Bits for the bytes of this page that c (its ranges are in order) carries. */
void ag_sent_bits(const struct ag_change *c, uint64_t page, uint8_t *bits);
/* What c carried for this page has arrived: it is the twin's now, where the bit is still set. */
void ag_sent_arrived(const struct ag_change *c, uint64_t page, const uint8_t *bits, void *twin);

/* Store bytes [from, to), or which of them, with aligned atomic stores: a clean page changes under its
 * readers. */
void ag_store(void *page, const void *bytes, const uint8_t *which, uint32_t from, uint32_t to);

/* Add [from, to) to which. */
void ag_which(uint8_t *which, uint32_t from, uint32_t to);
/* The same with zeros. */
void ag_zero(void *page, uint32_t from, uint32_t to);
/* What was written to bytes [from, to) is no change any more.  Programs may be marking others. */
void ag_unmark(_Atomic uint8_t *mark, uint32_t from, uint32_t to);
/* Of these bytes; and they are again. */
void ag_unmark_bits(_Atomic uint8_t *mark, const uint8_t *bits);
void ag_mark_bits(_Atomic uint8_t *mark, const uint8_t *bits);

/* Run fn(arg); -EFAULT if it touched a byte of a page cache that is not there.  Loop thread only.
 */
int ag_guard(void (*fn)(void *arg), void *arg);
int ag_guard_install(void);

/* ---- the status table ---- */

struct ag_stat {
	uint64_t size, blocks;
	int64_t mtime, ctime;
};
/* Entry for (dev, ino), made if there is none; UINT32_MAX: the table is full. */
uint32_t ag_stat_find(struct rf_host *host, uint64_t dev, uint64_t ino, uint32_t vnode);
/* The vnode of (dev, ino), or 0. */
uint32_t ag_stat_look(struct rf_host *host, uint64_t dev, uint64_t ino);
/* These do nothing if the entry is another vnode's by now. */
void ag_stat_write(struct rf_host *host, uint32_t i, uint32_t vnode, const struct ag_stat *st);
void ag_stat_promise(struct rf_host *host, uint32_t i, uint32_t vnode, uint64_t until);
void ag_stat_drop(struct rf_host *host, uint32_t i, uint32_t vnode);

#endif
