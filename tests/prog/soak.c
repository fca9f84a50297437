/* SPDX-License-Identifier: MIT */
/*
 * soak - many store to the same files of several hosts while everything is killed and rights come and go,
 * against a model on a board.
 *
 *	soak host VOLUME BACK BOARD HOST REFUSED SEED
 *	soak flush VOLUME
 *	soak verify VOLUME BACK BOARD OUT
 *	soak log VOLUME BOARD
 *	soak stop|failed|told BOARD
 *
 * VOLUME has the files `free` and `deny`, of file_size() bytes (`soak size` says how many), and `log`,
 * empty.  BACK, outside of any volume, has links to the server's own: what a program reads there is what
 * the server really has.
 *
 * Cells.  An owner is one of a host's writers, whoever plays it after the one before was killed.  Each
 * cell, a word, has one owner, who stores values to it that grow and were never used before.  In the
 * first pages of a file owners lie side by side, further behind each has pages of their own.  On the board
 * stands for each cell
 *	stored	  what its owner stored last, or was about to,
 *	accepted  the last that a flush has carried which returned 0,
 *	refused	  the last that vanished because the server refused them: the owner saw an older value again.
 * Whatever anybody on any host finds in a cell, and what the server has, must be at least what was
 * accepted before the look, at most what was stored after it, and nothing that was refused before.
 *
 * An owner knows more: what it stored is there, unless it vanished, and then the next flush must say so;
 * and after a flush that returned 0 the server has it.
 *
 * Some words belong to nobody: whoever stores there stores eight equal bytes that differ from those that
 * were there, so a word of unequal bytes is one that nobody stored.
 *
 * Lines of the log: `appended` is in it, once; `refused` never; what was under way when its writer was killed,
 * at most once; an owner's lines are in order.
 *
 * host: keep WRITERS writers running, killing one now and then, until `stop`.  REFUSED is the sum of 1,
 * if the server may refuse this host's changes of `free` and `log`, and 2 for `deny`; otherwise any
 * error is a failure.  A writer that makes no progress for STUCK seconds is one, too.
 */
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

#include "team.h"

enum {
	HOSTS = 4,
	WRITERS = 3,
	OWNERS = HOSTS * WRITERS,
	LANES = 16, /* words of a group: one an owner, the rest are nobody's */
	WORDS = PAGE / 8,
	SHARED_PAGES = 6,
	OWN_PAGES = 2,
	SHARED_CELLS = SHARED_PAGES * WORDS / LANES,
	CELLS = SHARED_CELLS + OWN_PAGES * WORDS, /* of an owner in a file */
	FILES = 2,
	FILE_PAGES = SHARED_PAGES + OWNERS * OWN_PAGES,
	REFUSALS = 8,    /* that are remembered of a cell */
	LINES = 1 << 16, /* of an owner */
	BLOCK = 700,     /* words that one pwrite stores, at most */
	OPS = 32,        /* last ones that are remembered */
	STUCK = 300,
};

enum what { OPEN, STORE, WRITE, BLOCKS, FLUSH, APPEND, LOOK, PREAD, SHARE };
static const char *const what_name[] = {"open",           "store", "pwrite",
					"pwrite of many", "flush", "append",
					"look",           "pread", "store to a shared word"};

/* All values above `above` up to `to`. */
struct refusal {
	uint64_t above, to;
};

struct cell {
	_Atomic uint64_t accepted, stored;
	_Atomic unsigned nrefused; /* the nth is in refused[n % REFUSALS] */
	struct refusal refused[REFUSALS];
};

struct op {
	double at;
	enum what what;
	unsigned file, cell;
	uint64_t value;
	int result; /* INT32_MIN: under way */
	int err;
};

struct owner {
	_Atomic uint64_t values; /* used up */
	_Atomic unsigned lives, ops, lines;
	_Atomic unsigned accepted, refused, flushes, errors, bus;
	struct op op[OPS];
	_Atomic uint8_t line[LINES];
	struct cell cell[FILES][CELLS];
};
enum line { NONE, UNDER_WAY, APPENDED, REFUSED };

