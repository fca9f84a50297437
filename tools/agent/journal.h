/* SPDX-License-Identifier: MIT */
/*
 * journal.h - changes on their way to the server, where a crash of the agent does not reach them.
 *
 * A memfd that the supervisor holds from the start, divided into RF_JOURNAL_SLOTS slots; only the
 * agent maps it, programs never see it.  A slot holds all of one change: what is sent is built in
 * it, and it is armed before the first byte goes out; so the next agent sends the same bytes under
 * the same id, and nothing is ever diffed twice.  Writing to it costs no system call and wakes
 * nobody.  Source: journal.c.
 */
#ifndef AGENT_JOURNAL_H
#define AGENT_JOURNAL_H

#include "ag.h"
#include "protocol.h"

#define AG_JOURNAL_SLOTS 512u
#define AG_JOURNAL_PAGES (RF_MAX_DATA / 4096u)

struct ag_slot_page {
	uint64_t page, word; /* the word as WRITEBACK */
	uint32_t loud;       /* it is DIRTY again; bits says what of it is on its way */
	uint32_t pad;
};

struct ag_slot {
	_Atomic uint32_t armed; /* 0: free, or not complete */
	uint32_t type;          /* enum rf_type */
	uint32_t vnode, key;
	uint64_t seq; /* order within the vnode */
	uint64_t request, instance, memory;
	uint32_t applied, durable, may_extend, program;
	uint64_t size, alloc_off; /* SET_SIZE */
	uint32_t grow_only, keep_size;
	uint32_t npages, nranges;
	uint64_t len;
	_Alignas(4096) struct ag_slot_page page[AG_JOURNAL_PAGES];
	_Alignas(4096) rf_range range[RF_MAX_RANGES];
	/* A bit a byte of a loud page: sent and not applied.  Only where page[i].loud. */
	_Alignas(4096) unsigned char bits[AG_JOURNAL_PAGES][512];
	_Alignas(4096) unsigned char data[RF_MAX_DATA];
};

#endif
