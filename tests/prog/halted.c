/* SPDX-License-Identifier: MIT */
/*
 * halted - a program stands still at any system call of a load, a store, a write or a change of its mapping,
 * while others change the file.
 *
 *	halted FILE SERVED TO FROM	FILE: of a volume, SERVED: the same in the server's directory, out
 *					of the volume; TO, FROM: pipes to and from
 *	halted far FILE			another host: makes the changes that it is told on its standard input
 *
 * A child does one thing to a page of FILE and is halted at the first system call that it makes on the way,
 * then at the second, and so on until there are no more.  Each time the file is changed in one way
 * meanwhile, by this process or by the other host, and this process looks at the page, so that it is in
 * the cache; then the child goes on, and flushes.  After that a load and a read of both, and SERVED, are
 * the same: what was stored is in all, or in none.
 *
 * Answers on stdout: "COUNT halts, LOST lost"; 1 if anything was.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FALLOC_FL_KEEP_SIZE
#include <linux/falloc.h>
#endif

enum { PAGE = 4096, PAGES = 8, AT = 5 * PAGE, SIZE = PAGES * PAGE };
enum { LOAD, STORE, WRITE, WRITE_DIRTY, MOVE, PROTECT, DEEDS };
static const char *const deed_name[DEEDS] = {"load",
					     "store",
					     "write",
					     "write to a dirty page",
					     "move of the mapping",
					     "change of protection"};
enum { CUT, SHORTEN, PUNCH, ZERO, FLUSH, CHANGE, CHANGES, FAR = CHANGES, WAYS = 2 * CHANGES };
static const char *const change_name[CHANGES] = {"cut and extended", "cut in the page and extended",
						 "punched",          "zeroed",
						 "flushed",          "written to"};

static int fd, served, to_far, from_far;
static volatile unsigned char *map;
static unsigned halts, lost;

static void prepare(int deed)
{
	unsigned char page[PAGE];

	memset(page, 'o', sizeof(page));
	if (ftruncate(fd, SIZE))
		err(1, "ftruncate");
	for (int i = 0; i < PAGES; i++)
		if (pwrite(fd, page, PAGE, (off_t)i * PAGE) != PAGE)
			err(1, "pwrite");
	if (fsync(fd))
		err(1, "fsync");
	if (deed == WRITE_DIRTY)
		map[AT + 9] = 'd';
}

static _Noreturn void child(const char *path, int deed)
{
	unsigned char b[SIZE];
	int own = open(path, O_RDWR);
	void *mem =
	    own < 0 ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0);
	volatile unsigned char *m = mem;

	if (mem == MAP_FAILED || prctl(PR_SET_PDEATHSIG, SIGKILL))
		err(1, "child");
	if (deed == MOVE || deed == PROTECT)
		m[AT] = 'n';
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
		err(1, "child");
	raise(SIGSTOP);
	if (deed == MOVE)
		m = mremap(mem, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
	else if (deed == PROTECT &&
		 (mprotect(mem, SIZE, PROT_READ) || mprotect(mem, SIZE, PROT_READ | PROT_WRITE)))
		err(1, "mprotect");
	if (deed == LOAD)
		(void)m[AT];
	else if (deed == STORE)
		m[AT] = 'n';
	else if ((deed == WRITE || deed == WRITE_DIRTY) && pwrite(own, "n", 1, AT) != 1)
		err(1, "pwrite");
	raise(SIGSTOP);
	if (m == MAP_FAILED)
		err(1, "mremap");
	if (deed == MOVE || deed == PROTECT)
		m[AT + 1] = 'p';
	if (fsync(own) || pread(own, b, SIZE, 0) != SIZE)
		err(1, "child");
	for (int i = 0; i < SIZE; i++)
		if (m[i] != b[i])
			errx(1, "byte %d is %#x to a load, %#x to a read", i, m[i], b[i]);
	_exit(0);
}

static void change(int what)
{
	int r;

	switch (what) {
	case CUT:
	case SHORTEN:
		r = ftruncate(fd, what == CUT ? PAGE : AT + 100) || ftruncate(fd, SIZE);
		break;
	case PUNCH:
	case ZERO:
		r = fallocate(fd,
			      FALLOC_FL_KEEP_SIZE |
				  (what == PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
			      AT, PAGE);
		r = r && errno != EOPNOTSUPP;
		break;
	case FLUSH:
		r = 0;
		break;
	default:
		r = pwrite(fd, "w", 1, AT + 100) != 1;
		break;
	}
	if (r || fsync(fd))
		err(1, "%s", change_name[what]);
}

static void far(const char *path)
{
	char what;

	fd = open(path, O_RDWR);
	if (fd < 0)
		err(1, "%s", path);
	while (read(0, &what, 1) == 1) {
		change(what);
		if (write(1, &what, 1) != 1)
			err(1, "write");
	}
}

static void meanwhile(int way)
{
	char what = (char)(way % CHANGES);
	unsigned char b;

	if (way < FAR)
		change(what);
	else if (write(to_far, &what, 1) != 1 || read(from_far, &what, 1) != 1)
		err(1, "the other host");
	if (pread(fd, &b, 1, AT + 200) != 1 || b != map[AT + 200]) /* it is fetched anew */
		err(1, "a read and a load differ");
}

