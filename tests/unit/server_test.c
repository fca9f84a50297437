/* SPDX-License-Identifier: MIT */
/*
 * server_test.c - the server as its clients see it: promises, breaks, acknowledgements, leases,
 * rights, and changes by others.  Each test runs a server of its own in a child process.
 */
#include "srv_own.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

TestSuite(server, .init = setup, .fini = teardown, .timeout = 300);

/* ---- hello ---- */

Test(server, first_call_must_be_hello)
{
	struct tc a;

	cr_assert(tc_connect(&a, sock));
	tc_ping(&a);
	ERROR(&a, EPROTO);
	EXPECT(&a, -1);
	tc_close(&a);
}

Test(server, wrong_version)
{
	struct rf_msg m = {.body.type = RF_HELLO};
	struct tc a;

	cr_assert(tc_connect(&a, sock));
	m.body.rf_body_u.hello.proto = RF_PROTO_VERSION + 1;
	m.body.rf_body_u.hello.host = "";
	tc_send(&a, &m, NULL, 0);
	ERROR(&a, EPROTO);
	cr_assert(strstr(a.msg.body.rf_body_u.error.what, "version") != NULL);
	EXPECT(&a, -1);
	tc_close(&a);
}

Test(server, unknown_export)
{
	struct rf_msg m = {.body.type = RF_VOLUME};
	struct tc a;

	tc_open(&a, sock, 1);
	m.body.rf_body_u.volume.name = "y";
	tc_send(&a, &m, NULL, 0);
	ERROR(&a, ENOENT);
	tc_ping(&a);
	EXPECT(&a, RF_PONG);
	tc_close(&a);
}

/* ---- promises ---- */

Test(server, store_breaks_and_waits)
{
	rf_status s, s2;
	struct tc a, b;
	uint64_t id;

	put_file("f", "hello world");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	cr_assert(s.promise_ms > 0 && s.promise_ms <= LEASE);
	s2 = tc_find(&b, "f", RF_LK_READ);
	cr_assert(eq(u64, s.dv, s2.dv));
	cr_assert(eq(u64, s.fid.gen, s2.fid.gen));

	tc_store(&a, &s.fid, "f", 1, 6, "WORLD", false);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->dv_before, s.dv));
	cr_assert(ne(u64, applied(&a)->status.dv, s.dv));
	cr_assert(applied(&a)->status.promise_ms > 0, "the changer's promise goes on");
	s2 = applied(&a)->status;
	EXPECT(&b, RF_BREAK);
	id = br(&b)->id;
	cr_assert(eq(u64, br(&b)->dv_before, s.dv));
	cr_assert(eq(u64, br(&b)->status.dv, s2.dv));
	cr_assert(br(&b)->known && br(&b)->status.promise_ms > 0);
	cr_assert(eq(u32, br(&b)->ranges.ranges_len, 1));
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[0].off, 6));
	cr_assert(eq(sz, b.len, 5));
	cr_assert(not(memcmp(b.payload, "WORLD", 5)));
	NOTHING(&a);
	tc_ack(&b, id);
	EXPECT(&a, RF_RELEASED);
	NOTHING(&a); /* no break for one's own change */
	cr_assert(eq(str, (char *)get_file("f"), "hello WORLD"));

	/* The known break kept b's promise: the next change comes too. */
	tc_store(&a, &s.fid, "f", 2, 0, "H", false);
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(u64, br(&b)->dv_before, s2.dv));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

Test(server, no_bytes_without_right_to_read)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", 0);
	tc_find(&b, "f", 0); /* never showed that it may read */
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&b, RF_BREAK);
	cr_assert(br(&b)->known);
	cr_assert(eq(sz, b.len, 0));
	tc_close(&a);
	tc_close(&b);
}

Test(server, lease_ends_the_wait)
{
	struct tc a, b;
	rf_status s;
	uint64_t t;

	short_leases();
	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	t = ms();
	tc_find(&b, "f", RF_LK_READ);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	cr_assert(ms() - t >= SHORT, "released after %d ms", (int)(ms() - t));
	/* It comes late, and is told that its promise is nothing any more when the next change
	 * comes. */
	EXPECT(&b, RF_BREAK);
	tc_store(&a, &s.fid, "f", 2, 0, "z", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	EXPECT(&b, RF_BREAK);
	cr_assert(not(br(&b)->known));
	cr_assert(eq(u32, br(&b)->status.promise_ms, 0));
	tc_ack(&b, br(&b)->id);
	tc_ping(&b);
	EXPECT(&b, RF_PONG);
	tc_close(&a);
	tc_close(&b);
}

Test(server, frames_renew_the_lease)
{
	uint64_t pinged = 0;
	struct tc a, b;
	rf_status s;
	int i;

	short_leases();
	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	tc_find(&b, "f", RF_LK_READ);
	for (i = 0; i < 5; i++) {
		usleep(SHORT * 1000 / 3);
		pinged = ms();
		tc_ping(&b);
		EXPECT(&b, RF_PONG);
	}
	s = tc_find(&a, "f", RF_LK_READ);
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&b, RF_BREAK);
	EXPECT(&a, RF_RELEASED);
	cr_assert(ms() - pinged >= SHORT, "released after %d ms", (int)(ms() - pinged));
	tc_close(&a);
	tc_close(&b);
}

