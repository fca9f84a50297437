/* SPDX-License-Identifier: MIT */
/*
 * srv_client.c - a small scripted client of refault-server, for tests: it says what it is told to,
 * and shows every message that comes.
 */
#include "srv_client.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <refault/transport.h>

bool tc_connect(struct tc *tc, const char *sock)
{
	const struct rf_transport *t;
	const char *rest;
	char addr[160];

	memset(tc, 0, sizeof(*tc));
	snprintf(addr, sizeof(addr), "unix:%s", sock);
	t = rf_transport_find(addr, &rest);
	tc->fd = t->connect(rest);
	rf_rx_init(&tc->rx);
	return tc->fd >= 0;
}

void tc_close(struct tc *tc)
{
	rf_wire_free(&tc->msg);
	rf_rx_free(&tc->rx);
	if (tc->fd >= 0)
		close(tc->fd);
	tc->fd = -1;
}

static void put(struct tc *tc, const void *buf, size_t len)
{
	struct pollfd p = {.fd = tc->fd, .events = POLLOUT};
	const char *s = buf;
	ssize_t n;

	while (len) {
		n = send(tc->fd, s, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) {
			poll(&p, 1, 1000);
			continue;
		}
		if (n <= 0)
			return; /* the receiver will see it */
		s += n;
		len -= (size_t)n;
	}
}

u_int tc_send(struct tc *tc, struct rf_msg *msg, const void *payload, size_t len)
{
	unsigned char *buf = malloc(80000);
	ssize_t n;

	msg->xid = ++tc->xid;
	n = rf_wire_encode(buf, 80000, msg, len);
	cr_assert(n > 0);
	put(tc, buf, (size_t)n);
	put(tc, payload, len);
	free(buf);
	return msg->xid;
}

int tc_recv(struct tc *tc, int timeout_ms)
{
	struct pollfd p = {.fd = tc->fd, .events = POLLIN};
	void *frame, *payload;
	ssize_t n;

	rf_wire_free(&tc->msg);
	for (;;) {
		n = rf_rx_next(&tc->rx, &frame);
		cr_assert(n >= 0, "the server sent garbage");
		if (n > 0) {
			cr_assert(
			    not(rf_wire_decode(frame, (size_t)n, &tc->msg, &payload, &tc->len)));
			tc->payload = payload;
			return (int)tc->msg.body.type;
		}
		n = rf_rx_read(&tc->rx, tc->fd);
		if (n > 0)
			continue;
		if (n != -EAGAIN)
			return -1;
		if (poll(&p, 1, timeout_ms) <= 0)
			return 0;
	}
}

int tc_hello(struct tc *tc, int who)
{
	static char host[] = "test", name[] = "x";
	struct rf_msg m = {.body.type = RF_HELLO};
	int type;

	m.body.rf_body_u.hello.proto = RF_PROTO_VERSION;
	memcpy(m.body.rf_body_u.hello.client, &who, sizeof(who));
	m.body.rf_body_u.hello.host = host;
	tc_send(tc, &m, NULL, 0);
	type = tc_recv(tc, 60000);
	if (type == RF_ERROR)
		return (int)tc->msg.body.rf_body_u.error.err;
	if (type != RF_HELLO_R)
		return -1;
	tc->hello = tc->msg.body.rf_body_u.hello_r;
	memset(&m, 0, sizeof(m));
	m.body.type = RF_VOLUME;
	m.body.rf_body_u.volume.name = name;
	tc_send(tc, &m, NULL, 0);
	type = tc_recv(tc, 60000);
	if (type != RF_VOLUME_R)
		return -1;
	tc->volume = tc->msg.body.rf_body_u.volume_r.volume;
	return 0;
}

void tc_open(struct tc *tc, const char *sock, int who)
{
	cr_assert(tc_connect(tc, sock), "cannot connect: %s", strerror(-tc->fd));
	cr_assert(eq(int, tc_hello(tc, who), 0));
}

static void set_file(struct tc *tc, rf_file *f, const rf_fid *fid, const char *path)
{
	f->volume = tc->volume;
	f->key = tc->key;
	f->fid = *fid;
	f->path = (char *)(uintptr_t)path;
}

void tc_key(struct tc *tc, u_int handle, const char *name, const char *secret)
{
	struct rf_msg m = {.body.type = RF_KEY};

	m.body.rf_body_u.key.handle = handle;
	m.body.rf_body_u.key.name = (char *)(uintptr_t)name;
	m.body.rf_body_u.key.secret.secret_val = (char *)(uintptr_t)secret;
	m.body.rf_body_u.key.secret.secret_len = (u_int)strlen(secret);
	tc_send(tc, &m, NULL, 0);
}

