/* SPDX-License-Identifier: MIT */
/*
 * proc.c - attached programs: taken in, asked, protected, found dead.
 *
 * A program's connection only carries requests; answers go to its cells.  It is dead when an ioctl
 * on its userfaultfd says ESRCH, and not before: a stopped program is alive, one that closed all
 * its descriptors is, and a fork child may hold the socket open for long after.  What hints at
 * death (the connection, the stripper's socket or the pidfd) makes it a suspect; suspects are asked
 * at once, then every millisecond for a while, then every second.
 *
 * What is read from rf_proc is the program's word: indexes are bounded, addresses are only used
 * with its own userfaultfd.
 *
 * Counters: garbage.
 * Locks: the mapping table by its sequence number.
 */
#include "proc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#include <refault/uffd.h>

#include "journal.h"
#include "req.h"
#include "task.h"
#include "vnode.h"

#define PROCS_MAX 4096u
#define IDS 65535u      /* given out in turn */
#define TURN_MASK 0x7fu /* when they are given out again, their changes have other ids */
#define TABLE_SPIN (20 * AG_US)
#define PROBE_ADDR ((uintptr_t)1 << 20) /* a page that is hardly ever mapped, and never managed */

/* ---- alive or dead ---- */

/* 0 and others: alive; -ESRCH: dead; -ENOTTY and the like: no userfaultfd. */
static int probe(int uffd)
{
	return rf_uffd_wp(uffd, PROBE_ADDR, RF_PAGE_SIZE, 1);
}

static bool owns(struct ag_proc *p, uint32_t twin)
{
	uint32_t o = atomic_load_explicit(&p->ag->twins->owner[twin], memory_order_relaxed);

	return (o & ~RF_TWIN_MARKED) == p->id;
}

/* Twins that a dead program took and that no dirty page refers to.  Most leave none. */
static void free_twins(struct ag_proc *p)
{
	struct ag *ag = p->ag;
	unsigned char *used;
	uint32_t i = 1;

	while (i < ag->ntwins && !owns(p, i))
		i++;
	if (i == ag->ntwins)
		return;
	/* Without memory they stay taken; a lack of twins only makes programs flush sooner. */
	used = calloc(1, ag->ntwins / 8 + 1);
	if (!used)
		return;
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id])
			ag_vn_twins(ag->vnode[id], used);
	for (; i < ag->ntwins; i++)
		if (owns(p, i) && !(used[i / 8] & 1u << i % 8))
			ag_twin_free(ag, i);
	free(used);
}

static void proc_free(struct ag_proc *p)
{
	struct ag *ag = p->ag;
	struct ag_use *u;

	ag_io_del(p->conn_io);
	ag_io_del(p->strip_io);
	ag_io_del(p->pid_io);
	/* Out of the list first: what follows may look at all programs. */
	ag_list_del(&p->link);
	ag->nprocs--;
	ag_task_forget_proc(p);
	ag_req_forget_proc(p);
	for (unsigned i = 0; i < RF_REASONS; i++)
		ag->gone[i] += atomic_load_explicit(&p->mem->count[i], memory_order_relaxed);
	free_twins(p);
	ag_for_each (u, &p->uses, by_proc) {
		ag_vn_flush_behind(u->vn);
		ag_vn_unuse(u);
	}
	ag_keep_del(ag->keep, AG_KEEP_PROC, p->id);
	munmap(p->mem, sizeof(*p->mem));
	if (p->conn >= 0)
		close(p->conn);
	if (p->strip >= 0)
		close(p->strip);
	close(p->mem_fd);
	close(p->uffd);
	close(p->pidfd);
	ag_debug("program %d (id %u) is gone", (int)p->pid, p->id);
	free(p);
	ag_timers(ag);
}

static bool reap(struct ag_proc *p)
{
	if (probe(p->uffd) != -ESRCH)
		return false;
	proc_free(p);
	return true;
}

bool ag_proc_dead(struct ag_proc *p)
{
	if (probe(p->uffd) != -ESRCH)
		return false;
	p->suspect = true;
	p->suspect_at = ag_now();
	ag_fast_start(p->ag);
	return true;
}

