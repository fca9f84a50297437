/* SPDX-License-Identifier: MIT */
/*
 * srv.c - start, loop, housekeeping, stop.
 *
 * Housekeeping, once a second while there are clients or open files: look at files under promise,
 * whose changes through somebody's mmap nobody reports; forget clients that are long gone.
 *
 * Locks: none.  Signals arrive through the loop.
 */
#include "srv.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "file.h"
#include "state.h"

#define TICK_MS 1000u
#define SCAN 2000u /* files a tick; more of them are looked at in more, shorter ticks */
#define MAX_FILES 65536u

uint64_t srv_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void *srv_alloc(size_t n)
{
	void *p = calloc(1, n);

	if (!p) {
		srv_log("out of memory");
		abort();
	}
	return p;
}

/* ---- housekeeping ---- */

static void on_tick(uv_timer_t *timer)
{
	struct srv *srv = timer->data;
	bool more = srv_files_scan(srv, SCAN);
	uint64_t ms = TICK_MS;

	more |= srv_clients_reap(srv, false);
	more |= srv_state_tick(srv);
	if (srv->nopen > SCAN)
		ms = (uint64_t)TICK_MS * SCAN / srv->nopen;
	if (more && !srv->stopping)
		uv_timer_start(timer, on_tick, ms ? ms : 1, 0);
	srv_flush(srv);
}

void srv_tick_start(struct srv *srv)
{
	if (!srv->stopping && !uv_is_active((uv_handle_t *)&srv->tick))
		uv_timer_start(&srv->tick, on_tick, TICK_MS, 0);
}

static void on_watch(uv_poll_t *poll, int status, int events)
{
	struct srv_volume *vol = poll->data;

	(void)status;
	(void)events;
	vol->ops->watch_read(vol->vol);
	srv_flush(vol->srv);
}

/* ---- signals ---- */

static void close_handle(uv_handle_t *handle)
{
	if (handle->type != UV_UNKNOWN_HANDLE && !uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void on_stop(uv_signal_t *sig, int signum)
{
	struct srv *srv = sig->data;
	struct srv_conn *conn;
	unsigned i;

	(void)signum;
	srv->stopping = true;
	store_cred_enter(NULL);
	srv->transport->unlisten(srv->rest);
	while ((conn = TAILQ_FIRST(&srv->conns)))
		srv_conn_drop(conn);
	close_handle((uv_handle_t *)&srv->accept);
	close_handle((uv_handle_t *)&srv->lease);
	close_handle((uv_handle_t *)&srv->tick);
	close_handle((uv_handle_t *)&srv->hold);
	/* A second signal, while a disk hangs, ends the process. */
	close_handle((uv_handle_t *)&srv->sigterm);
	close_handle((uv_handle_t *)&srv->sigint);
	close_handle((uv_handle_t *)&srv->sighup);
	for (i = 0; i < srv->nvols; i++)
		if (srv->vol[i].watch_fd >= 0)
			close_handle((uv_handle_t *)&srv->vol[i].watch);
}

static void on_hup(uv_signal_t *sig, int signum)
{
	struct srv *srv = sig->data;

	(void)signum;
	if (srv->keys.dir)
		srv_keys_load(&srv->keys);
	srv_log("SIGHUP: %sall promises are forgotten",
		srv->keys.dir ? "keys are read anew, " : "");
	srv_forget_all(srv);
	srv_flush(srv);
}

/* ---- start ---- */

static unsigned raise_limits(void)
{
	struct rlimit rl;
	unsigned files;

	/* A store that is too large for a limit of ours must fail, not kill. */
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &rl))
		return 256;
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	files = rl.rlim_cur / 2 > MAX_FILES ? MAX_FILES : (unsigned)rl.rlim_cur / 2;
	return files < 16 ? 16 : files;
}

static int open_volume(struct srv *srv, const struct store_ops *ops, const char *name,
		       const char *where)
{
	struct srv_volume *vol = &srv->vol[srv->nvols];
	const char *why;
	int err;

	vol->srv = srv;
	vol->name = name;
	vol->where = where;
	vol->ops = ops ? ops : &store_dir;
	err = vol->ops->open(where, &vol->vol, &why);
	if (err) {
		srv_log("--export %s=%s: %s (%s)", name, where, why, strerror(-err));
		return err;
	}
	srv->nvols++;
	vol->watch_fd = vol->ops->watch(vol->vol, srv_file_changed, vol);
	if (vol->watch_fd < 0) {
		srv_log("%s: changes by others are seen by looking once a second only: %s", where,
			strerror(-vol->watch_fd));
		return 0;
	}
	uv_poll_init(&srv->loop, &vol->watch, vol->watch_fd);
	vol->watch.data = vol;
	uv_poll_start(&vol->watch, UV_READABLE, on_watch);
	return 0;
}

