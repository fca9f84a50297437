/* SPDX-License-Identifier: MIT */
/*
 * agent.c - the library's side of agent.h: find or start the agent, attach, ask, wait.
 *
 * A request is one packet; its answer arrives in a cell of the proc area.  The cell's seq ties the
 * two together; it moves when the cell is taken and when it is given back, so that no second answer
 * (the request was sent to two agents, one after the other) is another request's.  Whoever abandons a
 * request (a signal handler jumped out of the wait) leaves the cell busy, and it is taken over only
 * when all others are in use and stay so.
 *
 * Counters: request.
 * Locks: attach_lock over the handshake; cells by CAS.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "file.h"
#include "pin.h"

/* ---- packets with descriptors ---- */

static int send_packet(int sock, const struct rf_req *req, const void *var, size_t len,
		       const int *fds, size_t nfds)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov[2] = {{(void *)(uintptr_t)req, sizeof(*req)},
			       {(void *)(uintptr_t)var, len}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};
	long r;

	if (nfds) {
		memset(&u, 0, sizeof(u));
		m.msg_control = u.buf;
		m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(h), fds, nfds * sizeof(int));
	}
	do
		r = rf_syscall(SYS_sendmsg, sock, &m, MSG_NOSIGNAL);
	while (r == -EINTR);
	return r < 0 ? (int)r : 0;
}

/* Receive one packet of exactly len bytes with up to nfds descriptors (missing ones: -1). */
static int recv_packet(int sock, void *buf, size_t len, int *fds, size_t nfds)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = {buf, len};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = u.buf,
			   .msg_controllen = sizeof(u.buf)};
	size_t got = 0;
	long r;

	for (size_t i = 0; i < nfds; i++)
		fds[i] = -1;
	do
		r = rf_syscall(SYS_recvmsg, sock, &m, MSG_CMSG_CLOEXEC);
	while (r == -EINTR);
	if (r < 0)
		return (int)r;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
			if (got < nfds)
				fds[got++] = fd;
			else
				rf_syscall(SYS_close, fd);
		}
	}
	return r == (long)len ? 0 : r == 0 ? -EHOSTDOWN : -EPROTO;
}

/* ---- the runtime directory and the agent's start ---- */

