/* SPDX-License-Identifier: MIT */
/*
 * vnode.c - files of volumes in this process: adopted from the agent, found by id, given back.
 *
 * A vnode is found by scanning the pool up to its high-water mark; programs hold few of them, and
 * the fault path goes by the mapping's own pointer.
 *
 * Counters: frozen-wait.
 * Locks: ctx->lock for refs 0 <-> 1 and for growing the views.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"
#include "pin.h"
#include "file.h"

#define POOL 65536u /* vnodes that one process can hold */

struct vnode *vnode_by_id(struct ctx *c, uint32_t id)
{
	uint32_t n = atomic_load(&c->nvnodes);

	for (uint32_t i = 0; i < n; i++)
		if (c->vnode_pool[i].id == id && atomic_load(&c->vnode_pool[i].refs))
			return &c->vnode_pool[i];
	return NULL;
}

/* One more on a vnode that the caller holds. */
static void vnode_ref(struct vnode *vn)
{
	atomic_fetch_add(&vn->refs, 1);
}

static void view_retire(struct vnode *vn, void *p, uint64_t len, bool state)
{
	/* Doubling each time, 48 entries are never used up; if they were, the view just leaks. */
	if (p && vn->nold < sizeof(vn->old) / sizeof(vn->old[0])) {
		vn->old[vn->nold].p = p;
		vn->old[vn->nold].state = state;
		vn->old[vn->nold++].len = len;
	}
}

/* ctx->lock held. */
static int cover_locked(struct ctx *c, struct vnode *vn, uint64_t pages)
{
	uint64_t cap = atomic_load(&vn->cap), alen = atomic_load(&vn->alias_len);
	struct rf_vnode *st = atomic_load(&vn->st);

	if (pages > cap) {
		uint64_t want = atomic_load(&st->capacity);
		void *p;

		if (want < pages)
			return -EAGAIN; /* the agent has not grown it: it does before i_size grows
					 */
		p = sys_reserve(RF_VNODE_HDR + want * 8, PROT_READ | PROT_WRITE, MAP_SHARED,
				vn->state_fd);
		if (sys_err(p))
			return (int)(long)p;
		view_retire(vn, st, RF_VNODE_HDR + cap * 8, true);
		atomic_store(&vn->st, (struct rf_vnode *)p);
		atomic_store(&vn->cap, want);
	}
	if (pages * RF_PAGE_SIZE > alen) {
		uint64_t want = alen ? alen : UINT64_C(1) << 20;
		void *p;
		int r;

		while (want < pages * RF_PAGE_SIZE)
			want *= 2;
		/*
		 * Registering needs VM_MAYWRITE, which a read-only mapping of this descriptor has.
		 * Not readable before: under mlockall(MCL_FUTURE) every hole would get a page of zeros.
		 */
		p = sys_mmap(NULL, want, PROT_NONE, MAP_SHARED | MAP_NORESERVE, vn->data_fd, 0);
		if (sys_err(p))
			return (int)(long)p;
		rf_syscall(SYS_munlock, p, want);
		r = rf_uffd_register(c->uffd_alias, (uintptr_t)p, want,
				     UFFDIO_REGISTER_MODE_MISSING);
		if (!r)
			r = (int)rf_syscall(SYS_mprotect, p, want, PROT_READ);
		if (r) {
			rf_syscall(SYS_munmap, p, want);
			return r;
		}
		rf_syscall(SYS_madvise, p, want, MADV_DONTDUMP);
		rf_syscall(SYS_madvise, p, want, MADV_DONTFORK);
		view_retire(vn, atomic_load(&vn->alias), alen, false);
		atomic_store(&vn->alias, (char *)p);
		atomic_store(&vn->alias_len, want);
	}
	return 0;
}

int vnode_cover(struct ctx *c, struct vnode *vn, uint64_t pages)
{
	sys_mask m;
	int r;

	if (pages <= atomic_load_explicit(&vn->cap, memory_order_acquire) &&
	    pages * RF_PAGE_SIZE <= atomic_load_explicit(&vn->alias_len, memory_order_acquire))
		return 0;
	m = sys_lock(&c->lock);
	r = cover_locked(c, vn, pages);
	sys_unlock(&c->lock, m);
	return r;
}

void vnode_forget_aliases(struct ctx *c)
{
	for (uint32_t i = 0; i < atomic_load(&c->nvnodes); i++) {
		struct vnode *vn = &c->vnode_pool[i];
		uint32_t k = 0;

		atomic_store(&vn->alias, NULL);
		atomic_store(&vn->alias_len, 0);
		/* Old views of the state are inherited; old aliases are not. */
		for (uint32_t j = 0; j < vn->nold; j++)
			if (vn->old[j].state)
				vn->old[k++] = vn->old[j];
		vn->nold = k;
	}
}

int vnode_readopt(struct ctx *c)
{
	sys_mask m = {0};
	int r = 0, one;

	rf_syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &m, 8);
	for (uint32_t i = 0; i < atomic_load(&c->nvnodes); i++) {
		struct vnode *vn = &c->vnode_pool[i];
		const uint64_t arg[4] = {vn->opens};

		if (!atomic_load(&vn->refs))
			continue;
		one = agent_request(c, RF_OP_ADOPT, vn->id, 0, arg, NULL, 0, NULL, m);
		if (one) {
			log_line("%s: the agent does not know it any more; close and open it again",
				 vn->path);
			r = r ? r : one;
		}
	}
	return r;
}

