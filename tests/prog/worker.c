/* SPDX-License-Identifier: MIT */
/*
 * worker - an obedient program for tests: a command a line on stdin, an answer a line on stdout.
 *
 * It knows nothing of Refault.  Descriptors and mappings are named by small numbers.  Answers are
 * "ok", a value, "err ENAME", or "sigbus" if its own SIGBUS handler was called.  Bytes are hex.
 *
 *	open F PATH MODE	MODE of r w c(reate) x(excl) t(runcate) a(ppend) s(ync) d(sync); r and w
 *				combine.  Any number of descriptors, F, may be of one file.
 *	dup F G			F becomes another descriptor of G's open file
 *	dup2 F G		the same, in the place of F's own
 *	close F | size F | stat PATH | cut PATH LEN | fsync F | fdatasync F | truncate F LEN | punch F OFF LEN
 *	falloc F MODE OFF LEN	MODE alloc keep punch zero collapse insert unshare
 *	clone F G OFF LEN TO	these bytes of G are F's at TO, too | dedupe ... | copy ...
 *	syncrange F OFF LEN	sync_file_range, and wait for it
 *	read F LEN | write F HEX | pread F LEN OFF | pwrite F OFF HEX | seek F OFF
 *	lock F KIND HOW		KIND flock posix ofd lockf, HOW sh ex un; the first byte, and waits
 *	locked F		another program has a POSIX lock there: yes or no
 *	fopen F PATH MODE	a stream, MODE as fopen's; F is its descriptor
 *	fput F HEX | fflush F | fclose F
 *	advise F OFF LEN ADVICE	posix_fadvise: its error | readahead F OFF LEN
 *	invalidate F FLAGS	refault_finvalidate: the pages that stay | invalpath FLAGS PATH
 *	map M F r|rw|p OFF LEN	p: private, writable
 *	unmap M | msync M [async] | load M OFF LEN | store M OFF HEX | fill M OFF LEN BYTE
 *	all M OFF LEN		the one byte that OFF..LEN is made of, or "mixed at OFFSET: BYTE"
 *	spin M OFF BYTE		load until it is BYTE
 *	mremap M LEN		may move | mprotect M r|rw [OFF LEN] | dontneed M
 *	die M OFF		a child without handler loads; says which signal ended it
 *	fork COMMAND...		a child of this very process obeys it, answers, and is gone
 *	pid | exit
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <refault/refault.h>

enum { N = 64, LINE = 1 << 20, SPIN_SECONDS = 100 };

static int fds[N]; /* -1: not open */
static FILE *streams[N];
static struct {
	unsigned char *p;
	size_t len;
} maps[N];
static sigjmp_buf on_bus;
static volatile sig_atomic_t guarded;
static char line[LINE];
static unsigned char bytes[LINE / 2], answer[LINE / 2];

static void bus(int sig)
{
	if (!guarded) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
	siglongjmp(on_bus, 1);
}

static void say_ok(long r)
{
	if (r < 0)
		printf("err %s\n", strerrorname_np(errno));
	else
		puts("ok");
}

static void say_bytes(const unsigned char *p, long n)
{
	if (n < 0) {
		printf("err %s\n", strerrorname_np(errno));
		return;
	}
	if (n == 0)
		fputs("eof", stdout);
	for (long i = 0; i < n; i++)
		printf("%02x", p[i]);
	putchar('\n');
}

static size_t unhex(const char *hex)
{
	size_t n = 0;
	unsigned v;

	while (hex[2 * n] && hex[2 * n + 1] && sscanf(hex + 2 * n, "%2x", &v) == 1)
		bytes[n++] = (unsigned char)v;
	return n;
}

/* One at a time, in program order: the compiler must not gather or invent accesses. */
static void load(unsigned char *to, const volatile unsigned char *from, size_t n)
{
	while (n--)
		*to++ = *from++;
}

static void store(volatile unsigned char *to, const unsigned char *from, size_t n)
{
	while (n--)
		*to++ = *from++;
}