static bool usable_dir(const char *path, uid_t uid)
{
	struct stat st;
	return rf_syscall(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISDIR(st.st_mode) && st.st_uid == uid;
}

/* As agent.h says; made if it is not there.  -EPERM: somebody else could look or step in. */
static int runtime_dir(char *buf, size_t cap)
{
	const char *env = secure_getenv("REFAULT_RUNTIME_DIR");
	const char *xdg = secure_getenv("XDG_RUNTIME_DIR");
	uid_t uid = geteuid();
	char run[64];
	struct stat st;
	int n;

	snprintf(run, sizeof(run), "/run/user/%u", uid);
	if (env && *env)
		n = snprintf(buf, cap, "%s", env);
	else if (usable_dir(run, uid))
		n = snprintf(buf, cap, "%s/refault", run);
	else if (xdg && *xdg)
		n = snprintf(buf, cap, "%s/refault", xdg);
	else
		n = snprintf(buf, cap, "/tmp/refault-%u", uid);
	if (n < 0 || (size_t)n >= cap)
		return -ENAMETOOLONG;
	rf_syscall(SYS_mkdirat, AT_FDCWD, buf, 0700);
	if (!usable_dir(buf, uid) ||
	    rf_syscall(SYS_newfstatat, AT_FDCWD, buf, &st, AT_SYMLINK_NOFOLLOW) ||
	    (st.st_mode & 077)) {
		log_line("runtime directory %s: must be a directory of yours with mode 0700", buf);
		return -EPERM;
	}
	return 0;
}

static int connect_agent(const char *dir)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd, n;
	long r;

	n = snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/agent.sock", dir);
	if (n < 0 || (size_t)n >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	fd = (int)rf_syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	do
		r = rf_syscall(SYS_connect, fd, &sa, sizeof(sa));
	while (r == -EINTR || r == -EAGAIN);
	if (r) {
		rf_syscall(SYS_close, fd);
		return (int)r;
	}
	return fd;
}

static bool find_agent(char *buf, size_t cap)
{
	const char *env = secure_getenv("REFAULT_AGENT");
	char dir[PATH_MAX - 32];
	Dl_info di;
	char *slash;

	if (env && *env) {
		snprintf(buf, cap, "%s", env);
		return true;
	}
	if (dladdr((void *)(uintptr_t)agent_attach, &di) && di.dli_fname) {
		snprintf(dir, sizeof(dir), "%s", di.dli_fname);
		slash = strrchr(dir, '/');
		if (slash) {
			*slash = '\0';
			snprintf(buf, cap, "%s/refault-agent", dir);
			if (access(buf, X_OK) == 0)
				return true;
			snprintf(buf, cap, "%s/../../bin/refault-agent", dir);
			if (access(buf, X_OK) == 0)
				return true;
		}
	}
	snprintf(buf, cap, "/usr/bin/refault-agent");
	return access(buf, X_OK) == 0;
}

enum { SPAWN_STACK = 32 * 1024 };

struct spawn {
	const char *path;
	char **env;
	char *stack; /* of the one that execs */
};

static int spawn_exec(void *arg)
{
	struct spawn *s = arg;
	const char *argv[] = {s->path, "--daemon", NULL};
	sys_mask none = {0};

	sys_setmask(none);
	rf_syscall(SYS_execve, s->path, argv, s->env);
	rf_syscall(SYS_exit, 127);
	return 127;
}

/* Memory is the program's, descriptors and signal actions are copies. */
static int spawn_wait(void *arg)
{
	struct spawn *s = arg;
	uint64_t dfl[4] = {
	    0}; /* the kernel's struct sigaction; were it SIG_IGN, wait4 would fail */
	int status = 0, pid;
	long r;

	rf_syscall(SYS_rt_sigaction, SIGCHLD, dfl, 0, 8);
	pid = clone(spawn_exec, s->stack + SPAWN_STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, s);
	r = pid < 0 ? -1 : rf_syscall(SYS_wait4, pid, &status, 0, 0);
	rf_syscall(SYS_exit, r == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 126);
	return 0;
}

/*
 * Run `refault-agent --daemon` and wait until it says that it listens.  By a helper without an exit
 * signal, so that the program gets no SIGCHLD and its own wait() calls see nobody; two, because
 * exec gives the one that does it SIGCHLD as its exit signal again.
 */
static int start_agent(void)
{
	enum { STACK = 2 * SPAWN_STACK };
	char path[PATH_MAX];
	struct spawn s = {.path = path};
	int status = 0, n = 0, k = 0, pid;
	char *stack;
	sys_mask m;
	long r;

	if (!find_agent(path, sizeof(path))) {
		log_line("refault-agent not found beside the library nor in /usr/bin; set "
			 "REFAULT_AGENT");
		return -ENOENT;
	}
	while (environ && environ[n])
		n++;
	stack = sys_mmap(NULL, STACK + (size_t)(n + 1) * sizeof(char *), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sys_err(stack))
		return -ENOMEM;
	s.stack = stack;
	s.env = (char **)(void *)(stack + STACK);
	for (int i = 0; i < n; i++)
		if (strncmp(environ[i], "LD_PRELOAD=", 11) != 0)
			s.env[k++] = environ[i];
	m = sys_block_all();
	pid = clone(spawn_wait, stack + STACK, CLONE_VM | CLONE_VFORK, &s);
	sys_setmask(m);
	if (pid < 0) {
		r = -errno;
	} else {
		do
			r = rf_syscall(SYS_wait4, pid, &status, __WCLONE, 0);
		while (r == -EINTR);
		r = r != pid                                        ? -ECHILD
		    : WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0
								    : -EHOSTDOWN;
		if (r)
			log_line("%s --daemon failed (status %d); its own message says why", path,
				 status);
	}
	rf_syscall(SYS_munmap, stack, STACK + (size_t)(n + 1) * sizeof(char *));
	return (int)r;
}

/* A connection to the agent; started under RUNTIME/lock, so that ten programs start one. */
static int reach_agent(bool start)
{
	char dir[PATH_MAX], lock[PATH_MAX + 8];
	int fd, lfd, r;

	r = runtime_dir(dir, sizeof(dir));
	if (r)
		return r;
	fd = connect_agent(dir);
	if (fd >= 0 || !start || (fd != -ENOENT && fd != -ECONNREFUSED))
		return fd;
	snprintf(lock, sizeof(lock), "%s/lock", dir);
	lfd = (int)rf_syscall(SYS_openat, AT_FDCWD, lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
			      0600);
	if (lfd < 0)
		return lfd;
	do
		r = (int)rf_syscall(SYS_flock, lfd, LOCK_EX);
	while (r == -EINTR);
	fd = connect_agent(dir);
	if (fd == -ENOENT || fd == -ECONNREFUSED) {
		r = start_agent();
		fd = r ? r : connect_agent(dir);
	}
	rf_syscall(SYS_close, lfd);
	return fd;
}

/* ---- userfaultfd ---- */

#define RF_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* Linux 6.1, linux/userfaultfd.h */

/* /dev/userfaultfd, then the system call, then user mode only (DESIGN 9). */
static int uffd_open(uint64_t feature)
{
	struct uffdio_api api = {.api = UFFD_API, .features = RF_UFFD_FEATURES | feature};
	const int flags = O_CLOEXEC | O_NONBLOCK;
	int fd = -ENOENT, dev, r;

	dev = (int)rf_syscall(SYS_openat, AT_FDCWD, "/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fd = (int)rf_syscall(SYS_ioctl, dev, RF_USERFAULTFD_IOC_NEW, flags);
		rf_syscall(SYS_close, dev);
	}
	if (fd < 0)
		fd = (int)rf_syscall(SYS_userfaultfd, flags);
	if (fd < 0)
		fd = (int)rf_syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
	if (fd < 0) {
		log_line("userfaultfd is not available: errno %d; Linux 6.1 or later with "
			 "CONFIG_USERFAULTFD is needed",
			 -fd);
		return fd;
	}
	r = (int)rf_syscall(SYS_ioctl, fd, UFFDIO_API, &api);
	if (r) {
		log_line(
		    "this kernel's userfaultfd cannot write-protect shared memory; Linux 6.1 or "
		    "later is needed");
		rf_syscall(SYS_close, fd);
		return -EOPNOTSUPP;
	}
	return fd;
}

/*
 * In thread mode the aliases have a userfaultfd of their own: their faults stay signals, because
 * the thread that serves faults reads through them itself.
 */
static int uffd_renew(struct ctx *c)
{
	const bool thread = c->mode & CTX_FAULT_THREAD;
	int fd = uffd_open(thread ? UFFD_FEATURE_THREAD_ID : UFFD_FEATURE_SIGBUS), fd2 = fd;

	if (fd < 0)
		return fd;
	if (thread) {
		fd2 = uffd_open(UFFD_FEATURE_SIGBUS);
		if (fd2 < 0) {
			rf_syscall(SYS_close, fd);
			return fd2;
		}
		fd2 = fd_hide(c, fd2);
	}
	c->uffd = fd_hide(c, fd);
	c->uffd_alias = thread ? fd2 : c->uffd;
	return 0;
}

/* ---- attach ---- */

static void *map_fd(int fd, int prot)
{
	struct stat st;
	void *p;

	if (rf_syscall(SYS_fstat, fd, &st) || st.st_size <= 0)
		return NULL;
	p = sys_reserve((size_t)st.st_size, prot, MAP_SHARED, fd);
	if (sys_err(p))
		return NULL;
	rf_syscall(SYS_madvise, p, st.st_size, MADV_DONTDUMP);
	return p;
}

static int handshake(struct ctx *c, int sock)
{
	struct rf_req req = {.op = RF_OP_ATTACH, .version = RF_AGENT_VERSION};
	struct rf_attach_r rep;
	int strip[2], fds[3], send[2], r;
	struct rf_proc *proc;
	struct rf_host *host;
	struct rf_twins *twins;
	struct stat st;

	if (rf_syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, strip))
		return -EMFILE;
	send[0] = c->uffd;
	send[1] = strip[1];
	r = send_packet(sock, &req, NULL, 0, send, 2);
	rf_syscall(SYS_close, strip[1]);
	if (!r)
		r = recv_packet(sock, &rep, sizeof(rep), fds, 3);
	if (r) {
		rf_syscall(SYS_close, strip[0]);
		return r;
	}
	r = rep.err;
	if (r) {
		rep.text[sizeof(rep.text) - 1] = '\0';
		log_line("refault-agent refused: %s", rep.text);
		goto out;
	}
	r = -EPROTO;
	proc = map_fd(fds[0], PROT_READ | PROT_WRITE);
	host = map_fd(fds[1], PROT_READ);
	twins = map_fd(fds[2], PROT_READ | PROT_WRITE);
	if (!proc || !host || !twins || proc->magic != RF_MAGIC_PROC ||
	    proc->version != RF_STATE_VERSION || host->magic != RF_MAGIC_HOST ||
	    twins->magic != RF_MAGIC_TWINS || twins->n == 0 || rf_syscall(SYS_fstat, fds[2], &st) ||
	    rf_twins_size(twins->n) > (uint64_t)st.st_size) {
		log_line("refault-agent and this library do not fit together (version %u); restart "
			 "the agent with `refault stop`",
			 rep.version);
		goto out;
	}
	c->proc = proc;
	c->host = host;
	c->twins = twins;
	c->ntwins = twins->n;
	atomic_store(&proc->attached, 1);
	r = 0;
out:
	for (int i = 0; i < 3; i++)
		if (fds[i] >= 0)
			rf_syscall(SYS_close, fds[i]);
	if (!r)
		r = strip_start(c, strip[0]);
	rf_syscall(SYS_close, strip[0]);
	return r;
}

