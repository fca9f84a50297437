/* SPDX-License-Identifier: MIT */
/*
 * main.c - refault-agent: become a daemon that inherits nothing, be the only one, supervise.
 *
 * Order matters: the runtime directory is checked, agent.lock is taken (for the life of supervisor
 * and agent), the socket listens, and only then does the starter return, so that whoever started us
 * can connect at once.
 *
 * Counters: none.
 * Locks: RUNTIME/agent.lock: one agent a directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <refault/refault.h>

#include "ag.h"
#include "super.h"

#define LOG_MAX (1 << 20)
#define LOCK_TRIES 500 /* of 10 ms: an agent that is just leaving */

static int fail(const char *what, int err)
{
	fprintf(stderr, "refault-agent: %s: %s\n", what, strerror(-err));
	return 1;
}

static void help(void)
{
	puts("Usage: refault-agent [OPTION]...\n"
	     "Keep this user's view of Refault volumes: page cache, promises, write-back.\n"
	     "Programs under librefault.so start it on demand.\n"
	     "\n"
	     "  --daemon            go to the background once programs can connect\n"
	     "  --idle SECONDS      leave after so long without programs (60)\n"
	     "  --dirty-expire MS   write changes back after so long (1000)\n"
	     "  --cache-bytes N     clean pages kept, with K, M, G or T (half of the memory)\n"
	     "  --dirty-bytes N     dirty pages at most; then stores wait (an eighth of that)\n"
	     "  --verbose           say more in the log\n"
	     "  --version, --help\n"
	     "\n"
	     "The log is RUNTIME/agent.log (--daemon) or standard error; RUNTIME is\n"
	     "$REFAULT_RUNTIME_DIR, /run/user/UID/refault, $XDG_RUNTIME_DIR/refault or\n"
	     "/tmp/refault-UID.  REFAULT_TIMEOUT: seconds to wait for a server (30);\n"
	     "REFAULT_DIRTY_BYTES: as --dirty-bytes.");
}

/* Nothing of whoever started us: signals, limits, descriptors, file mode mask. */
static void shed(void)
{
	static const int lim[] = {RLIMIT_FSIZE, RLIMIT_NOFILE};
	struct rlimit rl;
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	for (unsigned i = 0; i < sizeof(lim) / sizeof(lim[0]); i++)
		if (!getrlimit(lim[i], &rl)) {
			rl.rlim_cur = rl.rlim_max;
			setrlimit(lim[i], &rl);
		}
	umask(077);
	close_range(3, ~0u, 0);
}

static bool answers(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	bool ok = false;
	int fd;

	if (strlen(path) >= sizeof(sa.sun_path))
		return false;
	memcpy(sa.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		ok = !connect(fd, (struct sockaddr *)&sa, sizeof(sa));
		close(fd);
	}
	return ok;
}

/* The lock's descriptor; -EEXIST: an agent serves this directory. */
static int be_alone(const struct ag_conf *conf)
{
	char lock[128], sock[128];
	int fd;

	snprintf(lock, sizeof(lock), "%s/agent.lock", conf->dir);
	snprintf(sock, sizeof(sock), "%s/agent.sock", conf->dir);
	fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (answers(sock))
			return -EEXIST;
		if (i == LOCK_TRIES)
			return -EBUSY;
		usleep(10000);
	}
	return fd;
}

/* The log's descriptor. */
static int log_open(const struct ag_conf *conf)
{
	char path[128], old[128];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/agent.log", conf->dir);
	snprintf(old, sizeof(old), "%s/agent.log.old", conf->dir);
	if (!lstat(path, &st) && (st.st_size > LOG_MAX || !S_ISREG(st.st_mode)))
		rename(path, old);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

/* The parent leaves; the child has a session of its own, and its errors go to the log. */
static int background(int log)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid;

	if (null < 0)
		return -errno;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid)
		_exit(0);
	setsid();
	dup2(null, 0);
	dup2(null, 1);
	dup2(log, 2);
	close(null);
	close(log);
	return 0;
}

int main(int argc, char **argv)
{
	static struct ag_keeptab tab;
	static struct ag_conf conf;
	char err[256];
	int fd, log = -1, r;

	/* Preloaded things have no business here; once is enough, for the kernel may not know. */
	if (getenv("LD_PRELOAD")) {
		unsetenv("LD_PRELOAD");
		execv("/proc/self/exe", argv);
		return fail("cannot run again without LD_PRELOAD", -errno);
	}
	if (ag_conf_parse(&conf, argc, argv, err, sizeof(err))) {
		fprintf(stderr, "refault-agent: %s\n", err);
		return 2;
	}
	if (conf.help) {
		help();
		return 0;
	}
	if (conf.version) {
		puts("refault-agent " REFAULT_VERSION);
		return 0;
	}
	ag_verbose = conf.verbose;
	shed();
	if (ag_conf_runtime(&conf, err, sizeof(err))) {
		fprintf(stderr, "refault-agent: %s\n", err);
		return 1;
	}
	ag_conf_clean_env();
	r = fd = ag_uffd_open();
	if (r < 0)
		return fail("userfaultfd is not available here (it needs Linux 6.1 with "
			    "CONFIG_USERFAULTFD, and a sandbox that allows it)",
			    r);
	close(fd);
	r = be_alone(&conf);
	if (r == -EEXIST) {
		if (conf.daemon)
			return 0;
		fprintf(stderr, "refault-agent: another one serves %s already\n", conf.dir);
		return 1;
	}
	if (r < 0) {
		snprintf(err, sizeof(err), "%s/agent.lock", conf.dir);
		return fail(
		    r == -EBUSY ? "another agent holds agent.lock but does not answer" : err, r);
	}
	if (conf.daemon) {
		r = log = log_open(&conf);
		if (r < 0) {
			snprintf(err, sizeof(err), "%s/agent.log", conf.dir);
			return fail(err, r);
		}
	}
	fd = ag_listen_make(&conf);
	if (fd < 0) {
		snprintf(err, sizeof(err), "cannot listen at %s/agent.sock", conf.dir);
		return fail(err, fd);
	}
	ag_keeptab_init(&tab);
	if (ag_keep_set(&tab, AG_KEEP_LISTEN, 0, &fd, 1, NULL, 0))
		return fail("out of memory", -ENOMEM);

	if (conf.daemon) {
		r = background(log);
		if (r)
			return fail("fork", r);
	}
	if (chdir("/"))
		return fail("/", -errno);
	r = ag_supervise(&conf, &tab, ag_run);
	if (r) {
		snprintf(err, sizeof(err), "%s/agent.sock", conf.dir);
		unlink(err);
	}
	return r;
}