struct board {
	struct team team;
	_Atomic bool stop;
	struct owner owner[OWNERS];
};

static const char *const file_name[FILES] = {"free", "deny"};
static struct board *b;
static struct owner *my;
static unsigned me, refusals;
static uint64_t seed, state;

static double clock_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static unsigned cell_word(unsigned owner, unsigned cell)
{
	if (cell < SHARED_CELLS)
		return cell * LANES + owner;
	return (SHARED_PAGES + owner * OWN_PAGES) * WORDS + cell - SHARED_CELLS;
}

static bool may_refuse(unsigned file)
{
	return refusals & 1u << file;
}

/* ---- what went wrong ---- */

static void show_ops(unsigned owner)
{
	struct owner *o = &b->owner[owner];
	unsigned n = atomic_load(&o->ops);

	printf("last of writer %u on host %c, life %u:\n", owner % WRITERS, 'A' + owner / WRITERS,
	       atomic_load(&o->lives));
	for (unsigned i = n > OPS ? n - OPS : 0; i < n; i++) {
		const struct op *p = &o->op[i % OPS];
		time_t t = (time_t)p->at;
		struct tm tm;
		localtime_r(&t, &tm);
		printf("  %02d:%02d:%06.3f %s %s cell %u value %" PRIx64 ": ", tm.tm_hour,
		       tm.tm_min, tm.tm_sec + p->at - (double)t, what_name[p->what],
		       p->what == APPEND ? "log" : file_name[p->file], p->cell, p->value);
		if (p->result == INT32_MIN)
			printf("under way\n");
		else
			printf("%d%s%s\n", p->result, p->result < 0 ? " " : "",
			       p->result < 0 ? strerrorname_np(p->err) : "");
	}
}

/* Only the first failure is shown, and ends all. */
static _Noreturn void fail(unsigned owner, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void fail(unsigned owner, const char *fmt, ...)
{
	va_list ap;

	if (atomic_fetch_add(&b->team.failed, 1))
		_exit(3);
	printf("seed %" PRIu64 ", writer %u on host %c: ", seed, me % WRITERS, 'A' + me / WRITERS);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	show_ops(owner);
	if (owner != me && my)
		show_ops(me);
	fflush(stdout);
	_exit(1);
}

static _Noreturn void fail_cell(unsigned file, unsigned owner, unsigned cell, const char *how,
				uint64_t got, const char *why)
{
	const struct cell *c = &b->owner[owner].cell[file][cell];
	unsigned w = cell_word(owner, cell), n = atomic_load(&c->nrefused);
	char text[512] = "none";
	int at = 0;

	for (unsigned i = n >= REFUSALS ? n - REFUSALS + 1 : 0; i < n; i++)
		at += snprintf(text + at, sizeof(text) - (size_t)at,
			       "%sabove %" PRIx64 " to %" PRIx64, at ? ", " : "",
			       c->refused[i % REFUSALS].above, c->refused[i % REFUSALS].to);
	fail(owner,
	     "%s: cell %u of writer %u on host %c (%s page %u word %u) is %" PRIx64
	     ": %s; accepted "
	     "%" PRIx64 ", stored %" PRIx64 ", refused: %s",
	     how, cell, owner % WRITERS, 'A' + owner / WRITERS, file_name[file], w / WORDS,
	     w % WORDS, got, why, atomic_load(&c->accepted), atomic_load(&c->stored), text);
}

static struct op *op_begin(enum what what, unsigned file, unsigned cell, uint64_t value)
{
	struct op *p = &my->op[atomic_load(&my->ops) % OPS];

	*p = (struct op){clock_time(), what, file, cell, value, INT32_MIN, 0};
	atomic_fetch_add(&my->ops, 1);
	return p;
}

static void op_end(struct op *p, long result)
{
	p->err = errno;
	p->result = (int)result;
}

/* Errors that the server's no may cause. */
static void refused_rightly(unsigned file, const char *what)
{
	static const int no[] = {EACCES, EPERM, EKEYREVOKED, EKEYREJECTED, EKEYEXPIRED, EIO};

	atomic_fetch_add(&my->errors, 1);
	if (may_refuse(file))
		for (unsigned i = 0; i < sizeof(no) / sizeof(no[0]); i++)
			if (errno == no[i])
				return;
	fail(me, "%s of %s: %s", what, file_name[file], strerrorname_np(errno));
}

/* ---- loads and stores that may meet SIGBUS ---- */

static sigjmp_buf on_bus;
static volatile sig_atomic_t guarded;

static void bus(int sig)
{
	if (guarded)
		siglongjmp(on_bus, 1);
	signal(sig, SIG_DFL);
}

static bool load(const volatile uint64_t *p, uint64_t *v)
{
	if (sigsetjmp(on_bus, 1)) {
		guarded = 0;
		return false;
	}
	guarded = 1;
	*v = *p;
	guarded = 0;
	return true;
}

static bool store(volatile uint64_t *p, uint64_t v)
{
	if (sigsetjmp(on_bus, 1)) {
		guarded = 0;
		return false;
	}
	guarded = 1;
	*p = v;
	guarded = 0;
	return true;
}

static void met_bus(unsigned file, const char *what)
{
	atomic_fetch_add(&my->bus, 1);
	if (!may_refuse(file))
		fail(me, "SIGBUS: %s in %s", what, file_name[file]);
	pause_us(10000); /* it will not be otherwise at once */
}

/* ---- files ---- */

static struct file {
	int fd, back;
	volatile uint64_t *m;
	uint64_t known[CELLS]; /* what this life stored last and has not seen vanish; 0: nothing */
	unsigned pending[CELLS], npending; /* stored since a flush returned 0; each once */
	bool is_pending[CELLS];
	bool excused[CELLS]; /* could not be seen when a flush said that something vanished */
	bool owed;           /* something vanished: the next flush must say so */
} files[FILES];
static int log_fd;

static int open_in(const char *dir, const char *name, int flags)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return open(path, flags);
}

