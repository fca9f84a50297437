/* SPDX-License-Identifier: MIT */
/*
 * real.h - the one table of interposed symbols: X(return type, name, arguments).
 *
 * It makes struct real (the next definitions, which the wrappers call) and the wrappers'
 * prototypes: the symbol `open` is the C function w_open, so that libc's own declarations, with
 * their redirections and 64-bit spellings, are never in the way.  Whoever adds a line writes the
 * wrapper and adds the name to librefault.map.
 *
 * Variadic functions (open, fcntl, ioctl, mremap) have a fixed last argument here: on the two ABIs
 * that refault knows an optional argument is passed where a fixed one is.
 * struct stat64, off64_t and friends are struct stat, off_t: both ABIs are LP64.
 *
 * A symbol that this glibc lacks is NULL in struct real; nobody can then have called its wrapper.
 */
#ifndef SHIM_REAL_H
#define SHIM_REAL_H

#include <errno.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

/* descriptors: w_fd.c */
#define REAL_FD(X)                                                                                 \
	X(int, open, (const char *path, int flags, mode_t mode))                                   \
	X(int, open64, (const char *path, int flags, mode_t mode))                                 \
	X(int, openat, (int dir, const char *path, int flags, mode_t mode))                        \
	X(int, openat64, (int dir, const char *path, int flags, mode_t mode))                      \
	X(int, creat, (const char *path, mode_t mode))                                             \
	X(int, creat64, (const char *path, mode_t mode))                                           \
	X(int, __open_2, (const char *path, int flags))                                            \
	X(int, __open64_2, (const char *path, int flags))                                          \
	X(int, __openat_2, (int dir, const char *path, int flags))                                 \
	X(int, __openat64_2, (int dir, const char *path, int flags))                               \
	X(int, mkstemp, (char *tmpl))                                                              \
	X(int, mkstemp64, (char *tmpl))                                                            \
	X(int, mkostemp, (char *tmpl, int flags))                                                  \
	X(int, mkostemp64, (char *tmpl, int flags))                                                \
	X(int, mkstemps, (char *tmpl, int suffix))                                                 \
	X(int, mkstemps64, (char *tmpl, int suffix))                                               \
	X(int, mkostemps, (char *tmpl, int suffix, int flags))                                     \
	X(int, mkostemps64, (char *tmpl, int suffix, int flags))                                   \
	X(int, close, (int fd))                                                                    \
	X(int, close_range, (unsigned first, unsigned last, int flags))                            \
	X(void, closefrom, (int first))                                                            \
	X(int, dup, (int fd))                                                                      \
	X(int, dup2, (int fd, int to))                                                             \
	X(int, dup3, (int fd, int to, int flags))                                                  \
	X(int, fcntl, (int fd, int cmd, long arg))                                                 \
	X(int, fcntl64, (int fd, int cmd, long arg))                                               \
	X(void, _exit, (int status))                                                               \
	X(void, _Exit, (int status))                                                               \
	X(void, quick_exit, (int status))

/* bytes: w_io.c */
#define REAL_IO(X)                                                                                 \
	X(ssize_t, read, (int fd, void *buf, size_t n))                                            \
	X(ssize_t, pread, (int fd, void *buf, size_t n, off_t off))                                \
	X(ssize_t, pread64, (int fd, void *buf, size_t n, off_t off))                              \
	X(ssize_t, readv, (int fd, const struct iovec *iov, int cnt))                              \
	X(ssize_t, preadv, (int fd, const struct iovec *iov, int cnt, off_t off))                  \
	X(ssize_t, preadv64, (int fd, const struct iovec *iov, int cnt, off_t off))                \
	X(ssize_t, preadv2, (int fd, const struct iovec *iov, int cnt, off_t off, int flags))      \
	X(ssize_t, preadv64v2, (int fd, const struct iovec *iov, int cnt, off_t off, int flags))   \
	X(ssize_t, __read_chk, (int fd, void *buf, size_t n, size_t buflen))                       \
	X(ssize_t, __pread_chk, (int fd, void *buf, size_t n, off_t off, size_t buflen))           \
	X(ssize_t, __pread64_chk, (int fd, void *buf, size_t n, off_t off, size_t buflen))         \
	X(ssize_t, write, (int fd, const void *buf, size_t n))                                     \
	X(ssize_t, pwrite, (int fd, const void *buf, size_t n, off_t off))                         \
	X(ssize_t, pwrite64, (int fd, const void *buf, size_t n, off_t off))                       \
	X(ssize_t, writev, (int fd, const struct iovec *iov, int cnt))                             \
	X(ssize_t, pwritev, (int fd, const struct iovec *iov, int cnt, off_t off))                 \
	X(ssize_t, pwritev64, (int fd, const struct iovec *iov, int cnt, off_t off))               \
	X(ssize_t, pwritev2, (int fd, const struct iovec *iov, int cnt, off_t off, int flags))     \
	X(ssize_t, pwritev64v2, (int fd, const struct iovec *iov, int cnt, off_t off, int flags))  \
	X(off_t, lseek, (int fd, off_t off, int whence))                                           \
	X(off_t, lseek64, (int fd, off_t off, int whence))

