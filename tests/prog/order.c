/* SPDX-License-Identifier: MIT */
/*
 * order - that the library's assertions of its lock order (shim/debug.h) notice a violation: each case
 * in a child, which must end by SIGABRT, or must not.
 */
#define RF_DEBUG 1
#include "../../shim/debug.c" // NOLINT(bugprone-suspicious-include): what is tested

#include <err.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* It is meant to end. */
void log_line(const char *fmt, ...)
{
	(void)fmt;
}

static void in_order(void)
{
	struct sys_lock attach = {.rank = DEBUG_ATTACH}, lock = {.rank = DEBUG_LOCK};
	sys_mask a = sys_lock(&attach), b = sys_lock(&lock);

	debug_take(DEBUG_SLOT);
	debug_drop(DEBUG_SLOT);
	sys_unlock(&lock, b);
	debug_take(DEBUG_ONCE);
	debug_drop(DEBUG_ONCE);
	sys_unlock(&attach, a);
	debug_free(DEBUG_ALL, "waits");
}

static void lock_in_slot(void)
{
	struct sys_lock lock = {.rank = DEBUG_LOCK};

	debug_take(DEBUG_SLOT);
	sys_lock(&lock);
}

static void attach_in_lock(void)
{
	struct sys_lock attach = {.rank = DEBUG_ATTACH}, lock = {.rank = DEBUG_LOCK};

	sys_lock(&lock);
	sys_lock(&attach);
}

static void two_slots(void)
{
	debug_take(DEBUG_SLOT);
	debug_take(DEBUG_SLOT);
}

static void wait_in_slot(void)
{
	debug_take(DEBUG_SLOT);
	debug_free(DEBUG_ALL, "waits");
}

static void request_in_lock(void)
{
	struct sys_lock lock = {.rank = DEBUG_LOCK};

	sys_lock(&lock);
	debug_free(DEBUG_ALL, "asks the agent");
}

static void leave_twice(void)
{
	debug_take(DEBUG_SLOT);
	debug_drop(DEBUG_SLOT);
	debug_drop(DEBUG_SLOT);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*fn)(void);
		int sig;
	} c[] = {{"locks-in-their-order", in_order, 0},
		 {"a-lock-inside-a-slot", lock_in_slot, SIGABRT},
		 {"attach-lock-inside-lock", attach_in_lock, SIGABRT},
		 {"two-slots", two_slots, SIGABRT},
		 {"a-wait-with-a-slot", wait_in_slot, SIGABRT},
		 {"a-request-with-a-lock", request_in_lock, SIGABRT},
		 {"a-slot-left-twice", leave_twice, SIGABRT}};
	int bad = 0;

	for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			signal(SIGABRT, SIG_IGN); /* must not help */
			c[i].fn();
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			err(1, "fork");
		if (c[i].sig ? WIFSIGNALED(status) && WTERMSIG(status) == c[i].sig : !status) {
			printf("ok %s\n", c[i].name);
		} else {
			printf("not ok %s: ended with %#x\n", c[i].name, (unsigned)status);
			bad = 1;
		}
	}
	return bad;
}
