/* SPDX-License-Identifier: MIT */
/*
 * crash - programs whose work is known when they, their agent or the server is killed.
 *
 *	crash write FILE BOARD WRITER KILLS SEED
 *	crash wrote FILE BOARD WRITERS KILLS SEED
 *	crash busy FILE LOG BACK BOARD HOST SEED
 *	crash whole FILE LOG BACK BOARD HOST SEED
 *	crash wholly BACK BOARD
 *	crash strike BOARD HOST KIND PID SEED
 *	crash goes-on BOARD HOSTS KINDS
 *	crash stop BOARD
 *	crash logged LOG BOARD
 *
 * BACK is a directory, outside of any volume, with links to the server's own FILE and LOG: there a
 * program can look, without the library, at what the server really has.
 *
 * write: one child after the other stores a sequence that follows from the seed to pages of its own, by
 * mapped stores and write(), with flushes between, and is killed at a moment that follows from the seed;
 * after each step it says so on the board.  wrote: the file has what they had stored, all of it and
 * nothing else; only the step that was under way may be there or not.
 *
 * busy: four threads, one for each KIND of operation, until `stop`:
 *	flush	dirty many own pages, fsync, and look whether the server has them
 *	append	append a line, look whether the server has it
 *	fault	touch pages that others have flushed: nothing older than what they flushed may be there
 *	pong	two hosts in turn raise one word, each when it sees the other's: it never goes back, as
 *		it would if a flush that was over took effect again
 * whole: as flush and append, but all of a flush fits in one request: the server has all or nothing of it,
 * also when it was killed (wholly, which is asked while the agents cannot repeat anything).
 * strike: kill -9 PID while HOST is in an operation of that KIND, or just after.
 * goes-on: what is under way on each of the first HOSTS, of the first KINDS, ends, and more of it begins.
 * logged: the log has every line that was written, once, whole, each host's in order.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "team.h"

enum {
	MAX_KILLS = 256,
	REGION = 3,                /* pages of one child */
	CELLS = REGION * PAGE / 8, /* words in them */
	LONGEST = 40,              /* words that one pwrite stores, at most */
	MAX_STEPS = 300,           /* before the kill */
	HOSTS = 4,
	BIG = 384, /* pages of a host that busy flushes */
	WHOLE_PAGES = 200,
	WHOLE_CELLS = 15, /* a page; all of it in one request's ranges and bytes */
};

enum kind { FLUSH, APPEND, FAULT, PONG, KINDS };
static const char *const kind_name[KINDS] = {"flush", "append", "fault", "pong"};

struct board {
	struct team team;
	_Atomic unsigned done[MAX_KILLS]; /* write: steps */
	_Atomic bool stop;
	_Atomic unsigned doing[HOSTS][KINDS]; /* odd: in it */
	_Atomic unsigned appended[HOSTS];     /* lines whose write returned */
	_Atomic uint64_t generation[HOSTS];   /* the last that is being stored */
	_Atomic uint64_t
	    flushed[HOSTS][BIG];      /* each page: what a flush that returned has carried */
	_Atomic uint64_t pong[HOSTS]; /* each pair: the last that was flushed */
};

static struct board *board(const char *path)
{
	return board_map(path, sizeof(struct board));
}

/* ---- writers that are killed ---- */

struct step {
	enum { STORE, WRITE, SYNC } what;
	unsigned cell, n; /* words */
};

static struct step step_of(uint64_t seed, unsigned kill, unsigned i)
{
	uint64_t s = sequence(seed, kill, i);
	unsigned percent = pick(&s, 100);
	struct step t = {.what = percent < 64 ? STORE : percent < 99 ? WRITE : SYNC, .n = 1};

	if (percent >= 89 && percent < 99)
		t.n = 1 + pick(&s, LONGEST);
	/* Flushes take most of the time: half of the children never do, and are killed elsewhere. */
	if (t.what == SYNC && kill & 2)
		t.what = STORE;
	t.cell = pick(&s, CELLS - t.n + 1);
	return t;
}

static uint64_t step_value(unsigned kill, unsigned i)
{
	return (uint64_t)(kill + 1) << 40 | (uint64_t)i << 8 | 0xa5;
}

