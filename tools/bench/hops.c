/* SPDX-License-Identifier: MIT */
/*
 * hops.c - the floor under flush-visible: the same number of bare socket hops.
 *
 * A flush goes program -> agent A -> server -> agent B, three one-way hops between processes that
 * sleep in epoll_wait and then receive; agent B then makes the bytes appear in memory on which the
 * reader spins.  Here three relays do nothing but that: the first hop is a seqpacket, the others
 * are streams, as in Refault, and the messages are of the size of its own.
 */
#include <err.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { RELAYS = 3, MESSAGE = 160, PAUSE_US = 200 };

struct shared {
	_Alignas(4096) _Atomic uint64_t value;
	_Alignas(4096) _Atomic uint64_t seen;
	_Alignas(4096) double sample[];
};

/* Receive from `from`; send on to `to`, or (-1) store into shared memory. */
static void relay(int from, int to, struct shared *sh)
{
	struct epoll_event ev = {.events = EPOLLIN};
	char msg[MESSAGE];

	int ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, from, &ev))
		_exit(1);
	while (epoll_wait(ep, &ev, 1, -1) == 1) {
		if (recv(from, msg, sizeof(msg), 0) != sizeof(msg))
			_exit(0);
		if (to >= 0 && send(to, msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg))
			_exit(1);
		if (to < 0) {
			uint64_t v;
			memcpy(&v, msg, sizeof(v));
			atomic_store(&sh->value, v);
		}
	}
	_exit(1);
}

static void spin(struct shared *sh, size_t samples, int pinned)
{
	uint64_t last = 0;

	pin(pinned ? last_cpu() : -1);
	for (size_t i = 0; i < samples; i++) {
		uint64_t v;
		while ((v = atomic_load_explicit(&sh->value, memory_order_relaxed)) == last)
			continue;
		sh->sample[i] = (double)(now_ns() - v);
		last = v;
		atomic_store(&sh->seen, i + 1);
	}
	_exit(0);
}

void hops_measure(double *sample, size_t samples, int pinned)
{
	size_t len = sizeof(struct shared) + samples * sizeof(double);
	int hop[RELAYS][2];
	pid_t pid[RELAYS + 1];
	char msg[MESSAGE] = "";

	struct shared *sh =
	    mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < RELAYS; i++)
		if (socketpair(AF_UNIX, i ? SOCK_STREAM : SOCK_SEQPACKET, 0, hop[i]))
			err(1, "socketpair");
	for (int i = 0; i <= RELAYS; i++) {
		pid[i] = fork();
		if (pid[i] < 0)
			err(1, "fork");
		if (pid[i] > 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (i == RELAYS)
			spin(sh, samples, pinned);
		relay(hop[i][1], i + 1 < RELAYS ? hop[i + 1][0] : -1, sh);
	}
	pin(pinned ? 0 : -1);
	for (size_t i = 1; i <= samples; i++) {
		usleep(PAUSE_US);
		uint64_t t = now_ns();
		memcpy(msg, &t, sizeof(t));
		if (send(hop[0][0], msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg))
			err(1, "send");
		while (atomic_load(&sh->seen) < i)
			usleep(PAUSE_US / 4);
	}
	for (int i = 0; i <= RELAYS; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	for (int i = 0; i < RELAYS; i++) {
		close(hop[i][0]);
		close(hop[i][1]);
	}
	memcpy(sample, sh->sample, samples * sizeof(double));
	munmap(sh, len);
	pin(-1);
}