Test(server, lost_connection_is_waited_for)
{
	struct tc a, b;
	rf_status s;
	uint64_t t;

	short_leases();
	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	t = ms();
	tc_find(&b, "f", RF_LK_READ);
	tc_close(&b);
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	cr_assert(ms() - t >= SHORT, "released after %d ms", (int)(ms() - t));
	tc_close(&a);
}

/* It has stripped before it said HELLO. */
Test(server, one_that_is_back_is_not_waited_for)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	tc_close(&b);
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	NOTHING(&a);
	tc_open(&b, sock, 2);
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

Test(server, second_hello_closes_the_first)
{
	struct tc a, b;

	tc_open(&a, sock, 1);
	tc_open(&b, sock, 1);
	EXPECT(&a, -1);
	tc_ping(&b);
	EXPECT(&b, RF_PONG);
	cr_assert(eq(u64, a.hello.instance, b.hello.instance));
	tc_close(&a);
	tc_close(&b);
}

Test(server, give_up)
{
	struct rf_msg m = {.body.type = RF_GIVE_UP};
	struct tc a, b;
	rf_status s;

	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	m.body.rf_body_u.give_up.volume = b.volume;
	m.body.rf_body_u.give_up.fids.fids_len = 1;
	m.body.rf_body_u.give_up.fids.fids_val = &s.fid;
	/* While a change waits for it ... */
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	NOTHING(&a);
	tc_send(&b, &m, NULL, 0);
	EXPECT(&a, RF_RELEASED);
	EXPECT(&b, RF_BREAK);
	/* ... and before. */
	tc_store(&a, &s.fid, "f", 2, 0, "z", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	NOTHING(&b);
	tc_close(&a);
	tc_close(&b);
}

Test(server, acknowledgement_out_of_nothing)
{
	struct tc a;

	tc_open(&a, sock, 1);
	tc_ack(&a, 1);
	EXPECT(&a, -1);
	tc_close(&a);
}

Test(server, hangup_forgets_but_waits)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "x");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	kill(server, SIGHUP);
	EXPECT(&a, RF_INIT_STATE);
	EXPECT(&b, RF_INIT_STATE);
	/* b may not have stripped yet: a change still waits for it. */
	tc_store(&a, &s.fid, "f", 1, 0, "y", false);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u32, applied(&a)->status.promise_ms, 0));
	EXPECT(&b, RF_BREAK);
	cr_assert(not(br(&b)->known));
	NOTHING(&a);
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	/* Validated anew: a promise as any other. */
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(st(&a)->promise_ms > 0);
	tc_close(&a);
	tc_close(&b);
}

/* ---- changes by others ---- */

static void third_party(void)
{
	struct tc a, b;
	rf_status s;
	uint64_t id;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	others_write("f", 0, "J");
	EXPECT(&b, RF_BREAK);
	id = br(&b)->id;
	cr_assert(not(br(&b)->known));
	cr_assert(eq(u32, br(&b)->status.promise_ms, 0));
	cr_assert(ne(u64, br(&b)->status.dv, s.dv));
	EXPECT(&a, RF_BREAK);
	tc_ack(&a, br(&a)->id);

	/* b has not acknowledged that yet: it may still show "hello", so a's change waits for it.
	 */
	tc_store(&a, &s.fid, "f", 1, 4, "y", false);
	EXPECT(&a, RF_APPLIED);
	cr_assert(ne(u64, applied(&a)->dv_before, s.dv));
	NOTHING(&a);
	tc_ack(&b, id);
	EXPECT(&a, RF_RELEASED);
	NOTHING(&b); /* it holds nothing now */
	tc_fetch(&b, &s.fid, "f", 0, 100, true);
	EXPECT(&b, RF_FETCH_R);
	cr_assert(eq(sz, b.len, 5));
	cr_assert(b.msg.body.rf_body_u.fetch_r.status.promise_ms > 0);
	cr_assert(not(memcmp(b.payload, "Jelly", 5)));
	tc_close(&a);
	tc_close(&b);
}

Test(server, third_party_ext4)
{
	third_party();
}

static void own_changes(void)
{
	struct rf_msg m = {.body.type = RF_SET_SIZE};
	struct tc a;
	rf_status s;
	uint64_t dv;
	int i;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	dv = s.dv;
	for (i = 0; i < 20; i++) {
		tc_store(&a, &s.fid, "f", 1 + (uint64_t)i, (uint64_t)i % 5, "z", false);
		EXPECT(&a, RF_APPLIED);
		cr_assert(eq(u64, applied(&a)->dv_before, dv));
		cr_assert(applied(&a)->status.promise_ms > 0);
		dv = applied(&a)->status.dv;
		EXPECT(&a, RF_RELEASED);
	}
	m.body.rf_body_u.set_size.file.volume = a.volume;
	m.body.rf_body_u.set_size.file.fid = s.fid;
	m.body.rf_body_u.set_size.file.path = "f";
	m.body.rf_body_u.set_size.request = 100;
	m.body.rf_body_u.set_size.size = 2;
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_APPLIED);
	dv = applied(&a)->status.dv;
	EXPECT(&a, RF_RELEASED);
	NOTHING(&a);
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->dv, dv));
	tc_close(&a);
}

Test(server, own_changes_are_not_others)
{
	own_changes();
}

