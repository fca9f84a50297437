/* SPDX-License-Identifier: MIT */
/*
 * agent_probe SOCKET ADDR VOLUME FILE TEST - speaks agent.h by itself, without the library: the
 * things that a library in good order never does.
 *
 *	path	attach, open, fault, map, dirty, flush, and see it flushed
 *	stuck	dirty a page and hold its slot for ever: a flush ends all the same
 *	still	the same, and have the page moved by COLLAPSE_RANGE: EBUSY, in the end
 *	deaf	map the file, never answer strip orders: prints "mapped", waits for a line, then for
 *		the page to be taken away
 *	punch	punch and truncate what the agent gave us, under a dirty page
 *	words	write random page words and header fields, ask for everything meanwhile
 *	noise	random requests, well-formed and not, until the agent hangs up, many times
 *
 * FILE is relative to the volume and has at least 16 pages.  Exit 0 if what should hold, holds.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <refault/agent.h>
#include <refault/state.h>
#include <refault/uffd.h>

enum { PAGES = 16, WAIT_MS = 100000 };

struct probe {
	int sock, uffd, strip; /* strip: the stripper's end */
	uint32_t id;
	struct rf_proc *proc;
	struct rf_host *host;
	struct rf_twins *twins;
	uint32_t vnode;
	int data, state;
	struct rf_vnode *st;
	rf_word *word;
	char *map;
	uint32_t twin;
};

static uint64_t seed;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* ---- packets ---- */

static int send_fds(int sock, const void *buf, size_t len, const int *fd, unsigned n)
{
	char ctl[CMSG_SPACE(4 * sizeof(int))] = {0};
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n) {
		m.msg_control = ctl;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fd, n * sizeof(int));
	}
	return sendmsg(sock, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static ssize_t recv_fds(int sock, void *buf, size_t len, int *fd, unsigned n)
{
	char ctl[CMSG_SPACE(4 * sizeof(int))];
	struct iovec iov = {buf, len};
	struct msghdr m = {
	    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl)};
	ssize_t r = recvmsg(sock, &m, 0);
	struct cmsghdr *c = r > 0 ? CMSG_FIRSTHDR(&m) : NULL;

	for (unsigned i = 0; i < n; i++)
		fd[i] = -1;
	if (c)
		memcpy(fd, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	return r;
}

__attribute__((returns_nonnull)) static void *map_fd(int fd, size_t len, int prot)
{
	struct stat st;
	void *p;

	if (!len && fstat(fd, &st))
		err(1, "fstat");
	p = mmap(NULL, len ? len : (size_t)st.st_size, prot, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		err(1, "mmap");
	return p;
}

static int agent_connect(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(sa.sun_path, path, sizeof(sa.sun_path) - 1);
	if (s < 0 || connect(s, (struct sockaddr *)&sa, sizeof(sa)))
		err(1, "%s", path);
	return s;
}

static int attach(struct probe *p, const char *path)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = RF_UFFD_FEATURES | UFFD_FEATURE_SIGBUS};
	struct rf_req q = {.op = RF_OP_ATTACH, .version = RF_AGENT_VERSION};
	struct rf_attach_r r;
	int sp[2], fd[4];

	p->sock = agent_connect(path);
	p->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (p->uffd < 0 || ioctl(p->uffd, UFFDIO_API, &api) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sp))
		err(1, "userfaultfd");
	p->strip = sp[0];
	if (send_fds(p->sock, &q, sizeof(q), (int[]){p->uffd, sp[1]}, 2))
		err(1, "ATTACH");
	close(sp[1]);
	if (recv_fds(p->sock, &r, sizeof(r), fd, 4) != sizeof(r))
		errx(1, "ATTACH was not answered");
	if (r.err) {
		fprintf(stderr, "ATTACH: %s\n", r.text);
		return r.err;
	}
	p->id = r.proc_id;
	p->proc = map_fd(fd[0], 0, PROT_READ | PROT_WRITE);
	p->host = map_fd(fd[1], 0, PROT_READ);
	p->twins = map_fd(fd[2], 0, PROT_READ | PROT_WRITE);
	if (p->proc->magic != RF_MAGIC_PROC || p->host->magic != RF_MAGIC_HOST ||
	    p->twins->magic != RF_MAGIC_TWINS)
		errx(1, "wrong magic");
	if (mprotect(p->host, 4096, PROT_READ | PROT_WRITE) == 0)
		errx(1, "the host page can be made writable");
	for (int i = 0; i < 3; i++)
		close(fd[i]);
	return 0;
}

