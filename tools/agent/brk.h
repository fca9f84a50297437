/* SPDX-License-Identifier: MIT */
/*
 * brk.h - breaks of callback promises.
 */
#ifndef AGENT_BRK_H
#define AGENT_BRK_H

#include "task.h"

struct ag_server;

/* A BREAK arrived; vn is not busy.  Makes the task that is to run next. */
void ag_brk(struct ag_vnode *vn, const rf_break *b, const void *payload, size_t len);
/* Acknowledge; nothing if the connection is another one by now. */
void ag_brk_ack(struct ag_server *srv, uint32_t conn, uint64_t id);
/* The task's break is acknowledged when the file is valid again. */
void ag_brk_ack_late(struct ag_task *t);
/* All that waited. */
void ag_brk_acks(struct ag_vnode *vn);

#endif
