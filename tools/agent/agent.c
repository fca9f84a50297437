/* SPDX-License-Identifier: MIT */
/*
 * agent.c - the agent proper: context, loop, timers, start, end, and going on after a crash.
 *
 * The loop sleeps in epoll.  Every callback ends in ag_settle, which looks at what was kicked until
 * nothing is left: lost servers, opens, vnodes.  Timers run only when there is something for them:
 *
 *	fast	1 ms: waits for slots, strips, pins and the death of programs
 *	tick	dirty_expire: files that programs dirtied are written back
 *	pool	50 ms, while twins are taken or freed: are they getting short?
 *	second	housekeeping: programs that hung up, memory, leaving when idle
 *
 * After a crash (life > 1) everything is found in the supervisor's table: changes in flight are sent
 * again as they were (journal.c), what was half dropped is dropped, what was half merged is merged,
 * mapped files are stripped before any HELLO, and programs send their requests again.
 *
 * Leaving.  When no program is attached and nothing is dirty for conf->idle, or on "stop" and
 * SIGTERM.  The starters' lock is held meanwhile, so that nobody starts another agent while this
 * one still has its socket; who connected at the last moment is served after all.
 *
 * Counters: drop (change.c).
 * Locks: RUNTIME/lock while leaving.
 */
#include "ag.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <refault/uffd.h>

#include "change.h"
#include "flush.h"
#include "journal.h"
#include "key.h"
#include "peer.h"
#include "proc.h"
#include "req.h"
#include "server.h"
#include "structural.h"
#include "super.h"
#include "task.h"
#include "vnode.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define TWINS_MIN 4096u /* unless told otherwise */
#define TWINS_MAX (1u << 18)
#define TWINS_LEAST 256u
#define TWINS_MOST (uint32_t)(RF_W_TWIN_MASK >> RF_W_TWIN_SHIFT)
#define POOL_LOOK 50u      /* ms */
#define POOL_SAMPLE 65536u /* twins looked at to see how full the pool is */
#define TERM_WAIT (10 * AG_SEC)
#define SUSPECT_FAST (200 * AG_MS)
#define DROP_BATCH 4096u /* pages */
#define OWNER_AGENT UINT32_MAX

bool ag_verbose;
const unsigned char ag_zeros[4096];

/* ---- util.h ---- */

void ag_log(const char *fmt, ...)
{
	char buf[1024];
	struct timespec t;
	struct tm tm;
	va_list ap;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &t);
	localtime_r(&t.tv_sec, &tm);
	n = strftime(buf, sizeof(buf), "%F %T", &tm);
	n += (size_t)snprintf(buf + n, sizeof(buf) - n,
			      ".%03d refault-agent[%d]: ", (int)(t.tv_nsec / 1000000),
			      (int)getpid());
	va_start(ap, fmt);
	n += (size_t)ag_max(0, (uint64_t)vsnprintf(buf + n, sizeof(buf) - n - 1, fmt, ap));
	va_end(ap);
	if (n > sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n++] = '\n';
	if (write(STDERR_FILENO, buf, n) < 0)
		return; /* there is nobody else to tell */
}

static void *must(void *p)
{
	if (!p) {
		ag_log("out of memory");
		abort();
	}
	return p;
}

void *ag_alloc(size_t n)
{
	return must(calloc(1, n));
}

void *ag_realloc(void *p, size_t n)
{
	return must(realloc(p, n));
}

void *ag_memdup(const void *p, size_t n)
{
	void *q = must(malloc(n ? n : 1));

	if (n)
		memcpy(q, p, n);
	return q;
}

/* ---- the loop ---- */

void ag_settle(struct ag *ag)
{
	struct ag_server *srv;
	struct ag_vnode *vn;

	if (ag->running)
		return;
	ag->running = true;
	do {
		ag->again = false;
		ag_for_each (srv, &ag->servers, link)
			if (srv->broken)
				ag_server_lost(srv);
		ag_opens_serve(ag);
		ag_shorts_serve(ag);
		while ((vn = ag_first(&ag->kicked, struct ag_vnode, kick))) {
			ag_list_del(&vn->kick);
			ag_vn_look(vn);
		}
	} while (ag->again);
	ag->running = false;
}