/* To the next stop; false: it is over, by a SIGSTOP of its own or an end. */
static bool step(pid_t pid, int how, bool *over)
{
	int sig = 0, status;

	for (;;) {
		if (ptrace(how, pid, NULL, (void *)(intptr_t)sig))
			err(1, "ptrace");
		if (waitpid(pid, &status, 0) != pid)
			err(1, "waitpid");
		*over = WIFEXITED(status);
		if (*over && WEXITSTATUS(status))
			lost++;
		if (*over)
			return false;
		if (!WIFSTOPPED(status))
			errx(1, "the child died of signal %d", WTERMSIG(status));
		sig = WSTOPSIG(status);
		if (sig == (SIGTRAP | 0x80))
			return true;
		if (sig == SIGSTOP)
			return false;
	}
}

/* False: it did not make so many calls. */
static bool halt(const char *path, int deed, int way, int calls)
{
	unsigned char here[SIZE], there[SIZE];
	pid_t pid;
	bool over, there_yet = true;
	int status;

	prepare(deed);
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid)
		child(path, deed);
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
		errx(1, "the child did not begin");
	if (ptrace(PTRACE_SETOPTIONS, pid, NULL,
		   (void *)(intptr_t)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)))
		err(1, "ptrace");
	for (int i = 0; i < calls && there_yet; i++)
		there_yet = step(pid, PTRACE_SYSCALL, &over);
	if (there_yet) {
		halts++;
		meanwhile(way);
	}
	while (!over)
		step(pid, PTRACE_CONT, &over);
	if (fsync(fd) || pread(fd, here, SIZE, 0) != SIZE || pread(served, there, SIZE, 0) != SIZE)
		err(1, "look");
	for (int i = 0; i < SIZE; i++)
		if (here[i] != there[i] || here[i] != map[i]) {
			printf(
			    "%s, halted at stop %d, %s%s meanwhile: byte %d is %#x to a read, %#x "
			    "to a load, %#x at the server\n",
			    deed_name[deed], calls, change_name[way % CHANGES],
			    way < FAR ? "" : " by another host", i, here[i], map[i], there[i]);
			lost++;
			break;
		}
	return there_yet;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "far") == 0) {
		far(argv[2]);
		return 0;
	}
	if (argc != 5)
		errx(2, "usage: halted FILE SERVED TO FROM | far FILE");
	fd = open(argv[1], O_RDWR);
	served = open(argv[2], O_RDONLY);
	to_far = open(argv[3], O_WRONLY);
	from_far = open(argv[4], O_RDONLY);
	if (fd < 0 || served < 0 || to_far < 0 || from_far < 0 || ftruncate(fd, SIZE))
		err(1, "open");
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	for (int deed = 0; deed < DEEDS; deed++)
		for (int way = 0; way < WAYS; way++)
			for (int calls = 1; halt(argv[1], deed, way, calls); calls++)
				;
	printf("%u halts, %u lost\n", halts, lost);
	return lost != 0;
}
