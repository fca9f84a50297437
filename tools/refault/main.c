/* SPDX-License-Identifier: MIT */
/*
 * refault - run programs with the library, ask the agent.
 */
#include <stdio.h>
#include <string.h>

#include <refault/refault.h>

#include "cmd.h"

static const char usage_text[] =
    "usage: refault run [--volume PATH=ADDRESS]... [--] PROGRAM [ARGUMENT]...\n"
    "       refault status\n"
    "       refault invalidate [--flush | --discard] [--verbose] PATH...\n"
    "       refault invalidate [--flush | --discard] [--verbose] --volume NAME [PATH]...\n"
    "       refault stop\n"
    "       refault --version | --help\n"
    "\n"
    "run     run PROGRAM so that files under each PATH that it maps, reads or writes are coherent\n"
    "        with other hosts; ADDRESS is unix:SOCKET[,name=EXPORT], see refault-server(8)\n"
    "status  print what this user's agent holds and has counted\n"
    "invalidate\n"
    "        take files out of this host's cache, so that the next touch asks the server; dirty "
    "pages\n"
    "        stay, unless --flush writes them back first or --discard throws them away\n"
    "stop    flush what is dirty and end the agent\n"
    "\n"
    "Environment: REFAULT_VOLUMES, REFAULT_RUNTIME_DIR, REFAULT_LIBRARY; see refault(1).\n";

static int usage_error(void)
{
	fputs(usage_text, stderr);
	return CMD_OWN_FAILURE;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return usage_error();

	const char *verb = argv[1];
	if (strcmp(verb, "run") == 0) {
		argv[1] = argv[0]; /* getopt() says who complains */
		return cmd_run(argc - 1, argv + 1);
	}
	if (strcmp(verb, "invalidate") == 0) {
		argv[1] = argv[0];
		return cmd_invalidate(argc - 1, argv + 1);
	}
	if (argc > 2)
		return usage_error();
	if (strcmp(verb, "status") == 0 || strcmp(verb, "stop") == 0)
		return cmd_info(verb);
	if (strcmp(verb, "--version") == 0 || strcmp(verb, "-V") == 0) {
		puts("refault " REFAULT_VERSION);
		return 0;
	}
	if (strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0 || strcmp(verb, "help") == 0) {
		fputs(usage_text, stdout);
		return 0;
	}
	return usage_error();
}
