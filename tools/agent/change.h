/* SPDX-License-Identifier: MIT */
/*
 * change.h - tasks that change what is cached: revalidate, apply a known change, strip, drop,
 * excise.
 */
#ifndef AGENT_CHANGE_H
#define AGENT_CHANGE_H

#include "task.h"

/*
 * First steps, for ag_task_new.
 *
 * ag_step_revalidate: the server's version is st, not ours.  Drop what is clean, take the new size,
 *	begin to merge what is dirty; fill from data (pages from `page` on), which is of that version.
 * ag_step_change: a change that is known whole: the version goes from dv_before to st.dv (have_st),
 *	and/or the size changes (size; exact: also if that takes back what was extended here),
 *	range[] gets data (bytes), is dropped (drop) or becomes zero (punch), [page, end) goes (evict).
 * ag_step_evict: [page, end) goes, and what the server has there nobody knows.
 * ag_step_strip: no promise holds any more: no program may have the file in its page tables.
 * ag_step_drop: give up to `size` clean pages back to the kernel, from `page` on.
 */
void ag_step_revalidate(struct ag_task *t);
void ag_step_change(struct ag_task *t);
void ag_step_evict(struct ag_task *t);
void ag_step_strip(struct ag_task *t);
void ag_step_drop(struct ag_task *t);

/*
 * Soon: pages of [page, end) (end 0: all) marked REJECTED go; what was extended here and is not dirty
 * goes, too.  Until then wb_inflight is raised: who is told of the error by a flush must not see the
 * pages any more.
 */
void ag_excise(struct ag_vnode *vn, uint64_t page, uint64_t end);

/* A page that is to be zero from `from` to `to`, whatever its state. */
void ag_page_zero(struct ag_vnode *vn, uint64_t page, uint32_t from, uint32_t to);

/* The server's bytes [0, len) of a page, for one that is cached: stored in place, or merged. */
void ag_page_theirs(struct ag_vnode *vn, uint64_t page, const void *bytes, uint32_t len);
/* What the agent before was merging when it died. */
void ag_merge_adopt(struct ag_vnode *vn);

/*
 * Pages that go, with their words WRITEBACK meanwhile: clean ones of [first, end), at most max of them
 * (pages with SYNC are never punched), as runs of t; one page, whatever state it is in (true if it
 * could be taken; ag_task_punch it).  After ag_task_work the words of all runs are EMPTY, and who
 * waits for one is woken, by ag_all_gone.
 */
void ag_take_clean(struct ag_task *t, uint64_t first, uint64_t end, uint64_t max);
bool ag_take_any(struct ag_task *t, uint64_t page);
void ag_all_gone(struct ag_task *t);

/* Whether a change can be made without a task that waits: bytes only, same size. */
bool ag_change_in_place(const struct ag_task *t);

#endif
