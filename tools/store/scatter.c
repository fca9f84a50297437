/* SPDX-License-Identifier: MIT */
/*
 * scatter.c - many small ranges of a file, through a mapping of it.
 *
 * A program that changes a byte or two of every word makes hundreds of ranges a page; a system call
 * for each takes a hundred times as long as all the rest.  To read a page, change it and write it
 * back would be wrong: it undoes what somebody on this machine stores beside the ranges meanwhile.
 *
 * What a mapping cannot do (no space for a hole, a disk error, somebody cuts the file off) raises
 * SIGBUS.  It ends the copy where it is, and the caller goes on with read and write, which say why.
 *
 * Locks: none.  The handler is the process's; who it is for is known to each thread.
 */
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "dir.h"

#define PAGE 4096u
#define SPAN_MAX ((uint64_t)1 << 30)

static _Thread_local sigjmp_buf *volatile guard;

static void on_sigbus(int sig)
{
	if (guard)
		siglongjmp(*guard, 1);
	/* Not ours: runs again with the default action. */
	signal(sig, SIG_DFL);
}

int dir_scatter_init(void)
{
	/* NODEFER: siglongjmp leaves the mask as it is, and there may be a next time. */
	struct sigaction sa = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};

	return sigaction(SIGBUS, &sa, NULL);
}

bool dir_scatter_map(struct dir_scatter *s, int fd, const rf_range *range, size_t n, uint64_t size)
{
	uint64_t lo = UINT64_MAX, hi = 0;
	void *p;

	memset(s, 0, sizeof(*s));
	for (size_t i = 0; i < n; i++) {
		if (range[i].off > size || range[i].len > size - range[i].off)
			return false;
		lo = range[i].off < lo ? range[i].off : lo;
		hi = range[i].off + range[i].len > hi ? range[i].off + range[i].len : hi;
	}
	lo -= lo % PAGE;
	if (hi <= lo || hi - lo > SPAN_MAX)
		return false;
	p = mmap(NULL, hi - lo, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)lo);
	if (p == MAP_FAILED)
		return false;
	*s = (struct dir_scatter){.p = p, .off = lo, .len = hi - lo, .range = range, .n = n};
	return true;
}

size_t dir_scatter_copy(const struct dir_scatter *s, void *buf, bool store)
{
	unsigned char *volatile b = buf;
	volatile size_t i = 0;
	sigjmp_buf env;

	if (sigsetjmp(env, 0) == 0) {
		guard = &env;
		for (; i < s->n; i = i + 1) {
			unsigned char *p = s->p + (s->range[i].off - s->off);
			const size_t len = s->range[i].len;

			memcpy(store ? p : b, store ? b : p, len);
			b += len;
		}
	}
	guard = NULL;
	return i;
}

void dir_scatter_unmap(struct dir_scatter *s)
{
	if (s->p)
		munmap(s->p, s->len);
	s->p = NULL;
}