void tc_lookup(struct tc *tc, const char *path, u_int flags, u_int mode)
{
	struct rf_msg m = {.body.type = RF_LOOKUP};

	m.body.rf_body_u.lookup.volume = tc->volume;
	m.body.rf_body_u.lookup.key = tc->key;
	m.body.rf_body_u.lookup.flags = flags;
	m.body.rf_body_u.lookup.mode = mode;
	m.body.rf_body_u.lookup.path = (char *)(uintptr_t)path;
	tc_send(tc, &m, NULL, 0);
}

void tc_status(struct tc *tc, const rf_fid *fid, const char *path, bool promise)
{
	struct rf_msg m = {.body.type = RF_STATUS};

	set_file(tc, &m.body.rf_body_u.status.file, fid, path);
	m.body.rf_body_u.status.promise = promise;
	tc_send(tc, &m, NULL, 0);
}

void tc_fetch(struct tc *tc, const rf_fid *fid, const char *path, uint64_t off, uint64_t len,
	      bool promise)
{
	struct rf_msg m = {.body.type = RF_FETCH};

	set_file(tc, &m.body.rf_body_u.fetch.file, fid, path);
	m.body.rf_body_u.fetch.range.off = off;
	m.body.rf_body_u.fetch.range.len = len;
	m.body.rf_body_u.fetch.promise = promise;
	tc_send(tc, &m, NULL, 0);
}

void tc_store(struct tc *tc, const rf_fid *fid, const char *path, uint64_t request, uint64_t off,
	      const char *text, bool extend)
{
	struct rf_msg m = {.body.type = RF_STORE};
	rf_range r = {.off = off, .len = strlen(text)};
	rf_store *s = &m.body.rf_body_u.store;

	set_file(tc, &s->file, fid, path);
	s->request = request;
	s->may_extend = extend;
	s->ranges.ranges_len = 1;
	s->ranges.ranges_val = &r;
	tc_send(tc, &m, text, strlen(text));
}

static void set_at(struct tc *tc, rf_file *f, const struct tc_at *at)
{
	set_file(tc, f, at->fid, at->path);
	f->key = at->key;
}

void tc_falloc(struct tc *tc, const struct tc_at *at, uint64_t request, int mode, uint64_t len)
{
	struct rf_msg m = {.body.type = RF_FALLOC};
	rf_falloc *f = &m.body.rf_body_u.falloc;

	set_at(tc, &f->file, at);
	f->request = request;
	f->mode = (u_int)mode;
	f->range.off = at->off;
	f->range.len = len;
	tc_send(tc, &m, NULL, 0);
}

void tc_remap(struct tc *tc, const struct tc_at *src, const struct tc_at *dst, uint64_t request,
	      u_int kind, uint64_t len)
{
	struct rf_msg m = {.body.type = RF_REMAP};
	rf_remap *r = &m.body.rf_body_u.remap;

	set_at(tc, &r->src, src);
	set_at(tc, &r->file, dst);
	r->src_off = src->off;
	r->dst_off = dst->off;
	r->request = request;
	r->kind = kind;
	r->len = len;
	tc_send(tc, &m, NULL, 0);
}

void tc_seek(struct tc *tc, const struct tc_at *at, int whence)
{
	struct rf_msg m = {.body.type = RF_SEEK};

	set_at(tc, &m.body.rf_body_u.seek.file, at);
	m.body.rf_body_u.seek.off = at->off;
	m.body.rf_body_u.seek.whence = (u_int)whence;
	tc_send(tc, &m, NULL, 0);
}

void tc_sync(struct tc *tc, const rf_fid *fid, const char *path, bool durable)
{
	struct rf_msg m = {.body.type = RF_SYNC};

	set_file(tc, &m.body.rf_body_u.sync.file, fid, path);
	m.body.rf_body_u.sync.durable = durable;
	tc_send(tc, &m, NULL, 0);
}

void tc_ack(struct tc *tc, uint64_t id)
{
	struct rf_msg m = {.body.type = RF_BREAK_ACK};

	m.body.rf_body_u.break_ack.id = id;
	tc_send(tc, &m, NULL, 0);
}

void tc_ping(struct tc *tc)
{
	struct rf_msg m = {.body.type = RF_PING};

	tc_send(tc, &m, NULL, 0);
}

rf_status tc_find(struct tc *tc, const char *path, u_int flags)
{
	tc_lookup(tc, path, flags, 0644);
	cr_assert(eq(int, tc_recv(tc, 60000), RF_STATUS_R), "lookup %s", path);
	return tc->msg.body.rf_body_u.status_r;
}
