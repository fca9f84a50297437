/* SPDX-License-Identifier: MIT */
/*
 * server_rights_test.c - whose rights the server acts with, and what it refuses: keys, their end,
 * chmod, full and read-only file systems, files that are gone.
 */
#include "srv_own.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static char keys[80];

/* As an administrator does it: never half a file. */
static void put_key_mode(const char *name, const char *text, mode_t mode)
{
	char tmp[200], path[200];
	int fd;

	snprintf(tmp, sizeof(tmp), "%s/.%s", keys, name);
	snprintf(path, sizeof(path), "%s/%s", keys, name);
	fd = open(tmp, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	cr_assert(fd >= 0);
	cr_assert(eq(i64, write(fd, text, strlen(text)), (ssize_t)strlen(text)));
	fchmod(fd, mode);
	close(fd);
	cr_assert(not(rename(tmp, path)));
}

static void put_key(const char *name, const char *text)
{
	put_key_mode(name, text, 0600);
}

/* The server has read its keys anew; tc is told. */
static void hangup(struct tc *tc)
{
	kill(server, SIGHUP);
	while (tc_recv(tc, SOON) != RF_INIT_STATE)
		cr_assert(gt(int, (int)tc->msg.body.type, 0));
}

static void setup_keys_at(const char *where)
{
	setup_at(where);
	snprintf(keys, sizeof(keys), "%s/keys", base);
	mkdir(keys, 0700);
	config.keys = keys;
}

static void setup_keys(void)
{
	setup_keys_at("/tmp");
	put_key("mine", "secret m\n");
	put_key("other", "secret m\n");
	put_key("nobody", "secret n\nuid 65534\ngid 65534\n");
	put_key("gone", "secret g\nrevoked\n");
	put_key("late", "secret l\nexpires 2001-01-01T00:00:00Z\n");
	put_key("bad", "secret b c\n");
	put_key("backup~", "secret m\n");
	start_server();
}

TestSuite(server_key, .init = setup_keys, .fini = teardown, .timeout = 300);

static void all_calls(struct tc *a, const rf_fid *fid, int err)
{
	struct rf_msg m = {.body.type = RF_SET_SIZE};
	rf_file file = {.volume = a->volume, .key = a->key, .fid = *fid, .path = "f"};
	const struct tc_at mine = {fid, "f", 0, a->key}, good = {fid, "f", 3, 0};
	static uint64_t request = 1000;

	tc_lookup(a, "f", RF_LK_READ, 0);
	cr_assert(eq(int, error_of(a), err), "lookup under %u", a->key);
	tc_lookup(a, "new", RF_LK_CREATE, 0666);
	cr_assert(eq(int, error_of(a), err), "create under %u", a->key);
	cr_assert(access(at("new"), F_OK) != 0, "created all the same");
	tc_status(a, fid, "f", true);
	cr_assert(eq(int, error_of(a), err), "status under %u", a->key);
	tc_fetch(a, fid, "f", 0, 10, true);
	cr_assert(eq(int, error_of(a), err), "fetch under %u", a->key);
	tc_store(a, fid, "f", ++request, 0, "STORED", true);
	cr_assert(eq(int, error_of(a), err), "store under %u", a->key);
	m.body.rf_body_u.set_size.file = file;
	m.body.rf_body_u.set_size.request = ++request;
	tc_send(a, &m, NULL, 0);
	cr_assert(eq(int, error_of(a), err), "set size under %u", a->key);
	memset(&m, 0, sizeof(m));
	m.body.type = RF_APPEND;
	m.body.rf_body_u.append.file = file;
	m.body.rf_body_u.append.request = ++request;
	tc_send(a, &m, "APPENDED", 8);
	cr_assert(eq(int, error_of(a), err), "append under %u", a->key);
	memset(&m, 0, sizeof(m));
	m.body.type = RF_FALLOC;
	m.body.rf_body_u.falloc.file = file;
	m.body.rf_body_u.falloc.request = ++request;
	m.body.rf_body_u.falloc.mode = PUNCH;
	m.body.rf_body_u.falloc.range.len = 3;
	tc_send(a, &m, NULL, 0);
	cr_assert(eq(int, error_of(a), err), "punch under %u", a->key);
	tc_seek(a, &mine, SEEK_DATA);
	cr_assert(eq(int, error_of(a), err), "seek under %u", a->key);
	/* One of the two is enough. */
	tc_remap(a, &mine, &good, ++request, RF_REMAP_COPY, 3);
	cr_assert(eq(int, error_of(a), err), "copy from %u", a->key);
	tc_remap(a, &good, &mine, ++request, RF_REMAP_COPY, 3);
	cr_assert(eq(int, error_of(a), err), "copy to %u", a->key);
}

Test(server_key, each_refusal)
{
	static const struct {
		const char *name, *secret;
		int err;
	} key[] = {
	    {"mine", "m", 0},
	    {"mine", "wrong", EKEYREJECTED},
	    {"mine", "", EKEYREJECTED},
	    {"unknown", "m", EKEYREJECTED},
	    {"gone", "g", EKEYREVOKED},
	    {"gone", "wrong", EKEYREJECTED},
	    {"late", "l", EKEYEXPIRED},
	    {"late", "wrong", EKEYREJECTED},
	    {"bad", "b", EKEYREVOKED},
	    {"backup~", "m", EKEYREJECTED},
	    {"../keys/mine", "m", EKEYREJECTED},
	    {"", "m", EKEYREJECTED},
	};
	const u_int n = sizeof(key) / sizeof(key[0]);
	struct tc a;
	rf_status s;
	u_int i;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	for (i = 0; i < n; i++)
		tc_key(&a, i + 1, key[i].name, key[i].secret);
	for (i = 0; i < n; i++) {
		a.key = i + 1;
		if (key[i].err)
			all_calls(&a, &s.fid, key[i].err);
	}
	a.key = n + 1; /* never shown */
	all_calls(&a, &s.fid, EKEYREJECTED);
	a.key = RF_MAX_KEYS;
	all_calls(&a, &s.fid, EKEYREJECTED);
	a.key = UINT32_MAX;
	all_calls(&a, &s.fid, EKEYREJECTED);
	cr_assert(eq(str, (char *)get_file("f"), "hello"));
	a.key = 1;
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	/* What a handle means on one connection it means on no other. */
	tc_close(&a);
	tc_open(&a, sock, 1);
	a.key = 1;
	all_calls(&a, &s.fid, EKEYREJECTED);
	tc_close(&a);
}

Test(server_key, handles_that_are_none)
{
	static const u_int bad[] = {0, RF_MAX_KEYS, UINT32_MAX};
	struct tc a, b;
	int i;

	tc_open(&b, sock, 2);
	for (i = 0; i < 3; i++) {
		tc_open(&a, sock, 1);
		tc_key(&a, bad[i], "mine", "m");
		EXPECT(&a, -1);
		tc_close(&a);
	}
	tc_ping(&b);
	EXPECT(&b, RF_PONG);
	tc_close(&b);
}

Test(server_key, rights_of_the_key)
{
	struct stat sb;
	struct tc a;
	rf_status s;

	if (geteuid())
		cr_skip("needs root");
	put_file("secret", "x");
	chmod(at("secret"), 0600);
	put_file("grouped", "x");
	cr_assert(not(chown(at("grouped"), 0, 12345)));
	chmod(at("grouped"), 0040);
	put_key("grouped", "secret g\nuid 65534\ngid 65534\ngroups 54321,12345\n");
	put_key("primary", "secret g\nuid 65534\ngid 12345\n");
	tc_open(&a, sock, 1);
	hangup(&a);
	tc_key(&a, 1, "nobody", "n");
	tc_key(&a, 2, "mine", "m");
	tc_key(&a, 3, "grouped", "g");
	tc_key(&a, 4, "primary", "g");
	s = tc_find(&a, "secret", RF_LK_READ | RF_LK_WRITE);
	a.key = 1;
	tc_lookup(&a, "secret", RF_LK_READ, 0);
	cr_assert(eq(int, error_of(&a), EACCES));
	tc_fetch(&a, &s.fid, "secret", 0, 10, true);
	cr_assert(eq(int, error_of(&a), EACCES));
	tc_store(&a, &s.fid, "secret", 1, 0, "y", false);
	cr_assert(eq(int, error_of(&a), EACCES));
	tc_lookup(&a, "grouped", RF_LK_READ, 0);
	cr_assert(eq(int, error_of(&a), EACCES));
	tc_lookup(&a, "new", RF_LK_CREATE | RF_LK_WRITE, 0600);
	cr_assert(eq(int, reply(&a), RF_STATUS_R));
	cr_assert(not(stat(at("new"), &sb)));
	cr_assert(eq(u32, sb.st_uid, 65534));
	cr_assert(eq(u32, sb.st_gid, 65534));
	a.key = 2; /* the peer's own */
	tc_fetch(&a, &s.fid, "secret", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	a.key = 3;
	tc_find(&a, "grouped", RF_LK_READ);
	tc_lookup(&a, "grouped", RF_LK_WRITE, 0);
	cr_assert(eq(int, error_of(&a), EACCES));
	a.key = 4;
	tc_find(&a, "grouped", RF_LK_READ);
	tc_close(&a);
}

/* A file that may only be read, one that may only be written: what needs which right, of whom. */
Test(server_key, two_files_two_keys)
{
	static const char *const name[] = {"none", "r", "w", "rw"};
	struct tc_at src, dst;
	rf_status s[4];
	u_int i, k, kind;
	uint64_t request = 0;
	struct tc a;

	if (geteuid())
		cr_skip("needs root");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "nobody", "n");
	for (i = 0; i < 4; i++) {
		put_file(name[i], "0123456789");
		chmod(at(name[i]), (i & 1 ? 0404 : 0) | (i & 2 ? 0202 : 0));
		a.key = 0;
		s[i] = tc_find(&a, name[i], 0);
		a.key = 1;
		tc_find(&a, name[i], 0);
		dst = (struct tc_at){&s[i].fid, name[i], 0, 1};
		tc_seek(&a, &dst, SEEK_DATA);
		cr_assert(eq(int, error_of(&a), i & 1 ? 0 : EACCES), "seek %s", name[i]);
		tc_falloc(&a, &dst, ++request, PUNCH, 1);
		cr_assert(eq(int, error_of(&a), i & 2 ? 0 : EACCES), "punch %s", name[i]);
		if (i & 2)
			cr_assert(eq(int, reply(&a), RF_RELEASED));
		tc_falloc(&a, &dst, ++request, 0, 1);
		cr_assert(eq(int, error_of(&a), i & 2 ? 0 : EACCES), "allocate %s", name[i]);
		if (i & 2)
			cr_assert(eq(int, reply(&a), RF_RELEASED));
	}
	/* Each pair, the source under one key and the file under another. */
	for (i = 0; i < 16; i++) {
		for (k = 0; k < 4; k++) {
			bool may = (!(k & 1) || i & 1) && (!(k & 2) || i & 8);

			src = (struct tc_at){&s[i & 3].fid, name[i & 3], 0, k & 1};
			dst = (struct tc_at){&s[i >> 2].fid, name[i >> 2], 5, k >> 1};
			for (kind = RF_REMAP_CLONE; kind <= RF_REMAP_COPY; kind++) {
				tc_remap(&a, &src, &dst, ++request, kind, 2);
				/* Those that may are told that the file system does not. */
				if (may && kind == RF_REMAP_COPY) {
					cr_assert(eq(int, reply(&a), RF_APPLIED), "%u %u", i, k);
					cr_assert(eq(u64, applied(&a)->off, 2));
					cr_assert(eq(int, reply(&a), RF_RELEASED));
				} else if (may) {
					cr_assert(ne(int, error_of(&a), EACCES), "%u %u", i, k);
				} else {
					cr_assert(eq(int, error_of(&a), EACCES), "%u %u", i, k);
				}
			}
		}
	}
	tc_close(&a);
}

/* A file that this key has not found, by a name that leads to another by now. */
Test(server_key, source_that_was_not_found)
{
	struct tc_at src = {.path = "src", .key = 1}, dst = {.path = "f", .key = 2};
	rf_status s, f;
	struct tc a;

	put_file("src", "source");
	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "other", "m");
	a.key = 2;
	s = tc_find(&a, "src", RF_LK_READ);
	f = tc_find(&a, "f", RF_LK_WRITE);
	src.fid = &s.fid;
	dst.fid = &f.fid;
	others_rename("src", "moved");
	tc_remap(&a, &src, &dst, 1, RF_REMAP_COPY, 3);
	cr_assert(eq(int, error_of(&a), ESTALE));
	/* By its name it is found on the way. */
	src.path = "moved";
	tc_remap(&a, &src, &dst, 2, RF_REMAP_COPY, 3);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	cr_assert(eq(str, (char *)get_file("f"), "soulo"));
	tc_close(&a);
}