/* The server may refuse to let us in just now. */
static int open_patiently(const char *dir, unsigned file, const char *name, int flags)
{
	double since = now();
	int fd;

	for (;;) {
		struct op *p = op_begin(OPEN, file, 0, 0);
		fd = open_in(dir, name, flags);
		op_end(p, fd);
		if (fd >= 0)
			return fd;
		refused_rightly(file, "open");
		team_wait(&b->team, since, "being let in");
		pause_us(10000);
	}
}

static uint64_t server_word(unsigned file, unsigned word)
{
	uint64_t v;

	if (pread(files[file].back, &v, 8, (off_t)word * 8) != 8)
		err(1, "pread of the server's file");
	return v;
}

/* ---- the model ---- */

struct bounds {
	uint64_t accepted;
	unsigned first, end; /* of refused */
	struct refusal refused[REFUSALS];
};

static struct bounds before(const struct cell *c)
{
	struct bounds is = {.accepted = atomic_load(&c->accepted),
			    .end = atomic_load(&c->nrefused)};
	unsigned n;

	memcpy(is.refused, c->refused, sizeof(is.refused));
	atomic_thread_fence(memory_order_seq_cst);
	n = atomic_load(&c->nrefused);
	/* What its owner has overwritten meanwhile, or is overwriting, is no use. */
	is.first = n >= REFUSALS ? n - REFUSALS + 1 : 0;
	return is;
}

static const char *illegal(unsigned owner, const struct cell *c, struct bounds was, uint64_t v)
{
	if (v < was.accepted)
		return "a store that was accepted is lost";
	if (v > atomic_load(&c->stored))
		return "nobody stored that";
	if (v && (v & 0xff) != owner + 1)
		return "another owner's";
	for (unsigned i = was.first; i < was.end; i++)
		if (v > was.refused[i % REFUSALS].above && v <= was.refused[i % REFUSALS].to)
			return "a store that was refused is back";
	return NULL;
}

