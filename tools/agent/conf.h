/* SPDX-License-Identifier: MIT */
/*
 * conf.h - what refault-agent is told: options, environment, runtime directory.
 */
#ifndef AGENT_CONF_H
#define AGENT_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ag_conf {
	bool daemon, verbose, help, version;
	uint64_t idle_ns;
	uint64_t dirty_ns;
	uint64_t timeout_ns; /* how long programs wait for a server, REFAULT_TIMEOUT */
	uint64_t cache_bytes;
	uint64_t dirty_bytes; /* of dirty pages; 0: an eighth of cache_bytes, within reason */
	bool no_journal;      /* REFAULT_DISABLE=journal */
	bool no_excise;       /* REFAULT_DISABLE=excise */
	bool no_freeze;       /* REFAULT_DISABLE=freeze */
	char dir[96];         /* RUNTIME: room for a socket's name behind it in sun_path */
};

/*
 * Options into conf.  Returns 0, or -EINVAL with one line in err that says what is wrong.
 */
int ag_conf_parse(struct ag_conf *conf, int argc, char **argv, char *err, size_t errlen);

/* "64M", "1G", "4096": bytes.  -EINVAL if it is no such number. */
int ag_conf_bytes(const char *s, uint64_t *bytes);

/* Half of the memory that this process may use. */
uint64_t ag_conf_cache_default(void);

/*
 * RUNTIME (agent.h) into conf->dir; made if it is not there.  Returns 0 or -errno with one line in
 * err.
 */
int ag_conf_runtime(struct ag_conf *conf, char *err, size_t errlen);

/* Keep of the environment only what the agent may need.  LD_PRELOAD in particular goes. */
void ag_conf_clean_env(void);

#endif