/* Somebody who may nothing himself may what his key says. */
Test(server_key, more_than_the_peer_may)
{
	rf_status s;
	struct tc b;

	if (geteuid())
		cr_skip("needs root");
	put_file("secret", "x");
	chmod(at("secret"), 0600);
	put_key("root", "secret r\nuid 0\ngid 0\n");
	tc_open(&b, sock, 1);
	hangup(&b);
	tc_close(&b);
	if (as_nobody()) {
		CHILD(tc_connect(&b, sock) && tc_hello(&b, 1) == 0);
		tc_key(&b, 1, "root", "r");
		tc_key(&b, 2, "mine", "m");
		tc_lookup(&b, "secret", RF_LK_READ, 0);
		CHILD(error_of(&b) == EACCES);
		b.key = 1;
		tc_lookup(&b, "secret", RF_LK_READ, 0);
		CHILD(reply(&b) == RF_STATUS_R);
		s = *st(&b);
		tc_store(&b, &s.fid, "secret", 1, 0, "y", false);
		CHILD(reply(&b) == RF_APPLIED && reply(&b) == RF_RELEASED);
		b.key = 2;
		tc_store(&b, &s.fid, "secret", 2, 0, "z", false);
		CHILD(error_of(&b) == EACCES);
		b.key = 0;
		tc_store(&b, &s.fid, "secret", 3, 0, "z", false);
		CHILD(error_of(&b) == EACCES);
		_exit(0);
	}
	cr_assert(eq(str, (char *)get_file("secret"), "y"));
}

