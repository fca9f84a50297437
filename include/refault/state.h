/* SPDX-License-Identifier: MIT */
/*
 * state.h - the memory that refault-agent and the programs of its user share.
 *
 * Four kinds of memfd, all made by the agent and passed to programs over its socket:
 *
 *	data	one a vnode: the page cache itself.  Its size is the host's i_size.
 *	state	one a vnode: struct rf_vnode, then one 64-bit word a page.
 *	proc	one an attached program: struct rf_proc: slots, answer cells, mapping table.
 *	host	one an agent: struct rf_host, read-only for programs: servers' counters, status table.
 *	twins	one an agent: struct rf_twins: pages as the server last had them.
 *
 * Trust.  Programs and the agent are of one user, but a program may scribble: the agent checks
 * every index and length that it reads here, follows no pointer, and lets no value here decide
 * about another user's files (the server checks those).  state, proc, host and twins are sealed
 * against shrinking, so that reading them never raises SIGBUS.
 *
 * The page word, and who may change it (DESIGN 11; Invariant: a writable PTE => not UPTODATE):
 *
 *	EMPTY      -> UPTODATE    agent, after the page was filled through UFFDIO_COPY
 *	UPTODATE   -> DIRTY       whoever holds a slot that names the page and has a complete twin
 *	DIRTY      -> WRITEBACK   agent: a flush works on the page
 *	WRITEBACK  -> UPTODATE    agent: applied, and no writable PTE is left; the twin is free
 *	WRITEBACK  -> DIRTY       agent: not protectable, to be sent again, or a copy is in flight
 *	UPTODATE   -> WRITEBACK   agent: the page changes in place or is dropped; gen + 1
 *	WRITEBACK  -> EMPTY       agent: dropped (punched)
 *	any        -> REJECTED    agent: the server refused the write-back; gen + 1, then EMPTY
 *	any dirty  -> EMPTY       agent: cut off while a slot names the page; gen + 1, key and twin stay
 *	EMPTY      -> DIRTY       agent: that one is filled again, for the store that may still come
 *
 * Whoever changes a word that others may wait for (WRITEBACK, REJECTED) wakes the futex on its low
 * half; who waits has raised its program's `waiting` before it looked at the word a last time, so
 * whoever has changed many looks there first, in programs that are alive.  The generation changes
 * whenever the content changes other than by the programs' own stores, so that optimistic readers and
 * mkwrite's CAS notice.
 *
 * Counters: cb_break, cb_s_break count breaks and mass breaks; a promise holds while
 *	cb_expires_at > CLOCK_MONOTONIC  &&  cb_s_seen == host->server[server].cb_s_break.
 *
 * Locks, outermost first (this is the one place that says so; DEBUG=1 asserts it, see tools/agent/debug.h
 * and shim/debug.h):
 *	in the agent	gate -> frozen -> the vnode's task -> invalidate_lock -> page state -> key list
 *	in a program	attach_lock -> lock (ctx.h) -> slot -> page state
 * Of two vnodes the one with the smaller id comes first: both gates at once, then both frozen, one
 * after the other; nobody ever has two invalidate_locks, and no thread two slots.
 *
 * gate (the agent's, not in here): one structural change (truncate, fallocate, remap) of a vnode at a
 * time, from before its flush until the server has applied it and the cache follows.
 *
 * frozen: the modification side.  Set in invalidate_lock, when every writable PTE of the vnode (but
 * those under LONG pins) has been taken away: from then on no page becomes DIRTY (page_mkwrite
 * waits), while pages are still filled, mapped and read.  So what is flushed under it is the file of
 * one moment, and a clone, a dedupe, a collapse or an invalidate is atomic towards stores, over RPCs
 * too; a lost connection, or an answer that does not come, ends it.  A store never waits for it with
 * a slot in hand.  Who is frozen is gated.
 *
 * task (the agent's): what is done with a vnode as a whole, one at a time and in the order of the
 * server's stream (task.h); so nothing is filled while one is at work.
 *
 * invalidate_lock: the shared side is a slot: claim by CAS, look at `invalidate`; set -> release,
 * wait on it, start over.  A slot is never held across a wait (but for the stripper to be done with a
 * mapping, who waits for nobody), and only with all signals
 * blocked.  The exclusive side is the agent's alone, in a task: set, fence, wait for slots that name
 * the vnode, act, clear, wake.  Not for ever: after a while what is left to be done is what cannot harm
 * a thread that stands still with its slot, and nobody else waits for it.  Never across an RPC: what
 * must stay out over an RPC is frozen, or dropped and its fetch held back by the gate.
 *
 * pin: taken in a slot, with frozen clear, and kept over anything: faults, requests, waits for
 * frozen.  So nobody waits for a pin with frozen or invalidate_lock: who finds one lets go of both,
 * and looks again later.
 *
 * No page state is held across an RPC other than WRITEBACK, which waits for its own `applied` only; a
 * break, a strip or its acknowledgement never waits for WRITEBACK, nor for gate or frozen.
 */
