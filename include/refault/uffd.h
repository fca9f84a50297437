/* SPDX-License-Identifier: MIT */
/*
 * uffd.h - userfaultfd for kernels newer than the headers, and the calls as raw system calls.
 *
 * Debian 12's kernel headers are 6.1; the constants that came later are defined here, once.
 * All functions are async-signal-safe, touch no errno and return 0 or -errno.
 */
#ifndef REFAULT_UFFD_H
#define REFAULT_UFFD_H

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef UFFDIO_CONTINUE_MODE_WP /* Linux 6.4 */
#define UFFDIO_CONTINUE_MODE_WP ((uint64_t)1 << 1)
#endif
#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

/* What a managed mapping is registered for, and the features it needs (DESIGN 4, 5). */
#define RF_UFFD_MODES                                                                              \
	(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP)
#define RF_UFFD_FEATURES                                                                           \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |  \
	 UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* A system call without libc: nothing to interpose, no errno. Returns the kernel's value. */
#ifdef __clang_analyzer__ /* does not see what an asm writes through its pointers */
long rf_syscall6(long nr, long a, long b, long c, long d, long e, long f);
#else
static inline long rf_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "refault knows x86_64 and aarch64"
#endif
}
#endif

#define RF_SC_(nr, a, b, c, d, e, f, ...)                                                          \
	rf_syscall6((nr), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* rf_syscall(SYS_x, up to six arguments) */
#define rf_syscall(...) RF_SC_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

static inline int rf_uffd_register(int fd, uintptr_t start, uint64_t len, uint64_t modes)
{
	struct uffdio_register r = {.range = {start, len}, .mode = modes};
	return (int)rf_syscall(SYS_ioctl, fd, UFFDIO_REGISTER, &r);
}

static inline int rf_uffd_unregister(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};
	return (int)rf_syscall(SYS_ioctl, fd, UFFDIO_UNREGISTER, &r);
}

/*
 * Map what the page cache holds for [start, start + len).  *mapped, if not NULL, gets the bytes
 * mapped also on -EAGAIN (the run met a present page or a hole).  The first page alone decides
 * -EEXIST (present) and -EFAULT (hole, or past EOF); -ENOENT: the run crosses a VMA.
 */
static inline int rf_uffd_continue(int fd, uintptr_t start, uint64_t len, uint64_t mode,
				   uint64_t *mapped)
{
	struct uffdio_continue c = {.range = {start, len}, .mode = mode};
	int r = (int)rf_syscall(SYS_ioctl, fd, UFFDIO_CONTINUE, &c);
	if (mapped)
		*mapped = c.mapped > 0 ? (uint64_t)c.mapped : 0;
	return r;
}

/* Write-protect (on) or un-protect and wake.  -ENOENT: not all of it is registered. */
static inline int rf_uffd_wp(int fd, uintptr_t start, uint64_t len, int on)
{
	struct uffdio_writeprotect w = {.range = {start, len},
					.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	return (int)rf_syscall(SYS_ioctl, fd, UFFDIO_WRITEPROTECT, &w);
}

/* Fill holes atomically from src.  *copied as *mapped above. */
static inline int rf_uffd_copy(int fd, uintptr_t dst, const void *src, uint64_t len,
			       uint64_t *copied)
{
	struct uffdio_copy c = {.dst = dst, .src = (uintptr_t)src, .len = len};
	int r = (int)rf_syscall(SYS_ioctl, fd, UFFDIO_COPY, &c);
	if (copied)
		*copied = c.copy > 0 ? (uint64_t)c.copy : 0;
	return r;
}

static inline int rf_uffd_wake(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};
	return (int)rf_syscall(SYS_ioctl, fd, UFFDIO_WAKE, &r);
}

#endif