Test(server, chmod_changes_no_content)
{
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	cr_assert(not(chmod(at("f"), 0640)));
	EXPECT(&a, RF_BREAK);
	cr_assert(not(br(&a)->known));
	cr_assert(eq(u64, br(&a)->status.dv, s.dv));
	cr_assert(eq(u32, br(&a)->status.mode & 07777, 0640));
	tc_ack(&a, br(&a)->id);
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->dv, s.dv));
	tc_close(&a);
}

Test(server, replaced_by_rename)
{
	rf_status s, s2;
	struct tc a;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	put_file("g", "other");
	others_rename("g", "f");
	EXPECT(&a, RF_BREAK);
	tc_ack(&a, br(&a)->id);
	s2 = tc_find(&a, "f", RF_LK_READ);
	cr_assert(ne(u64, s2.fid.ino, s.fid.ino));
	/* The old one lives on for who holds it. */
	tc_fetch(&a, &s.fid, "f", 0, 100, false);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(not(memcmp(a.payload, "hello", 5)));
	tc_close(&a);
}

Test(server, stores_through_others_mmap)
{
	struct tc a;
	uint64_t dv;
	rf_status s;
	char *map;
	int fd;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	dv = s.dv;
	fd = open(at("f"), O_RDWR | O_CLOEXEC);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert(map != MAP_FAILED);
	map[0] = 'J';
	/* No report; but it looks once a second. */
	EXPECT(&a, RF_BREAK);
	cr_assert(ne(u64, br(&a)->status.dv, dv));
	munmap(map, 4096);
	close(fd);
	tc_close(&a);
}

/* ---- changes ---- */

Test(server, several_ranges_clipped_and_extending)
{
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r[3] = {{0, 2}, {8, 4}, {20, 3}};
	rf_store *so = &m.body.rf_body_u.store;
	struct tc a, b;
	rf_status s;

	put_file("f", "0123456789");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->request = 1;
	so->ranges.ranges_len = 3;
	so->ranges.ranges_val = r;
	tc_send(&a, &m, "abcdefxyz", 9);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 10));
	cr_assert(eq(str, (char *)get_file("f"), "ab234567cd"));
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(u32, br(&b)->ranges.ranges_len, 2));
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[1].len, 2));
	cr_assert(eq(sz, b.len, 4));
	cr_assert(not(memcmp(b.payload, "abcd", 4)));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);

	so->may_extend = TRUE;
	so->request = 2;
	tc_send(&a, &m, "ABCDEFXYZ", 9);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 23));
	EXPECT(&b, RF_BREAK);
	/* The zeros between are news as well. */
	cr_assert(eq(u32, br(&b)->ranges.ranges_len, 4));
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[2].off, 12));
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[2].len, 8));
	cr_assert(eq(sz, b.len, 17));
	cr_assert(not(memcmp(b.payload, "ABCDEF\0\0\0\0\0\0\0\0XYZ", 17)));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);

	/* Lengths that do not add up, offsets out of this world: nothing happens. */
	so->request = 3;
	tc_send(&a, &m, "ABCDEFXY", 8);
	ERROR(&a, EINVAL);
	r[2].off = UINT64_MAX - 1;
	tc_send(&a, &m, "ABCDEFXYZ", 9);
	ERROR(&a, EINVAL);
	NOTHING(&b);
	tc_close(&a);
	tc_close(&b);
}

Test(server, large_stores_keep_their_order)
{
	enum { N = 300000 };
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r = {0, N};
	rf_store *so = &m.body.rf_body_u.store;
	char *data = malloc(N);
	struct tc a;
	rf_status s;
	int i, applies = 0, releases = 0, fetches = 0;

	put_file("f", "");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->may_extend = TRUE;
	so->ranges.ranges_len = 1;
	so->ranges.ranges_val = &r;
	/* Large ones go to a pool thread, small ones do not: they may not overtake. */
	for (i = 0; i < 8; i++) {
		memset(data, 'a' + i, N);
		so->request = 2 * (uint64_t)i + 1;
		so->durable = i % 2;
		tc_send(&a, &m, data, N);
		tc_fetch(&a, &s.fid, "f", N - 10, 20, true);
		tc_store(&a, &s.fid, "f", 2 * (uint64_t)i + 2, N - 1, "!", false);
	}
	while (releases < 16) {
		i = tc_recv(&a, 10000);
		applies += i == RF_APPLIED;
		releases += i == RF_RELEASED;
		if (i == RF_FETCH_R) {
			cr_assert(eq(sz, a.len, 10));
			cr_assert(eq(int, a.payload[0], 'a' + fetches));
			cr_assert(eq(int, a.payload[9], 'a' + fetches));
			fetches++;
		}
		cr_assert(i == RF_APPLIED || i == RF_RELEASED || i == RF_FETCH_R);
	}
	cr_assert(eq(int, applies, 16));
	cr_assert(eq(int, fetches, 8));
	tc_fetch(&a, &s.fid, "f", N - 2, 20, true);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(not(memcmp(a.payload, "h!", 2)));
	free(data);
	tc_close(&a);
}

/* The file is written back and thrown out of memory, so that the server has to wait for the disk.
 */
