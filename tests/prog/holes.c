/* SPDX-License-Identifier: MIT */
/*
 * holes - the hole-punch race: does anything that a punch, a truncate or a collapse freed come back, and
 * is anything older seen than was stored and flushed?
 *
 *	holes init MODEL SEED			make the model
 *	holes host A|B MODEL DIR SECONDS [kill]	one host's part, in DIR/cut and DIR/shift; both run
 *	holes served MODEL DIR			DIR's files are what both hosts saw last
 *
 * A host is a process that forks three: writers, readers and changers, of a few threads each.
 *
 *	cut	both hosts write to it, punch and zero ranges, truncate it and make it larger again
 *	shift	A collapses pages out of the middle and inserts as many in the same place, and punches
 *
 * The unit is a block of 1 KiB.  Each has one writer, which writes nothing but this word: the block's
 * number, the block's generation (one more each time), a check.  The model is plain memory that
 * all processes of both hosts map; a block's entry says what its writer began, did and flushed, and
 * what the changers freed.  A reader looks at the model, then at the file, then at the model
 * again.  Wrong is what is seen and cannot be:
 *
 *	freed	a generation that was complete (on another host: flushed) before a change began that
 *		freed it, seen by somebody who looked after that change had returned
 *	stale	an older one than was flushed before somebody looked, and no change began since
 *	astray	another block's bytes, though the file was not shifted
 *	nowhere	a generation that nobody has begun, or bytes that are no word at all
 *	differ	in the end, when all is flushed: the hosts see different bytes
 *	wedged	while one process was stopped, the others of the host did not get on
 *
 * A write that met a shift may have landed before or after it; its generation is `tainted` and may be
 * anywhere.
 *
 * With `kill` a writer or a reader is stopped at any point, and stays so until all the others have
 * got on; then it is continued, or killed and replaced.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef FALLOC_FL_KEEP_SIZE
#include <linux/falloc.h>
#endif

enum {
	BLOCK = 1024,
	WORDS = BLOCK / 8,
	PAGE = 4096,
	PER_PAGE = PAGE / BLOCK,
	BLOCKS = 256,
	GROUP = 8 * PER_PAGE, /* blocks in a row of one writer */
	SHIFT_FROM = 2 * GROUP,
	MARGIN = 4 * PER_PAGE, /* at the end of `shift`: never written */
	SHIFT_MAX = MARGIN / PER_PAGE,
	CUT_FROM = BLOCKS * 3 / 4,
	TAINTS = 1 << 16, /* generations told apart; beyond that some are taken for tainted */
	PATIENCE = 120,   /* s until who does not get on is wedged */
};
#define NONE UINT64_MAX
enum { CUT, SHIFT, FILES };
enum { WRITERS, READERS, CHANGERS, ROLES };
enum { FREED, STALE, ASTRAY, NOWHERE, DIFFER, WEDGED, KINDS };
static const char *const kind_name[KINDS] = {"freed",   "stale",  "astray",
					     "nowhere", "differ", "wedged"};
static const char *const file_name[FILES] = {"cut", "shift"};

struct block {
	_Atomic uint64_t begun, done; /* by its writer */
	_Atomic uint64_t wrote_at;    /* starts when it began, NONE: a change was under way */
	_Atomic uint64_t stable;      /* flushed */
	_Atomic uint64_t
	    pinned; /* generation << 32 | starts: seen after a flush, unless changed since */
	_Atomic uint64_t dead;         /* freed, as all before it */
	_Atomic uint64_t starts, ends; /* changes begun, and over */
	_Atomic uint64_t taint[TAINTS / 64];
};

