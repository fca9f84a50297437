/* SPDX-License-Identifier: MIT */
/*
 * drive.c - let the workers measure in turns and print medians.
 *
 * Every round asks every worker for every test, unpinned and pinned, one after the other, so that
 * what drifts (clock, caches of the machine below) drifts for all.  Then one line a result:
 *
 *	NAME <tab> refault <tab> native <tab> ratio
 *
 * each number the median of its rounds.  NAME alone is signal mode against tmpfs, unpinned; @thread
 * is thread mode, @ext4 is against ext4, @pinned is bound to one CPU.  What else there is to say
 * (units, targets that were missed) goes to stderr.
 *
 * Arguments, KEY=VALUE: rounds, svg; the commands of the workers (for sh -c) tmpfs, ext4, signal,
 * thread, reader; cold, cold-native (commands), cold-file, cold-reset (command); flush,
 * flush-native, flush-tmpfs, flush-tmpfs-native, invalidate, invalidate-native (commands, how is
 * appended), wire (command); preload, volumes, runtime (start-true's environment).
 *
 * flush-256m: all bytes of a mapping changed, msync(MS_SYNC); -random: one in 256 stays as it was;
 * -write: write() and fsync(); each against write() and fsync() of as many bytes to another file of
 * the export's directory.  wire-8-bytes: what the agent sends to flush a page in which 8 bytes were
 * changed, against the page; -back: what it is answered.
 *
 * invalidate-1g: a clean file, mapped and in the page tables, is taken out of the cache, against the
 * kernel's MADV_DONTNEED and POSIX_FADV_DONTNEED on the same file where the export is.  The kernel has
 * that in single pages, as a memfd has them that userfaultfd fills; -folios: as large as it likes.
 */
#include <err.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { MAX_ROUNDS = 99, HOP_SAMPLES = 400, TRUES = 60, INVALIDATES = 5 /* take long */ };
enum who { TMPFS, EXT4, SIGNAL, THREAD, READER, WHO };

static const char *const who_key[WHO] = {"tmpfs", "ext4", "signal", "thread", "reader"};

struct test {
	const char *name, *unit;
	double scale;  /* from ns */
	double target; /* 0: none; > 0: the ratio is at most this; < 0: at least that */
};

enum {
	MINOR_RANDOM,
	SCAN_STRIP,
	LOAD_STEADY,
	STORE_FIRST,
	PREAD_4K,
	READ_UNMANAGED,
	WORKER_TESTS, /* the ones that workers measure by name */
	START_TRUE = WORKER_TESTS,
	FETCH_COLD,
	VISIBLE_P50,
	VISIBLE_P99,
	FLUSH_MAP,
	FLUSH_RANDOM,
	FLUSH_WRITE,
	FLUSH_TMPFS,
	INVALIDATE,
	INVALIDATE_FOLIOS,
	WIRE_SENT,
	WIRE_RECEIVED,
	TESTS
};

static const struct test tests[TESTS] = {
    [MINOR_RANDOM] = {"minor-random", "us a touch", 1e-3, 1.5},
    [SCAN_STRIP] = {"scan-strip", "us a page", 1e-3, 0.9},
    [LOAD_STEADY] = {"load-steady", "ns a load", 1, 1.02},
    [STORE_FIRST] = {"store-first", "us a store", 1e-3, 4},
    [PREAD_4K] = {"pread-4k", "ns a call", 1, 0.5},
    [READ_UNMANAGED] = {"read-unmanaged", "ns a call", 1, 1.03},
    [START_TRUE] = {"start-true", "us a program", 1e-3, 1.5},
    [FETCH_COLD] = {"fetch-cold", "MB/s", 1, -0.5},
    [VISIBLE_P50] = {"flush-visible-p50", "us", 1e-3, 2},
    [VISIBLE_P99] = {"flush-visible-p99", "us", 1e-3, 0},
    [FLUSH_MAP] = {"flush-256m", "ms", 1e-6, 1.67},
    [FLUSH_RANDOM] = {"flush-256m-random", "ms", 1e-6, 0},
    [FLUSH_WRITE] = {"flush-256m-write", "ms", 1e-6, 0},
    [FLUSH_TMPFS] = {"flush-256m-tmpfs", "ms", 1e-6, 0},
    [INVALIDATE] = {"invalidate-1g", "ms", 1e-6, 1.5},
    [INVALIDATE_FOLIOS] = {"invalidate-1g-folios", "ms", 1e-6, 0},
    [WIRE_SENT] = {"wire-8-bytes", "bytes", 1, 200. / 4096},
    [WIRE_RECEIVED] = {"wire-8-bytes-back", "bytes", 1, 0},
};