/* bytes to and from others: w_msg.c */
#define REAL_MSG(X)                                                                                \
	X(ssize_t, vmsplice, (int fd, const struct iovec *iov, size_t cnt, unsigned flags))        \
	X(ssize_t, send, (int fd, const void *buf, size_t n, int flags))                           \
	X(ssize_t, sendto,                                                                         \
	  (int fd, const void *buf, size_t n, int flags, const struct sockaddr *to, socklen_t tl)) \
	X(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags))                           \
	X(ssize_t, recv, (int fd, void *buf, size_t n, int flags))                                 \
	X(ssize_t, __recv_chk, (int fd, void *buf, size_t n, size_t buflen, int flags))            \
	X(ssize_t, recvfrom,                                                                       \
	  (int fd, void *buf, size_t n, int flags, struct sockaddr *from, socklen_t *fl))          \
	X(ssize_t, __recvfrom_chk,                                                                 \
	  (int fd, void *buf, size_t n, size_t buflen, int flags, struct sockaddr *from,           \
	   socklen_t *fl))                                                                         \
	X(ssize_t, recvmsg, (int fd, struct msghdr *m, int flags))                                 \
	X(int, sendmmsg, (int fd, struct mmsghdr *m, unsigned n, int flags))                       \
	X(int, recvmmsg, (int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *t))   \
	X(int, mq_send, (mqd_t q, const char *buf, size_t n, unsigned prio))                       \
	X(int, mq_timedsend,                                                                       \
	  (mqd_t q, const char *buf, size_t n, unsigned prio, const struct timespec *t))           \
	X(ssize_t, mq_receive, (mqd_t q, char *buf, size_t n, unsigned *prio))                     \
	X(ssize_t, mq_timedreceive,                                                                \
	  (mqd_t q, char *buf, size_t n, unsigned *prio, const struct timespec *t))                \
	X(int, msgsnd, (int q, const void *msg, size_t n, int flags))                              \
	X(ssize_t, msgrcv, (int q, void *msg, size_t n, long type, int flags))                     \
	X(ssize_t, process_vm_readv,                                                               \
	  (pid_t pid, const struct iovec *iov, size_t cnt, const struct iovec *far, size_t nfar,   \
	   unsigned long flags))                                                                   \
	X(ssize_t, process_vm_writev,                                                              \
	  (pid_t pid, const struct iovec *iov, size_t cnt, const struct iovec *far, size_t nfar,   \
	   unsigned long flags))                                                                   \
	X(ssize_t, getrandom, (void *buf, size_t n, unsigned flags))                               \
	X(int, getentropy, (void *buf, size_t n))                                                  \
	X(void, arc4random_buf, (void *buf, size_t n))

/* bytes from file to file: w_copy.c */
#define REAL_COPY(X)                                                                               \
	X(ssize_t, copy_file_range,                                                                \
	  (int in, off_t *ioff, int out, off_t *ooff, size_t n, unsigned flags))                   \
	X(ssize_t, sendfile, (int out, int in, off_t *off, size_t n))                              \
	X(ssize_t, sendfile64, (int out, int in, off_t *off, size_t n))                            \
	X(ssize_t, splice, (int in, off_t *ioff, int out, off_t *ooff, size_t n, unsigned flags))  \
	X(int, ioctl, (int fd, unsigned long req, void *arg))

