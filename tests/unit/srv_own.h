/* SPDX-License-Identifier: MIT */
/*
 * srv_own.h - a refault-server of the test's own, for tests of what its clients see.
 * Source: srv_own.c.
 */
#ifndef TESTS_SRV_OWN_H
#define TESTS_SRV_OWN_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "srv_client.h"
#include "tools/server/srv.h"

#define LEASE 600000 /* ms: no lease ends in a test, but for those that ask for it */
#define SHORT 400
#define SOON 60000 /* ms in which a thing that must happen happens, however slow the machine */
#define PUNCH 3    /* FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
#define NOT 60     /* ms in which a thing that must not happen would have */

/* base holds all of it; dir is served as "x"; sock is where the server listens. */
extern char base[64], dir[80], sock[80];
extern struct srv_config config;
extern pid_t server;

/* Make the directories, below where, and the config. */
void setup_at(const char *where);
/* The same in /tmp, and start it. */
void setup(void);
/* The same on a new disk with that file system; false: it cannot be had, nothing was made. */
bool setup_disk(const char *fs);
void start_server(void);
void stop_server(int sig);
/* One that grants leases of SHORT instead. */
void short_leases(void);
void teardown(void);

/* The path of a served file; good until the next call. */
const char *at(const char *name);
void put_file(const char *name, const char *text);
const char *get_file(const char *name);
/* What others do beside the server. */
void others_rename(const char *from, const char *to);
void others_write(const char *name, off_t off, const char *text);
uint64_t ms(void);

/* The message that was received last. */
rf_break *br(struct tc *tc);
rf_status *st(struct tc *tc);
rf_applied *applied(struct tc *tc);
/* The type of the next message that is not a break (these are acknowledged). */
int reply(struct tc *tc);
/* The error number that the next reply is; 0: it is none. */
int error_of(struct tc *tc);

/*
 * The rest of the test as another user; false: not root, or in the parent after the child's
 * success.
 */
bool as_nobody(void);

#define EXPECT(tc, type) cr_assert(eq(int, tc_recv(tc, SOON), type))
#define NOTHING(tc) cr_assert(eq(int, tc_recv(tc, NOT), 0))
#define ERROR(tc, e)                                                                               \
	do {                                                                                       \
		EXPECT(tc, RF_ERROR);                                                              \
		cr_assert(eq(u32, (tc)->msg.body.rf_body_u.error.err, e));                         \
	} while (0)

#define CHILD(cond)                                                                                \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "line %d: %s\n", __LINE__, #cond);                         \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

#endif
