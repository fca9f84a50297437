/* SPDX-License-Identifier: MIT */
/*
 * ctx.c - the library's context: made once, on the first interposed call, wherever that comes from.
 *
 * Configuration, read here and nowhere else:
 *
 *	REFAULT_VOLUMES	   PATH=ADDR[,name=NAME][,pins=POLICY] separated by ';'.  Set but empty: no volumes.
 *	   otherwise	   the same, one a line, '#' comments, in $XDG_CONFIG_HOME/refault/volumes
 *			   (~/.config/refault/volumes) if it is there, else /etc/refault/volumes
 *	REFAULT_LOG	   1 or debug: say more
 *	REFAULT_PINS	   what a truncate does about pins: fail, sequester, wait[:SECONDS[:fail|:sequester]]
 *	REFAULT_FAULTS	   signal (default) or thread
 *	REFAULT_KEY	   the file of a key (key.c) to open files under; else the user's own uid
 *	REFAULT_DISABLE	   what to do without, for tests: continue-wp, invalidate-lock (slot.c)
 *
 * NAME defaults to the last component of PATH.  What cannot be understood is one line on stderr and
 * is left out; the program runs on.
 *
 * Locks: `maker`, a once-lock.  Signals are blocked while the context is made, so the only way to
 * come back here on the same thread is through dlsym (an allocator that maps memory): such a call
 * gets `boot`, a context without volumes whose few functions are raw system calls.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "file.h"
#include "key.h"
#include "pin.h"

#define CONF_MAX 16384u

static struct ctx the_ctx;
struct ctx *rf_ctx;

static char conf_buf[CONF_MAX];

/* ---- boot ---- */

static long boot_ret(long r)
{
	return wrap_ret(r);
}
static void *boot_mmap(void *a, size_t n, int prot, int flags, int fd, off_t off)
{
	return (void *)boot_ret(rf_syscall(SYS_mmap, a, n, prot, flags, fd, off));
}
static void *boot_mremap(void *a, size_t old, size_t n, int flags, void *to)
{
	return (void *)boot_ret(rf_syscall(SYS_mremap, a, old, n, flags, to));
}
static int boot_munmap(void *a, size_t n)
{
	return (int)boot_ret(rf_syscall(SYS_munmap, a, n));
}
static int boot_mprotect(void *a, size_t n, int prot)
{
	return (int)boot_ret(rf_syscall(SYS_mprotect, a, n, prot));
}
static int boot_madvise(void *a, size_t n, int advice)
{
	return (int)boot_ret(rf_syscall(SYS_madvise, a, n, advice));
}
static int boot_openat(int dir, const char *path, int flags, mode_t mode)
{
	return (int)boot_ret(rf_syscall(SYS_openat, dir, path, flags, mode));
}
static int boot_open(const char *path, int flags, mode_t mode)
{
	return boot_openat(AT_FDCWD, path, flags, mode);
}
static int boot_close(int fd)
{
	return (int)boot_ret(rf_syscall(SYS_close, fd));
}
static ssize_t boot_read(int fd, void *buf, size_t n)
{
	return boot_ret(rf_syscall(SYS_read, fd, buf, n));
}
static ssize_t boot_write(int fd, const void *buf, size_t n)
{
	return boot_ret(rf_syscall(SYS_write, fd, buf, n));
}

/* What an allocator that starts inside of dlsym may need. */
static struct ctx boot = {
    .map_lo = UINTPTR_MAX,
    .real = {.mmap = boot_mmap,
	     .mmap64 = boot_mmap,
	     .mremap = boot_mremap,
	     .munmap = boot_munmap,
	     .mprotect = boot_mprotect,
	     .madvise = boot_madvise,
	     .open = boot_open,
	     .open64 = boot_open,
	     .openat = boot_openat,
	     .openat64 = boot_openat,
	     .close = boot_close,
	     .read = boot_read,
	     .write = boot_write},
};

/* ---- configuration ---- */

static bool blank(char ch)
{
	return ch == ' ' || ch == '\t' || ch == '\r';
}