int agent_attach(struct ctx *c, bool start)
{
	sys_mask m;
	int sock, r = 0;
	void *libc;

	if (atomic_load(&c->attached) & 1)
		return 0;
	m = sys_lock(&c->attach_lock);
	if (atomic_load(&c->attached) & 1)
		goto out;
	c->pid = (pid_t)rf_syscall(SYS_getpid);
	if (!c->clock) {
		libc = dlopen("libc.so.6", RTLD_NOLOAD | RTLD_LAZY);
		*(void **)&c->clock = libc ? dlsym(libc, "clock_gettime") : NULL;
		if (!c->clock)
			c->clock = clock_gettime;
	}
	/* An agent that is killed in the middle is replaced by its supervisor: ask the next one. */
	for (int tries = 0;; tries++) {
		sock = reach_agent(start);
		r = sock;
		if (sock < 0) {
			if (start)
				log_line("cannot reach refault-agent: errno %d (%s)", -r,
					 strerrordesc_np(-r));
			goto out;
		}
		r = c->uffd >= 0 ? 0 : uffd_renew(c);
		if (!r)
			r = handshake(c, sock);
		if (!r)
			r = fault_install(c);
		if (!r)
			break;
		rf_syscall(SYS_close, sock);
		if ((r != -EHOSTDOWN && r != -ECONNRESET && r != -EPIPE) || tries == 5)
			goto out;
	}
	c->sock = fd_hide(c, sock);
	fork_init(c);
	atomic_fetch_add(&c->attached, 1);
	m.bits &= ~(UINT64_C(1) << (SIGBUS - 1));
	sys_unlock(&c->attach_lock, m);
	return vnode_readopt(c);
out:
	sys_unlock(&c->attach_lock, m);
	return r;
}