struct model {
	uint64_t seed;
	_Atomic uint64_t at; /* of the first wrong one: ms since the beginning */
	_Atomic uint32_t stop, begun, quiet, seen;
	_Atomic uint32_t wrong[KINDS];
	_Atomic uint32_t shifts; /* odd: under way */
	_Atomic uint64_t steps[2][ROLES];
	_Atomic uint64_t count[2][16];
	struct block b[FILES][BLOCKS];
	uint64_t final[2][FILES][BLOCKS * WORDS];
};
enum {
	N_READ,
	N_LOAD,
	N_WRITE,
	N_STORE,
	N_FLUSH,
	N_AHEAD,
	N_PUNCH,
	N_ZERO,
	N_TRUNCATE,
	N_SHIFT,
	N_STOP,
	N_KILL,
	N_BUS
};
static const char *const count_name[] = {
    "reads",    "loads",     "writes", "stores", "flushes", "readaheads", "punches",
    "zeroings", "truncates", "shifts", "stops",  "kills",   "SIGBUS"};

static struct model *m;
static int host;
static const char *dir;
static int fd[FILES];
static volatile uint64_t *map[FILES], *ro[FILES];

/* ---- words ---- */

/*
 * No byte of it is zero, nor the same in two generations that follow each other: flushes carry bytes that
 * changed, and a word that two hosts made together, one by punching, would be nobody's.
 */
static uint64_t word_of(unsigned b, uint64_t gen)
{
	const uint64_t digit[8] = {0,       gen / 255, gen / (255 * 255), b,
				   b / 255, b * 37,    b * 91 + 5,        77};
	uint64_t w = 0;

	for (int i = 0; i < 8; i++)
		w |= (1 + (digit[i] + gen) % 255) << 8 * i;
	return w;
}

static uint64_t digit_of(uint64_t w, int i)
{
	return ((w >> 8 * i & 0xff) + 254) % 255;
}

/* A word that somebody wrote: its block and generation. */
static bool word_parse(uint64_t w, unsigned *b, uint64_t *gen)
{
	uint64_t low = digit_of(w, 0), d[5];

	for (int i = 1; i < 5; i++)
		d[i] = (digit_of(w, i) + 255 - low) % 255;
	*gen = (d[2] * 255 + d[1]) * 255 + low;
	*b = (unsigned)(d[4] * 255 + d[3]);
	return *b < BLOCKS && word_of(*b, *gen) == w;
}

/* Which of the four writers (two a host) a block belongs to. */
static unsigned owner(int f, unsigned b)
{
	if (f == CUT)
		return b < BLOCKS / 2 ? b / GROUP % 4 : b % 4; /* runs, and pages of all four */
	return b < SHIFT_FROM ? 2 + b / GROUP % 2 : b / GROUP % 2;
}
static int home(int f, unsigned b)
{
	return (int)(owner(f, b) / 2);
}

/* ---- what is wrong ---- */

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}
static uint64_t born;

static void wrong(int kind, int f, unsigned b, uint64_t saw, uint64_t want, const char *how)
{
	uint64_t none = 0;
	uint32_t n = atomic_fetch_add(&m->wrong[kind], 1);

	atomic_compare_exchange_strong(&m->at, &none, now_ms() - born + 1);
	if (n < 5) {
		const struct block *e = &m->b[f][b];

		printf("%s: host %c, %s, block %u: %s saw %#jx, limit %ju; of host %c, begun %ju, "
		       "done %ju, flushed %ju, freed %ju, changes %ju, over %ju\n",
		       kind_name[kind], 'A' + host, file_name[f], b, how, (uintmax_t)saw,
		       (uintmax_t)want, 'A' + home(f, b), (uintmax_t)atomic_load(&e->begun),
		       (uintmax_t)atomic_load(&e->done), (uintmax_t)atomic_load(&e->stable),
		       (uintmax_t)atomic_load(&e->dead), (uintmax_t)atomic_load(&e->starts),
		       (uintmax_t)atomic_load(&e->ends));
	}
	fflush(stdout);
	if (n >= 20)
		atomic_store(&m->stop, 1);
}

static void step(int role)
{
	atomic_fetch_add(&m->steps[host][role], 1);
}
static void counted(int what)
{
	atomic_fetch_add_explicit(&m->count[host][what], 1, memory_order_relaxed);
}

static uint32_t rnd(uint64_t *s, uint32_t n)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (uint32_t)(*s >> 16) % n;
}

