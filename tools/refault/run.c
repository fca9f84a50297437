/* SPDX-License-Identifier: MIT */
/*
 * run.c - `refault run`: REFAULT_VOLUMES and LD_PRELOAD into the environment, then the program.
 *
 * Everything that can be told to be wrong is told here, once, before the program starts: a library
 * can only complain from inside somebody else's program.
 */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cmd.h"

static const char library_name[] = "librefault.so";

/*
 * ",name=EXPORT" and ",pins=POLICY", in any order; *name: whether the first is there.  What exactly is a
 * policy, the library says.
 */
static bool good_options(const char *s, bool *name)
{
	*name = false;
	while (*s == ',') {
		const size_t n = strcspn(++s, ",");

		if (strncmp(s, "name=", 5) == 0 && n > 5 && !memchr(s, '/', n))
			*name = true;
		else if (strncmp(s, "pins=", 5) != 0 || n == 5)
			return false;
		s += n;
	}
	return true;
}

/* Append PATH=ADDR, PATH resolved, to *list (malloc'd or NULL). False: after a message. */
static bool add_volume(char **list, const char *spec)
{
	char given[PATH_MAX], path[PATH_MAX];
	struct stat st;
	struct sockaddr_un sa;

	const char *eq = strchr(spec, '=');
	if (!eq || eq == spec || (size_t)(eq - spec) >= sizeof(given)) {
		warnx("volume '%s': should be PATH=unix:SOCKET[,name=EXPORT]", spec);
		return false;
	}
	memcpy(given, spec, (size_t)(eq - spec));
	given[eq - spec] = 0;

	const char *addr = eq + 1;
	const size_t sock = strcspn(addr, ",");
	bool name;

	if (strncmp(addr, "unix:", 5) != 0 || strpbrk(addr, ";\n") ||
	    !good_options(addr + sock, &name)) {
		warnx("volume '%s': address '%s' should be unix:SOCKET[,name=EXPORT][,pins=POLICY]",
		      spec, addr);
		return false;
	}
	if (addr[5] != '/' || sock - 5 >= sizeof(sa.sun_path)) {
		warnx("volume '%s': the socket should be an absolute path of at most %zu bytes",
		      spec, sizeof(sa.sun_path) - 1);
		return false;
	}
	/* The library compares with what the kernel says a descriptor's path is. */
	if (!realpath(given, path) || stat(path, &st)) {
		warn("volume '%s': %s", spec, given);
		return false;
	}
	if (!S_ISDIR(st.st_mode)) {
		warnx("volume '%s': %s is not a directory", spec, given);
		return false;
	}
	if (strpbrk(path, "=;\n")) {
		warnx("volume '%s': the path must not contain '=', ';' or a newline", spec);
		return false;
	}

	/* Where the name is not given it is the last part of the path: of the path as it was given.
	 */
	const char *base = name ? "" : basename(given);
	if (!name && (!*base || strcmp(base, "/") == 0 || *base == '.')) {
		warnx("volume '%s': '%s' gives no name for the export; add ,name=EXPORT", spec,
		      given);
		return false;
	}
	char *longer;
	if (asprintf(&longer, "%s%s%s=%s%s%s", *list ? *list : "", *list ? ";" : "", path, addr,
		     name ? "" : ",name=", base) < 0)
		err(CMD_OWN_FAILURE, "memory");
	free(*list);
	*list = longer;
	return true;
}

/* What the user set by hand gets the same checks. */
static bool add_volumes(char **list, const char *specs)
{
	char *copy = strdup(specs), *rest = copy, *spec;
	bool ok = copy != NULL;

	while (ok && (spec = strsep(&rest, ";\n")))
		if (*spec)
			ok = add_volume(list, spec);
	free(copy);
	return ok;
}

static bool have_volume_file(void)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	char path[PATH_MAX];

	if (config && *config)
		snprintf(path, sizeof(path), "%s/refault/volumes", config);
	else
		snprintf(path, sizeof(path), "%s/.config/refault/volumes", home ? home : "");
	return access(path, R_OK) == 0 || access("/etc/refault/volumes", R_OK) == 0;
}