static void on_fast(uv_timer_t *h)
{
	struct ag *ag = ag_of(h, struct ag, fast);
	uint64_t now = ag_now();
	bool suspects = false;
	struct ag_vnode *vn;
	struct ag_task *t;
	struct ag_proc *p;
	struct ag_op *op;

	ag->fast_on = false; /* whoever starts it from here on is not forgotten at the end */
	ag_procs_check(ag);
	while ((vn = ag_first(&ag->soon, struct ag_vnode, soon))) {
		ag_list_del(&vn->soon);
		ag_vn_kick(vn);
	}
	ag_for_each (p, &ag->procs, link)
		suspects |= p->suspect && now - p->suspect_at < SUSPECT_FAST;
	ag_for_each (t, &ag->slow, slow)
		ag_task_slow(t, now);
	ag_for_each (op, &ag->slow_ops, slow)
		ag_flush_slow(op, now);
	ag_structurals_slow(ag, now);
	ag->fast_on |= ag_servers_slow(ag, now);
	ag_settle(ag);
	ag->fast_on |= suspects || !ag_list_empty(&ag->soon) || !ag_list_empty(&ag->slow) ||
		       !ag_list_empty(&ag->slow_ops) || !ag_list_empty(&ag->slow_changes);
	if (!ag->fast_on)
		uv_timer_stop(&ag->fast);
}

void ag_fast_start(struct ag *ag)
{
	if (ag->fast_on)
		return;
	ag->fast_on = true;
	uv_timer_start(&ag->fast, on_fast, 1, 1);
}

/* Before programs have to wait for twins.  Stops when nothing changes. */
static void on_pool(uv_timer_t *h)
{
	struct ag *ag = ag_of(h, struct ag, pool);
	const uint32_t used = ag_twins_used(ag, ag->ntwins / POOL_SAMPLE + 1);

	if (used > ag->ntwins / 2)
		ag_flush_for_twins(ag);
	if (used == ag->pool_used)
		uv_timer_stop(&ag->pool);
	ag->pool_used = used;
	ag_settle(ag);
}

static void on_tick(uv_timer_t *h)
{
	struct ag *ag = ag_of(h, struct ag, tick);

	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		struct ag_vnode *vn = ag->vnode[id];

		if (vn && (atomic_load(&vn->st->dirtied) || vn->size > vn->ssize))
			ag_vn_flush_behind(vn);
		if (vn && vn->wind)
			ag_excise(vn, 0, 0);
	}
	ag_settle(ag);
	ag_timers(ag);
}

static bool unclean(struct ag *ag)
{
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id] && ag_vn_unclean(ag->vnode[id]))
			return true;
	return false;
}

/* ---- memory ---- */

/* Our own page table entries and buffers: they would count as ours although they are only used
 * once. */
static void trim_mappings(struct ag *ag)
{
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		struct ag_vnode *vn = ag->vnode[id];

		if (!vn || !vn->touched)
			continue;
		vn->touched = false;
		madvise(vn->map, vn->cap << RF_PAGE_SHIFT, MADV_DONTNEED);
	}
}

/* Give the pages of free twins back, taking each meanwhile so that no program does. */
static void trim_twins(struct ag *ag)
{
	const uint32_t high = ag->twin_high;

	for (uint32_t i = 1; i < high; i++) {
		uint32_t n = 0;

		while (i + n < high) {
			uint32_t none = 0;

			if (!atomic_compare_exchange_strong(&ag->twins->owner[i + n], &none,
							    OWNER_AGENT))
				break;
			n++;
		}
		if (!n)
			continue;
		fallocate(ag->twins_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(rf_twins_pages_off(ag->ntwins) + ((uint64_t)i << RF_PAGE_SHIFT)),
			  (off_t)((uint64_t)n << RF_PAGE_SHIFT));
		for (uint32_t k = 0; k < n; k++)
			atomic_store(&ag->twins->owner[i + k], 0);
		i += n;
	}
	ag->twin_high = 0;
}