/* One PATH=ADDR[,name=NAME], cut out of a buffer that stays. */
static void add_volume(struct ctx *c, char *s)
{
	char *addr, *name, *end, *next;
	uint32_t pins = 0;
	struct volume *v;

	while (blank(*s))
		s++;
	end = s + strlen(s);
	while (end > s && blank(end[-1]))
		*--end = '\0';
	if (!*s || *s == '#')
		return;
	if (c->nvol == CTX_VOLUMES) {
		log_line("volume %s: more than %u volumes; this one is left out", s, CTX_VOLUMES);
		return;
	}
	addr = strchr(s, '=');
	if (*s != '/' || !addr || !strchr(addr, ':') || strchr(addr, ':') == addr + 1) {
		log_line("volume \"%s\": expected /PATH=unix:/SOCKET[,OPTION=VALUE]...; left out",
			 s);
		return;
	}
	for (end = addr; end > s + 1 && end[-1] == '/'; end--)
		;
	*end = '\0';
	*addr++ = '\0';
	name = strrchr(s, '/') + 1;
	for (end = strchr(addr, ','); end; end = next) {
		*end++ = '\0';
		next = strchr(end, ',');
		if (next)
			*next = '\0';
		if (strncmp(end, "name=", 5) == 0)
			name = end + 5;
		if (strncmp(end, "pins=", 5) == 0)
			pins = pin_parse(end + 5);
		if (strncmp(end, "name=", 5) != 0 ? strncmp(end, "pins=", 5) != 0 || !pins
						  : !end[5]) {
			log_line("volume %s: option \"%s\" is not name=NAME or "
				 "pins=" PIN_POLICY "; left out",
				 s, end);
			return;
		}
	}
	if (!*name) {
		log_line("volume /: needs name=NAME; left out");
		return;
	}
	v = &c->vol[c->nvol++];
	v->conf = s;
	v->conf_len = strlen(s);
	v->addr = addr;
	v->name = name;
	v->pins = pins;
}

static void add_volumes(struct ctx *c, char *s, char sep)
{
	while (*s) {
		char *next = s + strcspn(s, sep == ';' ? ";\n" : "\n");
		bool more = *next != '\0';

		*next = '\0';
		add_volume(c, s);
		s = next + more;
	}
}

/* The file's text into conf_buf.  False: it is not there. */
static bool read_conf(const char *dir, const char *rest)
{
	char path[4096];
	size_t n = strlen(dir), m = strlen(rest) + 1, done = 0;
	long fd, r;

	if (n + m > sizeof(path))
		return false;
	memcpy(path, dir, n + 1);
	memcpy(path + n, rest, m);
	fd = rf_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return false;
	while ((r = rf_syscall(SYS_read, fd, conf_buf + done, CONF_MAX - 1 - done)) > 0)
		done += (size_t)r;
	rf_syscall(SYS_close, fd);
	if (done == CONF_MAX - 1)
		log_line("%s: longer than %u bytes; the rest is left out", path, CONF_MAX - 1);
	conf_buf[done] = '\0';
	return true;
}

static void find_volumes(struct ctx *c)
{
	const char *env = secure_getenv("REFAULT_VOLUMES");
	const char *xdg, *home;
	bool found = false;

	if (env) {
		if (strlen(env) >= CONF_MAX)
			log_line("REFAULT_VOLUMES: longer than %u bytes; the rest is left out",
				 CONF_MAX - 1);
		strncpy(conf_buf, env, CONF_MAX - 1);
		add_volumes(c, conf_buf, ';');
		return;
	}
	xdg = secure_getenv("XDG_CONFIG_HOME");
	home = secure_getenv("HOME");
	if (xdg && *xdg)
		found = read_conf(xdg, "/refault/volumes");
	else if (home && *home)
		found = read_conf(home, "/.config/refault/volumes");
	if (!found)
		found = read_conf("/etc/refault/volumes", "");
	if (found)
		add_volumes(c, conf_buf, '\n');
}

