/* SPDX-License-Identifier: MIT */
/*
 * pin.c - pins: of system calls under way, and refault_pin's.
 *
 *	slot; `invalidate`, then `frozen` set -> leave, wait, again; CAS taken 0 -> ticket; the rest;
 *	vnode; leave
 *
 * So a structural change, which sets `frozen` in the exclusive side, has seen every pin there is when
 * it goes on, and none is added before the file thaws.  A pin is given back by two stores.
 *
 * refault_pin: the pin first, then its pages are made DIRTY one by one, and mapped: from then on they
 * stay DIRTY, for the agent keeps what is pinned so.  Made DIRTY before they were pinned, they could
 * be flushed in between.  It may not take all twins there are, or programs' stores would wait for
 * ever: at most PART of them; and it gives up if PAGE_RECLAIMS flushes have given it none.
 *
 * A private mapping's pages become the program's own copies, as they do for the kernel's own
 * long-term pins; the file and its agent have nothing to do with those.
 *
 * Counters: pin.
 * Locks: the slot; ctx->lock for the records of refault_pin.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "file.h"
#include "map.h"
#include "pin.h"

#define API __attribute__((visibility("default")))
#define WAIT_DEFAULT 10000u /* ms */
#define PART(ntwins) ((uint64_t)(ntwins) / 4 * 3)
#define TRIES 1000u

static __thread struct {
	uint32_t tid, attach; /* attach: a fork child is another thread */
} self;

static uint32_t self_tid(const struct ctx *c)
{
	const uint32_t attach = atomic_load_explicit(&c->attached, memory_order_relaxed);

	if (!self.tid || self.attach != attach) {
		self.tid = (uint32_t)rf_syscall(SYS_gettid);
		self.attach = attach;
	}
	return self.tid;
}

/* ---- one pin ---- */

static struct rf_pin *pool_take(struct ctx *c)
{
	struct rf_proc *p = c->proc;
	uint32_t from = atomic_load_explicit(&c->pin_hint, memory_order_relaxed), ticket;

	do
		ticket = atomic_fetch_add(&c->pin_ticket, 1) + 1;
	while (!ticket);
	for (uint32_t k = 0; k < RF_PINS; k++) {
		const uint32_t i = (from + k) % RF_PINS;
		uint32_t free = 0, used = atomic_load(&p->pins_used);

		if (atomic_load_explicit(&p->pin[i].taken, memory_order_relaxed))
			continue;
		/* The agent looks below pins_used only: first this, then the pin. */
		while (used < i + 1 && !atomic_compare_exchange_weak(&p->pins_used, &used, i + 1))
			;
		if (!atomic_compare_exchange_strong(&p->pin[i].taken, &free, ticket))
			continue;
		/* The lowest that are free, so that the agent has few to look at. */
		atomic_store_explicit(&c->pin_hint, i, memory_order_relaxed);
		return &p->pin[i];
	}
	return NULL;
}

int pin_take_masked(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t n, uint32_t flags,
		    struct rf_pin **out)
{
	struct slot_ref slot;
	struct rf_pin *pin;
	int r = slot_try_masked(c, vn, page, 1, &slot);

	if (r)
		return r;
	r = -EINPROGRESS;
	if (atomic_load(&atomic_load(&vn->st)->frozen))
		goto out;
	r = -ENOMEM;
	pin = pool_take(c);
	if (!pin)
		goto out;
	atomic_store_explicit(&pin->owner, self_tid(c), memory_order_relaxed);
	atomic_store_explicit(&pin->flags, flags, memory_order_relaxed);
	atomic_store_explicit(&pin->page, page, memory_order_relaxed);
	atomic_store_explicit(&pin->npages, n, memory_order_relaxed);
	atomic_store_explicit(&pin->vnode, vn->id, memory_order_release);
	*out = pin;
	count(c, RF_R_PIN);
	r = 0;
out:
	slot_leave_masked(&slot);
	return r;
}

void pin_give(struct rf_pin *pin)
{
	struct ctx *c = rf_ctx;

	atomic_store_explicit(&pin->vnode, 0, memory_order_release);
	atomic_store_explicit(&pin->taken, 0, memory_order_release);
	if (pin < &c->proc->pin[atomic_load_explicit(&c->pin_hint, memory_order_relaxed) % RF_PINS])
		atomic_store_explicit(&c->pin_hint, (uint32_t)(pin - c->proc->pin),
				      memory_order_relaxed);
}

/* The same, waiting for whoever keeps it out; signals blocked but for the waits. */
static int take(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t n, uint32_t flags,
		struct rf_pin **out, sys_mask mask)
{
	sys_mask held;
	int r;

