/* SPDX-License-Identifier: MIT */
/*
 * map.c - the mapping table, and what mmap and its family do for managed files.
 *
 * A mapping is made PROT_NONE, registered, entered in the table, and only then given its
 * protection: there is no moment in which a page could be touched and nobody knew (DESIGN 5).
 * Shared mappings are MADV_DONTFORK; a fork child maps them anew.
 *
 * A mapping is unmade in the opposite order: the range is replaced by a PROT_NONE reservation (the
 * kernel drops the old PTEs at once, and nobody else can be given the addresses), the entry leaves
 * the table, the stripper is waited out, the reservation is unmapped.  So the stripper never sees
 * an entry whose addresses already belong to somebody's heap.
 *
 * The table is sorted by address and read under a sequence lock by the fault handler, the stripper
 * and the agent.  The agent re-reads it after it write-protected pages for a flush: a mapping that
 * moved meanwhile is protected again at its new place (mremap drops protection silently (v)).
 *
 * Locks: ctx->lock, all signals blocked, for every change.  Never held across a request; no
 * managed memory is touched under it.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "file.h"
#include "map.h"
#include "pin.h"

#define LOCALS RF_MAPS

/* The protection the program asked for, in the table's flags: a fork child maps with it. */
#define MAP_PROT(prot) (((uint32_t)(prot)&7) << 8)
#define MAP_PROT_OF(flags) ((int)((flags) >> 8 & 7))

/* ---- the table ---- */

static void entry_load(const struct ctx *c, uint32_t i, struct map_entry *e)
{
	const struct rf_map *m = &c->proc->map[i];

	e->start = atomic_load_explicit(&m->start, memory_order_relaxed);
	e->end = atomic_load_explicit(&m->end, memory_order_relaxed);
	e->pgoff = atomic_load_explicit(&m->pgoff, memory_order_relaxed);
	e->vnode = atomic_load_explicit(&m->vnode, memory_order_relaxed);
	e->flags = atomic_load_explicit(&m->flags, memory_order_relaxed);
	e->local = atomic_load_explicit(&m->local, memory_order_relaxed);
	e->l = e->local < LOCALS ? &c->local_pool[e->local] : NULL;
}

static void entry_store(const struct ctx *c, uint32_t i, const struct map_entry *e)
{
	struct rf_map *m = &c->proc->map[i];

	atomic_store_explicit(&m->start, e->start, memory_order_relaxed);
	atomic_store_explicit(&m->end, e->end, memory_order_relaxed);
	atomic_store_explicit(&m->pgoff, e->pgoff, memory_order_relaxed);
	atomic_store_explicit(&m->vnode, e->vnode, memory_order_relaxed);
	atomic_store_explicit(&m->flags, e->flags, memory_order_relaxed);
	atomic_store_explicit(&m->local, e->local, memory_order_relaxed);
}