static void make_cold(const char *name)
{
	int fd = open(at(name), O_RDONLY | O_CLOEXEC);

	cr_assert(fd >= 0);
	fdatasync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

Test(server, cold_pages)
{
	enum { N = 64 * 1024 };
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r[3] = {{10, 2}, {5000, 3}, {40000, 2}};
	rf_store *so = &m.body.rf_body_u.store;
	char *text = malloc(N + 1);
	struct tc a;
	rf_status s;
	int i;

	for (i = 0; i < N; i++)
		text[i] = (char)('a' + i % 26);
	text[N] = 0;
	put_file("f", text);
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	make_cold("f");
	tc_fetch(&a, &s.fid, "f", 100, N, true);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(eq(sz, a.len, N - 100));
	cr_assert(not(memcmp(a.payload, text + 100, N - 100)));

	make_cold("f"); /* parts of two pages */
	tc_store(&a, &s.fid, "f", 1, 4090, "0123456789", false);
	EXPECT(&a, RF_APPLIED);
	memcpy(text + 4090, "0123456789", 10);
	EXPECT(&a, RF_RELEASED);
	make_cold("f"); /* several ranges */
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->request = 2;
	so->ranges.ranges_len = 3;
	so->ranges.ranges_val = r;
	tc_send(&a, &m, "ABCDEFG", 7);
	EXPECT(&a, RF_APPLIED);
	memcpy(text + 10, "AB", 2);
	memcpy(text + 5000, "CDE", 3);
	memcpy(text + 40000, "FG", 2);
	EXPECT(&a, RF_RELEASED);
	make_cold("f"); /* up to the end and over it */
	tc_store(&a, &s.fid, "f", 3, N - 2, "wxyz", true);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, N + 2));
	memcpy(text + N - 2, "wx", 2);
	EXPECT(&a, RF_RELEASED);
	tc_fetch(&a, &s.fid, "f", 0, 2 * N, true);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(eq(sz, a.len, N + 2));
	cr_assert(not(memcmp(a.payload, text, N)));
	cr_assert(not(memcmp(a.payload + N, "yz", 2)));
	free(text);
	tc_close(&a);
}

/* Whatever is read while it changes: bytes are those of the dv that comes with them. */
Test(server, bytes_belong_to_their_dv)
{
	enum { N = 100000, ROUNDS = 150 };
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r = {0, N};
	rf_store *so = &m.body.rf_body_u.store;
	uint64_t dv[ROUNDS + 1], seen[2000];
	char *data = malloc(N);
	unsigned char letter[2000];
	int i, k, type, fetched = 0, asked = 0, found = 0;
	struct tc a, b;
	rf_status s;

	memset(data, 'A', N - 1);
	data[N - 1] = 0;
	put_file("f", data);
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	dv[0] = s.dv;
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->ranges.ranges_len = 1;
	so->ranges.ranges_val = &r;
	r.len = N - 1;
	for (i = 1; i <= ROUNDS; i++) {
		memset(data, 'A' + i % 50, N - 1);
		so->request = (uint64_t)i;
		for (k = 0; k < 4; k++, asked++)
			tc_fetch(&b, &s.fid, "f", (uint64_t)k * 20000, 40000, k % 2);
		if (i % 4 == 0)
			make_cold("f");
		tc_send(&a, &m, data, N - 1);
		for (; k < 8; k++, asked++)
			tc_fetch(&b, &s.fid, "f", 1000, 90000, k % 2);
		while (tc_recv(&a, SOON) == RF_RELEASED)
			;
		cr_assert(eq(int, (int)a.msg.body.type, RF_APPLIED));
		dv[i] = applied(&a)->status.dv;
		while ((type = tc_recv(&b, 0)) > 0 || fetched + 8 < asked) {
			if (type == 0)
				type = tc_recv(&b, SOON);
			if (type == RF_BREAK) {
				tc_ack(&b, br(&b)->id);
				continue;
			}
			cr_assert(eq(int, type, RF_FETCH_R));
			for (k = 1; k < (int)b.len; k++)
				cr_assert(b.payload[k] == b.payload[0], "half of a store was read");
			letter[fetched] = b.payload[0];
			seen[fetched++] = b.msg.body.rf_body_u.fetch_r.status.dv;
		}
	}
	for (i = 0; i < fetched; i++)
		for (k = 0; k <= ROUNDS; k++)
			if (seen[i] == dv[k]) {
				found++;
				cr_assert(eq(int, letter[i], 'A' + k % 50), "fetch %d", i);
			}
	cr_assert(eq(int, found, fetched));
	cr_assert(fetched > ROUNDS);
	free(data);
	tc_close(&a);
	tc_close(&b);
}