static _Noreturn void child(struct board *b, const char *file, int fd, volatile uint64_t *m,
			    size_t len, unsigned kill, uint64_t seed)
{
	const off_t base = (off_t)kill * REGION * PAGE;

	if (kill & 1) { /* a file and mapping of its own */
		fd = open_file(file, O_RDWR);
		m = map_file(fd, len, PROT_READ | PROT_WRITE);
	}
	m += base / 8;
	for (unsigned i = 1;; i++) {
		struct step s = step_of(seed, kill, i);
		uint64_t v[LONGEST] = {0};
		for (unsigned k = 0; k < s.n; k++)
			v[k] = step_value(kill, i);
		switch (s.what) {
		case STORE:
			m[s.cell] = v[0];
			break;
		case WRITE:
			if (pwrite(fd, v, s.n * 8, base + s.cell * 8) != (ssize_t)s.n * 8)
				err(1, "child %u: pwrite", kill);
			break;
		case SYNC:
			if (s.cell & 1 ? fsync(fd)
				       : msync((void *)(uintptr_t)m, REGION * PAGE, MS_SYNC))
				err(1, "child %u: flush", kill);
			break;
		}
		atomic_store(&b->done[kill], i);
	}
}

static int write_mode(char **a)
{
	struct board *b = board(a[1]);
	unsigned first = (unsigned)atoi(a[2]) * (unsigned)atoi(a[3]);
	unsigned end = first + (unsigned)atoi(a[3]);
	uint64_t seed = strtoull(a[4], NULL, 0);
	int fd = open_file(a[0], O_RDWR), status;
	struct stat st;

	if (fstat(fd, &st) || end > MAX_KILLS || st.st_size < (off_t)end * REGION * PAGE)
		errx(2, "not so many");
	size_t len = (size_t)st.st_size;
	volatile uint64_t *m = map_file(fd, len, PROT_READ | PROT_WRITE);
	for (unsigned kill_no = first; kill_no < end; kill_no++) {
		uint64_t s = sequence(seed, kill_no, 0);
		unsigned after = pick(&s, MAX_STEPS);
		double since = now(), moment = pick(&s, pick(&s, 4) ? 10 : 3000) / 1e6;
		pid_t pid = fork();
		if (pid < 0)
			err(1, "fork");
		if (pid == 0)
			child(b, a[0], fd, m, len, kill_no, seed);
		while (atomic_load(&b->done[kill_no]) < after)
			team_wait(&b->team, since, "a child to store");
		for (since = now(); now() - since < moment;)
			;
		kill(pid, SIGKILL);
		if (waitpid(pid, &status, 0) != pid)
			err(1, "waitpid");
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			team_fail(&b->team, "child %u ended by itself, status %x", kill_no,
				  (unsigned)status);
	}
	return 0;
}

static int wrote(char **a)
{
	struct board *b = board(a[1]);
	unsigned kills = (unsigned)atoi(a[2]) * (unsigned)atoi(a[3]), wrong = 0, hit[3] = {0};
	uint64_t seed = strtoull(a[4], NULL, 0), got[CELLS];
	int fd = open_file(a[0], O_RDONLY);

	for (unsigned k = 0; k < kills; k++) {
		unsigned done = atomic_load(&b->done[k]), last[CELLS] = {0};
		for (unsigned i = 1; i <= done; i++) {
			struct step s = step_of(seed, k, i);
			for (unsigned c = 0; s.what != SYNC && c < s.n; c++)
				last[s.cell + c] = i;
		}
		struct step s = step_of(seed, k, done + 1);
		hit[s.what]++;
		if (pread(fd, got, sizeof(got), (off_t)k * REGION * PAGE) != sizeof(got))
			err(1, "pread");
		for (unsigned c = 0; c < CELLS; c++) {
			if (got[c] == (last[c] ? step_value(k, last[c]) : 0))
				continue;
			if (s.what != SYNC && c >= s.cell && c < s.cell + s.n &&
			    got[c] == step_value(k, done + 1))
				continue;
			if (wrong++ < 10)
				warnx("seed %" PRIu64 ", kill %u after step %u: word %u is %" PRIx64
				      ", not of step %u",
				      seed, k, done, c, got[c], last[c]);
		}
	}
	printf("%u kills: %u at a store, %u in write(), %u in a flush; %u words wrong\n", kills,
	       hit[STORE], hit[WRITE], hit[SYNC], wrong);
	return wrong != 0;
}

/* ---- operations during which agent or server are killed ---- */

static struct {
	struct board *b;
	unsigned host;
	uint64_t seed;
	const char *file, *log;
	char back_file[256], back_log[256];
	unsigned cells; /* words of a page that flush stores to */
	unsigned pages; /* of each host */
} me;