/* ---- requests ---- */

#define CELL_TURN 100 /* ms */
#define CELL_TURNS 10u

static struct rf_cell *cell_try(struct rf_proc *p, uint32_t from, uint32_t *index)
{
	for (uint32_t i = 0; i < RF_CELLS; i++) {
		struct rf_cell *cell = &p->cell[i];
		uint32_t s = from, used = atomic_load(&p->cells_used);

		if (atomic_load_explicit(&cell->state, memory_order_relaxed) != from ||
		    !atomic_compare_exchange_strong(&cell->state, &s, RF_CELL_BUSY))
			continue;
		atomic_store(&cell->owner, (uint32_t)rf_syscall(SYS_gettid));
		while (used < i + 1 && !atomic_compare_exchange_weak(&p->cells_used, &used, i + 1))
			;
		*index = i;
		return cell;
	}
	return NULL;
}

/*
 * More threads may ask at a time than there are cells, and for as long as a server is away.  An
 * answer may lie in its cell until its thread gets a CPU; so only when no cell at all was given back
 * for CELL_TURNS is one taken that nobody comes for.
 */
static struct rf_cell *cell_take(struct ctx *c, uint32_t *index, sys_mask mask)
{
	struct rf_cell *cell = cell_try(c->proc, RF_CELL_FREE, index);
	uint32_t turn = atomic_load(&c->cell_turn), idle = 0;
	sys_mask old;

