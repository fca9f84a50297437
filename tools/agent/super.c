/* SPDX-License-Identifier: MIT */
/*
 * super.c - the supervisor.
 *
 * It does three things: it takes what the agent gives it to keep, it passes SIGTERM and SIGINT on,
 * and when the agent dies it forks the next one, which finds everything in its memory.  An agent
 * that exits with status 0 has left in peace, and the supervisor leaves too.  After CRASHES crashes
 * within CRASH_WINDOW it gives up.
 *
 * Counters: none.  Locks: none, one thread.
 */
#include "super.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define CRASHES 5
#define CRASH_WINDOW (10 * AG_SEC)

/* Fork an agent; its end of the socketpair is gone here, ours is returned. */
static int start(const struct ag_conf *conf, struct ag_keeptab *tab, unsigned life,
		 const sigset_t *mask, int sfd, int (*run)(struct ag_start *), pid_t *pid)
{
	int sp[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sp))
		return -errno;
	*pid = fork();
	if (*pid < 0) {
		int r = -errno;
		close(sp[0]);
		close(sp[1]);
		return r;
	}
	if (!*pid) {
		struct ag_start s = {.conf = conf, .tab = tab, .keep = sp[1], .life = life};

		close(sp[0]);
		close(sfd);
		sigprocmask(SIG_SETMASK, mask, NULL);
		exit(run(&s));
	}
	close(sp[1]);
	return sp[0];
}

static void drain(int sock, struct ag_keeptab *tab)
{
	int r;

	while ((r = ag_keep_receive(sock, tab)) > 0 || r == -EPROTO || r == -ENOMEM)
		if (r < 0)
			ag_log("supervisor: a message of the agent could not be kept: %s",
			       strerror(-r));
}

int ag_supervise(const struct ag_conf *conf, struct ag_keeptab *tab, int (*run)(struct ag_start *))
{
	uint64_t crash[CRASHES] = {0};
	unsigned ncrash = 0, life = 1;
	sigset_t set, old;
	int sfd, sock, status;
	pid_t pid = -1;

	prctl(PR_SET_NAME, "refault-superv");
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, &old);
	sfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (sfd < 0) {
		ag_log("supervisor: signalfd: %s", strerror(errno));
		return 1;
	}
again:
	sock = start(conf, tab, life, &old, sfd, run, &pid);
	if (sock < 0) {
		ag_log("supervisor: cannot start an agent: %s", strerror(-sock));
		return 1;
	}
	for (;;) {
		struct pollfd p[2] = {{.fd = sock, .events = POLLIN},
				      {.fd = sfd, .events = POLLIN}};
		struct signalfd_siginfo si;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			continue;
		drain(sock, tab);
		while (read(sfd, &si, sizeof(si)) == sizeof(si))
			if (si.ssi_signo != SIGCHLD)
				kill(pid, (int)si.ssi_signo);
		if (waitpid(pid, &status, WNOHANG) == pid)
			break;
		if (p[0].revents & POLLHUP) {
			/* Its end is closed, so it is about to be gone. */
			if (waitpid(pid, &status, 0) == pid)
				break;
		}
	}
	drain(sock, tab);
	close(sock);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFSIGNALED(status))
		ag_log("supervisor: agent %d was killed by signal %d (%s)", (int)pid,
		       WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		ag_log("supervisor: agent %d ended with status %d", (int)pid, WEXITSTATUS(status));
	crash[ncrash++ % CRASHES] = ag_now();
	if (ncrash >= CRASHES && ag_now() - crash[ncrash % CRASHES] < CRASH_WINDOW) {
		ag_log(
		    "supervisor: %d crashes within %d s; giving up.  Programs keep what they have "
		    "mapped; unflushed changes are lost",
		    CRASHES, (int)(CRASH_WINDOW / AG_SEC));
		return 1;
	}
	life++;
	goto again;
}