static void begin(enum kind k)
{
	atomic_fetch_add(&me.b->doing[me.host][k], 1);
}

static void finish(enum kind k)
{
	atomic_fetch_add(&me.b->doing[me.host][k], 1);
	if (atomic_load(&me.b->team.failed))
		exit(3);
}

static bool stopped(void)
{
	return atomic_load(&me.b->stop);
}

/* The word of a page that a host's cell n is in. */
static unsigned cell_word(unsigned page, unsigned n)
{
	return (page * 7 + n * (unsigned)(PAGE / 8 / WHOLE_CELLS)) % (PAGE / 8);
}

static uint64_t cell_value(unsigned host, uint64_t generation)
{
	return generation << 8 | (host + 1);
}

/* Pages of which a flush is made: all when it has to be whole, else some. */
static void *flusher(void *arg)
{
	const unsigned pages = me.pages, base = me.host * pages;
	const bool whole = arg != NULL;
	int fd = open_file(me.file, O_RDWR), back = open_file(me.back_file, O_RDONLY);
	volatile uint64_t *m = map_file(fd, (size_t)HOSTS * pages * PAGE, PROT_READ | PROT_WRITE);
	uint64_t state = sequence(me.seed, me.host, FLUSH), has[PAGE / 8];
	uint64_t last[BIG] = {0};

	for (uint64_t g = 1; !stopped(); g++) {
		unsigned first = whole ? 0 : pick(&state, pages);
		unsigned n = whole ? pages : 1 + pick(&state, pages - first);
		atomic_store(&me.b->generation[me.host], g);
		for (unsigned p = first; p < first + n; p++) {
			for (unsigned c = 0; c < me.cells; c++)
				m[(base + p) * (PAGE / 8) + cell_word(p, c)] =
				    cell_value(me.host, g);
			last[p] = g;
		}
		begin(FLUSH);
		if (fsync(fd))
			team_fail(&me.b->team, "host %u: fsync: %m", me.host);
		for (unsigned p = first; p < first + n; p++)
			atomic_store(&me.b->flushed[me.host][p], g);
		finish(FLUSH);
		for (unsigned p = 0; p < pages; p++) {
			if (pread(back, has, PAGE, (off_t)(base + p) * PAGE) != PAGE)
				err(1, "pread");
			for (unsigned c = 0; last[p] && c < me.cells; c++) {
				uint64_t v = has[cell_word(p, c)],
					 want = cell_value(me.host, last[p]);
				uint64_t here = m[(base + p) * (PAGE / 8) + cell_word(p, c)];
				if (v != want || here != want)
					team_fail(&me.b->team,
						  "host %u: generation %" PRIu64
						  " was flushed: page %u word %u: server %" PRIx64
						  ", here %" PRIx64 ", not %" PRIx64,
						  me.host, g, p, cell_word(p, c), v, here, want);
			}
		}
	}
	return NULL;
}

static void *appender(void *arg)
{
	int fd = open_file(me.log, O_WRONLY | O_APPEND), back = open_file(me.back_log, O_RDONLY);
	static char line[LINE_MAX_LEN], has[HOSTS * 4 * LINE_MAX_LEN];
	off_t from = 0;

	for (unsigned n = 1; !stopped(); n++) {
		size_t len = line_make(line, me.host, n);
		struct stat st;
		begin(APPEND);
		ssize_t r = write(fd, line, len);
		if (r != (ssize_t)len)
			team_fail(&me.b->team, "host %u: append of %zu: %zd, %m", me.host, len, r);
		atomic_store(&me.b->appended[me.host], n);
		finish(APPEND);
		/* Behind where the last one was, if not too far. */
		if (fstat(back, &st))
			err(1, "fstat");
		if (st.st_size - from < (off_t)sizeof(has)) {
			ssize_t got = pread(back, has, sizeof(has), from);
			const char *at = got > 0 ? memmem(has, (size_t)got, line, len) : NULL;
			if (!at)
				team_fail(&me.b->team,
					  "host %u: line %u is not in the log, of %jd bytes",
					  me.host, n, (intmax_t)st.st_size);
			from += at - has;
		} else {
			from = st.st_size;
		}
		pause_us(1000); /* the log need not become that long */
	}
	(void)arg;
	return NULL;
}