void ag_procs_check(struct ag *ag)
{
	struct ag_proc *p;

	ag_for_each (p, &ag->procs, link)
		if (p->suspect)
			reap(p);
}

static void suspect(struct ag_proc *p)
{
	struct ag *ag = p->ag;

	p->suspect = true;
	p->suspect_at = ag_now();
	if (reap(p))
		return;
	/* The kernel, or its stripper, may need a moment to let go of it. */
	ag_fast_start(ag);
	ag_timers(ag);
}

/* ---- its sockets ---- */

static void conn_close(struct ag_proc *p)
{
	ag_io_del(p->conn_io);
	p->conn_io = NULL;
	close(p->conn);
	p->conn = -1;
}

void ag_proc_garbage(struct ag_proc *p, const char *what)
{
	ag_count(p->ag, RF_R_GARBAGE, 1);
	ag_log("program %d: %s; its connection is closed", (int)p->pid, what);
	if (p->conn >= 0)
		conn_close(p);
	p->suspect = true;
}

/* One packet a wake-up: what it asks for begins before we look for the next. */
static void on_conn(void *arg, int events)
{
	struct ag_proc *p = arg;
	struct ag *ag = p->ag;
	unsigned nfd;
	int fd[4];
	ssize_t n = ag_recv(p->conn, ag->packet, RF_REQ_MAX, fd, 4, &nfd);

	(void)events;
	if (n == -EAGAIN)
		return;
	if (n > 0) {
		ag_req_packet(p, ag->packet, (size_t)n, fd, nfd);
		return;
	}
	for (unsigned k = 0; k < nfd; k++)
		close(fd[k]);
	if (n == -EBADMSG) {
		ag_proc_garbage(p, "sent a packet that is too large");
		return;
	}
	conn_close(p);
	suspect(p);
}

static void on_strip(void *arg, int events)
{
	struct ag_proc *p = arg;
	struct rf_strip s;
	unsigned nfd;
	ssize_t n;

	(void)events;
	while ((n = ag_recv(p->strip, &s, sizeof(s), NULL, 0, &nfd)) == sizeof(s))
		ag_task_stripped(p, &s);
	if (n == -EAGAIN)
		return;
	if (n > 0 || n == -EBADMSG)
		ag_log("program %d: its stripper sent what is no answer", (int)p->pid);
	ag_io_del(p->strip_io);
	p->strip_io = NULL;
	close(p->strip);
	p->strip = -1;
	ag_task_forget_proc(p);
	suspect(p);
}

static void on_pidfd(void *arg, int events)
{
	struct ag_proc *p = arg;

	(void)events;
	ag_io_del(p->pid_io);
	p->pid_io = NULL;
	suspect(p);
}

/* ---- taking in ---- */

static bool io_start(struct ag_proc *p)
{
	p->conn_io = ag_io_add(p->ag, p->conn, UV_READABLE, on_conn, p);
	p->strip_io = ag_io_add(p->ag, p->strip, UV_READABLE, on_strip, p);
	p->pid_io = ag_io_add(p->ag, p->pidfd, UV_READABLE, on_pidfd, p);
	return p->conn_io && p->strip_io && p->pid_io;
}

static void id_take(struct ag_proc *new)
{
	uint64_t *n = &new->ag->journal->nprocs;
	struct ag_proc *p;
	bool used;

	do { /* there are fewer than PROCS_MAX */
		new->id = (uint32_t)(*n % IDS) + 1;
		new->turn = (uint32_t)(*n / IDS) & TURN_MASK;
		++*n;
		used = false;
		ag_for_each (p, &new->ag->procs, link)
			used |= p->id == new->id;
	} while (used);
}

uint64_t ag_proc_change(const struct ag_proc *p, uint32_t cell, uint32_t seq)
{
	return (uint64_t)1 << 63 | (uint64_t)p->turn << 56 | (uint64_t)p->id << 40 |
	       (uint64_t)(cell & 0xff) << 32 | seq;
}

void ag_proc_changed(struct ag *ag, uint64_t id, int err, uint64_t off)
{
	const uint32_t cell = (uint32_t)(id >> 32) & 0xff, seq = (uint32_t)id;
	struct ag_proc *p;

	ag_for_each (p, &ag->procs, link)
		if (ag_proc_change(p, cell, seq) == id) {
			ag_proc_answer(p, cell, seq, err, off, 0);
			return;
		}
}