static void vnode_unmap(struct vnode *vn)
{
	for (uint32_t i = 0; i < vn->nold; i++)
		rf_syscall(SYS_munmap, vn->old[i].p, vn->old[i].len);
	if (atomic_load(&vn->alias))
		rf_syscall(SYS_munmap, atomic_load(&vn->alias), atomic_load(&vn->alias_len));
	if (atomic_load(&vn->st))
		rf_syscall(SYS_munmap, atomic_load(&vn->st),
			   RF_VNODE_HDR + atomic_load(&vn->cap) * 8);
	vn->nold = 0;
	atomic_store(&vn->alias, NULL);
	atomic_store(&vn->alias_len, 0);
	atomic_store(&vn->st, NULL);
	atomic_store(&vn->cap, 0);
}

static struct vnode *pool_take(struct ctx *c)
{
	uint32_t n = atomic_load(&c->nvnodes);

	if (!c->vnode_pool) {
		void *p = ctx_reserve(c, POOL * sizeof(struct vnode));
		if (sys_err(p))
			return NULL;
		c->vnode_pool = p;
	}
	for (uint32_t i = 0; i < n; i++)
		if (!atomic_load(&c->vnode_pool[i].refs))
			return &c->vnode_pool[i];
	if (n == POOL)
		return NULL;
	atomic_store(&c->nvnodes, n + 1);
	return &c->vnode_pool[n];
}

int vnode_adopt(struct ctx *c, uint32_t id, const char *path, int data_fd, int state_fd,
		struct vnode **out)
{
	struct rf_vnode *st;
	struct vnode *vn;
	sys_mask m;
	size_t len;
	int r;

	m = sys_lock(&c->lock);
	vn = vnode_by_id(c, id);
	if (vn) {
		vnode_ref(vn);
		vn->opens++;
		sys_unlock(&c->lock, m);
		rf_syscall(SYS_close, data_fd);
		rf_syscall(SYS_close, state_fd);
		*out = vn;
		return 0;
	}
	vn = pool_take(c);
	r = -ENOMEM;
	if (!vn)
		goto fail;
	st = sys_mmap(NULL, RF_VNODE_HDR, PROT_READ | PROT_WRITE, MAP_SHARED, state_fd, 0);
	r = (int)(long)st;
	if (sys_err(st))
		goto fail;
	r = -EPROTO;
	if (st->magic != RF_MAGIC_VNODE || st->version != RF_STATE_VERSION || st->id != id) {
		rf_syscall(SYS_munmap, st, RF_VNODE_HDR);
		goto fail;
	}
	vn->id = id;
	vn->opens = 1;
	vn->nold = 0;
	atomic_store(&vn->locks, 0);
	atomic_store(&vn->st, st);
	atomic_store(&vn->cap, 0);
	vn->data_fd = fd_hide(c, data_fd);
	vn->state_fd = fd_hide(c, state_fd);
	len = strlen(path);
	path += len < sizeof(vn->path) ? 0 : len - sizeof(vn->path) + 1;
	memcpy(vn->path, path, strlen(path) + 1);
	r = cover_locked(c, vn, RF_PAGES(atomic_load(&st->i_size)));
	if (r) {
		vnode_unmap(vn);
		fd_unhide(c, vn->data_fd);
		fd_unhide(c, vn->state_fd);
		sys_unlock(&c->lock, m);
		return r;
	}
	atomic_store(&vn->refs, 1);
	sys_unlock(&c->lock, m);
	*out = vn;
	return 0;
fail:
	sys_unlock(&c->lock, m);
	rf_syscall(SYS_close, data_fd);
	rf_syscall(SYS_close, state_fd);
	return r;
}

void vnode_put(struct ctx *c, struct vnode *vn)
{
	uint32_t n = atomic_load(&vn->refs), id = vn->id;
	int data_fd, state_fd;
	sys_mask m;

	while (n > 1)
		if (atomic_compare_exchange_weak(&vn->refs, &n, n - 1))
			return;
	m = sys_lock(&c->lock);
	if (atomic_fetch_sub(&vn->refs, 1) > 1) {
		sys_unlock(&c->lock, m);
		return;
	}
	slot_quiesce(c, id);
	pin_gone(c, id);
	vnode_unmap(vn);
	data_fd = vn->data_fd;
	state_fd = vn->state_fd;
	agent_close(
	    c, id,
	    vn->opens); /* under the lock, so that it stays in order with an adopt of the same */
	sys_unlock(&c->lock, m);
	fd_unhide(c, data_fd);
	fd_unhide(c, state_fd);
}

int vnode_thaw(struct ctx *c, struct vnode *vn)
{
	struct rf_vnode *st = atomic_load(&vn->st);
	uint32_t v;

	debug_free(DEBUG_ALL, "waits for a frozen vnode");
	count(c, RF_R_FROZEN_WAIT);
	while ((v = atomic_load(&st->frozen)) != 0)
		if (sys_futex_wait(&st->frozen, v, 1000) == -ETIMEDOUT && agent_gone(c))
			return -EHOSTDOWN;
	return 0;
}

bool vnode_valid(const struct ctx *c, const struct vnode *vn)
{
	const struct rf_vnode *st = atomic_load_explicit(&vn->st, memory_order_acquire);
	uint64_t until = atomic_load_explicit(&st->cb_expires_at, memory_order_acquire);

	if (!c->host || !until || st->server >= RF_MAX_SERVERS ||
	    atomic_load_explicit(&st->cb_s_seen, memory_order_acquire) !=
		atomic_load_explicit(&c->host->server[st->server].cb_s_break, memory_order_acquire))
		return false;
	return vnode_until(c, until);
}

bool vnode_until(const struct ctx *c, uint64_t until)
{
	struct timespec t;

	c->clock(CLOCK_MONOTONIC_COARSE, &t); /* is behind by a tick, 10 ms at the most */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + 10000000 < until;
}
