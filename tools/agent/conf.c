/* SPDX-License-Identifier: MIT */
/*
 * conf.c - options, environment, runtime directory.
 *
 * Counters: none.  Locks: none.
 */
#include "conf.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

extern char **environ;

#define CACHE_MIN ((uint64_t)1 << 20)

int ag_conf_bytes(const char *s, uint64_t *bytes)
{
	unsigned long long v;
	unsigned shift = 0;
	char *end;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (errno)
		return -EINVAL;
	switch (*end) {
	case 'k':
	case 'K':
		shift = 10;
		break;
	case 'm':
	case 'M':
		shift = 20;
		break;
	case 'g':
	case 'G':
		shift = 30;
		break;
	case 't':
	case 'T':
		shift = 40;
		break;
	}
	if (shift)
		end++;
	if (*end || (v << shift) >> shift != v)
		return -EINVAL;
	*bytes = (uint64_t)v << shift;
	return 0;
}

/* memory.max of our cgroup (version 2), or UINT64_MAX. */
static uint64_t cgroup_limit(void)
{
	char line[512], path[600], *nl;
	uint64_t limit = UINT64_MAX;
	unsigned long long v;
	FILE *f = fopen("/proc/self/cgroup", "re");

	if (!f)
		return limit;
	path[0] = '\0';
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "0::", 3)) {
			nl = strchr(line, '\n');
			if (nl)
				*nl = '\0';
			snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.max", line + 3);
		}
	fclose(f);
	f = path[0] ? fopen(path, "re") : NULL;
	if (!f)
		return limit;
	if (fgets(line, sizeof(line), f) && sscanf(line, "%llu", &v) == 1)
		limit = v;
	fclose(f);
	return limit;
}

uint64_t ag_conf_cache_default(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
	uint64_t ram = pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : (uint64_t)1 << 30;

	return ag_max(ag_min(ram, cgroup_limit()) / 2, CACHE_MIN);
}

static int number(const char *s, uint64_t unit, uint64_t *ns)
{
	unsigned long long v;
	char *end;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (errno || *end || v > UINT64_MAX / unit / 4)
		return -EINVAL;
	*ns = (uint64_t)v * unit;
	return 0;
}

/* Whether word is one of list, separated by commas; others are for others. */
static bool listed(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (; list && *list; list += strcspn(list, ","), list += *list == ',')
		if (strcspn(list, ",") == len && !strncmp(list, word, len))
			return true;
	return false;
}

int ag_conf_parse(struct ag_conf *conf, int argc, char **argv, char *err, size_t errlen)
{
	static const struct option opts[] = {
	    {"daemon", no_argument, NULL, 'd'},
	    {"idle", required_argument, NULL, 'i'},
	    {"dirty-expire", required_argument, NULL, 'e'},
	    {"cache-bytes", required_argument, NULL, 'c'},
	    {"dirty-bytes", required_argument, NULL, 'b'},
	    {"verbose", no_argument, NULL, 'v'},
	    {"version", no_argument, NULL, 'V'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0},
	};
	const char *timeout = getenv("REFAULT_TIMEOUT"), *dirty = getenv("REFAULT_DIRTY_BYTES");
	int c, which = 0, r = 0;

	memset(conf, 0, sizeof(*conf));
	conf->idle_ns = 60 * AG_SEC;
	conf->dirty_ns = 1000 * AG_MS;
	conf->timeout_ns = 30 * AG_SEC;
	if (timeout && *timeout && number(timeout, AG_SEC, &conf->timeout_ns)) {
		snprintf(err, errlen, "REFAULT_TIMEOUT=%s: should be a number of seconds", timeout);
		return -EINVAL;
	}
	if (dirty && *dirty && (ag_conf_bytes(dirty, &conf->dirty_bytes) || !conf->dirty_bytes)) {
		snprintf(err, errlen, "REFAULT_DIRTY_BYTES=%s: should be a size, with K, M, G or T",
			 dirty);
		return -EINVAL;
	}
	conf->no_journal = listed(getenv("REFAULT_DISABLE"), "journal");
	conf->no_excise = listed(getenv("REFAULT_DISABLE"), "excise");
	conf->no_freeze = listed(getenv("REFAULT_DISABLE"), "freeze");
	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "+:", opts, &which)) != -1) {
		switch (c) {
		case 'd':
			conf->daemon = true;
			break;
		case 'i':
			r = number(optarg, AG_SEC, &conf->idle_ns);
			break;
		case 'e':
			r = number(optarg, AG_MS, &conf->dirty_ns);
			if (!r && !conf->dirty_ns)
				r = -EINVAL;
			break;
		case 'c':
			r = ag_conf_bytes(optarg, &conf->cache_bytes);
			if (!r && conf->cache_bytes < CACHE_MIN)
				r = -EINVAL;
			break;
		case 'b':
			r = ag_conf_bytes(optarg, &conf->dirty_bytes);
			if (!r && !conf->dirty_bytes)
				r = -EINVAL;
			break;
		case 'v':
			conf->verbose = true;
			break;
		case 'V':
			conf->version = true;
			break;
		case 'h':
			conf->help = true;
			break;
		default:
			snprintf(err, errlen, "%s: %s; see --help", argv[optind - 1],
				 c == ':' ? "needs a value" : "unknown option");
			return -EINVAL;
		}
		if (r) {
			snprintf(err, errlen,
				 "--%s: '%s' is no number that makes sense here; see --help",
				 opts[which].name, optarg);
			return -EINVAL;
		}
	}
	if (optind < argc) {
		snprintf(err, errlen, "unexpected argument '%s'; see --help", argv[optind]);
		return -EINVAL;
	}
	if (!conf->cache_bytes)
		conf->cache_bytes = ag_conf_cache_default();
	return 0;
}