static struct ag_proc *proc_new(struct ag *ag)
{
	struct ag_proc *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->ag = ag;
	p->conn = p->mem_fd = p->uffd = p->strip = p->pidfd = -1;
	ag_list_init(&p->link);
	ag_list_init(&p->uses);
	ag_list_init(&p->reqs);
	ag_list_init(&p->orders);
	return p;
}

struct ag_proc *ag_proc_attach(struct ag *ag, int conn, pid_t pid, int uffd, int strip, char *text,
			       size_t len)
{
	struct ag_keep_proc meta = {.pid = (uint32_t)pid};
	struct ag_proc *p;
	int r, type = 0;
	socklen_t tl = sizeof(type);
	void *map;

	r = probe(uffd);
	if (r != -ENOENT && r != -EAGAIN && r != 0) {
		snprintf(text, len, "the first descriptor is no userfaultfd of a live process (%s)",
			 strerror(-r));
		return NULL;
	}
	if (getsockopt(strip, SOL_SOCKET, SO_TYPE, &type, &tl) || type != SOCK_SEQPACKET) {
		snprintf(text, len, "the second descriptor is no SOCK_SEQPACKET socket");
		return NULL;
	}
	if (ag->nprocs >= PROCS_MAX) {
		snprintf(text, len, "%u programs are attached, that is all this agent takes",
			 ag->nprocs);
		return NULL;
	}
	p = proc_new(ag);
	if (!p)
		goto nomem;
	p->pid = pid;
	p->pidfd = pidfd_open(pid, 0);
	if (p->pidfd < 0) /* of another pid namespace: its sockets will tell */
		p->pidfd = eventfd(0, EFD_CLOEXEC);
	p->mem_fd =
	    ag_shared("refault-proc", sizeof(struct rf_proc), F_SEAL_SHRINK | F_SEAL_GROW, &map);
	if (p->pidfd < 0 || p->mem_fd < 0)
		goto fail;
	p->mem = map;
	id_take(p);
	meta.turn = p->turn;
	p->mem->version = RF_STATE_VERSION;
	p->mem->id = p->id;
	p->mem->pid = (uint32_t)pid;
	p->mem->boot = ag->boot;
	p->mem->magic = RF_MAGIC_PROC;
	p->conn = conn;
	p->uffd = uffd;
	p->strip = strip;
	if (!io_start(p))
		goto fail;
	ag_list_add(&ag->procs, &p->link);
	ag->nprocs++;
	ag_keep_put(ag->keep, AG_KEEP_PROC, p->id,
		    (int[]){p->conn, p->mem_fd, p->uffd, p->strip, p->pidfd}, 5, &meta,
		    sizeof(meta));
	ag_debug("program %d attached (id %u)", (int)pid, p->id);
	ag_timers(ag);
	return p;

fail:
	ag_io_del(p->conn_io);
	ag_io_del(p->strip_io);
	ag_io_del(p->pid_io);
	if (p->mem)
		munmap(p->mem, sizeof(*p->mem));
	if (p->mem_fd >= 0)
		close(p->mem_fd);
	if (p->pidfd >= 0)
		close(p->pidfd);
	free(p);
nomem:
	snprintf(text, len, "out of memory or descriptors");
	return NULL;
}

void ag_proc_welcome(struct ag_proc *p)
{
	struct rf_attach_r r = {.version = RF_AGENT_VERSION, .proc_id = p->id};

	ag_send(p->conn, &r, sizeof(r), (int[]){p->mem_fd, p->ag->host_ro, p->ag->twins_fd}, 3);
}