static int start_listening(struct srv *srv, const char *addr)
{
	const char *why;

	srv->lfd = srv->transport->listen(srv->rest);
	if (srv->lfd >= 0)
		return 0;
	why = srv->lfd == -EADDRINUSE ? "another server listens there; stop it or take another path"
	      : srv->lfd == -ENOTSOCK ? "something that is no socket is there; take another path"
				      : strerror(-srv->lfd);
	srv_log("--listen %s: %s", addr, why);
	return srv->lfd;
}

static void start_signal(struct srv *srv, uv_signal_t *sig, int signum, uv_signal_cb cb)
{
	uv_signal_init(&srv->loop, sig);
	sig->data = srv;
	uv_signal_start(sig, cb, signum);
}

static int start(struct srv *srv, const struct srv_config *config)
{
	unsigned i, files;
	int err;

	files = raise_limits();
	srv->max_files = config->max_files ? config->max_files : files;
	srv->lease_ms = config->lease_ms;
	srv->verbose = config->verbose;
	while (!srv->instance)
		if (getrandom(&srv->instance, sizeof(srv->instance), 0) < 0)
			srv->instance = srv_now();
	umask(0);
	srv->keys.dir = config->keys;
	if (srv->keys.dir && !srv_keys_load(&srv->keys))
		return -EINVAL;
	for (i = 0; i < config->nexports; i++) {
		err =
		    open_volume(srv, config->ops, config->export[i].name, config->export[i].where);
		if (err)
			return err;
	}
	srv->transport = rf_transport_find(config->listen, &srv->rest);
	if (!srv->transport) {
		srv_log("--listen %s: unknown kind of address; use unix:PATH", config->listen);
		return -EINVAL;
	}
	err = srv_state_open(srv, srv->rest);
	if (err)
		return err;
	srv_state_recover(srv);
	srv->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	err = start_listening(srv, config->listen);
	if (err)
		return err;
	err = store_cred_limit();
	if (err) {
		srv_log("cannot give up privileges: %s", strerror(-err));
		return err;
	}
	uv_timer_init(&srv->loop, &srv->lease);
	uv_timer_init(&srv->loop, &srv->tick);
	uv_timer_init(&srv->loop, &srv->hold);
	srv->lease.data = srv->tick.data = srv->hold.data = srv;
	start_signal(srv, &srv->sigterm, SIGTERM, on_stop);
	start_signal(srv, &srv->sigint, SIGINT, on_stop);
	start_signal(srv, &srv->sighup, SIGHUP, on_hup);
	uv_poll_init(&srv->loop, &srv->accept, srv->lfd);
	srv->accept.data = srv;
	uv_poll_start(&srv->accept, UV_READABLE, srv_accept);
	return 0;
}

int srv_run(const struct srv_config *config)
{
	struct srv *srv = srv_alloc(sizeof(*srv));
	unsigned i;
	int err;

	srv->lfd = srv->spare_fd = -1;
	TAILQ_INIT(&srv->conns);
	TAILQ_INIT(&srv->ready);
	TAILQ_INIT(&srv->clients);
	TAILQ_INIT(&srv->undo_wait);
	RB_INIT(&srv->files);
	RB_INIT(&srv->keys.tree);
	TAILQ_INIT(&srv->lru);
	/* Threads that wait for disks, mostly. */
	setenv("UV_THREADPOOL_SIZE", "16", 0);
	uv_loop_init(&srv->loop);
	err = start(srv, config);
	if (!err) {
		printf("refault-server: listening on %s\n", config->listen);
		fflush(stdout);
	} else {
		if (srv->lfd >= 0)
			srv->transport->unlisten(srv->rest);
		for (i = 0; i < srv->nvols; i++)
			if (srv->vol[i].watch_fd >= 0)
				close_handle((uv_handle_t *)&srv->vol[i].watch);
	}
	uv_run(&srv->loop, UV_RUN_DEFAULT);

	srv_clients_reap(srv, true);
	srv_files_free(srv);
	srv_keys_free(&srv->keys);
	for (i = 0; i < srv->nvols; i++)
		srv->vol[i].ops->close(srv->vol[i].vol);
	srv_state_close(srv);
	if (srv->lfd >= 0)
		close(srv->lfd);
	if (srv->spare_fd >= 0)
		close(srv->spare_fd);
	uv_loop_close(&srv->loop);
	free(srv);
	return err ? 1 : 0;
}