static int open_file(struct probe *p, const char *addr, const char *vol, const char *file)
{
	char buf[4096];
	struct rf_req *q = (void *)buf;
	struct rf_open *o = (void *)(q + 1);
	char *s = (char *)(o + 1);
	struct rf_open_r r;
	int sp[2], fd[4];

	memset(buf, 0, sizeof(*q) + sizeof(*o));
	q->op = RF_OP_OPEN;
	q->version = RF_AGENT_VERSION;
	q->cell = RF_CELLS;
	o->flags = RF_OPEN_READ | RF_OPEN_WRITE;
	o->addr_len = (uint16_t)strlen(addr);
	o->name_len = (uint16_t)strlen(vol);
	o->path_len = (uint16_t)strlen(file);
	s += sprintf(s, "%s%s%s", addr, vol, file);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sp) ||
	    send_fds(p->sock, buf, (size_t)(s - buf), &sp[1], 1))
		err(1, "OPEN");
	close(sp[1]);
	if (recv_fds(sp[0], &r, sizeof(r), fd, 4) != sizeof(r))
		errx(1, "OPEN was not answered");
	close(sp[0]);
	if (r.err) {
		fprintf(stderr, "OPEN: %s (%s)\n", strerror(-r.err), r.text);
		return r.err;
	}
	p->vnode = r.vnode;
	p->data = fd[0];
	p->state = fd[1];
	p->st = map_fd(p->state, 0, PROT_READ | PROT_WRITE);
	p->word = rf_vnode_words(p->st);
	if (p->st->magic != RF_MAGIC_VNODE || p->st->id != p->vnode)
		errx(1, "wrong vnode header");
	return 0;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* One request in cell 0.  -ETIME: no answer. */
static int ask_op(struct probe *p, uint32_t op, uint64_t a0, uint64_t a1, uint64_t a2)
{
	struct rf_cell *c = &p->proc->cell[0];
	struct rf_req q = {
	    .op = op, .version = RF_AGENT_VERSION, .vnode = p->vnode, .arg = {a0, a1, a2}};
	struct timespec t = {0, 100000000};
	uint64_t end = now_ms() + WAIT_MS;

	atomic_store(&p->proc->cells_used, 1);
	q.seq = atomic_fetch_add(&c->seq, 1) + 1;
	atomic_store(&c->state, RF_CELL_BUSY);
	if (send_fds(p->sock, &q, sizeof(q), NULL, 0))
		return -EPIPE;
	while (atomic_load(&c->state) != RF_CELL_DONE) {
		if (now_ms() > end)
			return -ETIME;
		syscall(SYS_futex, &c->state, FUTEX_WAIT, RF_CELL_BUSY, &t, NULL, 0);
	}
	return atomic_load(&c->err);
}

/* ---- what the library does, bare ---- */

static void map_file(struct probe *p)
{
	struct rf_map *m = &p->proc->map[0];

	p->map = mmap(NULL, PAGES * RF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, p->data, 0);
	if (p->map == MAP_FAILED ||
	    rf_uffd_register(p->uffd, (uintptr_t)p->map, PAGES * RF_PAGE_SIZE, RF_UFFD_MODES))
		err(1, "mmap of the cache");
	atomic_fetch_add(&p->proc->map_seq, 1);
	atomic_store(&m->start, (uintptr_t)p->map);
	atomic_store(&m->end, (uintptr_t)p->map + PAGES * RF_PAGE_SIZE);
	atomic_store(&m->vnode, p->vnode);
	atomic_store(&m->flags, RF_MAP_SHARED | RF_MAP_WRITE);
	atomic_store(&p->proc->nmaps, 1);
	atomic_fetch_add(&p->proc->map_seq, 1);
	atomic_store(&p->st->mappings, 1);
}