int ag_proc_adopt(struct ag *ag, const struct ag_keep *k)
{
	const struct ag_keep_proc *meta = (const void *)k->meta;
	struct ag_proc *p;
	void *map;

	if (k->nfd != 5 || k->len != sizeof(*meta))
		return -EPROTO;
	p = proc_new(ag);
	if (!p)
		return -ENOMEM;
	p->id = (uint32_t)k->id;
	p->pid = (pid_t)meta->pid;
	p->turn = meta->turn;
	p->conn = k->fd[0];
	p->mem_fd = k->fd[1];
	p->uffd = k->fd[2];
	p->strip = k->fd[3];
	p->pidfd = k->fd[4];
	map = mmap(NULL, sizeof(*p->mem), PROT_READ | PROT_WRITE, MAP_SHARED, p->mem_fd, 0);
	if (map == MAP_FAILED) {
		free(p);
		return -ENOMEM;
	}
	p->mem = map;
	if (!io_start(p)) {
		ag_io_del(p->conn_io);
		ag_io_del(p->strip_io);
		ag_io_del(p->pid_io);
		munmap(p->mem, sizeof(*p->mem));
		free(p);
		return -ENOMEM;
	}
	p->suspect = true;
	/* Answers to the orders of the agent before are no answers to ours. */
	p->strip_seq = atomic_load(&p->mem->strip_ack) + (ag->life << 20);
	ag_list_add(&ag->procs, &p->link);
	ag->nprocs++;
	return 0;
}

void ag_proc_resend(struct ag_proc *p)
{
	uint32_t n = (uint32_t)ag_min(atomic_load(&p->mem->cells_used), RF_CELLS);

	/* Taken in by an agent that died before it said so.  A second answer is never read. */
	if (!atomic_load(&p->mem->attached))
		ag_proc_welcome(p);
	atomic_fetch_add(&p->mem->agent_gen, 1);
	for (uint32_t i = 0; i < n; i++)
		if (atomic_load(&p->mem->cell[i].state) == RF_CELL_BUSY)
			ag_futex_wake(&p->mem->cell[i].state);
}