/* ---- touching mappings ---- */

static __thread sigjmp_buf on_bus;
static __thread volatile sig_atomic_t guarded;

static void bus(int sig)
{
	if (!guarded) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
	counted(N_BUS);
	siglongjmp(on_bus, 1);
}

/* To or from a mapping.  False: past the end of the file. */
static bool copy(volatile uint64_t *to, volatile const uint64_t *from, unsigned words)
{
	guarded = 1;
	if (sigsetjmp(on_bus, 1)) {
		guarded = 0;
		return false;
	}
	for (unsigned i = 0; i < words; i++)
		to[i] = from[i];
	guarded = 0;
	return true;
}

/* ---- writers ---- */

static bool tainted(const struct block *e, uint64_t gen)
{
	return atomic_load(&e->taint[gen % TAINTS / 64]) >> gen % 64 & 1;
}
static void taint(struct block *e, uint64_t gen, bool on)
{
	if (on)
		atomic_fetch_or(&e->taint[gen % TAINTS / 64], UINT64_C(1) << gen % 64);
	else
		atomic_fetch_and(&e->taint[gen % TAINTS / 64], ~(UINT64_C(1) << gen % 64));
}

/*
 * All of [b, b + n) was flushed, and no change was under way at `starts` when the flush began: what is
 * there now stays until the next change begins, for everybody.
 */
static void pin_down(int f, unsigned b, unsigned n, const uint64_t *starts, const uint64_t *wrote,
		     uint64_t *s)
{
	uint64_t w[GROUP * WORDS];
	const char *how = "the writer's read";
	bool there;

	if (rnd(s, 2)) {
		there = pread(fd[f], w, n * BLOCK, (off_t)b * BLOCK) == (ssize_t)n * BLOCK;
	} else {
		how = "the writer's load";
		there = copy(w, map[f] + b * WORDS, n * WORDS);
	}
	for (unsigned i = 0; i < n; i++) {
		struct block *e = &m->b[f][b + i];
		uint64_t gen = there ? UINT64_MAX : 0, first = there ? w[i * WORDS] : 0;
		bool own = true;

		if (starts[i] == NONE)
			continue;
		/* Stores that met a change may have left a block of several generations: the oldest. */
		for (unsigned k = 0; there && k < WORDS; k++) {
			const uint64_t v = w[i * WORDS + k];
			unsigned of = b + i;
			uint64_t g = 0;

			if (v && !word_parse(v, &of, &g))
				wrong(NOWHERE, f, b + i, v, 0, how);
			own &= of == b + i;
			gen = g < gen ? g : gen;
		}
		if (!own || atomic_load(&e->starts) != starts[i])
			continue;
		if (gen < wrote[i])
			wrong(STALE, f, b + i, first, wrote[i], how);
		else if (gen)
			atomic_store(&e->pinned, gen << 32 | (starts[i] & 0xffffffff));
	}
}

static void flush(int f, unsigned b, unsigned n, uint64_t *s)
{
	uint64_t starts[GROUP], done[GROUP], wrote[GROUP];
	const size_t from = b * BLOCK & ~(size_t)(PAGE - 1), to = (size_t)(b + n) * BLOCK;
	int r;

	for (unsigned i = 0; i < n; i++) {
		struct block *e = &m->b[f][b + i];

		done[i] = atomic_load(&e->done);
		starts[i] = atomic_load(&e->starts);
		if (atomic_load(&e->ends) != starts[i])
			starts[i] = NONE;
		wrote[i] = starts[i] == atomic_load(&e->wrote_at) ? done[i] : 0;
	}
	if (rnd(s, 3) == 0)
		r = fsync(fd[f]);
	else
		r = msync((char *)(uintptr_t)map[f] + from, to - from, MS_SYNC);
	if (r)
		err(1, "flush of %s", file_name[f]);
	counted(N_FLUSH);
	for (unsigned i = 0; i < n; i++)
		atomic_store(&m->b[f][b + i].stable, done[i]);
	pin_down(f, b, n, starts, wrote, s);
}