/* The library: REFAULT_LIBRARY, beside this command, or where `make install` puts it. */
static bool find_library(char *buf, size_t len)
{
	const char *set = getenv("REFAULT_LIBRARY");
	char own[PATH_MAX], path[PATH_MAX + 64];
	static const char *const where[] = {"", "/../lib/refault"};

	if (set && *set) {
		if (access(set, R_OK) || !realpath(set, own)) {
			warn("REFAULT_LIBRARY: %s", set);
			return false;
		}
		return strlcpy(buf, own, len) < len;
	}
	ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);
	if (n < 0) {
		warn("/proc/self/exe");
		return false;
	}
	own[n] = 0;
	char *slash = strrchr(own, '/');
	if (slash)
		*slash = 0;
	for (size_t i = 0; i < sizeof(where) / sizeof(where[0]); i++) {
		char real[PATH_MAX];
		snprintf(path, sizeof(path), "%s%s/%s", own, where[i], library_name);
		if (access(path, R_OK) == 0 && realpath(path, real))
			return strlcpy(buf, real, len) < len;
	}
	warnx("%s is neither in %s nor in %s/../lib/refault; set REFAULT_LIBRARY", library_name,
	      own, own);
	return false;
}

static bool preload(const char *library)
{
	const char *old = getenv("LD_PRELOAD");
	char *value;

	if (strpbrk(library, " :")) {
		warnx("%s: the dynamic linker cannot preload a path with a space or a colon",
		      library);
		return false;
	}
	size_t n = strlen(library);
	if (old && strncmp(old, library, n) == 0 && (!old[n] || strchr(" :", old[n])))
		return true; /* `refault run` under `refault run` */
	if (asprintf(&value, "%s%s%s", library, old && *old ? ":" : "", old ? old : "") < 0)
		err(CMD_OWN_FAILURE, "memory");
	bool ok = setenv("LD_PRELOAD", value, 1) == 0;
	free(value);
	return ok;
}

int cmd_run(int argc, char **argv)
{
	static const struct option options[] = {
	    {"volume", required_argument, NULL, 'v'},
	    {"help", no_argument, NULL, 'h'},
	    {0},
	};
	char *volumes = NULL;
	char library[PATH_MAX], path[PATH_MAX];
	int o;

	const char *env = getenv("REFAULT_VOLUMES");
	if (env && *env && !add_volumes(&volumes, env))
		return CMD_OWN_FAILURE;

	while ((o = getopt_long(argc, argv, "+v:h", options, NULL)) != -1) {
		if (o != 'v') {
			fprintf(
			    o == 'h' ? stdout : stderr,
			    "usage: refault run [--volume PATH=unix:SOCKET[,name=EXPORT]]... [--] "
			    "PROGRAM [ARGUMENT]...\n");
			return o == 'h' ? 0 : CMD_OWN_FAILURE;
		}
		if (!add_volume(&volumes, optarg))
			return CMD_OWN_FAILURE;
	}
	argv += optind;
	if (!*argv) {
		warnx("run: no program given");
		return CMD_OWN_FAILURE;
	}
	if (!volumes && !have_volume_file()) {
		warnx("no volume: give --volume PATH=unix:SOCKET[,name=EXPORT], or set "
		      "REFAULT_VOLUMES, or write /etc/refault/volumes");
		return CMD_OWN_FAILURE;
	}
	if (!find_library(library, sizeof(library)) || !preload(library))
		return CMD_OWN_FAILURE;
	if (volumes && setenv("REFAULT_VOLUMES", volumes, 1)) {
		warn("REFAULT_VOLUMES");
		return CMD_OWN_FAILURE;
	}
	free(volumes);

	int ret = program_find(argv[0], path, sizeof(path));
	if (!ret)
		ret = program_check(path);
	if (ret)
		return ret;
	execvp(path, argv);
	warn("%s", path);
	return errno == ENOENT ? CMD_NOT_FOUND : CMD_NOT_EXECUTABLE;
}
