/* SPDX-License-Identifier: MIT */
/*
 * program.c - may the library be preloaded into this program?
 *
 * The dynamic linker loads LD_PRELOAD into dynamically linked programs that do not change identity.
 * All others would run without Refault, silently: their files would go stale.  So they are refused
 * here.  What a program runs later is its own affair; the environment goes along.
 */
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cmd.h"

#if defined(__x86_64__)
#define OWN_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define OWN_MACHINE EM_AARCH64
#else
#error "refault knows x86_64 and aarch64"
#endif

enum { MAX_INTERPRETERS = 5 }; /* as in the kernel */

static int exec_error(int e)
{
	return e == ENOENT || e == ENOTDIR ? CMD_NOT_FOUND : CMD_NOT_EXECUTABLE;
}

int program_find(const char *name, char *buf, size_t len)
{
	const char *path = getenv("PATH");
	int seen = ENOENT;
	struct stat st;

	if (strchr(name, '/')) {
		if (strlcpy(buf, name, len) >= len) {
			warnx("%s: %s", name, strerror(ENAMETOOLONG));
			return CMD_NOT_EXECUTABLE;
		}
		return 0;
	}
	if (!path)
		path = "/bin:/usr/bin";
	for (const char *dir = path, *end; *name; dir = end + 1) {
		end = strchrnul(dir, ':');
		int n = snprintf(buf, len, "%.*s%s%s", (int)(end - dir), dir,
				 end > dir ? "/" : "./", name);
		if ((size_t)n < len && stat(buf, &st) == 0 && S_ISREG(st.st_mode)) {
			if (access(buf, X_OK) == 0)
				return 0;
			seen = errno;
		}
		if (!*end)
			break;
	}
	warnx("%s: %s", name, seen == ENOENT ? "not found in PATH" : strerror(seen));
	return exec_error(seen);
}

struct elf {
	bool same_machine;
	bool has_interp;
	char interp[PATH_MAX]; /* the dynamic linker */
};

/* Returns 0, or -errno; -ENOEXEC: not an ELF file that makes sense. */
static int elf_read(int fd, struct elf *e)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph;

	*e = (struct elf){0};
	ssize_t n = pread(fd, &eh, sizeof(eh), 0);
	if (n < 0)
		return -errno;
	if (n < (ssize_t)offsetof(Elf64_Ehdr, e_version) ||
	    memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0)
		return -ENOEXEC;
	/* e_machine is at the same place in 32-bit files. */
	e->same_machine = eh.e_ident[EI_CLASS] == ELFCLASS64 &&
			  eh.e_ident[EI_DATA] == ELFDATA2LSB && eh.e_machine == OWN_MACHINE;
	if (!e->same_machine)
		return 0;
	if (n < (ssize_t)sizeof(eh) || eh.e_phentsize != sizeof(ph))
		return -ENOEXEC;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		if (pread(fd, &ph, sizeof(ph), (off_t)(eh.e_phoff + i * sizeof(ph))) != sizeof(ph))
			return -ENOEXEC;
		if (ph.p_type != PT_INTERP)
			continue;
		if (ph.p_filesz == 0 || ph.p_filesz >= sizeof(e->interp) ||
		    pread(fd, e->interp, ph.p_filesz, (off_t)ph.p_offset) != (ssize_t)ph.p_filesz)
			return -ENOEXEC;
		e->has_interp = true;
	}
	return 0;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

/* The library needs the C library that it was built for: the same dynamic linker as ours. */
static bool same_linker(const struct elf *e)
{
	struct elf own;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	bool same = true;

	if (fd < 0)
		return true;
	if (elf_read(fd, &own) == 0 && own.has_interp)
		same = strcmp(base_name(own.interp), base_name(e->interp)) == 0;
	close(fd);
	return same;
}

static int refuse(const char *path, const char *why)
{
	warnx("%s: %s; it would run without Refault and see stale files", path, why);
	return CMD_NOT_EXECUTABLE;
}

static int elf_check(int fd, const char *path, const struct stat *st)
{
	struct elf e;
	int ret = elf_read(fd, &e);

	if (ret) {
		warnx("%s: %s", path, strerror(-ret));
		return CMD_NOT_EXECUTABLE;
	}
	if (!e.same_machine)
		return refuse(path, "is a program for another architecture");
	if (st->st_mode & S_ISUID)
		return refuse(path, "is setuid, a preloaded library is ignored by such programs");
	if ((st->st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
		return refuse(path, "is setgid, a preloaded library is ignored by such programs");
	if (fgetxattr(fd, "security.capability", NULL, 0) > 0)
		return refuse(path, "has file capabilities, a preloaded library is ignored by such "
				    "programs");
	if (!e.has_interp)
		return refuse(path, "is statically linked, no library can be preloaded into it");
	if (!same_linker(&e))
		return refuse(path, "is linked with another C library");
	return 0;
}

/* The interpreter that a #! line names; line is the start of the file. */
static bool interpreter(char *line, char *buf, size_t len)
{
	line[strcspn(line, "\n")] = 0;
	char *p = line + 2 + strspn(line + 2, " \t");
	p[strcspn(p, " \t")] = 0;
	return *p && strlcpy(buf, p, len) < len;
}

int program_check(const char *path)
{
	char now[PATH_MAX];
	struct stat st;

	if (strlcpy(now, path, sizeof(now)) >= sizeof(now)) {
		warnx("%s: %s", path, strerror(ENAMETOOLONG));
		return CMD_NOT_EXECUTABLE;
	}
	for (int depth = 0; depth <= MAX_INTERPRETERS; depth++) {
		char head[PATH_MAX] = "";
		int ret = 0;

		int fd = open(now, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd < 0) {
			ret = exec_error(errno);
			if (errno == EACCES && access(now, X_OK) == 0)
				warnx("%s: cannot be read, so nobody can tell whether the library "
				      "would be loaded",
				      now);
			else
				warn("%s", now);
			return ret;
		}
		if (fstat(fd, &st) || !S_ISREG(st.st_mode) || access(now, X_OK)) {
			warnx("%s: %s", now,
			      S_ISDIR(st.st_mode) ? strerror(EISDIR) : strerror(EACCES));
			close(fd);
			return CMD_NOT_EXECUTABLE;
		}
		ssize_t n = pread(fd, head, sizeof(head) - 1, 0);
		if (n > 2 && head[0] == '#' && head[1] == '!') {
			if (!interpreter(head, now, sizeof(now))) {
				warnx("%s: names no interpreter behind #!", path);
				ret = CMD_NOT_EXECUTABLE;
			}
		} else if (n >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) == 0) {
			ret = elf_check(fd, now, &st);
			close(fd);
			return ret;
		} else {
			/* What execvp() does with the rest. */
			strlcpy(now, "/bin/sh", sizeof(now));
		}
		close(fd);
		if (ret)
			return ret;
	}
	warnx("%s: too many interpreters", path);
	return CMD_NOT_EXECUTABLE;
}