static int mode_of(const char *s)
{
	bool r = strchr(s, 'r'), w = strchr(s, 'w') || strchr(s, 'a');

	return (w ? r ? O_RDWR : O_WRONLY : O_RDONLY) | (strchr(s, 'c') ? O_CREAT : 0) |
	       (strchr(s, 'x') ? O_EXCL : 0) | (strchr(s, 't') ? O_TRUNC : 0) |
	       (strchr(s, 'a') ? O_APPEND : 0) | (strchr(s, 's') ? O_SYNC : 0) |
	       (strchr(s, 'd') ? O_DSYNC : 0);
}

static void all_same(const volatile unsigned char *p, size_t n)
{
	unsigned char first = p[0];

	for (size_t i = 1; i < n; i++) {
		unsigned char b = p[i];
		if (b != first) {
			printf("mixed at %zu: %02x\n", i, b);
			return;
		}
	}
	printf("%02x\n", first);
}

static void spin(const volatile unsigned char *p, unsigned char want)
{
	time_t end = time(NULL) + SPIN_SECONDS;

	while (*p != want) {
		if (time(NULL) > end) {
			printf("still %02x\n", *p);
			return;
		}
	}
	puts("ok");
}

static bool obey(char *s);

static void in_child(char *s)
{
	int status;

	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		obey(s);
		fflush(stdout);
		_exit(0);
	}
	if (pid < 0)
		say_ok(-1);
	else if (waitpid(pid, &status, 0) != pid || status != 0)
		printf("child ended with %#x\n", status);
}

static void die(const volatile unsigned char *p)
{
	int status;

	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		signal(SIGBUS, SIG_DFL);
		(void)*p;
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		say_ok(-1);
	else if (WIFSIGNALED(status))
		printf("SIG%s\n", sigabbrev_np(WTERMSIG(status)));
	else
		printf("exit %d\n", WEXITSTATUS(status));
}

