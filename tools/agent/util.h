/* SPDX-License-Identifier: MIT */
/*
 * util.h - lists, time, futexes and the log of refault-agent.
 */
#ifndef AGENT_UTIL_H
#define AGENT_UTIL_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct ag_list {
	struct ag_list *next, *prev;
};

static inline void ag_list_init(struct ag_list *l)
{
	l->next = l->prev = l;
}
static inline bool ag_list_empty(const struct ag_list *l)
{
	return l->next == l;
}
static inline void ag_list_insert(struct ag_list *after, struct ag_list *l)
{
	l->next = after->next;
	l->prev = after;
	after->next->prev = l;
	after->next = l;
}
static inline void ag_list_add(struct ag_list *head, struct ag_list *l)
{
	ag_list_insert(head->prev, l);
}
/* Leaves l a list of its own, so that deleting it once more does no harm. */
static inline void ag_list_del(struct ag_list *l)
{
	l->next->prev = l->prev;
	l->prev->next = l->next;
	ag_list_init(l);
}

#define ag_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
/* The entry at hand may be deleted inside; no other may. */
#define ag_for_each(it, head, member)                                                              \
	for (struct ag_list *l_##it = (head)->next, *n_##it = l_##it->next;                        \
	     l_##it != (head) && ((it) = ag_of(l_##it, __typeof__(*(it)), member), 1);             \
	     l_##it = n_##it, n_##it = l_##it->next)
#define ag_first(head, type, member)                                                               \
	(ag_list_empty(head) ? NULL : ag_of((head)->next, type, member))

#define AG_US ((uint64_t)1000)
#define AG_MS ((uint64_t)1000000)
#define AG_SEC ((uint64_t)1000000000)

static inline uint64_t ag_clock(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * AG_SEC + (uint64_t)t.tv_nsec;
}
/* The clock that promises are kept by. */
static inline uint64_t ag_now(void)
{
	return ag_clock(CLOCK_MONOTONIC);
}

static inline void ag_futex_wake(void *addr)
{
	syscall(SYS_futex, addr, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static inline void ag_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#else
	__asm__ volatile("yield");
#endif
}

static inline uint64_t ag_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}
static inline uint64_t ag_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/*
 * Zeroed memory that is there: without it the agent aborts, and the next one goes on from what is
 * kept.  For small things; what others decide the size of is asked for with malloc.
 */
void *ag_alloc(size_t n);
void *ag_realloc(void *p, size_t n);
void *ag_memdup(const void *p, size_t n);

/* One page of zeros. */
extern const unsigned char ag_zeros[4096];

/* One line to the log (stderr), with time and process id.  ag_debug only with --verbose. */
void ag_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
extern bool ag_verbose;
#define ag_debug(...)                                                                              \
	do {                                                                                       \
		if (ag_verbose)                                                                    \
			ag_log(__VA_ARGS__);                                                       \
	} while (0)

#endif
