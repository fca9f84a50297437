/* SPDX-License-Identifier: MIT */
/*
 * fault.c - touches of managed pages, resolved in the thread that made them (DESIGN 5, 11).
 *
 * In signal mode (UFFD_FEATURE_SIGBUS) a touch that the page tables cannot serve raises SIGBUS; the
 * handler resolves it and returns, and the instruction runs again.  In thread mode a thread reads
 * the faults from the userfaultfd instead; both call fault_resolve:
 *
 *	find the mapping; past EOF -> ENXIO
 *	claim a slot for the page (a run of pages for reads); invalidate set -> release, wait, again
 *	promise not valid, or page not cached -> release, ask the agent, again
 *	read:  CONTINUE the run write-protected; look again whether the promise held: no -> zap, again
 *	write: mkwrite (the word is DIRTY from here); CONTINUE or un-protect this one page; frozen ->
 *		release, wait, again
 *	release
 *
 * What the page tables hold is never trusted, only the word: a fault may be "missing" or "minor" by
 * the time it is looked at.
 *
 * Private mappings: a page is un-protected for its first store after its `copied` bit is set; the
 * kernel copies it then.  The stripper reads the bits while strip_busy; so after setting one, wait
 * for a stripper that may have read it clear, before the store can happen.
 *
 * Fault-around: one page for random access; a fault where the last run ended widens the next run
 * four times, to RUN_MAX.
 *
 * Everything here is async-signal-safe: raw system calls, initial-exec TLS, no malloc, no stdio.  It
 * runs with all signals but SIGBUS blocked; SIGBUS must come through for page_copy's fix-up.
 *
 * Counters: fault-read, -write, -wp, -agent, -bad; lock-wait, writeback-wait.
 * Locks: the slot; ctx->lock in vnode_cover.
 */
#define UNW_LOCAL_ONLY
#include <dlfcn.h>
#include <libunwind.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "file.h"
#include "map.h"

#define RUN_MAX 1023u /* RF_CLAIM_MAX_PAGES */
#define FETCH_WINDOW 16u
#define FLUSH_TRIES 1000 /* of a page that is dirty under another key, again and again */

extern char page_copy_insn[] __attribute__((visibility("hidden")));
extern char page_copy_end[] __attribute__((visibility("hidden")));

/* ---- resolving ---- */

static uint32_t window_next(struct map_local *l, uint64_t page)
{
	uint32_t w = 1;

	if (atomic_load_explicit(&l->next_page, memory_order_relaxed) == page) {
		w = atomic_load_explicit(&l->window, memory_order_relaxed) * 4;
		w = w > RUN_MAX ? RUN_MAX : w;
	}
	atomic_store_explicit(&l->window, w, memory_order_relaxed);
	return w;
}

/* Pages from `page` on, at most n, that may be mapped as they are. */
static uint32_t run_length(const struct vnode *vn, const struct map_entry *e, uint64_t page,
			   uint32_t n)
{
	const rf_word *w = vnode_word(vn, page);
	uint32_t k;

	for (k = 0; k < n; k++) {
		if (!rf_w_cached(atomic_load_explicit(&w[k], memory_order_relaxed)))
			break;
		if (k && e->l->copied && map_copied(e->l, page + k))
			break;
	}
	return k;
}

/* Map [a, a + n pages); pages that are there already are skipped.  -EFAULT: the first is a hole. */
static int map_run(struct ctx *c, uintptr_t a, uint32_t n, uint64_t mode)
{
	uintptr_t at = a, end = a + n * RF_PAGE_SIZE;
	uint64_t done;
	int r = 0;

	while (at < end) {
		r = rf_uffd_continue(c->uffd, at, end - at, mode, &done);
		at += done;
		if (r == 0 || r == -EFAULT || r == -ENOENT)
			break;
		if (r == -EEXIST)
			at += RF_PAGE_SIZE;
		else if (r != -EAGAIN)
			break;
		else if (!done)
			rf_syscall(SYS_sched_yield); /* mmap_lock, or the mapping is changing */
	}
	if (at > a)
		return 0;          /* the page that was touched is there */
	if (r == -ENOENT && n > 1) /* the run left the VMA: this page alone */
		return map_run(c, a, 1, mode);
	return r;
}

