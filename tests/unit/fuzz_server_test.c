/* SPDX-License-Identifier: MIT */
/*
 * fuzz_server_test.c - 10,000 random and mutated frames against a real refault-server
 * ($B/refault-server, with SAN=1 under ASan and UBSan), while two well-behaved clients go on being
 * served correctly.
 *
 * FUZZ_SEED repeats a run.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "srv_client.h"

#ifndef FRAMES
#define FRAMES 10000
#endif
#define EVERY 100 /* frames between two looks at the good clients */
#define SOON 5000

static char base[64], dir[80], sock[80], errlog[80], keys[80];
static pid_t server;
static uint64_t rnd_state;

static uint64_t rnd(void)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return rnd_state;
}

static uint64_t below(uint64_t n)
{
	return rnd() % n;
}

/* A number of the kind that breaks things. */
static uint64_t nasty(void)
{
	static const uint64_t some[] = {0,     1,           4095,      4096,
					65536, RF_MAX_DATA, INT64_MAX, UINT64_MAX};

	switch (below(4)) {
	case 0:
		return rnd();
	case 1:
		return some[below(8)] + below(3) - 1;
	default:
		return below(10000);
	}
}

/* One with the rights of the peer, one with others, and some that are no good. */
static const struct {
	char *name, *text;
} key[] = {
    {"good", "secret s3cret\n"},
    {"late", "secret s3cret\nexpires @1\n"},
    {"gone", "secret s3cret\nrevoked\n"},
    {"other", "secret s3cret\nuid 65534\ngid 65534\ngroups 1,2,3\n"},
    {"bad", "secrets are nothing for me\n"},
};
#define KEYS (sizeof(key) / sizeof(key[0]))

static void make_keys(void)
{
	char path[100];
	size_t i;
	int fd;

	mkdir(keys, 0700);
	for (i = 0; i < KEYS; i++) {
		snprintf(path, sizeof(path), "%s/%s", keys, key[i].name);
		fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		cr_assert(write(fd, key[i].text, strlen(key[i].text)) > 0);
		close(fd);
	}
}

