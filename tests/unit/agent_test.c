/* SPDX-License-Identifier: MIT */
/*
 * agent_test.c - the parts of refault-agent that need no program and no server: options, runtime
 * directory, page words, diff, merge, changes on their way over a crash, rejections, the guard, the
 * status table, the supervisor's table, keys.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/agent/conf.h"
#include "tools/agent/freeze.h"
#include "tools/agent/fetch.h"
#include "tools/agent/keep.h"
#include "tools/agent/key.h"
#include "tools/agent/pages.h"
#include "tools/agent/reject.h"
#include "tools/agent/req.h"
#include "tools/agent/server.h"
#include "tools/agent/structural.h"
#include "tools/agent/super.h"
#include "tools/agent/task.h"

/* ---- options ---- */

static int parse(struct ag_conf *conf, char *err, size_t len, const char *a, const char *b)
{
	char *argv[4] = {(char *)(uintptr_t) "refault-agent", (char *)(uintptr_t)a,
			 (char *)(uintptr_t)b, NULL};

	return ag_conf_parse(conf, a ? b ? 3 : 2 : 1, argv, err, len);
}

Test(agent_conf, defaults)
{
	struct ag_conf conf;
	char err[256];

	unsetenv("REFAULT_TIMEOUT");
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), 0);
	cr_assert_eq(conf.idle_ns, 60 * AG_SEC);
	cr_assert_eq(conf.dirty_ns, AG_SEC);
	cr_assert_eq(conf.timeout_ns, 30 * AG_SEC);
	cr_assert_geq(conf.cache_bytes, 1u << 20);
	cr_assert(!conf.daemon && !conf.verbose);
}

Test(agent_conf, options)
{
	struct ag_conf conf;
	char err[256];

	cr_assert_eq(parse(&conf, err, sizeof(err), "--idle", "5"), 0);
	cr_assert_eq(conf.idle_ns, 5 * AG_SEC);
	cr_assert_eq(parse(&conf, err, sizeof(err), "--dirty-expire=20", "--daemon"), 0);
	cr_assert_eq(conf.dirty_ns, 20 * AG_MS);
	cr_assert(conf.daemon);
	cr_assert_eq(parse(&conf, err, sizeof(err), "--cache-bytes", "64M"), 0);
	cr_assert_eq(conf.cache_bytes, 64u << 20);
	setenv("REFAULT_TIMEOUT", "3", 1);
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), 0);
	cr_assert_eq(conf.timeout_ns, 3 * AG_SEC);
}

Test(agent_conf, dirty_bytes_and_switches)
{
	struct ag_conf conf;
	char err[256] = "";

	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), 0);
	cr_assert(conf.dirty_bytes == 0 && !conf.no_journal);
	cr_assert_eq(parse(&conf, err, sizeof(err), "--dirty-bytes", "4M"), 0);
	cr_assert_eq(conf.dirty_bytes, 4u << 20);
	setenv("REFAULT_DIRTY_BYTES", "2M", 1);
	setenv("REFAULT_DISABLE", "continue-wp,journal", 1);
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), 0);
	cr_assert(conf.dirty_bytes == 2u << 20 && conf.no_journal);
	cr_assert_eq(parse(&conf, err, sizeof(err), "--dirty-bytes=1G", NULL), 0);
	cr_assert_eq(conf.dirty_bytes, 1u << 30, "the option wins");
	setenv("REFAULT_DISABLE", "journals,continue-wp,", 1);
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), 0);
	cr_assert_not(conf.no_journal);
	setenv("REFAULT_DIRTY_BYTES", "lots", 1);
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), -EINVAL);
	cr_assert(strstr(err, "REFAULT_DIRTY_BYTES"));
	/* An agent finds them in what it keeps of its starter's environment. */
	ag_conf_clean_env();
	cr_assert(getenv("REFAULT_DIRTY_BYTES") && getenv("REFAULT_DISABLE"));
}

Test(agent_conf, refusals_name_the_option)
{
	static const char *const bad[][2] = {
	    {"--idle", "x"},         {"--idle", "-1"},
	    {"--dirty-expire", "0"}, {"--cache-bytes", "1"},
	    {"--cache-bytes", "9Q"}, {"--cache-bytes=99999999999T", NULL},
	    {"--nonsense", NULL},    {"--idle", NULL},
	    {"extra", NULL},         {"--idle=18446744073709551615", NULL},
	    {"--dirty-bytes", "0"},  {"--dirty-bytes", "x"},
	};
	struct ag_conf conf;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char err[256] = "", word[32];

		cr_assert_eq(parse(&conf, err, sizeof(err), bad[i][0], bad[i][1]), -EINVAL, "%s %s",
			     bad[i][0], bad[i][1] ? bad[i][1] : "");
		snprintf(word, sizeof(word), "%.*s", (int)strcspn(bad[i][0], "="), bad[i][0]);
		cr_assert(strstr(err, word), "'%s' does not name %s", err, word);
	}
	setenv("REFAULT_TIMEOUT", "soon", 1);
	char err[256] = "";
	cr_assert_eq(parse(&conf, err, sizeof(err), NULL, NULL), -EINVAL);
	cr_assert(strstr(err, "REFAULT_TIMEOUT"));
}

Test(agent_conf, bytes)
{
	uint64_t n;

	cr_assert(ag_conf_bytes("4096", &n) == 0 && n == 4096);
	cr_assert(ag_conf_bytes("3k", &n) == 0 && n == 3072);
	cr_assert(ag_conf_bytes("2T", &n) == 0 && n == (uint64_t)2 << 40);
	cr_assert_eq(ag_conf_bytes("", &n), -EINVAL);
	cr_assert_eq(ag_conf_bytes("-1", &n), -EINVAL);
	cr_assert_eq(ag_conf_bytes("1MB", &n), -EINVAL);
	cr_assert_eq(ag_conf_bytes("99999999999T", &n), -EINVAL);
}

Test(agent_conf, runtime_directory)
{
	char base[] = "/tmp/refault-unit.XXXXXX", path[64], err[256];
	struct ag_conf conf;
	struct stat st;

	cr_assert(mkdtemp(base));
	snprintf(path, sizeof(path), "%s/rt", base);
	setenv("REFAULT_RUNTIME_DIR", path, 1);
	cr_assert_eq(ag_conf_runtime(&conf, err, sizeof(err)), 0, "%s", err);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0700);
	cr_assert_str_eq(conf.dir, path);
	cr_assert_eq(ag_conf_runtime(&conf, err, sizeof(err)), 0, "a second time");

	chmod(path, 0750);
	cr_assert_eq(ag_conf_runtime(&conf, err, sizeof(err)), -EPERM);
	cr_assert(strstr(err, "0700"));
	rmdir(path);
	cr_assert_eq(symlink("/tmp", path), 0);
	cr_assert_lt(ag_conf_runtime(&conf, err, sizeof(err)), 0);
	cr_assert(strstr(err, "symbolic link"), "%s", err);
	unlink(path);
	setenv("REFAULT_RUNTIME_DIR", "relative", 1);
	cr_assert_eq(ag_conf_runtime(&conf, err, sizeof(err)), -EINVAL);
	memset(path, 'x', sizeof(path) - 1);
	path[0] = '/';
	char longer[256];
	snprintf(longer, sizeof(longer), "/%0200d", 1);
	setenv("REFAULT_RUNTIME_DIR", longer, 1);
	cr_assert_eq(ag_conf_runtime(&conf, err, sizeof(err)), -ENAMETOOLONG);
	rmdir(base);
}

/* ---- page words ---- */

static uint64_t dirty_word(uint32_t gen, uint32_t twin)
{
	return (uint64_t)gen << RF_W_GEN_SHIFT | (uint64_t)twin << RF_W_TWIN_SHIFT | RF_PG_DIRTY;
}

Test(agent_words, transitions)
{
	uint64_t w = dirty_word(7, 33);
	rf_word word = w;

	cr_assert(ag_w_twinned(w));
	cr_assert(ag_word_move(&word, w, rf_w_to(w, RF_PG_WRITEBACK)));
	cr_assert_eq(rf_w_twin(word), 33u, "a page in flight keeps its twin");
	cr_assert(ag_w_twinned(word));
	cr_assert(!ag_word_move(&word, w, rf_w_clean(w, RF_PG_UPTODATE, 0)),
		  "only from what it is");
	cr_assert(ag_word_move(&word, word, rf_w_clean(word, RF_PG_UPTODATE, 0)));
	cr_assert_eq(rf_w_gen(word), 7u, "its own stores are no new generation");
	cr_assert_eq(rf_w_twin(word), 0u);
	cr_assert(ag_word_move(&word, word, rf_w_clean(word, RF_PG_WRITEBACK, 1)));
	cr_assert_eq(rf_w_gen(word), 8u);
	cr_assert(!ag_w_twinned(word), "a clean page in transition has no twin");
	cr_assert(ag_word_move(&word, word, rf_w_clean(word, RF_PG_EMPTY, 0)));
	cr_assert(!rf_w_cached(word));
}

Test(agent_words, sync_bit_and_generation_wrap)
{
	uint64_t w = dirty_word(UINT32_MAX, 5) | RF_W_SYNC;

	w = rf_w_clean(w, RF_PG_EMPTY, 1);
	cr_assert(w & RF_W_SYNC);
	cr_assert_eq(rf_w_gen(w), 0u);
	cr_assert_eq(rf_w_twin(w), 0u);
}