static int unprotect(struct ctx *c, uintptr_t a)
{
	int r;

	do
		r = rf_uffd_wp(c->uffd, a, RF_PAGE_SIZE, 0);
	while (r == -EAGAIN);
	return r;
}

/*
 * The mapping is about to get PTEs: the stripper must know, and know in time.  It reads touched
 * after it wrote lease_next; we do it the other way round.
 */
static void touch(struct ctx *c, struct map_local *l, const struct rf_vnode *st)
{
	const uint64_t one = 1;

	if (atomic_load_explicit(&l->touched, memory_order_relaxed))
		return;
	atomic_store(&l->touched, 1);
	if (atomic_load(&st->cb_expires_at) < atomic_load(&c->lease_next))
		rf_syscall(SYS_write, c->poke, &one, sizeof(one));
}

/* First store to a page of a private mapping: from now on it is the program's own. */
static int private_store(struct ctx *c, const struct map_entry *e, uintptr_t a, uint64_t page)
{
	uint64_t i = page - e->l->pgoff0;
	int r;

	atomic_fetch_or(&e->l->copied[i / 64], UINT64_C(1) << i % 64);
	atomic_thread_fence(memory_order_seq_cst);
	strip_quiesce(c);
	r = map_run(c, a, 1, 0); /* maps it read-only: the kernel copies on the store */
	return r == 0 || r == -EEXIST ? unprotect(c, a) : r;
}

/*
 * Where CONTINUE cannot protect, a load through a writable mapping comes here, too, and waits while
 * the vnode is frozen, as stores do: a PTE that may be stored through is what frozen keeps out.
 */
static int shared_store(struct ctx *c, struct vnode *vn, uint32_t key, uintptr_t a, uint64_t page,
			bool present, uint64_t *seen)
{
	int r;

	for (;;) {
		r = page_mkwrite(c, vn, page, key, seen);
		if (r)
			return r;
		/* DIRTY, and the slot keeps a flush from protecting it behind our back. */
		r = -EEXIST;
		if (!present)
			r = rf_uffd_continue(c->uffd, a, RF_PAGE_SIZE, 0, NULL);
		if (r == -EEXIST)
			r = unprotect(c, a);
		if (r != -EAGAIN)
			return r;
	}
}

/*
 * The kernel says EINVAL to a CONTINUE past the end of the memfd: a truncate did not wait for us, who
 * held our slot for too long, and is at work or has been.
 */
static bool cut_off(const struct rf_vnode *st, uint64_t page)
{
	return atomic_load(&st->invalidate) || page >= RF_PAGES(atomic_load(&st->i_size));
}

/*
 * 0: touch it again.  -ENOENT: not ours.  -ENXIO: past EOF.  Anything else: why it cannot be had.
 * present: the fault said that a (write-protected) page was there; a hint.
 */