static void *faulter(void *arg)
{
	int fd = open_file(me.file, O_RDONLY);
	const volatile uint64_t *m = map_file(fd, (size_t)HOSTS * me.pages * PAGE, PROT_READ);
	uint64_t state = sequence(me.seed, me.host, FAULT);

	while (!stopped()) {
		unsigned h = pick(&state, HOSTS), p = pick(&state, me.pages);
		unsigned w = cell_word(p, pick(&state, me.cells));
		begin(FAULT);
		uint64_t least = atomic_load(&me.b->flushed[h][p]);
		uint64_t v = m[(h * me.pages + p) * (PAGE / 8) + w];
		uint64_t most = atomic_load(&me.b->generation[h]);
		finish(FAULT);
		if (v ? v < cell_value(h, least) || v > cell_value(h, most) || (v & 0xff) != h + 1
		      : least != 0)
			team_fail(&me.b->team,
				  "host %u sees page %u word %u of host %u as %" PRIx64
				  ", flushed was generation %" PRIu64,
				  me.host, p, w, h, v, least);
		pause_us(30); /* others need the processor, too */
	}
	(void)arg;
	return NULL;
}

/* Hosts 0 and 1, and 2 and 3, have a word each, in the page behind everybody's. */
static void *ponger(void *arg)
{
	const unsigned pair = me.host / 2, turn = me.host % 2;
	int fd = open_file(me.file, O_RDWR);
	volatile uint64_t *m =
	    map_file(fd, ((size_t)HOSTS * me.pages + 1) * PAGE, PROT_READ | PROT_WRITE);
	volatile uint64_t *word = m + (size_t)HOSTS * me.pages * (PAGE / 8) + pair;
	uint64_t seen = 0;

	while (!stopped()) {
		uint64_t least = atomic_load(&me.b->pong[pair]), v = *word;
		if (v < least || v < seen)
			team_fail(&me.b->team,
				  "host %u: the word went back to %" PRIu64 ", was seen as %" PRIu64
				  ", flushed as %" PRIu64,
				  me.host, v, seen, least);
		seen = v;
		if (v % 2 != turn) {
			pause_us(30);
			continue;
		}
		seen = *word = v + 1;
		begin(PONG);
		if (msync((void *)(uintptr_t)(m + (size_t)HOSTS * me.pages * (PAGE / 8)), PAGE,
			  MS_SYNC))
			team_fail(&me.b->team, "host %u: msync: %m", me.host);
		finish(PONG);
		/* The other may have flushed a higher one by now. */
		for (least = atomic_load(&me.b->pong[pair]); least < v + 1;)
			if (atomic_compare_exchange_weak(&me.b->pong[pair], &least, v + 1))
				break;
	}
	(void)arg;
	return NULL;
}

static int run(char **a, bool whole)
{
	static void *(*const fn[KINDS])(void *) = {flusher, appender, faulter, ponger};
	pthread_t id[KINDS];
	unsigned n = whole ? FAULT : KINDS;

	me.file = a[0];
	me.log = a[1];
	me.b = board(a[3]);
	me.host = (unsigned)atoi(a[4]) % HOSTS;
	me.seed = strtoull(a[5], NULL, 0);
	me.pages = whole ? WHOLE_PAGES : BIG;
	me.cells = whole ? WHOLE_CELLS : 2;
	snprintf(me.back_file, sizeof(me.back_file), "%s%s", a[2], strrchr(a[0], '/'));
	snprintf(me.back_log, sizeof(me.back_log), "%s%s", a[2], strrchr(a[1], '/'));
	for (unsigned i = 0; i < n; i++)
		if (pthread_create(&id[i], NULL, fn[i], whole ? &me : NULL))
			errx(1, "pthread_create");
	for (unsigned i = 0; i < n; i++)
		pthread_join(id[i], NULL);
	for (unsigned i = 0; i < n; i++)
		printf("host %u: %s %u times\n", me.host, kind_name[i],
		       atomic_load(&me.b->doing[me.host][i]) / 2);
	return 0;
}

static int busy(char **a)
{
	return run(a, false);
}

static int whole(char **a)
{
	return run(a, true);
}

