/* SPDX-License-Identifier: MIT */
/*
 * srv_own.c - a refault-server of the test's own, in a child process, and what tests do to it and
 * to the directory that it serves.
 */
#include "srv_own.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

char base[64], dir[80], sock[80];
struct srv_config config;
pid_t server;

void start_server(void)
{
	char line[8] = "";
	int out[2];

	cr_assert(not(pipe(out)));
	server = fork();
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(out[1], 1);
		close(out[0]);
		_exit(srv_run(&config));
	}
	close(out[1]);
	cr_assert(read(out[0], line, sizeof(line)) > 0, "the server does not start");
	close(out[0]);
}

void stop_server(int sig)
{
	int status = 0;

	kill(server, sig);
	waitpid(server, &status, 0);
	if (sig == SIGTERM)
		cr_assert(eq(int, status, 0), "server ended with %x", status);
	server = 0;
}

void short_leases(void)
{
	stop_server(SIGTERM);
	config.lease_ms = SHORT;
	start_server();
}

void setup_at(const char *where)
{
	static char addr[96];

	signal(SIGPIPE, SIG_IGN);
	umask(0);
	snprintf(base, sizeof(base), "%s/refault-srv-XXXXXX", where);
	cr_assert(mkdtemp(base) != NULL);
	chmod(base, 0755);
	snprintf(dir, sizeof(dir), "%s/dir", base);
	snprintf(sock, sizeof(sock), "%s/s", base);
	snprintf(addr, sizeof(addr), "unix:%s", sock);
	mkdir(dir, 0777);
	memset(&config, 0, sizeof(config));
	config.export[0].name = "x";
	config.export[0].where = dir;
	config.nexports = 1;
	config.listen = addr;
	config.lease_ms = LEASE;
}

/* In a mount namespace of its own, over /tmp: it is gone with the test, however that ends. */
bool setup_disk(const char *fs)
{
	char img[] = "/tmp/refault-disk-XXXXXX", cmd[256];
	int fd, tmp, err;

	if (geteuid() || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return false;
	tmp = open("/tmp", O_PATH | O_DIRECTORY | O_CLOEXEC);
	fd = mkstemp(img);
	cr_assert(tmp >= 0 && fd >= 0 && !ftruncate(fd, 600 << 20));
	close(fd);
	snprintf(cmd, sizeof(cmd),
		 "PATH=$PATH:/usr/sbin:/sbin; mkfs.%s -q %s && mount -o loop %s /tmp", fs, img,
		 img);
	err = system(cmd);
	unlinkat(tmp, strrchr(img, '/') + 1, 0);
	close(tmp);
	if (err)
		return false;
	setup_at("/tmp");
	return true;
}

void setup(void)
{
	setup_at("/tmp");
	start_server();
}

static int rm(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void teardown(void)
{
	if (server)
		stop_server(SIGTERM);
	cr_expect(access(sock, F_OK) != 0, "the socket was left behind");
	nftw(base, rm, 16, FTW_DEPTH | FTW_PHYS);
}

const char *at(const char *name)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

void put_file(const char *name, const char *text)
{
	int fd = open(at(name), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);

	cr_assert(fd >= 0);
	cr_assert(eq(i64, write(fd, text, strlen(text)), (ssize_t)strlen(text)));
	close(fd);
}

const char *get_file(const char *name)
{
	static char buf[8192];
	int fd = open(at(name), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

	close(fd);
	buf[n < 0 ? 0 : n] = 0;
	return buf;
}

void others_rename(const char *from, const char *to)
{
	char path[200];

	snprintf(path, sizeof(path), "%s", at(from));
	cr_assert(not(rename(path, at(to))));
}

void others_write(const char *name, off_t off, const char *text)
{
	int fd = open(at(name), O_WRONLY | O_CLOEXEC);

	cr_assert(fd >= 0);
	cr_assert(eq(i64, pwrite(fd, text, strlen(text), off), (ssize_t)strlen(text)));
	close(fd);
}

uint64_t ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

rf_break *br(struct tc *tc)
{
	return &tc->msg.body.rf_body_u.brk;
}

rf_status *st(struct tc *tc)
{
	return &tc->msg.body.rf_body_u.status_r;
}

rf_applied *applied(struct tc *tc)
{
	return &tc->msg.body.rf_body_u.applied;
}

bool as_nobody(void)
{
	int status;
	pid_t pid;

	if (geteuid())
		return false;
	pid = fork();
	if (!pid) {
		if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) ||
		    setresuid(65534, 65534, 65534))
			_exit(9);
		server = 0;
		return true;
	}
	waitpid(pid, &status, 0);
	if (status == 9 << 8)
		cr_skip("cannot become another user here");
	cr_assert(eq(int, status, 0), "child: %x", status);
	return false;
}

int reply(struct tc *tc)
{
	int type;

	while ((type = tc_recv(tc, SOON)) == RF_BREAK)
		tc_ack(tc, br(tc)->id);
	return type;
}

int error_of(struct tc *tc)
{
	if (reply(tc) != RF_ERROR)
		return 0;
	return (int)tc->msg.body.rf_body_u.error.err;
}
