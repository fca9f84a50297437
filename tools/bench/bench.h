/* SPDX-License-Identifier: MIT */
/*
 * bench.h - the parts of the benchmark.
 *
 * worker.c measures: the same code with and without the library; it knows nothing of Refault.
 * flush.c is processes that write a file back, invalidate.c those that take one out of the cache.  hops.c measures bare socket hops.  drive.c lets the workers measure in turns, round after round,
 * and prints medians.  svg.c draws.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Latencies are collected in BINS_PER_OCTAVE bins to each doubling, from BIN_FIRST ns on. */
enum { BINS_PER_OCTAVE = 8, BIN_FIRST = 128, OCTAVES = 17, BINS = BINS_PER_OCTAVE * OCTAVES };

struct hist {
	const char *name;
	uint64_t n[BINS];
};

/* What the flush-visible writer and reader share beside the file: a file outside any volume. */
struct ctl {
	_Atomic uint64_t ready; /* the round in which the reader spins */
	_Atomic uint64_t seen;  /* changes that it saw in that round */
};

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* A value that the compiler must compute. */
static inline void sink(uint64_t v)
{
	__asm__ volatile("" : : "r"(v) : "memory");
}

/* Run on that CPU alone, or (-1) anywhere. */
void pin(int cpu);
int last_cpu(void);

/* The p-th percentile of n values, which are sorted by this. */
double percentile(double *v, size_t n, double p);

void hist_add(struct hist *h, uint64_t ns);
double hist_bin_ns(size_t bin); /* its lower bound */
double hist_percentile(const struct hist *h, double p);

/* Obey a driver on stdin and stdout.  file is measured; see worker.c. */
int worker_main(const char *file, const char *unmanaged, const char *visible, const char *ctl);

/* Read small (so that everything is started), then file from its first to its last byte; MB/s. */
int cold_main(const char *file, const char *small);

/* Dirty file as `how` says (flush.c) and print the time of its write-back in ns. */
int flush_main(const char *file, const char *how);

/* Have file cached, and take it out as `how` says (invalidate.c); print the time of that in ns. */
int invalidate_main(const char *file, const char *how);

/*
 * Change 8 bytes of a page, msync, some times; print the bytes sent and received for one.  status:
 * the command that shows the counters.
 */
int wire_main(const char *file, const char *status);

/* samples latencies in ns over three bare one-way hops, until a spinning reader sees the value. */
void hops_measure(double *sample, size_t samples, int pinned);

int drive_main(int argc, char **argv);

/* Returns 0 or -errno. */
int svg_write(const char *path, const struct hist *h, size_t n);

#endif