/* Without root there is nobody else to act for. */
Test(server_key, server_that_is_not_root)
{
	static const struct {
		const char *name, *text;
		int err;
	} key[] = {
	    {"plain", "secret s\n", 0},
	    {"self", "secret s\nuid 65534\n", 0},
	    {"root", "secret s\nuid 0\n", EKEYREJECTED},
	    {"group", "secret s\ngid 12345\n", EKEYREJECTED},
	    {"groups", "secret s\ngroups 12345\n", EKEYREJECTED},
	};
	const u_int n = sizeof(key) / sizeof(key[0]);
	struct tc b;
	u_int i;

	if (geteuid())
		cr_skip("needs root");
	if (!as_nobody())
		return;
	setup_keys_at("/tmp");
	for (i = 0; i < n; i++)
		put_key(key[i].name, key[i].text);
	start_server();
	put_file("f", "x");
	CHILD(tc_connect(&b, sock) && tc_hello(&b, 1) == 0);
	for (i = 0; i < n; i++)
		tc_key(&b, i + 1, key[i].name, "s");
	for (i = 0; i < n; i++) {
		b.key = i + 1;
		tc_lookup(&b, "f", RF_LK_READ, 0);
		CHILD(error_of(&b) == key[i].err);
	}
	tc_close(&b);
	stop_server(SIGTERM);
	teardown();
	_exit(0);
}