int ag_conf_runtime(struct ag_conf *conf, char *err, size_t errlen)
{
	const char *env = getenv("REFAULT_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	unsigned uid = (unsigned)geteuid();
	char run[64];
	struct stat st = {0};
	int n, fd, r;

	snprintf(run, sizeof(run), "/run/user/%u", uid);
	if (env && *env)
		n = snprintf(conf->dir, sizeof(conf->dir), "%s", env);
	else if (!lstat(run, &st) && S_ISDIR(st.st_mode) && st.st_uid == uid)
		n = snprintf(conf->dir, sizeof(conf->dir), "%s/refault", run);
	else if (xdg && *xdg)
		n = snprintf(conf->dir, sizeof(conf->dir), "%s/refault", xdg);
	else
		n = snprintf(conf->dir, sizeof(conf->dir), "/tmp/refault-%u", uid);
	if (n < 0 || (size_t)n >= sizeof(conf->dir)) {
		snprintf(err, errlen,
			 "the runtime directory's path is longer than %zu bytes: no socket fits "
			 "there; set REFAULT_RUNTIME_DIR",
			 sizeof(conf->dir) - 1);
		return -ENAMETOOLONG;
	}
	if (conf->dir[0] != '/') {
		snprintf(err, errlen, "runtime directory '%s': the path must be absolute",
			 conf->dir);
		return -EINVAL;
	}
	if (mkdir(conf->dir, 0700) && errno != EEXIST) {
		r = -errno;
		snprintf(err, errlen, "cannot make the runtime directory %s: %s", conf->dir,
			 strerror(-r));
		return r;
	}
	fd = open(conf->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	r = fd < 0 || fstat(fd, &st) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	if (r == -ELOOP || r == -ENOTDIR) {
		snprintf(err, errlen,
			 "runtime directory %s: is a symbolic link or no directory; "
			 "remove it, or set REFAULT_RUNTIME_DIR",
			 conf->dir);
		return r;
	}
	if (r) {
		snprintf(err, errlen, "runtime directory %s: %s", conf->dir, strerror(-r));
		return r;
	}
	if (st.st_uid != uid) {
		snprintf(err, errlen,
			 "runtime directory %s: belongs to user %u, not to %u; set "
			 "REFAULT_RUNTIME_DIR",
			 conf->dir, (unsigned)st.st_uid, uid);
		return -EPERM;
	}
	if (st.st_mode & 077) {
		snprintf(err, errlen,
			 "runtime directory %s: mode %03o is open to others; make it 0700",
			 conf->dir, (unsigned)st.st_mode & 0777);
		return -EPERM;
	}
	return 0;
}

void ag_conf_clean_env(void)
{
	static const char *const keep[] = {"REFAULT_", "PATH=", "LANG=",   "LC_",
					   "HOME=",    "USER=", "TMPDIR=", NULL};
	char **in = environ, **out = environ;

	for (; *in; in++)
		for (int i = 0; keep[i]; i++)
			if (!strncmp(*in, keep[i], strlen(keep[i]))) {
				*out++ = *in;
				break;
			}
	*out = NULL;
}