/* status: w_stat.c */
#define REAL_STAT(X)                                                                               \
	X(int, stat, (const char *path, struct stat *st))                                          \
	X(int, stat64, (const char *path, struct stat *st))                                        \
	X(int, lstat, (const char *path, struct stat *st))                                         \
	X(int, lstat64, (const char *path, struct stat *st))                                       \
	X(int, fstat, (int fd, struct stat *st))                                                   \
	X(int, fstat64, (int fd, struct stat *st))                                                 \
	X(int, fstatat, (int dir, const char *path, struct stat *st, int flags))                   \
	X(int, fstatat64, (int dir, const char *path, struct stat *st, int flags))                 \
	X(int, __xstat, (int ver, const char *path, struct stat *st))                              \
	X(int, __xstat64, (int ver, const char *path, struct stat *st))                            \
	X(int, __lxstat, (int ver, const char *path, struct stat *st))                             \
	X(int, __lxstat64, (int ver, const char *path, struct stat *st))                           \
	X(int, __fxstat, (int ver, int fd, struct stat *st))                                       \
	X(int, __fxstat64, (int ver, int fd, struct stat *st))                                     \
	X(int, __fxstatat, (int ver, int dir, const char *path, struct stat *st, int flags))       \
	X(int, __fxstatat64, (int ver, int dir, const char *path, struct stat *st, int flags))     \
	X(int, statx, (int dir, const char *path, int flags, unsigned mask, struct statx *sx))

/* durability and size: w_sync.c */
#define REAL_SYNC(X)                                                                               \
	X(int, fsync, (int fd))                                                                    \
	X(int, fdatasync, (int fd))                                                                \
	X(int, sync_file_range, (int fd, off_t off, off_t n, unsigned flags))                      \
	X(int, syncfs, (int fd))                                                                   \
	X(void, sync, (void))                                                                      \
	X(int, ftruncate, (int fd, off_t len))                                                     \
	X(int, ftruncate64, (int fd, off_t len))                                                   \
	X(int, truncate, (const char *path, off_t len))                                            \
	X(int, truncate64, (const char *path, off_t len))                                          \
	X(int, fallocate, (int fd, int mode, off_t off, off_t len))                                \
	X(int, fallocate64, (int fd, int mode, off_t off, off_t len))                              \
	X(int, posix_fallocate, (int fd, off_t off, off_t len))                                    \
	X(int, posix_fallocate64, (int fd, off_t off, off_t len))

/* advice about files: w_advise.c */
#define REAL_ADVISE(X)                                                                             \
	X(int, posix_fadvise, (int fd, off_t off, off_t len, int advice))                          \
	X(int, posix_fadvise64, (int fd, off_t off, off_t len, int advice))                        \
	X(ssize_t, readahead, (int fd, off64_t off, size_t n))

/* locks: w_lock.c; fcntl's: w_fd.c */
#define REAL_LOCK(X)                                                                               \
	X(int, flock, (int fd, int op))                                                            \
	X(int, lockf, (int fd, int cmd, off_t len))                                                \
	X(int, lockf64, (int fd, int cmd, off_t len))

/* names that go: w_name.c */
#define REAL_NAME(X)                                                                               \
	X(int, unlink, (const char *path))                                                         \
	X(int, unlinkat, (int dir, const char *path, int flags))                                   \
	X(int, remove, (const char *path))                                                         \
	X(int, rename, (const char *from, const char *to))                                         \
	X(int, renameat, (int fdir, const char *from, int tdir, const char *to))                   \
	X(int, renameat2, (int fdir, const char *from, int tdir, const char *to, unsigned flags))

/* stdio, which opens and closes without calling the above: w_stdio.c */
#define REAL_STDIO(X)                                                                              \
	X(FILE *, fopen, (const char *path, const char *mode))                                     \
	X(FILE *, fopen64, (const char *path, const char *mode))                                   \
	X(FILE *, freopen, (const char *path, const char *mode, FILE *fp))                         \
	X(FILE *, freopen64, (const char *path, const char *mode, FILE *fp))                       \
	X(FILE *, popen, (const char *command, const char *mode))

