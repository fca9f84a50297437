/* SPDX-License-Identifier: MIT */
/*
 * key.c - the file that REFAULT_KEY names:
 *
 *	# a comment
 *	name NAME
 *	secret SECRET
 *
 * It must be a regular file of the user that nobody else may read or write.  It is read at each
 * open of a managed file, so that whoever replaces it (best by rename) changes the key of what is
 * opened next; what is open keeps the key that it was opened under.  Nothing of it stays in memory.
 * A file that is not as it should be is no key at all: opening fails, for the user's own uid is not
 * what was asked for.
 *
 * Counters, locks: none.
 */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"
#include "key.h"

#define FILE_MAX 4096u

enum cause {
	BAD_PATH,
	NO_OPEN,
	NOT_PRIVATE,
	NO_READ,
	BAD_TEXT,
};

void key_config(struct ctx *c, const char *file)
{
	static char path[PATH_MAX];

	/* Too long to be one: it will be said when a file is opened. */
	strncpy(path, file, sizeof(path) - 1);
	c->key_file = path;
}

static int refuse(const struct ctx *c, enum cause cause, const char *why)
{
	static _Atomic uint32_t said;

	if (!(atomic_fetch_or(&said, 1u << cause) & 1u << cause))
		log_line("REFAULT_KEY=%s: %s; no file of a volume can be opened", c->key_file, why);
	return -ENOKEY;
}

static bool is_blank(char ch)
{
	return ch == ' ' || ch == '\t' || ch == '\r';
}

/* Does the line [s, end) begin with that word? */
static bool begins(const char *s, const char *end, const char *word)
{
	size_t n = strlen(word);

	return (size_t)(end - s) > n && memcmp(s, word, n) == 0 && is_blank(s[n]);
}

/* The one word from s on; false: there is none, or two, or it is too long. */
static bool value(const char *s, const char *end, char *to, uint16_t *len)
{
	const char *stop;

	while (s < end && is_blank(*s))
		s++;
	for (stop = s; stop < end && !is_blank(*stop) && *stop; stop++)
		;
	for (const char *p = stop; p < end; p++)
		if (!is_blank(*p))
			return false;
	if (stop == s || stop - s > KEY_MAX)
		return false;
	*len = (uint16_t)(stop - s);
	memcpy(to, s, *len);
	return true;
}

static bool parse(const char *s, const char *end, struct key *k)
{
	for (const char *nl; s < end; s = nl + 1) {
		nl = memchr(s, '\n', (size_t)(end - s));
		nl = nl ? nl : end;
		while (s < nl && is_blank(*s))
			s++;
		if (s == nl || *s == '#')
			continue;
		if (begins(s, nl, "name") && !k->name_len) {
			if (!value(s + 4, nl, k->name, &k->name_len))
				return false;
		} else if (begins(s, nl, "secret") && !k->secret_len) {
			if (!value(s + 6, nl, k->secret, &k->secret_len))
				return false;
		} else {
			return false;
		}
	}
	return k->name_len && k->secret_len;
}

int key_read(const struct ctx *c, struct key *k)
{
	char buf[FILE_MAX];
	struct stat st = {0};
	size_t n = 0;
	long fd, r;
	int err = 0;

	k->name_len = k->secret_len = 0;
	if (__builtin_expect(!c->key_file, 1))
		return 0;
	if (*c->key_file != '/')
		return refuse(c, BAD_PATH, "must be the absolute path of a file");
	/* Not to wait for a writer of what is a pipe. */
	fd = rf_syscall(SYS_openat, AT_FDCWD, c->key_file,
			O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return refuse(c, NO_OPEN, strerrordesc_np((int)-fd));
	if (rf_syscall(SYS_fstat, fd, &st) || !S_ISREG(st.st_mode) ||
	    st.st_uid != (uid_t)rf_syscall(SYS_geteuid) || (st.st_mode & 066))
		err = refuse(c, NOT_PRIVATE,
			     "must be a regular file of yours that nobody else may read or write "
			     "(chmod 600)");
	while (!err && n < sizeof(buf)) {
		r = rf_syscall(SYS_read, fd, buf + n, sizeof(buf) - n);
		if (r == -EINTR)
			continue;
		if (r < 0)
			err = refuse(c, NO_READ, strerrordesc_np((int)-r));
		if (r <= 0)
			break;
		n += (size_t)r;
	}
	rf_syscall(SYS_close, fd);
	if (!err && (n == sizeof(buf) || !parse(buf, buf + n, k)))
		err = refuse(c, BAD_TEXT,
			     "must hold two lines, \"name NAME\" and \"secret SECRET\", of at most "
			     "255 bytes each and without blanks inside");
	explicit_bzero(buf, n);
	return err;
}

void key_wipe(struct key *k)
{
	explicit_bzero(k, sizeof(*k));
}
