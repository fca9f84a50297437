/* SPDX-License-Identifier: MIT */
/*
 * seek.h - SEEK_DATA and SEEK_HOLE (RF_OP_SEEK).
 */
#ifndef AGENT_SEEK_H
#define AGENT_SEEK_H

#include "req.h"

void ag_seek_serve(struct ag_req *req);

#endif