static void drop_done(struct ag_task *t)
{
	t->vn->ag->dropping = false;
	ag_memory(t->vn->ag);
}

static bool droppable(const struct ag_vnode *vn)
{
	return vn->ncached && !ag_vn_busy(vn) && ag_now() >= vn->no_drop;
}

/* Files that nobody holds first, then what nobody maps, then round all others. */
static struct ag_vnode *victim(struct ag *ag)
{
	struct ag_vnode *vn;

	ag_for_each (vn, &ag->unused, by_use)
		if (droppable(vn))
			return vn;
	for (uint32_t k = 0; k < 2 * ag->vnode_high; k++) {
		ag->drop_hand = ag->drop_hand % ag->vnode_high + 1;
		vn = ag->vnode[ag->drop_hand];
		if (vn && droppable(vn) && (k >= ag->vnode_high || !ag_vn_mapped(vn)))
			return vn;
	}
	return NULL;
}

void ag_memory(struct ag *ag)
{
	struct ag_vnode *vn;
	struct ag_task *t;

	if (ag->cached <= ag->budget || ag->dropping)
		return;
	vn = victim(ag);
	if (!vn)
		return;
	ag->dropping = true;
	t = ag_task_new(vn, ag_step_drop);
	t->page = vn->drop_at;
	t->size = ag_min(ag->cached - ag->budget + ag->budget / 16, DROP_BATCH);
	t->done = drop_done;
	ag_task_post(t);
}

/* ---- housekeeping ---- */

static void mass_break_all(struct ag *ag)
{
	struct ag_server *srv;

	ag_for_each (srv, &ag->servers, link)
		ag_server_mass_break(srv, false);
}

/* Promises are kept by a clock that stands still while the machine sleeps. */
static void look_for_suspend(struct ag *ag)
{
	int64_t d = (int64_t)(ag_clock(CLOCK_BOOTTIME) - ag_now());

	if (d - ag->asleep > (int64_t)(100 * AG_MS)) {
		ag_log("the machine slept; all promises are void");
		mass_break_all(ag);
	}
	ag->asleep = d;
}

static int path_of(const struct ag_conf *conf, const char *name, char *buf, size_t len)
{
	int n = snprintf(buf, len, "%s/%s", conf->dir, name);

	return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

int ag_listen_make(const struct ag_conf *conf)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd, r = path_of(conf, "agent.sock", sa.sun_path, sizeof(sa.sun_path));

	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (unlink(sa.sun_path) && errno != ENOENT)
		goto fail;
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, 1024))
		goto fail;
	return fd;
fail:
	r = -errno;
	close(fd);
	return r;
}

/* Nobody waits at the door, and nobody can come to it any more.  False: somebody was there. */
static bool door_close(struct ag *ag)
{
	char lock[PATH_MAX], sock[PATH_MAX];
	bool closed = false;
	int fd;

	if (path_of(ag->conf, "lock", lock, sizeof(lock)) ||
	    path_of(ag->conf, "agent.sock", sock, sizeof(sock)))
		return true;
	fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB)) {
		close(fd);
		return false; /* somebody is about to connect */
	}
	ag_peer_accept(ag, 0);
	if (ag_list_empty(&ag->peers)) {
		unlink(sock);
		ag_peer_accept(ag, 0); /* who came in between */
		closed = ag_list_empty(&ag->peers);
	}
	if (!closed && access(sock, F_OK)) {
		int l = ag_listen_make(ag->conf);

		if (l >= 0) {
			ag_io_del(ag->listen_io);
			close(ag->listen);
			ag->listen = l;
			ag->listen_io = ag_io_add(ag, l, UV_READABLE, ag_peer_accept, ag);
			ag_keep_put(ag->keep, AG_KEEP_LISTEN, 0, &l, 1, NULL, 0);
		}
	}
	if (fd >= 0)
		close(fd);
	return closed;
}