void ag_proc_answer(struct ag_proc *p, uint32_t cell, uint32_t seq, int err, uint64_t ret0,
		    uint64_t ret1)
{
	/* state and seq, as the two lie in memory */
	uint64_t busy = (uint64_t)seq << 32 | RF_CELL_BUSY,
		 done = (uint64_t)seq << 32 | RF_CELL_DONE;
	uint64_t *at;
	struct rf_cell *c;

	if (cell >= RF_CELLS)
		return;
	c = &p->mem->cell[cell];
	at = (uint64_t *)(void *)c;
	if (__atomic_load_n(at, __ATOMIC_SEQ_CST) != busy)
		return;
	/* Both at once, for a request that was sent again may be answered twice, and the cell be
	 * another's by now: what is in it before it is DONE, nobody reads. */
	atomic_store_explicit(&c->err, err, memory_order_relaxed);
	atomic_store_explicit(&c->ret[0], ret0, memory_order_relaxed);
	atomic_store_explicit(&c->ret[1], ret1, memory_order_relaxed);
	if (__atomic_compare_exchange_n(at, &busy, done, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		ag_futex_wake(&c->state);
}

bool ag_proc_waits(struct ag_proc *p, uint32_t cell, uint32_t seq)
{
	const struct rf_cell *c = &p->mem->cell[cell % RF_CELLS];

	return cell < RF_CELLS && atomic_load(&c->seq) == seq &&
	       atomic_load(&c->state) == RF_CELL_BUSY;
}

/* ---- slots ---- */

bool ag_slots_busy(struct ag *ag, uint32_t vnode, uint64_t first, uint64_t npages)
{
	struct ag_proc *p;

	ag_for_each (p, &ag->procs, link) {
		uint32_t n = (uint32_t)ag_min(atomic_load(&p->mem->slots_used), RF_SLOTS);

		for (uint32_t i = 0; i < n; i++) {
			uint64_t c = atomic_load(&p->mem->slot[i].claim);

			if (!c || rf_claim_vnode(c) != vnode)
				continue;
			if (!npages || (rf_claim_page(c) < first + npages &&
					rf_claim_page(c) + rf_claim_npages(c) > first))
				return true;
		}
	}
	return false;
}

/* ---- the mapping table ---- */

/* The sequence number when the table stands still; -EBUSY if it does not within a moment. */
static int table_begin(const struct ag_proc *p, uint32_t *seq)
{
	uint64_t since = 0;

	while ((*seq = atomic_load(&p->mem->map_seq)) & 1) {
		if (!since)
			since = ag_now();
		else if (ag_now() - since > TABLE_SPIN)
			return -EBUSY;
		ag_relax();
	}
	return 0;
}

static bool table_moved(const struct ag_proc *p, uint32_t seq)
{
	atomic_thread_fence(memory_order_acquire);
	return atomic_load(&p->mem->map_seq) != seq;
}

bool ag_proc_maps(struct ag_proc *p, uint32_t vnode)
{
	uint32_t seq, n;

	for (int tries = 0; tries < 8; tries++) {
		bool found = false;

		if (table_begin(p, &seq))
			break;
		n = (uint32_t)ag_min(atomic_load(&p->mem->nmaps), RF_MAPS);
		for (uint32_t i = 0; i < n && !found; i++)
			found = atomic_load_explicit(&p->mem->map[i].vnode, memory_order_relaxed) ==
				vnode;
		if (!table_moved(p, seq))
			return found;
	}
	return true;
}

bool ag_procs_wait(struct ag *ag)
{
	struct ag_proc *p;

	ag_for_each (p, &ag->procs, link)
		if (atomic_load(&p->mem->waiting))
			return true;
	return false;
}

bool ag_procs_map(struct ag *ag, uint32_t vnode)
{
	struct ag_proc *p;

	ag_for_each (p, &ag->procs, link)
		if (ag_proc_maps(p, vnode))
			return true;
	return false;
}

/* Protect what of [start, end) is registered; halve around what is not (t1: it stops halfway). */
static int protect(struct ag_proc *p, uintptr_t start, uintptr_t end)
{
	uintptr_t mid;
	int r, tries = 0;

	do
		r = rf_uffd_wp(p->uffd, start, end - start, 1);
	while (r == -EAGAIN && ++tries < 1000);
	if (!r || r == -ESRCH) /* no memory, no stores */
		return 0;
	if (r != -ENOENT)
		return r;
	if (end - start <= RF_PAGE_SIZE)
		return 0; /* not ours any more: a raw munmap or mmap */
	mid = (start + (end - start) / 2) & ~(RF_PAGE_SIZE - 1);
	r = protect(p, start, mid);
	return r ? r : protect(p, mid, end);
}

static int protect_proc(struct ag_proc *p, uint32_t vnode, uint64_t first, uint64_t last)
{
	uint32_t seq, n;
	int r;

	/* The table is read again after protecting: a mapping may have moved away under it. */
	for (int tries = 0; tries < 4; tries++) {
		r = table_begin(p, &seq);
		if (r)
			return r;
		n = (uint32_t)ag_min(atomic_load(&p->mem->nmaps), RF_MAPS);
		for (uint32_t i = 0; i < n; i++) {
			struct rf_map *m = &p->mem->map[i];
			uint64_t start, end, off, lo, hi;
			uint32_t flags;

			if (atomic_load_explicit(&m->vnode, memory_order_relaxed) != vnode)
				continue;
			start = atomic_load_explicit(&m->start, memory_order_relaxed);
			end = atomic_load_explicit(&m->end, memory_order_relaxed);
			off = atomic_load_explicit(&m->pgoff, memory_order_relaxed);
			flags = atomic_load_explicit(&m->flags, memory_order_relaxed);
			if (table_moved(p, seq))
				break;
			/* Stores to a private mapping go to the program's own copies. */
			if (!(flags & RF_MAP_SHARED) || !(flags & RF_MAP_WRITE))
				continue;
			if (start >= end || (start | end) & (RF_PAGE_SIZE - 1) || off >> 36)
				continue;
			lo = ag_max(first, off);
			hi = ag_min(last + 1, off + ((end - start) >> RF_PAGE_SHIFT));
			if (lo >= hi)
				continue;
			r = protect(p, start + ((lo - off) << RF_PAGE_SHIFT),
				    start + ((hi - off) << RF_PAGE_SHIFT));
			if (r)
				return r;
		}
		if (!table_moved(p, seq))
			return 0;
	}
	return -EBUSY;
}

int ag_procs_protect(struct ag *ag, uint32_t vnode, uint64_t first, uint64_t last)
{
	struct ag_proc *p;
	int r;

	ag_for_each (p, &ag->procs, link) {
		r = protect_proc(p, vnode, first, last);
		if (r)
			return r;
	}
	return 0;
}