/* A random cell of anybody, as this host sees it or as the server has it. */
static void look(void)
{
	unsigned file = pick(&state, FILES), owner = pick(&state, OWNERS), how = pick(&state, 3);
	unsigned cell = pick(&state, 2) ? pick(&state, CELLS) : pick(&state, SHARED_CELLS);
	const struct cell *c = &b->owner[owner].cell[file][cell];
	struct op *p = op_begin(how == 1 ? PREAD : LOOK, file, cell, 0);
	unsigned w = cell_word(owner, cell);
	struct bounds was = before(c);
	uint64_t v = 0;
	const char *why;

	if (how == 0 && !load(&files[file].m[w], &v)) {
		met_bus(file, "a load");
		return;
	}
	if (how == 1 && pread(files[file].fd, &v, 8, (off_t)w * 8) != 8) {
		op_end(p, -1);
		refused_rightly(file, "pread");
		return;
	}
	if (how == 2)
		v = server_word(file, w);
	p->value = v;
	op_end(p, 0);
	why = illegal(owner, c, was, v);
	if (why)
		fail_cell(file, owner, cell,
			  how == 0   ? "load"
			  : how == 1 ? "pread"
				     : "at the server",
			  v, why);
}

static void refuse(unsigned file, unsigned cell, uint64_t there)
{
	struct file *f = &files[file];
	struct cell *c = &my->cell[file][cell];
	unsigned n = atomic_load(&c->nrefused);

	c->refused[n % REFUSALS] = (struct refusal){there, f->known[cell]};
	atomic_store(&c->nrefused, n + 1);
	f->known[cell] = there;
	atomic_fetch_add(&my->refused, 1);
}

/* An own cell is what was last stored to it, or it has vanished: see which.  False: cannot be seen now. */
static bool see(unsigned file, unsigned cell, const char *when)
{
	struct file *f = &files[file];
	struct cell *c = &my->cell[file][cell];
	struct bounds was = before(c);
	const char *why;
	uint64_t v;

	if (!load(&f->m[cell_word(me, cell)], &v)) {
		met_bus(file, "a load of an own cell");
		return false;
	}
	if (!f->known[cell]) {
		why = illegal(me, c, was, v);
		if (why)
			fail_cell(file, me, cell, when, v, why);
		return true;
	}
	if (v == f->known[cell]) {
		f->excused[cell] = false;
		return true;
	}
	if (!may_refuse(file))
		fail_cell(file, me, cell, when, v, "the owner's store is not there");
	if (v > f->known[cell])
		fail_cell(file, me, cell, when, v, "newer than the owner's store");
	why = illegal(me, c, was, v);
	if (why)
		fail_cell(file, me, cell, when, v, why);
	refuse(file, cell, v);
	f->owed |= !f->excused[cell];
	f->excused[cell] = false;
	return true;
}

static uint64_t fresh(unsigned file, unsigned cell)
{
	uint64_t v = (atomic_fetch_add(&my->values, 1) + 1) << 8 | (me + 1);

	atomic_store(&my->cell[file][cell].stored, v);
	return v;
}

static void stored(unsigned file, unsigned cell, uint64_t v)
{
	struct file *f = &files[file];

	f->known[cell] = v;
	if (!f->is_pending[cell]) {
		f->is_pending[cell] = true;
		f->pending[f->npending++] = cell;
	}
}

static void store_one(unsigned file, bool by_write)
{
	unsigned cell = pick(&state, 2) ? pick(&state, CELLS) : pick(&state, SHARED_CELLS);
	unsigned w = cell_word(me, cell);
	struct op *p;
	uint64_t v;
	bool there;

	if (!see(file, cell, "before a store"))
		return;
	v = fresh(file, cell);
	p = op_begin(by_write ? WRITE : STORE, file, cell, v);
	if (by_write) {
		there = pwrite(files[file].fd, &v, 8, (off_t)w * 8) == 8;
		op_end(p, there ? 8 : -1);
		if (!there)
			refused_rightly(file, "pwrite");
	} else {
		there = store(&files[file].m[w], v);
		op_end(p, there ? 0 : 1);
		if (!there)
			met_bus(file, "a store");
	}
	if (there)
		stored(file, cell, v);
}

