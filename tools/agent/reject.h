/* SPDX-License-Identifier: MIT */
/*
 * reject.h - write-back that the server refused for good.
 */
#ifndef AGENT_REJECT_H
#define AGENT_REJECT_H

#include "op.h"

/*
 * AG_REJECT_RECORD: because of who asks, or where: all that the walk finds dirty under that key
 * goes, asked or not.  AG_REJECT_PAGES: just the pages that it is about; a STORE of several is sent
 * again in halves, until that is known.
 */
enum ag_rejection { AG_REJECT_NOT, AG_REJECT_PAGES, AG_REJECT_RECORD };
enum ag_rejection ag_rejection(int err);

/*
 * The server refused op, a STORE or an extension of the file, with that error (asked), or would if
 * it were asked.  Its pages are REJECTED, everybody who has the file open is told, and a task
 * excises them.  The caller ends op.
 */
void ag_reject(struct ag_op *op, int err, const char *what, bool asked);
/* The rest of op's record: what was collected and not sent, and what the walk still finds. */
void ag_reject_record(struct ag_op *op, int err);
/* The walk is over, and so is all that it sent: say what it lost if that was not said yet. */
void ag_reject_told(struct ag_vnode *vn, uint64_t walk);

#endif