static void write_run(int f, unsigned b, unsigned n, bool mapped)
{
	uint64_t w[GROUP * WORDS], gen[GROUP], starts[GROUP];
	const uint32_t shifts = atomic_load(&m->shifts);
	bool ok;

	for (unsigned i = 0; i < n; i++) {
		struct block *e = &m->b[f][b + i];

		starts[i] = atomic_load(&e->starts);
		if (atomic_load(&e->ends) != starts[i])
			starts[i] = NONE;
		gen[i] = atomic_load(&e->begun) + 1;
		if (f == SHIFT) /* until it is over, and if it is never over */
			taint(e, gen[i], true);
		atomic_store(&e->begun, gen[i]);
		for (unsigned k = 0; k < WORDS; k++)
			w[i * WORDS + k] = word_of(b + i, gen[i]);
	}
	if (mapped)
		ok = copy(map[f] + b * WORDS, w, n * WORDS);
	else
		ok = pwrite(fd[f], w, n * BLOCK, (off_t)b * BLOCK) == (ssize_t)n * BLOCK;
	if (!ok && !mapped)
		err(1, "write to %s", file_name[f]);
	if (!ok)
		return; /* it was truncated */
	counted(mapped ? N_STORE : N_WRITE);
	for (unsigned i = 0; i < n; i++) {
		struct block *e = &m->b[f][b + i];

		if (f == SHIFT && !(shifts & 1) && atomic_load(&m->shifts) == shifts)
			taint(e, gen[i], false);
		atomic_store(&e->wrote_at, starts[i]);
		atomic_store(&e->done, gen[i]);
	}
}

static void writer(unsigned me, uint64_t *s)
{
	int f = rnd(s, 3) == 0 ? SHIFT : CUT;
	unsigned end = f == SHIFT ? BLOCKS - MARGIN : BLOCKS, b, n = 1;

	do
		b = rnd(s, end);
	while (owner(f, b) != me);
	while (n < GROUP && (b + n) % GROUP && b + n < end && owner(f, b + n) == me && rnd(s, 24))
		n++; /* a run of its own, as far as it goes */
	if (rnd(s, 4) == 0)
		flush(f, b, n, s);
	else
		write_run(f, b, n, rnd(s, 2));
	step(WRITERS);
}

/* ---- readers ---- */

static void judge(int f, unsigned b, uint64_t w, uint64_t dead, uint64_t pinned, bool still,
		  const char *how)
{
	const struct block *e = &m->b[f][b];
	uint64_t gen = 0;
	unsigned of = b;

	if (w && (!word_parse(w, &of, &gen) || gen > atomic_load(&m->b[f][of].begun))) {
		wrong(NOWHERE, f, b, w, 0, how);
		return;
	}
	if (of != b) {
		e = &m->b[f][of];
		if (f == CUT || (still && gen <= atomic_load(&e->done) && !tainted(e, gen)))
			wrong(ASTRAY, f, b, w, gen, how);
		return;
	}
	if (gen && gen <= dead && !tainted(e, gen))
		wrong(FREED, f, b, w, dead, how);
	if (gen < pinned >> 32 && (atomic_load(&e->starts) & 0xffffffff) == (pinned & 0xffffffff))
		wrong(STALE, f, b, w, pinned >> 32, how);
}