static void find_options(struct ctx *c)
{
	static const struct {
		const char *name;
		uint32_t mode;
	} feature[] = {{"continue-wp", CTX_NO_CONTINUE_WP},
		       {"invalidate-lock", CTX_NO_SHARED_SIDE}};
	const char *s = secure_getenv("REFAULT_LOG");

	if (s && *s && strcmp(s, "0") != 0) {
		c->verbose = 1;
		if (strcmp(s, "1") != 0 && strcmp(s, "debug") != 0)
			log_line("REFAULT_LOG=%s: not 0, 1 or debug; taken as 1", s);
	}
	s = secure_getenv("REFAULT_KEY");
	if (s && *s)
		key_config(c, s);
	s = secure_getenv("REFAULT_PINS");
	if (s && *s) {
		c->pins = pin_parse(s);
		if (!c->pins)
			log_line("REFAULT_PINS=%s: not " PIN_POLICY "; taken as wait:10:fail", s);
	}
	s = secure_getenv("REFAULT_FAULTS");
	if (s && strcmp(s, "thread") == 0)
		c->mode |= CTX_FAULT_THREAD;
	else if (s && *s && strcmp(s, "signal") != 0)
		log_line("REFAULT_FAULTS=%s: not signal or thread; taken as signal", s);
	s = secure_getenv("REFAULT_DISABLE");
	while (s && *s) {
		size_t n = strcspn(s, ","), i;

		for (i = 0; i < sizeof(feature) / sizeof(feature[0]); i++)
			if (strlen(feature[i].name) == n && strncmp(s, feature[i].name, n) == 0)
				break;
		if (i < sizeof(feature) / sizeof(feature[0]))
			c->mode |= feature[i].mode;
		else if (n)
			log_line("REFAULT_DISABLE: \"%s\" begins with a feature that is not known; "
				 "known: continue-wp, invalidate-lock",
				 s);
		s += n + (s[n] == ',');
	}
}

/* ---- once ---- */

enum { MAKER_NONE = 0, MAKER_DONE = -1 }; /* else: the thread id of whoever makes it */
static _Atomic int32_t maker;

void *ctx_reserve(struct ctx *c, size_t n)
{
	void *p =
	    sys_reserve(n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	if (!sys_err(p) && c->nown < sizeof(c->own) / sizeof(c->own[0])) {
		c->own[c->nown].p = p;
		c->own[c->nown++].n = n;
	}
	return p;
}

struct ctx *ctx_make(void)
{
	struct ctx *c = &the_ctx;
	int32_t tid = (int32_t)rf_syscall(SYS_gettid), who = MAKER_NONE;
	int saved = errno;
	sys_mask m = sys_block_all();

	if (!atomic_compare_exchange_strong(&maker, &who, tid)) {
		sys_setmask(m);
		if (who == tid)
			return &boot;
		while ((who = atomic_load(&maker)) != MAKER_DONE)
			rf_syscall(SYS_futex, &maker, FUTEX_WAIT_PRIVATE, who, 0, 0, 0);
		return c;
	}
	c->attach_lock.rank = DEBUG_ATTACH;
	c->lock.rank = DEBUG_LOCK;
	c->once_lock.rank = DEBUG_ONCE;
	c->sock = c->uffd = c->uffd_alias = c->hup = c->poke = -1;
	atomic_store(&c->map_lo, UINTPTR_MAX);
	real_resolve(&c->real);
	find_volumes(c);
	if (c->nvol && file_init(c)) {
		log_line("no memory for the table of descriptors; no file is kept coherent");
		c->nvol = 0;
	}
	if (c->nvol) {
		find_options(c);
		file_inherit(c);
	}
	__atomic_store_n(&rf_ctx, c, __ATOMIC_RELEASE);
	atomic_store(&maker, MAKER_DONE);
	rf_syscall(SYS_futex, &maker, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
	sys_setmask(m);
	errno = saved;
	return c;
}

__attribute__((constructor)) static void start(void)
{
	ctx_get();
}

/* exit() and the end of main; _exit and quick_exit are wrapped. */
__attribute__((destructor)) static void end(void)
{
	struct ctx *c = ctx_get();

	stdio_exit(c);
	file_exit(c);
}