#ifndef REFAULT_STATE_H
#define REFAULT_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <refault/reason.h>

#define RF_PAGE_SHIFT 12
#define RF_PAGE_SIZE ((uint64_t)1 << RF_PAGE_SHIFT)
#define RF_PAGES(bytes) (((uint64_t)(bytes) + RF_PAGE_SIZE - 1) >> RF_PAGE_SHIFT)

#define RF_STATE_VERSION 4
#define RF_MAGIC_VNODE 0x65646f6e76666552u /* "Refvnode" */
#define RF_MAGIC_PROC 0x636f72707666652u
#define RF_MAGIC_HOST 0x74736f687666652u
#define RF_MAGIC_TWINS 0x6e6977747666652u

/* ---- page words ---- */

enum rf_page_state {
	RF_PG_EMPTY = 0,
	RF_PG_UPTODATE = 1,
	RF_PG_DIRTY = 2,
	RF_PG_WRITEBACK = 3,
	RF_PG_REJECTED = 4,
};

/*
 *	bits  0..2   state
 *	bit   3      SYNC: holds a synchronisation object, never stripped or punched
 *	bits  4..9   key: the identity under which it was dirtied and is written back
 *	bits 10..31  twin index; with the key in DIRTY, WRITEBACK and REJECTED, and in EMPTY where a dirty
 *	             page was cut off (see above); else both are 0
 *	bits 32..63  generation
 */
typedef _Atomic uint64_t rf_word;

#define RF_W_STATE_MASK ((uint64_t)7)
#define RF_W_SYNC ((uint64_t)1 << 3)
#define RF_W_KEY_SHIFT 4
#define RF_W_KEY_MASK ((uint64_t)0x3f << RF_W_KEY_SHIFT)
#define RF_KEYS 64u /* 0: the user's own uid */
#define RF_W_TWIN_SHIFT 10
#define RF_W_TWIN_MASK ((uint64_t)0x3fffff << RF_W_TWIN_SHIFT)
#define RF_W_GEN_SHIFT 32

static inline enum rf_page_state rf_w_state(uint64_t w)
{
	return (enum rf_page_state)(w & RF_W_STATE_MASK);
}
static inline uint32_t rf_w_twin(uint64_t w)
{
	return (uint32_t)((w & RF_W_TWIN_MASK) >> RF_W_TWIN_SHIFT);
}
static inline uint32_t rf_w_key(uint64_t w)
{
	return (uint32_t)((w & RF_W_KEY_MASK) >> RF_W_KEY_SHIFT);
}
static inline uint32_t rf_w_gen(uint64_t w)
{
	return (uint32_t)(w >> RF_W_GEN_SHIFT);
}
/* The same page in another state; twin and key as they were. */
static inline uint64_t rf_w_to(uint64_t w, enum rf_page_state s)
{
	return (w & ~RF_W_STATE_MASK) | (uint64_t)s;
}
/* A clean page in another state: no twin, no key; gen + bump. */
static inline uint64_t rf_w_clean(uint64_t w, enum rf_page_state s, uint32_t bump)
{
	return (uint64_t)(uint32_t)(rf_w_gen(w) + bump) << RF_W_GEN_SHIFT | (w & RF_W_SYNC) |
	       (uint64_t)s;
}
/* The content may be read. */
static inline bool rf_w_cached(uint64_t w)
{
	enum rf_page_state s = rf_w_state(w);
	return s == RF_PG_UPTODATE || s == RF_PG_DIRTY || s == RF_PG_WRITEBACK;
}

/* ---- a vnode's state memfd ---- */

#define RF_VNODE_HDR 4096u

