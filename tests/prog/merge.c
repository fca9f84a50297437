/* SPDX-License-Identifier: MIT */
/*
 * merge - hosts that store to the same page or the same file at the same time.
 *
 *	merge counters FILE BOARD HOST HOSTS ROUNDS SEED
 *	merge counting FILE BOARD HOSTS
 *	merge counted FILE BOARD HOSTS
 *	merge append FILE HOST THREADS LINES
 *	merge appended FILE HOSTS THREADS LINES
 *	merge ring produce|consume FILE BOARD RECORDS SEED
 *	merge same store|write FILE BOARD HOST ROUNDS SEED
 *	merge watch FILE BOARD
 *
 * counters: the words of FILE's one page are counters, scattered over HOSTS owners.  Each host counts
 * up some of its own and flushes.  Once its flush has returned, nobody may see less than that; and
 * nobody ever sees a counter go back, and least of all `counting`, which only looks.  In the end all
 * are exact; `counted` looks at that later.
 *
 * append: THREADS threads append LINES lines of varying length each.  appended: all of them are there,
 * whole, once, and each thread's in order.
 *
 * ring: a ring buffer in a mapped file.  The producer stores a record and flushes it, then moves the head
 * and flushes that; the consumer takes the record and moves the tail.
 *
 * same: two hosts store to the same words (store) or to overlapping ranges (write, which carries equal
 * bytes as well) and flush at the same instant.  After that both have the same, and it is one host's.
 * watch: a third host meanwhile sees no word that nobody stored.
 */
#include <pthread.h>
#include <sched.h>

#include "team.h"

enum {
	WORDS = PAGE / 8,
	MAX_HOSTS = 4,
	STEPS = 8,            /* counters that are counted up between two flushes, at most */
	RING = 3 * PAGE + 40, /* bytes of records, not a multiple of a page or of their length */
	RECORD = 700,         /* bytes of a record, at most */
	RANGE = 3000,         /* where hosts write to the same bytes */
};

/* ---- counters ---- */

struct count_board {
	struct team team;
	_Atomic unsigned done;
	_Atomic uint64_t flushed[WORDS]; /* what a flush that returned has carried */
};

/* Every word has an owner, neighbours mostly different ones. */
static unsigned owner_of(unsigned word, unsigned hosts)
{
	return (unsigned)(sequence(7, word, 0) % hosts);
}

/* Look at all counters: none is less than it was seen or flushed before. */
static void look(struct count_board *b, const volatile uint64_t *m, uint64_t *seen, unsigned hosts,
		 const char *who)
{
	for (unsigned w = 0; w < WORDS; w++) {
		uint64_t least = atomic_load(&b->flushed[w]), v = m[w];
		if (v < least || v < seen[w])
			team_fail(&b->team,
				  "%s: counter %u of host %u is %" PRIx64 ", was seen as %" PRIx64
				  ", was flushed as %" PRIx64,
				  who, w, owner_of(w, hosts), v, seen[w], least);
		seen[w] = v;
	}
}