static void store_block(unsigned file)
{
	static uint64_t v[BLOCK];
	unsigned n = 1 + pick(&state, BLOCK);
	unsigned cell = SHARED_CELLS + pick(&state, CELLS - SHARED_CELLS - n + 1);
	struct op *p;
	ssize_t r;

	for (unsigned i = 0; i < n; i++) {
		if (!see(file, cell + i, "before a write"))
			return;
		v[i] = fresh(file, cell + i);
	}
	p = op_begin(BLOCKS, file, cell, v[0]);
	r = pwrite(files[file].fd, v, n * 8, (off_t)cell_word(me, cell) * 8);
	op_end(p, r);
	if (r < (ssize_t)n * 8 && r >= 0 && !may_refuse(file))
		fail(me, "pwrite of %u bytes wrote %zd", n * 8, r);
	if (r < 0)
		refused_rightly(file, "pwrite");
	for (unsigned i = 0; r > 0 && i < (unsigned)r / 8; i++)
		stored(file, cell + i, v[i]);
}

/*
 * What is pending is accepted or has vanished, also if an error is told.  (But for EIO: then the pages
 * that it was about have vanished, and others are still to be flushed.)  What cannot be seen just now
 * stays pending.
 */
static int flush(unsigned file)
{
	struct file *f = &files[file];
	unsigned how = pick(&state, 3), left = 0;
	struct op *p = op_begin(FLUSH, file, f->npending, how);
	bool owed = f->owed;
	int r = how == 0   ? fsync(f->fd)
		: how == 1 ? fdatasync(f->fd)
			   : msync((void *)(uintptr_t)f->m, FILE_PAGES * PAGE, MS_SYNC);

	op_end(p, r);
	atomic_fetch_add(&my->flushes, 1);
	if (r)
		refused_rightly(file, "flush");
	else if (owed)
		fail(me, "stores to %s vanished, and the flush after that returned 0",
		     file_name[file]);
	f->owed = false;
	for (unsigned i = 0; i < f->npending; i++) {
		unsigned cell = f->pending[i];
		uint64_t want = f->known[cell];
		bool seen = see(file, cell, r ? "after a refused flush" : "after a flush");
		uint64_t at_server = server_word(file, cell_word(me, cell));

		if (seen && f->known[cell] != want) { /* gone, and a flush has said so */
			if (r == 0 && f->owed)
				fail_cell(file, me, cell, "after a flush that returned 0",
					  f->known[cell], "the owner's store has vanished");
			if (at_server != f->known[cell])
				fail_cell(file, me, cell, "at the server after a refused flush",
					  at_server, "what is seen here is another value");
			f->is_pending[cell] = false;
		} else if (r == 0 && !(f->excused[cell] && !seen)) {
			if (at_server != want)
				fail_cell(file, me, cell, "at the server after a flush", at_server,
					  "the owner's store is not there");
			atomic_store(&my->cell[file][cell].accepted, want);
			atomic_fetch_add(&my->accepted, 1);
			f->is_pending[cell] = false;
		} else {
			if (seen && at_server != want && p->err != EIO)
				fail_cell(file, me, cell, "at the server after a refused flush",
					  at_server, "the owner's store is neither there nor gone");
			f->excused[cell] |= r && !seen;
			f->pending[left++] = cell;
		}
	}
	f->npending = left;
	f->owed = false;
	return r;
}

static void append_line(void)
{
	static char line[LINE_MAX_LEN];
	unsigned n = atomic_fetch_add(&my->lines, 1) + 1;
	struct op *p;
	ssize_t r;

	if (n >= LINES)
		return;
	size_t len = line_make(line, me, n);
	p = op_begin(APPEND, 0, n, len);
	atomic_store(&my->line[n], UNDER_WAY);
	r = write(log_fd, line, len);
	op_end(p, r);
	if (r == (ssize_t)len)
		atomic_store(&my->line[n], APPENDED);
	else if (r >= 0)
		fail(me, "append of %zu wrote %zd", len, r);
	else
		refused_rightly(0, "append");
	if (r < 0)
		atomic_store(&my->line[n], REFUSED);
}

