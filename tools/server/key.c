/* SPDX-License-Identifier: MIT */
/*
 * key.c - the directory of keys: a file a key, named as the key; its lines say the secret and what
 * goes with it.
 *
 * A key stays known as long as the server lives: one whose file is gone, or is no good, is revoked.
 * It keeps the secret it had then, so that only who knows that secret is told so.
 *
 * What is read here decides who may write what: the directory and its files must belong to the
 * server's user or root, and nobody else may have written to them or have read a secret.
 *
 * Secrets appear in no message.  Locks: none (loop thread).
 */
#include "key.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "srv.h"

#define MAX_FILE 65536u
#define MAX_GROUPS 4096u

static int by_name(struct srv_key *a, struct srv_key *b)
{
	return strcmp(a->name, b->name);
}

RB_GENERATE_INTERNAL(srv_key_tree, srv_key, link, by_name, static __attribute__((unused)))

/* ---- secrets ---- */

void srv_secret_set(struct srv_secret *secret, const void *bytes, size_t n)
{
	memset(secret, 0, sizeof(*secret));
	if (n)
		memcpy(secret->bytes, bytes, n);
	secret->len = (unsigned char)n;
}

bool srv_secret_same(const struct srv_secret *a, const struct srv_secret *b)
{
	const volatile unsigned char *x = (const volatile unsigned char *)a;
	const volatile unsigned char *y = (const volatile unsigned char *)b;
	unsigned char differ = 0;
	size_t i;

	for (i = 0; i < sizeof(*a); i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

/* ---- one file ---- */

/* The next word of *at, ended there; NULL: no more. */
static char *word(char **at)
{
	static const char blanks[] = " \t\r";
	char *w = *at + strspn(*at, blanks);

	if (!*w)
		return NULL;
	*at = w + strcspn(w, blanks);
	if (**at)
		*(*at)++ = 0;
	return w;
}

/* A number below 2^32 - 1, which as an id means none. */
static bool id(const char *s, uint32_t *out)
{
	unsigned long long n;
	char *end;

	errno = 0;
	n = strtoull(s, &end, 10);
	*out = (uint32_t)n;
	return *s >= '0' && *s <= '9' && !*end && !errno && n < UINT32_MAX;
}

static bool group_list(char *s, struct srv_rights *r)
{
	size_t n = 1;
	char *p, *next;

	for (p = s; *p; p++)
		n += *p == ',';
	if (n > MAX_GROUPS)
		return false;
	r->groups = calloc(n, sizeof(*r->groups));
	if (!r->groups)
		return false;
	for (p = s; p; p = next) {
		next = strchr(p, ',');
		if (next)
			*next++ = 0;
		if (!id(p, &r->groups[r->ngroups++]))
			return false;
	}
	return true;
}

/* @SECONDS or YYYY-MM-DDTHH:MM:SSZ. */
static bool when(const char *s, int64_t *out)
{
	struct tm tm = {0}, back;
	char *end;
	time_t t;

	if (*s == '@') {
		errno = 0;
		*out = strtoll(s + 1, &end, 10);
		return s[1] >= '0' && s[1] <= '9' && !*end && !errno;
	}
	if (strlen(s) != strlen("YYYY-MM-DDTHH:MM:SSZ"))
		return false;
	end = strptime(s, "%Y-%m-%dT%H:%M:%SZ", &tm);
	if (!end || *end)
		return false;
	back = tm;
	t = timegm(&back);
	*out = t;
	/* The 31st of February is not the 3rd of March. */
	return back.tm_mday == tm.tm_mday && back.tm_hour == tm.tm_hour && back.tm_sec == tm.tm_sec;
}

/* NULL, or what is wrong. */
static const char *line_parse(char *line, struct srv_rights *r)
{
	char *what = word(&line), *value, *more;

	if (!what || *what == '#')
		return NULL;
	value = word(&line);
	more = word(&line);
	if (!strcmp(what, "revoked")) {
		r->revoked = true;
		return value ? "nothing goes behind 'revoked'" : NULL;
	}
	if (!value || more)
		return "must be a word and one value, without blanks";
	if (!strcmp(what, "secret")) {
		if (r->secret.len)
			return "a second 'secret'";
		if (strlen(value) > RF_MAX_SECRET)
			return "the secret is longer than 255 bytes";
		srv_secret_set(&r->secret, value, strlen(value));
	} else if (!strcmp(what, "uid")) {
		if (r->has_uid || !id(value, &r->uid))
			return "'uid' must come once, with a number";
		r->has_uid = true;
	} else if (!strcmp(what, "gid")) {
		if (r->has_gid || !id(value, &r->gid))
			return "'gid' must come once, with a number";
		r->has_gid = true;
	} else if (!strcmp(what, "groups")) {
		if (r->has_groups || !group_list(value, r))
			return "'groups' must come once, with numbers separated by commas";
		r->has_groups = true;
	} else if (!strcmp(what, "expires")) {
		if (r->expires != SRV_NEVER || !when(value, &r->expires))
			return "'expires' must come once, as @SECONDS or YYYY-MM-DDTHH:MM:SSZ";
	} else {
		return "must begin with secret, uid, gid, groups, expires or revoked";
	}
	return NULL;
}

int srv_rights_parse(char *text, size_t n, struct srv_rights *out, const char **why, unsigned *line)
{
	char *end = text + n, *eol;

	memset(out, 0, sizeof(*out));
	out->expires = SRV_NEVER;
	*line = 0;
	*why = "not a text file";
	if (memchr(text, 0, n))
		goto bad;
	for (*why = NULL; text < end && !*why; text = eol + 1) {
		++*line;
		eol = memchr(text, '\n', (size_t)(end - text));
		if (!eol)
			eol = end; /* the caller has room for the zero */
		*eol = 0;
		*why = line_parse(text, out);
	}
	if (!*why && !out->secret.len && !out->revoked) {
		*line = 0;
		*why = "there is no 'secret'";
	}
	if (!*why)
		return 0;
bad:
	srv_rights_free(out);
	return -EINVAL;
}

void srv_rights_free(struct srv_rights *rights)
{
	free(rights->groups);
	explicit_bzero(rights, sizeof(*rights));
}

/* ---- the directory ---- */

static bool ours(const struct stat *st)
{
	return st->st_uid == 0 || st->st_uid == geteuid();
}

/* NULL, or why it cannot be opened: *fd is then none. */
static const char *open_file(int dirfd, const char *name, int *fd)
{
	const char *why;
	struct stat st;

	*fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (*fd < 0)
		return errno == ELOOP ? "not a regular file" : strerror(errno);
	why = fstat(*fd, &st)        ? strerror(errno)
	      : !S_ISREG(st.st_mode) ? "not a regular file"
	      : !ours(&st)           ? "belongs to somebody else; chown it to the server's user"
	      : st.st_mode & 077     ? "open to others; chmod 600 it"
				     : NULL;
	if (why)
		close(*fd);
	return why;
}

/* Whether it is a key; one line if not. */
static bool read_file(const struct srv_keys *keys, int dirfd, const char *name,
		      struct srv_rights *out)
{
	char *text = srv_alloc(MAX_FILE + 2);
	unsigned line = 0;
	const char *why;
	ssize_t n = 0;
	size_t got = 0;
	int fd;

	why = open_file(dirfd, name, &fd);
	if (!why) {
		while (got <= MAX_FILE && (n = read(fd, text + got, MAX_FILE + 1 - got)) > 0)
			got += (size_t)n;
		why = n < 0 ? strerror(errno) : got > MAX_FILE ? "longer than 64 KiB" : NULL;
		close(fd);
	}
	if (!why)
		srv_rights_parse(text, got, out, &why, &line);
	explicit_bzero(text, MAX_FILE + 2);
	free(text);
	if (why && line)
		srv_log("--keys %s/%s line %u: %s; the key counts as revoked", keys->dir, name,
			line, why);
	else if (why)
		srv_log("--keys %s/%s: %s; the key counts as revoked", keys->dir, name, why);
	return !why;
}

static struct srv_key *find(struct srv_keys *keys, const char *name)
{
	struct srv_key want = {.name = (char *)(uintptr_t)name};

	return RB_FIND(srv_key_tree, &keys->tree, &want);
}

const struct srv_key *srv_key_find(struct srv_keys *keys, const char *name)
{
	return find(keys, name);
}

static void load_key(struct srv_keys *keys, int dirfd, const char *name)
{
	struct srv_key *key = find(keys, name);
	struct srv_rights rights = {0};
	bool good = read_file(keys, dirfd, name, &rights);

	if (!key) {
		key = srv_alloc(sizeof(*key));
		key->name = srv_alloc(strlen(name) + 1);
		memcpy(key->name, name, strlen(name));
		key->rights.expires = SRV_NEVER;
		RB_INSERT(srv_key_tree, &keys->tree, key);
	}
	key->seen = keys->loads;
	if (!good) {
		key->rights.revoked = true;
		return;
	}
	if (!rights.secret.len)
		rights.secret = key->rights.secret;
	srv_rights_free(&key->rights);
	key->rights = rights;
	explicit_bzero(&rights, sizeof(rights));
}

static void revoke_unseen(struct srv_keys *keys)
{
	struct srv_key *key;

	RB_FOREACH(key, srv_key_tree, &keys->tree)
	{
		if (key->seen != keys->loads)
			key->rights.revoked = true;
	}
}

/* An open directory, or -1 with one line. */
static int open_dir(const struct srv_keys *keys)
{
	const char *why;
	struct stat st;
	int fd;

	fd = open(keys->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		why = errno == ENOENT    ? "there is no such directory; make it first"
		      : errno == ENOTDIR ? "not a directory; name the one that holds the key files"
					 : strerror(errno);
	else
		why = !ours(&st)         ? "belongs to somebody else; chown it to the server's user"
		      : st.st_mode & 022 ? "others may write to it; chmod 700 it"
					 : NULL;
	if (!why)
		return fd;
	if (fd >= 0)
		close(fd);
	srv_log("--keys %s: %s%s", keys->dir, why, keys->loads ? "; keys are as they were" : "");
	return -1;
}

bool srv_keys_load(struct srv_keys *keys)
{
	struct dirent *de;
	bool whole;
	DIR *dir;
	int fd;

	/* Whoever this thread acted for last. */
	store_cred_enter(NULL);
	fd = open_dir(keys);
	if (fd < 0)
		return false;
	dir = fdopendir(fd);
	if (!dir) {
		srv_log("--keys %s: %s", keys->dir, strerror(errno));
		close(fd);
		return false;
	}
	keys->loads++;
	while ((errno = 0, de = readdir(dir)))
		if (de->d_name[0] != '.' && !strchr(de->d_name, '~'))
			load_key(keys, fd, de->d_name);
	whole = !errno;
	if (whole)
		revoke_unseen(keys);
	else
		srv_log("--keys %s: %s", keys->dir, strerror(errno));
	closedir(dir);
	return whole;
}

void srv_keys_free(struct srv_keys *keys)
{
	struct srv_key *key, *next;

	for (key = RB_MIN(srv_key_tree, &keys->tree); key; key = next) {
		next = RB_NEXT(srv_key_tree, &keys->tree, key);
		RB_REMOVE(srv_key_tree, &keys->tree, key);
		srv_rights_free(&key->rights);
		free(key->name);
		free(key);
	}
}