struct rf_vnode {
	uint64_t magic;
	uint32_t version;
	uint32_t id;     /* 1 .. RF_MAX_VNODES - 1, unique on this host while anybody holds it */
	uint32_t server; /* index into rf_host.server */
	uint32_t wind;   /* agent: i_size is to go back to server_size, a change was refused */
	uint64_t fid[2]; /* the server's file id */

	/* written by the agent */
	_Alignas(64) _Atomic uint32_t invalidate; /* futex: exclusive side of invalidate_lock */
	_Atomic uint32_t read_gen;      /* bumped before a truncate, a punch and a change of size */
	_Atomic uint64_t cb_expires_at; /* CLOCK_MONOTONIC ns; 0: no promise */
	_Atomic uint64_t cb_s_seen;     /* server's cb_s_break that the promise was made under */
	_Atomic uint64_t cb_break;      /* breaks so far */
	_Atomic uint64_t dv;
	_Atomic uint64_t i_size;      /* what this host shows: == the data memfd's size */
	_Atomic uint64_t server_size; /* as of dv */
	_Atomic uint32_t errseq;      /* write-back errors, see below */
	_Atomic int32_t wb_err;       /* errno of the last one */
	_Atomic uint32_t wb_inflight; /* stores not released, excisions not done: flushes wait */
	_Atomic uint32_t unstable;    /* applied, but not known to be durable */
	_Atomic uint32_t nameless;    /* a program of this host removed its last name */
	_Atomic uint32_t frozen;      /* futex: no page becomes DIRTY, see Locks */
	_Atomic uint64_t capacity;    /* words in this memfd; grows, never shrinks */
	_Atomic int64_t mtime;        /* ns */
	_Atomic int64_t ctime;

	/* written by programs */
	_Alignas(64) _Atomic uint32_t dirtied; /* set before every CAS to DIRTY (slot held); hint */
	_Atomic uint32_t mappings; /* a hint for the agent: managed mappings were made */

	_Alignas(64) char end[];
};

/* The words follow the header page. */
static inline rf_word *rf_vnode_words(struct rf_vnode *v)
{
	return (rf_word *)((char *)v + RF_VNODE_HDR);
}

/*
 * Write-back errors, in the manner of the kernel's errseq_t: bit 0 says that somebody was told of the
 * last one, the rest counts.  Each open file keeps what it has seen, and so is told of each error
 * once; one that is opened when nobody has been told yet is told, too.
 */
#define RF_ERRSEQ_SEEN 1u
#define RF_ERRSEQ_NONE RF_ERRSEQ_SEEN /* no error ever */

/* Agent: there is one more. */
static inline void rf_errseq_set(struct rf_vnode *v, int err)
{
	uint32_t s = atomic_load(&v->errseq);

	atomic_store(&v->wb_err, err);
	while (!atomic_compare_exchange_weak(&v->errseq, &s, (s | RF_ERRSEQ_SEEN) + 1))
		;
}
/* What a file that is being opened has seen. */
static inline uint32_t rf_errseq_sample(struct rf_vnode *v)
{
	uint32_t s = atomic_load(&v->errseq);

	return s & RF_ERRSEQ_SEEN ? s : s - RF_ERRSEQ_SEEN;
}
/* The error that an open file has not been told of, once: its errno, or 0. */
static inline int rf_errseq_report(struct rf_vnode *v, _Atomic uint32_t *seen)
{
	uint32_t since = atomic_load(seen), s = atomic_load(&v->errseq);

	if ((s | RF_ERRSEQ_SEEN) == since)
		return 0;
	if (!atomic_compare_exchange_strong(seen, &since, s | RF_ERRSEQ_SEEN))
		return 0;
	atomic_compare_exchange_strong(&v->errseq, &s, s | RF_ERRSEQ_SEEN);
	return atomic_load(&v->wb_err);
}

/* ---- slots ---- */

#define RF_MAX_VNODES (1u << 18)
#define RF_CLAIM_MAX_PAGES 1023u

/* A claim names npages pages of a vnode.  0: nothing claimed.  page < 2^36. */
static inline uint64_t rf_claim(uint32_t vnode, uint64_t page, uint32_t npages)
{
	return (uint64_t)vnode << 46 | (uint64_t)npages << 36 | page;
}
static inline uint32_t rf_claim_vnode(uint64_t c)
{
	return (uint32_t)(c >> 46);
}
static inline uint32_t rf_claim_npages(uint64_t c)
{
	return (uint32_t)(c >> 36) & 1023u;
}
static inline uint64_t rf_claim_page(uint64_t c)
{
	return c & (((uint64_t)1 << 36) - 1);
}