static void claim(struct probe *p, uint64_t page)
{
	atomic_store(&p->proc->slots_used, 1);
	atomic_store(&p->proc->slot[0].claim, rf_claim(p->vnode, page, 1));
	atomic_thread_fence(memory_order_seq_cst);
	while (atomic_load(&p->st->invalidate))
		usleep(100);
}

static void release(struct probe *p)
{
	atomic_store(&p->proc->slot[0].claim, 0);
}

static void need(int r, const char *what)
{
	if (r)
		errx(1, "%s: %s", what, strerror(-r));
}

static void *twin_page(struct probe *p, uint32_t i)
{
	return (char *)p->twins + rf_twins_pages_off(p->twins->n) + i * RF_PAGE_SIZE;
}

/* Page `page` DIRTY, with a writable page table entry. */
static void dirty(struct probe *p, uint64_t page)
{
	char *a = p->map + page * RF_PAGE_SIZE;
	uint64_t w = atomic_load(&p->word[page]);
	uint32_t i, z = 0;

	for (i = 1; !atomic_compare_exchange_strong(&p->twins->owner[i], &z, p->id); i++)
		z = 0;
	p->twin = i;
	if (pread(p->data, twin_page(p, i), RF_PAGE_SIZE, (off_t)(page * RF_PAGE_SIZE)) < 0)
		err(1, "pread of the cache");
	atomic_store(&p->st->dirtied, 1);
	if (rf_w_state(w) != RF_PG_UPTODATE ||
	    !atomic_compare_exchange_strong(
		&p->word[page], &w, rf_w_clean(w, RF_PG_DIRTY, 0) | (uint64_t)i << RF_W_TWIN_SHIFT))
		errx(1, "page %ju is not clean", (uintmax_t)page);
	need(rf_uffd_continue(p->uffd, (uintptr_t)a, RF_PAGE_SIZE, 0, NULL), "CONTINUE");
}

/* ---- tests ---- */

static void test_path(struct probe *p)
{
	uint64_t twin;

	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	for (int i = 0; i < PAGES; i++)
		if (rf_w_state(p->word[i]) != RF_PG_UPTODATE)
			errx(1, "page %d is in state %d", i, rf_w_state(p->word[i]));
	if (ask_op(p, RF_OP_FAULT, 1 << 20, 1, 0) != -ENXIO)
		errx(1, "past the end of the file is not ENXIO");
	map_file(p);
	claim(p, 1);
	dirty(p, 1);
	twin = p->twin;
	release(p);
	memcpy(p->map + 4096 + 100, "probe", 5);
	need(ask_op(p, RF_OP_FLUSH, 0, 0, RF_FLUSH_DURABLE), "FLUSH");
	if (rf_w_state(p->word[1]) != RF_PG_UPTODATE || rf_w_twin(p->word[1]))
		errx(1, "flushed, but in state %d", rf_w_state(p->word[1]));
	if (atomic_load(&p->twins->owner[twin]))
		errx(1, "the twin was not freed");
	if (atomic_load(&p->st->dirtied) || atomic_load(&p->st->wb_inflight))
		errx(1, "flushed, but dirtied %u, in flight %u", p->st->dirtied,
		     p->st->wb_inflight);
	need(ask_op(p, RF_OP_FLUSH, 0, 0, RF_FLUSH_DURABLE), "FLUSH of nothing");
	need(ask_op(p, RF_OP_EXTEND, 100000, 0, 0), "EXTEND");
	if (p->st->i_size != 100000)
		errx(1, "extended to %ju", (uintmax_t)p->st->i_size);
	need(ask_op(p, RF_OP_SETSIZE, PAGES * RF_PAGE_SIZE, 0, 0), "SETSIZE");
	if (ask_op(p, RF_OP_FALLOC, FALLOC_FL_PUNCH_HOLE, 0, 4096) != -EOPNOTSUPP)
		errx(1, "a mode that there is not is not EOPNOTSUPP");
	p->vnode = 12345;
	if (ask_op(p, RF_OP_FAULT, 0, 1, 0) != -ESTALE)
		errx(1, "an unknown vnode is not ESTALE");
}