static void start(void)
{
	const char *b = getenv("B");
	char exe[256], export[128], addr[128], line[8];
	int out[2], err;

	snprintf(exe, sizeof(exe), "%s/refault-server", b ? b : "build");
	if (access(exe, X_OK))
		cr_skip("refault-server has not been built");
	snprintf(base, sizeof(base), "/tmp/refault-fuzz-XXXXXX");
	cr_assert(mkdtemp(base) != NULL);
	snprintf(dir, sizeof(dir), "%s/dir", base);
	snprintf(sock, sizeof(sock), "%s/s", base);
	snprintf(errlog, sizeof(errlog), "%s/log", base);
	snprintf(keys, sizeof(keys), "%s/keys", base);
	snprintf(export, sizeof(export), "x=%s", dir);
	snprintf(addr, sizeof(addr), "unix:%s", sock);
	mkdir(dir, 0777);
	make_keys();
	cr_assert(not(pipe(out)));
	server = fork();
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		err = open(errlog, O_CREAT | O_WRONLY | O_APPEND, 0666);
		dup2(out[1], 1);
		dup2(err, 2);
		close(out[0]);
		execl(exe, exe, "--export", export, "--listen", addr, "--lease", "0.3", "--keys",
		      keys, (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	cr_assert(read(out[0], line, sizeof(line)) > 0, "the server does not start");
	close(out[0]);
}

static bool log_has(const char *what)
{
	static char buf[1 << 22];
	int fd = open(errlog, O_RDONLY);
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

	close(fd);
	buf[n < 0 ? 0 : n] = 0;
	if (!strstr(buf, what))
		return false;
	fprintf(stderr, "%.8000s\n", strstr(buf, what));
	return true;
}

/* ---- the bad client ---- */

static rf_fid fids[4];
static char *const names[] = {"a", "b", "../x", "", "nowhere", "a/b", "sub/deep", "c"};

static u_int some_handle(void)
{
	return below(2) ? 0 : below(16) ? (u_int)below(10) : (u_int)nasty();
}

static void some_file(rf_file *f)
{
	f->volume = below(32) ? 0 : (u_int)nasty();
	f->key = some_handle();
	f->fid = fids[below(4)];
	if (!below(8))
		f->fid.gen = rnd();
	f->path = names[below(8)];
}

/* A frame that decodes, with contents of any sort; its length. */
static size_t some_frame(unsigned char *buf, size_t cap)
{
	static const rf_type calls[] = {RF_LOOKUP, RF_STATUS,    RF_FETCH,    RF_STORE, RF_STORE,
					RF_APPEND, RF_FALLOC,    RF_SET_SIZE, RF_SYNC,  RF_GIVE_UP,
					RF_PING,   RF_BREAK_ACK, RF_KEY,      RF_REMAP, RF_SEEK};
	static rf_range ranges[RF_MAX_RANGES];
	static rf_fid many[64];
	static char secret[RF_MAX_SECRET + 1] = "s3cret";
	struct rf_msg m;
	size_t payload = below(4) ? 0 : below(3000), i, sum = 0;
	ssize_t n;

	memset(&m, 0, sizeof(m));
	m.xid = (u_int)rnd();
	m.body.type =
	    below(16) ? calls[below(sizeof(calls) / sizeof(calls[0]))] : (rf_type)(1 + below(28));
	for (i = 0; i < 16; i++) {
		ranges[i].off = nasty();
		ranges[i].len = below(2) ? nasty() : below(200);
		if (i < 3)
			sum += ranges[i].len;
	}
	switch (m.body.type) {
	case RF_HELLO:
		m.body.rf_body_u.hello.proto = below(4) ? RF_PROTO_VERSION : (u_int)rnd();
		m.body.rf_body_u.hello.host = "fuzz\n\x1b[31m";
		m.body.rf_body_u.hello.client[0] = (char)(100 + below(20));
		break;
	case RF_VOLUME:
		m.body.rf_body_u.volume.name = below(2) ? "x" : "nope";
		break;
	case RF_LOOKUP:
		m.body.rf_body_u.lookup.key = some_handle();
		m.body.rf_body_u.lookup.flags = (u_int)below(below(4) ? 16 : 64);
		m.body.rf_body_u.lookup.mode = (u_int)nasty();
		m.body.rf_body_u.lookup.path = names[below(8)];
		break;
	case RF_STATUS:
		some_file(&m.body.rf_body_u.status.file);
		m.body.rf_body_u.status.promise = below(2) != 0;
		break;
	case RF_FETCH:
		some_file(&m.body.rf_body_u.fetch.file);
		m.body.rf_body_u.fetch.range = ranges[0];
		m.body.rf_body_u.fetch.promise = below(2) != 0;
		break;
	case RF_STORE:
		some_file(&m.body.rf_body_u.store.file);
		m.body.rf_body_u.store.request = below(3000);
		m.body.rf_body_u.store.durable = !below(8);
		/* Not too far out: a later fetch should find something. */
		m.body.rf_body_u.store.may_extend = ranges[0].off < 100000 && below(2);
		m.body.rf_body_u.store.ranges.ranges_len = below(64) ? 3 : RF_MAX_RANGES;
		m.body.rf_body_u.store.ranges.ranges_val = ranges;
		if (below(4) && sum < 100000)
			payload = sum;
		break;
	case RF_APPEND:
		some_file(&m.body.rf_body_u.append.file);
		m.body.rf_body_u.append.request = below(3000);
		break;
	case RF_SET_SIZE:
		some_file(&m.body.rf_body_u.set_size.file);
		m.body.rf_body_u.set_size.request = below(3000);
		m.body.rf_body_u.set_size.size = below(4) ? below(100000) : nasty();
		m.body.rf_body_u.set_size.grow_only =
		    m.body.rf_body_u.set_size.size < 100000 && below(2);
		break;
	case RF_FALLOC:
		some_file(&m.body.rf_body_u.falloc.file);
		m.body.rf_body_u.falloc.request = below(3000);
		m.body.rf_body_u.falloc.mode = below(128);
		m.body.rf_body_u.falloc.range = ranges[0];
		break;
	case RF_REMAP:
		some_file(&m.body.rf_body_u.remap.src);
		some_file(&m.body.rf_body_u.remap.file);
		m.body.rf_body_u.remap.kind = (u_int)below(5);
		m.body.rf_body_u.remap.request = below(3000);
		m.body.rf_body_u.remap.src_off = below(2) ? nasty() : below(100);
		/* Not too far out here either. */
		m.body.rf_body_u.remap.dst_off = below(8) ? below(100000) : INT64_MAX - below(3);
		m.body.rf_body_u.remap.len = nasty();
		break;
	case RF_SEEK:
		some_file(&m.body.rf_body_u.seek.file);
		m.body.rf_body_u.seek.off = nasty();
		m.body.rf_body_u.seek.whence = (u_int)below(6);
		break;
	case RF_SYNC:
		some_file(&m.body.rf_body_u.sync.file);
		m.body.rf_body_u.sync.durable = !below(8);
		break;
	case RF_KEY:
		m.body.rf_body_u.key.handle = below(32) ? 1 + (u_int)below(8) : some_handle();
		m.body.rf_body_u.key.name = below(8) ? key[below(KEYS)].name : names[below(8)];
		m.body.rf_body_u.key.secret.secret_val = secret;
		m.body.rf_body_u.key.secret.secret_len =
		    (u_int)(below(8) ? strlen("s3cret") : below(RF_MAX_SECRET + 1));
		break;
	case RF_GIVE_UP:
		for (i = 0; i < 64; i++)
			many[i] = fids[below(4)];
		m.body.rf_body_u.give_up.fids.fids_len = (u_int)below(64);
		m.body.rf_body_u.give_up.fids.fids_val = many;
		break;
	case RF_BREAK_ACK:
		m.body.rf_body_u.break_ack.id = below(8) ? 1 + below(3) : nasty();
		break;
	case RF_ERROR:
		m.body.rf_body_u.error.what = "no";
		break;
	default:
		break;
	}
	n = rf_wire_encode(buf, cap - payload, &m, payload);
	if (n < 0)
		return 0;
	for (i = 0; i < payload; i++)
		buf[(size_t)n + i] = (unsigned char)rnd();
	return (size_t)n + payload;
}

static size_t mutate(unsigned char *buf, size_t n)
{
	size_t i, k = 1 + below(8);

	switch (below(4)) {
	case 0: /* a few bytes */
		for (i = 0; i < k; i++)
			buf[below(n)] = (unsigned char)rnd();
		return n;
	case 1: /* in the header and the first fields, where it hurts */
		for (i = 0; i < k; i++)
			buf[below(n < 48 ? n : 48)] ^= (unsigned char)(1 << below(8));
		return n;
	case 2: /* cut short */
		return 1 + below(n);
	default: /* noise */
		for (i = 0; i < n; i++)
			buf[i] = (unsigned char)rnd();
		return n;
	}
}

/* Whether the connection still stands; what came is thrown away. */
static bool alive(int fd)
{
	static char junk[65536];
	ssize_t n;

	while ((n = recv(fd, junk, sizeof(junk), MSG_DONTWAIT)) > 0)
		;
	return n < 0 && errno == EAGAIN;
}

static void bad_frame(struct tc *bad)
{
	static unsigned char buf[200000];
	struct pollfd p;
	size_t n, done = 0;
	ssize_t w;

	if (bad->fd >= 0 && (!alive(bad->fd) || !below(50)))
		tc_close(bad);
	if (bad->fd < 0) {
		cr_assert(tc_connect(bad, sock), "the server is gone");
		if (below(8))
			cr_assert(eq(int, tc_hello(bad, 1000 + (int)below(8)), 0));
	}
	n = some_frame(buf, sizeof(buf));
	if (n && !below(3))
		n = mutate(buf, n);
	p.fd = bad->fd;
	p.events = POLLOUT;
	while (done < n) {
		w = send(bad->fd, buf + done, n - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (w > 0) {
			done += (size_t)w;
			continue;
		}
		if (errno != EAGAIN || !alive(bad->fd) || poll(&p, 1, 1000) <= 0)
			break;
	}
	if (done < n)
		tc_close(bad);
}

/* ---- the good clients ---- */

static int next(struct tc *tc)
{
	int type;

	while ((type = tc_recv(tc, SOON)) == RF_BREAK)
		tc_ack(tc, tc->msg.body.rf_body_u.brk.id);
	return type;
}

/* One stores, the other hears of it before the store is released, and reads it. */
static void good_round(struct tc *w, struct tc *r, const rf_fid *fid, int round)
{
	char text[16];
	rf_break *b = &r->msg.body.rf_body_u.brk;

	snprintf(text, sizeof(text), "%08d", round);
	tc_status(r, fid, "good", true);
	cr_assert(eq(int, next(r), RF_STATUS_R));
	tc_store(w, fid, "good", (uint64_t)round + 1, 0, text, true);
	cr_assert(eq(int, next(w), RF_APPLIED));
	cr_assert(eq(int, tc_recv(r, SOON), RF_BREAK));
	if (round && b->known)
		cr_assert(not(memcmp(r->payload, text, 8)));
	tc_ack(r, b->id);
	cr_assert(eq(int, next(w), RF_RELEASED));
	tc_fetch(r, fid, "good", 0, 100, true);
	cr_assert(eq(int, next(r), RF_FETCH_R));
	cr_assert(eq(sz, r->len, 8));
	cr_assert(not(memcmp(r->payload, text, 8)));
	tc_ping(w);
	cr_assert(eq(int, next(w), RF_PONG));
}

Test(fuzz, server, .timeout = 300)
{
	const char *env = getenv("FUZZ_SEED");
	struct tc w, r, bad = {.fd = -1};
	uint64_t seed;
	int i, status, round = 0;
	rf_fid good;

	if (env)
		seed = strtoull(env, NULL, 0);
	else
		cr_assert(eq(i64, getrandom(&seed, sizeof(seed), 0), sizeof(seed)));
	printf("fuzz::server: FUZZ_SEED=%#llx\n", (unsigned long long)seed);
	fflush(stdout);
	rnd_state = seed ? seed : 1;
	start();
	tc_open(&w, sock, 1);
	tc_open(&r, sock, 2);
	good = tc_find(&w, "good", RF_LK_CREATE | RF_LK_READ | RF_LK_WRITE).fid;
	fids[0] = tc_find(&w, "a", RF_LK_CREATE).fid;
	fids[1] = tc_find(&w, "b", RF_LK_CREATE).fid;
	fids[2] = tc_find(&w, "c", RF_LK_CREATE).fid;
	for (i = 0; i < FRAMES; i++) {
		bad_frame(&bad);
		if (i % EVERY == 0)
			good_round(&w, &r, &good, round++);
	}
	tc_close(&bad);
	good_round(&w, &r, &good, round++);
	tc_close(&w);
	tc_close(&r);
	kill(server, SIGTERM);
	waitpid(server, &status, 0);
	cr_assert(not(log_has("ERROR: AddressSanitizer")));
	cr_assert(not(log_has("runtime error")));
	cr_assert(eq(int, status, 0), "the server ended with %#x, seed %#llx", status,
		  (unsigned long long)seed);
	unlink(errlog);
	if (snprintf(errlog, sizeof(errlog), "%s/", dir) > 0) {
		char path[100];
		const char *const made[] = {"good", "a", "b", "c", "nowhere"};

		for (i = 0; i < 5; i++) {
			snprintf(path, sizeof(path), "%s%s", errlog, made[i]);
			unlink(path);
		}
		for (i = 0; i < (int)KEYS; i++) {
			snprintf(path, sizeof(path), "%s/%s", keys, key[i].name);
			unlink(path);
		}
	}
	rmdir(keys);
	rmdir(dir);
	rmdir(base);
}
