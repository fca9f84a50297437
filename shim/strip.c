/* SPDX-License-Identifier: MIT */
/*
 * strip.c - the stripper: a process of its own that shares the program's memory.
 *
 * It is made by clone(CLONE_VM) with no exit signal, in a process group of its own: it runs on
 * while the program is stopped, and the program's wait() calls never see it.  It has its own
 * descriptor table, emptied of all but five: the agent's socket, the userfaultfd, an eventfd to be
 * poked by, the read end of a pipe whose write end only the program holds (hang-up: the program has
 * exec'd or is gone), and the program's pidfd.  It goes when any of these says so, for it pins the
 * address space.
 *
 * Orders (struct rf_strip) are carried out in order and sent back when done.  Before a range is
 * stripped it is write-protected: ENOENT says that a raw munmap or mmap took (part of) it away, and
 * what is there now is not ours to touch.
 *
 * Between orders it watches the lease: when the promise of a file whose mapping was touched runs
 * out (the agent is stuck or gone) it strips that mapping by itself; and when the machine was
 * suspended, which the promise's clock does not count, it takes the promises back and strips
 * everything, pinned or not.  It sleeps until the earliest promise it saw ends (lease_next); a fault that maps
 * under an earlier one pokes it.  Programs take a promise for over 10 ms before it ends
 * (vnode_valid), so nothing is mapped late but by a thread that was preempted, and that looks again
 * afterwards.
 *
 * It shares the thread-local storage of the thread that made it, so it uses no libc at all.
 *
 * Counters: strip-done.
 * Locks: none; strip_busy while it acts on what it read from the table.
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include "file.h"
#include "map.h"

#define STACK (64u * 1024)

struct stripper {
	struct ctx *c;
	struct rf_proc *proc;
	int sock, uffd, hup, pidfd, poke;
};

/* ---- stripping ---- */