static int falloc_mode(const char *word)
{
	static const struct {
		const char *word;
		int mode;
	} modes[] = {
	    {"alloc", 0},
	    {"keep", FALLOC_FL_KEEP_SIZE},
	    {"punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE},
	    {"zero", FALLOC_FL_ZERO_RANGE},
	    {"collapse", FALLOC_FL_COLLAPSE_RANGE},
	    {"insert", FALLOC_FL_INSERT_RANGE},
	    {"unshare", FALLOC_FL_UNSHARE_RANGE},
	};

	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (strcmp(word, modes[i].word) == 0)
			return modes[i].mode;
	return -1;
}

/* Whole, or an error: ENODATA if dedupe finds them different, EIO if less was copied. */
static int remap(const char *kind, int to, const char *rest)
{
	long long g = 0, off = 0, len = 0, at = 0;
	union {
		struct file_dedupe_range range;
		char room[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
	} d;
	struct file_dedupe_range_info *info = d.range.info;
	off_t a, b;

	if (sscanf(rest, "%lld %lld %lld %lld", &g, &off, &len, &at) != 4 || g < 0 || g >= N) {
		errno = EINVAL;
		return -1;
	}
	if (strcmp(kind, "clone") == 0)
		return ioctl(to, FICLONERANGE,
			     &(struct file_clone_range){.src_fd = fds[g],
							.src_offset = (uint64_t)off,
							.src_length = (uint64_t)len,
							.dest_offset = (uint64_t)at});
	if (strcmp(kind, "dedupe") == 0) {
		memset(&d, 0, sizeof(d));
		d.range.src_offset = (uint64_t)off;
		d.range.src_length = (uint64_t)len;
		d.range.dest_count = 1;
		info->dest_fd = to;
		info->dest_offset = (uint64_t)at;
		if (ioctl(fds[g], FIDEDUPERANGE, &d))
			return -1;
		errno = info->status < 0 ? -info->status : ENODATA;
		return info->status == FILE_DEDUPE_RANGE_SAME ? 0 : -1;
	}
	a = off;
	b = at;
	while (len > 0) {
		ssize_t n = copy_file_range(fds[g], &a, to, &b, (size_t)len, 0);

		if (n <= 0) {
			errno = n ? errno : EIO;
			return -1;
		}
		len -= n;
	}
	return 0;
}

static int lock(int fd, const char *kind, const char *how)
{
	const bool un = strcmp(how, "un") == 0, sh = strcmp(how, "sh") == 0;
	struct flock fl = {.l_type = un ? F_UNLCK : sh ? F_RDLCK : F_WRLCK, .l_len = 1};

	if (strcmp(kind, "flock") == 0)
		return flock(fd, un ? LOCK_UN : sh ? LOCK_SH : LOCK_EX);
	if (strcmp(kind, "lockf") == 0)
		return lseek(fd, 0, SEEK_SET) < 0 ? -1 : lockf(fd, un ? F_ULOCK : F_LOCK, 1);
	return fcntl(fd, strcmp(kind, "ofd") == 0 ? F_OFD_SETLKW : F_SETLKW, &fl);
}

static void say_written(ssize_t r, size_t n)
{
	if (r < 0 || (size_t)r == n)
		say_ok(r);
	else
		printf("short %zd\n", r);
}

static void say_number(long r)
{
	if (r < 0)
		say_ok(-1);
	else
		printf("%ld\n", r);
}

/* Of the library, if it was preloaded. */
static void invalidate(int fd, int flags, const char *path)
{
	__typeof__(refault_finvalidate) *by_fd;
	__typeof__(refault_invalidate) *by_path;

	*(void **)&by_fd = dlsym(RTLD_DEFAULT, "refault_finvalidate");
	*(void **)&by_path = dlsym(RTLD_DEFAULT, "refault_invalidate");
	if (!by_fd || !by_path)
		puts("err no library");
	else
		say_number(path ? by_path(path, flags) : by_fd(fd, flags));
}

static void obey_stream(const char *cmd, int f, char *rest)
{
	size_t n = unhex(rest);

	if (!streams[f])
		puts("err no such stream");
	else if (strcmp(cmd, "fput") == 0)
		say_ok(fwrite(bytes, 1, n, streams[f]) == n ? 0 : -1);
	else if (strcmp(cmd, "fflush") == 0)
		say_ok(fflush(streams[f]));
	else {
		say_ok(fclose(streams[f]));
		streams[f] = NULL;
	}
}

static void obey_file(const char *cmd, int f, char *rest)
{
	struct stat st;
	struct flock fl = {.l_type = F_WRLCK, .l_len = 1};
	long long a = 0, b = 0;
	char *hex = strrchr(rest, ' '), kind[16], how[16];
	int advice;

	sscanf(rest, "%lld %lld", &a, &b);
	hex = hex ? hex + 1 : rest;
	if (strcmp(cmd, "lock") == 0 && sscanf(rest, "%15s %15s", kind, how) == 2)
		say_ok(lock(fds[f], kind, how));
	else if (strcmp(cmd, "locked") == 0)
		puts(fcntl(fds[f], F_GETLK, &fl) ? "err" : fl.l_type == F_UNLCK ? "no" : "yes");
	else if (strcmp(cmd, "dup") == 0 && a >= 0 && a < N)
		say_ok(fds[f] = dup(fds[a]));
	else if (strcmp(cmd, "dup2") == 0 && a >= 0 && a < N)
		say_ok(dup2(fds[a], fds[f]));
	else if (strcmp(cmd, "syncrange") == 0)
		say_ok(sync_file_range(fds[f], a, b,
				       SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
					   SYNC_FILE_RANGE_WAIT_AFTER));
	else if (strcmp(cmd, "close") == 0)
		say_ok(close(fds[f]));
	else if (strcmp(cmd, "size") == 0 && fstat(fds[f], &st) == 0)
		printf("%lld\n", (long long)st.st_size);
	else if (strcmp(cmd, "fsync") == 0)
		say_ok(fsync(fds[f]));
	else if (strcmp(cmd, "fdatasync") == 0)
		say_ok(fdatasync(fds[f]));
	else if (strcmp(cmd, "truncate") == 0)
		say_ok(ftruncate(fds[f], a));
	else if (strcmp(cmd, "invalidate") == 0)
		invalidate(fds[f], (int)a, NULL);
	else if (strcmp(cmd, "advise") == 0 && sscanf(rest, "%*d %*d %d", &advice) == 1)
		errno = posix_fadvise(fds[f], a, b, advice), say_ok(errno ? -1 : 0);
	else if (strcmp(cmd, "readahead") == 0)
		say_ok((long)readahead(fds[f], a, (size_t)b));
	else if (strcmp(cmd, "punch") == 0)
		say_ok(fallocate(fds[f], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a, b));
	else if (strcmp(cmd, "falloc") == 0 && sscanf(rest, "%15s %lld %lld", kind, &a, &b) == 3)
		say_ok(fallocate(fds[f], falloc_mode(kind), a, b));
	else if (strcmp(cmd, "clone") == 0 || strcmp(cmd, "dedupe") == 0 ||
		 strcmp(cmd, "copy") == 0)
		say_ok(remap(cmd, fds[f], rest));
	else if (strcmp(cmd, "seek") == 0)
		say_ok((long)lseek(fds[f], a, SEEK_SET));
	else if (strcmp(cmd, "read") == 0 && a >= 0 && a <= (long long)sizeof(answer))
		say_bytes(answer, read(fds[f], answer, (size_t)a));
	else if (strcmp(cmd, "pread") == 0 && a >= 0 && a <= (long long)sizeof(answer))
		say_bytes(answer, pread(fds[f], answer, (size_t)a, b));
	else if (strcmp(cmd, "write") == 0) {
		size_t n = unhex(hex);
		say_written(write(fds[f], bytes, n), n);
	} else if (strcmp(cmd, "pwrite") == 0) {
		size_t n = unhex(hex);
		say_written(pwrite(fds[f], bytes, n, a), n);
	} else {
		puts("err unknown command");
	}
}

static void obey_map(const char *cmd, int m, char *rest)
{
	long long a = 0, b = 0;
	unsigned byte = 0;
	char *hex = strrchr(rest, ' ');

	sscanf(rest, "%lld %lld %x", &a, &b, &byte);
	if (!maps[m].p) {
		puts("err no such mapping");
	} else if (strcmp(cmd, "unmap") == 0) {
		say_ok(munmap(maps[m].p, maps[m].len));
		maps[m].p = NULL;
	} else if (strcmp(cmd, "msync") == 0) {
		say_ok(msync(maps[m].p, maps[m].len, strstr(rest, "async") ? MS_ASYNC : MS_SYNC));
	} else if (strcmp(cmd, "load") == 0 && b > 0 && b <= (long long)sizeof(answer)) {
		load(answer, maps[m].p + a, (size_t)b);
		say_bytes(answer, b);
	} else if (strcmp(cmd, "store") == 0 && hex) {
		store(maps[m].p + a, bytes, unhex(hex + 1));
		puts("ok");
	} else if (strcmp(cmd, "fill") == 0) {
		memset(maps[m].p + a, (int)byte, (size_t)b);
		puts("ok");
	} else if (strcmp(cmd, "all") == 0 && b > 0) {
		all_same(maps[m].p + a, (size_t)b);
	} else if (strcmp(cmd, "mremap") == 0) {
		void *p = mremap(maps[m].p, maps[m].len, (size_t)a, MREMAP_MAYMOVE);
		if (p != MAP_FAILED) {
			maps[m].p = p;
			maps[m].len = (size_t)a;
		}
		say_ok(p == MAP_FAILED ? -1 : 0);
	} else if (strcmp(cmd, "mprotect") == 0) {
		b = (long long)maps[m].len;
		sscanf(rest, "%*s %lld %lld", &a, &b);
		say_ok(mprotect(maps[m].p + a, (size_t)b,
				strchr(rest, 'w') ? PROT_READ | PROT_WRITE : PROT_READ));
	} else if (strcmp(cmd, "dontneed") == 0) {
		say_ok(madvise(maps[m].p, maps[m].len, MADV_DONTNEED));
	} else if (strcmp(cmd, "die") == 0) {
		die(maps[m].p + a);
	} else if (strcmp(cmd, "spin") == 0) {
		sscanf(rest, "%*d %x", &byte);
		spin(maps[m].p + a, (unsigned char)byte);
	} else {
		puts("err unknown command");
	}
}

/* Returns false when there is nothing more to do. */
static bool obey(char *s)
{
	char cmd[16] = "", name[4096], mode[16];
	struct stat st;
	int n = 0, i = 0, f;
	long long off, len;

	if (sscanf(s, "%15s %n%d %n", cmd, &n, &i, &n) < 1)
		return true;
	if (strcmp(cmd, "exit") == 0)
		return false;
	if (strcmp(cmd, "pid") == 0) {
		printf("%d\n", getpid());
	} else if (strcmp(cmd, "fork") == 0) {
		in_child(s + 5);
	} else if (strcmp(cmd, "cut") == 0) {
		len = -1;
		say_ok(sscanf(s, "cut %4095s %lld", name, &len) == 2 ? truncate(name, len) : -1);
	} else if (strcmp(cmd, "invalpath") == 0 &&
		   sscanf(s, "invalpath %d %4095s", &f, name) == 2) {
		invalidate(-1, f, name);
	} else if (strcmp(cmd, "stat") == 0) {
		if (sscanf(s, "stat %4095s", name) != 1 || stat(name, &st))
			say_ok(-1);
		else
			printf("%lld\n", (long long)st.st_size);
	} else if (i < 0 || i >= N) {
		puts("err bad number");
	} else if (sscanf(s, "open %*d %4095s %15s", name, mode) == 2) {
		fds[i] = open(name, mode_of(mode), 0644);
		say_ok(fds[i]);
	} else if (sscanf(s, "fopen %*d %4095s %15s", name, mode) == 2) {
		streams[i] = fopen(name, mode);
		fds[i] = streams[i] ? fileno(streams[i]) : -1;
		say_ok(fds[i]);
	} else if (strcmp(cmd, "fput") == 0 || strcmp(cmd, "fflush") == 0 ||
		   strcmp(cmd, "fclose") == 0) {
		obey_stream(cmd, i, s + n);
	} else if (sscanf(s, "map %*d %d %15s %lld %lld", &f, mode, &off, &len) == 4 && f >= 0 &&
		   f < N) {
		bool priv = *mode == 'p';
		int prot = PROT_READ | (priv || mode[1] == 'w' ? PROT_WRITE : 0);
		void *p =
		    mmap(NULL, (size_t)len, prot, priv ? MAP_PRIVATE : MAP_SHARED, fds[f], off);
		maps[i].p = p == MAP_FAILED ? NULL : p;
		maps[i].len = (size_t)len;
		say_ok(p == MAP_FAILED ? -1 : 0);
	} else if (strstr(" unmap msync load store fill all spin mremap mprotect dontneed die ",
			  cmd)) {
		guarded = 1;
		if (sigsetjmp(on_bus, 1) == 0)
			obey_map(cmd, i, s + n);
		else
			puts("sigbus");
		guarded = 0;
	} else {
		obey_file(cmd, i, s + n);
	}
	return true;
}

int main(void)
{
	struct sigaction sa = {.sa_handler = bus};

	memset(fds, -1, sizeof(fds));
	sigaction(SIGBUS, &sa, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!obey(line))
			break;
		fflush(stdout);
	}
	return 0;
}