Test(server_key, chmod_between_two_stores)
{
	struct tc a;
	rf_status s;

	if (geteuid())
		cr_skip("needs root");
	put_file("f", "hello");
	cr_assert(not(chown(at("f"), 65534, 65534)));
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "nobody", "n");
	a.key = 1;
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	cr_assert(not(chmod(at("f"), 0444)));
	tc_store(&a, &s.fid, "f", 2, 0, "K", false);
	cr_assert(eq(int, error_of(&a), EACCES));
	cr_assert(not(chmod(at("f"), 0644)));
	tc_store(&a, &s.fid, "f", 3, 0, "L", false);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	cr_assert(eq(str, (char *)get_file("f"), "Lello"));
	tc_close(&a);
}

/* ---- the end of a key ---- */

Test(server_key, revoked_rotated_removed)
{
	char path[200];
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "other", "m");
	a.key = 1;
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	put_key("mine", "secret m\nrevoked\n");
	tc_store(&a, &s.fid, "f", 1, 0, "1", false);
	EXPECT(&a, RF_APPLIED); /* nobody has told the server */
	EXPECT(&a, RF_RELEASED);
	hangup(&a);
	all_calls(&a, &s.fid, EKEYREVOKED);
	a.key = 2;
	tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	a.key = 1;

	put_key("mine", "secret new\n");
	hangup(&a);
	all_calls(&a, &s.fid, EKEYREJECTED);
	tc_key(&a, 1, "mine", "new");
	tc_store(&a, &s.fid, "f", 2, 0, "2", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);

	snprintf(path, sizeof(path), "%s/mine", keys);
	cr_assert(not(unlink(path)));
	hangup(&a);
	all_calls(&a, &s.fid, EKEYREVOKED);
	put_key("mine", "secret new\n");
	hangup(&a);
	tc_store(&a, &s.fid, "f", 3, 0, "3", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);

	put_key_mode("mine", "secret new\n", 0644);
	hangup(&a);
	all_calls(&a, &s.fid, EKEYREVOKED);
	cr_assert(eq(str, (char *)get_file("f"), "3ello"));
	tc_close(&a);
}

/* A request that was applied stays applied: asked again, it is told so, whatever became of the key. */
Test(server_key, repeated_after_its_key_was_revoked)
{
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	a.key = 1;
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&a, RF_APPLIED);
	put_key("mine", "secret m\nrevoked\n");
	hangup(&a);
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	a.key = 1;
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	tc_store(&a, &s.fid, "f", 2, 0, "K", false);
	ERROR(&a, EKEYREVOKED);
	tc_close(&a);
}

/* Pages read under a key that has expired since: their news may be told, but not shown. */
Test(server_key, expiry)
{
	long long in = 1;
	char text[64];
	struct tc a, b;
	rf_status s;

	put_file("f", "hello");
	put_key("mine", "secret m\nexpires @99999999999\n");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	hangup(&a);
	EXPECT(&b, RF_INIT_STATE);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_key(&b, 1, "mine", "m");
	b.key = 1;
	tc_find(&b, "f", 0);
	tc_fetch(&b, &s.fid, "f", 0, 10, true);
	EXPECT(&b, RF_FETCH_R);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&b, RF_BREAK);
	cr_assert(br(&b)->known);
	cr_assert(eq(sz, b.len, 1));
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);

	do { /* long enough for one fetch */
		snprintf(text, sizeof(text), "secret m\nexpires @%lld\n", time(NULL) + in);
		put_key("mine", text);
		hangup(&a);
		EXPECT(&b, RF_INIT_STATE);
		tc_fetch(&b, &s.fid, "f", 0, 10, true);
		in++;
	} while (error_of(&b) == EKEYEXPIRED);
	cr_assert(eq(int, (int)b.msg.body.type, RF_FETCH_R));
	do { /* under the peer's own name, and without a right to read shown by that */
		usleep(20000);
		tc_status(&b, &s.fid, "f", true);
	} while (error_of(&b) != EKEYEXPIRED);
	b.key = 0;
	tc_find(&b, "f", 0);
	tc_store(&a, &s.fid, "f", 2, 0, "K", false);
	EXPECT(&b, RF_BREAK);
	cr_assert(br(&b)->known);
	cr_assert(eq(sz, b.len, 0), "bytes for a key that has expired");
	tc_ack(&b, br(&b)->id);
	b.key = 1;
	all_calls(&b, &s.fid, EKEYEXPIRED);
	tc_close(&a);
	tc_close(&b);
}

