/* SPDX-License-Identifier: MIT */
/*
 * super.h - the supervisor: parent of the agent, keeper of its descriptors.
 */
#ifndef AGENT_SUPER_H
#define AGENT_SUPER_H

#include "conf.h"
#include "keep.h"

/* What an agent begins with. */
struct ag_start {
	const struct ag_conf *conf;
	struct ag_keeptab *tab; /* of before a crash, or as the supervisor made it */
	int keep;               /* to the supervisor */
	unsigned life;          /* 1, 2 ... : how many agents there were */
};

/*
 * Run agents until one leaves in peace; never leaves before.  run() is called in the child.
 * Returns the exit status.
 */
int ag_supervise(const struct ag_conf *conf, struct ag_keeptab *tab, int (*run)(struct ag_start *));

#endif