	for (;;) {
		r = pin_take_masked(c, vn, page, n, flags, out);
		if (r != -EAGAIN && r != -EINPROGRESS)
			return r;
		rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &held, 8);
		if (r == -EAGAIN) {
			count(c, RF_R_LOCK_WAIT);
			r = slot_wait_lock(c, vn);
		} else {
			r = vnode_thaw(c, vn);
		}
		sys_setmask(held);
		if (r)
			return r;
	}
}

/* ---- of a system call ---- */

static void call_give(void *arg)
{
	struct pin_call *p = arg;
	uint32_t n = atomic_load(&p->n);

	atomic_store(&p->n, 0);
	while (n && p->attach == atomic_load(&rf_ctx->attached))
		pin_give(p->pin[--n]);
}

void pin_call_begin(struct ctx *c, struct pin_call *p, uint32_t flags)
{
	p->flags = flags;
	p->attach = atomic_load(&c->attached);
	p->missed = false;
	atomic_store(&p->n, 0);
	undo_begin(&p->undo, call_give, p);
}

void pin_call_end(struct pin_call *p)
{
	sys_mask m = sys_block_all(); /* nobody jumps out of this */

	undo_end(&p->undo);
	sys_setmask(m);
}

void pin_call_add(struct ctx *c, struct pin_call *p, struct vnode *vn, uint64_t page, uint64_t n,
		  sys_mask mask)
{
	uint32_t i = atomic_load(&p->n);

	if (i == PIN_CALL_MAX || take(c, vn, page, n, p->flags, &p->pin[i], mask))
		p->missed = true;
	else
		atomic_store(&p->n, i + 1);
}

/* ---- policy ---- */

static __thread struct {
	int policy, wait_ms, then;
} mine;

uint32_t pin_policy(struct ctx *c, uint32_t vnode)
{
	const struct vnode *vn = vnode_by_id(c, vnode);
	uint32_t conf = vn ? atomic_load(&vn->pins) : 0, ms;

	if (!conf)
		conf = c->pins ? c->pins : RF_PINS_DEFAULT;
	switch (mine.policy) {
	case REFAULT_PINS_FAIL:
		return rf_pins(RF_PINS_FAIL, 0);
	case REFAULT_PINS_SEQUESTER:
		return rf_pins(RF_PINS_SEQUESTER, 0);
	case REFAULT_PINS_WAIT:
		ms = conf & RF_PINS_WAIT_MAX ? conf & RF_PINS_WAIT_MAX : WAIT_DEFAULT;
		ms = mine.wait_ms < 0 ? ms : (uint32_t)mine.wait_ms;
		return rf_pins(mine.then == REFAULT_PINS_FAIL ? RF_PINS_FAIL : RF_PINS_SEQUESTER,
			       ms);
	default:
		return conf;
	}
}

API int refault_pins(int policy, int wait_ms, int then)
{
	if (policy < REFAULT_PINS_DEFAULT || policy > REFAULT_PINS_SEQUESTER)
		return wrap_ret(-EINVAL);
	if (policy == REFAULT_PINS_WAIT &&
	    (wait_ms < -1 || (then != REFAULT_PINS_FAIL && then != REFAULT_PINS_SEQUESTER)))
		return wrap_ret(-EINVAL);
	mine.policy = policy;
	mine.wait_ms = wait_ms;
	mine.then = then;
	return 0;
}

/* A word of it up to `:` or the end; NULL: another. */
static const char *word(const char *s, const char *w)
{
	const size_t n = strlen(w);

	return strncmp(s, w, n) == 0 && (!s[n] || s[n] == ':') ? s + n : NULL;
}

uint32_t pin_parse(const char *s)
{
	uint64_t ms = 0, unit = 1000;

	if (strcmp(s, "fail") == 0)
		return rf_pins(RF_PINS_FAIL, 0);
	if (strcmp(s, "sequester") == 0)
		return rf_pins(RF_PINS_SEQUESTER, 0);
	s = word(s, "wait");
	if (!s)
		return 0;
	if (!*s)
		return rf_pins(RF_PINS_FAIL, WAIT_DEFAULT);
	if (*++s < '0' || *s > '9')
		return 0;
	for (; *s >= '0' && *s <= '9' && ms <= RF_PINS_WAIT_MAX; s++)
		ms = ms * 10 + (uint64_t)(*s - '0') * 1000;
	if (*s == '.')
		for (s++; *s >= '0' && *s <= '9'; s++)
			ms += (uint64_t)(*s - '0') * (unit /= 10);
	if (ms > RF_PINS_WAIT_MAX)
		return 0;
	if (!*s || strcmp(s, ":fail") == 0)
		return rf_pins(RF_PINS_FAIL, (uint32_t)ms);
	return strcmp(s, ":sequester") == 0 ? rf_pins(RF_PINS_SEQUESTER, (uint32_t)ms) : 0;
}