struct worker {
	pid_t pid;
	FILE *to, *from;
};

/* Values of all rounds: [test][pinned][who]; for the tests without workers SIGNAL is Refault and
 * TMPFS is native. */
struct series {
	double v[MAX_ROUNDS];
	size_t n;
};

static struct series all[TESTS][2][WHO];
static struct worker workers[WHO];
static struct hist hists[3] = {
    {.name = "native tmpfs"}, {.name = "Refault, signal mode"}, {.name = "Refault, thread mode"}};
static const enum who hist_who[3] = {TMPFS, SIGNAL, THREAD};

static const char *value(int argc, char **argv, const char *key)
{
	size_t n = strlen(key);

	for (int i = 0; i < argc; i++)
		if (strncmp(argv[i], key, n) == 0 && argv[i][n] == '=')
			return argv[i] + n + 1;
	return NULL;
}

static void add(int test, int pinned, enum who who, double v)
{
	struct series *s = &all[test][pinned][who];

	if (isnan(v))
		errx(1, "%s: %s measured no number", tests[test].name, who_key[who]);
	s->v[s->n++] = v;
}

static struct worker start(const char *cmd)
{
	struct worker w;
	int in[2], out[2];

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		err(1, "pipe");
	w.pid = fork();
	if (w.pid < 0)
		err(1, "fork");
	if (w.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], 0);
		dup2(out[1], 1);
		execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
		err(127, "sh");
	}
	close(in[0]);
	close(out[1]);
	w.to = fdopen(in[1], "w");
	w.from = fdopen(out[0], "r");
	return w;
}

static void send_line(enum who who, const char *test, int pinned, unsigned round)
{
	/* The flush-visible writer and reader must not share a CPU. */
	int cpu = !pinned ? -1 : strcmp(test, "visible-write") == 0 ? 0 : last_cpu();

	fprintf(workers[who].to, "%s %d %u\n", test, cpu, round);
	fflush(workers[who].to);
}

static char *answer(enum who who)
{
	static char line[1 << 16];

	if (!fgets(line, sizeof(line), workers[who].from))
		errx(1, "the %s worker is gone", who_key[who]);
	return line;
}

static void worker_tests(unsigned round)
{
	for (int t = 0; t < WORKER_TESTS; t++) {
		for (int p = 0; p < 2; p++) {
			for (int k = 0; k < READER; k++) {
				/* Another one begins in each round. */
				enum who who = (enum who)((k + (int)round) % READER);
				if (!workers[who].pid)
					continue;
				send_line(who, tests[t].name, p, round);
				add(t, p, who, strtod(answer(who), NULL));
			}
		}
	}
}

static void distributions(unsigned round)
{
	for (unsigned k = 0; k < 3; k++) {
		unsigned i = (k + round) % 3;
		send_line(hist_who[i], "dist", 0, round);
		char *p = answer(hist_who[i]);
		for (size_t b = 0; b < BINS; b++)
			hists[i].n[b] += strtoull(p, &p, 10);
	}
}

static void visible(unsigned round)
{
	static double sample[HOP_SAMPLES];

	for (int p = 0; p < 2; p++) {
		double p50, p99;
		unsigned id = 2 * round + (unsigned)p + 1;
		send_line(READER, "visible-read", p, id);
		send_line(SIGNAL, "visible-write", p, id);
		if (sscanf(answer(READER), "%lf %lf", &p50, &p99) != 2)
			errx(1, "the reader measured nothing");
		answer(SIGNAL);
		add(VISIBLE_P50, p, SIGNAL, p50);
		add(VISIBLE_P99, p, SIGNAL, p99);
		hops_measure(sample, HOP_SAMPLES, p);
		add(VISIBLE_P50, p, TMPFS, percentile(sample, HOP_SAMPLES, 50));
		add(VISIBLE_P99, p, TMPFS, percentile(sample, HOP_SAMPLES, 99));
	}
}