static void leave(struct ag *ag, const char *why)
{
	if (!door_close(ag))
		return;
	ag_log("leaving: %s", why);
	/* Its promises are given back: nobody waits for our lease to end. */
	ag_vn_trim(ag, true);
	uv_stop(&ag->loop);
}

static void consider_leaving(struct ag *ag)
{
	uint64_t now = ag_now();

	if (ag->term_at) {
		if (!unclean(ag))
			leave(ag, "told to");
		else if (now - ag->term_at > TERM_WAIT) {
			ag_log("told to leave, but not everything could be written back");
			leave(ag, "told to");
		}
		return;
	}
	if (ag->nprocs || !ag_list_empty(&ag->peers) || !ag_list_empty(&ag->opens) || unclean(ag)) {
		ag->busy_at = now;
		return;
	}
	if (ag->stopping)
		leave(ag, "told to stop");
	else if (now - ag->busy_at >= ag->conf->idle_ns)
		leave(ag, "idle");
}

static void on_second(uv_timer_t *h)
{
	struct ag *ag = ag_of(h, struct ag, second);
	uint64_t idle = ag_now() - ag->busy_at;

	ag_procs_check(ag);
	ag_peers_check(ag);
	look_for_suspend(ag);
	if (ag->nprocs)
		ag->busy_at = ag_now();
	if (!uv_is_active((uv_handle_t *)&ag->pool) && unclean(ag))
		uv_timer_start(&ag->pool, on_pool, 0, POOL_LOOK);
	trim_mappings(ag);
	if (ag->twin_high > 64 && !unclean(ag))
		trim_twins(ag);
	ag_journal_check(ag);
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id] && ag->vnode[id]->frozen)
			ag_ops_overdue(ag->vnode[id]);
	ag_vn_trim(ag, false);
	ag_memory(ag);
	if (!ag->nprocs && idle < 3 * AG_SEC)
		malloc_trim(0);
	ag_settle(ag);
	consider_leaving(ag);
	ag_timers(ag);
}

void ag_timers(struct ag *ag)
{
	uint64_t tick = ag->conf->dirty_ns / AG_MS, wait = 1000, now = ag_now();
	bool busy = ag->nprocs || unclean(ag);

	if (busy && !uv_is_active((uv_handle_t *)&ag->tick))
		uv_timer_start(&ag->tick, on_tick, tick, tick);
	else if (!busy)
		uv_timer_stop(&ag->tick);
	if (ag->stopping || ag->term_at) {
		wait = 10;
	} else if (!busy && now - ag->busy_at > 3 * AG_SEC) {
		/* Nothing to do but to leave one day: one more look then. */
		wait = ag->busy_at + ag->conf->idle_ns > now
			   ? (ag->busy_at + ag->conf->idle_ns - now) / AG_MS + 1
			   : 1000;
	}
	if (!uv_is_active((uv_handle_t *)&ag->second) || uv_timer_get_due_in(&ag->second) > wait)
		uv_timer_start(&ag->second, on_second, wait, 0);
}

static void on_signal(uv_signal_t *h, int sig)
{
	struct ag *ag = h->data;

	if (ag->term_at)
		return;
	ag_log("signal %d: writing back, then leaving", sig);
	ag->term_at = ag_now();
	ag_flush_all_behind(ag);
	ag_settle(ag);
	ag_timers(ag);
}

/* ---- start ---- */