int fault_resolve(struct ctx *c, uintptr_t addr, bool write, bool present, sys_mask mask)
{
	const uintptr_t a = addr & ~(RF_PAGE_SIZE - 1);
	struct slot_ref slot;
	struct map_entry e;
	struct rf_vnode *st;
	struct vnode *vn;
	uint64_t page, seen = 0, size, left;
	sys_mask held;
	uint32_t seq, key, n;
	int r, asked = 0, others = 0;
	uint32_t shorts = 0;
	bool valid;

	debug_free(DEBUG_ALL, "touches a managed page");
	for (;;) {
		if (!map_find(c, a, &e, &seq))
			return -ENOENT;
		vn = e.l->vn;
		key = file_key(e.l->file);
		page = e.pgoff + ((a - e.start) >> RF_PAGE_SHIFT);
		st = atomic_load(&vn->st);
		if (!st)
			return -ENOENT; /* unmapped by another thread just now */
		if (write && !(e.flags & RF_MAP_WRITE))
			return -EACCES;
		n = 1;
		valid = vnode_valid(c, vn); /* before the size: that of then, or a newer one */
		size = atomic_load(&st->i_size);
		if (page >= RF_PAGES(size)) {
			if (valid)
				return -ENXIO;
			goto ask; /* others may have made it larger */
		}
		/* Where CONTINUE cannot protect, a page of a writable mapping counts as written. */
		if ((c->mode & CTX_NO_CONTINUE_WP) && (e.flags & RF_MAP_WRITE))
			write = true;
		if (!write) {
			n = window_next(e.l, page);
			left = (e.end - a) >> RF_PAGE_SHIFT;
			n = left < n ? (uint32_t)left : n;
			left = RF_PAGES(size) - page;
			n = left < n ? (uint32_t)left : n;
		}
		r = vnode_cover(c, vn, page + n);
		if (r == -EAGAIN)
			goto ask;
		if (r)
			return r;

		r = slot_try_masked(c, vn, page, n, &slot);
		if (r == -ESTALE)
			continue;
		if (r) {
			count(c, RF_R_LOCK_WAIT);
			rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &held, 8);
			r = slot_wait_lock(c, vn);
			sys_setmask(held);
			if (r)
				return r;
			continue;
		}
		r = -ESTALE;
		if (map_moved(c, seq)) {
			slot_leave_masked(&slot);
			continue;
		}
		if (!vnode_valid(c, vn))
			goto leave;
		seen = atomic_load(vnode_word(vn, page));
		r = rf_w_state(seen) == RF_PG_REJECTED ? -EAGAIN : -EFAULT;
		if (!rf_w_cached(seen))
			goto leave;
		touch(c, e.l, st);

		if (!(e.flags & RF_MAP_SHARED) && write) {
			r = private_store(c, &e, a, page);
		} else if (write) {
			r = shared_store(c, vn, key, a, page, present, &seen);
		} else {
			n = run_length(vn, &e, page, n);
			r = n ? map_run(c, a, n,
					c->mode & CTX_NO_CONTINUE_WP ? 0 : UFFDIO_CONTINUE_MODE_WP)
			      : -EFAULT;
			if (r == -EINVAL && !cut_off(st, page) && !(c->mode & CTX_NO_CONTINUE_WP)) {
				c->mode |= CTX_NO_CONTINUE_WP; /* before 6.4 */
				slot_leave_masked(&slot);
				continue;
			}
			if (!r)
				atomic_store_explicit(&e.l->next_page, page + n,
						      memory_order_relaxed);
		}
		if (!r)
			touch(c, e.l, st); /* again: it may have been stripped in between */
		if (!r && !vnode_valid(c, vn) && (e.flags & RF_MAP_SHARED)) {
			/* The lease ran out while we mapped: the stripper may be past this. */
			sys_zap(a, n * RF_PAGE_SIZE);
			r = -ESTALE;
		}
	leave:
		slot_leave_masked(&slot);
		if (!r)
			return 0;
		if (r == -EAGAIN) { /* write-back or excision under way */
			count(c, RF_R_WB_WAIT);
			rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &held, 8);
			r = page_wait(c, vn, page, seen);
			sys_setmask(held);
			if (r)
				return r;
			continue;
		}
		if (r == -EINPROGRESS) { /* frozen */
			rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &held, 8);
			r = vnode_thaw(c, vn);
			sys_setmask(held);
			if (r)
				return r;
			continue;
		}
		if (r == -ENOMEM && ++shorts < PAGE_RECLAIMS) { /* no twin free */
			r = page_reclaim(c, mask);
			if (r)
				return r;
			continue;
		}
		if (r == -EBUSY && ++others < FLUSH_TRIES) { /* dirty under another key */
			r = page_flush_other(c, vn, page, 1, mask);
			if (r)
				return r;
			rf_syscall(SYS_sched_yield);
			present = false;
			continue;
		}
		if (r == -EINVAL && cut_off(st, page))
			continue;
		if (r != -EFAULT && r != -ESTALE)
			return r;
	ask:
		/* Not cached, or no promise.  An agent that says yes without effect is not asked
		 * for ever. */
		if (++asked > 1000)
			return -EIO;
		count(c, RF_R_FAULT_AGENT);
		r = agent_fault_masked(c, vn, key, page, n > FETCH_WINDOW ? n : 1,
				       write ? RF_FAULT_WRITE : 0, mask);
		if (r)
			return r == -ENOENT ? -ESTALE : r;
		present = false;
	}
}