static double spawn_true(char **env)
{
	char *const argv[] = {"true", NULL};
	int status;
	pid_t pid;

	uint64_t t = now_ns();
	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, env) ||
	    waitpid(pid, &status, 0) != pid || status != 0)
		errx(1, "/bin/true failed");
	return (double)(now_ns() - t);
}

static void start_true(int argc, char **argv)
{
	char preload[4096], volumes[4096], runtime[4096];
	char *plain[] = {"PATH=/usr/bin:/bin", NULL};
	char *under[] = {"PATH=/usr/bin:/bin", preload, volumes, runtime, NULL};
	double a[TRUES], b[TRUES];

	snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", value(argc, argv, "preload"));
	snprintf(volumes, sizeof(volumes), "REFAULT_VOLUMES=%s", value(argc, argv, "volumes"));
	snprintf(runtime, sizeof(runtime), "REFAULT_RUNTIME_DIR=%s", value(argc, argv, "runtime"));
	for (int p = 0; p < 2; p++) {
		pin(p ? last_cpu() : -1);
		for (int i = 0; i < TRUES; i++) {
			a[i] = spawn_true(under);
			b[i] = spawn_true(plain);
		}
		add(START_TRUE, p, SIGNAL, percentile(a, TRUES, 50));
		add(START_TRUE, p, TMPFS, percentile(b, TRUES, 50));
	}
	pin(-1);
}

/* Nothing of the file in the page cache. */
static void drop(const char *file)
{
	int fd = open(file, O_RDWR);

	if (fd < 0 || fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		err(1, "%s", file);
	close(fd);
}

/* What cmd prints: one number, or two. */
static double number(const char *cmd, double *second)
{
	FILE *f = popen(cmd, "r");
	double v = NAN;

	if (!f || fscanf(f, "%lf", &v) != 1 || (second && fscanf(f, "%lf", second) != 1) ||
	    pclose(f) != 0)
		errx(1, "failed: %s", cmd);
	return v;
}

static double cold_run(const char *file, const char *cmd)
{
	drop(file);
	return number(cmd, NULL);
}

static void fetch_cold(int argc, char **argv)
{
	const char *file = value(argc, argv, "cold-file");

	if (!file)
		return;
	if (system(value(argc, argv, "cold-reset")) != 0)
		errx(1, "failed: %s", value(argc, argv, "cold-reset"));
	add(FETCH_COLD, 0, SIGNAL, cold_run(file, value(argc, argv, "cold")));
	add(FETCH_COLD, 0, TMPFS, cold_run(file, value(argc, argv, "cold-native")));
}

static double run_with(int argc, char **argv, const char *key, const char *how)
{
	char cmd[8192];

	snprintf(cmd, sizeof(cmd), "%s %s", value(argc, argv, key), how);
	return number(cmd, NULL);
}

static void flush(int argc, char **argv)
{
	static const struct {
		int test;
		const char *refault, *native, *how;
	} runs[] = {
	    {FLUSH_MAP, "flush", "flush-native", "map"},
	    {FLUSH_RANDOM, "flush", "flush-native", "random"},
	    {FLUSH_WRITE, "flush", "flush-native", "write"},
	    {FLUSH_TMPFS, "flush-tmpfs", "flush-tmpfs-native", "map"},
	};
	double sent, received;

	for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
		add(runs[i].test, 0, TMPFS, run_with(argc, argv, runs[i].native, "write"));
		add(runs[i].test, 0, SIGNAL, run_with(argc, argv, runs[i].refault, runs[i].how));
	}
	sent = number(value(argc, argv, "wire"), &received);
	add(WIRE_SENT, 0, SIGNAL, sent);
	add(WIRE_SENT, 0, TMPFS, 4096);
	add(WIRE_RECEIVED, 0, SIGNAL, received);
	add(WIRE_RECEIVED, 0, TMPFS, 4096);
}