static void look(int f, unsigned b, unsigned n, uint64_t *s)
{
	static const char *const name[] = {"read", "load", "load from the read-only mapping"};
	uint64_t w[GROUP * WORDS], dead[GROUP], pinned[GROUP];
	uint32_t shifts = atomic_load(&m->shifts);
	unsigned how = rnd(s, 3), got = n;
	bool still;

	for (unsigned i = 0; i < n; i++) {
		dead[i] = atomic_load(&m->b[f][b + i].dead);
		pinned[i] = atomic_load(&m->b[f][b + i].pinned);
	}
	if (!how) {
		ssize_t r = pread(fd[f], w, n * BLOCK, (off_t)b * BLOCK);

		if (r < 0)
			err(1, "read of %s", file_name[f]);
		got = (unsigned)r / BLOCK;
	} else if (!copy(w, (how == 1 ? map : ro)[f] + b * WORDS, n * WORDS)) {
		got = 0;
		if (n > 1)
			return; /* where it ends is not known */
	}
	counted(how ? N_LOAD : N_READ);
	/* A read may meet a store in the middle of a word, and show both; another one does not. */
	for (unsigned i = 0; !how && i < got * WORDS; i++) {
		unsigned of;
		uint64_t gen;

		for (int k = 0; k < 100 && w[i] && !word_parse(w[i], &of, &gen); k++)
			if (pread(fd[f], &w[i], 8, ((off_t)b * WORDS + i) * 8) != 8)
				w[i] = 0; /* cut off meanwhile */
	}
	still = !(shifts & 1) && atomic_load(&m->shifts) == shifts;
	for (unsigned i = 0; i < n; i++)
		for (unsigned k = 0; k < WORDS; k++)
			judge(f, b + i, i < got ? w[i * WORDS + k] : 0, dead[i], pinned[i], still,
			      name[how]);
}

static void ahead(int f, unsigned b, unsigned n, uint64_t *s)
{
	const off_t off = (off_t)b * BLOCK & ~(off_t)(PAGE - 1);
	const size_t len = (size_t)(b + n) * BLOCK - (size_t)off;
	char *p = (char *)(uintptr_t)(rnd(s, 2) ? map : ro)[f] + off;

	/* Advice: what it does not do, it does not do. */
	switch (rnd(s, 5)) {
	case 0:
		madvise(p, len, MADV_WILLNEED);
		break;
	case 1:
		posix_fadvise(fd[f], off, (off_t)len, POSIX_FADV_WILLNEED);
		break;
	case 2:
		readahead(fd[f], off, len);
		break;
	case 3:
		posix_fadvise(fd[f], off, (off_t)len, POSIX_FADV_DONTNEED);
		break;
	default: /* so that there are faults */
		madvise(p, len, MADV_DONTNEED);
		break;
	}
	counted(N_AHEAD);
}

static void reader(uint64_t *s)
{
	int f = rnd(s, 3) == 0 ? SHIFT : CUT;
	unsigned b = rnd(s, BLOCKS), n = 1 + (rnd(s, 2) ? rnd(s, GROUP) : 0);

	n = n < BLOCKS - b ? n : BLOCKS - b;
	if (rnd(s, 4) == 0)
		ahead(f, b, n, s);
	else
		look(f, b, n, s);
	step(READERS);
	sched_yield(); /* most of what it looks at has not changed: the others need the time */
}

/* ---- flushers ---- */

/* Flushes under the writers' hands, all the time. */
static void flusher(uint64_t *s)
{
	if (fsync(fd[rnd(s, 4) ? CUT : SHIFT]))
		err(1, "fsync");
	sched_yield();
	counted(N_FLUSH);
}

/* ---- changers ---- */

static void change_begins(int f, unsigned b, unsigned end, unsigned freed_end, uint64_t *freed)
{
	for (unsigned i = b; i < end; i++)
		atomic_fetch_add(&m->b[f][i].starts, 1);
	for (unsigned i = b; i < freed_end; i++) {
		struct block *e = &m->b[f][i];

		/* What the other host has not flushed is to come later. */
		freed[i] = atomic_load(home(f, i) == host ? &e->done : &e->stable);
	}
}

static void change_ends(int f, unsigned b, unsigned end, unsigned freed_end, const uint64_t *freed)
{
	for (unsigned i = b; i < freed_end; i++) {
		_Atomic uint64_t *dead = &m->b[f][i].dead;
		uint64_t d = atomic_load(dead);

		while (d < freed[i] && !atomic_compare_exchange_weak(dead, &d, freed[i]))
			;
	}
	for (unsigned i = b; i < end; i++)
		atomic_fetch_add(&m->b[f][i].ends, 1);
}