/* Of many words only clean ones are taken, up to the first that is not; each has its own generation. */
Test(agent_words, take_and_gone)
{
	const uint64_t clean = rf_w_clean(0, RF_PG_UPTODATE, 7);
	const uint64_t dirty =
	    clean - RF_PG_UPTODATE + RF_PG_DIRTY + ((uint64_t)5 << RF_W_TWIN_SHIFT);
	rf_word w[8] = {clean, rf_w_clean(0, RF_PG_UPTODATE, UINT32_MAX),
			clean, dirty,
			clean, clean | RF_W_SYNC,
			0,     clean};

	cr_assert_eq(ag_words_take(w, 2), 2);
	cr_assert_eq(w[0], rf_w_clean(0, RF_PG_WRITEBACK, 8));
	cr_assert_eq(w[1], rf_w_clean(0, RF_PG_WRITEBACK, 0), "the generation wraps");
	cr_assert_eq(w[2], clean, "past the end");
	cr_assert_eq(ag_words_take(w + 2, 6), 1);
	cr_assert_eq(ag_words_take(w + 3, 5), 0);
	cr_assert_eq(ag_words_take(w + 4, 4), 1);
	cr_assert_eq(w[5], clean | RF_W_SYNC);
	cr_assert_eq(ag_words_take(w + 5, 3), 0);
	cr_assert_eq(ag_words_take(w + 6, 2), 0);

	w[3] = rf_w_to(dirty, RF_PG_WRITEBACK);
	cr_assert_eq(ag_words_gone(w, 8), 4);
	cr_assert_eq(w[0], rf_w_clean(0, RF_PG_EMPTY, 8), "no second step of the generation");
	cr_assert_eq(w[3], rf_w_to(dirty, RF_PG_WRITEBACK), "in flight: not the dropper's");
	cr_assert_eq(w[7], clean);
	cr_assert_eq(ag_words_gone(w, 8), 0);
}

enum { BULK = 512, BULK_ROUNDS = 400 };

static struct bulk {
	rf_word word[BULK];
	_Atomic uint32_t waiting, round, left;
	_Atomic uint64_t dirtied;
	pthread_barrier_t start, end;
} bulk;

/* mkwrite, as page_mkwrite does it: read the word, copy, CAS. */
static void *bulk_mkwrite(void *arg)
{
	(void)arg;
	for (unsigned r = 0; r < BULK_ROUNDS; r++) {
		pthread_barrier_wait(&bulk.start);
		for (unsigned i = BULK; i--;) {
			uint64_t w = atomic_load(&bulk.word[i]);

			if (rf_w_state(w) == RF_PG_UPTODATE &&
			    atomic_compare_exchange_strong(&bulk.word[i], &w,
							   rf_w_clean(w, RF_PG_DIRTY, 0) |
							       (uint64_t)9 << RF_W_TWIN_SHIFT))
				atomic_fetch_add(&bulk.dirtied, 1);
		}
		pthread_barrier_wait(&bulk.end);
	}
	return NULL;
}

/* Each page is the dropper's or the writer's, never both's, and never nobody's. */
Test(agent_words, take_against_mkwrite, .timeout = 300)
{
	pthread_t t;

	pthread_barrier_init(&bulk.start, NULL, 2);
	pthread_barrier_init(&bulk.end, NULL, 2);
	cr_assert_eq(pthread_create(&t, NULL, bulk_mkwrite, NULL), 0);
	for (unsigned r = 0; r < BULK_ROUNDS; r++) {
		uint64_t taken = 0, dirty = 0;

		for (unsigned i = 0; i < BULK; i++)
			bulk.word[i] = rf_w_clean(0, RF_PG_UPTODATE, r);
		bulk.dirtied = 0;
		pthread_barrier_wait(&bulk.start);
		for (unsigned i = 0; i < BULK;) {
			uint64_t n = ag_words_take(&bulk.word[i], BULK - i);

			taken += n;
			i += n ? n : 1;
		}
		pthread_barrier_wait(&bulk.end);
		cr_assert_eq(ag_words_gone(bulk.word, BULK), taken);
		for (unsigned i = 0; i < BULK; i++)
			dirty += rf_w_state(bulk.word[i]) == RF_PG_DIRTY;
		cr_assert_eq(dirty, bulk.dirtied, "a store's page was dropped");
		cr_assert_eq(dirty + taken, BULK);
	}
	pthread_join(t, NULL);
}

/* page_wait's protocol, but without its patience. */
static void *bulk_wait(void *arg)
{
	rf_word *word = &bulk.word[(uintptr_t)arg];

	for (unsigned r = 0; r < BULK_ROUNDS; r++) {
		uint64_t w;

		pthread_barrier_wait(&bulk.start);
		while (rf_w_state(w = atomic_load(word)) == RF_PG_WRITEBACK) {
			atomic_fetch_add(&bulk.waiting, 1);
			if (atomic_load(word) == w)
				syscall(SYS_futex, word, FUTEX_WAIT, (uint32_t)w, NULL, NULL, 0);
			atomic_fetch_sub(&bulk.waiting, 1);
		}
		pthread_barrier_wait(&bulk.end);
	}
	return NULL;
}

/* Who sleeps on a word of many is woken, though nobody is for words that nobody waits for. */
Test(agent_words, gone_wakes_who_waits, .timeout = 300)
{
	pthread_t t[2];
	unsigned waited = 0;

	pthread_barrier_init(&bulk.start, NULL, 3);
	pthread_barrier_init(&bulk.end, NULL, 3);
	cr_assert_eq(pthread_create(&t[0], NULL, bulk_wait, (void *)0), 0);
	cr_assert_eq(pthread_create(&t[1], NULL, bulk_wait, (void *)(uintptr_t)(BULK - 1)), 0);
	for (unsigned r = 0; r < BULK_ROUNDS; r++) {
		for (unsigned i = 0; i < BULK; i++)
			bulk.word[i] = rf_w_clean(0, RF_PG_WRITEBACK, r);
		pthread_barrier_wait(&bulk.start);
		for (unsigned spin = 0; spin < r * 16; spin++)
			ag_relax();
		cr_assert_eq(ag_words_gone(bulk.word, BULK), BULK);
		if (atomic_load(&bulk.waiting)) {
			ag_words_wake(bulk.word, BULK);
			waited++;
		}
		pthread_barrier_wait(&bulk.end); /* for ever, if one of them is forgotten */
	}
	cr_assert(waited, "nobody ever waited: this tested nothing");
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
}

/* ---- diff ---- */

static _Alignas(4096) unsigned char page[4096], twin[4096], theirs[4096];
static uint8_t flying[RF_MARK_SIZE];
static _Alignas(8) _Atomic uint8_t mark[RF_MARK_SIZE];
static rf_range range[4096];
static unsigned char data[65536];
static struct ag_change change;

static void setup(void)
{
	for (unsigned i = 0; i < 4096; i++)
		page[i] = twin[i] = theirs[i] = (unsigned char)(i * 7);
	memset(flying, 0, sizeof(flying));
	memset((void *)mark, 0, sizeof(mark));
	change =
	    (struct ag_change){.range = range, .cap = 4096, .data = data, .size = sizeof(data)};
}

Test(agent_diff, nothing, .init = setup)
{
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 4096), 0);
	cr_assert_eq(change.n, 0u);
}

Test(agent_diff, bytes_not_words, .init = setup)
{
	page[0] ^= 1;
	page[9] ^= 1;
	page[10] ^= 1;
	page[4095] ^= 1;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 8192, 4096), 4);
	cr_assert_eq(change.n, 3u);
	cr_assert(range[0].off == 8192 && range[0].len == 1);
	cr_assert(range[1].off == 8201 && range[1].len == 2);
	cr_assert(range[2].off == 8192 + 4095 && range[2].len == 1);
	cr_assert(data[0] == page[0] && data[1] == page[9] && data[2] == page[10] &&
		  data[3] == page[4095]);
}

Test(agent_diff, runs_join_over_pages, .init = setup)
{
	page[4095] ^= 1;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 4096), 1);
	page[4095] ^= 1;
	page[0] ^= 1;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 4096, 4096), 1);
	cr_assert_eq(change.n, 1u);
	cr_assert(range[0].off == 4095 && range[0].len == 2);
}

Test(agent_diff, not_past_the_end_of_the_file, .init = setup)
{
	for (unsigned i = 0; i < 4096; i++)
		page[i] ^= 0xff;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 13), 13);
	cr_assert(change.n == 1 && range[0].len == 13);
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 4096, 0), 0);
}

Test(agent_diff, full_changes_nothing, .init = setup)
{
	page[1] ^= 1;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 4096), 1);
	for (unsigned i = 0; i < 4096; i += 2)
		page[i] ^= 0xff;
	change.cap = 100;
	/* The first byte joins the run that is there; that is taken back, too. */
	range[0] = (rf_range){4095, 1};
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 4096, 4096), -ENOSPC);
	cr_assert(change.n == 1 && change.len == 1 && range[0].len == 1);
	change.cap = 4096;
	change.size = 10;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 4096, 4096), -ENOSPC);
	cr_assert(change.n == 1 && change.len == 1 && range[0].len == 1);
}

