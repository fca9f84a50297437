/* SPDX-License-Identifier: MIT */
/*
 * srv.h - refault-server's one context, and what its parts ask of each other.
 *
 * Parts: srv.c start, loop, stop · conn.c connections and frames · client.c who is who, leases,
 * remembered requests · ident.c whose rights · key.c the directory of keys · promise.c promises,
 * breaks, waiting for acknowledgements · file.c files and DataVersions · op.c requests · state.c what
 * survives the server.
 *
 * Locks: none.  All state belongs to the loop thread.  Pool threads see one struct srv_op and call
 * the engine; nothing else.
 */
#ifndef SRV_SRV_H
#define SRV_SRV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/tree.h>
#include <uv.h>

#include <refault/store.h>
#include <refault/transport.h>
#include <refault/wire.h>

#include "key.h"

#define SRV_MAX_VOLUMES 64

#define SRV_LEASE_MAX 3600u /* seconds */
#define SRV_LEASE_MAX_MS (SRV_LEASE_MAX * 1000)

struct srv_conn;
struct srv_client;
struct srv_file;
struct srv_op;

struct srv_volume {
	struct srv *srv;
	const char *name, *where;
	const struct store_ops *ops;
	struct store_vol *vol;
	uv_poll_t watch;
	int watch_fd;     /* -errno: changes by others are found by polling only */
	bool mark_failed; /* said once */
};

struct srv_config {
	struct {
		const char *name, *where;
	} export[SRV_MAX_VOLUMES];
	unsigned nexports;
	const struct store_ops *ops; /* NULL: store_dir */
	const char *listen;
	const char *keys; /* NULL: none */
	uint32_t lease_ms;
	unsigned max_files; /* files held open; 0: as many as the limit of descriptors allows */
	bool verbose;
};

TAILQ_HEAD(srv_conns, srv_conn);
TAILQ_HEAD(srv_clients, srv_client);
TAILQ_HEAD(srv_ops, srv_op);
RB_HEAD(srv_files, srv_file);
TAILQ_HEAD(srv_lru, srv_file);

struct srv {
	uv_loop_t loop;
	const struct rf_transport *transport;
	const char *rest;
	int lfd, spare_fd; /* spare: closed to accept and refuse when descriptors run out */
	uv_poll_t accept;
	uv_signal_t sigterm, sigint, sighup;
	uv_timer_t lease; /* the next lease that somebody waits for */
	uv_timer_t hold;  /* while nheld connections have something to send that can wait */
	unsigned nheld;
	uv_timer_t tick; /* housekeeping, while there is anything to keep */
	struct srv_volume vol[SRV_MAX_VOLUMES];
	unsigned nvols;
	uint64_t instance;
	uint32_t lease_ms;
	bool verbose, stopping;

	struct srv_keys keys;

	struct srv_conns conns;
	struct srv_conns ready; /* have something to send, or may be read again */
	struct srv_clients clients;
	struct srv_files files;
	struct srv_lru lru; /* files that are held open, least recently used first */
	unsigned nconns, nopen, max_files;
	unsigned nghosts; /* clients of before a restart that have not come back */
	struct srv_state *state;
	struct srv_ops undo_wait; /* changes that wait for an undo record */
	struct srv_file *scan;    /* where housekeeping goes on */
};

/* Serve until SIGTERM or SIGINT; 0 or an exit status, with one line on stderr. */
int srv_run(const struct srv_config *config);
/* Milliseconds of CLOCK_MONOTONIC: stands still in suspend, so that the server waits rather longer.
 */
uint64_t srv_now(void);
void srv_tick_start(struct srv *srv);
/* Zeroed; the server ends rather than forget a promise for want of memory. */
void *srv_alloc(size_t n);
/* One line on stderr. */
void srv_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
