/* SPDX-License-Identifier: MIT */
/*
 * main.c - refault-server's command line.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <refault/refault.h>

#include "srv.h"

static const char usage[] =
    "Usage: refault-server --export NAME=DIR [--export NAME=DIR]... --listen unix:PATH\n"
    "\n"
    "Serve directories to refault-agents and keep what they have mapped coherent.\n"
    "\n"
    "  -e, --export NAME=DIR  serve DIR under NAME; as often as needed\n"
    "  -l, --listen ADDRESS   unix:PATH\n"
    "      --lease SECONDS    how long a host that does not answer is waited for (10)\n"
    "      --keys DIR         accept the keys that DIR holds, a file each\n"
    "  -v, --verbose          tell of connections\n"
    "      --version\n"
    "      --help\n"
    "\n"
    "Signals: SIGTERM, SIGINT end it; SIGHUP makes it read its keys anew and forget its promises,\n"
    "so that all hosts validate what they hold.\n";

static int add_export(struct srv_config *config, char *arg)
{
	char *eq = strchr(arg, '=');
	unsigned i;

	if (!eq || eq == arg || !eq[1]) {
		srv_log("--export %s: must be NAME=DIR", arg);
		return -EINVAL;
	}
	*eq = 0;
	if (strlen(arg) > RF_MAX_NAME) {
		srv_log("--export %.40s...: the name is longer than %d bytes", arg, RF_MAX_NAME);
		return -EINVAL;
	}
	for (i = 0; i < config->nexports; i++)
		if (!strcmp(config->export[i].name, arg)) {
			srv_log("--export %s=%s: the name is used already, for %s; take another",
				arg, eq + 1, config->export[i].where);
			return -EINVAL;
		}
	if (config->nexports == SRV_MAX_VOLUMES) {
		srv_log("--export %s: more than %d exports; run a second server", arg,
			SRV_MAX_VOLUMES);
		return -EINVAL;
	}
	config->export[config->nexports].name = arg;
	config->export[config->nexports++].where = eq + 1;
	return 0;
}

static int set_lease(struct srv_config *config, const char *arg)
{
	double s;
	char *end;

	errno = 0;
	s = strtod(arg, &end);
	if (end == arg || *end || errno || !(s >= 0.1 && s <= SRV_LEASE_MAX)) {
		srv_log("--lease %s: must be seconds, 0.1 to %u", arg, SRV_LEASE_MAX);
		return -EINVAL;
	}
	config->lease_ms = (uint32_t)(s * 1000);
	return 0;
}

int main(int argc, char **argv)
{
	enum { OPT_LEASE = 256, OPT_KEYS, OPT_VERSION, OPT_HELP };
	static const struct option options[] = {
	    {"export", required_argument, NULL, 'e'},
	    {"listen", required_argument, NULL, 'l'},
	    {"lease", required_argument, NULL, OPT_LEASE},
	    {"keys", required_argument, NULL, OPT_KEYS},
	    {"verbose", no_argument, NULL, 'v'},
	    {"version", no_argument, NULL, OPT_VERSION},
	    {"help", no_argument, NULL, OPT_HELP},
	    {NULL, 0, NULL, 0},
	};
	static struct srv_config config = {.lease_ms = 10000};
	int opt;

	while ((opt = getopt_long(argc, argv, "e:l:v", options, NULL)) != -1) {
		switch (opt) {
		case 'e':
			if (add_export(&config, optarg))
				return 2;
			break;
		case 'l':
			config.listen = optarg;
			break;
		case OPT_LEASE:
			if (set_lease(&config, optarg))
				return 2;
			break;
		case OPT_KEYS:
			config.keys = optarg;
			break;
		case 'v':
			config.verbose = true;
			break;
		case OPT_VERSION:
			puts("refault-server " REFAULT_VERSION);
			return 0;
		case OPT_HELP:
			fputs(usage, stdout);
			return 0;
		default:
			fputs("Try refault-server --help\n", stderr);
			return 2;
		}
	}
	if (optind < argc)
		srv_log("%s: arguments are not expected; try --help", argv[optind]);
	else if (!config.nexports)
		srv_log("nothing to serve: give --export NAME=DIR");
	else if (!config.listen)
		srv_log("no address: give --listen unix:PATH");
	else
		return srv_run(&config);
	return 2;
}