struct rf_slot {
	_Alignas(64) _Atomic uint64_t claim;
	_Atomic uint32_t owner; /* thread id that goes to this slot first, 0: none; a hint */
};

/*
 * A pin: I/O uses these pages right now (a system call with a buffer in a mapping), or may at any time
 * until it is told otherwise (refault_pin).  Truncate and its kin ask for pins first, see agent.h.
 * Taken in a slot that names the vnode, with frozen clear: `taken` by CAS to a ticket that no pin of
 * this program had before, the rest, vnode last with release order.  Given back by vnode = 0, then
 * taken = 0.
 *
 * LONG: the I/O stores past the page tables, or finds the pages through them at any time (refault_pin,
 * reads with O_DIRECT).  Its pages become DIRTY after it was taken and before they are used, and stay
 * so until it is gone (a flush sends what differs and keeps the twin): so they are never dropped for a
 * break or for want of memory but merged in place, and a strip for a break leaves their PTEs.
 *
 * The agent notes here, under the pin's ticket, what it took away all the same (`sequester`): these
 * pages are no part of the file any more, and nobody waits for the pin on their behalf.  It
 * remembers ranges that do not touch each other; when there are too many, only the number of pages.
 */
#define RF_PIN_ORPHANS 8u
enum { RF_PIN_LONG = 1 };

struct rf_pin {
	_Alignas(64) _Atomic uint32_t taken; /* 0: free; else the ticket */
	_Atomic uint32_t vnode;              /* 0: none */
	_Atomic uint32_t owner;              /* thread id */
	_Atomic uint32_t flags;
	_Atomic uint64_t page, npages;

	/* written by the agent */
	struct {
		_Atomic uint64_t first, end; /* end <= first: none */
	} orphan[RF_PIN_ORPHANS];
	_Atomic uint64_t orphans;       /* pages */
	_Atomic uint32_t orphan_ticket; /* the above is about that pin */
};

/* Where the agent's answer to one request arrives. */
enum { RF_CELL_FREE = 0, RF_CELL_BUSY = 1, RF_CELL_DONE = 2 };

struct rf_cell {
	_Alignas(64) _Atomic uint32_t state; /* futex */
	_Atomic uint32_t seq;   /* of the request it waits for; stale answers are ignored */
	_Atomic int32_t err;    /* 0 or -errno */
	_Atomic uint32_t owner; /* thread id */
	_Atomic uint64_t ret[2];
};

/* ---- the mapping table: every managed mapping of the program, sorted by address ---- */

enum {
	RF_MAP_SHARED = 1,
	RF_MAP_WRITE = 2,  /* may become writable: registered for write-protection */
	RF_MAP_LOCKED = 4, /* mlocked: strip with MADV_DONTNEED_LOCKED */
};

struct rf_map {
	_Atomic uint64_t start, end; /* addresses, page aligned; end exclusive */
	_Atomic uint64_t pgoff;      /* page of the file at start */
	_Atomic uint32_t vnode;
	_Atomic uint32_t flags;
	_Atomic uint32_t local; /* the library's own index; the agent ignores it */
	uint32_t pad;
};

#define RF_SLOTS 512u
#define RF_CELLS 256u
#define RF_PINS 1024u
#define RF_MAPS 16384u

struct rf_proc {
	uint64_t magic;
	uint32_t version;
	uint32_t id; /* 1 .. 65535: owner of twins */
	uint32_t pid;
	_Atomic uint32_t attached; /* program: it has the answer to its ATTACH */
	uint64_t boot;             /* rf_host.boot of the agent that made it */

	_Atomic uint32_t
	    agent_gen; /* agent: + 1 after every restart; pending requests are resent */
	_Atomic uint32_t slots_used; /* high-water mark of slots[] */
	_Atomic uint32_t cells_used;
	_Atomic uint32_t pins_used; /* none at or above was ever taken */
	_Atomic uint32_t strip_ack; /* stripper: last order carried out (the socket says so too) */
	_Atomic uint32_t waiting;   /* threads that may sleep on a page word, of any vnode */