static void test_stuck(struct probe *p)
{
	uint64_t t;

	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	map_file(p);
	claim(p, 2);
	dirty(p, 2);
	memcpy(p->map + 2 * 4096, "stuck", 5);
	t = now_ms();
	need(ask_op(p, RF_OP_FLUSH, 0, 0, 0), "FLUSH");
	if (now_ms() - t > 60000)
		errx(1, "the flush took %ju ms", (uintmax_t)(now_ms() - t));
	if (rf_w_state(p->word[2]) != RF_PG_DIRTY)
		errx(1, "a page that is being used went clean");
	release(p);
	need(ask_op(p, RF_OP_FLUSH, 0, 0, 0), "FLUSH");
	if (rf_w_state(p->word[2]) != RF_PG_UPTODATE)
		errx(1, "let go of, flushed, but in state %d", rf_w_state(p->word[2]));
	/* And dies with a slot held and a twin taken. */
	claim(p, 3);
	dirty(p, 3);
	memcpy(p->map + 3 * 4096, "killed", 6);
	fflush(NULL);
	raise(SIGKILL);
}

static void test_still(struct probe *p)
{
	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	map_file(p);
	claim(p, 2);
	dirty(p, 2);
	memcpy(p->map + 2 * 4096, "still", 5);
	puts("asking");
	fflush(stdout);
	if (ask_op(p, RF_OP_FALLOC, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) != -EBUSY)
		errx(1, "a page that is being used is moved");
	if (atomic_load(&p->st->frozen))
		errx(1, "given up, but frozen");
	release(p);
	need(ask_op(p, RF_OP_FALLOC, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), "COLLAPSE");
	if (atomic_load(&p->st->frozen))
		errx(1, "done, but frozen");
	puts("moved");
}

static void test_deaf(struct probe *p)
{
	char line[8];

	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	map_file(p);
	need(rf_uffd_continue(p->uffd, (uintptr_t)p->map, PAGES * RF_PAGE_SIZE,
			      UFFDIO_CONTINUE_MODE_WP, NULL),
	     "CONTINUE");
	puts("mapped");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "no line");
	/* The pages that nobody stripped are taken out of the cache, and so of our page tables. */
	for (int i = 0; rf_w_state(p->word[5]) == RF_PG_UPTODATE &&
			lseek(p->data, 5 * 4096, SEEK_DATA) == 5 * 4096;
	     i++) {
		if (i == 6000)
			errx(1, "the old page is still there");
		usleep(10000);
	}
	puts("taken");
}

static void test_punch(struct probe *p)
{
	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	map_file(p);
	for (uint64_t i = 4; i < 8; i++) {
		claim(p, i);
		dirty(p, i);
		release(p);
		p->map[i * 4096] = 'x';
	}
	if (fallocate(p->data, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * 4096, 4096) ||
	    ftruncate(p->data, 5 * 4096))
		err(1, "punch");
	ask_op(p, RF_OP_FLUSH, 0, 0, 0);
	ask_op(p, RF_OP_FAULT, 0, PAGES, 0);
	ask_op(p, RF_OP_EXTEND, 80000, 0, 0);
	need(ask_op(p, RF_OP_SETSIZE, PAGES * RF_PAGE_SIZE, 0, 0), "SETSIZE");
	/* A page that has no room in what we left of the cache: an error, and no wait without end.
	 */
	need(ask_op(p, RF_OP_FALLOC, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * 4096, 4096),
	     "FALLOC");
	if (ftruncate(p->data, 4096))
		err(1, "truncate");
	int r = ask_op(p, RF_OP_FAULT, 8, 1, 0);
	if (r == 0 || r == -ETIME)
		errx(1, "a page that cannot be filled: %s", r ? "no answer" : "there it is");
}