Test(server, append_resize_punch)
{
	struct rf_msg m = {.body.type = RF_APPEND};
	struct tc a, b;
	rf_status s;

	put_file("f", "0123456789");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	m.body.rf_body_u.append.file.volume = a.volume;
	m.body.rf_body_u.append.file.fid = s.fid;
	m.body.rf_body_u.append.file.path = "f";
	m.body.rf_body_u.append.request = 1;
	m.body.rf_body_u.append.durable = TRUE;
	tc_send(&a, &m, "abc", 3);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->off, 10));
	cr_assert(eq(u64, applied(&a)->status.size, 13));
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[0].off, 10));
	cr_assert(not(memcmp(b.payload, "abc", 3)));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);

	memset(&m, 0, sizeof(m));
	m.body.type = RF_SET_SIZE;
	m.body.rf_body_u.set_size.file.volume = a.volume;
	m.body.rf_body_u.set_size.file.fid = s.fid;
	m.body.rf_body_u.set_size.file.path = "f";
	m.body.rf_body_u.set_size.request = 2;
	m.body.rf_body_u.set_size.size = 4;
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 4));
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[0].off, 4));
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[0].len, 9));
	cr_assert(eq(sz, b.len, 0));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);

	m.body.rf_body_u.set_size.request = 3;
	m.body.rf_body_u.set_size.size = 8;
	m.body.rf_body_u.set_size.grow_only = TRUE;
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 8));
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(sz, b.len, 4));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	m.body.rf_body_u.set_size.request = 4;
	m.body.rf_body_u.set_size.size = 2; /* never shrinks */
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 8));
	cr_assert(eq(u64, applied(&a)->dv_before, applied(&a)->status.dv));
	EXPECT(&a, RF_RELEASED);
	NOTHING(&b);

	memset(&m, 0, sizeof(m));
	m.body.type = RF_FALLOC;
	m.body.rf_body_u.falloc.file.volume = a.volume;
	m.body.rf_body_u.falloc.file.fid = s.fid;
	m.body.rf_body_u.falloc.file.path = "f";
	m.body.rf_body_u.falloc.request = 5;
	m.body.rf_body_u.falloc.mode = PUNCH;
	m.body.rf_body_u.falloc.range.off = 1;
	m.body.rf_body_u.falloc.range.len = 100;
	tc_send(&a, &m, NULL, 0);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&b, RF_BREAK);
	cr_assert(eq(u64, br(&b)->ranges.ranges_val[0].len, 7));
	cr_assert(eq(sz, b.len, 7));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("f"), "0"));
	tc_close(&a);
	tc_close(&b);
}

Test(server, repeated_request_is_applied_once)
{
	struct rf_msg m = {.body.type = RF_APPEND};
	struct tc a, b;
	rf_status s;
	int i;

	put_file("f", "");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	m.body.rf_body_u.append.file.volume = a.volume;
	m.body.rf_body_u.append.file.fid = s.fid;
	m.body.rf_body_u.append.file.path = "f";
	for (i = 0; i < 2; i++) {
		m.body.rf_body_u.append.request = 7;
		m.body.rf_body_u.append.durable = TRUE;
		tc_send(&a, &m, "abc", 3);
		EXPECT(&a, RF_APPLIED);
		cr_assert(eq(u64, applied(&a)->off, 0));
		EXPECT(&a, RF_RELEASED);
		tc_close(&a);
		tc_open(&a, sock, 1);
	}
	cr_assert(eq(str, (char *)get_file("f"), "abc"));

	/* Lost while it waits for somebody's acknowledgement: the wait goes on for the new
	 * connection. */
	tc_open(&b, sock, 2);
	tc_find(&b, "f", RF_LK_READ);
	tc_store(&a, &s.fid, "f", 8, 0, "X", false);
	EXPECT(&a, RF_APPLIED);
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_store(&a, &s.fid, "f", 8, 0, "X", false);
	EXPECT(&a, RF_APPLIED);
	NOTHING(&a);
	EXPECT(&b, RF_BREAK);
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	/* Another client's ids are its own. */
	tc_store(&b, &s.fid, "f", 8, 1, "Y", false);
	EXPECT(&b, RF_APPLIED);
	cr_assert(eq(str, (char *)get_file("f"), "XYc"));
	tc_close(&a);
	tc_close(&b);
}

/* ---- names and rights ---- */

Test(server, nothing_outside_the_export)
{
	static const struct {
		const char *path;
		u_int err;
	} bad[] = {
	    {"../secret", EACCES},
	    {"sub/../../secret", EACCES},
	    {"/etc/passwd", EACCES},
	    {"out", EACCES},
	    {"abs", EACCES},
	    {"proc", EACCES},
	    {"sub", EISDIR},
	    {".", EISDIR},
	    {"fifo", EINVAL},
	    {"none", ENOENT},
	    {"", ENOENT},
	    {"loop", EACCES},
	    {"f/x", ENOTDIR},
	};
	char path[128];
	struct tc a;
	rf_status s;
	size_t i;

	put_file("f", "in");
	snprintf(path, sizeof(path), "%s/secret", base);
	close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666));
	cr_assert(not(mkdir(at("sub"), 0777)));
	cr_assert(not(symlink("../secret", at("out"))));
	cr_assert(not(symlink("/etc/passwd", at("abs"))));
	cr_assert(not(symlink("/proc/self/fd/0", at("proc"))));
	cr_assert(not(symlink("loop", at("loop"))));
	cr_assert(not(symlink("../f", at("sub/in"))));
	cr_assert(not(symlink("made", at("dangling"))));
	cr_assert(not(mkfifo(at("fifo"), 0666)));
	tc_open(&a, sock, 1);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		tc_lookup(&a, bad[i].path, RF_LK_READ, 0);
		cr_assert(eq(int, tc_recv(&a, SOON), RF_ERROR), "%s", bad[i].path);
		cr_expect(eq(u32, a.msg.body.rf_body_u.error.err, bad[i].err), "%s", bad[i].path);
	}
	tc_lookup(&a, "../made", RF_LK_READ | RF_LK_CREATE, 0644);
	ERROR(&a, EACCES);
	tc_lookup(&a, "out", RF_LK_READ | RF_LK_CREATE | RF_LK_EXCL, 0644);
	ERROR(&a, EEXIST);
	/* What stays inside is fine. */
	s = tc_find(&a, "sub/in", RF_LK_READ);
	cr_assert(eq(u64, s.size, 2));
	tc_find(&a, "dangling", RF_LK_CREATE);
	cr_assert(not(access(at("made"), F_OK)));
	tc_close(&a);
}