	_Alignas(64) _Atomic uint32_t map_seq; /* odd while the table changes */
	_Atomic uint32_t nmaps;

	_Alignas(64) _Atomic uint64_t count[RF_REASONS]; /* see reason.h; relaxed, never reset */

	_Alignas(4096) struct rf_slot slot[RF_SLOTS];
	_Alignas(4096) struct rf_cell cell[RF_CELLS];
	_Alignas(4096) struct rf_pin pin[RF_PINS];
	_Alignas(4096) struct rf_map map[RF_MAPS];
};

/* ---- the host page ---- */

#define RF_MAX_SERVERS 64u
#define RF_STAT_BUCKETS (1u << 16)

/* Size and times of a file held on this host, by the device and inode that programs see. */
struct rf_stat_entry {
	_Atomic uint32_t seq;   /* odd while it changes */
	_Atomic uint32_t vnode; /* 0: empty; RF_STAT_TOMB: was used, go on probing */
	_Atomic uint64_t dev, ino;
	_Atomic uint64_t size, blocks;
	_Atomic int64_t mtime, ctime;
	_Atomic uint64_t cb_expires_at; /* as rf_vnode's: not of what `seq` counts; read it first */
};
#define RF_STAT_TOMB UINT32_MAX

static inline uint32_t rf_stat_hash(uint64_t dev, uint64_t ino)
{
	uint64_t h = (ino ^ dev << 32 ^ dev >> 32) * 0x9e3779b97f4a7c15u;
	return (uint32_t)(h >> 40) & (RF_STAT_BUCKETS - 1);
}

struct rf_host {
	uint64_t magic;
	uint32_t version;
	uint32_t pad0;
	uint64_t boot; /* random: this supervisor's life */
	struct {
		_Alignas(64) _Atomic uint64_t cb_s_break; /* mass breaks */
		_Atomic uint64_t
		    leased; /* the agent's: no promise lasts longer, CLOCK_MONOTONIC ns */
	} server[RF_MAX_SERVERS];
	_Alignas(4096) struct rf_stat_entry stat[RF_STAT_BUCKETS];
};

/* ---- twins ---- */

/*
 * owner[i]: 0 = free; else rf_proc.id of the program that took it.  Taken by CAS 0 -> id; freed by
 * the taker if its CAS to DIRTY lost, by the agent otherwise (also what a dead program left).
 *
 * Behind the pages comes a mark a twin: a bit a byte of the page, set for what write() carried
 * explicitly, and is a change even where it equals the twin.  RF_TWIN_MARKED in owner[i] says that
 * there are any; bits first, then the flag.  A free twin has neither: the agent clears them.
 */
#define RF_TWIN_MARKED ((uint32_t)1 << 31)
#define RF_MARK_SIZE (RF_PAGE_SIZE / 8)

struct rf_twins {
	uint64_t magic;
	uint32_t version;
	uint32_t n;
	_Alignas(64) _Atomic uint32_t owner[];
};

static inline uint64_t rf_twins_pages_off(uint32_t n)
{
	return (sizeof(struct rf_twins) + (uint64_t)n * 4 + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
}
static inline uint64_t rf_twins_size(uint32_t n)
{
	return rf_twins_pages_off(n) + (uint64_t)n * (RF_PAGE_SIZE + RF_MARK_SIZE);
}
/* The n that makes a memfd that large; 0: none does. */
static inline uint32_t rf_twins_count(uint64_t size)
{
	uint64_t n = size / (RF_PAGE_SIZE + RF_MARK_SIZE + 4);

	while (n && rf_twins_size((uint32_t)n) > size)
		n--;
	return rf_twins_size((uint32_t)n) == size ? (uint32_t)n : 0;
}
/* n: the number of twins, from a place that nobody else can write to. */
static inline void *rf_twin(struct rf_twins *t, uint32_t n, uint32_t i)
{
	return (char *)t + rf_twins_pages_off(n) + (uint64_t)i * RF_PAGE_SIZE;
}
/* Bit k of byte i is byte i * 8 + k of the page. */
static inline _Atomic uint8_t *rf_twin_mark(struct rf_twins *t, uint32_t n, uint32_t i)
{
	return (_Atomic uint8_t *)((char *)t + rf_twins_pages_off(n) + (uint64_t)n * RF_PAGE_SIZE +
				   (uint64_t)i * RF_MARK_SIZE);
}

#endif
