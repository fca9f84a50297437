/* SPDX-License-Identifier: MIT */
/* undo_test.c - what a call holds is given back once when it is left, whoever comes in between. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <setjmp.h>
#include <signal.h>

#include "shim/undo.h"

static sigjmp_buf out;
static volatile int given[2];

static void jump(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

static void give(void *arg)
{
	(*(volatile int *)arg)++;
	if (arg == &given[1] && given[1] == 1)
		raise(SIGUSR2);
}

__attribute__((noinline)) static void call(int sig)
{
	struct undo a, b;

	undo_begin(&a, give, (void *)&given[1]);
	undo_begin(&b, give, (void *)&given[0]);
	raise(sig);
	undo_end(&b);
	undo_end(&a);
}

/* The second jump comes while the first one gives back. */
Test(undo, once)
{
	signal(SIGUSR1, jump);
	signal(SIGUSR2, jump);
	if (!sigsetjmp(out, 1))
		call(SIGUSR1);
	cr_assert(eq(int, given[0], 1));
	cr_assert(eq(int, given[1], 1));
}

Test(undo, in_order)
{
	signal(SIGUSR2, SIG_IGN);
	call(SIGUSR2);
	cr_assert(eq(int, given[0], 1));
	cr_assert(eq(int, given[1], 1));
}