Test(agent_diff, marked_bytes_count_though_equal, .init = setup)
{
	mark[1] = 0x81; /* bytes 8 and 15 */
	cr_assert_eq(ag_diff(&change, page, twin, mark, 0, 4096), 2);
	cr_assert(change.n == 2 && range[0].off == 8 && range[1].off == 15);
	cr_assert(data[0] == page[8] && data[1] == page[15]);
}

/* What ag_diff must find, byte by byte. */
static void model_diff(struct ag_change *c, uint64_t off, bool marks, uint32_t limit)
{
	for (uint32_t i = 0; i < limit; i++) {
		rf_range *r = c->n ? &c->range[c->n - 1] : NULL;

		if (page[i] == twin[i] && !(marks && mark[i / 8] >> i % 8 & 1))
			continue;
		if (r && r->off + r->len == off + i)
			r->len++;
		else
			c->range[c->n++] = (rf_range){off + i, 1};
		c->data[c->len++] = page[i];
	}
}

/* Change (or mark) runs of 1 .. most bytes with gaps of the same. */
static void scatter(uint64_t *seed, unsigned most, bool marks)
{
	for (uint32_t at = 0, n;; at += n) {
		*seed = *seed * 6364136223846793005u + 1442695040888963407u;
		n = 1 + (uint32_t)(*seed >> 33) % most;
		for (uint32_t i = at; i < at + n && i < 4096; i++) {
			if (marks)
				mark[i / 8] |= (uint8_t)(1u << i % 8);
			else
				page[i] ^= (unsigned char)(*seed >> 40 | 1);
		}
		at += n + (uint32_t)(*seed >> 21) % most;
		if (at >= 4096)
			return;
	}
}

Test(agent_diff, as_a_model_that_knows_bytes, .init = setup)
{
	static const unsigned most[] = {1, 3, 8, 20, 64, 130, 700, 4096};
	static const uint32_t limits[] = {4096, 4095, 4088, 4033, 2048, 65, 64, 63, 9, 1, 0};
	static rf_range want_range[4096];
	static unsigned char want_data[65536];
	uint64_t seed = 1;

	for (unsigned k = 0; k < 8 * 8 * 11 * 4; k++) {
		struct ag_change want = {want_range, 0, 4096, want_data, 0, sizeof(want_data)};
		const uint32_t limit = limits[k / 64 % 11];
		const bool marks = k / 704 % 2, joins = k / 1408;
		ssize_t n;

		setup();
		if (joins) {
			cr_assert_eq(ag_diff_all(&change, page, 8192 - 5, 5), 5);
			cr_assert_eq(ag_diff_all(&want, page, 8192 - 5, 5), 5);
		}
		scatter(&seed, most[k % 8], false);
		scatter(&seed, most[k / 8 % 8], true);
		model_diff(&want, 8192, marks, limit);
		n = (ssize_t)want.len - (joins ? 5 : 0);
		cr_assert_eq(ag_diff(&change, page, twin, marks ? mark : NULL, 8192, limit), n,
			     "round %u", k);
		cr_assert_eq(change.n, want.n, "round %u: %u ranges, not %u", k, change.n, want.n);
		cr_assert_arr_eq(change.range, want.range, want.n * sizeof(*want.range));
		cr_assert_eq(change.len, want.len);
		cr_assert_arr_eq(change.data, want.data, want.len);
		/* With one byte less of room it is as if nothing had been asked. */
		if (!n)
			continue;
		change.n = 0;
		change.len = 0;
		change.size = (size_t)n - 1;
		cr_assert_eq(ag_diff(&change, page, twin, marks ? mark : NULL, 8192, limit),
			     -ENOSPC);
		cr_assert(!change.n && !change.len);
	}
}

struct writer {
	_Atomic bool stop;
	unsigned char value;
};

/* Stores words that are no mixture: all bytes of a word are equal. */
static void *store_words(void *arg)
{
	struct writer *w = arg;
	volatile uint64_t *p = (volatile uint64_t *)page;

	while (!atomic_load(&w->stop)) {
		uint64_t v = (uint64_t)++w->value * 0x0101010101010101u;

		for (unsigned i = 0; i < 512; i++)
			p[i] = v;
	}
	return NULL;
}

/* A range that is sent holds the bytes that were compared: never one that equals the twin. */
Test(agent_diff, what_was_compared_is_what_is_sent, .init = setup)
{
	struct writer w = {0};
	pthread_t thread;

	memset(page, 0, sizeof(page));
	memset(twin, 0, sizeof(twin));
	cr_assert_eq(pthread_create(&thread, NULL, store_words, &w), 0);
	for (unsigned k = 0; k < 20000; k++) {
		change.n = 0;
		change.len = 0;
		cr_assert_geq(ag_diff(&change, page, twin, NULL, 0, 4096), 0);
		for (size_t i = 0; i < change.len; i++)
			cr_assert_neq(change.data[i], 0, "byte %zu of round %u", i, k);
	}
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
}

Test(agent_diff, without_a_twin_all_counts, .init = setup)
{
	cr_assert_eq(ag_diff_all(&change, page, 4096, 100), 100);
	cr_assert_eq(ag_diff_all(&change, page, 4196, 50), 50);
	cr_assert(change.n == 1 && range[0].len == 150);
	change.size = 160;
	cr_assert_eq(ag_diff_all(&change, page, 9000, 50), -ENOSPC);
}

/* ---- merge ---- */

Test(agent_merge, theirs_where_mine_is_not, .init = setup)
{
	page[3] = 0xaa; /* mine */
	page[100] = 0xbb;
	for (unsigned i = 0; i < 50; i++)
		theirs[i] = (unsigned char)~twin[i];
	ag_merge(page, twin, NULL, NULL, theirs, NULL, 0, 4096);
	for (unsigned i = 0; i < 50; i++) {
		cr_assert_eq(twin[i], theirs[i], "the twin is theirs everywhere");
		if (i != 3)
			cr_assert_eq(page[i], theirs[i], "byte %u", i);
	}
	cr_assert_eq(page[3], 0xaa);
	cr_assert_eq(page[100], 0xbb);
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 4096), 2, "mine is still to be sent");
}

Test(agent_merge, only_the_range, .init = setup)
{
	unsigned char b[3] = {1, 2, 3};

	ag_merge(page, twin, NULL, NULL, b, NULL, 6, 9); /* over a word's edge */
	cr_assert(page[5] == (unsigned char)(5 * 7) && page[9] == (unsigned char)(9 * 7));
	cr_assert(page[6] == 1 && page[7] == 2 && page[8] == 3);
	cr_assert(twin[6] == 1 && twin[8] == 3 && twin[9] == (unsigned char)(9 * 7));
}

Test(agent_merge, only_which_bytes, .init = setup)
{
	uint8_t which[512] = {0};

	ag_which(which, 7, 10); /* over a word's edge */
	ag_which(which, 12, 13);
	ag_which(which, 4088, 4096);
	cr_assert(which[0] == 0x80 && which[1] == 0x13 && which[511] == 0xff && !which[510]);
	memset(theirs, 0xee, 4096);
	ag_merge(page, twin, NULL, NULL, theirs + 7, which, 7, 13);
	cr_assert(page[7] == 0xee && page[9] == 0xee && page[12] == 0xee);
	cr_assert(page[10] == (unsigned char)(10 * 7) && page[11] == (unsigned char)(11 * 7));
	cr_assert(twin[12] == 0xee && twin[11] == (unsigned char)(11 * 7));
	ag_store(page, "xyz", which, 10, 13);
	cr_assert(page[10] == (unsigned char)(10 * 7) && page[12] == 'z');
}

Test(agent_merge, marked_is_mine, .init = setup)
{
	mark[0] = 1 << 4;
	theirs[4] ^= 0xff;
	theirs[5] ^= 0xff;
	ag_merge(page, twin, mark, NULL, theirs, NULL, 0, 4096);
	cr_assert_eq(page[4], (unsigned char)(4 * 7));
	cr_assert_eq(page[5], theirs[5]);
}

static bool bit(const uint8_t *bits, unsigned i)
{
	return bits[i / 8] >> i % 8 & 1;
}

/* Each byte in one of all states that a byte can be in, at all places in a word. */
Test(agent_merge, every_kind_of_byte, .init = setup)
{
	static unsigned char was[4096], had[4096];

	for (unsigned i = 0; i < 4096; i++) {
		unsigned kind = i / 8 % 32 ^ i % 8 * 5 % 32;

		if (kind & 1)
			page[i] ^= 0x11; /* mine */
		if (kind & 2)
			mark[i / 8] |= (uint8_t)(1u << i % 8);
		if (kind & 4)
			flying[i / 8] |= (uint8_t)(1u << i % 8);
		if (kind & 8)
			theirs[i] ^= 0x22;
		if (kind & 16)
			theirs[i] = page[i];
	}
	memcpy(was, page, 4096);
	memcpy(had, twin, 4096);
	ag_merge(page, twin, mark, flying, theirs + 3, NULL, 3, 4093);
	for (unsigned i = 0; i < 4096; i++) {
		bool left = i < 3 || i >= 4093 || bit(flying, i);
		bool mine = was[i] != had[i] || (mark[i / 8] >> i % 8 & 1);

		cr_assert_eq(page[i], left || mine ? was[i] : theirs[i], "page %u", i);
		cr_assert_eq(twin[i], left ? had[i] : theirs[i], "twin %u", i);
	}
}

