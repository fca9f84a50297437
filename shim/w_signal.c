/* SPDX-License-Identifier: MIT */
/*
 * w_signal.c - SIGBUS is never blocked, and stays the program's.
 *
 * From the first managed file on the kernel's disposition of SIGBUS is ours (fault.c); what the
 * program asks for is kept in ctx->user_bus, told back to it, and called for every SIGBUS that is
 * not ours to resolve.  A blocked SIGBUS would turn a fault into death, so masks lose that bit as
 * soon as a volume is configured.
 *
 * sigwait() and signalfd() for SIGBUS see none while it is open; nothing else changes.
 */
#include <string.h>

#include "core.h"

static bool ours(const struct ctx *c, int sig)
{
	return sig == SIGBUS && atomic_load_explicit(&c->bus_installed, memory_order_acquire);
}

int w_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct ctx *c = ctx_get();
	struct sigaction a;
	sys_mask m;

	if (ours(c, sig)) {
		m = sys_lock(&c->lock);
		if (old)
			*old = c->user_bus;
		if (act)
			c->user_bus = *act;
		sys_unlock(&c->lock, m);
		return 0;
	}
	if (act && c->nvol && sigismember(&act->sa_mask, SIGBUS)) {
		a = *act;
		sigdelset(&a.sa_mask, SIGBUS);
		act = &a;
	}
	return c->real.sigaction(sig, act, old);
}

/* BSD semantics are 0, System V's are not. */
static sighandler_t set_bus(sighandler_t h, int flags)
{
	struct sigaction a = {.sa_handler = h, .sa_flags = flags}, old;

	w_sigaction(SIGBUS, &a, &old);
	return old.sa_handler;
}

#define SIGNAL_WRAPPER(name, flags)                                                                \
	sighandler_t w_##name(int sig, sighandler_t h)                                             \
	{                                                                                          \
		struct ctx *c = ctx_get();                                                         \
		return ours(c, sig) ? set_bus(h, flags) : c->real.name(sig, h);                    \
	}
SIGNAL_WRAPPER(signal, SA_RESTART)
SIGNAL_WRAPPER(bsd_signal, SA_RESTART)
SIGNAL_WRAPPER(ssignal, SA_RESTART)
SIGNAL_WRAPPER(sysv_signal, (int)(SA_RESETHAND | SA_NODEFER))
SIGNAL_WRAPPER(__sysv_signal, (int)(SA_RESETHAND | SA_NODEFER))

sighandler_t w_sigset(int sig, sighandler_t h)
{
	struct ctx *c = ctx_get();

	if (!ours(c, sig))
		return c->real.sigset(sig, h);
	return h == SIG_HOLD ? c->user_bus.sa_handler : set_bus(h, 0);
}

int w_sighold(int sig)
{
	struct ctx *c = ctx_get();

	return c->nvol && sig == SIGBUS ? 0 : c->real.sighold(sig);
}

#define BUS_BIT (1 << (SIGBUS - 1))

int w_sigblock(int mask)
{
	struct ctx *c = ctx_get();

	return c->real.sigblock(c->nvol ? mask & ~BUS_BIT : mask);
}

int w_sigsetmask(int mask)
{
	struct ctx *c = ctx_get();

	return c->real.sigsetmask(c->nvol ? mask & ~BUS_BIT : mask);
}

/* The set without SIGBUS, in tmp if that makes a difference. */
static const sigset_t *open_bus(const struct ctx *c, const sigset_t *set, sigset_t *tmp)
{
	if (!set || !c->nvol || !sigismember(set, SIGBUS))
		return set;
	*tmp = *set;
	sigdelset(tmp, SIGBUS);
	return tmp;
}

int w_sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.sigprocmask(how, how == SIG_UNBLOCK ? set : open_bus(c, set, &tmp), old);
}

int w_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.pthread_sigmask(how, how == SIG_UNBLOCK ? set : open_bus(c, set, &tmp), old);
}

int w_sigsuspend(const sigset_t *set)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.sigsuspend(open_bus(c, set, &tmp));
}

int w_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *set)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.ppoll(fds, n, t, open_bus(c, set, &tmp));
}

int w___ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *set,
		  size_t fdslen)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.__ppoll_chk(fds, n, t, open_bus(c, set, &tmp), fdslen);
}

int w_pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *t, const sigset_t *set)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.pselect(n, r, w, e, t, open_bus(c, set, &tmp));
}

int w_epoll_pwait(int ep, struct epoll_event *ev, int n, int ms, const sigset_t *set)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.epoll_pwait(ep, ev, n, ms, open_bus(c, set, &tmp));
}

int w_epoll_pwait2(int ep, struct epoll_event *ev, int n, const struct timespec *t,
		   const sigset_t *set)
{
	struct ctx *c = ctx_get();
	sigset_t tmp;

	return c->real.epoll_pwait2(ep, ev, n, t, open_bus(c, set, &tmp));
}