/* First entry whose end lies above addr.  Under the seq lock or ctx->lock. */
static uint32_t lower(const struct ctx *c, uintptr_t addr)
{
	uint32_t lo = 0, hi = atomic_load_explicit(&c->proc->nmaps, memory_order_relaxed);

	if (hi > RF_MAPS)
		hi = RF_MAPS;
	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;
		if (atomic_load_explicit(&c->proc->map[mid].end, memory_order_relaxed) > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

int map_prot(const struct map_entry *e)
{
	return MAP_PROT_OF(e->flags);
}

static uint32_t seq_begin(const struct ctx *c)
{
	uint32_t s;

	while ((s = atomic_load_explicit(&c->proc->map_seq, memory_order_acquire)) & 1)
		rf_syscall(SYS_sched_yield);
	return s;
}

bool map_find(struct ctx *c, uintptr_t addr, struct map_entry *e, uint32_t *seq)
{
	for (;;) {
		uint32_t s = seq_begin(c), i = lower(c, addr);
		bool hit =
		    i < atomic_load_explicit(&c->proc->nmaps, memory_order_relaxed) && i < RF_MAPS;

		if (hit)
			entry_load(c, i, e);
		atomic_thread_fence(memory_order_acquire);
		if (map_moved(c, s))
			continue;
		*seq = s;
		return hit && e->start <= addr && addr < e->end && e->l;
	}
}

int map_try(struct ctx *c, uint32_t i, struct map_entry *e, uint32_t *seq)
{
	uint32_t s = atomic_load_explicit(&c->proc->map_seq, memory_order_acquire);
	bool hit = i < atomic_load_explicit(&c->proc->nmaps, memory_order_relaxed) && i < RF_MAPS;

	if (s & 1)
		return -EAGAIN;
	if (hit)
		entry_load(c, i, e);
	atomic_thread_fence(memory_order_acquire);
	if (map_moved(c, s))
		return -EAGAIN;
	*seq = s;
	return hit && e->l;
}

static void change_begin(struct ctx *c)
{
	atomic_fetch_add(&c->proc->map_seq, 1);
	atomic_thread_fence(memory_order_seq_cst);
}

static void change_end(struct ctx *c)
{
	uint32_t n = atomic_load(&c->proc->nmaps);

	atomic_store(&c->map_lo, n ? atomic_load(&c->proc->map[0].start) : UINTPTR_MAX);
	atomic_store(&c->map_hi, n ? atomic_load(&c->proc->map[n - 1].end) : 0);
	atomic_fetch_add(&c->proc->map_seq, 1);
}

static void insert(struct ctx *c, const struct map_entry *e)
{
	uint32_t n = atomic_load(&c->proc->nmaps), at = lower(c, e->start);
	struct map_entry t;

	for (uint32_t i = n; i > at; i--) {
		entry_load(c, i - 1, &t);
		entry_store(c, i, &t);
	}
	entry_store(c, at, e);
	atomic_store(&c->proc->nmaps, n + 1);
}

static void erase(struct ctx *c, uint32_t at)
{
	uint32_t n = atomic_load(&c->proc->nmaps);
	struct map_entry t;

	for (uint32_t i = at; i + 1 < n; i++) {
		entry_load(c, i + 1, &t);
		entry_store(c, i, &t);
	}
	atomic_store(&c->proc->nmaps, n - 1);
}

/* ---- map_local ---- */

static struct map_local *local_take(struct ctx *c, struct file *f, uint64_t pgoff, uint64_t npages,
				    bool private, uint32_t *index)
{
	size_t bits = (npages + 63) / 64 * 8;
	struct map_local *l;
	void *p;

	if (!c->local_pool) {
		p = ctx_reserve(c, LOCALS * sizeof(*l));
		if (sys_err(p))
			return NULL;
		c->local_pool = p;
	}
	for (uint32_t i = 0; i < LOCALS; i++) {
		l = &c->local_pool[i];
		if (atomic_load(&l->refs))
			continue;
		l->copied = NULL;
		if (private) {
			p = sys_mmap(NULL, bits, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (sys_err(p))
				return NULL;
			l->copied = p;
		}
		file_hold(f);
		l->file = f;
		l->vn = atomic_load(&f->vn);
		l->pgoff0 = pgoff;
		l->npages = npages;
		atomic_store(&l->next_page, UINT64_MAX);
		atomic_store(&l->window, 1);
		atomic_store(&l->touched, 0);
		l->until = l->stripped = 0;
		atomic_store(&l->refs, 1);
		*index = i;
		return l;
	}
	return NULL;
}

/* Returns the file that the caller must put after it has dropped ctx->lock, or NULL. */
static struct file *local_drop(struct map_local *l)
{
	if (!l) /* somebody scribbled on the table */
		return NULL;
	if (atomic_fetch_sub(&l->refs, 1) > 1)
		return NULL;
	if (l->copied)
		rf_syscall(SYS_munmap, l->copied, (l->npages + 63) / 64 * 8);
	return l->file;
}

/* Files to put when the lock is dropped; one munmap can end many mappings. */
struct puts {
	struct file *f[64];
	uint32_t n;
};

/* Let an entry begin at addr if one spans it.  In a change. */
static void split(struct ctx *c, uintptr_t addr)
{
	uint32_t i = lower(c, addr);
	struct map_entry e, right;

	if (i >= atomic_load(&c->proc->nmaps))
		return;
	entry_load(c, i, &e);
	if (e.start >= addr)
		return;
	right = e;
	right.start = addr;
	right.pgoff += (addr - e.start) >> RF_PAGE_SHIFT;
	e.end = addr;
	entry_store(c, i, &e);
	atomic_fetch_add(&e.l->refs, 1);
	insert(c, &right);
}

/*
 * Take [lo, hi) out of the table.  In a change, with room for two entries more.  False: puts is
 * full and there is more to do: put them without the lock, and call again.
 */
static bool cut(struct ctx *c, uintptr_t lo, uintptr_t hi, struct puts *p)
{
	struct map_entry e;
	uint32_t i;

	split(c, lo);
	split(c, hi);
	i = lower(c, lo);
	while (i < atomic_load(&c->proc->nmaps)) {
		struct file *f;

		entry_load(c, i, &e);
		if (e.start >= hi)
			break;
		if (p->n == sizeof(p->f) / sizeof(p->f[0]))
			return false;
		f = local_drop(e.l);
		if (f)
			p->f[p->n++] = f;
		erase(c, i);
	}
	return true;
}

static void put_all(struct ctx *c, struct puts *p)
{
	while (p->n)
		file_put(c, p->f[--p->n]);
}

/* ---- mmap ---- */

static uint64_t round_up(uint64_t n)
{
	return (n + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
}

/*
 * No page but the program's own copies stays mapped: it may be old, or become so while nobody knows of
 * it, and stores must come through the handler.
 */
static void zap_private(const struct map_entry *e)
{
	uint64_t n = (e->end - e->start) >> RF_PAGE_SHIFT, i = 0, j;

	while (i < n) {
		for (; i < n && map_copied(e->l, e->pgoff + i); i++)
			;
		for (j = i; j < n && !map_copied(e->l, e->pgoff + j); j++)
			;
		if (j > i)
			sys_zap(e->start + i * RF_PAGE_SIZE, (j - i) * RF_PAGE_SIZE);
		i = j;
	}
}

/* Map, register, protect; in no table yet.  The address or -errno. */
static void *map_raw(struct ctx *c, struct vnode *vn, void *addr, size_t len, int flags,
		     uint64_t off)
{
	void *p = sys_mmap(addr, len, PROT_NONE, flags, vn->data_fd, off);
	int r;

	if (sys_err(p))
		return p;
	r = rf_uffd_register(c->uffd, (uintptr_t)p, round_up(len), RF_UFFD_MODES);
	if (!r && (flags & MAP_TYPE) != MAP_PRIVATE)
		r = (int)rf_syscall(SYS_madvise, p, len, MADV_DONTFORK);
	if (!r && ((flags & MAP_LOCKED) || atomic_load(&c->mlock_future)))
		r = (int)rf_syscall(SYS_mlock2, p, len, MLOCK_ONFAULT); /* see map_advice.c */
	if (r) {
		rf_syscall(SYS_munmap, p, len);
		return (void *)(long)r;
	}
	return p;
}

void *map_mmap(struct ctx *c, struct file *f, void *addr, size_t len, int prot, int flags,
	       uint64_t off)
{
	const int acc = f->flags & O_ACCMODE, type = flags & MAP_TYPE;
	const bool private = type == MAP_PRIVATE;
	const int future = atomic_load(&c->mlock_future);
	struct map_entry e = {.pgoff = off >> RF_PAGE_SHIFT, .vnode = f->vn->id};
	struct puts puts = {.n = 0};
	size_t rlen = round_up(len);
	sys_mask m;
	void *p;
	int r;

	if (len == 0 || rlen == 0 || (off & (RF_PAGE_SIZE - 1)))
		return (void *)-EINVAL;
	if (type != MAP_SHARED && type != MAP_PRIVATE && type != MAP_SHARED_VALIDATE)
		return (void *)-EINVAL;
	if (acc == O_WRONLY || (!private && (prot & PROT_WRITE) && acc != O_RDWR))
		return (void *)-EACCES;
	r = agent_attach(c, true);
	if (!r)
		r = vnode_cover(c, f->vn, RF_PAGES(atomic_load(&atomic_load(&f->vn->st)->i_size)));
	if (r)
		return (void *)(long)r;
	if (flags & MAP_FIXED) {
		r = map_forget(c, addr, rlen);
		if (r)
			return (void *)(long)r;
	}
	e.flags = (private ? 0 : RF_MAP_SHARED) | (private || acc == O_RDWR ? RF_MAP_WRITE : 0) |
		  (future || (flags & MAP_LOCKED) ? RF_MAP_LOCKED : 0) | MAP_PROT(prot);
	m = sys_lock(&c->lock);
	p = (void *)-ENOMEM;
	/* A split needs an entry more, so the last ones are kept back. */
	if (atomic_load(&c->proc->nmaps) + 2 > RF_MAPS)
		goto out;
	e.l = local_take(c, f, e.pgoff, rlen >> RF_PAGE_SHIFT, private, &e.local);
	if (!e.l)
		goto out;
	p = map_raw(c, f->vn, addr, len, flags & ~MAP_POPULATE, off);
	if (sys_err(p)) {
		puts.f[puts.n++] = local_drop(e.l);
		goto out;
	}
	e.start = (uintptr_t)p;
	e.end = e.start + rlen;
	atomic_store(&atomic_load(&f->vn->st)->mappings, 1);
	change_begin(c);
	insert(c, &e);
	change_end(c);
	if (prot != PROT_NONE)
		rf_syscall(SYS_mprotect, p, len, prot);
out:
	sys_unlock(&c->lock, m);
	put_all(c, &puts);
	if (!sys_err(p) && ((flags & (MAP_POPULATE | MAP_LOCKED)) || future == MCL_FUTURE))
		map_lock_populate(c, p, len);
	return p;
}

/* ---- munmap ---- */

int map_forget(struct ctx *c, void *addr, size_t len)
{
	uintptr_t lo = (uintptr_t)addr, hi = lo + round_up(len);
	struct puts puts = {.n = 0};
	bool done = false;
	sys_mask m;

	if (!map_hits(c, addr, len))
		return 0;
	while (!done) {
		uintptr_t at;
		struct map_entry e;

		m = sys_lock(&c->lock);
		if (atomic_load(&c->proc->nmaps) + 2 > RF_MAPS) {
			sys_unlock(&c->lock, m);
			return -ENOMEM;
		}
		/* Only what is managed is replaced by a reservation; holes in between stay holes.
		 */
		for (at = lo; at < hi; at = e.end) {
			uint32_t i = lower(c, at);
			uintptr_t s, t;
			void *p;

			if (i >= atomic_load(&c->proc->nmaps))
				break;
			entry_load(c, i, &e);
			if (e.start >= hi)
				break;
			s = e.start > lo ? e.start : lo;
			t = e.end < hi ? e.end : hi;
			p = sys_mmap((void *)s, t - s, PROT_NONE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
				     0);
			if (sys_err(p)) {
				sys_unlock(&c->lock, m);
				return (int)(long)p;
			}
		}
		change_begin(c);
		done = cut(c, lo, hi, &puts);
		change_end(c);
		strip_quiesce(c);
		pin_forget(c, lo, hi);
		sys_unlock(&c->lock, m);
		put_all(c, &puts);
	}
	return 0;
}

int map_munmap(struct ctx *c, void *addr, size_t len)
{
	int r;

	if (((uintptr_t)addr & (RF_PAGE_SIZE - 1)) || len == 0)
		return -EINVAL;
	r = map_forget(c, addr, len);
	return r ? r : (int)rf_syscall(SYS_munmap, addr, len);
}

/* ---- mremap ---- */

/*
 * Grow, shrink or move one mapping.  The kernel drops registration and write-protection when it
 * moves or grows a VMA (v), so the whole is registered again and stripped before the table says
 * where it is; `map_seq` is odd meanwhile, so that handler and agent wait.
 */
void *map_mremap(struct ctx *c, void *addr, size_t old_len, size_t new_len, int flags, void *to)
{
	uintptr_t lo = (uintptr_t)addr, hi = lo + round_up(old_len);
	size_t nlen = round_up(new_len);
	struct map_entry e, moved;
	struct puts puts = {.n = 0};
	uint32_t seq, i;
	sys_mask m;
	void *p;
	int r;

	if ((lo & (RF_PAGE_SIZE - 1)) || nlen == 0 || (flags & MREMAP_DONTUNMAP))
		return (void *)-EINVAL;
	if (!map_find(c, lo, &e, &seq))
		return (void *)-EINVAL; /* begins outside, reaches inside: the kernel says EFAULT */
	if (old_len == 0) {             /* a second mapping of the same pages */
		int fl = flags & MREMAP_FIXED ? MAP_SHARED | MAP_FIXED : MAP_SHARED;

		if (!(e.flags & RF_MAP_SHARED) || !(flags & MREMAP_MAYMOVE))
			return (void *)-EINVAL;
		return map_mmap(c, e.l->file, to, new_len, MAP_PROT_OF(e.flags), fl,
				(e.pgoff << RF_PAGE_SHIFT) + (lo - e.start));
	}
	if (hi > e.end)
		return (void *)-EFAULT;
	if (nlen <= hi - lo && !(flags & MREMAP_FIXED)) {
		r = nlen < hi - lo ? map_munmap(c, (void *)(lo + nlen), hi - lo - nlen) : 0;
		return r ? (void *)(long)r : addr;
	}
	if (flags & MREMAP_FIXED) {
		uintptr_t t = (uintptr_t)to;
		if ((t & (RF_PAGE_SIZE - 1)) || (t < hi && lo < t + nlen))
			return (void *)-EINVAL;
		r = map_forget(c, to, nlen);
		if (r)
			return (void *)(long)r;
	}

	m = sys_lock(&c->lock);
	i = lower(c, lo);
	p = (void *)-EFAULT;
	if (i >= atomic_load(&c->proc->nmaps) || atomic_load(&c->proc->nmaps) + 3 > RF_MAPS)
		goto out;
	entry_load(c, i, &e);
	if (e.start > lo || e.end < hi || !e.l)
		goto out;
	moved = e;
	moved.pgoff = e.pgoff + ((lo - e.start) >> RF_PAGE_SHIFT);
	p = (void *)-ENOMEM;
	if (!(e.flags & RF_MAP_SHARED)) {
		/* The bits of the pages that move go along; a mapping has its own after that. */
		moved.l = local_take(c, e.l->file, moved.pgoff, nlen >> RF_PAGE_SHIFT, true,
				     &moved.local);
		if (!moved.l)
			goto out;
	} else {
		atomic_fetch_add(&e.l->refs, 1);
	}

	change_begin(c);
	strip_quiesce(c);
	if (moved.l != e.l) {
		/* Who sets one of the bits right now does so in a slot, and looks at the table first. */
		slot_quiesce(c, e.vnode);
		for (uint64_t k = 0; k < (hi - lo) >> RF_PAGE_SHIFT; k++)
			if (map_copied(e.l, moved.pgoff + k))
				atomic_fetch_or(&moved.l->copied[k / 64], UINT64_C(1) << k % 64);
	}
	p = (void *)rf_syscall(SYS_mremap, addr, old_len, new_len, flags, to);
	if (sys_err(p)) {
		struct file *f = local_drop(moved.l);
		if (f)
			puts.f[puts.n++] = f;
		change_end(c);
		goto out;
	}
	moved.start = (uintptr_t)p;
	moved.end = moved.start + nlen;
	r = rf_uffd_register(c->uffd, moved.start, nlen, RF_UFFD_MODES);
	if (!r && (e.flags & RF_MAP_SHARED)) {
		sys_zap(moved.start, nlen);
		rf_syscall(SYS_madvise, moved.start, nlen, MADV_DONTFORK);
	} else if (!r) {
		zap_private(&moved);
	}
	cut(c, lo, hi, &puts);
	pin_move(c, lo, hi, moved.start);
	if (!r)
		insert(c, &moved);
	change_end(c);
	if (r) { /* moved, but cannot be managed: nobody may read it */
		struct file *f = local_drop(moved.l);
		if (f)
			puts.f[puts.n++] = f;
		rf_syscall(SYS_munmap, p, nlen);
		p = (void *)(long)r;
	}
out:
	sys_unlock(&c->lock, m);
	put_all(c, &puts);
	return p;
}

/*
 * Under an odd map_seq, and without slots, nobody makes a copy: so what is marked as one when this is
 * done is one, and is not shown as the program's own when it is the file's.
 */
int map_uncopy(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi, int advice)
{
	sys_mask m;
	int r;

	if (e->flags & RF_MAP_SHARED)
		return (int)rf_syscall(SYS_madvise, lo, hi - lo, advice);
	m = sys_lock(&c->lock);
	change_begin(c);
	slot_quiesce(c, e->vnode);
	r = (int)rf_syscall(SYS_madvise, lo, hi - lo, advice);
	for (uint64_t p = map_page(e, lo); !r && p <= map_page(e, hi - 1); p++) {
		const uint64_t i = p - e->l->pgoff0;

		atomic_fetch_and(&e->l->copied[i / 64], ~(UINT64_C(1) << i % 64));
	}
	change_end(c);
	sys_unlock(&c->lock, m);
	return r;
}

/* ---- the rest of the family: for every managed piece of [addr, addr + len) ---- */

bool map_any(const struct ctx *c, uintptr_t lo, uintptr_t hi)
{
	const uint32_t i = lower(c, lo);

	return i < atomic_load(&c->proc->nmaps) && atomic_load(&c->proc->map[i].start) < hi;
}

/* An entry that is held: its file and views stay. */
struct piece {
	struct map_entry e;
	struct undo undo;
};

static void piece_drop(void *arg)
{
	const struct piece *p = arg;
	struct ctx *c = rf_ctx;
	struct file *f;
	sys_mask m = sys_lock(&c->lock);

	f = local_drop(p->e.l);
	sys_unlock(&c->lock, m);
	if (f)
		file_put(c, f);
}

/* The first that ends above `at`, until piece_put. */
static bool piece_get(struct ctx *c, uintptr_t at, uintptr_t end, struct piece *p)
{
	struct map_entry *e = &p->e;
	sys_mask m = sys_lock(&c->lock);
	uint32_t i = lower(c, at);
	bool hit = i < atomic_load(&c->proc->nmaps);

	if (hit) {
		entry_load(c, i, e);
		hit = e->start < end && e->l;
	}
	if (hit) {
		atomic_fetch_add(&e->l->refs, 1);
		undo_begin(&p->undo, piece_drop, p);
	}
	sys_unlock(&c->lock, m);
	return hit;
}

static void piece_put(struct piece *p)
{
	undo_end(&p->undo);
}

int map_each(struct ctx *c, const void *addr, size_t len, map_fn fn, void *arg)
{
	uintptr_t at = (uintptr_t)addr, end = at + len;
	struct piece p;
	int r = 0;

	while (!r && at < end && piece_get(c, at, end, &p)) {
		r = fn(c, &p.e, p.e.start > at ? p.e.start : at, p.e.end < end ? p.e.end : end,
		       arg);
		at = p.e.end;
		piece_put(&p);
	}
	return r;
}

static int may_write(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		     void *arg)
{
	(void)arg;
	if (!(e->flags & RF_MAP_WRITE))
		return -EACCES;
	/* Where CONTINUE cannot protect, pages mapped read-only are present and unprotected. */
	if (c->mode & CTX_NO_CONTINUE_WP)
		return rf_uffd_wp(c->uffd, lo, hi - lo, 1);
	return 0;
}

/* Pieces of one mapping that are alike again, from the one before lo to the one at hi, become one. */
static void join(struct ctx *c, uintptr_t lo, uintptr_t hi)
{
	struct map_entry e, next;
	uint32_t i = lower(c, lo);

	for (i = i ? i - 1 : 0; i + 1 < atomic_load(&c->proc->nmaps);) {
		entry_load(c, i, &e);
		entry_load(c, i + 1, &next);
		if (e.start > hi)
			break;
		if (!e.l || e.l != next.l || e.end != next.start || e.flags != next.flags ||
		    e.pgoff + ((e.end - e.start) >> RF_PAGE_SHIFT) != next.pgoff) {
			i++;
			continue;
		}
		e.end = next.end;
		entry_store(c, i, &e);
		erase(c, i + 1);
		local_drop(next.l); /* e has it still */
	}
}

int map_flags(struct ctx *c, uintptr_t lo, uintptr_t hi, uint32_t clear, uint32_t set)
{
	struct map_entry e;
	sys_mask m = sys_lock(&c->lock);
	int r = -ENOMEM;

	if (atomic_load(&c->proc->nmaps) + 2 > RF_MAPS)
		goto out;
	change_begin(c);
	split(c, lo);
	split(c, hi);
	for (uint32_t i = lower(c, lo); i < atomic_load(&c->proc->nmaps); i++) {
		entry_load(c, i, &e);
		if (e.start >= hi)
			break;
		e.flags = (e.flags & ~clear) | set;
		entry_store(c, i, &e);
	}
	join(c, lo, hi);
	change_end(c);
	r = 0;
out:
	sys_unlock(&c->lock, m);
	return r;
}

int map_mprotect(struct ctx *c, void *addr, size_t len, int prot)
{
	int r;

	if (prot & PROT_WRITE) {
		r = map_each(c, addr, round_up(len), may_write, NULL);
		if (r)
			return r;
	}
	r = (int)rf_syscall(SYS_mprotect, addr, len, prot);
	return r ? r
		 : map_flags(c, (uintptr_t)addr, (uintptr_t)addr + round_up(len), MAP_PROT(7),
			     MAP_PROT(prot));
}

static int flush_piece(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		       void *arg)
{
	uint64_t first = map_page(e, lo), last = map_page(e, hi - 1);

	(void)arg;
	if (!(e->flags & RF_MAP_SHARED))
		return 0;
	return file_flush(c, e->l->file, first, last - first + 1, RF_FLUSH_DURABLE);
}

int map_msync(struct ctx *c, void *addr, size_t len, int flags)
{
	int r = (int)rf_syscall(SYS_msync, addr, len, flags);

	if (r || !(flags & MS_SYNC))
		return r;
	return map_each(c, addr, round_up(len), flush_piece, NULL);
}

struct populate {
	bool write;
	struct pin_call *pins;
	int err; /* of the first page that is not to be had */
};

static int populate_piece(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
			  void *arg)
{
	struct populate *p = arg;
	const bool write = p->write && (e->flags & RF_MAP_WRITE);
	sys_mask m = sys_block_all(); /* as in the handler: a slot is held in there */
	int r = 0;

	if (p->pins && (e->flags & RF_MAP_SHARED))
		pin_call_add(c, p->pins, e->l->vn, map_page(e, lo),
			     map_page(e, hi - 1) - map_page(e, lo) + 1, m);
	for (uintptr_t a = lo & ~(RF_PAGE_SIZE - 1); a < hi && !r; a += RF_PAGE_SIZE)
		r = fault_resolve(c, a, write, false, m);
	sys_setmask(m);
	p->err = p->err ? p->err : r; /* the kernel will say EFAULT, where it comes to that */
	return 0;
}

int map_populate(struct ctx *c, const void *p, size_t n, bool write, struct pin_call *pins)
{
	struct populate arg = {write, pins, 0};

	map_each(c, p, n, populate_piece, &arg);
	return arg.err;
}

/* ---- fork ---- */

/* Both locks are held over the fork: the child gets a table at rest. */
int map_fork_prepare(struct ctx *c)
{
	c->fork.m1 = sys_lock(&c->attach_lock);
	c->fork.m2 = sys_lock(&c->lock);
	c->fork.n = c->proc ? atomic_load(&c->proc->nmaps) : 0;
	c->fork.e = NULL;
	if (!c->fork.n)
		return 0;
	/* The proc area is shared memory: the parent goes on changing it while the child reads. */
	c->fork.bytes = round_up(c->fork.n * sizeof(struct map_entry));
	c->fork.e = sys_mmap(NULL, c->fork.bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sys_err(c->fork.e)) {
		c->fork.e = NULL;
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < c->fork.n; i++)
		entry_load(c, i, &c->fork.e[i]);
	return 0;
}

void map_fork_parent(struct ctx *c)
{
	void *p = c->fork.e;
	uint64_t n = c->fork.bytes;
	sys_mask m1 = c->fork.m1, m2 = c->fork.m2;

	sys_unlock(&c->lock, m2);
	sys_unlock(&c->attach_lock, m1);
	if (p)
		rf_syscall(SYS_munmap, p, n);
}

/* The shared mappings left holes: keep everything else out of them. */
void map_fork_reserve(struct ctx *c)
{
	for (uint32_t i = 0; i < c->fork.n && c->fork.e; i++) {
		const struct map_entry *e = &c->fork.e[i];

		if (e->flags & RF_MAP_SHARED)
			sys_mmap((void *)e->start, e->end - e->start, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
				 -1, 0);
	}
}

/*
 * Alone in the child, attached with a table of its own: map everything again at the same place.
 * What cannot be mapped stays unmapped: touching it is a loud SIGSEGV, not stale data.
 */
int map_fork_child(struct ctx *c)
{
	struct map_entry *e;
	int r, err = 0;
	uint32_t n = 0;

	for (uint32_t i = 0; i < c->fork.n && c->fork.e; i++) {
		e = &c->fork.e[i];
		e->flags &= ~(uint32_t)RF_MAP_LOCKED; /* not inherited */
		if (e->flags & RF_MAP_SHARED) {
			void *p = map_raw(c, e->l->vn, (void *)e->start, e->end - e->start,
					  MAP_SHARED | MAP_FIXED, e->pgoff << RF_PAGE_SHIFT);
			r = sys_err(p) ? (int)(long)p
				       : (int)rf_syscall(SYS_mprotect, p, e->end - e->start,
							 MAP_PROT_OF(e->flags));
		} else {
			r = rf_uffd_register(c->uffd, e->start, e->end - e->start, RF_UFFD_MODES);
			if (!r)
				zap_private(e);
		}
		if (r) {
			err = r;
			rf_syscall(SYS_munmap, e->start, e->end - e->start);
			local_drop(e->l);
			continue;
		}
		entry_store(c, n++, e);
	}
	atomic_store(&c->proc->nmaps, n);
	change_begin(c);
	change_end(c);
	return err;
}