Test(agent_merge, what_was_sent_becomes_the_twin, .init = setup)
{
	page[8] = 0x55;
	page[9] = 0x56;
	mark[500] = 0x80; /* byte 4007, equal */
	cr_assert_eq(ag_diff(&change, page, twin, mark, 4096, 4096), 3);
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 8192, 4096), 2, "the next page, too");
	ag_sent_bits(&change, 1, flying);
	for (unsigned i = 0; i < 4096; i++)
		cr_assert_eq(bit(flying, i), i == 8 || i == 9 || i == 4007, "%u", i);
	ag_sent_bits(&change, 0, flying);
	cr_assert_eq(flying[1], 0, "of another page");
	ag_sent_bits(&change, 1, flying);

	/* Stored meanwhile, written meanwhile, cut off meanwhile, and theirs come in between. */
	ag_unmark_bits(mark, flying);
	cr_assert_eq(mark[500], 0);
	page[8] = 0x66;
	mark[1] = 1 << 1; /* byte 9, as it was */
	ag_zero(page, 4000, 4096);
	ag_zero(twin, 4000, 4096);
	ag_unmark((_Atomic uint8_t *)flying, 4000, 4096);
	for (unsigned i = 0; i < 16; i++)
		theirs[i] = (unsigned char)(0x80 + i);
	ag_merge(page, twin, mark, flying, theirs, NULL, 0, 16);
	ag_sent_arrived(&change, 1, flying, twin);
	cr_assert(twin[8] == 0x55 && page[8] == 0x66, "the store since is still to be sent");
	cr_assert(twin[9] == 0x56 && page[9] == 0x56);
	cr_assert(twin[10] == 0x8a && page[10] == 0x8a);
	cr_assert_eq(twin[4007], 0, "what was cut off does not come back");
	change.n = 0;
	change.len = 0;
	cr_assert_eq(ag_diff(&change, page, twin, mark, 0, 4096), 2);
	cr_assert(range[0].off == 8 && range[0].len == 2);
}

Test(agent_merge, what_was_not_taken_is_sent_again, .init = setup)
{
	page[100] ^= 1;
	cr_assert_eq(ag_diff(&change, page, twin, NULL, 0, 4096), 1);
	ag_sent_bits(&change, 0, flying);
	page[100] = twin[100]; /* stored back, but the server may have the other */
	ag_mark_bits(mark, flying);
	cr_assert_eq(ag_diff(&change, page, twin, mark, 0, 4096), 1);
}

/* Over ranges that end and begin anywhere. */
Test(agent_merge, pieces_of_random_changes, .init = setup)
{
	unsigned seed = 7;

	for (unsigned round = 0; round < 200; round++) {
		static unsigned char sent[3 * 4096], want[3 * 4096], got[4096];
		static bool in[3 * 4096];
		uint64_t at = 0;

		memset(in, 0, sizeof(in));
		change.n = 0;
		change.len = 0;
		for (;;) {
			uint64_t len = 1 + (uint64_t)rand_r(&seed) % (round % 2 ? 9000 : 40);

			at += 1 + (uint64_t)rand_r(&seed) % (round % 3 ? 50 : 5000);
			if (at + len > sizeof(sent))
				break;
			for (uint64_t i = at; i < at + len; i++) {
				in[i] = true;
				want[i] = change.data[change.len++] = (unsigned char)rand_r(&seed);
			}
			range[change.n++] = (rf_range){at, len};
			at += len;
		}
		for (unsigned pg = 0; pg < 3; pg++) {
			ag_sent_bits(&change, pg, flying);
			memset(got, 0, sizeof(got));
			ag_sent_arrived(&change, pg, flying, got);
			for (unsigned i = 0; i < 4096; i++) {
				cr_assert_eq(bit(flying, i), in[pg * 4096 + i]);
				cr_assert_eq(got[i], in[pg * 4096 + i] ? want[pg * 4096 + i] : 0);
			}
		}
	}
}

Test(agent_merge, store_and_zero_keep_to_their_bytes, .init = setup)
{
	ag_store(page, "abcdefghijk", NULL, 3, 14);
	cr_assert_eq(memcmp(page + 3, "abcdefghijk", 11), 0);
	cr_assert(page[2] == 14 && page[14] == 98);
	ag_zero(page, 4090, 4096);
	ag_zero(page, 16, 17);
	cr_assert(page[4089] == twin[4089] && !page[4090] && !page[4095]);
	cr_assert(page[15] == twin[15] && !page[16] && page[17] == twin[17]);
	ag_zero(page, 20, 20);
	cr_assert_eq(page[20], twin[20]);
}

Test(agent_merge, unmarked_is_theirs_again, .init = setup)
{
	memset((void *)mark, 0xff, sizeof(mark));
	ag_unmark(mark, 3, 21);
	cr_assert(mark[0] == 0x07 && mark[1] == 0x00 && mark[2] == 0xe0 && mark[3] == 0xff);
	ag_unmark(mark, 33, 35);
	cr_assert_eq(mark[4], 0xf9);
	ag_unmark(mark, 40, 40);
	cr_assert_eq(mark[5], 0xff);
	ag_unmark(mark, 4088, 4096);
	cr_assert(mark[510] == 0xff && mark[511] == 0x00);
	theirs[2] ^= 0xff;
	theirs[3] ^= 0xff;
	ag_merge(page, twin, mark, NULL, theirs, NULL, 0, 4096);
	cr_assert_eq(page[2], (unsigned char)(2 * 7));
	cr_assert_eq(page[3], theirs[3]);
}

/* ---- changes on their way ---- */

#define CAP 64u
#define NTWINS 16u

static struct ag_conf test_conf;
static struct rf_vnode *test_st;
static struct rf_twins *test_twins;
static char *test_map;

/* An agent with one file, on the memory that outlives it. */
static struct ag_vnode *agent_new(int journal)
{
	struct ag *ag = ag_alloc(sizeof(*ag));
	struct ag_server *srv = ag_alloc(sizeof(*srv));
	struct ag_volume *vol = ag_alloc(sizeof(*vol));
	struct ag_vnode *vn = ag_alloc(sizeof(*vn));

	ag->conf = &test_conf;
	ag->twins = test_twins;
	ag->ntwins = NTWINS;
	ag->life = 1;
	ag_list_init(&ag->kicked);
	ag_list_init(&ag->starved);
	ag_list_init(&ag->procs);
	cr_assert_eq(journal < 0 ? ag_journal_make(ag) : ag_journal_adopt(ag, journal), 0);
	srv->ag = ag;
	vol->srv = srv;
	vn->ag = ag;
	vn->vol = vol;
	vn->id = 5;
	vn->fid = (rf_fid){77, 1};
	vn->path = (char *)(uintptr_t) "file";
	vn->st = test_st;
	vn->word = rf_vnode_words(test_st);
	vn->cap = CAP;
	vn->map = test_map;
	vn->size = vn->ssize = CAP << RF_PAGE_SHIFT;
	ag_list_init(&vn->kick);
	ag_list_init(&vn->starve);
	ag_list_init(&vn->ops);
	ag_list_init(&vn->reqs);
	ag_list_init(&vn->tasks);
	ag_list_init(&vn->gate_waits);
	return vn;
}

static struct ag_vnode *fresh(void)
{
	if (!freopen("/dev/null", "w", stderr))
		abort();
	test_st = aligned_alloc(4096, 2 * RF_VNODE_HDR);
	test_twins = aligned_alloc(4096, (rf_twins_size(NTWINS) + 4095) & ~(uint64_t)4095);
	test_map = aligned_alloc(4096, CAP << RF_PAGE_SHIFT);
	memset(test_st, 0, RF_VNODE_HDR + CAP * 8);
	memset((void *)test_twins, 0, rf_twins_size(NTWINS));
	memset(test_map, 'p', CAP << RF_PAGE_SHIFT);
	atomic_store(&test_st->errseq, RF_ERRSEQ_NONE);
	return agent_new(-1);
}

static struct ag_vnode *crash(struct ag_vnode *vn)
{
	return agent_new(dup(vn->ag->journal_fd));
}

static void set_word(struct ag_vnode *vn, uint64_t pg, uint64_t w)
{
	atomic_store(&vn->word[pg], w);
	atomic_store(&test_twins->owner[rf_w_twin(w)], 9);
}

/* A STORE of bytes 10 to 12 of each page; page i has twin i. */
static struct ag_op *store_new(struct ag_vnode *vn, uint64_t first, uint32_t n)
{
	struct ag_op *op = ag_op_new(vn, RF_STORE, false);

	cr_assert(op);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t w = rf_w_to(dirty_word(7, (uint32_t)(first + i)), RF_PG_WRITEBACK);

		set_word(vn, first + i, w);
		op->page[op->npages++] = (struct ag_slot_page){.page = first + i, .word = w};
		op->change.range[op->change.n++] =
		    (rf_range){((first + i) << RF_PAGE_SHIFT) + 10, 2};
		memcpy(op->change.data + op->change.len, "xy", 2);
		op->change.len += 2;
	}
	return op;
}

static struct ag_op *only_op(struct ag_vnode *vn)
{
	struct ag_op *op = ag_first(&vn->ops, struct ag_op, link);