/* Strip what of [start, start + len) is still registered; halve around what is not. */
static void strip_range(const struct stripper *s, uintptr_t start, uint64_t len)
{
	int r;

	do
		r = rf_uffd_wp(s->uffd, start, len, 1);
	while (r == -EAGAIN);
	if (r == 0) {
		sys_zap(start, len);
	} else if (len > RF_PAGE_SIZE) {
		uint64_t half = (len / 2 + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
		strip_range(s, start, half);
		strip_range(s, start + half, len - half);
	}
}

/*
 * The first run of pages at or behind `page` that LONG pins of this program cover; end if there is
 * none.  One that is being taken now is not seen, and its taker looks for us (pin.c).
 */
static uint64_t pinned(const struct rf_proc *p, uint32_t vnode, uint64_t page, uint64_t end,
		       uint64_t *to)
{
	uint32_t used = atomic_load(&p->pins_used);
	uint64_t from = end;

	*to = end;
	for (uint32_t i = 0; i < used && i < RF_PINS; i++) {
		const struct rf_pin *pin = &p->pin[i];
		uint64_t lo, hi;

		if (atomic_load(&pin->vnode) != vnode || !(atomic_load(&pin->flags) & RF_PIN_LONG))
			continue;
		lo = atomic_load(&pin->page);
		hi = lo + atomic_load(&pin->npages);
		lo = lo > page ? lo : page;
		if (lo >= hi || lo >= from)
			continue;
		from = lo;
		*to = hi < end ? hi : end;
	}
	return from;
}

static bool is_dirty(const struct vnode *vn, uint64_t page)
{
	enum rf_page_state s;

	if (page >= atomic_load(&vn->cap))
		return false;
	s = rf_w_state(atomic_load(vnode_word(vn, page)));
	return s == RF_PG_DIRTY || s == RF_PG_WRITEBACK;
}

/*
 * All pages of [i, end) of the file but those that are pinned and dirty: what is dirty is merged
 * before the break is acknowledged, and stays dirty as long as it is pinned.  True if there are any.
 */
static bool strip_unpinned(const struct stripper *s, const struct map_entry *e, uint64_t i,
			   uint64_t end)
{
	uint64_t from, to, start = i;
	bool left = false;

	while (i < end) {
		from = pinned(s->proc, e->vnode, i, end, &to);
		for (i = from; i < to && from < end; i++) {
			if (!is_dirty(e->l->vn, i))
				continue;
			left = true;
			if (start < i)
				strip_range(s, e->start + (start - e->pgoff) * RF_PAGE_SIZE,
					    (i - start) * RF_PAGE_SIZE);
			start = i + 1;
		}
	}
	if (start < end)
		strip_range(s, e->start + (start - e->pgoff) * RF_PAGE_SIZE,
			    (end - start) * RF_PAGE_SIZE);
	return left;
}

/* pins: pinned pages may stay; whether some did. */
static bool strip_entry(const struct stripper *s, const struct map_entry *e, bool pins)
{
	uint64_t n = (e->end - e->start) >> RF_PAGE_SHIFT, i = 0, j;

	atomic_fetch_add(&s->c->strip_turn, 1);
	if (e->flags & RF_MAP_SHARED) {
		if (pins)
			return strip_unpinned(s, e, e->pgoff, e->pgoff + n);
		strip_range(s, e->start, e->end - e->start);
		return false;
	}
	while (i < n) { /* all but the program's own copies */
		for (; i < n && map_copied(e->l, e->pgoff + i); i++)
			;
		for (j = i; j < n && !map_copied(e->l, e->pgoff + j); j++)
			;
		if (j > i)
			strip_range(s, e->start + i * RF_PAGE_SIZE, (j - i) * RF_PAGE_SIZE);
		i = j;
	}
	return false;
}

static uint64_t now_ns(clockid_t clk)
{
	struct timespec t = {0};
	rf_syscall(SYS_clock_gettime, clk, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/*
 * Visit every mapping, in order of addresses.  A table that changes under the walk costs a second
 * search, no more: what is mapped after the walk began has no PTE of before.
 *
 * strip_busy is up while an entry is used, so that its addresses and its vnode stay (map_forget and
 * mremap wait for it), and down while the table is changing: whoever changes it may wait for us.
 */
typedef void (*visit_fn)(const struct stripper *s, const struct map_entry *e, void *arg);

static void walk(const struct stripper *s, visit_fn visit, void *arg)
{
	struct ctx *c = s->c;
	uintptr_t at = 0;
	struct map_entry e;
	uint32_t seq, i = 0, spins = 0;
	int hit;

	for (;;) {
		atomic_store(&c->strip_busy, 1);
		atomic_thread_fence(memory_order_seq_cst);
		hit = map_try(c, i, &e, &seq);
		if (hit > 0 && e.end > at) {
			if (e.start < at) { /* pieces became one: up to there it is done */
				e.pgoff += (at - e.start) >> RF_PAGE_SHIFT;
				e.start = at;
			}
			visit(s, &e, arg);
			at = e.end;
		}
		atomic_store(&c->strip_busy, 0);
		if (hit == 0)
			return;
		if (hit < 0 || map_moved(c, seq)) { /* from the start: `at` skips what is done */
			struct timespec ms = {0, 1000000};

			i = 0;
			if (hit < 0 && ++spins > 100) /* its owner may be stopped in the middle */
				rf_syscall(SYS_nanosleep, &ms, 0);
			else
				rf_syscall(SYS_sched_yield);
		} else {
			i++;
		}
	}
}

static void visit_strip(const struct stripper *s, const struct map_entry *e, void *arg)
{
	struct rf_strip *order = arg;

	if (order->vnode && e->vnode != order->vnode)
		return;
	order->left |= strip_entry(s, e, order->flags & RF_STRIP_PINS);
	count(s->c, RF_R_STRIP_DONE);
}

/* ---- leases ---- */

struct lease {
	uint64_t now, next;
};

static void visit_lease(const struct stripper *s, const struct map_entry *e, void *arg)
{
	struct lease *l = arg;
	struct map_local *m = e->l;
	const uint64_t until = atomic_load(&atomic_load(&m->vn->st)->cb_expires_at);
	const bool holds = until > l->now;

	/* Pieces of one mapping share `touched`: what is true of the first goes for all of them. */
	if (m->stripped != l->now) {
		if (!atomic_load(&m->touched))
			return;
		if (holds) {
			m->until = until;
			l->next = until < l->next ? until : l->next;
			return;
		}
		/* Cleared first: who maps after this sees that the promise is over, and zaps. */
		atomic_store(&m->touched, 0);
		m->stripped = l->now;
	}
	/* Taken back: what is pinned may stay for as long as the server waits for us. */
	if (strip_entry(s, e, (!until || holds) && m->until > l->now)) {
		atomic_store(&m->touched, 1);
		l->next = m->until < l->next ? m->until : l->next;
	}
	count(s->c, RF_R_STRIP_DONE);
}

/*
 * Strip what was touched and is under no promise any more: it ran out, or it was taken back by an
 * agent that then did not come to order the strip.  Returns ns until the next one runs out, 0 if
 * none does; whoever touches one that does earlier pokes us.
 */
static uint64_t watch_leases(const struct stripper *s)
{
	struct lease l = {.now = now_ns(CLOCK_MONOTONIC), .next = UINT64_MAX};

	atomic_store(&s->c->lease_next, UINT64_MAX);
	walk(s, visit_lease, &l);
	atomic_store(&s->c->lease_next, l.next);
	return l.next == UINT64_MAX ? 0 : l.next - l.now;
}

static void visit_void(const struct stripper *s, const struct map_entry *e, void *arg)
{
	(void)arg;
	atomic_store(&atomic_load(&e->l->vn->st)->cb_expires_at, 0);
	strip_entry(s, e, false);
}

/* No promise of before holds: the machine slept, or the agent is gone. */
static void void_promises(const struct stripper *s)
{
	walk(s, visit_void, NULL);
}

/* ---- the process ---- */

static void close_others(struct stripper *s)
{
	int keep[] = {s->sock, s->uffd, s->hup, s->pidfd, s->poke};
	unsigned from = 0;

	for (;;) {
		int next = -1;
		for (int i = 0; i < 5; i++)
			if (keep[i] >= (int)from && (next < 0 || keep[i] < next))
				next = keep[i];
		if (next < 0)
			break;
		if ((unsigned)next > from)
			rf_syscall(SYS_close_range, from, next - 1, 0);
		from = (unsigned)next + 1;
	}
	rf_syscall(SYS_close_range, from, ~0u, 0);
}

static int strip_main(void *arg)
{
	/* On the stack: the maker goes on as soon as clone returns. */
	struct stripper self = *(struct stripper *)arg, *s = &self;
	int64_t asleep = (int64_t)(now_ns(CLOCK_BOOTTIME) - now_ns(CLOCK_MONOTONIC)), a;
	uint64_t wait;
	struct rf_strip order;

	rf_syscall(SYS_setpgid, 0, 0);
	rf_syscall(SYS_prctl, PR_SET_NAME, "refault-strip");
	close_others(s);
	int tfd = (int)rf_syscall(SYS_timerfd_create, CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	for (;;) {
		struct pollfd p[] = {{.fd = s->sock, .events = POLLIN},
				     {.fd = s->hup, .events = POLLIN},
				     {.fd = s->pidfd, .events = POLLIN},
				     {.fd = tfd, .events = POLLIN},
				     {.fd = s->poke, .events = POLLIN}};
		struct itimerspec it = {0};

		wait = watch_leases(s);
		it.it_value.tv_sec = (time_t)(wait / 1000000000u);
		it.it_value.tv_nsec = (long)(wait % 1000000000u);
		rf_syscall(SYS_timerfd_settime, tfd, 0, &it, 0);
		rf_syscall(SYS_ppoll, p, 5, 0, 0, 0);
		if (p[1].revents || p[2].revents)
			break;
		if (p[4].revents)
			rf_syscall(SYS_read, s->poke, &wait, sizeof(wait));
		a = (int64_t)(now_ns(CLOCK_BOOTTIME) - now_ns(CLOCK_MONOTONIC));
		if (a - asleep > 100000000) {
			asleep = a;
			void_promises(s);
		}
		while (rf_syscall(SYS_recvfrom, s->sock, &order, sizeof(order), MSG_DONTWAIT, 0,
				  0) == sizeof(order)) {
			order.left = 0;
			walk(s, visit_strip, &order);
			atomic_store(&s->proc->strip_ack, order.seq);
			rf_syscall(SYS_sendto, s->sock, &order, sizeof(order), MSG_NOSIGNAL, 0, 0);
		}
		if (p[0].revents & (POLLHUP | POLLERR)) {
			/* Agent and supervisor are gone: nobody will tell us of changes any more.
			 */
			void_promises(s);
			p[0].fd = -1;
			s->sock = -1;
		}
	}
	rf_syscall(SYS_exit, 0);
	return 0;
}

int strip_start(struct ctx *c, int sock)
{
	struct stripper s = {.c = c, .proc = c->proc, .sock = sock, .uffd = c->uffd};
	int pipe[2] = {-1, -1}, r;
	char *stack;
	sys_mask m;

	r = (int)rf_syscall(SYS_pipe2, pipe, O_CLOEXEC);
	if (r)
		return r;
	s.poke = (int)rf_syscall(SYS_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
	s.pidfd = (int)rf_syscall(SYS_pidfd_open, c->pid, 0);
	r = s.poke < 0 ? s.poke : s.pidfd;
	if (r < 0)
		goto fail;
	atomic_store(&c->strip_busy, 0);
	atomic_store(&c->lease_next, UINT64_MAX);
	/* It also holds `s` for the start; given back by a fork child only: the stripper lives as
	 * long as the program does. */
	stack = sys_mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	r = (int)(long)stack;
	if (sys_err(stack))
		goto fail;
	s.hup = pipe[0];
	*(struct stripper *)(void *)stack = s;
	m = sys_block_all();
	r = clone(strip_main, stack + STACK, CLONE_VM, stack);
	c->strip_pid = r;
	r = r < 0 ? -errno : 0;
	sys_setmask(m);
	if (r) {
		rf_syscall(SYS_munmap, stack, STACK);
		goto fail;
	}
	c->strip_stack = stack;
	rf_syscall(SYS_close, s.pidfd);
	rf_syscall(SYS_close, pipe[0]);
	c->hup = fd_hide(c, pipe[1]);
	c->poke = fd_hide(c, s.poke);
	return 0;
fail:
	if (s.poke >= 0)
		rf_syscall(SYS_close, s.poke);
	if (s.pidfd >= 0)
		rf_syscall(SYS_close, s.pidfd);
	rf_syscall(SYS_close, pipe[0]);
	rf_syscall(SYS_close, pipe[1]);
	return r;
}

void strip_quiesce(struct ctx *c)
{
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t n = 1; atomic_load(&c->strip_busy); n++) {
		rf_syscall(SYS_sched_yield);
		/* Somebody killed it in the middle: it will not come out. */
		if (n % 1024 == 0 &&
		    rf_syscall(SYS_wait4, c->strip_pid, 0, WNOHANG | __WCLONE, 0) == c->strip_pid) {
			log_line(
			    "the stripper was killed; files of this program go stale when their "
			    "lease ends");
			atomic_store(&c->strip_busy, 0);
		}
	}
}

void strip_forget(struct ctx *c)
{
	if (c->strip_stack)
		rf_syscall(SYS_munmap, c->strip_stack, STACK);
	c->strip_stack = NULL;
	atomic_store(&c->strip_busy, 0);
}