static void scribble_pin(struct probe *p, struct rf_pin *pin)
{
	const bool sane = rnd() % 2;

	atomic_store(&pin->taken, (uint32_t)(rnd() % 3));
	atomic_store(&pin->owner, (uint32_t)(rnd() % 2));
	atomic_store(&pin->flags, (uint32_t)rnd());
	atomic_store(&pin->page, sane ? rnd() % PAGES : rnd());
	atomic_store(&pin->npages, sane ? rnd() % PAGES : rnd());
	for (unsigned k = 0; k < RF_PIN_ORPHANS; k++) {
		atomic_store(&pin->orphan[k].first, sane ? rnd() % PAGES : rnd());
		atomic_store(&pin->orphan[k].end, sane ? rnd() % PAGES : rnd());
	}
	atomic_store(&pin->orphans, rnd());
	atomic_store(&pin->orphan_ticket, (uint32_t)(rnd() % 3));
	atomic_store(&pin->vnode, rnd() % 3 ? p->vnode : (uint32_t)rnd());
}

static void test_words(struct probe *p)
{
	static const uint32_t ops[] = {RF_OP_FAULT,  RF_OP_FLUSH, RF_OP_EXTEND,     RF_OP_SETSIZE,
				       RF_OP_FALLOC, RF_OP_REMAP, RF_OP_INVALIDATE, RF_OP_SEEK};
	static const uint32_t modes[] = {0,
					 FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					 FALLOC_FL_ZERO_RANGE,
					 FALLOC_FL_COLLAPSE_RANGE,
					 FALLOC_FL_INSERT_RANGE,
					 FALLOC_FL_UNSHARE_RANGE};

	need(ask_op(p, RF_OP_FAULT, 0, PAGES, 0), "FAULT");
	map_file(p);
	for (int round = 0; round < 200; round++) {
		for (int i = 0; i < PAGES; i++)
			if (rnd() % 2)
				atomic_store(&p->word[i], rnd() % 3 ? rnd() : rnd() & 0xffff0fff);
		atomic_store(&p->twins->owner[rnd() % p->twins->n], (uint32_t)rnd());
		atomic_store(&p->proc->slot[0].claim, rnd() % 8 ? 0 : rf_claim(p->vnode, 0, 5));
		atomic_store(&p->proc->map[0].start, rnd());
		atomic_store(&p->proc->nmaps, (uint32_t)rnd());
		atomic_store(&p->proc->slots_used, (uint32_t)rnd());
		atomic_store(&p->st->dirtied, (uint32_t)rnd() & 1);
		atomic_store(&p->st->i_size, rnd());
		atomic_store(&p->st->server_size, rnd());
		atomic_store(&p->st->dv, rnd());
		atomic_store(&p->st->cb_expires_at, rnd() % 2 ? rnd() : 0);
		atomic_store(&p->st->capacity, rnd());
		atomic_store(&p->st->frozen, (uint32_t)rnd());
		atomic_store(&p->st->wb_inflight, (uint32_t)rnd());
		atomic_store(&p->st->errseq, (uint32_t)rnd());
		atomic_store(&p->st->wb_err, (int32_t)rnd());
		atomic_store(&p->st->nameless, (uint32_t)rnd());
		atomic_store(&p->proc->pins_used, (uint32_t)rnd());
		atomic_store(&p->proc->waiting, (uint32_t)rnd());
		for (int i = 0; i < 4; i++)
			scribble_pin(p, &p->proc->pin[i]);
		/* Who writes nonsense may wait for ever; nobody else may. */
		struct rf_req q = {.op = ops[rnd() % (sizeof(ops) / sizeof(ops[0]))],
				   .version = RF_AGENT_VERSION,
				   .cell = 1,
				   .seq = (uint32_t)(rnd() % 3),
				   .vnode = p->vnode,
				   .pins = rf_pins((uint32_t)(rnd() % 3), (uint32_t)(rnd() % 30)),
				   .tid = (uint32_t)(rnd() % 2),
				   .arg = {rnd() % 100000, rnd() % 20, rnd() % 5}};

		if (q.op == RF_OP_FALLOC) {
			q.arg[0] = modes[rnd() % (sizeof(modes) / sizeof(modes[0]))];
			q.arg[1] = rnd() % PAGES * RF_PAGE_SIZE;
			q.arg[2] = rnd() % 4 * RF_PAGE_SIZE;
		} else if (q.op == RF_OP_REMAP) {
			q.arg[0] = rf_remap_arg(p->vnode, 0, (uint32_t)(rnd() % 5));
			q.arg[1] = rnd() % 4 * RF_PAGE_SIZE;
			q.arg[2] = (4 + rnd() % 12) * RF_PAGE_SIZE;
			q.arg[3] = rnd() % 4 * RF_PAGE_SIZE;
		}
		/* Most changes are waited for: an agent takes no others. */
		atomic_store(&p->proc->cell[1].seq, q.seq);
		atomic_store(&p->proc->cell[1].state, rnd() % 8 ? RF_CELL_BUSY : (uint32_t)rnd());
		if (send_fds(p->sock, &q, sizeof(q), NULL, 0))
			errx(1, "the agent hung up");
		usleep(500);
	}
}