/* A word that is nobody's. */
static void share(unsigned file)
{
	unsigned w = OWNERS + pick(&state, LANES - OWNERS) + LANES * pick(&state, SHARED_CELLS);
	volatile uint64_t *word = &files[file].m[w];
	struct op *p = op_begin(SHARE, file, w, 0);
	uint64_t v;

	if (!load(word, &v)) {
		met_bus(file, "a load of a shared word");
		return;
	}
	p->value = v;
	if (v != (v & 0xff) * 0x0101010101010101u)
		fail(me,
		     "%s page %u word %u, which is nobody's, is %" PRIx64 ": nobody stored that",
		     file_name[file], w / WORDS, w % WORDS, v);
	if (pick(&state, 2) &&
	    !store(word, (1 + ((v & 0xff) + pick(&state, 254)) % 255) * 0x0101010101010101u))
		met_bus(file, "a store to a shared word");
	op_end(p, 0);
}

/* ---- writers ---- */

static _Noreturn void writer(const char *dir, const char *back)
{
	struct sigaction sa = {.sa_handler = bus};

	sigaction(SIGBUS, &sa, NULL);
	state = sequence(seed, me, atomic_load(&my->lives));
	for (unsigned i = 0; i < FILES; i++) {
		files[i].fd = open_patiently(dir, i, file_name[i], O_RDWR);
		files[i].m = map_file(files[i].fd, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE);
		files[i].back = open_in(back, file_name[i], O_RDONLY);
		if (files[i].back < 0)
			err(1, "%s/%s", back, file_name[i]);
	}
	log_fd = open_patiently(dir, 0, "log", O_WRONLY | O_APPEND);
	while (!atomic_load(&b->stop)) {
		unsigned file = pick(&state, FILES), percent = pick(&state, 1000);
		if (atomic_load(&b->team.failed))
			_exit(3);
		if (percent < 350)
			store_one(file, false);
		else if (percent < 400)
			store_one(file, true);
		else if (percent < 408)
			store_block(file);
		else if (percent < 428)
			flush(file);
		else if (percent < 436)
			append_line();
		else if (percent < 476)
			share(file);
		else if (percent < 480)
			pause_us(pick(&state, 20000)); /* and others */
		else
			look();
	}
	/* Nothing is refused any more, but what was has perhaps not been told yet. */
	for (unsigned i = 0; i < FILES; i++)
		for (unsigned tries = 0; flush(i) || files[i].npending; tries++)
			if (tries == 5)
				fail(me, "%u stores to %s cannot be flushed", files[i].npending,
				     file_name[i]);
	_exit(0);
}

static pid_t life(const char *dir, const char *back, unsigned owner)
{
	pid_t pid;

	atomic_fetch_add(&b->owner[owner].lives, 1);
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		me = owner;
		my = &b->owner[owner];
		writer(dir, back);
	}
	return pid;
}

/* Whether a writer is well, which is running, or ended as told, if it was told (and then wait for it). */
static bool is_well(pid_t *pid, bool wait)
{
	int status;
	pid_t r = *pid ? waitpid(*pid, &status, wait ? 0 : WNOHANG) : 0;

	if (r < 0)
		err(1, "waitpid");
	if (r == 0)
		return true;
	*pid = 0;
	if (status == 0 && atomic_load(&b->stop))
		return true;
	if (WIFSIGNALED(status) && !atomic_fetch_add(&b->team.failed, 1)) {
		printf("seed %" PRIu64 ": a writer was ended by SIG%s\n", seed,
		       sigabbrev_np(WTERMSIG(status)));
		for (unsigned i = 0; i < WRITERS; i++)
			show_ops(me + i);
	}
	return false;
}

