/* SPDX-License-Identifier: MIT */
/*
 * w_stdio.c - glibc's stdio, which opens, reads, writes and closes without calling any symbol that
 * could be interposed.
 *
 * Its streams reach the kernel through one exported table of functions, _IO_file_jumps (and its
 * wide twin).  When the first descriptor becomes managed, the read, write, seek, close and stat
 * entries are replaced by ours, which hand streams of unmanaged descriptors back to the originals,
 * unless the program's buffer lies in a managed mapping.
 * glibc checks where a stream's table lies, not what is in it; the table's page is read-only after
 * relocation, so it is opened for the moment.  This covers streams made before, stdout above all:
 * the shell's `echo x > file`.
 *
 * fopen itself: the stream is made natively, then its descriptor adopted; where it would truncate, the
 * other way round.
 *
 * Locks: once_lock, for the one time.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "anchor.h"
#include "file.h"

/* struct _IO_jump_t: two words of nothing, then nineteen functions; found by value, not by place.
 */
#define JUMPS 21u

typedef ssize_t stdio_read(FILE *fp, void *buf, ssize_t n);
typedef ssize_t stdio_write(FILE *fp, const void *buf, ssize_t n);
typedef off_t stdio_seek(FILE *fp, off_t off, int whence);
typedef int stdio_close(FILE *fp);
typedef int stdio_stat(FILE *fp, void *st);

static struct {
	stdio_read *read;
	stdio_write *write;
	stdio_seek *seek;
	stdio_close *close;
	stdio_stat *stat;
} orig;

static bool managed(FILE *fp)
{
	return file_entry(ctx_get(), fp->_fileno) != NULL;
}

/* Large blocks go between the kernel and the program's own buffer. */
static bool ours(FILE *fp, const void *buf, ssize_t n)
{
	return managed(fp) || map_hits(ctx_get(), buf, (size_t)n);
}

static ssize_t our_read(FILE *fp, void *buf, ssize_t n)
{
	return ours(fp, buf, n) ? w_read(fp->_fileno, buf, (size_t)n) : orig.read(fp, buf, n);
}

/* As glibc's: all of it, or what was written before the error. */
static ssize_t our_write(FILE *fp, const void *buf, ssize_t n)
{
	ssize_t done = 0, r;

	if (!ours(fp, buf, n))
		return orig.write(fp, buf, n);
	while (done < n) {
		r = w_write(fp->_fileno, (const char *)buf + done, (size_t)(n - done));
		if (r < 0) {
			fp->_flags |= _IO_ERR_SEEN;
			break;
		}
		done += r;
	}
	if (fp->_offset >= 0)
		fp->_offset += done;
	return done;
}

static off_t our_seek(FILE *fp, off_t off, int whence)
{
	return managed(fp) ? w_lseek(fp->_fileno, off, whence) : orig.seek(fp, off, whence);
}

static int our_close(FILE *fp)
{
	return managed(fp) ? w_close(fp->_fileno) : orig.close(fp);
}

static int our_stat(FILE *fp, void *st)
{
	return managed(fp) ? w_fstat(fp->_fileno, st) : orig.stat(fp, st);
}

static void patch(void **jumps)
{
	uintptr_t lo = (uintptr_t)jumps & ~(RF_PAGE_SIZE - 1);
	uintptr_t hi = ((uintptr_t)(jumps + JUMPS) + RF_PAGE_SIZE - 1) & ~(RF_PAGE_SIZE - 1);
	const struct {
		void *from, *to;
	} pair[] = {{(void *)orig.read, (void *)our_read},
		    {(void *)orig.write, (void *)our_write},
		    {(void *)orig.seek, (void *)our_seek},
		    {(void *)orig.close, (void *)our_close},
		    {(void *)orig.stat, (void *)our_stat}};

	if (rf_syscall(SYS_mprotect, lo, hi - lo, PROT_READ | PROT_WRITE))
		return;
	for (uint32_t i = 0; i < JUMPS; i++)
		for (uint32_t k = 0; k < sizeof(pair) / sizeof(pair[0]); k++)
			if (pair[k].from && jumps[i] == pair[k].from)
				__atomic_store_n(&jumps[i], pair[k].to, __ATOMIC_RELEASE);
	rf_syscall(SYS_mprotect, lo, hi - lo, PROT_READ);
}

void stdio_init(struct ctx *c)
{
	static _Atomic uint32_t done;
	void **narrow, **wide;
	sys_mask m;

	if (atomic_load_explicit(&done, memory_order_acquire))
		return;
	m = sys_lock(&c->once_lock);
	if (!atomic_load(&done)) {
		*(void **)&orig.read = dlsym(RTLD_NEXT, "_IO_file_read");
		*(void **)&orig.write = dlsym(RTLD_NEXT, "_IO_file_write");
		*(void **)&orig.seek = dlsym(RTLD_NEXT, "_IO_file_seek");
		*(void **)&orig.close = dlsym(RTLD_NEXT, "_IO_file_close");
		*(void **)&orig.stat = dlsym(RTLD_NEXT, "_IO_file_stat");
		narrow = dlsym(RTLD_NEXT, "_IO_file_jumps");
		wide = dlsym(RTLD_NEXT, "_IO_wfile_jumps");
		if (narrow)
			patch(narrow);
		if (wide)
			patch(wide);
		if (!narrow || !wide)
			log_debug(c, "this libc has no _IO_file_jumps: stdio bypasses refault");
		atomic_store(&done, 1);
	}
	sys_unlock(&c->once_lock, m);
}

