/* SPDX-License-Identifier: MIT */
/*
 * bench - what mapped files cost under Refault and without it.  Started by tools/bench/run.
 */
#include <err.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

int last_cpu(void)
{
	return (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
}

void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i <= last_cpu(); i++)
		if (cpu < 0 || cpu == i)
			CPU_SET(i, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "sched_setaffinity");
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

double percentile(double *v, size_t n, double p)
{
	qsort(v, n, sizeof(*v), by_value);
	size_t i = (size_t)(p * (double)n / 100);
	return n ? v[i < n ? i : n - 1] : 0;
}

int main(int argc, char **argv)
{
	if (argc == 6 && strcmp(argv[1], "worker") == 0)
		return worker_main(argv[2], argv[3], argv[4], argv[5]);
	if (argc == 4 && strcmp(argv[1], "cold") == 0)
		return cold_main(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "flush") == 0)
		return flush_main(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "invalidate") == 0)
		return invalidate_main(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "wire") == 0)
		return wire_main(argv[2], argv[3]);
	if (argc > 2 && strcmp(argv[1], "drive") == 0)
		return drive_main(argc - 2, argv + 2);
	errx(2, "usage: bench worker FILE UNMANAGED VISIBLE CTL | cold FILE SMALL | "
		"flush FILE map|random|write | invalidate FILE refault|pages|folios | wire FILE "
		"STATUS | drive KEY=VALUE...");
}