static int host(char **a)
{
	unsigned base = (unsigned)atoi(a[3]) % HOSTS * WRITERS, seen_ops[WRITERS] = {0}, kills = 0;
	double moved[WRITERS], next;
	uint64_t moments;
	pid_t pid[WRITERS];

	b = board_map(a[2], sizeof(*b));
	refusals = (unsigned)atoi(a[4]);
	seed = strtoull(a[5], NULL, 0);
	moments = sequence(seed, 100 + base, 0);
	me = base;
	for (unsigned i = 0; i < WRITERS; i++) {
		pid[i] = life(a[0], a[1], base + i);
		moved[i] = now();
	}
	next = now() + pick(&moments, 1000) / 1e3;
	while (!atomic_load(&b->stop) && !atomic_load(&b->team.failed)) {
		pause_us(5000);
		for (unsigned i = 0; i < WRITERS; i++) {
			unsigned ops = atomic_load(&b->owner[base + i].ops);
			if (!is_well(&pid[i], false))
				return 1;
			if (ops != seen_ops[i]) {
				seen_ops[i] = ops;
				moved[i] = now();
			} else if (now() > moved[i] + STUCK) {
				me = base + i;
				fail(base + i, "no progress for %d seconds", STUCK);
			}
		}
		if (now() < next || atomic_load(&b->stop))
			continue;
		unsigned i = pick(&moments, WRITERS);
		kill(pid[i], SIGKILL);
		if (waitpid(pid[i], NULL, 0) != pid[i])
			err(1, "waitpid");
		kills++;
		pid[i] = life(a[0], a[1], base + i);
		moved[i] = now();
		next = now() + pick(&moments, 1000) / 1e3;
	}
	for (unsigned i = 0; i < WRITERS; i++)
		if (atomic_load(&b->team.failed) && pid[i])
			kill(pid[i], SIGKILL);
		else if (!is_well(&pid[i], true))
			return 1;
	printf("host %c: %u writers killed\n", 'A' + base / WRITERS, kills);
	return atomic_load(&b->team.failed) != 0;
}

/* ---- the end ---- */

/* What killed writers left; whatever was refused has been told to them or to nobody. */
static int flush_all(char **a)
{
	for (unsigned i = 0; i < FILES; i++) {
		int fd = open_in(a[0], file_name[i], O_RDWR);
		if (fd < 0)
			err(1, "%s/%s", a[0], file_name[i]);
		if (fsync(fd) && fsync(fd))
			err(1, "flush of %s", file_name[i]);
		close(fd);
	}
	return 0;
}

static int verify(char **a)
{
	FILE *out = fopen(a[3], "w");
	unsigned wrong = 0;

	b = board_map(a[2], sizeof(*b));
	if (!out)
		err(1, "%s", a[3]);
	for (unsigned i = 0; i < FILES; i++) {
		int fd = open_in(a[0], file_name[i], O_RDONLY);
		int back = open_in(a[1], file_name[i], O_RDONLY);
		if (fd < 0 || back < 0)
			err(1, "%s", file_name[i]);
		const volatile uint64_t *m = map_file(fd, FILE_PAGES * PAGE, PROT_READ);
		const uint64_t *s = map_file(back, FILE_PAGES * PAGE, PROT_READ);
		for (unsigned w = 0; w < FILE_PAGES * WORDS; w++) {
			uint64_t v = m[w];
			fprintf(out, "%s page %u word %u: %" PRIx64 "\n", file_name[i], w / WORDS,
				w % WORDS, v);
			if (v != s[w] && wrong++ < 10)
				warnx("%s page %u word %u is %" PRIx64 " here and %" PRIx64
				      " at the server",
				      file_name[i], w / WORDS, w % WORDS, v, s[w]);
			if (w < SHARED_PAGES * WORDS && w % LANES >= OWNERS &&
			    v != (v & 0xff) * 0x0101010101010101u && wrong++ < 10)
				warnx("%s page %u word %u is %" PRIx64 ", which nobody stored",
				      file_name[i], w / WORDS, w % WORDS, v);
		}
		for (unsigned o = 0; o < OWNERS; o++)
			for (unsigned c = 0; c < CELLS; c++) {
				const struct cell *cell = &b->owner[o].cell[i][c];
				uint64_t v = m[cell_word(o, c)];
				if (illegal(o, cell, before(cell), v)) {
					me = o;
					fail_cell(i, o, c, "in the end", v,
						  illegal(o, cell, before(cell), v));
				}
			}
	}
	if (fclose(out))
		err(1, "%s", a[3]);
	return wrong != 0;
}