/* ---- a fault that cannot be served ---- */

static struct {
	int (*init)(unw_cursor_t *, unw_context_t *, int);
	int (*step)(unw_cursor_t *);
	int (*reg)(unw_cursor_t *, int, unw_word_t *);
} unw;

#define STR_(x) #x
#define STR(x) STR_(x)

/* Loaded with the first mapping, so that programs without any start no slower for it. */
static void unwind_load(void)
{
	void *h = dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);

	if (!h)
		return;
	*(void **)&unw.step = dlsym(h, STR(UNW_OBJ(step)));
	*(void **)&unw.reg = dlsym(h, STR(UNW_OBJ(get_reg)));
	*(void **)&unw.init = dlsym(h, STR(UNW_OBJ(init_local2)));
}

static void hex(char *buf, size_t cap, size_t *n, uint64_t v)
{
	char tmp[20];
	size_t k = 0;

	do
		tmp[k++] = "0123456789abcdef"[v & 15];
	while ((v >>= 4) != 0);
	for (const char *p = " 0x"; *p && *n < cap - 1; p++)
		buf[(*n)++] = *p;
	while (k && *n < cap - 1)
		buf[(*n)++] = tmp[--k];
	buf[*n] = '\0';
}

static void report(struct ctx *c, uintptr_t addr, int err, ucontext_t *uc)
{
	char comm[17] = "?", frames[400] = "";
	struct map_entry e = {0};
	size_t n = 0;
	uint32_t seq;
	const char *file = "?";
	uint64_t off = 0;

	rf_syscall(SYS_prctl, 16 /* PR_GET_NAME */, comm);
	if (map_find(c, addr, &e, &seq)) {
		file = e.l->vn->path;
		off = (e.pgoff << RF_PAGE_SHIFT) + (addr - e.start);
	}
	if (unw.init && unw.step && unw.reg) {
		unw_cursor_t cur;
		unw_word_t ip;

		if (unw.init(&cur, uc, UNW_INIT_SIGNAL_FRAME) == 0)
			do {
				if (unw.reg(&cur, UNW_REG_IP, &ip))
					break;
				hex(frames, sizeof(frames), &n, ip);
			} while (n < sizeof(frames) - 20 && unw.step(&cur) > 0);
	}
	log_line("%s[%d] thread %d: SIGBUS at %s offset %l: %s (errno %d); called from%s", comm,
		 c->pid, (int)rf_syscall(SYS_gettid), file, off,
		 err == -ENXIO ? "past the end of the file" : strerrordesc_np(-err), -err,
		 frames[0] ? frames : " ?");
}

/* ---- signal mode ---- */

/* Give SIGBUS to the program as if we were not there. */
static void chain(struct ctx *c, int sig, siginfo_t *si, void *ucv)
{
	struct sigaction u = c->user_bus;
	ucontext_t *uc = ucv;
	sys_mask m;

	if (!(u.sa_flags & SA_SIGINFO) && (u.sa_handler == SIG_DFL || u.sa_handler == SIG_IGN)) {
		if (u.sa_handler == SIG_IGN && si->si_code <= 0)
			return;
		/* Default it is: the touch runs again, and kills with the right core. */
		struct {
			void *handler;
			unsigned long flags;
			void *restorer;
			uint64_t mask;
		} k = {0};
		rf_syscall(SYS_rt_sigaction, SIGBUS, &k, 0, 8);
		if (si->si_code <= 0) /* sent by kill(): nothing runs again */
			rf_syscall(SYS_tgkill, c->pid, rf_syscall(SYS_gettid), SIGBUS);
		return;
	}
	if (u.sa_flags & SA_RESETHAND) {
		c->user_bus.sa_handler = SIG_DFL;
		c->user_bus.sa_flags = 0;
	}
	memcpy(&m, &uc->uc_sigmask, sizeof(m));
	m.bits |= *(uint64_t *)(void *)&u.sa_mask;
	/* SIGBUS itself stays open: the handler may touch managed pages. */
	m.bits &= ~(UINT64_C(1) << (SIGBUS - 1));
	sys_setmask(m);
	if (u.sa_flags & SA_SIGINFO)
		u.sa_sigaction(sig, si, ucv);
	else
		u.sa_handler(sig);
}

