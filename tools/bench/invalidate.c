/* SPDX-License-Identifier: MIT */
/*
 * invalidate.c - one process that maps a file, has all of it cached, clean and in its page tables, and
 * times how it is taken out again.
 *
 *	refault	refault_finvalidate()
 *	pages	madvise(MADV_DONTNEED) and posix_fadvise(POSIX_FADV_DONTNEED); the file is in the page
 *		cache in single pages, as it is in a memfd that userfaultfd fills
 *	folios	the same, with folios as large as readahead makes them on this kernel and file system
 */
#include <dlfcn.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <refault/refault.h>

#include "bench.h"

enum { PAGE = 4096, CHUNK = 1 << 20 };

/* Into the page cache anew.  A file that is read at random is not read in large folios. */
static void read_in(int fd, size_t len, int random)
{
	static char buf[CHUNK];

	if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) ||
	    posix_fadvise(fd, 0, 0, random ? POSIX_FADV_RANDOM : POSIX_FADV_NORMAL))
		err(1, "posix_fadvise");
	for (size_t at = 0; at < len; at += CHUNK)
		if (pread(fd, buf, CHUNK, (off_t)at) != CHUNK)
			err(1, "pread");
}

static void by_kernel(int fd, char *p, size_t len)
{
	if (madvise(p, len, MADV_DONTNEED))
		err(1, "madvise");
	errno = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	if (errno)
		err(1, "posix_fadvise");
}

int invalidate_main(const char *file, const char *how)
{
	__typeof__(refault_finvalidate) *by_refault = NULL;
	int fd = open(file, O_RDWR);
	struct stat st;
	uint64_t t;

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", file);
	size_t len = (size_t)st.st_size / CHUNK * CHUNK;
	if (strcmp(how, "refault") == 0) {
		*(void **)&by_refault = dlsym(RTLD_DEFAULT, "refault_finvalidate");
		if (!by_refault)
			errx(1, "the library was not preloaded");
	} else {
		read_in(fd, len, strcmp(how, "pages") == 0);
	}
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		err(1, "mmap");
	for (size_t i = 0; i < len; i += PAGE)
		sink((uint64_t) * (const volatile char *)(p + i));
	t = now_ns();
	if (!by_refault)
		by_kernel(fd, p, len);
	else if (by_refault(fd, 0))
		errx(1, "%s: not all of it was taken out", file);
	printf("%ju\n", (uintmax_t)(now_ns() - t));
	return 0;
}
