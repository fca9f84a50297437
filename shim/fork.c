/* SPDX-License-Identifier: MIT */
/*
 * fork.c - what a fork child must do before its program's code runs.
 *
 * The child inherits a userfaultfd that acts on its parent's memory (v), sockets and slots that are
 * its parent's, and no shared managed mapping (MADV_DONTFORK).  The first atfork child handler
 * drops the former and maps everything anew, under a proc area of its own.  A child whose parent
 * had nothing mapped attaches when it first touches a file; one that only execs pays nothing.
 *
 * Locks: attach_lock and lock are held from prepare to parent/child.
 */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "file.h"
#include "map.h"
#include "pin.h"

static void prepare(void)
{
	if (map_fork_prepare(rf_ctx))
		log_line(
		    "fork: no memory to copy the mapping table; the child will have no mappings");
}

static void parent(void)
{
	map_fork_parent(rf_ctx);
}

static void child(void)
{
	struct ctx *c = rf_ctx;
	sys_mask m1 = c->fork.m1;
	void *proc = c->proc, *host = (void *)(uintptr_t)c->host, *twins = c->twins;
	uint64_t twins_len = twins ? rf_twins_size(c->ntwins) : 0;
	int r = 0;

	atomic_store(&c->lock.w, 0);
	atomic_store(&c->mlock_future, 0);
	atomic_store(&c->attach_lock.w, 0);
	debug_forget();
	file_fork_child(c);
	if (!(atomic_load(&c->attached) & 1))
		goto out;
	fd_unhide(c, c->uffd);
	if (c->uffd_alias != c->uffd)
		fd_unhide(c, c->uffd_alias);
	fd_unhide(c, c->sock);
	fd_unhide(c, c->hup);
	fd_unhide(c, c->poke);
	c->uffd = c->uffd_alias = c->sock = c->hup = c->poke = -1;
	c->proc = NULL;
	c->host = NULL;
	c->twins = NULL;
	map_fork_reserve(c);
	strip_forget(c);
	rf_syscall(SYS_munmap, proc, sizeof(struct rf_proc));
	rf_syscall(SYS_munmap, host, sizeof(struct rf_host));
	rf_syscall(SYS_munmap, twins, twins_len);
	atomic_fetch_add(&c->attached, 1);
	atomic_store(&c->map_lo, UINTPTR_MAX);
	atomic_store(&c->map_hi, 0);

	pin_fork_child(c);
	vnode_forget_aliases(c);
	if (c->fork.n) {
		r = agent_attach(c, true);
		if (!r)
			r = map_fork_child(c);
	}
	if (r)
		log_line("fork: the child could not get its mappings back: errno %d; touching them "
			 "will be a SIGSEGV",
			 -r);
	if (c->fork.e)
		rf_syscall(SYS_munmap, c->fork.e, c->fork.bytes);
out:
	sys_setmask(m1);
}

void fork_init(struct ctx *c)
{
	if (c->fork_ready)
		return;
	c->fork_ready = true;
	pthread_atfork(prepare, parent, child);
}