static int counters(char **a)
{
	struct count_board *b = board_map(a[1], sizeof(*b));
	unsigned host = (unsigned)atoi(a[2]), hosts = (unsigned)atoi(a[3]);
	unsigned rounds = (unsigned)atoi(a[4]);
	uint64_t state = sequence(strtoull(a[5], NULL, 0), host, 0);
	int fd = open_file(a[0], O_RDWR);
	volatile uint64_t *m = map_file(fd, PAGE, PROT_READ | PROT_WRITE);
	uint64_t seen[WORDS] = {0}, own[WORDS] = {0};
	char who[64];

	team_meet(&b->team, hosts);
	for (unsigned r = 0; r < rounds; r++) {
		for (unsigned n = 1 + pick(&state, STEPS); n;) {
			unsigned w = pick(&state, WORDS);
			if (owner_of(w, hosts) != host)
				continue;
			/* by steps that change one byte, or several that need not be neighbours */
			own[w] += pick(&state, 4) ? 1 : 1 + random64(&state) % 0xffffff;
			m[w] = own[w];
			n--;
		}
		if (pick(&state, 2) ? fsync(fd) : msync((void *)(uintptr_t)m, PAGE, MS_SYNC))
			team_fail(&b->team, "host %u round %u: flush: %m", host, r);
		for (unsigned w = 0; w < WORDS; w++)
			if (owner_of(w, hosts) == host)
				atomic_store(&b->flushed[w], own[w]);
		snprintf(who, sizeof(who), "host %u round %u", host, r);
		look(b, m, seen, hosts, who);
	}
	team_meet(&b->team, hosts);
	for (unsigned w = 0; w < WORDS; w++)
		if (m[w] != atomic_load(&b->flushed[w]))
			team_fail(&b->team, "host %u: counter %u is %" PRIx64 ", not %" PRIx64,
				  host, w, m[w], atomic_load(&b->flushed[w]));
	team_meet(&b->team, hosts); /* nobody's last close is what made it so */
	atomic_fetch_add(&b->done, 1);
	return 0;
}

static int counting(char **a)
{
	struct count_board *b = board_map(a[1], sizeof(*b));
	unsigned hosts = (unsigned)atoi(a[2]), looks = 0;
	const volatile uint64_t *m = map_file(open_file(a[0], O_RDONLY), PAGE, PROT_READ);
	uint64_t seen[WORDS] = {0};
	double since = now();

	for (; atomic_load(&b->done) < hosts; looks++) {
		look(b, m, seen, hosts, "who only looks");
		team_wait(&b->team, since, "the counters");
	}
	printf("looked %u times\n", looks);
	return looks == 0;
}

static int counted(char **a)
{
	struct count_board *b = board_map(a[1], sizeof(*b));
	unsigned hosts = (unsigned)atoi(a[2]), counts = 0, wrong = 0;
	int fd = open_file(a[0], O_RDONLY);
	const volatile uint64_t *m = map_file(fd, PAGE, PROT_READ);
	uint64_t by_read[WORDS];

	if (pread(fd, by_read, PAGE, 0) != PAGE)
		err(1, "pread");
	for (unsigned w = 0; w < WORDS; w++) {
		uint64_t want = atomic_load(&b->flushed[w]);
		counts += want != 0;
		if (m[w] != want || by_read[w] != want) {
			warnx("counter %u of host %u: mapped %" PRIx64 ", read %" PRIx64
			      ", not %" PRIx64,
			      w, owner_of(w, hosts), m[w], by_read[w], want);
			wrong++;
		}
	}
	printf("%u counters, %u wrong\n", counts, wrong);
	return wrong != 0 || counts < hosts;
}

/* ---- appends ---- */

static const char *log_path;
static unsigned log_lines;

static void *appender(void *arg)
{
	unsigned who = (unsigned)(uintptr_t)arg;
	int fd = open_file(log_path, O_WRONLY | O_APPEND);
	char *line = malloc(LINE_MAX_LEN);

	for (unsigned n = 1; line && n <= log_lines; n++) {
		size_t len = line_make(line, who, n);
		ssize_t r = write(fd, line, len);
		if (r != (ssize_t)len)
			err(1, "writer %u line %u: write of %zu gave %zd", who, n, len, r);
	}
	free(line);
	if (close(fd))
		err(1, "writer %u: close", who);
	return NULL;
}