int ag_uffd_open(void)
{
	const uint64_t want = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM;
	struct uffdio_api api;
	int fd, dev, err = ENOSYS;

	for (int way = 0; way < 3; way++) {
		switch (way) {
		case 0:
			dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
			fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
			if (dev >= 0)
				close(dev);
			break;
		case 1:
			fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
			break;
		default:
			fd = (int)syscall(SYS_userfaultfd,
					  O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
			break;
		}
		if (fd < 0) {
			err = errno;
			continue;
		}
		memset(&api, 0, sizeof(api));
		api.api = UFFD_API;
		api.features = want;
		if (!ioctl(fd, UFFDIO_API, &api))
			return fd;
		err = errno;
		close(fd);
	}
	return -err;
}

/*
 * A short slice: woken, we run soon, and do little; what others wait for is latency.  Kernels
 * before 6.12 ignore it.
 */
static void short_slice(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr = {.size = sizeof(attr), .runtime = 100 * AG_US};

	attr.nice = (int32_t)getpriority(PRIO_PROCESS, 0);
	syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* Shared by all programs: host page and twins; made by the first agent. */
/* Each dirty page has one; they are what limits dirty pages.  Number 0 is not handed out. */
static uint32_t twins_wanted(const struct ag *ag)
{
	const uint64_t told = ag->conf->dirty_bytes >> RF_PAGE_SHIFT;

	if (ag->conf->dirty_bytes)
		return (uint32_t)ag_min(ag_max(told, TWINS_LEAST), TWINS_MOST) + 1;
	return (uint32_t)ag_min(ag_max(ag->budget / 8, TWINS_MIN), TWINS_MAX);
}

static int host_make(struct ag *ag)
{
	struct ag_keep_host meta;
	void *map;
	uint32_t n;
	int r;

	ag->host_fd =
	    ag_shared("refault-host", sizeof(struct rf_host), F_SEAL_SHRINK | F_SEAL_GROW, &map);
	if (ag->host_fd < 0)
		return ag->host_fd;
	ag->host = map;
	if (getrandom(&ag->boot, sizeof(ag->boot), 0) < 0 ||
	    getrandom(ag->client, sizeof(ag->client), 0) < 0)
		return -errno;
	ag->host->version = RF_STATE_VERSION;
	ag->host->boot = ag->boot;
	ag->host->magic = RF_MAGIC_HOST;

	n = twins_wanted(ag);
	ag->twins_size = rf_twins_size(n);
	ag->twins_fd =
	    ag_shared("refault-twins", ag->twins_size, F_SEAL_SHRINK | F_SEAL_GROW, &map);
	if (ag->twins_fd < 0)
		return ag->twins_fd;
	ag->twins = map;
	ag->twins->version = RF_STATE_VERSION;
	ag->twins->n = ag->ntwins = n;
	atomic_store(&ag->twins->owner[0], OWNER_AGENT); /* see pages.h */
	ag->twins->magic = RF_MAGIC_TWINS;
	r = ag_journal_make(ag);
	if (r)
		return r;
	memcpy(meta.client, ag->client, sizeof(meta.client));
	return ag_keep_put(ag->keep, AG_KEEP_HOST, 0,
			   (int[]){ag->host_fd, ag->twins_fd, ag->journal_fd}, 3, &meta,
			   sizeof(meta));
}

static int host_adopt(struct ag *ag, const struct ag_keep *k)
{
	const struct ag_keep_host *meta = (const void *)k->meta;
	struct stat st;

	if (k->nfd != 3 || k->len != sizeof(*meta) || fstat(k->fd[1], &st))
		return -EPROTO;
	ag->host_fd = k->fd[0];
	ag->twins_fd = k->fd[1];
	ag->twins_size = (uint64_t)st.st_size;
	ag->host =
	    mmap(NULL, sizeof(*ag->host), PROT_READ | PROT_WRITE, MAP_SHARED, ag->host_fd, 0);
	ag->twins = mmap(NULL, ag->twins_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			 ag->twins_fd, 0);
	if (ag->host == MAP_FAILED || ag->twins == MAP_FAILED)
		return -ENOMEM;
	/* A program may have scribbled on it; the size is ours. */
	ag->ntwins = rf_twins_count(ag->twins_size);
	if (!ag->ntwins)
		return -EPROTO;
	ag->twins->magic = RF_MAGIC_TWINS;
	ag->twins->version = RF_STATE_VERSION;
	ag->twins->n = ag->ntwins;
	ag->boot = ag->host->boot;
	memcpy(ag->client, meta->client, sizeof(ag->client));
	return ag_journal_adopt(ag, k->fd[2]);
}

static int each(struct ag *ag, struct ag_keeptab *tab, enum ag_keep_kind kind,
		int (*fn)(struct ag *, const struct ag_keep *))
{
	struct ag_keep *k;
	int r;

	for (unsigned i = 0; i < AG_KEEP_CHAINS; i++)
		ag_for_each (k, &tab->chain[i], link) {
			if (k->kind != kind)
				continue;
			r = fn(ag, k);
			if (r)
				ag_log("after the crash: %s %llu cannot be taken over: %s",
				       kind == AG_KEEP_PROC  ? "program"
				       : kind == AG_KEEP_KEY ? "key"
							     : "file",
				       (unsigned long long)k->id, strerror(-r));
		}
	return 0;
}

static int use_adopt(struct ag *ag, const struct ag_keep *k)
{
	const struct ag_keep_use *meta = (const void *)k->meta;
	struct ag_vnode *vn = ag_vn_get(ag, (uint32_t)k->id);
	struct ag_proc *p;

	if (k->len != sizeof(*meta))
		return -EPROTO;
	ag_for_each (p, &ag->procs, link)
		if (vn && p->id == (uint32_t)(k->id >> 32)) {
			ag_vn_use(vn, p, meta->opens, meta->keys);
			break;
		}
	return 0;
}

/* The status table says by itself which entry is whose. */
static void stat_adopt(struct ag *ag)
{
	for (uint32_t i = 0; i < RF_STAT_BUCKETS; i++) {
		struct rf_stat_entry *e = &ag->host->stat[i];
		uint32_t v = atomic_load(&e->vnode);
		struct ag_vnode *vn;

		if (!v || v == RF_STAT_TOMB)
			continue;
		if (atomic_load(&e->seq) & 1) /* it died while writing */
			atomic_fetch_add(&e->seq, 1);
		vn = ag_vn_get(ag, v);
		if (vn)
			ag_vn_stat_add(vn, atomic_load(&e->dev), atomic_load(&e->ino));
		else
			ag_stat_drop(ag->host, i, v);
	}
	madvise(ag->host, sizeof(*ag->host), MADV_DONTNEED);
}

static void go_on(struct ag *ag, struct ag_keeptab *tab)
{
	struct ag_server *srv;
	struct ag_proc *p;

	each(ag, tab, AG_KEEP_KEY, ag_key_adopt);
	each(ag, tab, AG_KEEP_VNODE, ag_vn_adopt);
	each(ag, tab, AG_KEEP_PROC, ag_proc_adopt);
	each(ag, tab, AG_KEEP_USE, use_adopt);
	stat_adopt(ag);
	ag_slots_forget(ag);
	ag_procs_check(ag);
	/* No promise holds; nothing stays mapped before the servers hear of us. */
	ag_for_each (srv, &ag->servers, link) {
		srv->ever = true;
		ag_server_mass_break(srv, true);
	}
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		struct ag_vnode *vn = ag->vnode[id];

		if (vn)
			ag_vn_kick(vn);
	}
	ag_log("going on after a crash: %u programs, %u files", ag->nprocs, ag->nvnodes);
	ag_settle(ag);
	ag_for_each (p, &ag->procs, link)
		ag_proc_resend(p);
}

/* The supervisor is gone: nothing outlives us from now on, but until then all goes on. */
static void on_keep(void *arg, int events)
{
	struct ag *ag = arg;

	(void)events;
	ag_log("the supervisor is gone; going on without one");
	ag_io_del(ag->keep_io);
	ag->keep_io = NULL;
	close(ag->keep);
	ag->keep = -1;
}

static void lists_init(struct ag *ag)
{
	ag_list_init(&ag->procs);
	ag_list_init(&ag->peers);
	ag_list_init(&ag->servers);
	ag_list_init(&ag->unused);
	ag_list_init(&ag->kicked);
	ag_list_init(&ag->slow);
	ag_list_init(&ag->slow_ops);
	ag_list_init(&ag->slow_changes);
	ag_list_init(&ag->opens);
	ag_list_init(&ag->shorts);
	ag_list_init(&ag->starved);
	ag_list_init(&ag->soon);
	for (unsigned i = 0; i < AG_FID_CHAINS; i++)
		ag_list_init(&ag->fid[i]);
}

static int loop_init(struct ag *ag)
{
	int r = uv_loop_init(&ag->loop);

	if (r)
		return r;
	uv_timer_init(&ag->loop, &ag->fast);
	uv_timer_init(&ag->loop, &ag->tick);
	uv_timer_init(&ag->loop, &ag->second);
	uv_timer_init(&ag->loop, &ag->patience);
	uv_timer_init(&ag->loop, &ag->pool);
	uv_signal_init(&ag->loop, &ag->term);
	uv_signal_init(&ag->loop, &ag->intr);
	ag->term.data = ag->intr.data = ag;
	uv_signal_start(&ag->term, on_signal, SIGTERM);
	uv_signal_start(&ag->intr, on_signal, SIGINT);
	ag->listen_io = ag_io_add(ag, ag->listen, UV_READABLE, ag_peer_accept, ag);
	ag->keep_io = ag_io_add(ag, ag->keep, UV_READABLE, on_keep, ag);
	return ag->listen_io && ag->keep_io ? 0 : -ENOMEM;
}

int ag_run(struct ag_start *start)
{
	struct ag_keep *host = ag_keep_find(start->tab, AG_KEEP_HOST, 0);
	struct ag_keep *listen = ag_keep_find(start->tab, AG_KEEP_LISTEN, 0);
	struct ag *ag = ag_alloc(sizeof(*ag));
	struct rlimit rl;
	const char *what;
	char link[64];
	int r;

	prctl(PR_SET_NAME, "refault-agent");
	/* One arena, and large buffers go back at once: an idle agent is small. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 512 * 1024);
	setenv("UV_THREADPOOL_SIZE", "2", 1);
	signal(SIGPIPE, SIG_IGN);
	short_slice();
	ag->conf = start->conf;
	ag->keep = start->keep;
	ag->life = start->life;
	ag->walk = (uint64_t)ag->life << 40;
	ag->listen = listen ? listen->fd[0] : -1;
	ag->budget = ag->conf->cache_bytes >> RF_PAGE_SHIFT;
	if (getrlimit(RLIMIT_NOFILE, &rl))
		rl.rlim_cur = 1024;
	ag->unused_max = (uint32_t)ag_min(AG_UNUSED_MAX, rl.rlim_cur / 8);
	ag->started = ag->busy_at = ag_now();
	ag->asleep = (int64_t)(ag_clock(CLOCK_BOOTTIME) - ag_now());
	ag->vnode = ag_alloc(RF_MAX_VNODES * sizeof(void *));
	ag->packet = ag_alloc(RF_REQ_MAX);
	lists_init(ag);

	what = "signal handler";
	r = ag_guard_install();
	if (r)
		goto fail;
	what = "userfaultfd";
	ag->uffd = r = ag_uffd_open();
	if (r < 0)
		goto fail;
	what = "shared memory";
	r = host ? host_adopt(ag, host) : host_make(ag);
	if (r)
		goto fail;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", ag->host_fd);
	ag->host_ro = open(link, O_RDONLY | O_CLOEXEC);
	r = ag->host_ro < 0 ? -errno : 0;
	if (r)
		goto fail;
	what = "event loop";
	r = loop_init(ag);
	if (r)
		goto fail;
	if (ag->life > 1)
		go_on(ag, start->tab);
	else
		ag_log("serving %s, cache %llu MiB", ag->conf->dir,
		       (unsigned long long)(ag->conf->cache_bytes >> 20));
	ag_timers(ag);
	uv_run(&ag->loop, UV_RUN_DEFAULT);
	return 0;
fail:
	ag_log("%s: %s", what, strerror(-r));
	return 1;
}
