/* SPDX-License-Identifier: MIT */
/* srv_client.h - a small scripted client of refault-server, for tests.  Source: srv_client.c. */
#ifndef TESTS_SRV_CLIENT_H
#define TESTS_SRV_CLIENT_H

#include <stdbool.h>

#include <refault/wire.h>

struct tc {
	int fd;
	struct rf_rx rx;
	u_int xid;
	u_int volume;
	u_int key; /* the handle that calls are made under */
	rf_hello_r hello;
	/* the last message that was received; freed by the next tc_recv and tc_close */
	struct rf_msg msg;
	unsigned char *payload;
	size_t len;
};

/* Connect to a unix socket; false: cannot. */
bool tc_connect(struct tc *tc, const char *sock);
void tc_close(struct tc *tc);
/* The xid it was sent with. */
u_int tc_send(struct tc *tc, struct rf_msg *msg, const void *payload, size_t len);
/* The next message: its type; 0: nothing came in time; -1: the connection has ended. */
int tc_recv(struct tc *tc, int timeout_ms);

/* HELLO as client number who, attach to export "x".  The error number of a refusal, -1: closed. */
int tc_hello(struct tc *tc, int who);
/* connect + hello, which must work. */
void tc_open(struct tc *tc, const char *sock, int who);

/* From now on that handle is that key. */
void tc_key(struct tc *tc, u_int handle, const char *name, const char *secret);

/* Each sends a call; the message for it comes by tc_recv. */
void tc_lookup(struct tc *tc, const char *path, u_int flags, u_int mode);
void tc_status(struct tc *tc, const rf_fid *fid, const char *path, bool promise);
void tc_fetch(struct tc *tc, const rf_fid *fid, const char *path, uint64_t off, uint64_t len,
	      bool promise);
void tc_store(struct tc *tc, const rf_fid *fid, const char *path, uint64_t request, uint64_t off,
	      const char *text, bool extend);
/* A place in a file, and which handle it is touched under. */
struct tc_at {
	const rf_fid *fid;
	const char *path;
	uint64_t off;
	u_int key;
};
void tc_falloc(struct tc *tc, const struct tc_at *at, uint64_t request, int mode, uint64_t len);
void tc_remap(struct tc *tc, const struct tc_at *src, const struct tc_at *dst, uint64_t request,
	      u_int kind, uint64_t len);
void tc_seek(struct tc *tc, const struct tc_at *at, int whence);
void tc_sync(struct tc *tc, const rf_fid *fid, const char *path, bool durable);
void tc_ack(struct tc *tc, uint64_t id);
void tc_ping(struct tc *tc);

/* Lookup that must work. */
rf_status tc_find(struct tc *tc, const char *path, u_int flags);

#endif