Test(server, create)
{
	struct tc a;
	rf_status s, s2;

	tc_open(&a, sock, 1);
	s = tc_find(&a, "new", RF_LK_READ | RF_LK_WRITE | RF_LK_CREATE | RF_LK_EXCL);
	cr_assert(eq(u32, s.mode, S_IFREG | 0644));
	cr_assert(eq(u64, s.size, 0));
	s2 = tc_find(&a, "new", RF_LK_READ | RF_LK_CREATE);
	cr_assert(eq(u64, s.fid.ino, s2.fid.ino));
	tc_lookup(&a, "new", RF_LK_CREATE | RF_LK_EXCL, 0600);
	ERROR(&a, EEXIST);
	tc_close(&a);
}

Test(server, acts_with_the_peers_rights)
{
	struct stat sb;
	struct tc a, b;
	rf_status s, s2, hidden;

	if (geteuid())
		cr_skip("needs root");
	put_file("secret", "x");
	chmod(at("secret"), 0600);
	put_file("readable", "x");
	chmod(at("readable"), 0644);
	mkdir(at("priv"), 0700);
	put_file("priv/f", "x");
	chmod(at("priv/f"), 0666);
	mkdir(at("ro"), 0755);
	tc_open(&a, sock, 1);
	s = tc_find(&a, "secret", RF_LK_READ | RF_LK_WRITE); /* the server knows it now */
	hidden = tc_find(&a, "priv/f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "secret", 1, 0, "y", false); /* and has acted as root */
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	if (as_nobody()) {
		CHILD(tc_connect(&b, sock) && tc_hello(&b, 1) == 0); /* same id, other user */
		tc_lookup(&b, "secret", RF_LK_READ, 0);
		CHILD(error_of(&b) == EACCES);
		tc_fetch(&b, &s.fid, "secret", 0, 10, true);
		CHILD(error_of(&b) == EACCES);
		tc_store(&b, &s.fid, "secret", 1, 0, "z", false);
		CHILD(error_of(&b) == EACCES);
		/* Known by id to the server, but not reachable for this user. */
		tc_fetch(&b, &hidden.fid, "priv/f", 0, 10, true);
		CHILD(error_of(&b) == EACCES);
		tc_status(&b, &hidden.fid, "readable", true);
		CHILD(error_of(&b) == ESTALE);
		tc_lookup(&b, "readable", RF_LK_WRITE, 0);
		CHILD(error_of(&b) == EACCES);
		tc_lookup(&b, "ro/new", RF_LK_CREATE, 0666);
		CHILD(error_of(&b) == EACCES);
		tc_lookup(&b, "mine", RF_LK_CREATE | RF_LK_WRITE, 0600);
		CHILD(reply(&b) == RF_STATUS_R);
		CHILD(st(&b)->uid == 65534 && st(&b)->gid == 65534 &&
		      st(&b)->mode == (S_IFREG | 0600));
		/* Made read-only: its maker goes on writing, until its mode says otherwise. */
		tc_lookup(&b, "once", RF_LK_CREATE | RF_LK_EXCL | RF_LK_WRITE, 0444);
		CHILD(reply(&b) == RF_STATUS_R);
		s2 = *st(&b);
		tc_store(&b, &s2.fid, "once", 2, 0, "data", true);
		CHILD(reply(&b) == RF_APPLIED && reply(&b) == RF_RELEASED);
		CHILD(chmod(at("once"), 0400) == 0);
		tc_store(&b, &s2.fid, "once", 3, 0, "DATA", true);
		CHILD(error_of(&b) == EACCES);
		/* Rights that were there when it was opened, and are gone now. */
		tc_lookup(&b, "mine", RF_LK_READ | RF_LK_WRITE, 0);
		CHILD(reply(&b) == RF_STATUS_R);
		s2 = *st(&b);
		tc_fetch(&b, &s2.fid, "mine", 0, 10, false);
		CHILD(reply(&b) == RF_FETCH_R);
		CHILD(chmod(at("mine"), 0) == 0);
		tc_fetch(&b, &s2.fid, "mine", 0, 10, false);
		CHILD(error_of(&b) == EACCES);
		_exit(0);
	}
	cr_assert(not(stat(at("mine"), &sb)));
	cr_assert(eq(u32, sb.st_uid, 65534));
	cr_assert(eq(str, (char *)get_file("secret"), "y"));
	/* And root is root again. */
	tc_fetch(&a, &s.fid, "secret", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	tc_close(&a);
}

/* ---- restart ---- */

Test(server, restart)
{
	rf_status s, s2, s3;
	uint64_t instance;
	struct tc a;

	put_file("f", "hello");
	put_file("g", "hello");
	put_file("h", "hello");
	tc_open(&a, sock, 1);
	instance = a.hello.instance;
	s = tc_find(&a, "f", RF_LK_READ);
	s2 = tc_find(&a, "g", RF_LK_READ);
	s3 = tc_find(&a, "h", RF_LK_READ);
	stop_server(SIGKILL);
	EXPECT(&a, -1);
	tc_close(&a);
	others_write("g", 0, "J");
	others_rename("h", "i");
	put_file("h", "other");
	start_server(); /* over the socket that the dead one left */
	tc_open(&a, sock, 1);
	cr_assert(ne(u64, a.hello.instance, instance));
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->dv, s.dv), "untouched: nothing to fetch anew");
	tc_status(&a, &s2.fid, "g", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(ne(u64, st(&a)->dv, s2.dv));
	tc_status(&a, &s3.fid, "h", true);
	ERROR(&a, ESTALE);
	tc_status(&a, &s3.fid, "gone", true);
	ERROR(&a, ESTALE);
	tc_status(&a, &s3.fid, "i", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->fid.ino, s3.fid.ino));
	tc_close(&a);
}