	cr_assert(op && op->link.next == &vn->ops);
	return op;
}

Test(agent_journal, the_next_agent_sends_the_same)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *op = store_new(vn, 1, 4);
	uint64_t request = op->request;

	op->page[2].loud = 1; /* page 3 */
	op->key = 0;
	op->durable = true;
	ag_op_arm(op);
	cr_assert_eq(rf_w_state(vn->word[3]), RF_PG_DIRTY);
	cr_assert_eq(rf_w_state(vn->word[1]), RF_PG_WRITEBACK);
	atomic_store(&vn->word[2], rf_w_clean(vn->word[2], RF_PG_UPTODATE, 0)); /* applied, read */
	atomic_store(&vn->word[4], rf_w_clean(vn->word[4], RF_PG_EMPTY, 1));    /* cut off */
	store_new(vn, 8, 1); /* collected, and not sent */

	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 1);
	op = only_op(vn);
	cr_assert(op->type == RF_STORE && op->state == AG_OP_LOST && op->request == request);
	cr_assert(op->durable && op->change.n == 4 && !memcmp(op->change.data, "xyxyxyxy", 8));
	cr_assert_eq(vn->unapplied, 1u);
	for (unsigned pg = 1; pg < 9; pg++) {
		const uint8_t *b = ag_op_inflight(vn, pg);

		cr_assert_eq(b != NULL, pg == 1 || pg == 3, "page %u", pg);
		cr_assert(!b || (b[1] == 0x0c && !b[0] && !b[2]));
	}
	cr_assert_eq(rf_w_state(vn->word[1]), RF_PG_DIRTY, "it need not stand still");
	cr_assert_eq(rf_w_state(vn->word[8]), RF_PG_WRITEBACK, "is for repair() to undo");
	ag_op_undo(op);
	cr_assert(ag_twin_mark(vn->ag, vn->word[1]), "what may have been applied is sent again");

	/* And the one after that, if this one dies, too; until it is over. */
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 1);
	ag_op_end(only_op(vn));
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 0);
}

Test(agent_journal, in_order_and_programs_find_theirs)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *a = store_new(vn, 1, 1), *b = ag_op_new(vn, RF_APPEND, false);
	struct ag_op *c = ag_op_new(vn, RF_SET_SIZE, false), *op;
	unsigned n = 0;

	b->program = true;
	b->request = (uint64_t)1 << 63 | 12;
	c->program = true;
	c->request = (uint64_t)1 << 63 | 13;
	c->size = 99;
	ag_op_arm(c);
	ag_op_arm(b);
	ag_op_arm(a);
	a->slot->applied = 1;
	b->slot->off = 4321;
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 3);
	ag_for_each (op, &vn->ops, link)
		cr_assert_eq(op->seq, ++n);
	cr_assert(vn->gate && vn->unapplied == 2, "the STORE was applied");
	op = ag_op_find(vn, (uint64_t)1 << 63 | 12);
	cr_assert(op && op->type == RF_APPEND && op->off == 4321);
	cr_assert_eq(ag_op_find(vn, (uint64_t)1 << 63 | 13)->size, 99u);
	cr_assert_null(ag_op_find(vn, (uint64_t)1 << 63 | 14));
	cr_assert_eq(ag_op_new(vn, RF_SYNC, false)->seq, 4u);
}

Test(agent_journal, what_makes_no_sense_is_dropped)
{
	for (unsigned i = 0; i < 16; i++) {
		struct ag_vnode *vn = fresh();
		struct ag_op *op = store_new(vn, 1, 2);
		struct ag_slot *s = op->slot;

		ag_op_arm(op);
		cr_assert(ag_slot_sound(s, CAP));
		switch (i) {
		case 0:
			s->npages = AG_JOURNAL_PAGES + 1;
			break;
		case 1:
			s->npages = UINT32_MAX;
			break;
		case 2:
			s->nranges = RF_MAX_RANGES + 1;
			break;
		case 3:
			s->len = RF_MAX_DATA + 1;
			break;
		case 4:
			s->len = 5;
			break;
		case 5:
			s->page[1].page = CAP;
			break;
		case 6:
			s->page[1].page = UINT64_MAX;
			break;
		case 7:
			s->page[0].page = 2;
			break;
		case 8:
			s->page[0].word = rf_w_to(s->page[0].word, RF_PG_UPTODATE);
			break;
		case 9:
			s->range[1].off = 5;
			break;
		case 10:
			s->range[1].len = UINT64_MAX;
			break;
		case 11:
			s->range[1].off = UINT64_MAX - 1;
			break;
		case 12:
			s->type = RF_FETCH;
			break;
		case 13:
			s->type = RF_FALLOC;
			break;
		case 14:
			s->key = RF_KEYS;
			break;
		case 15:
			s->nranges = 0;
			break;
		}
		cr_assert(!ag_slot_sound(s, CAP), "%u", i);
		vn = crash(vn);
		cr_assert_eq(ag_ops_adopt(vn), 0, "%u", i);
		cr_assert_eq(rf_w_state(vn->word[1]), RF_PG_WRITEBACK);
		vn = crash(vn);
		ag_slots_forget(vn->ag);
		cr_assert(ag_slot_take(vn, false));
	}
}

static struct ag_op *remap_new(struct ag_vnode *vn)
{
	struct ag_op *op = ag_op_new(vn, RF_REMAP, false);

	op->program = true;
	op->request = (uint64_t)1 << 63 | 21;
	op->src = (struct ag_slot_src){{78, 2}, 4096, 0, RF_REMAP_COPY, 1, 0};
	op->change.range[0] = (rf_range){8192, 4096};
	op->change.n = 1;
	op->change.len = 5;
	memcpy(op->change.data, "a/src", 6);
	return op;
}

Test(agent_journal, a_copy_knows_its_source)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *op = remap_new(vn);

	op->hold = ag_hold_new(vn, NULL, 1);
	ag_op_arm(op);
	memset(op->change.data + 5, 'x', 3);
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 1);
	op = only_op(vn);
	cr_assert(op->type == RF_REMAP && op->src.fid.ino == 78 && op->src.fid.gen == 2 &&
		  op->src.off == 4096 && op->src.kind == RF_REMAP_COPY && op->src.nameless);
	cr_assert(op->change.range[0].off == 8192 && op->change.range[0].len == 4096);
	cr_assert_str_eq((char *)op->change.data, "a/src");
	cr_assert(op->hold && vn->gate == op->hold, "nothing overtakes it");
}

Test(agent_journal, copies_that_make_no_sense)
{
	for (unsigned i = 0; i < 9; i++) {
		struct ag_vnode *vn = fresh();
		struct ag_op *op = remap_new(vn);
		struct ag_slot *s = op->slot;

		ag_op_arm(op);
		cr_assert(ag_slot_sound(s, CAP));
		switch (i) {
		case 0:
			s->src.kind = 0;
			break;
		case 1:
			s->src.kind = RF_REMAP_COPY + 1;
			break;
		case 2:
			s->src.key = RF_KEYS;
			break;
		case 3:
			s->src.off = UINT64_MAX;
			break;
		case 4:
			s->len = RF_MAX_PATH + 1;
			break;
		case 5:
			s->data[2] = 0;
			break;
		case 6:
			s->program = 0;
			break;
		case 7:
			s->nranges = 2;
			break;
		case 8:
			s->range[0].off = UINT64_MAX;
			break;
		}
		cr_assert_not(ag_slot_sound(s, CAP), "%u", i);
	}
}

static struct ag_op *collapse_new(struct ag_vnode *vn)
{
	struct ag_op *op = ag_op_new(vn, RF_FALLOC, false);

	op->program = true;
	op->request = (uint64_t)1 << 63 | 22;
	op->mode = FALLOC_FL_COLLAPSE_RANGE;
	op->change.range[0] = (rf_range){4096, 4096};
	op->change.n = 1;
	return op;
}

/* What moves stays frozen until its pages are gone; all else is let go of at once. */
Test(agent_journal, frozen_over_a_crash)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *op = collapse_new(vn);

	ag_op_arm(op);
	atomic_store(&vn->st->frozen, 1);
	vn = crash(vn);
	ag_freeze_adopt(vn);
	cr_assert_eq(ag_ops_adopt(vn), 1);
	cr_assert(vn->gate && vn->frozen && atomic_load(&vn->st->frozen));
	cr_assert_not(ag_list_empty(&vn->tasks), "its pages are to go");
	ag_op_end(only_op(vn));
	cr_assert(!vn->gate && !vn->frozen && !atomic_load(&vn->st->frozen));

	vn = fresh();
	op = collapse_new(vn);
	op->mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	ag_op_arm(op);
	atomic_store(&vn->st->frozen, 1);
	vn = crash(vn);
	ag_freeze_adopt(vn);
	cr_assert_eq(ag_ops_adopt(vn), 1);
	cr_assert(vn->gate && !vn->frozen && !atomic_load(&vn->st->frozen));
	cr_assert(ag_list_empty(&vn->tasks));
}

Test(agent_journal, of_files_that_are_not_there)
{
	struct ag_vnode *vn = fresh();

	ag_op_arm(store_new(vn, 1, 1));
	ag_op_arm(store_new(vn, 2, 1));
	vn = crash(vn);
	vn->fid.gen++;
	cr_assert_eq(ag_ops_adopt(vn), 0, "another file under the number");
	ag_slots_forget(vn->ag);
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 0);
}