/* ---- refault_pin ---- */

/* One piece of one refault_pin. */
struct pin_record {
	uintptr_t addr; /* as it was called with; len 0: free */
	size_t len;
	uint64_t group;
	uintptr_t lo, hi;   /* what of it is still mapped */
	struct rf_pin *pin; /* NULL: of a private mapping */
};

struct want {
	uintptr_t addr, at;
	size_t len;
	uint64_t group;
	bool write;
};

/* Records in use end below c->pin_records.  ctx->lock held. */
static struct pin_record *record_take(struct ctx *c)
{
	uint32_t i;

	if (!c->pin_record) {
		void *p = sys_mmap(NULL, RF_PINS * sizeof(struct pin_record),
				   PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (sys_err(p))
			return NULL;
		c->pin_record = p;
	}
	for (i = 0; i < c->pin_records && c->pin_record[i].len; i++)
		;
	if (i == RF_PINS)
		return NULL;
	if (i == c->pin_records)
		c->pin_records++;
	return &c->pin_record[i];
}

static void record_drop(struct ctx *c, struct pin_record *r)
{
	if (r->pin) {
		atomic_fetch_sub(&c->pin_pages, atomic_load(&r->pin->npages));
		pin_give(r->pin);
	}
	r->len = 0;
}

/* Of the group, or of the first with that address and length (group 0).  How many pieces. */
static uint32_t drop(struct ctx *c, uintptr_t addr, size_t len, uint64_t group)
{
	sys_mask m = sys_lock(&c->lock);
	uint32_t n = 0;

	for (uint32_t i = 0; i < c->pin_records; i++) {
		struct pin_record *r = &c->pin_record[i];

		if (r->len != len || r->addr != addr || (group && r->group != group))
			continue;
		group = r->group;
		record_drop(c, r);
		n++;
	}
	sys_unlock(&c->lock, m);
	return n;
}

void pin_forget(struct ctx *c, uintptr_t lo, uintptr_t hi)
{
	for (uint32_t i = 0; i < c->pin_records; i++) {
		struct pin_record *r = &c->pin_record[i];

		if (!r->len || hi <= r->lo || lo >= r->hi)
			continue;
		if (lo <= r->lo)
			r->lo = hi;
		else if (hi >= r->hi)
			r->hi = lo;
		/* What went from the middle before is known to the table only. */
		if (r->lo >= r->hi || !map_any(c, r->lo, r->hi))
			record_drop(c, r);
	}
}

void pin_move(struct ctx *c, uintptr_t lo, uintptr_t hi, uintptr_t to)
{
	for (uint32_t i = 0; i < c->pin_records; i++) {
		struct pin_record *r = &c->pin_record[i];

		if (!r->len || r->hi <= lo || r->lo >= hi)
			continue;
		if (r->lo < lo || r->hi > hi) { /* torn apart: as long as anything is mapped */
			r->lo = 0;
			r->hi = UINTPTR_MAX;
			continue;
		}
		r->lo += to - lo;
		r->hi += to - lo;
	}
}

void pin_gone(struct ctx *c, uint32_t vnode)
{
	for (uint32_t i = 0; i < c->pin_records; i++) {
		struct pin_record *r = &c->pin_record[i];

		if (r->len && r->pin && atomic_load(&r->pin->vnode) == vnode)
			record_drop(c, r);
	}
}

void pin_fork_child(struct ctx *c)
{
	for (uint32_t i = 0; i < c->pin_records; i++)
		c->pin_record[i].len = 0;
	c->pin_records = 0;
	atomic_store(&c->pin_pages, 0);
}

/* Make a page DIRTY that this mapping may not be stored through. */
static int dirty(struct ctx *c, const struct map_entry *e, uint64_t page, sys_mask mask)
{
	struct vnode *vn = e->l->vn;
	const uint32_t key = file_key(e->l->file);
	uint32_t tries = 0, shorts = 0;
	struct slot_ref slot;
	uint64_t seen = 0;
	int r;

	for (;;) {
		const bool valid = vnode_valid(c, vn); /* before the size, see fault_resolve */

		if (page < RF_PAGES(atomic_load(&atomic_load(&vn->st)->i_size)))
			r = vnode_cover(c, vn, page + 1);
		else
			r = valid ? -ENXIO : -EFAULT;
		if (r && r != -EAGAIN && r != -EFAULT)
			return r;
		if (!r)
			r = vnode_valid(c, vn) ? slot_enter(c, vn, page, 1, &slot) : -EFAULT;
		if (!r) {
			r = page_mkwrite(c, vn, page, key, &seen);
			slot_leave(&slot);
			if (!r)
				return 0;
			if (r == -EAGAIN) {
				r = page_wait(c, vn, page, seen);
				if (r)
					return r;
				continue;
			}
		}
		if (r == -EINPROGRESS)
			r = vnode_thaw(c, vn);
		else if (r == -ENOMEM && ++shorts < PAGE_RECLAIMS)
			r = page_reclaim(c, mask);
		else if ((r == -EFAULT || r == -EAGAIN) && ++tries < TRIES)
			r = agent_fault(c, vn, key, page, 1, 0);
		else if (r == -EBUSY && ++tries < TRIES)
			r = page_flush_other(c, vn, page, 1, mask);
		if (r)
			return r;
	}
}

/* Every page DIRTY and mapped, as well as this mapping can. */
static int pin_pages(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi)
{
	const bool store = map_may_store(e);
	sys_mask m, mask = sys_getmask();
	uint32_t turn;
	int r = 0;

	do {
		turn = atomic_load(&c->strip_turn);
		for (uintptr_t a = lo; a < hi; a += RF_PAGE_SIZE) {
			if (!store)
				r = dirty(c, e, e->pgoff + ((a - e->start) >> RF_PAGE_SHIFT), mask);
			if (r)
				return r;
			m = sys_block_all();
			r = fault_resolve(c, a, store, false, m);
			sys_setmask(m);
			if (r)
				return r;
		}
		/* A strip that did not know of the pin, or of a page as dirty, took some away. */
		strip_quiesce(c);
	} while (atomic_load(&c->strip_turn) != turn);
	return 0;
}

static int pin_piece(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		     void *arg)
{
	const bool shared = e->flags & RF_MAP_SHARED;
	const uint64_t n = (hi - lo) >> RF_PAGE_SHIFT;
	struct want *w = arg;
	struct pin_record *rec;
	struct rf_pin *pin = NULL;
	sys_mask m;
	int r;

	if (lo != w->at)
		return -ENOMEM;
	w->at = hi;
	if (!(map_prot(e) & PROT_READ) || ((w->write || !shared) && !map_may_store(e)))
		return -EACCES;
	if (shared) {
		r = -ENOMEM;
		if (atomic_fetch_add(&c->pin_pages, n) + n <= PART(c->ntwins)) {
			m = sys_block_all();
			r = take(c, e->l->vn, e->pgoff + ((lo - e->start) >> RF_PAGE_SHIFT), n,
				 RF_PIN_LONG, &pin, m);
			sys_setmask(m);
		}
		if (r) {
			atomic_fetch_sub(&c->pin_pages, n);
			return r;
		}
	}
	m = sys_lock(&c->lock);
	rec = record_take(c);
	if (rec)
		*rec = (struct pin_record){w->addr, w->len, w->group, lo, hi, pin};
	sys_unlock(&c->lock, m);
	if (!rec) {
		if (pin) {
			pin_give(pin);
			atomic_fetch_sub(&c->pin_pages, n);
		}
		return -ENOMEM;
	}
	return shared ? pin_pages(c, e, lo, hi) : map_copy(c, lo, hi);
}

API int refault_pin(void *addr, size_t len, unsigned flags)
{
	const uintptr_t a = (uintptr_t)addr, lo = a & ~(RF_PAGE_SIZE - 1);
	const uintptr_t hi = (a + len + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
	struct ctx *c = ctx_get();
	struct want w = {.addr = a, .at = lo, .len = len, .write = flags & REFAULT_PIN_WRITE};
	int r;

	if ((flags & ~(unsigned)REFAULT_PIN_WRITE) || !len)
		return wrap_ret(-EINVAL);
	if (hi <= lo || !map_hits(c, addr, len))
		return wrap_ret(-ENOMEM);
	w.group = atomic_fetch_add(&c->pin_group, 1) + 1;
	r = map_each(c, (void *)lo, hi - lo, pin_piece, &w);
	if (!r && w.at != hi)
		r = -ENOMEM;
	if (r)
		drop(c, a, len, w.group);
	return wrap_ret(r == -ENXIO ? -EFAULT : r == -ENOENT ? -ENOMEM : r);
}

API int refault_unpin(void *addr, size_t len)
{
	struct ctx *c = ctx_get();

	return wrap_ret(len && drop(c, (uintptr_t)addr, len, 0) ? 0 : -EINVAL);
}