/* Nor after a revocation, once the promise is renewed by somebody who never read. */
Test(server_key, no_bytes_after_revocation)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_key(&b, 1, "mine", "m");
	b.key = 1;
	tc_find(&b, "f", RF_LK_READ);
	put_key("mine", "secret m\nrevoked\n");
	hangup(&a);
	EXPECT(&b, RF_INIT_STATE);
	b.key = 0;
	tc_find(&b, "f", 0);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&b, RF_BREAK);
	cr_assert(br(&b)->known);
	cr_assert(eq(sz, b.len, 0), "bytes for a key that was revoked");
	tc_close(&a);
	tc_close(&b);
}

/* An engine whose stores take until somebody says so. */
static struct gate {
	_Atomic int shut, entered;
} * gate;
static struct store_ops gate_ops;

static int gate_store(struct store_file *file, const struct store_cred *cred,
		      struct store_change *change, bool nowait)
{
	if (nowait)
		return -EAGAIN;
	gate->entered++;
	while (gate->shut)
		usleep(1000);
	return store_dir.store(file, cred, change, false);
}

static void setup_gate(void)
{
	setup_keys_at("/tmp");
	put_key("mine", "secret m\n");
	put_key("other", "secret m\n");
	gate = mmap(NULL, sizeof(*gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(gate != MAP_FAILED);
	gate_ops = store_dir;
	gate_ops.store = gate_store;
	config.ops = &gate_ops;
	start_server();
}

static void wait_entered(int n)
{
	while (gate->entered < n)
		usleep(1000);
}

TestSuite(server_gate, .init = setup_gate, .fini = teardown, .timeout = 300);

/* Two stores came together; the key is revoked while the first is worked on. */
Test(server_gate, revoked_while_queued)
{
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "other", "m");
	a.key = 1;
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	a.key = 2;
	tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	gate->shut = 1;
	a.key = 1;
	tc_store(&a, &s.fid, "f", 1, 0, "1", false);
	tc_store(&a, &s.fid, "f", 2, 1, "2", false);
	a.key = 2;
	tc_store(&a, &s.fid, "f", 3, 2, "3", false);
	/* What is queued goes on meaning what the handle meant when it was sent. */
	tc_key(&a, 2, "mine", "m");
	wait_entered(1);
	put_key("mine", "secret m\nrevoked\n");
	hangup(&a);
	gate->shut = 0;
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	ERROR(&a, EKEYREVOKED);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("f"), "1e3lo"));
	tc_close(&a);
}

/* The connection is lost while requests queue: they are done, under the keys that they came with. */
/* A copy waits for a store to its source; the key for the source is revoked meanwhile. */
Test(server_gate, source_revoked_while_queued)
{
	struct tc_at src = {.path = "src", .key = 1}, dst = {.path = "f", .key = 2};
	rf_status s, f;
	struct tc a;

	put_file("src", "source");
	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "other", "m");
	a.key = 1;
	s = tc_find(&a, "src", RF_LK_READ);
	a.key = 2;
	tc_find(&a, "src", RF_LK_WRITE);
	f = tc_find(&a, "f", RF_LK_WRITE);
	src.fid = &s.fid;
	dst.fid = &f.fid;
	gate->shut = 1;
	tc_store(&a, &s.fid, "src", 1, 0, "1", false);
	tc_remap(&a, &src, &dst, 2, RF_REMAP_COPY, 3);
	tc_store(&a, &f.fid, "f", 3, 4, "3", false);
	tc_store(&a, &s.fid, "src", 4, 1, "4", false);
	wait_entered(1);
	put_key("mine", "secret m\nrevoked\n");
	hangup(&a);
	gate->shut = 0;
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	ERROR(&a, EKEYREVOKED);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	while (strcmp(get_file("f"), "hell3") != 0 || strcmp(get_file("src"), "14urce") != 0)
		cr_assert(ne(int, reply(&a), 0));
	tc_close(&a);
}

Test(server_gate, lost_connection_keeps_its_keys)
{
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "other", "m");
	a.key = 1;
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	gate->shut = 1;
	tc_store(&a, &s.fid, "f", 1, 0, "1", false);
	tc_store(&a, &s.fid, "f", 2, 1, "2", false);
	a.key = 2;
	tc_store(&a, &s.fid, "f", 3, 2, "3", false);
	a.key = 3; /* nobody */
	tc_store(&a, &s.fid, "f", 4, 3, "4", false);
	wait_entered(1);
	tc_ping(&a); /* all of it has arrived */
	EXPECT(&a, RF_PONG);
	tc_close(&a);
	put_key("other", "secret m\nrevoked\n");
	tc_open(&a, sock, 1);
	hangup(&a);
	gate->shut = 0;
	/* Asked again on a connection on which no key was shown: what is done is done. */
	a.key = 1;
	tc_store(&a, &s.fid, "f", 2, 1, "2", false);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	tc_store(&a, &s.fid, "f", 5, 1, "5", false);
	ERROR(&a, EKEYREJECTED);
	a.key = 0;
	tc_fetch(&a, &s.fid, "f", 0, 10, false);
	EXPECT(&a, RF_FETCH_R);
	cr_assert(not(memcmp(a.payload, "12llo", 5)));
	tc_close(&a);
}