Test(agent_journal, one_server_cannot_take_all)
{
	struct ag_vnode *vn = fresh(), *other = agent_new(dup(vn->ag->journal_fd));
	uint32_t n = 0;

	other->ag = vn->ag;
	while (ag_op_new(vn, RF_STORE, false))
		n++;
	cr_assert_eq(n, AG_JOURNAL_SHARE);
	cr_assert(!ag_list_empty(&vn->starve), "it waits");
	cr_assert(ag_op_new(vn, RF_STORE, true), "but a batch can be split");
	cr_assert(ag_op_new(other, RF_STORE, false));
	ag_op_end(ag_first(&vn->ops, struct ag_op, link));
	cr_assert(ag_list_empty(&vn->starve) && !ag_list_empty(&vn->kick), "it is looked at");
}

/* ---- gates ---- */

Test(agent_hold, both_gates_or_none)
{
	struct ag_vnode *a = fresh(), *b = agent_new(dup(a->ag->journal_fd));
	struct ag_gate_wait w = {.vn = b};
	struct ag_hold *h, *g;

	b->ag = a->ag;
	b->id = 3;
	h = ag_hold_new(a, a, 1);
	cr_assert(h && h->vn[0] == a && !h->vn[1] && a->gate == h, "the same file twice is once");
	cr_assert_null(ag_hold_new(b, a, 1));
	cr_assert_null(b->gate, "nobody holds one and waits for the other");
	ag_list_add(&a->gate_waits, &w.link);
	cr_assert(ag_list_empty(&b->kick));
	ag_hold_end(h);
	cr_assert(!a->gate && !ag_list_empty(&b->kick), "who waits for it is looked at");
	h = ag_hold_new(a, b, 1);
	cr_assert(h && h->vn[0] == b && h->vn[1] == a, "the smaller id first");
	ag_hold_keep(h, a);
	cr_assert(!b->gate && a->gate == h);
	g = ag_hold_new(b, NULL, 1);
	cr_assert(g);
	ag_hold_end(h);
	ag_hold_end(g);
	w.born = 5;
	cr_assert(!ag_hold_new(a, NULL, 6) && !ag_hold_new(b, a, 6), "it came later");
	h = ag_hold_new(a, b, 5);
	cr_assert(h, "nobody is in its own way");
	ag_hold_end(h);
}

static int refuse(struct ag_hold *h, struct ag_task *t)
{
	return t->vn == h->vn[1] ? -ETXTBSY : 0;
}

Test(agent_hold, frozen_both_or_none)
{
	struct ag_vnode *a = fresh(), *b = agent_new(dup(a->ag->journal_fd));
	struct ag_hold *h;

	b->ag = a->ag;
	b->id = 7;
	b->st = aligned_alloc(4096, 2 * RF_VNODE_HDR);
	memset(b->st, 0, 2 * RF_VNODE_HDR);
	b->word = rf_vnode_words(b->st);
	h = ag_hold_new(b, a, 1);
	ag_hold_freeze(h, true, refuse);
	cr_assert(ag_list_empty(&b->tasks), "one invalidate_lock at a time");
	ag_tasks_run(a);
	cr_assert(a->frozen && !atomic_load(&a->st->invalidate) && h->under_way);
	ag_tasks_run(b);
	cr_assert(h->err == -ETXTBSY && !h->frozen && !h->under_way);
	cr_assert(!a->frozen && !b->frozen && !atomic_load(&a->st->frozen));
	ag_hold_freeze(h, true, NULL);
	ag_tasks_run(a);
	ag_tasks_run(b);
	cr_assert(h->frozen && !h->err && atomic_load(&a->st->frozen) &&
		  atomic_load(&b->st->frozen));
	ag_hold_thaw(h);
	cr_assert(!a->frozen && !b->frozen && a->gate == h && b->gate == h);
	/* Given up in the middle: the task that is on its way freezes nothing. */
	ag_hold_freeze(h, true, NULL);
	ag_hold_end(h);
	cr_assert(!a->gate && !b->gate);
	ag_tasks_run(a);
	ag_tasks_run(b);
	cr_assert(!a->frozen && !b->frozen && !a->task && !atomic_load(&a->st->invalidate));
}

/* ---- arguments of structural changes ---- */

static int falloc_check(struct ag_vnode *vn, uint64_t mode, uint64_t off, uint64_t len)
{
	const struct rf_req q = {.op = RF_OP_FALLOC, .arg = {mode, off, len}};

	return ag_structural_check(vn->ag, vn, &q);
}

Test(agent_structural, arguments)
{
	struct ag_vnode *vn = fresh();

	cr_assert_eq(falloc_check(vn, 0, 0, 1), 0);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE, 0, 1), 0);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 1), 0);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_COLLAPSE_RANGE, 1, 1), 0, "the server's to refuse");
	cr_assert_eq(falloc_check(vn, 0, 0, 0), -EINVAL);
	cr_assert_eq(falloc_check(vn, 0, (uint64_t)-1, 1), -EINVAL);
	cr_assert_eq(falloc_check(vn, 0, 1, (uint64_t)-1), -EINVAL);
	cr_assert_eq(falloc_check(vn, 0, AG_SIZE_MAX, 1), -EFBIG);
	cr_assert_eq(falloc_check(vn, 0, INT64_MAX, INT64_MAX), -EFBIG);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_PUNCH_HOLE, 0, 1), -EOPNOTSUPP);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_INSERT_RANGE | FALLOC_FL_KEEP_SIZE, 0, 1),
		     -EOPNOTSUPP);
	cr_assert_eq(falloc_check(vn, FALLOC_FL_INSERT_RANGE | FALLOC_FL_COLLAPSE_RANGE, 0, 1),
		     -EOPNOTSUPP);
	cr_assert_eq(falloc_check(vn, 4, 0, 1), -EOPNOTSUPP);
	cr_assert_eq(falloc_check(vn, (uint64_t)1 << 40, 0, 1), -EOPNOTSUPP);
}

/* ---- rejections ---- */

Test(agent_reject, classes)
{
	static const int record[] = {EACCES, EPERM,       EROFS,       ENOENT,
				     ESTALE, EKEYEXPIRED, EKEYREVOKED, EKEYREJECTED};
	static const int pages[] = {ENOSPC, EDQUOT, EFBIG, EIO};
	static const int not [] = {EINVAL, ENOMEM, EAGAIN, EINTR, ETIMEDOUT, EHOSTDOWN, EPROTO};

	for (unsigned i = 0; i < sizeof(record) / sizeof(*record); i++)
		cr_assert_eq(ag_rejection(record[i]), AG_REJECT_RECORD);
	for (unsigned i = 0; i < sizeof(pages) / sizeof(*pages); i++)
		cr_assert_eq(ag_rejection(pages[i]), AG_REJECT_PAGES);
	for (unsigned i = 0; i < sizeof(not ) / sizeof(*not ); i++)
		cr_assert_eq(ag_rejection(not [i]), AG_REJECT_NOT);
}

Test(agent_reject, pages_go_once)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *op = store_new(vn, 1, 3);
	const struct ag_reject *r;
	uint32_t seq;

	op->page[1].loud = 1;
	op->walk = 3;
	ag_op_arm(op);
	atomic_store(&vn->word[3], rf_w_clean(vn->word[3], RF_PG_EMPTY, 1)); /* cut off */
	seq = atomic_load(&vn->st->errseq);
	ag_reject(op, EACCES, "", true);
	cr_assert_eq(vn->word[1], ag_w_reject(op->page[0].word));
	cr_assert(rf_w_gen(vn->word[1]) == 8 && rf_w_twin(vn->word[1]) == 1 &&
		  !rf_w_cached(vn->word[1]));
	cr_assert_eq(vn->word[2], ag_w_reject(op->page[1].word), "the loud one, too");
	cr_assert_eq(rf_w_state(vn->word[3]), RF_PG_EMPTY);
	cr_assert_eq(atomic_load(&vn->st->wb_err), EACCES);
	cr_assert_neq(atomic_load(&vn->st->errseq), seq);
	r = ag_rejected(vn->ag, 0);
	cr_assert(r && r->err == EACCES && r->pages == 2 && r->off == 4106 && r->len == 8194);
	cr_assert_str_eq(r->path, "file");
	cr_assert_null(ag_rejected(vn->ag, 1));

	/* A crash now: nothing is counted or listed twice. */
	seq = atomic_load(&vn->st->errseq);
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 0);
	cr_assert_eq(atomic_load(&vn->st->errseq), seq);
	cr_assert_eq(rf_w_state(vn->word[2]), RF_PG_REJECTED);
	cr_assert_eq(ag_rejected(vn->ag, 0)->pages, 2u);
	cr_assert_null(ag_rejected(vn->ag, 1));
}

Test(agent_reject, a_crash_in_the_middle_is_finished)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *op = store_new(vn, 1, 3);
	uint32_t seq = atomic_load(&vn->st->errseq);

	ag_op_arm(op);
	op->slot->errseq = seq | RF_ERRSEQ_SEEN;
	op->slot->rejected = EDQUOT;
	atomic_store(&vn->word[1], ag_w_reject(vn->word[1]));
	vn = crash(vn);
	cr_assert_eq(ag_ops_adopt(vn), 0);
	for (unsigned pg = 1; pg < 4; pg++)
		cr_assert_eq(rf_w_state(vn->word[pg]), RF_PG_REJECTED);
	cr_assert_neq(atomic_load(&vn->st->errseq), seq);
	cr_assert_eq(ag_rejected(vn->ag, 0)->pages, 3u);
	cr_assert(!ag_list_empty(&vn->tasks), "they are excised");
}