/*
 * A touch that page_copy made: go on behind it.  mapping: of the program's memory, when it is known that
 * it cannot be served; else only of an alias, where the byte that cannot be read stands still.
 */
static bool fix_copy(struct ctx *c, siginfo_t *si, ucontext_t *uc, bool mapping)
{
#if defined(__x86_64__)
	greg_t *ip = &uc->uc_mcontext.gregs[REG_RIP];
	const uintptr_t at = (uintptr_t)*ip, src = (uintptr_t)uc->uc_mcontext.gregs[REG_RSI];
#else
	unsigned long long *ip = (unsigned long long *)&uc->uc_mcontext.pc;
	const uintptr_t at = (uintptr_t)*ip, src = (uintptr_t)uc->uc_mcontext.regs[1];
#endif
	const uintptr_t a = (uintptr_t)si->si_addr & ~(RF_PAGE_SIZE - 1);
	struct map_entry e;
	uint32_t seq;

	if (at < (uintptr_t)page_copy_insn || at >= (uintptr_t)page_copy_end)
		return false;
	/* Memory of the program, to or from which it copies: resolved as any other. */
	if (!mapping &&
	    (a != (src & ~(RF_PAGE_SIZE - 1)) ||
	     (!page_copy_slot && map_hits(c, si->si_addr, 1) && map_find(c, a, &e, &seq))))
		return false;
	page_copy_efault = mapping;
	*ip = (__typeof__(*ip))(uintptr_t)page_copy_end;
	return true;
}

/* What the interrupted instruction wanted, from the fault's error code. */
static void access_kind(const ucontext_t *uc, bool *write, bool *present)
{
#if defined(__x86_64__)
	*write = uc->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
	*present = uc->uc_mcontext.gregs[REG_ERR] & 1;
#else
	const struct _aarch64_ctx *rec = (const void *)uc->uc_mcontext.__reserved;

	*write = *present = false;
	for (; rec->magic; rec = (const void *)((const char *)rec + rec->size))
		if (rec->magic == ESR_MAGIC) {
			uint64_t esr = ((const struct esr_context *)(const void *)rec)->esr;
			*write = esr >> 6 & 1;
			*present = (esr & 0x3c) == 0x0c; /* permission fault */
		}
#endif
}