/* ---- an identity finds its files itself ---- */

Test(server_key, each_identity_finds_its_files)
{
	rf_status s, priv;
	struct tc a;

	if (geteuid())
		cr_skip("needs root");
	put_file("f", "hello");
	mkdir(at("priv"), 0700);
	put_file("priv/f", "hello");
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "nobody", "n");
	s = tc_find(&a, "f", RF_LK_READ);
	priv = tc_find(&a, "priv/f", RF_LK_READ | RF_LK_WRITE);
	a.key = 1;
	tc_fetch(&a, &priv.fid, "priv/f", 0, 10, true);
	cr_assert(eq(int, error_of(&a), EACCES), "the way to it is closed to this key");
	tc_store(&a, &priv.fid, "priv/f", 1, 0, "J", false);
	cr_assert(eq(int, error_of(&a), EACCES));
	tc_status(&a, &priv.fid, "priv/f", true);
	cr_assert(eq(int, error_of(&a), EACCES));
	/* Nor by another file's name. */
	tc_status(&a, &priv.fid, "f", true);
	cr_assert(eq(int, error_of(&a), ESTALE));
	/* What it has found it knows, whatever its name now, also on a new connection ... */
	tc_status(&a, &s.fid, "f", true);
	cr_assert(eq(int, reply(&a), RF_STATUS_R));
	others_rename("f", "g");
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "nobody", "n");
	a.key = 1;
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	hangup(&a); /* and when keys are read that are no others */
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	/* ... but not somebody else under the same number. */
	tc_key(&a, 1, "mine", "m");
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, error_of(&a), ESTALE));
	tc_key(&a, 1, "nobody", "n");
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, error_of(&a), ESTALE));
	tc_fetch(&a, &s.fid, "g", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	/* The same key, and now it acts for somebody else. */
	put_key("nobody", "secret n\nuid 65533\ngid 65533\n");
	hangup(&a);
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, error_of(&a), ESTALE));
	tc_close(&a);
}

/* ---- SYNC ---- */

/* b was told and has not answered; a, who changed it, comes back as after a crash. */
static rf_status unanswered(struct tc *a, struct tc *b)
{
	rf_status s;

	put_file("f", "hello");
	tc_open(a, sock, 1);
	tc_open(b, sock, 2);
	s = tc_find(a, "f", RF_LK_READ);
	tc_find(b, "f", RF_LK_READ);
	tc_store(a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(b, RF_BREAK);
	tc_close(a);
	tc_open(a, sock, 1);
	return s;
}

Test(server_key, sync_waits_for_breaks)
{
	struct tc a, b;
	uint64_t id;
	rf_status s;

	s = unanswered(&a, &b);
	id = br(&b)->id;
	tc_sync(&a, &s.fid, "f", false);
	tc_sync(&a, &s.fid, "f", true);
	NOTHING(&a);
	tc_ack(&b, id);
	EXPECT(&a, RF_RELEASED);
	EXPECT(&a, RF_RELEASED);
	tc_sync(&a, &s.fid, "f", false); /* nothing is left to wait for */
	EXPECT(&a, RF_RELEASED);

	/* Two breaks: both. */
	tc_store(&a, &s.fid, "f", 2, 0, "K", false);
	EXPECT(&b, RF_BREAK);
	id = br(&b)->id;
	EXPECT(&a, RF_APPLIED);
	tc_store(&a, &s.fid, "f", 3, 0, "L", false);
	EXPECT(&b, RF_BREAK);
	EXPECT(&a, RF_APPLIED);
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_sync(&a, &s.fid, "f", false);
	tc_ack(&b, id);
	NOTHING(&a);
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

Test(server_key, sync_waits_for_a_lease)
{
	struct tc a, b;
	uint64_t t;
	rf_status s;

	short_leases();
	t = ms();
	s = unanswered(&a, &b);
	tc_sync(&a, &s.fid, "f", false);
	EXPECT(&a, RF_RELEASED);
	cr_assert(ms() - t >= SHORT);
	tc_close(&a);
	tc_close(&b);
}

/* Also a break that says nothing but that something happened, and one that nobody's change made. */
Test(server_key, sync_waits_for_others_changes)
{
	struct tc a, b;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	others_write("f", 0, "J");
	EXPECT(&a, RF_BREAK);
	EXPECT(&b, RF_BREAK);
	tc_sync(&a, &s.fid, "f", false);
	NOTHING(&a);
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	tc_close(&a);
	tc_close(&b);
}

/* The change was released; what others wait for since is not. */
Test(server_key, repeated_request_waits_for_breaks)
{
	struct tc a, b, c;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	tc_open(&b, sock, 2);
	tc_open(&c, sock, 3);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_find(&b, "f", RF_LK_READ);
	tc_find(&c, "f", 0);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&b, RF_BREAK);
	tc_ack(&b, br(&b)->id);
	EXPECT(&c, RF_BREAK);
	tc_ack(&c, br(&c)->id);
	EXPECT(&a, RF_APPLIED);
	EXPECT(&a, RF_RELEASED);
	tc_store(&c, &s.fid, "f", 1, 0, "K", false);
	EXPECT(&b, RF_BREAK);
	tc_close(&a);
	tc_open(&a, sock, 1);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	EXPECT(&a, RF_APPLIED);
	NOTHING(&a);
	tc_ack(&b, br(&b)->id);
	EXPECT(&a, RF_RELEASED);
	cr_assert(eq(str, (char *)get_file("f"), "Kello"));
	tc_close(&a);
	tc_close(&b);
	tc_close(&c);
}

Test(server_key, sync_needs_no_right)
{
	struct rf_msg m = {.body.type = RF_GIVE_UP};
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ);
	tc_key(&a, 1, "gone", "g");
	a.key = 1;
	tc_sync(&a, &s.fid, "f", true);
	EXPECT(&a, RF_RELEASED);
	m.body.rf_body_u.give_up.volume = a.volume;
	m.body.rf_body_u.give_up.fids.fids_len = 1;
	m.body.rf_body_u.give_up.fids.fids_val = &s.fid;
	tc_send(&a, &m, NULL, 0);
	/* Nor to find it anew, as after a restart; and it is not found for others by that. */
	tc_sync(&a, &s.fid, "f", true);
	EXPECT(&a, RF_RELEASED);
	tc_status(&a, &s.fid, "f", false);
	ERROR(&a, EKEYREVOKED);
	s.fid.gen++;
	tc_sync(&a, &s.fid, "f", true);
	ERROR(&a, ESTALE);
	tc_close(&a);
}