	if (__builtin_expect(cell != NULL, 1))
		return cell;
	atomic_fetch_add(&c->cell_waiters, 1);
	for (;;) {
		if (atomic_load(&c->cell_turn) != turn)
			idle = 0;
		turn = atomic_load(&c->cell_turn);
		cell = cell_try(c->proc, RF_CELL_FREE, index);
		if (!cell && idle >= CELL_TURNS)
			cell = cell_try(c->proc, RF_CELL_DONE, index);
		if (cell)
			break;
		rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &old, 8);
		idle += sys_futex_wait(&c->cell_turn, turn, CELL_TURN) == -ETIMEDOUT;
		sys_setmask(old);
	}
	atomic_fetch_sub(&c->cell_waiters, 1);
	return cell;
}

static bool hung_up(int sock)
{
	struct pollfd p = {.fd = sock};
	struct timespec t = {0};

	return rf_syscall(SYS_ppoll, &p, 1, &t, 0, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

bool agent_gone(const struct ctx *c)
{
	return hung_up(c->sock);
}

/* Nobody waits here any more: what comes late finds another seq. */
static void cell_put(struct ctx *c, struct rf_cell *cell)
{
	atomic_fetch_add(&cell->seq, 1);
	atomic_store(&cell->state, RF_CELL_FREE);
	if (__builtin_expect(atomic_load(&c->cell_waiters), 0)) {
		atomic_fetch_add(&c->cell_turn, 1);
		rf_syscall(SYS_futex, &c->cell_turn, FUTEX_WAKE, 1, 0, 0, 0);
	}
}

int agent_request(struct ctx *c, enum rf_op op, uint32_t vnode, uint32_t key, const uint64_t arg[4],
		  const void *var, size_t len, uint64_t ret[2], sys_mask mask)
{
	struct rf_req req = {.op = op, .version = RF_AGENT_VERSION, .vnode = vnode, .key = key};
	struct rf_cell *cell;
	uint32_t gen;
	sys_mask old;
	int r;

	debug_free(DEBUG_ALL, "asks the agent");
	r = agent_attach(c, true);
	if (r)
		return r;
	memcpy(req.arg, arg, sizeof(req.arg));
	if (op == RF_OP_SETSIZE || op == RF_OP_FALLOC || op == RF_OP_REMAP) {
		req.pins = pin_policy(c, vnode);
		req.tid = (uint32_t)rf_syscall(SYS_gettid);
	}
	count(c, RF_R_REQUEST);
another:
	cell = cell_take(c, &req.cell, mask);
	req.seq = atomic_fetch_add(&cell->seq, 1) + 1;
again:
	gen = atomic_load(&c->proc->agent_gen);
	r = send_packet(c->sock, &req, var, len, NULL, 0);
	if (r) {
		cell_put(c, cell);
		log_line("refault-agent is gone: errno %d; its files cannot be used any more", -r);
		return -EHOSTDOWN;
	}
	rf_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &old, 8);
	for (;;) {
		uint32_t s = atomic_load_explicit(&cell->state, memory_order_acquire);

		if (atomic_load(&cell->seq) != req.seq) {
			/* Taken over by another thread, with the answer that was in it: the
			 * handlers that ran here took that long.  A new cell makes a new request
			 * id: that may not be done twice where it adds to the file. */
			sys_setmask(old);
			if (op == RF_OP_APPEND)
				return -EIO;
			goto another;
		}
		if (s == RF_CELL_DONE)
			break;
		if (atomic_load(&c->proc->agent_gen) != gen) {
			sys_setmask(old);
			goto again; /* by cell and seq it is the same request to the next agent */
		}
		r = sys_futex_wait(&cell->state, RF_CELL_BUSY, 1000);
		if (r == -ETIMEDOUT && hung_up(c->sock)) {
			sys_setmask(old);
			cell_put(c, cell);
			return -EHOSTDOWN;
		}
	}
	r = atomic_load(&cell->err);
	if (ret) {
		ret[0] = atomic_load(&cell->ret[0]);
		ret[1] = atomic_load(&cell->ret[1]);
	}
	cell_put(c, cell);
	sys_setmask(old);
	return r;
}

static sys_mask current_mask(void)
{
	sys_mask m = {0};
	rf_syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &m, 8);
	return m;
}

