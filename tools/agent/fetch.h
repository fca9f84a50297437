/* SPDX-License-Identifier: MIT */
/*
 * fetch.h - validation, fetching, filling.
 */
#ifndef AGENT_FETCH_H
#define AGENT_FETCH_H

#include "vnode.h"

struct ag_call;

/* Ask the server for status and promise, unless that is under way. */
void ag_fetch_status(struct ag_vnode *vn);

/*
 * Pages [first, end) are wanted: ask for those that are neither cached nor under way; read ahead
 * unless random.  -errno: they cannot be filled.  Pages past the server's end of file are zeros,
 * and no server is asked.
 */
int ag_fetch_pages(struct ag_vnode *vn, uint64_t first, uint64_t end, bool random);

/* Readahead of [at, end), as far as calls may be under way: returns the end of what is. */
uint64_t ag_fetch_ahead(struct ag_vnode *vn, uint64_t at, uint64_t end);

/* What the vnode itself wants: pages to merge, validation that breaks wait for. */
void ag_fetch_want(struct ag_vnode *vn);

/*
 * The server's status in an answer to c.  1: it is the version that is cached (or being merged
 * towards) and the promise is taken.  0: it is another one; revalidate.  -1: it is older than what
 * is known; ask again.
 */
int ag_fetch_judge(struct ag_vnode *vn, const rf_status *st, const struct ag_call *c);
/* A task that revalidates for this status, in front of all others. */
struct ag_task *ag_fetch_revalidate(struct ag_vnode *vn, const rf_status *st,
				    const struct ag_call *c);

/* The server's version cannot be held here: who waits for it is told. */
void ag_fetch_failed(struct ag_vnode *vn, int err);

/* Content of the cached version from `page` on, of a file of that size: fill, and merge. */
void ag_fetch_fill(struct ag_vnode *vn, uint64_t page, const void *data, size_t len, uint64_t size);

/* Pages to merge before the target version is reached, in ascending order. */
void ag_fetch_merge_add(struct ag_vnode *vn, uint64_t page);
bool ag_fetch_to_merge(const struct ag_vnode *vn, uint64_t page);
/* If none is left: the target is the version, and the promise holds. */
void ag_fetch_merged(struct ag_vnode *vn);

#endif
