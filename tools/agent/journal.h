/* SPDX-License-Identifier: MIT */
/*
 * journal.h - changes on their way to the server, where a crash of the agent does not reach them.
 *
 * A memfd that the supervisor holds from the start, divided into AG_JOURNAL_SLOTS slots; only the
 * agent maps it, programs never see it.  A slot holds all of one change: what is sent is built in
 * it, and it is armed before the first byte goes out; so the next agent sends the same bytes under
 * the same id, and nothing is ever diffed twice.  Writing to it costs no system call and wakes
 * nobody.  Source: journal.c.
 */
#ifndef AGENT_JOURNAL_H
#define AGENT_JOURNAL_H

#include "ag.h"
#include "protocol.h"

struct ag_vnode;

#define AG_JOURNAL_SLOTS 1024u
#define AG_JOURNAL_SHARE 128u /* of one server: others go on while it is away */
#define AG_JOURNAL_SPARE 16u  /* left for batches that do not fit one STORE */
#define AG_JOURNAL_PAGES (RF_MAX_DATA >> RF_PAGE_SHIFT)
#define AG_REJECTS 64u

#define AG_SLOT_DONE 7u /* no word ever is: the page is not part of the change any more */

struct ag_slot_page {
	uint64_t page, word; /* the word as WRITEBACK, or AG_SLOT_DONE */
	uint32_t loud;       /* it is DIRTY again; bits says what of it is on its way */
	uint32_t pinned;     /* therefore it is not write-protected; while the batch is made */
};

/* What a REMAP reads: kept here whole, for nobody may hold the file any more when it is sent again. */
struct ag_slot_src {
	rf_fid fid;
	uint64_t off;
	uint32_t key, kind, nameless, pad;
};

struct ag_slot {
	uint32_t type; /* enum rf_type */
	uint32_t vnode, key;
	uint32_t applied; /* and all of it is done here */
	rf_fid fid;
	uint64_t seq; /* order within the vnode */
	uint64_t request, memory;
	uint64_t off; /* applied: APPEND's offset, REMAP's bytes */
	uint64_t nth; /* applied: the how many-th change of all */
	uint32_t durable, may_extend, program;
	uint32_t rejected, errseq; /* errno; the vnode's errseq before that was counted */
	uint32_t grow_only;        /* SET_SIZE */
	uint32_t mode;             /* FALLOC */
	uint64_t size;             /* SET_SIZE */
	struct ag_slot_src src;    /* REMAP; the file's name is in data, of length len */
	uint32_t npages, nranges;
	uint64_t len;
	struct ag_slot_page page[AG_JOURNAL_PAGES];
	_Alignas(4096) rf_range range[RF_MAX_RANGES];
	/* A bit a byte of a loud page: sent and not applied.  Only where page[i].loud. */
	_Alignas(4096) uint8_t bits[AG_JOURNAL_PAGES][RF_MARK_SIZE];
	_Alignas(4096) unsigned char data[RF_MAX_DATA];
};

/* What a server refused for good. */
struct ag_reject {
	int64_t time;     /* CLOCK_REALTIME, ns */
	uint64_t request; /* the last change that is part of it */
	uint64_t walk;
	uint64_t off, len;
	uint32_t pages, vnode;
	uint32_t told; /* pages that the log has told of */
	int32_t err;
	char key[64], path[384];
};

/*
 * Bytes of the server that are being merged into a dirty page.  What of them is in the page and not in
 * the twin would count as a change of ours, and be sent over what others have stored since: so the
 * next agent merges them once more, which does no harm to what was merged.
 */
struct ag_merging {
	_Atomic uint32_t vnode; /* 0: none; set last, cleared when it is done */
	uint32_t from, to;      /* bytes of the page */
	uint32_t some;          /* only those that `which` says */
	uint64_t page;
	unsigned char bytes[RF_PAGE_SIZE]; /* the first is that of `from` */
	uint8_t which[RF_MARK_SIZE];
};

struct ag_journal {
	uint64_t magic;
	uint32_t version;
	uint64_t nprocs; /* programs that were taken in, ever: makes their ids, see proc.c */
	struct ag_merging merging;
	_Atomic uint32_t armed[AG_JOURNAL_SLOTS];
	uint64_t changes;  /* that servers have applied, ever */
	uint64_t nrejects; /* ever */
	struct ag_reject reject[AG_REJECTS];
	_Alignas(4096) struct ag_slot slot[AG_JOURNAL_SLOTS];
};

/* Make it, or take it over from the agent before (fd stays the caller's).  -errno. */
int ag_journal_make(struct ag *ag);
int ag_journal_adopt(struct ag *ag, int fd);

/*
 * A slot for a change of vn.  NULL: none is free; the vnode is looked at again when one is.  spare:
 * out of those that are left for this.
 */
struct ag_slot *ag_slot_take(struct ag_vnode *vn, bool spare);
/* From now on the next agent does it. */
void ag_slot_arm(struct ag *ag, struct ag_slot *s);
/* It is over, or never was. */
void ag_slot_put(struct ag_vnode *vn, struct ag_slot *s);

/* The next slot of vn that the agent before armed, in order of seq; it is taken now.  NULL: none. */
struct ag_slot *ag_slot_adopt(struct ag_vnode *vn);
/* What no vnode adopted. */
void ag_slots_forget(struct ag *ag);
/* Whether it can have been written by an agent, for a file of so many words. */
bool ag_slot_sound(const struct ag_slot *s, uint64_t words);

/* Every second: give the memory of slots back that were not used lately; wake who waits for one. */
void ag_journal_check(struct ag *ag);

/* The i-th last rejection, 0 <= i < AG_REJECTS; NULL: there were not so many. */
const struct ag_reject *ag_rejected(const struct ag *ag, unsigned i);

#endif