Test(agent_reject, the_rest_of_the_record_goes_unasked)
{
	struct ag_vnode *vn = fresh();
	struct ag_op *refused = store_new(vn, 1, 1), *sent = store_new(vn, 2, 1);
	struct ag_op *waits = store_new(vn, 3, 1), *key = store_new(vn, 4, 1);
	struct ag_op *walk = store_new(vn, 5, 1);
	struct ag_req *req = ag_alloc(sizeof(*req)), *other = ag_alloc(sizeof(*other));

	refused->walk = sent->walk = waits->walk = key->walk = 6;
	walk->walk = 7;
	key->key = 1;
	ag_op_arm(sent);
	refused->state = sent->state = AG_OP_SENT;
	req->q.op = other->q.op = RF_OP_FLUSH;
	req->pass.walk = 6;
	other->pass.walk = 7;
	ag_list_add(&vn->reqs, &req->link);
	ag_list_add(&vn->reqs, &other->link);
	ag_reject(refused, EKEYREVOKED, "", true);
	ag_reject_record(refused, EKEYREVOKED);
	cr_assert_eq(rf_w_state(vn->word[1]), RF_PG_REJECTED);
	cr_assert_eq(rf_w_state(vn->word[2]), RF_PG_WRITEBACK, "the server says it itself");
	cr_assert_eq(rf_w_state(vn->word[3]), RF_PG_REJECTED);
	cr_assert_eq(rf_w_state(vn->word[4]), RF_PG_WRITEBACK, "another key");
	cr_assert_eq(rf_w_state(vn->word[5]), RF_PG_WRITEBACK, "another walk");
	cr_assert(req->pass.refused == AG_KEY_BIT(0) && req->pass.err == EKEYREVOKED);
	cr_assert_eq(other->pass.refused, 0u);
	cr_assert_eq(ag_rejected(vn->ag, 0)->pages, 2u, "one entry for the record");
	cr_assert_null(ag_rejected(vn->ag, 1));
}

/* ---- the guard ---- */

static void touch(void *p)
{
	*(volatile char *)p = 1;
}

Test(agent_guard, a_page_that_is_not_there)
{
	int fd = memfd_create("unit", MFD_CLOEXEC);
	char *p;

	cr_assert_eq(ftruncate(fd, 4096), 0);
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(p, MAP_FAILED);
	cr_assert_eq(ag_guard_install(), 0);
	cr_assert_eq(ag_guard(touch, p), 0);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(ag_guard(touch, p + 4096), -EFAULT, "time %d", i);
	cr_assert_eq(ag_guard(touch, p), 0);
}

/* ---- the status table ---- */

static struct rf_host *host_new(void)
{
	struct rf_host *h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	cr_assert_neq(h, MAP_FAILED);
	return h;
}

/* As the library looks it up. */
static struct rf_stat_entry *lookup(struct rf_host *h, uint64_t dev, uint64_t ino)
{
	uint32_t at = rf_stat_hash(dev, ino);

	for (;; at = (at + 1) & (RF_STAT_BUCKETS - 1)) {
		struct rf_stat_entry *e = &h->stat[at];

		if (!e->vnode)
			return NULL;
		if (e->vnode != RF_STAT_TOMB && e->dev == dev && e->ino == ino)
			return e;
	}
}

Test(agent_stat, written_found_dropped)
{
	struct rf_host *h = host_new();
	struct ag_stat st = {123, 8, -5, 77};
	uint32_t i = ag_stat_find(h, 1, 2, 10);

	cr_assert_eq(ag_stat_find(h, 1, 2, 10), i, "the same entry again");
	cr_assert_eq(ag_stat_look(h, 1, 2), 10u);
	cr_assert_eq(ag_stat_look(h, 1, 3), 0u);
	ag_stat_write(h, i, 10, &st);
	struct rf_stat_entry *e = lookup(h, 1, 2);
	cr_assert(e && e->vnode == 10 && e->size == 123 && e->mtime == -5 && !(e->seq & 1));
	ag_stat_drop(h, i, 11);
	cr_assert(lookup(h, 1, 2), "only its vnode drops it");
	ag_stat_drop(h, i, 10);
	cr_assert_null(lookup(h, 1, 2));
	cr_assert_eq(h->stat[i].vnode, 0u, "a tomb that nothing follows is no tomb");
}

Test(agent_stat, collisions_and_tombs)
{
	struct rf_host *h = host_new();
	uint64_t ino[4], n = 0;
	uint32_t i[4], at = rf_stat_hash(1, 1);

	for (uint64_t k = 1; n < 4; k++)
		if (rf_stat_hash(1, k) == at)
			ino[n++] = k;
	for (unsigned k = 0; k < 4; k++)
		i[k] = ag_stat_find(h, 1, ino[k], k + 1);
	ag_stat_drop(h, i[1], 2);
	cr_assert(lookup(h, 1, ino[2]), "a tomb does not end the search");
	cr_assert_eq(ag_stat_look(h, 1, ino[2]), 3u);
	cr_assert_eq(ag_stat_look(h, 1, ino[1]), 0u);
	cr_assert_eq(ag_stat_find(h, 1, ino[3], 4), i[3],
		     "an entry behind a tomb is not made twice");
	cr_assert_eq(ag_stat_find(h, 1, ino[1], 9), i[1], "a tomb is used again");
	cr_assert_eq(ag_stat_find(h, 1, ino[1], 12), i[1], "another file took the name");
	cr_assert_eq(lookup(h, 1, ino[1])->vnode, 12u);
	for (int k = 3; k >= 0; k--)
		ag_stat_drop(h, i[k], k == 1 ? 12 : (uint32_t)k + 1);
	for (unsigned k = 0; k < 4; k++)
		cr_assert_eq(h->stat[i[k]].vnode, 0u);
}

/* ---- the supervisor's table ---- */

Test(agent_keep, put_replace_delete)
{
	struct ag_keeptab *tab = malloc(sizeof(*tab));
	int sp[2], fd[2];
	struct ag_keep *k;
	struct stat a, b;

	ag_keeptab_init(tab);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sp), 0);
	fd[0] = open("/dev/null", O_RDONLY);
	fd[1] = open("/dev/zero", O_RDONLY);
	cr_assert_eq(ag_keep_put(sp[0], AG_KEEP_VNODE, 7, fd, 2, "meta", 4), 0);
	cr_assert_eq(ag_keep_put(sp[0], AG_KEEP_USE, 7, NULL, 0, "x", 1), 0);
	fstat(fd[1], &a);
	close(fd[0]);
	close(fd[1]);
	cr_assert_eq(ag_keep_receive(sp[1], tab), 1);
	cr_assert_eq(ag_keep_receive(sp[1], tab), 1);
	cr_assert_eq(ag_keep_receive(sp[1], tab), -EAGAIN);
	k = ag_keep_find(tab, AG_KEEP_VNODE, 7);
	cr_assert(k && k->nfd == 2 && k->len == 4 && !memcmp(k->meta, "meta", 4));
	cr_assert(fstat(k->fd[1], &b) == 0 && a.st_rdev == b.st_rdev, "the descriptors came along");
	cr_assert_eq(ag_keep_find(tab, AG_KEEP_USE, 7)->nfd, 0u, "kinds do not mix");

	/* New words, old descriptors. */
	cr_assert_eq(ag_keep_put(sp[0], AG_KEEP_VNODE, 7, NULL, 0, "other", 5), 0);
	cr_assert_eq(ag_keep_receive(sp[1], tab), 1);
	cr_assert(k == ag_keep_find(tab, AG_KEEP_VNODE, 7) && k->len == 5 && k->nfd == 2);

	cr_assert_eq(ag_keep_del(sp[0], AG_KEEP_VNODE, 7), 0);
	cr_assert_eq(ag_keep_del(sp[0], AG_KEEP_VNODE, 8), 0, "what is not there");
	int was = k->fd[0];
	cr_assert_eq(ag_keep_receive(sp[1], tab), 1);
	cr_assert_eq(ag_keep_receive(sp[1], tab), 1);
	cr_assert_null(ag_keep_find(tab, AG_KEEP_VNODE, 7));
	cr_assert_eq(fcntl(was, F_GETFD), -1, "closed");
	close(sp[0]);
	cr_assert_eq(ag_keep_receive(sp[1], tab), 0, "end of file");
}

Test(agent_keep, nonsense_is_refused)
{
	struct ag_keeptab *tab = malloc(sizeof(*tab));
	int sp[2];

	ag_keeptab_init(tab);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sp), 0);
	cr_assert_eq(send(sp[0], "short", 5, 0), 5);
	cr_assert_eq(ag_keep_receive(sp[1], tab), -EPROTO);
	cr_assert_eq(ag_keep_put(sp[0], AG_KEEP_VNODE, 1, NULL, 0, NULL, AG_KEEP_META + 1),
		     -EMSGSIZE);
	cr_assert_eq(ag_keep_put(-1, AG_KEEP_VNODE, 1, NULL, 0, NULL, 0), -ENOTCONN);
}

