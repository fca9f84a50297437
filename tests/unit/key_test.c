/* SPDX-License-Identifier: MIT */
/* key_test.c - what may stand in a key file, and comparing secrets. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <string.h>

#include "tools/server/key.h"

static int parse(const char *text, struct srv_rights *r, const char **why, unsigned *line)
{
	static char buf[1024];

	snprintf(buf, sizeof(buf), "%s", text);
	return srv_rights_parse(buf, strlen(text), r, why, line);
}

Test(key, everything)
{
	struct srv_rights r;
	const char *why;
	unsigned line;

	cr_assert(not(parse("# who\n\n \tsecret  s3cret\r\nuid 1000\ngid 100\ngroups 4,24,100\n"
			    "expires 2026-11-20T19:43:47Z\nrevoked",
			    &r, &why, &line)));
	cr_assert(eq(int, r.secret.len, 6));
	cr_assert(not(memcmp(r.secret.bytes, "s3cret", 7)));
	cr_assert(r.has_uid && r.has_gid && r.has_groups && r.revoked);
	cr_assert(eq(u32, r.uid, 1000));
	cr_assert(eq(u32, r.gid, 100));
	cr_assert(eq(sz, r.ngroups, 3));
	cr_assert(eq(u32, r.groups[2], 100));
	cr_assert(eq(i64, r.expires, 1795203827));
	srv_rights_free(&r);
	cr_assert(eq(int, r.secret.len, 0));
}

Test(key, secret_alone)
{
	struct srv_rights r;
	const char *why;
	unsigned line;

	cr_assert(not(parse("secret x", &r, &why, &line)));
	cr_assert(not(r.has_uid || r.has_gid || r.has_groups || r.revoked));
	cr_assert(eq(i64, r.expires, SRV_NEVER));
	srv_rights_free(&r);
	cr_assert(not(parse("revoked\n", &r, &why, &line)));
	cr_assert(r.revoked);
	srv_rights_free(&r);
	cr_assert(not(parse("secret x\nexpires @1795203827\n", &r, &why, &line)));
	cr_assert(eq(i64, r.expires, 1795203827));
	srv_rights_free(&r);
}

Test(key, nonsense)
{
	static const struct {
		const char *text;
		unsigned line;
	} bad[] = {
	    {"", 0},
	    {"# nothing\n", 0},
	    {"uid 5\n", 0},
	    {"secret\n", 1},
	    {"secret a b\n", 1},
	    {"secret a\nsecret a\n", 2},
	    {"secret a\nsecrets b\n", 2},
	    {"secret a\n\nuid\n", 3},
	    {"secret a\nuid root\n", 2},
	    {"secret a\nuid -1\n", 2},
	    {"secret a\nuid 4294967295\n", 2},
	    {"secret a\nuid 99999999999999999999999\n", 2},
	    {"secret a\nuid 5x\n", 2},
	    {"secret a\nuid 5\nuid 5\n", 3},
	    {"secret a\ngid +5\n", 2},
	    {"secret a\ngroups 1,,2\n", 2},
	    {"secret a\ngroups 1, 2\n", 2},
	    {"secret a\ngroups 1\ngroups 2\n", 3},
	    {"secret a\nexpires tomorrow\n", 2},
	    {"secret a\nexpires @\n", 2},
	    {"secret a\nexpires @-5\n", 2},
	    {"secret a\nexpires 2026-02-31T00:00:00Z\n", 2},
	    {"secret a\nexpires 2026-11-20T19:43:47\n", 2},
	    {"secret a\nexpires 2026-11-20\n", 2},
	    {"secret a\nrevoked yes\n", 2},
	    {"\xff\xfe\n", 1},
	};
	char zero[] = "secret a\0b\n", *text;
	struct srv_rights r;
	const char *why;
	unsigned line;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cr_assert(eq(int, parse(bad[i].text, &r, &why, &line), -EINVAL), "%u: %s",
			  (unsigned)i, bad[i].text);
		cr_expect(eq(u32, line, bad[i].line), "%u: %s", (unsigned)i, bad[i].text);
		cr_expect(strlen(why) > 5);
		cr_expect(r.groups == NULL);
	}
	cr_assert(eq(int, srv_rights_parse(zero, sizeof(zero) - 1, &r, &why, &line), -EINVAL));

	text = malloc(RF_MAX_SECRET + 10);
	memset(text, 'x', RF_MAX_SECRET + 10);
	memcpy(text, "secret ", 7);
	text[7 + RF_MAX_SECRET] = 0;
	cr_assert(not(parse(text, &r, &why, &line)));
	cr_assert(eq(int, r.secret.len, RF_MAX_SECRET));
	srv_rights_free(&r);
	text[7 + RF_MAX_SECRET] = 'x';
	text[8 + RF_MAX_SECRET] = 0;
	cr_assert(eq(int, parse(text, &r, &why, &line), -EINVAL), "longer than a secret can be");
	free(text);
}

Test(key, secrets_are_compared_whole)
{
	struct srv_secret a, b;

	srv_secret_set(&a, "abc", 3);
	srv_secret_set(&b, "abc", 3);
	cr_assert(srv_secret_same(&a, &b));
	srv_secret_set(&b, "abd", 3);
	cr_assert(not(srv_secret_same(&a, &b)));
	srv_secret_set(&b, "ab", 2);
	cr_assert(not(srv_secret_same(&a, &b)));
	srv_secret_set(&b, "abc\0", 4); /* what the wire can carry */
	cr_assert(not(srv_secret_same(&a, &b)));
	srv_secret_set(&b, "", 0);
	cr_assert(not(srv_secret_same(&a, &b)));
}