/* ---- special servers ---- */

static void setup_shm(void)
{
	setup_at("/dev/shm");
	start_server();
}

static void setup_few(void)
{
	setup_at("/tmp");
	config.max_files = 4;
	start_server();
}

/* An engine whose disk takes 200 ms for a read. */
/* An engine whose reads have the bytes and keep them until nobody holds them back. */
#define SLOW 50 /* ms: or so long */
static struct store_ops slow_ops;
static struct {
	_Atomic bool hold;
	_Atomic unsigned reads;
} * slow;

static ssize_t slow_read(struct store_file *file, const struct store_cred *cred, void *buf,
			 size_t len, uint64_t off, bool nowait)
{
	ssize_t n;

	if (nowait)
		return -EAGAIN;
	n = store_dir.read(file, cred, buf, len, off, false);
	atomic_fetch_add(&slow->reads, 1);
	usleep(SLOW * 1000);
	while (atomic_load(&slow->hold))
		usleep(1000);
	return n;
}

static void setup_slow(void)
{
	setup_at("/tmp");
	slow_ops = store_dir;
	slow_ops.read = slow_read;
	config.ops = &slow_ops;
	slow = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(slow != MAP_FAILED);
	start_server();
}

/* An engine that counts how often it makes something durable. */
static struct store_ops count_ops;
static _Atomic unsigned *syncs;

static bool count_never(struct store_vol *vol)
{
	(void)vol;
	return false;
}

static int count_sync(struct store_file *file)
{
	(void)file;
	atomic_fetch_add(syncs, 1);
	return 0;
}

static void setup_count(void)
{
	setup_at("/tmp");
	syncs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(syncs != MAP_FAILED);
	count_ops = store_dir;
	count_ops.never_durable = count_never;
	count_ops.sync = count_sync;
	config.ops = &count_ops;
	start_server();
}

/* A file system of 64 KiB, in the server's own mount namespace. */
static void setup_full(void)
{
	setup_at("/tmp");
	if (geteuid() || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("t", dir, "tmpfs", 0, "size=64k,mode=777"))
		return;
	start_server();
}

/* Without fanotify, and without both: as on kernels and file systems that lack them. */
static void deny(int nr)
{
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = 4, .filter = code};

	cr_assert(not(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)));
	cr_assert(not(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)));
}

static void setup_inotify(void)
{
	setup_at("/tmp");
	deny(SYS_fanotify_init);
	start_server();
}

static void setup_polling(void)
{
	setup_at("/tmp");
	deny(SYS_fanotify_init);
	deny(SYS_inotify_init1);
	start_server();
}

TestSuite(server_inotify, .init = setup_inotify, .fini = teardown, .timeout = 300);
TestSuite(server_polling, .init = setup_polling, .fini = teardown, .timeout = 300);
TestSuite(server_shm, .init = setup_shm, .fini = teardown, .timeout = 300);
TestSuite(server_few, .init = setup_few, .fini = teardown, .timeout = 300);
TestSuite(server_slow, .init = setup_slow, .fini = teardown, .timeout = 300);
TestSuite(server_count, .init = setup_count, .fini = teardown, .timeout = 300);
TestSuite(server_full, .init = setup_full, .fini = teardown, .timeout = 300);

Test(server_shm, third_party_tmpfs)
{
	third_party();
}

Test(server_inotify, third_party)
{
	third_party();
}

Test(server_inotify, own_changes)
{
	own_changes();
}

Test(server_polling, third_party)
{
	struct stat sb;
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	others_write("f", 0, "J");
	EXPECT(&a, RF_BREAK);
	cr_assert(ne(u64, br(&a)->status.dv, s.dv));
	s.dv = br(&a)->status.dv;
	/* Or at once, when somebody asks; also if they turn back the time. */
	cr_assert(not(stat(at("f"), &sb)));
	others_write("f", 1, "E");
	cr_assert(
	    not(utimensat(AT_FDCWD, at("f"), (struct timespec[2]){sb.st_atim, sb.st_mtim}, 0)));
	tc_status(&a, &s.fid, "f", false);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(ne(u64, st(&a)->dv, s.dv));
	tc_close(&a);
}

Test(server_polling, own_changes)
{
	own_changes();
}