/* ---- the supervisor ---- */

static int *lives;

static int dies_twice(struct ag_start *s)
{
	int fd;

	++*lives;
	if (s->life == 1) {
		fd = open("/dev/null", O_RDONLY);
		ag_keep_put(s->keep, AG_KEEP_HOST, 0, &fd, 1, "kept", 4);
		raise(SIGKILL);
	}
	if (s->life == 2) {
		struct ag_keep *k = ag_keep_find(s->tab, AG_KEEP_HOST, 0);
		if (k && k->nfd == 1 && !memcmp(k->meta, "kept", 4) &&
		    fcntl(k->fd[0], F_GETFD) >= 0)
			*lives += 100;
		return 1;
	}
	return 0;
}

static int always_dies(struct ag_start *s)
{
	(void)s;
	++*lives;
	return 1;
}

static void supervised(void)
{
	lives = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!freopen("/dev/null", "w", stderr))
		abort();
}

Test(agent_super, what_was_kept_is_handed_on, .init = supervised)
{
	static struct ag_keeptab tab;
	struct ag_conf conf = {0};

	ag_keeptab_init(&tab);
	cr_assert_eq(ag_supervise(&conf, &tab, dies_twice), 0);
	cr_assert_eq(*lives, 103);
}

Test(agent_super, gives_up_after_five_crashes, .init = supervised)
{
	static struct ag_keeptab tab;
	struct ag_conf conf = {0};

	ag_keeptab_init(&tab);
	cr_assert_neq(ag_supervise(&conf, &tab, always_dies), 0);
	cr_assert_eq(*lives, 5);
}

/* ---- assertions ---- */

#ifdef RF_DEBUG
/* Two tasks of a file do not hold its invalidate_lock, and nothing is filled while one does. */
Test(agent_debug, only_the_running_task_locks, .signal = SIGABRT)
{
	struct ag_vnode *vn = fresh();

	ag_task_lock(ag_task_new(vn, NULL), NULL);
}

static void locked(struct ag_task *t)
{
	ag_fetch_fill(t->vn, 0, test_map, RF_PAGE_SIZE, RF_PAGE_SIZE);
}

Test(agent_debug, nothing_is_filled_in_the_exclusive_side, .signal = SIGABRT)
{
	struct ag_vnode *vn = fresh();

	vn->task = ag_task_new(vn, NULL);
	ag_task_lock(vn->task, locked);
}

Test(agent_debug, what_is_frozen_is_gated, .signal = SIGABRT)
{
	struct ag_vnode *vn = fresh();

	vn->frozen = true;
	ag_vn_look(vn);
}
#endif

/* ---- keys ---- */

/* A context and one file, as far as the table of keys looks at them. */
static struct ag *some_ag(struct ag_vnode *vn, rf_word *word, uint32_t words)
{
	static struct ag *made[4]; /* an agent never frees its own: no leaks */
	static unsigned n;
	struct ag *ag = calloc(1, sizeof(*ag));

	made[n] = ag;
	ag->keep = -1;
	ag->vnode = calloc(2, sizeof(struct ag_vnode *));
	ag->vnode[1] = vn;
	ag->vnode_high = 1;
	ag_list_init(&ag->servers);
	ag_list_init(&ag->opens);
	vn->ag = ag;
	vn->word = word;
	vn->cap = words;
	ag_list_init(&vn->uses);
	ag_list_init(&vn->reqs);
	ag_list_init(&vn->ops);
	return made[n++];
}

static int get(struct ag *ag, const char *name, const char *secret)
{
	return ag_key_get(ag, name, strlen(name), secret, strlen(secret));
}

Test(agent_keys, one_number_a_key)
{
	struct ag_vnode vn = {0};
	struct ag *ag = some_ag(&vn, NULL, 0);
	char name[300];
	int a = get(ag, "alice", "s1"), b = get(ag, "bob", "s1"), a2 = get(ag, "alice", "s2");

	cr_assert(a > 0 && b > 0 && a2 > 0 && a != b && a != a2 && b != a2);
	cr_assert_eq(get(ag, "alice", "s1"), a);
	cr_assert_eq(get(ag, "alice", "s2"), a2);
	cr_assert_str_eq(ag_key_name(ag, (uint32_t)b), "bob");
	cr_assert(strstr(ag_key_name(ag, 0), "uid "));
	cr_assert_str_eq(ag_key_name(ag, RF_KEYS), "?");
	cr_assert_eq(ag_key_check(ag, (uint32_t)a2), (uint32_t)a2);
	cr_assert_eq(ag_key_check(ag, 40), 0, "there is no such key");
	cr_assert_eq(ag_key_check(ag, 1u << 31), 0);

	cr_assert_eq(get(ag, "", "s"), -EINVAL);
	cr_assert_eq(get(ag, "x", ""), -EINVAL);
	cr_assert_eq(get(ag, "a b", "s"), -EINVAL, "it would not be one word in the status");
	cr_assert_eq(get(ag, "a\nb", "s"), -EINVAL);
	memset(name, 'n', sizeof(name));
	name[sizeof(name) - 1] = 0;
	cr_assert_eq(get(ag, name, "s"), -EINVAL);
	cr_assert_eq(get(ag, "x", name), -EINVAL);
}

Test(agent_keys, numbers_in_use_are_not_reused)
{
	rf_word word[4] = {0};
	struct ag_vnode vn = {0};
	struct ag *ag = some_ag(&vn, word, 4);
	struct ag_server srv = {.shown = UINT64_MAX};
	struct ag_use use = {0};
	struct ag_req req = {0};
	struct ag_op op = {0};
	bool again[RF_KEYS] = {false};
	char name[16];
	int held[5], k;

	ag_list_add(&ag->servers, &srv.link);
	for (uint32_t i = 1; i < RF_KEYS; i++) {
		snprintf(name, sizeof(name), "key%u", i);
		cr_assert_eq(get(ag, name, "s"), (int)i);
	}
	/* An open file, a dirty page, a change under way, a request, a write() past EOF. */
	use.keys = AG_KEY_BIT(held[0] = 3);
	word[2] = (uint64_t)(held[1] = 7) << RF_W_KEY_SHIFT | dirty_word(1, 9);
	op.key = (uint32_t)(held[2] = 20);
	req.q.key = (uint32_t)(held[3] = 41);
	vn.extend_key = (uint32_t)(held[4] = 63);
	vn.size = 1;
	vn.key = 5;
	ag_list_add(&vn.uses, &use.by_vnode);
	ag_list_add(&vn.ops, &op.link);
	ag_list_add(&vn.reqs, &req.link);

	for (uint32_t i = 0; i < RF_KEYS - 1 - 5; i++) {
		snprintf(name, sizeof(name), "more%u", i);
		k = get(ag, name, "s");
		cr_assert(k > 0 && k < (int)RF_KEYS && !again[k], "number %d for the %u-th", k, i);
		again[k] = true;
		cr_assert_not(srv.shown & AG_KEY_BIT(k), "the server was told of the key before");
	}
	for (int i = 0; i < 5; i++) {
		cr_assert_not(again[held[i]], "%d was in use", held[i]);
		snprintf(name, sizeof(name), "key%d", held[i]);
		cr_assert_str_eq(ag_key_name(ag, (uint32_t)held[i]), name);
		cr_assert(srv.shown & AG_KEY_BIT(held[i]));
	}
	cr_assert_eq(vn.key, 0, "5 is somebody else's now");

	/* Full, and all are in use. */
	use.keys = UINT64_MAX;
	cr_assert_eq(get(ag, "one-more", "s"), -ENFILE);
	cr_assert_eq(get(ag, "key3", "s"), 3, "those that are there are found all the same");
	use.keys = ~AG_KEY_BIT(3);
	cr_assert_eq(get(ag, "one-more", "s"), 3);
	use.keys = UINT64_MAX;
	cr_assert_eq(get(ag, "key3", "s"), -ENFILE);
}

Test(agent_keys, outlive_a_crash)
{
	struct ag_vnode vn = {0};
	struct ag *ag = some_ag(&vn, NULL, 0), *next;
	static struct ag_keeptab tab;
	struct ag_keep *k;
	int sp[2];

	ag_keeptab_init(&tab);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sp), 0);
	ag->keep = sp[0];
	cr_assert_eq(get(ag, "alice", "s1"), 1);
	cr_assert_eq(get(ag, "bob", "s2"), 2);
	while (ag_keep_receive(sp[1], &tab) == 1)
		;
	next = some_ag(&vn, NULL, 0);
	for (uint64_t id = 1; id <= 2; id++) {
		k = ag_keep_find(&tab, AG_KEEP_KEY, id);
		cr_assert(k);
		cr_assert_eq(ag_key_adopt(next, k), 0);
		cr_assert_eq(ag_key_adopt(next, k), -EPROTO, "twice");
	}
	cr_assert_eq(get(next, "bob", "s2"), 2);
	cr_assert_eq(get(next, "alice", "s1"), 1);
	cr_assert_eq(get(next, "alice", "other"), 3);
	k->len--;
	next = some_ag(&vn, NULL, 0);
	cr_assert_eq(ag_key_adopt(next, k), -EPROTO, "cut short");
}