void stdio_exit(struct ctx *c)
{
	if (!stdout || !file_entry(c, stdout->_fileno) || ftrylockfile(stdout))
		return;
	fflush_unlocked(stdout);
	funlockfile(stdout);
}

/* ---- fopen ---- */

static int mode_flags(const char *mode)
{
	int flags = *mode == 'r'   ? O_RDONLY
		    : *mode == 'w' ? O_WRONLY | O_CREAT | O_TRUNC
				   : O_WRONLY | O_CREAT | O_APPEND;

	for (const char *s = mode + (*mode != 0); *s && *s != ','; s++) {
		if (*s == '+')
			flags = (flags & ~O_ACCMODE) | O_RDWR;
		else if (*s == 'x')
			flags |= O_EXCL;
		else if (*s == 'e')
			flags |= O_CLOEXEC;
	}
	return flags;
}

/* fp, made natively, with its descriptor adopted; NULL with errno if that cannot be. */
static FILE *adopted(struct ctx *c, FILE *fp, const char *path, const char *mode)
{
	int saved = errno, r;

	if (!fp || !c->nvol || fp->_fileno < 0)
		return fp;
	r = file_adopt(c, fp->_fileno, path, mode_flags(mode));
	errno = saved;
	if (r >= 0)
		return fp;
	fclose(fp);
	errno = -r;
	return NULL;
}

/*
 * A managed file must not be truncated underneath.  So a stream that would is made on /dev/null (fp),
 * which gives it its number and what its mode says, and then gets the descriptor of what open()
 * truncated as the server knows it.
 */
static bool truncates(struct ctx *c, const char *path, const char *mode)
{
	return c->nvol && (mode_flags(mode) & (O_TRUNC | O_EXCL)) == O_TRUNC &&
	       anchor_maybe(c, AT_FDCWD, path, 0);
}

static FILE *truncated(FILE *fp, const char *path, const char *mode)
{
	int fd = fp ? w_open(path, mode_flags(mode), 0666) : -1, r = -1, saved = errno;

	if (fd >= 0) {
		r = w_dup3(fd, fp->_fileno, mode_flags(mode) & O_CLOEXEC);
		saved = r < 0 ? errno : saved;
		w_close(fd);
	}
	if (fp && r < 0) {
		fclose(fp);
		fp = NULL;
	}
	errno = saved;
	return fp;
}

FILE *w_fopen(const char *path, const char *mode)
{
	struct ctx *c = ctx_get();
	FILE *fp;

	if (truncates(c, path, mode))
		return truncated(c->real.fopen("/dev/null", mode), path, mode);
	fp = c->real.fopen(path, mode);
	if (!fp && c->nvol && (errno == ENOENT || errno == ENOTDIR))
		anchor_missed(c, path);
	return adopted(c, fp, path, mode);
}
WRAP_ALIAS(fopen64, fopen);

/* The stream's number stays, the file under it changes; or, on failure, it was closed. */
FILE *w_freopen(const char *path, const char *mode, FILE *fp)
{
	struct ctx *c = ctx_get();
	int fd = fp->_fileno, same = -1, saved;
	char link[32];
	bool ours;

	if (!path && *mode == 'w' && file_entry(c, fd)) { /* the same file anew: kept by name */
		same = (int)rf_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", same);
		path = link;
	}
	ours = path && truncates(c, path, mode);
	file_replace(c, -1, fd);
	fp = c->real.freopen(ours ? "/dev/null" : path, mode, fp);
	if (ours)
		fp = truncated(fp, path, mode);
	saved = errno;
	if (file_entry(c, fd) && !file_hidden(c, fd) && !file_foreign(c) &&
	    !(fp && ours && fp->_fileno == fd))
		file_enter(c, fd, NULL);
	if (same >= 0)
		rf_syscall(SYS_close, same);
	errno = saved;
	return ours ? fp : adopted(c, fp, path, mode);
}
WRAP_ALIAS(freopen64, freopen);

/* Its streams have a table of their own. */
FILE *w_popen(const char *command, const char *mode)
{
	struct ctx *c = ctx_get();
	FILE *fp = c->real.popen(command, mode);
	void **jumps;
	sys_mask m;

	if (!fp || !c->nvol)
		return fp;
	stdio_init(c);
	memcpy(&jumps, fp + 1, sizeof(jumps)); /* struct _IO_FILE_plus */
	m = sys_lock(&c->once_lock);
	patch(jumps);
	sys_unlock(&c->once_lock, m);
	return fp;
}
