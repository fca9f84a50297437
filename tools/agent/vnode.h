/* SPDX-License-Identifier: MIT */
/*
 * vnode.h - one file on this host.
 */
#ifndef AGENT_VNODE_H
#define AGENT_VNODE_H

#include "ag.h"
#include "pages.h"
#include "proc.h"

struct ag_hold;
struct ag_volume;

#define AG_STREAMS 4u
#define AG_SIZE_MAX ((uint64_t)1 << 47)

struct ag_vnode {
	struct ag *ag;
	struct ag_volume *vol;
	rf_fid fid;
	char *path; /* its last known name */
	uint32_t id;
	uint32_t
	    key; /* that it was last opened or read under; asks for what nobody in particular wants */
	struct ag_list by_fid, by_server, by_use /* ag->unused */, kick, starve /* ag->starved */,
	    soon /* ag->soon */, unstripped /* srv->unstripped */;

	int data_fd, state_fd;
	struct rf_vnode *st;
	rf_word *word;
	uint64_t cap;     /* words, and pages of map */
	char *map;        /* the page cache, registered with ag->uffd */
	bool touched;     /* map has page table entries of ours */
	uint64_t ncached; /* pages that are not EMPTY */

	/* What st shows; our own copies, since programs can write there. */
	uint64_t size;  /* of this host, and of the data memfd */
	uint64_t ssize; /* the server's, as of the last status; smaller than size: extended here */
	uint64_t dv, until, blocks;
	int64_t mtime, ctime;
	uint32_t *stat; /* its entries in the status table */
	uint32_t nstat;

	struct ag_list uses, reqs, ops, fetches;
	struct ag_list tasks;
	struct ag_task *task;

	/*
	 * Validation.  st->dv is 0, or everything cached is that version but for bytes that are
	 * dirty.  While dirty pages are merged with the server's version `target`, merge[] lists
	 * those that are still to do; what is fetched meanwhile is of that version too.
	 */
	uint64_t epoch; /* changes with every break and every dv: tells old replies apart */
	uint64_t target, target_until;
	uint64_t *merge;
	size_t nmerge;
	uint64_t asked_at;         /* the last STATUS */
	uint64_t anew;             /* answers to what was asked before count for nothing */
	uint64_t refused;          /* set of keys that did not do for want_valid */
	uint64_t unstripped_until; /* what could not be stripped is waited for so long */
	unsigned asking;           /* STATUS calls under way */
	bool want_valid;           /* validate though nobody asks: breaks wait for the merge */
	struct ag_late_ack {
		uint32_t conn;
		uint64_t id;
	} * late; /* breaks to acknowledge when it is valid, or nobody shows what is old */
	uint32_t nlate;

	/* Write-back. */
	uint64_t op_seq;
	uint64_t applies, unstable_at; /* changes applied, and the last that is not durable */
	uint32_t unapplied;            /* operations in ops that are not applied yet */
	uint32_t extend_key;           /* whose write() made it larger than the server's */
	int extend_err;                /* of the last try to make it larger */
	struct ag_hold *gate; /* a structural change is under way: no stores are sent; freeze.h */
	struct ag_list gate_waits;
	bool frozen;    /* no page becomes DIRTY */
	bool behind;    /* a flush that nobody waits for is under way */
	bool wind;      /* a change was refused: back to the server's size when all is quiet */
	uint32_t batch; /* pages of a STORE; 0: as many as it holds.  Smaller after a refusal */

	struct ag_stream {
		uint64_t start, next; /* what was asked for last */
		uint32_t window;
	} stream[AG_STREAMS];
	uint32_t stream_hand;
	uint64_t drop_at; /* the next page to give up when memory is short */
	uint64_t no_drop; /* nothing could be given up; do not look before */
};

/* By the server's id; NULL if it is not held. */
struct ag_vnode *ag_vn_find(struct ag *ag, const struct ag_volume *vol, const rf_fid *fid);
/* By our id, whatever a program says. */
struct ag_vnode *ag_vn_get(struct ag *ag, uint32_t id);
/* Make it, of that size.  *err is -errno if NULL. */
struct ag_vnode *ag_vn_new(struct ag_volume *vol, const rf_status *st, const char *path, int *err);
/* After a restart: DIRTY what was in flight, out with what was half done. */
int ag_vn_adopt(struct ag *ag, const struct ag_keep *k);
void ag_vn_path(struct ag_vnode *vn, const char *path);
void ag_vn_extend_key(struct ag_vnode *vn, uint32_t key);

/* Look at it before we sleep: tasks, requests, fetches; ag_vn_look does it. */
void ag_vn_kick(struct ag_vnode *vn);
/* The same, but let others have their turn first. */
void ag_vn_kick_soon(struct ag_vnode *vn);
void ag_vn_look(struct ag_vnode *vn);