static bool in_order(unsigned who, unsigned n, void *arg)
{
	unsigned *last = arg;

	if (who >= OWNERS || n >= LINES || n <= last[who] ||
	    atomic_load(&b->owner[who].line[n]) == NONE) {
		warnx("writer %u: line %u comes after line %u", who, n,
		      who < OWNERS ? last[who] : 0);
		return false;
	}
	if (atomic_load(&b->owner[who].line[n]) == REFUSED) {
		warnx("writer %u: line %u was refused and is there", who, n);
		return false;
	}
	for (unsigned i = last[who] + 1; i < n; i++)
		if (atomic_load(&b->owner[who].line[i]) == APPENDED) {
			warnx("writer %u: line %u is lost", who, i);
			return false;
		}
	last[who] = n;
	return true;
}

static int log_mode(char **a)
{
	unsigned last[OWNERS] = {0};
	int fd = open_in(a[0], "log", O_RDONLY);

	b = board_map(a[1], sizeof(*b));
	if (fd < 0)
		err(1, "%s/log", a[0]);
	if (!lines_read(fd, in_order, last))
		return 1;
	for (unsigned o = 0; o < OWNERS; o++)
		for (unsigned n = last[o] + 1; n < LINES; n++)
			if (atomic_load(&b->owner[o].line[n]) == APPENDED)
				errx(1, "writer %u: line %u is lost", o, n);
	return 0;
}

static int stop(char **a)
{
	b = board_map(a[0], sizeof(*b));
	atomic_store(&b->stop, true);
	return 0;
}

static int failed(char **a)
{
	b = board_map(a[0], sizeof(*b));
	return atomic_load(&b->team.failed) == 0;
}

/* Numbers, so that one sees what was tried. */
static int told(char **a)
{
	uint64_t sum[8] = {0};

	b = board_map(a[0], sizeof(*b));
	for (unsigned i = 0; i < OWNERS; i++) {
		const struct owner *o = &b->owner[i];
		sum[0] += atomic_load(&o->values);
		sum[1] += atomic_load(&o->flushes);
		sum[2] += atomic_load(&o->accepted);
		sum[3] += atomic_load(&o->refused);
		sum[4] += atomic_load(&o->errors);
		sum[5] += atomic_load(&o->bus);
		sum[6] += atomic_load(&o->lines);
		sum[7] += atomic_load(&o->lives);
	}
	printf("%" PRIu64 " stores, %" PRIu64 " flushes, %" PRIu64 " accepted, %" PRIu64
	       " refused, %" PRIu64 " errors, %" PRIu64 " SIGBUS, %" PRIu64 " lines, %" PRIu64
	       " lives of writers\n",
	       sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]);
	return 0;
}

static int size(char **a)
{
	(void)a;
	printf("%d\n", FILE_PAGES * PAGE);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		int (*fn)(char **);
	} mode[] = {
	    {"host", 6, host}, {"flush", 1, flush_all}, {"verify", 4, verify}, {"log", 2, log_mode},
	    {"stop", 1, stop}, {"failed", 1, failed},   {"told", 1, told},     {"size", 0, size},
	};

	for (unsigned i = 0; i < sizeof(mode) / sizeof(mode[0]); i++)
		if (argc == mode[i].args + 2 && strcmp(argv[1], mode[i].name) == 0)
			return mode[i].fn(argv + 2);
	errx(2, "see the head of soak.c for what to say");
}