/* Whether the server's file system can do that at all. */
static bool lacks(int r)
{
	if (r == 0)
		return false;
	if (errno != EOPNOTSUPP)
		err(1, "host %c: a change", 'A' + host);
	return true;
}

static void punch(int f, unsigned from, uint64_t *s)
{
	static _Atomic bool no_zero;
	/* Half of `cut` changes seldom, so that what is wrong there lasts. */
	const unsigned seldom = f == CUT && rnd(s, 32) ? BLOCKS / 2 : from;
	unsigned b = seldom + rnd(s, BLOCKS - seldom), end = b + 1 + rnd(s, rnd(s, 2) ? 4 : 64);
	bool zero = !atomic_load(&no_zero) && rnd(s, 4) == 0;
	int mode = zero ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
	uint64_t freed[BLOCKS];

	end = end < BLOCKS ? end : BLOCKS;
	change_begins(f, b, end, end, freed);
	if (lacks(fallocate(fd[f], mode | FALLOC_FL_KEEP_SIZE, (off_t)b * BLOCK,
			    (off_t)(end - b) * BLOCK))) {
		if (!zero)
			errx(1, "the server's file system cannot punch holes");
		atomic_store(&no_zero, true);
		memset(freed, 0, sizeof(freed));
	}
	change_ends(f, b, end, end, freed);
	counted(zero ? N_ZERO : N_PUNCH);
}

static void cut(uint64_t *s)
{
	unsigned b = CUT_FROM + rnd(s, BLOCKS - CUT_FROM);
	uint64_t freed[BLOCKS];

	change_begins(CUT, b, BLOCKS, BLOCKS, freed);
	if (ftruncate(fd[CUT], (off_t)b * BLOCK) || ftruncate(fd[CUT], (off_t)BLOCKS * BLOCK))
		err(1, "truncate");
	change_ends(CUT, b, BLOCKS, BLOCKS, freed);
	counted(N_TRUNCATE);
}

static bool shift(uint64_t *s)
{
	const unsigned pages = 1 + rnd(s, SHIFT_MAX), n = pages * PER_PAGE;
	unsigned b = SHIFT_FROM + rnd(s, (BLOCKS - MARGIN - n - SHIFT_FROM) / PER_PAGE) * PER_PAGE;
	uint64_t freed[BLOCKS] = {0};
	bool lacking;

	atomic_fetch_add(&m->shifts, 1);
	change_begins(SHIFT, b, BLOCKS, b + n, freed);
	lacking = lacks(
	    fallocate(fd[SHIFT], FALLOC_FL_COLLAPSE_RANGE, (off_t)b * BLOCK, (off_t)n * BLOCK));
	if (lacking)
		memset(freed, 0, sizeof(freed));
	else if (fallocate(fd[SHIFT], FALLOC_FL_INSERT_RANGE, (off_t)b * BLOCK, (off_t)n * BLOCK))
		err(1, "insert after collapse");
	change_ends(SHIFT, b, BLOCKS, b + n, freed);
	atomic_fetch_add(&m->shifts, 1);
	if (!lacking)
		counted(N_SHIFT);
	return !lacking;
}

static void changer(unsigned me, uint64_t *s)
{
	static bool no_shift;

	if (me == 0) {
		if (rnd(s, 4) == 0)
			cut(s);
		else
			punch(CUT, 0, s);
		step(CHANGERS);
	} else if (no_shift || rnd(s, 3) == 0) {
		punch(SHIFT, SHIFT_FROM, s);
	} else {
		no_shift = !shift(s);
	}
}

/* ---- processes ---- */

static void open_files(void)
{
	for (int f = 0; f < FILES; f++) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/%s", dir, file_name[f]);
		fd[f] = open(path, O_RDWR);
		if (fd[f] < 0)
			err(1, "%s", path);
		map[f] = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd[f], 0);
		ro[f] = mmap(NULL, BLOCKS * BLOCK, PROT_READ, MAP_SHARED, fd[f], 0);
		if (map[f] == MAP_FAILED || ro[f] == MAP_FAILED)
			err(1, "mmap of %s", path);
	}
}