/* ---- what cannot be started with ---- */

/* What a server says that does not start. */
static const char *complaint(void)
{
	static char text[1024];
	int fd[2], status;
	size_t got = 0;
	ssize_t n;
	pid_t pid;

	cr_assert(not(pipe(fd)));
	pid = fork();
	if (!pid) {
		dup2(fd[1], 2);
		close(fd[0]);
		close(fd[1]);
		_exit(srv_run(&config));
	}
	close(fd[1]);
	while ((n = read(fd[0], text + got, sizeof(text) - 1 - got)) > 0)
		got += (size_t)n;
	text[got] = 0;
	close(fd[0]);
	waitpid(pid, &status, 0);
	cr_assert(eq(int, status, 1 << 8));
	cr_assert(got && strchr(text, '\n') == text + got - 1, "not one line: %s", text);
	return text;
}

Test(server_key, directories_that_are_none)
{
	char path[100];

	stop_server(SIGTERM);
	snprintf(path, sizeof(path), "%s/nowhere", base);
	config.keys = path;
	cr_assert(strstr(complaint(), "no such directory") != NULL);
	put_file("f", "");
	snprintf(path, sizeof(path), "%s", at("f"));
	cr_assert(strstr(complaint(), "not a directory") != NULL);
	config.keys = keys;
	chmod(keys, 0770);
	cr_assert(strstr(complaint(), "others may write") != NULL);
	chmod(keys, 0700);
	if (!geteuid()) {
		cr_assert(not(chown(keys, 65534, 65534)));
		cr_assert(strstr(complaint(), "belongs to somebody else") != NULL);
	}
}

/* Key files that are no good: a line each, which does not tell the secret, and the others count. */
Test(server_key, lines_about_key_files)
{
	static char text[4096];
	char path[200], link[200];
	int log, lines = 0;
	struct tc a;
	ssize_t n;
	char *p;

	put_key("open", "secret TOPSECRET\n");
	snprintf(path, sizeof(path), "%s/open", keys);
	chmod(path, 0644);
	put_key("words", "secret TOPSECRET TOPSECRET\n");
	put_key("huge", "");
	snprintf(path, sizeof(path), "%s/huge", keys);
	cr_assert(not(truncate(path, 100000)));
	snprintf(path, sizeof(path), "%s/sub", keys);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "%s/fifo", keys);
	mkfifo(path, 0600);
	snprintf(path, sizeof(path), "%s/mine", keys);
	snprintf(link, sizeof(link), "%s/link", keys);
	cr_assert(not(symlink(path, link)));
	stop_server(SIGTERM);
	snprintf(path, sizeof(path), "%s/log", base);
	log = open(path, O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
	dup2(log, 2);
	start_server();
	tc_open(&a, sock, 1);
	tc_key(&a, 1, "mine", "m");
	tc_key(&a, 2, "open", "TOPSECRET");
	tc_key(&a, 3, "link", "m");
	put_file("f", "x");
	a.key = 1;
	tc_find(&a, "f", RF_LK_READ);
	for (a.key = 2; a.key < 4; a.key++) {
		tc_lookup(&a, "f", 0, 0);
		ERROR(&a, EKEYREVOKED);
	}
	n = pread(log, text, sizeof(text) - 1, 0);
	cr_assert(n > 0);
	for (p = text; (p = strstr(p, "--keys ")); p++)
		lines++;
	cr_assert(eq(int, lines, 7), "%s", text); /* and "bad" */
	cr_assert(strstr(text, "SECRET") == NULL, "%s", text);
	tc_close(&a);
}