static void invalidate(int argc, char **argv)
{
	double ours = run_with(argc, argv, "invalidate", "refault");

	add(INVALIDATE, 0, SIGNAL, ours);
	add(INVALIDATE_FOLIOS, 0, SIGNAL, ours);
	add(INVALIDATE, 0, TMPFS, run_with(argc, argv, "invalidate-native", "pages"));
	add(INVALIDATE_FOLIOS, 0, TMPFS, run_with(argc, argv, "invalidate-native", "folios"));
}

/* One result; false if its target was missed. */
static bool print(int t, const char *suffix, int pinned, enum who refault, enum who native)
{
	struct series *r = &all[t][pinned][refault], *n = &all[t][pinned][native];

	if (!r->n || !n->n || (t == READ_UNMANAGED && native == EXT4))
		return true;
	double a = percentile(r->v, r->n, 50), b = percentile(n->v, n->n, 50);
	double ratio = a / b, target = tests[t].target;
	printf("%s%s\t%.4g\t%.4g\t%.3f\n", tests[t].name, suffix, a * tests[t].scale,
	       b * tests[t].scale, ratio);
	if (*suffix || target == 0 || (target > 0 ? ratio <= target : ratio >= -target))
		return true;
	fflush(stdout);
	fprintf(stderr, "# target missed: %s %.3f, should be at %s %g\n", tests[t].name, ratio,
		target > 0 ? "most" : "least", fabs(target));
	return false;
}

static void print_all(void)
{
	static const struct {
		const char *suffix;
		int pinned;
		enum who refault, native;
	} lines[] = {
	    {"", 0, SIGNAL, TMPFS},        {"@pinned", 1, SIGNAL, TMPFS},
	    {"@thread", 0, THREAD, TMPFS}, {"@thread@pinned", 1, THREAD, TMPFS},
	    {"@ext4", 0, SIGNAL, EXT4},    {"@ext4@pinned", 1, SIGNAL, EXT4},
	};
	unsigned missed = 0;

	for (size_t l = 0; l < sizeof(lines) / sizeof(lines[0]); l++)
		for (int t = 0; t < TESTS; t++)
			missed += !print(t, lines[l].suffix, lines[l].pinned, lines[l].refault,
					 lines[l].native);
	fflush(stdout);
	fputs("# units:", stderr);
	for (int t = 0; t < TESTS; t++)
		fprintf(stderr, "%s %s %s", t ? "," : "", tests[t].name, tests[t].unit);
	fprintf(stderr, "\n# targets missed: %u\n", missed);
}

int drive_main(int argc, char **argv)
{
	const char *r = value(argc, argv, "rounds"), *svg = value(argc, argv, "svg");
	unsigned rounds = r ? (unsigned)strtoul(r, NULL, 10) : 7;

	if (rounds < 1 || rounds > MAX_ROUNDS)
		errx(2, "rounds: 1 to %d", MAX_ROUNDS);
	for (int w = 0; w < WHO; w++) {
		const char *cmd = value(argc, argv, who_key[w]);
		if (!cmd)
			continue;
		workers[w] = start(cmd);
		if (strcmp(answer((enum who)w), "ready\n") != 0)
			errx(1, "the %s worker is not ready", who_key[w]);
	}
	for (unsigned i = 0; i < rounds; i++) {
		fprintf(stderr, "\r# round %u of %u ", i + 1, rounds);
		worker_tests(i);
		distributions(i);
		start_true(argc, argv);
		visible(i);
		fetch_cold(argc, argv);
		flush(argc, argv);
		if (i < INVALIDATES)
			invalidate(argc, argv);
	}
	fputs("\r", stderr);
	print_all();
	for (int w = 0; w < WHO; w++)
		if (workers[w].pid)
			fclose(workers[w].to);
	if (svg) {
		int e = svg_write(svg, hists, 3);
		if (e)
			errx(1, "%s: %s", svg, strerror(-e));
		fprintf(stderr, "# fault latencies: %s\n", svg);
	}
	return 0;
}