static int append_lines(char **a)
{
	unsigned host = (unsigned)atoi(a[1]), threads = (unsigned)atoi(a[2]);
	pthread_t id[16];

	log_path = a[0];
	log_lines = (unsigned)atoi(a[3]);
	if (threads > 16 || (host + 1) * 16 > LINE_WHO)
		errx(2, "too many");
	for (unsigned i = 0; i < threads; i++)
		if (pthread_create(&id[i], NULL, appender, (void *)(uintptr_t)(host * 16 + i)))
			errx(1, "pthread_create");
	for (unsigned i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	return 0;
}

static bool in_order(unsigned who, unsigned n, void *arg)
{
	unsigned *last = arg;

	if (n != last[who] + 1) {
		warnx("writer %u: line %u comes after line %u", who, n, last[who]);
		return false;
	}
	last[who] = n;
	return true;
}

static int appended(char **a)
{
	unsigned hosts = (unsigned)atoi(a[1]), threads = (unsigned)atoi(a[2]);
	unsigned lines = (unsigned)atoi(a[3]), last[LINE_WHO] = {0};

	if (!lines_read(open_file(a[0], O_RDONLY), in_order, last))
		return 1;
	for (unsigned h = 0; h < hosts; h++)
		for (unsigned i = 0; i < threads; i++)
			if (last[h * 16 + i] != lines)
				errx(1, "writer %u: %u of %u lines are there", h * 16 + i,
				     last[h * 16 + i], lines);
	printf("%u lines\n", hosts * threads * lines);
	return 0;
}

/* ---- ring ---- */

/* In one page, and bytes of the ring behind them: a host's stores are next to the other's. */
struct ring {
	_Atomic uint64_t head, tail; /* bytes that ever went in and out */
	unsigned char data[RING];
};

static uint32_t record_make(unsigned char *to, unsigned n, uint64_t seed)
{
	uint64_t s = sequence(seed, 1, n);
	uint32_t len = 12 + pick(&s, RECORD - 12), key = (uint32_t)random64(&s);

	memcpy(to, &len, 4);
	memcpy(to + 4, &n, 4);
	memcpy(to + 8, &key, 4);
	for (uint32_t i = 12; i < len; i++)
		to[i] = (unsigned char)((key >> i % 4 * 8) + i);
	return len;
}

/* The page or pages of the ring that hold [at, at + len). */
static void flush_ring(struct team *t, struct ring *r, size_t at, size_t len)
{
	uintptr_t from = (uintptr_t)(r->data + at) & ~(uintptr_t)(PAGE - 1);

	if (msync((void *)from, (uintptr_t)(r->data + at) + len - from, MS_SYNC))
		team_fail(t, "ring: msync: %m");
}

static void move_head(struct team *t, struct ring *r, uint64_t head)
{
	atomic_store(&r->head, head);
	if (msync(r, PAGE, MS_SYNC))
		team_fail(t, "head: msync: %m");
}

static void produce(struct team *t, struct ring *r, unsigned records, uint64_t seed)
{
	unsigned char rec[RECORD];
	uint64_t state = sequence(seed, 2, 0), head = 0;

	for (unsigned n = 1; n <= records; n++) {
		uint32_t len = record_make(rec, n, seed);
		double since = now();
		if (head + len - atomic_load(&r->tail) > RING)
			move_head(t, r, head);
		while (head + len - atomic_load(&r->tail) > RING)
			team_wait(t, since, "room in the ring");
		for (uint32_t i = 0; i < len; i++) {
			volatile unsigned char *to = &r->data[(head + i) % RING];
			*to = rec[i];
		}
		size_t at = head % RING, first = at + len > RING ? RING - at : len;
		flush_ring(t, r, at, first);
		if (first < len)
			flush_ring(t, r, 0, len - first);
		head += len;
		if (n < records && pick(&state, 4) == 0)
			continue; /* several become visible at once */
		move_head(t, r, head);
	}
}

static void consume(struct team *t, struct ring *r, unsigned records, uint64_t seed)
{
	unsigned char rec[RECORD], want[RECORD];
	uint64_t tail = 0;

	for (unsigned n = 1; n <= records; n++) {
		uint32_t len = record_make(want, n, seed);
		double since = now();
		while (atomic_load(&r->head) == tail)
			team_wait(t, since, "a record");
		uint64_t head = atomic_load(&r->head);
		if (head < tail + len)
			team_fail(t, "record %u: head %" PRIu64 " in the middle, tail %" PRIu64, n,
				  head, tail);
		for (uint32_t i = 0; i < len; i++) {
			const volatile unsigned char *from = &r->data[(tail + i) % RING];
			rec[i] = *from;
		}
		for (uint32_t i = 0; i < len; i++)
			if (rec[i] != want[i])
				team_fail(
				    t, "record %u at %" PRIu64 ": byte %u of %u is %02x, not %02x",
				    n, tail, i, len, rec[i], want[i]);
		tail += len;
		atomic_store(&r->tail, tail);
		if (msync(r, PAGE, MS_SYNC))
			team_fail(t, "tail: msync: %m");
	}
}

static int ring(char **a)
{
	struct team *t = board_map(a[2], sizeof(*t));
	struct ring *r = map_file(open_file(a[1], O_RDWR), sizeof(*r), PROT_READ | PROT_WRITE);
	unsigned records = (unsigned)atoi(a[3]);
	uint64_t seed = strtoull(a[4], NULL, 0);

	team_meet(t, 2);
	if (strcmp(a[0], "produce") == 0)
		produce(t, r, records, seed);
	else
		consume(t, r, records, seed);
	team_meet(t, 2);
	if (atomic_load(&r->head) != atomic_load(&r->tail))
		team_fail(t, "%s: not empty at the end", a[0]);
	printf("%s: %u records\n", a[0], records);
	return 0;
}

/* ---- the same bytes ---- */

struct same_board {
	struct team team;
	_Atomic unsigned round; /* of which the two are storing, or have stored last */
	_Atomic bool done;
	unsigned from[MAX_HOSTS], to[MAX_HOSTS]; /* this round's range of each */
	unsigned char got[MAX_HOSTS][RANGE];
};

/*
 * A host's byte: never the other's, and never what was there before the round, but for some that are
 * written with write().
 */
static unsigned char same_byte(unsigned round, unsigned host, unsigned i, bool words,
			       const unsigned char *was)
{
	if (!words && (i + round + host * 3) % 7 == 0)
		return was[i];
	return (unsigned char)(1 + (round * 2 + host) % 254);
}

static void same_store(volatile unsigned char *m, const unsigned *range, unsigned char v)
{
	volatile uint64_t *w = (volatile uint64_t *)(volatile void *)m;

	for (unsigned i = range[0] / 8; i < range[1] / 8; i++)
		w[i] = v * 0x0101010101010101u;
}

/* What byte i may be: one of the hosts' that stored to it, or what it was; words are one host's. */
static void same_judge(struct same_board *b, unsigned round, bool words, const unsigned char *was)
{
	for (unsigned i = 0; i < RANGE; i++) {
		bool in[2], fits = false;
		for (unsigned h = 0; h < 2; h++) {
			in[h] = i >= b->from[h] && i < b->to[h];
			fits |= in[h] && b->got[0][i] == same_byte(round, h, i, words, was);
		}
		if (words && b->got[0][i] != b->got[0][i / 8 * 8])
			fits = false;
		if (b->got[0][i] != b->got[1][i])
			team_fail(&b->team,
				  "round %u: byte %u is %02x on one host, %02x on the other", round,
				  i, b->got[0][i], b->got[1][i]);
		if (!in[0] && !in[1])
			fits = b->got[0][i] == was[i];
		if (!fits)
			team_fail(&b->team,
				  "round %u: byte %u is %02x, which no host stored: was %02x, "
				  "host 0 %02x at %u-%u, host 1 %02x at %u-%u",
				  round, i, b->got[0][i], was[i],
				  same_byte(round, 0, i, words, was), b->from[0], b->to[0],
				  same_byte(round, 1, i, words, was), b->from[1], b->to[1]);
	}
}

/* Whole words, the same for both; or ranges that overlap, of bytes of which some are equal. */
static void same_ranges(struct same_board *b, uint64_t *state, bool words)
{
	unsigned mid = 8 * (1 + pick(state, RANGE / 8 - 2));

	for (unsigned h = 0; h < 2; h++) {
		b->from[h] = mid - pick(state, mid);
		b->to[h] = mid + 1 + pick(state, RANGE - mid);
		if (words) {
			b->from[h] = h ? b->from[0] : b->from[h] / 8 * 8;
			b->to[h] = h ? b->to[0] : (b->to[h] + 7) / 8 * 8;
		}
	}
}

static int same(char **a)
{
	bool words = strcmp(a[0], "store") == 0;
	struct same_board *b = board_map(a[2], sizeof(*b));
	unsigned host = (unsigned)atoi(a[3]), rounds = (unsigned)atoi(a[4]);
	uint64_t seed = strtoull(a[5], NULL, 0), state = sequence(seed, host, 0);
	int fd = open_file(a[1], O_RDWR);
	volatile unsigned char *m = map_file(fd, PAGE, PROT_READ | PROT_WRITE);
	unsigned char was[RANGE] = {0}, bytes[RANGE];

	for (unsigned r = 1; r <= rounds; r++) {
		if (host == 0) {
			same_ranges(b, &state, words);
			atomic_store(&b->round, r);
		}
		team_meet(&b->team, 2);
		const unsigned range[2] = {b->from[host], b->to[host]};
		for (unsigned i = 0; i < RANGE; i++)
			bytes[i] = same_byte(r, host, i, words, was);
		if (words)
			same_store(m, range, bytes[0]);
		else if (pwrite(fd, bytes + range[0], range[1] - range[0], (off_t)range[0]) !=
			 (ssize_t)(range[1] - range[0]))
			team_fail(&b->team, "host %u: pwrite: %m", host);
		team_meet(&b->team, 2);
		if (pick(&state, 2) ? fsync(fd) : msync((void *)(uintptr_t)m, PAGE, MS_SYNC))
			team_fail(&b->team, "host %u round %u: flush: %m", host, r);
		team_meet(&b->team, 2);
		for (unsigned i = 0; i < RANGE; i++)
			b->got[host][i] = m[i];
		team_meet(&b->team, 2);
		if (host == 0)
			same_judge(b, r, words, was);
		memcpy(was, b->got[0], RANGE);
		team_meet(&b->team, 2);
	}
	atomic_store(&b->done, true);
	return 0;
}

/* Words: the last rounds' values are the only ones; each word is all one byte. */
static int watch(char **a)
{
	struct same_board *b = board_map(a[1], sizeof(*b));
	const volatile uint64_t *m = map_file(open_file(a[0], O_RDONLY), PAGE, PROT_READ);
	unsigned looks = 0;

	for (; !atomic_load(&b->done); looks++) {
		if (atomic_load(&b->team.failed))
			return 3;
		for (unsigned i = 0; i < RANGE / 8; i++) {
			uint64_t v = m[i];
			if (v != (v & 0xff) * 0x0101010101010101u)
				team_fail(&b->team,
					  "round %u: word %u is %" PRIx64 ", which nobody stored",
					  atomic_load(&b->round), i, v);
		}
		sched_yield();
	}
	printf("watched %u times\n", looks);
	return looks == 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		int (*fn)(char **);
	} mode[] = {
	    {"counters", 6, counters},   {"counting", 3, counting}, {"counted", 3, counted},
	    {"append", 4, append_lines}, {"appended", 4, appended}, {"ring", 5, ring},
	    {"same", 6, same},           {"watch", 2, watch},
	};

	for (unsigned i = 0; i < sizeof(mode) / sizeof(mode[0]); i++)
		if (argc == mode[i].args + 2 && strcmp(argv[1], mode[i].name) == 0)
			return mode[i].fn(argv + 2);
	errx(2, "see the head of merge.c for what to say");
}
