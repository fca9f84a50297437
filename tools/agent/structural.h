/* SPDX-License-Identifier: MIT */
/*
 * structural.h - SETSIZE, FALLOC and REMAP: requests that change a file as a whole.
 */
#ifndef AGENT_STRUCTURAL_H
#define AGENT_STRUCTURAL_H

#include "req.h"

/* Arguments that can never be served: -errno. */
int ag_structural_check(struct ag *ag, struct ag_vnode *vn, const struct rf_req *q);
/* req is one of these from now on; is being freed. */
void ag_structural_new(struct ag_req *req);
void ag_structural_free(struct ag_req *req);
/* Go on with it, when something happened to one of its vnodes and its own is not busy. */
void ag_structural_serve(struct ag_req *req);
/* The fast timer: those that gave way try again. */
void ag_structurals_slow(struct ag *ag, uint64_t now);

#endif