static void test_noise(struct probe *p, const char *path)
{
	static char buf[4096];

	for (int round = 0; round < 300; round++) {
		struct probe q = {.sock = -1};

		need(attach(&q, path), "ATTACH");
		for (int i = 0; i < 50; i++) {
			struct rf_req *r = (void *)buf;
			size_t len = sizeof(*r) + (rnd() % 4 ? 0 : rnd() % 200);
			int fd[3] = {0, 1, 2};

			for (size_t k = 0; k < len; k++)
				buf[k] = (char)rnd();
			if (rnd() % 8) {
				r->op = (uint32_t)(rnd() % 13);
				r->version = RF_AGENT_VERSION;
				r->cell = (uint32_t)(rnd() % 300);
				r->vnode = rnd() % 2 ? p->vnode : (uint32_t)(rnd() % 5);
				for (int k = 0; k < 4; k++)
					r->arg[k] = rnd() % 3 ? rnd() % 100 : rnd();
				/* Not what would change the file under others' tests. */
				if (r->op >= RF_OP_EXTEND && r->op <= RF_OP_APPEND)
					r->vnode = 99;
			}
			if (rnd() % 16 == 0)
				len = rnd() % sizeof(*r);
			if (send_fds(q.sock, buf, len, fd, (unsigned)(rnd() % 8 ? 0 : rnd() % 4)))
				break;
		}
		close(q.sock);
		close(q.strip);
		close(q.uffd);
		munmap(q.proc, sizeof(*q.proc));
		munmap(q.host, sizeof(*q.host));
		munmap(q.twins, rf_twins_size(p->twins->n));
	}
	need(ask_op(p, RF_OP_FAULT, 0, 1, 0), "FAULT after the noise");
}

int main(int argc, char **argv)
{
	struct probe p = {.sock = -1};
	const char *t;

	if (argc != 6)
		errx(2, "usage: agent_probe SOCKET ADDR VOLUME FILE TEST");
	seed = (uint64_t)now_ms() * 2654435761u | 1;
	t = argv[5];
	need(attach(&p, argv[1]), "ATTACH");
	need(open_file(&p, argv[2], argv[3], argv[4]), "OPEN");
	if (!p.proc || !p.twins || !p.word)
		return 1;
	if (!strcmp(t, "path"))
		test_path(&p);
	else if (!strcmp(t, "stuck"))
		test_stuck(&p);
	else if (!strcmp(t, "still"))
		test_still(&p);
	else if (!strcmp(t, "deaf"))
		test_deaf(&p);
	else if (!strcmp(t, "punch"))
		test_punch(&p);
	else if (!strcmp(t, "words"))
		test_words(&p);
	else if (!strcmp(t, "noise"))
		test_noise(&p, argv[1]);
	else
		errx(2, "%s: no such test", t);
	puts("ok");
	return 0;
}