/* ---- other refusals ---- */

Test(server_key, file_without_a_name)
{
	char other[100];
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	snprintf(other, sizeof(other), "%s/g", dir);
	cr_assert(not(link(at("f"), other)));
	cr_assert(not(unlink(at("f"))));
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	cr_assert(eq(int, reply(&a), RF_APPLIED), "it still has a name");
	cr_assert(eq(int, reply(&a), RF_RELEASED));
	cr_assert(not(unlink(at("g"))));
	tc_store(&a, &s.fid, "f", 2, 0, "K", false);
	cr_assert(eq(int, error_of(&a), ESTALE));
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	cr_assert(not(memcmp(a.payload, "Jello", 5)));
	tc_close(&a);
}

/* A full or read-only file system, in the server's own mount namespace; quota by an engine that says so. */
static bool mounted(const char *type, unsigned long flags, const char *data)
{
	setup_keys_at("/tmp");
	return !geteuid() && !unshare(CLONE_NEWNS) &&
	       !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount(type ? type : dir, dir, type, flags, data);
}

static void teardown_mount(void)
{
	umount2(dir, MNT_DETACH);
	teardown();
}

static void setup_bind(void)
{
	if (mounted(NULL, MS_BIND, NULL))
		start_server();
}

TestSuite(server_bind, .init = setup_bind, .fini = teardown_mount, .timeout = 300);

Test(server_bind, remounted_read_only)
{
	struct tc a;
	rf_status s;

	if (!server)
		cr_skip("needs root, and mount namespaces");
	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	cr_assert(not(mount(NULL, dir, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)));
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	cr_assert(eq(int, error_of(&a), EROFS));
	tc_lookup(&a, "f", RF_LK_WRITE, 0);
	cr_assert(eq(int, error_of(&a), EROFS));
	tc_lookup(&a, "new", RF_LK_CREATE, 0600);
	cr_assert(eq(int, error_of(&a), EROFS));
	tc_fetch(&a, &s.fid, "f", 0, 10, true);
	cr_assert(eq(int, reply(&a), RF_FETCH_R));
	cr_assert(not(memcmp(a.payload, "hello", 5)));
	cr_assert(not(mount(NULL, dir, NULL, MS_REMOUNT | MS_BIND, NULL)));
	tc_store(&a, &s.fid, "f", 2, 0, "J", false);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	tc_close(&a);
}

static void setup_small(void)
{
	if (mounted("tmpfs", 0, "size=64k,mode=777"))
		start_server();
}

TestSuite(server_small, .init = setup_small, .fini = teardown_mount, .timeout = 300);

Test(server_small, no_space_left)
{
	static char page[4097];
	uint64_t i;
	struct tc a;
	rf_status s;

	if (!server)
		cr_skip("needs root, and mount namespaces");
	memset(page, 'x', 4096);
	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	for (i = 1; i < 64; i++) {
		tc_store(&a, &s.fid, "f", i, i * 4096, page, true);
		if (reply(&a) == RF_ERROR)
			break;
		cr_assert(eq(int, reply(&a), RF_RELEASED));
	}
	cr_assert(i < 64);
	cr_assert(eq(u32, a.msg.body.rf_body_u.error.err, ENOSPC));
	tc_status(&a, &s.fid, "f", true);
	cr_assert(eq(int, reply(&a), RF_STATUS_R));
	cr_assert(eq(u64, st(&a)->size, i * 4096));
	/* What needs no room goes on. */
	tc_store(&a, &s.fid, "f", 100, 0, "J", false);
	cr_assert(eq(int, reply(&a), RF_APPLIED));
	tc_close(&a);
}

static int quota_store(struct store_file *file, const struct store_cred *cred,
		       struct store_change *change, bool nowait)
{
	(void)file;
	(void)cred;
	(void)change;
	return nowait ? -EAGAIN : -EDQUOT;
}

static void setup_quota(void)
{
	setup_keys_at("/tmp");
	gate_ops = store_dir;
	gate_ops.store = quota_store;
	config.ops = &gate_ops;
	start_server();
}

TestSuite(server_quota, .init = setup_quota, .fini = teardown, .timeout = 300);

Test(server_quota, refused)
{
	struct tc a;
	rf_status s;

	put_file("f", "hello");
	tc_open(&a, sock, 1);
	s = tc_find(&a, "f", RF_LK_READ | RF_LK_WRITE);
	tc_store(&a, &s.fid, "f", 1, 0, "J", false);
	ERROR(&a, EDQUOT);
	tc_status(&a, &s.fid, "f", true);
	EXPECT(&a, RF_STATUS_R);
	cr_assert(eq(u64, st(&a)->dv, s.dv));
	tc_close(&a);
}