/* All cells of a host are of one generation: the last that was begun, or the one before. */
static int wholly(char **a)
{
	struct board *b = board(a[1]);
	int fd = open_file(a[0], O_RDONLY);
	uint64_t has[PAGE / 8];
	unsigned wrong = 0;

	for (unsigned h = 0; h < 2; h++) {
		uint64_t one = 0, g = atomic_load(&b->generation[h]);
		for (unsigned p = 0; p < WHOLE_PAGES; p++) {
			if (pread(fd, has, PAGE, (off_t)(h * WHOLE_PAGES + p) * PAGE) != PAGE)
				err(1, "pread");
			if (p == 0)
				one = has[cell_word(0, 0)];
			for (unsigned c = 0; c < WHOLE_CELLS; c++)
				if (has[cell_word(p, c)] != one && wrong++ < 5)
					warnx("host %u: page %u word %u is %" PRIx64
					      ", but the first one %" PRIx64,
					      h, p, cell_word(p, c), has[cell_word(p, c)], one);
		}
		if (one != cell_value(h, g) && one != (g > 1 ? cell_value(h, g - 1) : 0)) {
			warnx("host %u: the server has %" PRIx64 " at generation %" PRIu64, h, one,
			      g);
			wrong++;
		}
		printf("host %u: generation %" PRIu64 " is %s\n", h, g,
		       one == cell_value(h, g) ? "there" : "not there");
	}
	return wrong != 0;
}

static int strike(char **a)
{
	struct board *b = board(a[0]);
	unsigned host = (unsigned)atoi(a[1]) % HOSTS, kind = 0, was;
	uint64_t state = strtoull(a[4], NULL, 0);
	double since = now(), end;

	while (kind < KINDS - 1 && strcmp(a[2], kind_name[kind]) != 0)
		kind++;
	_Atomic unsigned *doing = &b->doing[host][kind];
	for (was = atomic_load(doing); atomic_load(doing) == was || atomic_load(doing) % 2 == 0;)
		team_wait(&b->team, since, a[2]);
	was = atomic_load(doing);
	end = now() + pick(&state, pick(&state, 2) ? 300 : 5000) / 1e6;
	while (now() < end && atomic_load(doing) == was)
		;
	was = atomic_load(doing);
	if (kill((pid_t)atoi(a[3]), SIGKILL))
		err(1, "kill %s", a[3]);
	printf("host %u: killed %s %s %u\n", host, was & 1 ? "in" : "after", a[2], was / 2);
	return 0;
}

static int goes_on(char **a)
{
	struct board *b = board(a[0]);
	unsigned hosts = (unsigned)atoi(a[1]), kinds = (unsigned)atoi(a[2]), was[HOSTS][KINDS];
	double since = now();

	for (unsigned h = 0; h < HOSTS; h++)
		for (unsigned k = 0; k < KINDS; k++)
			was[h][k] = atomic_load(&b->doing[h][k]);
	for (unsigned h = 0; h < HOSTS; h++)
		for (unsigned k = 0; k < KINDS; k++)
			while (h < hosts && k < kinds &&
			       atomic_load(&b->doing[h][k]) - was[h][k] < 2)
				team_wait(&b->team, since, kind_name[k]);
	printf("all went on after %.0f ms\n", (now() - since) * 1000);
	return 0;
}

static int stop(char **a)
{
	atomic_store(&board(a[0])->stop, true);
	return 0;
}

/* ---- the log ---- */

static bool in_order(unsigned who, unsigned n, void *arg)
{
	unsigned *last = arg;

	if (who < HOSTS && n == last[who] + 1) {
		last[who] = n;
		return true;
	}
	warnx("host %u: line %u comes after line %u", who, n, who < HOSTS ? last[who] : 0);
	return false;
}

static int logged(char **a)
{
	struct board *b = board(a[1]);
	unsigned last[HOSTS] = {0}, lines = 0, lost = 0;

	if (!lines_read(open_file(a[0], O_RDONLY), in_order, last))
		return 1;
	for (unsigned h = 0; h < HOSTS; h++) {
		lines += last[h];
		if (last[h] == atomic_load(&b->appended[h]))
			continue;
		warnx("host %u: the last line is %u, not %u", h, last[h],
		      atomic_load(&b->appended[h]));
		lost++;
	}
	printf("%u lines\n", lines);
	return lost != 0 || !lines;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		int (*fn)(char **);
	} mode[] = {
	    {"write", 5, write_mode}, {"wrote", 5, wrote},   {"busy", 6, busy},
	    {"whole", 6, whole},      {"wholly", 2, wholly}, {"strike", 5, strike},
	    {"goes-on", 3, goes_on},  {"stop", 1, stop},     {"logged", 2, logged},
	};

	for (unsigned i = 0; i < sizeof(mode) / sizeof(mode[0]); i++)
		if (argc == mode[i].args + 2 && strcmp(argv[1], mode[i].name) == 0)
			return mode[i].fn(argv + 2);
	errx(2, "see the head of crash.c for what to say");
}