void agent_close(struct ctx *c, uint32_t vnode, uint32_t opens)
{
	struct rf_req req = {.op = RF_OP_CLOSE,
			     .version = RF_AGENT_VERSION,
			     .cell = RF_CELLS,
			     .vnode = vnode,
			     .arg = {opens}};

	if (atomic_load(&c->attached) & 1)
		send_packet(c->sock, &req, NULL, 0, NULL, 0);
}

int agent_open(struct ctx *c, const struct rf_open *o, const char *addr, const char *name,
	       const char *path, const struct key *key, struct vnode **out, uint32_t *number)
{
	struct rf_req req = {.op = RF_OP_OPEN, .version = RF_AGENT_VERSION, .cell = RF_CELLS};
	char var[sizeof(*o) + 256 + 256 + 4096 + 2 * KEY_MAX];
	struct rf_open *v = (struct rf_open *)(void *)var;
	struct rf_open_r rep;
	int pair[2], fds[2], r;
	size_t n = sizeof(*o), al = strlen(addr), nl = strlen(name), pl = strlen(path);

	if (al > 255 || nl > 255 || pl > 4095)
		return -ENAMETOOLONG;
	memcpy(var, o, sizeof(*o));
	v->addr_len = (uint16_t)al;
	v->name_len = (uint16_t)nl;
	v->path_len = (uint16_t)pl;
	memcpy(var + n, addr, al);
	n += al;
	memcpy(var + n, name, nl);
	n += nl;
	memcpy(var + n, path, pl);
	n += pl;
	v->key_len = key->name_len;
	v->secret_len = key->secret_len;
	memcpy(var + n, key->name, key->name_len);
	n += key->name_len;
	memcpy(var + n, key->secret, key->secret_len);
	n += key->secret_len;
	count(c, RF_R_REQUEST);
	/* The agent may restart between request and answer: its end is then closed; ask once more.
	 */
	for (int tries = 0;; tries++) {
		r = (int)rf_syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
				    pair);
		if (r)
			break;
		r = send_packet(c->sock, &req, var, n, &pair[1], 1);
		rf_syscall(SYS_close, pair[1]);
		if (!r)
			r = recv_packet(pair[0], &rep, sizeof(rep), fds, 2);
		rf_syscall(SYS_close, pair[0]);
		if (r != -EHOSTDOWN || tries == 3 || hung_up(c->sock))
			break;
	}
	explicit_bzero(var, n);
	if (r)
		return r;
	if (rep.err || rep.key >= RF_KEYS || fds[0] < 0 || fds[1] < 0) {
		for (int i = 0; i < 2; i++)
			if (fds[i] >= 0)
				rf_syscall(SYS_close, fds[i]);
		rep.text[sizeof(rep.text) - 1] = '\0';
		if (rep.text[0])
			log_line("%s: %s", path, rep.text);
		return rep.err ? rep.err : -EPROTO;
	}
	*number = rep.key;
	return vnode_adopt(c, rep.vnode, path, fds[0], fds[1], out);
}

int agent_fault_masked(struct ctx *c, struct vnode *vn, uint32_t key, uint64_t page,
		       uint64_t npages, uint32_t flags, sys_mask mask)
{
	const uint64_t arg[4] = {page, npages, flags};

	return agent_request(c, RF_OP_FAULT, vn->id, key, arg, NULL, 0, NULL, mask);
}

int agent_fault(struct ctx *c, struct vnode *vn, uint32_t key, uint64_t page, uint64_t npages,
		uint32_t flags)
{
	return agent_fault_masked(c, vn, key, page, npages, flags, current_mask());
}

int agent_flush(struct ctx *c, struct vnode *vn, uint64_t page, uint64_t npages, uint32_t flags)
{
	const uint64_t arg[4] = {page, npages, flags, 0};
	struct rf_vnode *st = atomic_load(&vn->st);

	/*
	 * dirtied is cleared only when a scan found every dirty page; until its stores are released
	 * wb_inflight says so.  The agent raises wb_inflight before it clears dirtied.
	 */
	if (!atomic_load(&st->dirtied) && !atomic_load(&st->wb_inflight) &&
	    !((flags & RF_FLUSH_DURABLE) && atomic_load(&st->unstable)) &&
	    atomic_load(&st->i_size) == atomic_load(&st->server_size))
		return 0;
	return agent_request(c, RF_OP_FLUSH, vn->id, 0, arg, NULL, 0, NULL, current_mask());
}