static uintptr_t instruction(const ucontext_t *uc)
{
#if defined(__x86_64__)
	return (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
#else
	return (uintptr_t)uc->uc_mcontext.pc;
#endif
}

/*
 * The fault thread has tried, and has said that it cannot be done.  But its signal may be late: the
 * stripper can have put the page there meanwhile, and we are somewhere else.  So the touch runs
 * again; who is told of the same page at the same instruction is still there.
 */
static void told_bad(struct ctx *c, siginfo_t *si, ucontext_t *uc)
{
	static __thread struct {
		const void *page;
		uintptr_t ip;
	} before;
	siginfo_t bus = {.si_signo = SIGBUS, .si_code = BUS_ADRERR};

	if (before.page != si->si_value.sival_ptr || before.ip != instruction(uc)) {
		before.page = si->si_value.sival_ptr;
		before.ip = instruction(uc);
		return;
	}
	before.page = NULL;
	if (fix_copy(c, si, uc, true))
		return;
	count(c, RF_R_FAULT_BAD);
	report(c, (uintptr_t)si->si_value.sival_ptr, -si->si_errno, uc);
	bus.si_addr = si->si_value.sival_ptr;
	chain(c, SIGBUS, &bus, uc);
}

static void on_sigbus(int sig, siginfo_t *si, void *ucv)
{
	struct ctx *c = rf_ctx;
	ucontext_t *uc = ucv;
	const int saved = errno;
	const uintptr_t addr = (uintptr_t)si->si_addr;
	bool write, present;
	sys_mask m;
	int r;

	if (si->si_code > 0 && fix_copy(c, si, uc, false))
		return;
	access_kind(uc, &write, &present);
	r = -ENOENT;
	if ((c->mode & CTX_FAULT_THREAD) && si->si_code == SI_QUEUE && si->si_errno &&
	    si->si_pid == c->pid) {
		told_bad(c, si, uc);
		errno = saved;
		return;
	}
	if (si->si_code > 0 && map_hits(c, (void *)addr, 1)) {
		memcpy(&m, &uc->uc_sigmask, sizeof(m));
		count(c, !write ? RF_R_FAULT_READ : present ? RF_R_FAULT_WP : RF_R_FAULT_WRITE);
		r = fault_resolve(c, addr, write, present, m);
	}
	if (r && (r == -ENOENT || !fix_copy(c, si, uc, true))) {
		if (r != -ENOENT) {
			count(c, RF_R_FAULT_BAD);
			report(c, addr, r, uc);
		}
		chain(c, sig, si, ucv);
	}
	errno = saved;
}

/* ---- thread mode ---- */

static void *fault_thread(void *arg)
{
	struct ctx *c = arg;
	const sys_mask all = SYS_MASK_ALL;
	struct uffd_msg msg;
	int uffd = c->uffd;

	rf_syscall(SYS_prctl, 15 /* PR_SET_NAME */, "refault-fault");
	for (;;) {
		struct pollfd p = {.fd = uffd, .events = POLLIN};
		uintptr_t a;
		bool write;
		int r;

		rf_syscall(SYS_ppoll, &p, 1, 0, 0, 0);
		if (p.revents & (POLLERR | POLLNVAL))
			return NULL;
		if (rf_syscall(SYS_read, uffd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		a = (uintptr_t)msg.arg.pagefault.address & ~(RF_PAGE_SIZE - 1);
		write =
		    msg.arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
		count(c, !write                                             ? RF_R_FAULT_READ
			 : msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP ? RF_R_FAULT_WP
									    : RF_R_FAULT_WRITE);
		r = fault_resolve(c, a, write, msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
				  all);
		if (r && r != -ENXIO) {
			/* The faulting thread sleeps in the kernel; a signal gets it out. */
			siginfo_t si = {.si_signo = SIGBUS, .si_errno = -r, .si_code = SI_QUEUE};
			/* The kernel lets only the main thread pretend BUS_ADRERR: see on_sigbus.
			 */
			si.si_pid = c->pid;
			si.si_value.sival_ptr = (void *)a;

			rf_syscall(SYS_rt_tgsigqueueinfo, c->pid, msg.arg.pagefault.feat.ptid,
				   SIGBUS, &si);
		}
		/* It was there already, or it is past EOF now: let the thread find out. */
		rf_uffd_wake(uffd, a, RF_PAGE_SIZE);
	}
}

/* ---- install ---- */

int fault_install(struct ctx *c)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} old = {0};
	struct sigaction sa = {.sa_sigaction = on_sigbus,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART};
	const sys_mask bus = {UINT64_C(1) << (SIGBUS - 1)};
	pthread_t t;
	sys_mask m;
	int r = 0;

	if (!atomic_load(&c->bus_installed)) {
		unwind_load();
		/* page_copy needs the handler in thread mode, too. */
		rf_syscall(SYS_rt_sigaction, SIGBUS, 0, &old, 8);
		c->user_bus.sa_handler = (void (*)(int))(uintptr_t)old.handler;
		c->user_bus.sa_flags = (int)old.flags & ~0x04000000; /* SA_RESTORER */
		memcpy(&c->user_bus.sa_mask, &old.mask, sizeof(old.mask));
		memset(&sa.sa_mask, 0xff, sizeof(sa.sa_mask)); /* libc's own signals, too */
		sigdelset(&sa.sa_mask, SIGBUS);
		if (c->real.sigaction(SIGBUS, &sa, NULL))
			return -errno;
		atomic_store(&c->bus_installed, 1);
	}
	rf_syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &bus, 0, 8);
	if (c->mode & CTX_FAULT_THREAD) {
		m = sys_block_all(); /* inherited by the thread */
		r = -pthread_create(&t, NULL, fault_thread, c);
		if (!r)
			pthread_detach(t);
		sys_setmask(m);
	}
	return r;
}
