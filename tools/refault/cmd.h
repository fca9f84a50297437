/* SPDX-License-Identifier: MIT */
/*
 * cmd.h - the parts of the `refault` command.  Each prints one clear line to stderr when it fails.
 *
 * main.c: options, usage.  run.c: `refault run`.  program.c: may the library be preloaded into this
 * program?  info.c: `refault status`, `refault stop`.  invalidate.c: `refault invalidate`.
 */
#ifndef REFAULT_CMD_H
#define REFAULT_CMD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Exit codes of env(1) and nice(1). */
enum { CMD_OWN_FAILURE = 125, CMD_NOT_EXECUTABLE = 126, CMD_NOT_FOUND = 127 };

/* `refault run ARGS`.  Returns only when it fails: the exit code. */
int cmd_run(int argc, char **argv);

/* Ask this user's agent for `word` and print what it says.  Returns the exit code. */
int cmd_info(const char *word);

/* `refault invalidate ARGS`.  Returns the exit code. */
int cmd_invalidate(int argc, char **argv);

/*
 * A connection to this user's agent.  -1, after a message; but if none is running and `none` is given,
 * that is set and nothing said.
 */
int agent_connect(bool *none);

/* recv(), also for a command that was stopped and goes on: a socket with a time limit says EINTR then. */
ssize_t agent_recv(int fd, void *buf, size_t len);

/*
 * Find name as execvp() would; the path goes to buf.  Returns 0 or the exit code, after a message.
 */
int program_find(const char *name, char *buf, size_t len);

/*
 * Follow path through its #! interpreters and look whether the dynamic linker would load the
 * library into what runs in the end.  Returns 0 or the exit code, after a message.
 */
int program_check(const char *path);

#endif