/* A program holds it (opens more often, under these keys too); it does not any more. */
struct ag_use *ag_vn_use(struct ag_vnode *vn, struct ag_proc *p, uint32_t opens, uint64_t keys);
void ag_vn_unuse(struct ag_use *u);
/* Forget files that nobody holds, beyond AG_UNUSED_MAX (all: every one that can be). */
void ag_vn_trim(struct ag *ag, bool all);
bool ag_vn_mapped(struct ag_vnode *vn);

/* Set the bits of the twins that its words refer to; bitmap of ag->ntwins bits. */
void ag_vn_twins(struct ag_vnode *vn, unsigned char *used);
void ag_twin_free(struct ag *ag, uint32_t twin);
static inline void *ag_twin(struct ag *ag, uint64_t w)
{
	uint32_t i = rf_w_twin(w);
	return i && i < ag->ntwins ? rf_twin(ag->twins, ag->ntwins, i) : NULL;
}
/* What is marked as explicitly written, NULL: nothing. */
static inline _Atomic uint8_t *ag_twin_mark(struct ag *ag, uint64_t w)
{
	uint32_t i = rf_w_twin(w);
	return i && i < ag->ntwins && (atomic_load(&ag->twins->owner[i]) & RF_TWIN_MARKED)
		   ? rf_twin_mark(ag->twins, ag->ntwins, i)
		   : NULL;
}
/* No marks any more. */
void ag_twin_unmark(struct ag *ag, uint32_t twin);
/* These bytes (a bit each) are to be sent, whatever the twin says. */
void ag_twin_mark_again(struct ag *ag, uint32_t twin, const uint8_t *bits);
/* Pages that are DIRTY or in flight, by a scan. */
uint64_t ag_vn_ndirty(struct ag_vnode *vn);
/* Whether one of the pages of [off, off + len) is, or can never be dropped. */
bool ag_vn_dirty_in(struct ag_vnode *vn, uint64_t off, uint64_t len);
/* Whether something may have to be written back. */
static inline bool ag_vn_unclean(const struct ag_vnode *vn)
{
	return atomic_load(&vn->st->dirtied) || !ag_list_empty(&vn->ops) || vn->size > vn->ssize;
}

/* Write it back; nobody waits. */
void ag_vn_flush_behind(struct ag_vnode *vn);

/* A file of that size could be held here now, in our address space, too. */
bool ag_vn_fits(const struct ag_vnode *vn, uint64_t size);
/* Words for n pages. */
int ag_vn_capacity(struct ag_vnode *vn, uint64_t n);
static inline uint64_t ag_vn_pages(const struct ag_vnode *vn)
{
	return RF_PAGES(vn->size);
}
static inline void *ag_vn_page(struct ag_vnode *vn, uint64_t page)
{
	vn->touched = true;
	return vn->map + (page << RF_PAGE_SHIFT);
}

/* A page is not EMPTY any more; n are again.  Words that a program made up must not let the sums
 * wrap. */
static inline void ag_vn_cached(struct ag_vnode *vn)
{
	vn->ncached++;
	vn->ag->cached++;
}
static inline void ag_vn_uncached(struct ag_vnode *vn, uint64_t n)
{
	n = ag_min(n, vn->ncached);
	vn->ncached -= n;
	vn->ag->cached -= n;
}
/* Count anew. */
void ag_vn_recount(struct ag_vnode *vn);

/* Size, times and blocks as programs see them. */
void ag_vn_publish(struct ag_vnode *vn);
int ag_vn_stat_add(struct ag_vnode *vn, uint64_t dev, uint64_t ino);
/* What the server says about the file as of now; i_size is not touched. */
void ag_vn_status(struct ag_vnode *vn, const rf_status *st);
/* It was so long once: what was extended here up to there is not to be extended again. */
void ag_vn_accepted(struct ag_vnode *vn, uint64_t size);

/* The promise: holds, given until, taken back.  Giving it back makes all before it visible. */
bool ag_vn_valid(const struct ag_vnode *vn);
void ag_vn_promise(struct ag_vnode *vn, uint64_t until);
void ag_vn_unpromise(struct ag_vnode *vn);
void ag_vn_set_dv(struct ag_vnode *vn, uint64_t dv);
/* Nothing here can be trusted to be of any version. */
void ag_vn_forget_version(struct ag_vnode *vn);
/* What a refused change did to the size is to be taken back; it was. */
void ag_vn_wind(struct ag_vnode *vn, bool on);
/* The memfd has that size now. */
void ag_vn_set_size(struct ag_vnode *vn, uint64_t size);

/* Walk the words of [page, end), but not those never written to; large files are mostly holes. */
struct ag_scan {
	struct ag_vnode *vn;
	uint64_t page, end, upto;
};
static inline struct ag_scan ag_scan(struct ag_vnode *vn, uint64_t page, uint64_t end)
{
	return (struct ag_scan){vn, page, ag_min(end, vn->cap), 0};
}
/* s->page is the next page to look at, then s->page + 1 ...; false: the end.  All before s->upto (which
 * is not past the end) are there. */
bool ag_scan_next(struct ag_scan *s, uint64_t *page);

#endif