struct thread {
	int role;
	unsigned me;
	uint64_t seed;
	pthread_t t;
};

static void *work(void *arg)
{
	struct thread *t = arg;

	while (!atomic_load(&m->stop))
		switch (t->role) {
		case WRITERS:
			writer((unsigned)host * 2 + t->me, &t->seed);
			break;
		case READERS:
			if (t->me == 1)
				flusher(&t->seed);
			else
				reader(&t->seed);
			break;
		default:
			changer(t->me, &t->seed);
		}
	return NULL;
}

static pid_t start(int role, uint64_t life)
{
	struct thread t[2];
	const unsigned n = role == CHANGERS && host ? 1 : 2; /* only A shifts */
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	open_files();
	for (unsigned i = 0; i < n; i++) {
		t[i].role = role;
		t[i].me = i;
		t[i].seed = (m->seed + 1) * 0x9e3779b97f4a7c15u ^
			    (life * 64 + (unsigned)host * 16 + (unsigned)role * 4 + i + 1) << 20;
		if (pthread_create(&t[i].t, NULL, work, &t[i]))
			errx(1, "no thread");
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(t[i].t, NULL);
	exit(0);
}

/* All but one make at least a few steps each. */
static void others_get_on(int but, const char *what)
{
	uint64_t from[ROLES], end = now_ms() + PATIENCE * 1000;

	for (int r = 0; r < ROLES; r++)
		from[r] = atomic_load(&m->steps[host][r]);
	for (int r = 0; r < ROLES; r++)
		while (r != but && atomic_load(&m->steps[host][r]) < from[r] + 3 &&
		       !atomic_load(&m->stop)) {
			if (now_ms() > end) {
				wrong(WEDGED, CUT, 0, (uint64_t)r, (uint64_t)but, what);
				atomic_store(&m->stop, 1);
			}
			usleep(1000);
		}
}

static void disturb(pid_t *pid, uint64_t *life, uint64_t *s)
{
	const int role = rnd(s, 2) ? WRITERS : READERS;
	int status;

	usleep(rnd(s, 20000)); /* any point of what it does */
	kill(pid[role], SIGSTOP);
	counted(N_STOP);
	others_get_on(role, "while one was stopped, another");
	if (rnd(s, 3)) {
		kill(pid[role], SIGCONT);
		return;
	}
	kill(pid[role], SIGKILL);
	counted(N_KILL);
	if (waitpid(pid[role], &status, 0) != pid[role])
		err(1, "waitpid");
	if (atomic_load(&m->stop)) { /* the other host says that it is over; so may it have */
		pid[role] = 0;
		return;
	}
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		errx(1, "a process ended by itself: %#x", (unsigned)status);
	others_get_on(role, "after one was killed, another");
	pid[role] = start(role, ++*life);
}

static void meet(_Atomic uint32_t *at)
{
	uint64_t end = now_ms() + 2 * PATIENCE * 1000;

	atomic_fetch_add(at, 1);
	while (atomic_load(at) < 2) {
		if (now_ms() > end)
			errx(1, "the other host does not come");
		usleep(1000);
	}
}

/* All is flushed, on both hosts: both see the same. */
static void compare(void)
{
	for (int f = 0; f < FILES; f++) {
		if (fsync(fd[f]))
			err(1, "fsync");
	}
	meet(&m->quiet);
	for (int f = 0; f < FILES; f++) {
		uint64_t *w = m->final[host][f];

		if (pread(fd[f], w, BLOCKS * BLOCK, 0) != BLOCKS * BLOCK)
			errx(1, "%s is short in the end", file_name[f]);
		for (unsigned i = 0; i < BLOCKS * WORDS; i++)
			if (map[f][i] != w[i]) {
				wrong(DIFFER, f, i / WORDS, map[f][i], w[i] & 0xffffffff,
				      "a load, not a read,");
				break;
			}
	}
	meet(&m->seen);
	for (int f = 0; f < FILES && host == 0; f++)
		for (unsigned i = 0; i < BLOCKS * WORDS; i++)
			if (m->final[0][f][i] != m->final[1][f][i])
				wrong(DIFFER, f, i / WORDS, m->final[0][f][i],
				      m->final[1][f][i] & 0xffffffff, "it");
}

static int run(uint64_t seconds, bool kills)
{
	uint64_t end, life = 1, s = (m->seed + 7) * 0x9e3779b97f4a7c15u + (unsigned)host, n = 0;
	struct sigaction sa = {.sa_handler = bus};
	pid_t pid[ROLES];
	int status, bad = 0;

	sigaction(SIGBUS, &sa, NULL);
	for (int r = 0; r < ROLES; r++)
		pid[r] = start(r, 0);
	meet(&m->begun);
	born = now_ms();
	end = born + seconds * 1000;
	others_get_on(ROLES, "in the beginning, one");
	while (now_ms() < end && !atomic_load(&m->stop)) {
		if (kills)
			disturb(pid, &life, &s);
		else
			usleep(10000);
		for (int k = 0; k < KINDS; k++)
			n += atomic_load(&m->wrong[k]);
		if (n) /* the rest shows nothing new */
			break;
	}
	atomic_store(&m->stop, 1);
	for (int r = 0; r < ROLES; r++)
		if (pid[r] && (waitpid(pid[r], &status, 0) != pid[r] || status)) {
			printf("host %c: process %d ended with %#x\n", 'A' + host, r,
			       (unsigned)status);
			bad = 1;
		}
	if (bad)
		return 2;
	open_files();
	compare();
	printf("host %c:", 'A' + host);
	for (unsigned i = 0; i < sizeof(count_name) / sizeof(count_name[0]); i++)
		printf(" %ju %s%s", (uintmax_t)atomic_load(&m->count[host][i]), count_name[i],
		       i == N_BUS ? "\n" : ",");
	return 0;
}

static int served(void)
{
	uint64_t all = 0;

	for (int f = 0; f < FILES; f++) {
		static uint64_t w[BLOCKS * WORDS];

		open_files();
		if (pread(fd[f], w, sizeof(w), 0) != (ssize_t)sizeof(w) ||
		    memcmp(w, m->final[0][f], sizeof(w)) != 0)
			wrong(DIFFER, f, 0, 0, 0, "the server");
	}
	for (int k = 0; k < KINDS; k++) {
		all += atomic_load(&m->wrong[k]);
		printf("%u %s, ", atomic_load(&m->wrong[k]), kind_name[k]);
	}
	printf("%ju wrong", (uintmax_t)all);
	if (all)
		printf(", the first after %ju ms", (uintmax_t)atomic_load(&m->at));
	putchar('\n');
	return all ? 1 : 0;
}

int main(int argc, char **argv)
{
	const bool init = argc == 4 && strcmp(argv[1], "init") == 0;
	int mfd;

	if (!init && !(argc >= 6 && strcmp(argv[1], "host") == 0) &&
	    !(argc == 4 && strcmp(argv[1], "served") == 0))
		errx(2, "usage: holes init MODEL SEED | host A|B MODEL DIR SECONDS [kill] | served "
			"MODEL DIR");
	mfd = open(argv[argc > 4 ? 3 : 2], O_RDWR | (init ? O_CREAT | O_TRUNC : 0), 0666);
	if (mfd < 0 || (init && (fchmod(mfd, 0666) || ftruncate(mfd, sizeof(*m)))))
		err(1, "model");
	m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED, mfd, 0);
	if (m == MAP_FAILED)
		err(1, "model");
	if (init) {
		m->seed = strtoull(argv[3], NULL, 10);
		return 0;
	}
	born = now_ms();
	if (argc == 4) {
		dir = argv[3];
		return served();
	}
	host = argv[2][0] == 'B';
	dir = argv[4];
	return run(strtoull(argv[5], NULL, 10), argc > 6 && strcmp(argv[6], "kill") == 0);
}