/* memory: w_mmap.c */
#define REAL_MMAP(X)                                                                               \
	X(void *, mmap, (void *addr, size_t len, int prot, int flags, int fd, off_t off))          \
	X(void *, mmap64, (void *addr, size_t len, int prot, int flags, int fd, off_t off))        \
	X(int, munmap, (void *addr, size_t len))                                                   \
	X(void *, mremap, (void *addr, size_t old, size_t len, int flags, void *to))               \
	X(int, mprotect, (void *addr, size_t len, int prot))                                       \
	X(int, madvise, (void *addr, size_t len, int advice))                                      \
	X(int, posix_madvise, (void *addr, size_t len, int advice))                                \
	X(int, msync, (void *addr, size_t len, int flags))                                         \
	X(int, mlock, (const void *addr, size_t len))                                              \
	X(int, mlock2, (const void *addr, size_t len, unsigned flags))                             \
	X(int, munlock, (const void *addr, size_t len))                                            \
	X(int, mlockall, (int flags))                                                              \
	X(int, munlockall, (void))                                                                 \
	X(int, mincore, (void *addr, size_t len, unsigned char *vec))

/* signals: w_signal.c */
#define REAL_SIGNAL(X)                                                                             \
	X(int, sigaction, (int sig, const struct sigaction *act, struct sigaction *old))           \
	X(sighandler_t, signal, (int sig, sighandler_t h))                                         \
	X(sighandler_t, bsd_signal, (int sig, sighandler_t h))                                     \
	X(sighandler_t, ssignal, (int sig, sighandler_t h))                                        \
	X(sighandler_t, sysv_signal, (int sig, sighandler_t h))                                    \
	X(sighandler_t, __sysv_signal, (int sig, sighandler_t h))                                  \
	X(sighandler_t, sigset, (int sig, sighandler_t h))                                         \
	X(int, sighold, (int sig))                                                                 \
	X(int, sigblock, (int mask))                                                               \
	X(int, sigsetmask, (int mask))                                                             \
	X(int, sigprocmask, (int how, const sigset_t *set, sigset_t *old))                         \
	X(int, pthread_sigmask, (int how, const sigset_t *set, sigset_t *old))                     \
	X(int, sigsuspend, (const sigset_t *set))                                                  \
	X(int, ppoll,                                                                              \
	  (struct pollfd * fds, nfds_t n, const struct timespec *t, const sigset_t *set))          \
	X(int, __ppoll_chk,                                                                        \
	  (struct pollfd * fds, nfds_t n, const struct timespec *t, const sigset_t *set,           \
	   size_t fdslen))                                                                         \
	X(int, pselect,                                                                            \
	  (int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *t, const sigset_t *set)) \
	X(int, epoll_pwait, (int ep, struct epoll_event *ev, int n, int ms, const sigset_t *set))  \
	X(int, epoll_pwait2,                                                                       \
	  (int ep, struct epoll_event *ev, int n, const struct timespec *t, const sigset_t *set))

#define REAL_LIST(X)                                                                               \
	REAL_FD(X)                                                                                 \
	REAL_IO(X)                                                                                 \
	REAL_MSG(X)                                                                                \
	REAL_COPY(X)                                                                               \
	REAL_STAT(X)                                                                               \
	REAL_SYNC(X)                                                                               \
	REAL_ADVISE(X) REAL_LOCK(X) REAL_NAME(X) REAL_STDIO(X) REAL_MMAP(X) REAL_SIGNAL(X)

/* NOLINTBEGIN(bugprone-macro-parentheses): types and names cannot be */
struct real {
#define REAL_X(ret, name, args) ret(*name) args;
	REAL_LIST(REAL_X)
#undef REAL_X
};

#define REAL_X(ret, name, args)                                                                    \
	ret w_##name args __asm__(#name) __attribute__((visibility("default")));
REAL_LIST(REAL_X)
#undef REAL_X
/* NOLINTEND(bugprone-macro-parentheses) */

/* Another spelling of a wrapper that the same file defines. */
#define WRAP_ALIAS(name, of) extern __typeof__(w_##name) w_##name __attribute__((alias(#of)))

/* Fill *r.  Calls dlsym only, with all signals blocked; see ctx.c about what may call us from
 * there. */
void real_resolve(struct real *r);

/* For -errno results: sets errno, returns -1; otherwise passes r through. */
#define wrap_ret(r)                                                                                \
	({                                                                                         \
		__auto_type ret_ = (r);                                                            \
		if (__builtin_expect(ret_ < 0, 0)) {                                               \
			errno = (int)-ret_;                                                        \
			ret_ = -1;                                                                 \
		}                                                                                  \
		ret_;                                                                              \
	})

#endif