/* A write-back of many stores, of which the last asks for durability, is one fdatasync. */
Test(server_count, many_stores_are_made_durable_once)
{
	enum { STORES = 20, N = 100000 };
	char *data = calloc(1, N);
	struct rf_msg m = {.body.type = RF_STORE};
	rf_store *so = &m.body.rf_body_u.store;
	rf_range r = {.off = 0, .len = N};
	int i, released = 0;
	struct tc a;
	rf_status s;

	put_file("f", "");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->may_extend = TRUE;
	so->soon = TRUE;
	so->ranges.ranges_len = 1;
	so->ranges.ranges_val = &r;
	for (i = 1; i <= STORES; i++) {
		so->request = (uint64_t)i;
		so->durable = i == STORES;
		tc_send(&a, &m, data, N);
		r.off += N;
	}
	while (released < STORES) {
		i = tc_recv(&a, 10000);
		cr_assert(i == RF_APPLIED || i == RF_RELEASED, "got %d", i);
		released += i == RF_RELEASED;
	}
	cr_assert(eq(u32, atomic_load(syncs), 1));
	tc_sync(&a, &s.fid, "f", true);
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(u32, atomic_load(syncs), 2));
	tc_sync(&a, &s.fid, "f", false);
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(u32, atomic_load(syncs), 2));
	free(data);
	tc_close(&a);
}

Test(server_slow, one_slow_read_delays_nobody)
{
	struct tc a, b;
	rf_status s, g;

	put_file("f", "hello");
	put_file("g", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	atomic_store(&slow->hold, true);
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	/* The same client, the same file, another file, another client. */
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	g = tc_find(&b, "g", RF_LK_READ);
	tc_store(&b, &g.fid, "g", 1, 0, "J", false);
	EXPECT(&b, RF_APPLIED);
	NOTHING(&a);
	atomic_store(&slow->hold, false);
	EXPECT(&a, RF_FETCH_R);
	tc_close(&a);
	tc_close(&b);
}

/* A change while the old bytes are being read: they are not given out as the new ones. */
Test(server_slow, change_during_a_read)
{
	struct tc a, b;
	uint64_t dv;
	rf_status s;
	int i;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", 0);
	atomic_store(&slow->hold, true);
	tc_fetch(&b, &s.fid, "f", 0, 10, true);
	while (!atomic_load(&slow->reads))
		usleep(1000);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&a, RF_APPLIED);
	dv = applied(&a)->status.dv;
	EXPECT(&b, RF_BREAK);
	tc_ack(&b, br(&b)->id);
	atomic_store(&slow->hold, false);
	EXPECT(&b, RF_FETCH_R);
	cr_assert(eq(u64, b.msg.body.rf_body_u.fetch_r.status.dv, dv));
	cr_assert(b.msg.body.rf_body_u.fetch_r.status.promise_ms > 0);
	cr_assert(not(memcmp(b.payload, "Jello", 5)));
	EXPECT(&a, RF_RELEASED);

	/* Changed without end: it gets its answer all the same. */
	tc_fetch(&b, &s.fid, "f", 0, 10, false);
	for (i = 2; i < 4000; i++) {
		tc_store(&a, &s.fid, "f", (uint64_t)i, 4, "x", false);
		usleep(SLOW * 1000 / 4);
		while (tc_recv(&b, 1) == RF_BREAK)
			tc_ack(&b, br(&b)->id);
		if (b.msg.body.type == RF_FETCH_R)
			break;
	}
	cr_assert(i < 4000);
	cr_assert(not(memcmp(b.payload, "Jellx", 5)));
	tc_close(&a);
	tc_close(&b);
}

/* More files than may be open: promises are broken to make room, and kept or broken, never lost. */
Test(server_few, more_files_than_may_be_open)
{
	rf_status s[20];
	struct tc a, b;
	char name[8];
	int i, type, n = 0;

	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	for (i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		put_file(name, "x");
		tc_lookup(&b, name, RF_LK_READ, 0);
		while ((type = tc_recv(&b, SOON)) == RF_BREAK) {
			tc_ack(&b, br(&b)->id);
			n++;
		}
		cr_assert(eq(int, type, RF_STATUS_R));
		s[i] = *st(&b);
	}
	cr_assert(n >= 10, "%d promises were broken for room", n);
	for (i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		tc_store(&a, &s[i].fid, name, (uint64_t)i + 1, 0, "y", false);
		EXPECT(&a, RF_APPLIED);
		cr_assert(eq(u64, applied(&a)->dv_before, s[i].dv));
		while (tc_recv(&a, 5) != RF_RELEASED)
			while (tc_recv(&b, 5) == RF_BREAK)
				tc_ack(&b, br(&b)->id);
	}
	tc_close(&a);
	tc_close(&b);
}

Test(server_full, whole_or_not_at_all)
{
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r[2] = {{0, 4}, {4096, 100000}};
	rf_store *so = &m.body.rf_body_u.store;
	char *data = calloc(1, 100004);
	struct tc a;
	rf_status s;

	if (!server)
		cr_skip("needs root");
	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	so->file.volume = a.volume;
	so->file.fid = s.fid;
	so->file.path = "f";
	so->request = 1;
	so->may_extend = TRUE;
	so->ranges.ranges_len = 2;
	so->ranges.ranges_val = r;
	tc_send(&a, &m, data, 100004);
	ERROR(&a, ENOSPC);
	cr_assert(eq(str, (char *)get_file("f"), "hello"));
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->dv, s.dv));
	cr_assert(eq(u64, st(&a)->size, 5));
	/* What was refused is not remembered as done. */
	r[1].len = 100;
	tc_send(&a, &m, data, 104);
	EXPECT(&a, RF_APPLIED);
	cr_assert(eq(u64, applied(&a)->status.size, 4196));
	free(data);
	tc_close(&a);
	umount2(dir, MNT_DETACH);
}
