/* SPDX-License-Identifier: MIT */
/*
 * w_msg.c - calls that move bytes to or from what is no file: a pipe's pages, sockets, message queues,
 * processes, random numbers.  None of them is ever managed; the program's buffers may lie in a managed
 * mapping (user.h).  Names and control data that are received are not looked at.
 *
 * Counters, locks: none of its own.
 */
#include <string.h>
#include <unistd.h>

#include "user.h"

#define MMSG_MAX 1024u /* UIO_MAXIOV: the kernel sends no more at a time */
#define ENTROPY_MAX 256u

/* ---- pipes ---- */

/*
 * Pages of mappings become the pipe's.  The pin is for the call: what the pipe holds afterwards lives on
 * by itself, whatever becomes of the file.  From a pipe to memory it is a read.
 */
ssize_t w_vmsplice(int fd, const struct iovec *iov, size_t cnt, unsigned flags)
{
	struct ctx *c = ctx_get();

	if (likely(!iov_hits(c, iov, cnt)))
		return c->real.vmsplice(fd, iov, cnt, flags);
	if ((rf_syscall(SYS_fcntl, fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
		return BOUNCED_FROM(c, fd, iov, cnt, c->real.vmsplice(fd, b_, 1, flags));
	return POPULATED(c, iov, cnt, c->real.vmsplice(fd, iov, cnt, flags));
}

/* ---- sockets ---- */

ssize_t w_send(int fd, const void *buf, size_t n, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {(void *)(uintptr_t)buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.send(fd, buf, n, flags);
	return POPULATED(c, &v, 1, c->real.send(fd, buf, n, flags));
}

ssize_t w_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *to,
		 socklen_t tl)
{
	struct ctx *c = ctx_get();
	struct iovec v[2] = {{(void *)(uintptr_t)buf, n}, {(void *)(uintptr_t)to, to ? tl : 0}};

	if (likely(!iov_hits(c, v, 2)))
		return c->real.sendto(fd, buf, n, flags, to, tl);
	return POPULATED(c, v, 2, c->real.sendto(fd, buf, n, flags, to, tl));
}

static bool msg_hits(const struct ctx *c, const struct msghdr *m)
{
	return iov_hits(c, m->msg_iov, m->msg_iovlen);
}

/* What of a message to be sent is not its bytes. */
struct msg_rest {
	struct iovec v[2];
};

static struct msg_rest msg_rest(const struct msghdr *m)
{
	return (struct msg_rest){{{m->msg_name, m->msg_name ? m->msg_namelen : 0},
				  {m->msg_control, m->msg_control ? m->msg_controllen : 0}}};
}

static bool out_hits(const struct ctx *c, const struct msghdr *m)
{
	return msg_hits(c, m) || iov_hits(c, msg_rest(m).v, 2);
}

static bool msg_populate(struct ctx *c, const struct msghdr *m, struct pin_call *pins)
{
	bool all = iov_populate(c, msg_rest(m).v, 2, false, NULL);

	return iov_populate(c, m->msg_iov, m->msg_iovlen, false, pins) && all;
}

ssize_t w_sendmsg(int fd, const struct msghdr *m, int flags)
{
	struct ctx *c = ctx_get();

	if (likely(!out_hits(c, m)))
		return c->real.sendmsg(fd, m, flags);
	return POPULATED_BY(c, msg_populate(c, m, pins_), c->real.sendmsg(fd, m, flags));
}

static bool mmsg_populate(struct ctx *c, const struct mmsghdr *m, unsigned n, struct pin_call *pins)
{
	bool all = true;

	for (unsigned i = 0; i < n; i++)
		all &= msg_populate(c, &m[i].msg_hdr, pins);
	return all;
}

static bool mmsg_hits(const struct ctx *c, const struct mmsghdr *m, unsigned n,
		      bool (*hits)(const struct ctx *c, const struct msghdr *m))
{
	if (likely(!atomic_load_explicit(&c->map_hi, memory_order_relaxed)))
		return false;
	for (unsigned i = 0; i < n && i < MMSG_MAX; i++)
		if (hits(c, &m[i].msg_hdr))
			return true;
	return false;
}

/* One that the kernel finds no page for ends the call with those before it sent: the rest is for the next
 * call, as when the socket's buffer is full. */
int w_sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags)
{
	struct ctx *c = ctx_get();

	if (likely(!mmsg_hits(c, m, n, out_hits)))
		return c->real.sendmmsg(fd, m, n, flags);
	n = n < MMSG_MAX ? n : MMSG_MAX;
	return (int)POPULATED_BY(c, mmsg_populate(c, m, n, pins_),
				 c->real.sendmmsg(fd, m, n, flags));
}

ssize_t w_recv(int fd, void *buf, size_t n, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.recv(fd, buf, n, flags);
	return BOUNCED_FROM(c, fd, &v, 1, c->real.recv(fd, b_->iov_base, b_->iov_len, flags));
}

ssize_t w___recv_chk(int fd, void *buf, size_t n, size_t buflen, int flags)
{
	return n > buflen ? ctx_get()->real.__recv_chk(fd, buf, n, buflen, flags)
			  : w_recv(fd, buf, n, flags);
}

ssize_t w_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *from, socklen_t *fl)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.recvfrom(fd, buf, n, flags, from, fl);
	return BOUNCED_FROM(c, fd, &v, 1,
			    c->real.recvfrom(fd, b_->iov_base, b_->iov_len, flags, from, fl));
}

ssize_t w___recvfrom_chk(int fd, void *buf, size_t n, size_t buflen, int flags,
			 struct sockaddr *from, socklen_t *fl)
{
	return n > buflen ? ctx_get()->real.__recvfrom_chk(fd, buf, n, buflen, flags, from, fl)
			  : w_recvfrom(fd, buf, n, flags, from, fl);
}

/* All but the bytes. */
static void msg_received(struct msghdr *m, const struct msghdr *got)
{
	m->msg_namelen = got->msg_namelen;
	m->msg_controllen = got->msg_controllen;
	m->msg_flags = got->msg_flags;
}

static ssize_t recvmsg_into(struct ctx *c, int fd, struct msghdr *m, struct iovec *b, int flags)
{
	struct msghdr copy = *m;
	ssize_t r;

	copy.msg_iov = b;
	copy.msg_iovlen = 1;
	r = c->real.recvmsg(fd, &copy, flags);
	if (r >= 0)
		msg_received(m, &copy);
	return r;
}

ssize_t w_recvmsg(int fd, struct msghdr *m, int flags)
{
	struct ctx *c = ctx_get();

	if (likely(!msg_hits(c, m)))
		return c->real.recvmsg(fd, m, flags);
	return BOUNCED_FROM(c, fd, m->msg_iov, m->msg_iovlen, recvmsg_into(c, fd, m, b_, flags));
}

/* All messages through one private buffer: their headers, what these point to, their bytes.  No more
 * messages than it has room for, and none behind one that has no place to go. */
static int recvmmsg_bounced(struct ctx *c, int fd, struct mmsghdr *m, unsigned n, int flags,
			    struct timespec *t)
{
	size_t len, size = 0;
	struct mmsghdr *to;
	struct iovec *v;
	struct io_hold h;
	bool placed = true;
	unsigned k, i;
	char *bytes;
	int r;

	for (k = 0; k < n && k < MMSG_MAX && placed; k++) {
		len = iov_bytes(m[k].msg_hdr.msg_iov, m[k].msg_hdr.msg_iovlen);
		placed = iov_place(c, m[k].msg_hdr.msg_iov, m[k].msg_hdr.msg_iovlen) == len;
		if (k && (len > BOUNCE_MAX - size || !placed))
			break;
		size += len;
	}
	to = io_hold(&h, k * (sizeof(*to) + sizeof(*v)) + size);
	if (!to) {
		errno = ENOMEM;
		return -1;
	}
	v = (struct iovec *)(void *)(to + k);
	bytes = (char *)(v + k);
	for (i = 0; i < k; i++) {
		to[i] = m[i];
		v[i].iov_base = bytes;
		v[i].iov_len = iov_bytes(m[i].msg_hdr.msg_iov, m[i].msg_hdr.msg_iovlen);
		bytes += v[i].iov_len;
		to[i].msg_hdr.msg_iov = &v[i];
		to[i].msg_hdr.msg_iovlen = 1;
	}
	r = c->real.recvmmsg(fd, to, k, flags, t);
	for (i = 0; r > 0 && i < (unsigned)r; i++) {
		len = to[i].msg_len < v[i].iov_len ? to[i].msg_len : v[i].iov_len;
		if (!iov_scatter(c, m[i].msg_hdr.msg_iov, v[i].iov_base, len)) {
			r = i ? (int)i : -1;
			break;
		}
		msg_received(&m[i].msg_hdr, &to[i].msg_hdr);
		m[i].msg_len = to[i].msg_len;
	}
	io_release(&h);
	return r;
}

int w_recvmmsg(int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *t)
{
	struct ctx *c = ctx_get();

	if (likely(!mmsg_hits(c, m, n, msg_hits)))
		return c->real.recvmmsg(fd, m, n, flags, t);
	return recvmmsg_bounced(c, fd, m, n, flags, t);
}

/* ---- message queues ---- */

int w_mq_timedsend(mqd_t q, const char *buf, size_t n, unsigned prio, const struct timespec *t)
{
	struct ctx *c = ctx_get();
	struct iovec v = {(void *)(uintptr_t)buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.mq_timedsend(q, buf, n, prio, t);
	return (int)POPULATED(c, &v, 1, c->real.mq_timedsend(q, buf, n, prio, t));
}

int w_mq_send(mqd_t q, const char *buf, size_t n, unsigned prio)
{
	return w_mq_timedsend(q, buf, n, prio, NULL);
}

ssize_t w_mq_timedreceive(mqd_t q, char *buf, size_t n, unsigned *prio, const struct timespec *t)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.mq_timedreceive(q, buf, n, prio, t);
	return BOUNCED(c, &v, 1, c->real.mq_timedreceive(q, b_->iov_base, b_->iov_len, prio, t));
}

ssize_t w_mq_receive(mqd_t q, char *buf, size_t n, unsigned *prio)
{
	return w_mq_timedreceive(q, buf, n, prio, NULL);
}

/* The type comes first, and is not counted. */
int w_msgsnd(int q, const void *msg, size_t n, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {(void *)(uintptr_t)msg, sizeof(long) + n};

	if (likely(!map_hits(c, msg, v.iov_len)))
		return c->real.msgsnd(q, msg, n, flags);
	return (int)POPULATED(c, &v, 1, c->real.msgsnd(q, msg, n, flags));
}

static ssize_t msgrcv_into(struct ctx *c, int q, const struct iovec *b, long type, int flags)
{
	ssize_t r = c->real.msgrcv(q, b->iov_base, b->iov_len - sizeof(long), type, flags);

	return r < 0 ? r : r + (ssize_t)sizeof(long);
}

ssize_t w_msgrcv(int q, void *msg, size_t n, long type, int flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {msg, sizeof(long) + n};
	ssize_t r;

	if (likely(!map_hits(c, msg, v.iov_len)))
		return c->real.msgrcv(q, msg, n, type, flags);
	r = BOUNCED(c, &v, 1, msgrcv_into(c, q, b_, type, flags));
	return r < 0 ? r : r - (ssize_t)sizeof(long);
}

/* ---- other processes' memory, or by the same way our own ---- */

/* The far side is ours, too, by whichever thread: a way to touch memory that may not be there. */
static bool far_hits(const struct ctx *c, pid_t pid, const struct iovec *far, size_t n)
{
	return iov_hits(c, far, n) && !rf_syscall(SYS_tgkill, getpid(), pid, 0);
}

static ssize_t vm_readv(struct ctx *c, pid_t pid, const struct iovec *iov, size_t cnt,
			const struct iovec *far, size_t nfar, unsigned long flags)
{
	if (!iov_hits(c, iov, cnt))
		return c->real.process_vm_readv(pid, iov, cnt, far, nfar, flags);
	return BOUNCED(c, iov, cnt, c->real.process_vm_readv(pid, b_, 1, far, nfar, flags));
}

ssize_t w_process_vm_readv(pid_t pid, const struct iovec *iov, size_t cnt, const struct iovec *far,
			   size_t nfar, unsigned long flags)
{
	struct ctx *c = ctx_get();

	if (likely(!far_hits(c, pid, far, nfar)))
		return vm_readv(c, pid, iov, cnt, far, nfar, flags);
	return POPULATED(c, far, nfar, vm_readv(c, pid, iov, cnt, far, nfar, flags));
}

/* The kernel stores past the page tables, as a device does. */
static ssize_t vm_store(struct ctx *c, pid_t pid, const struct iovec *iov, size_t cnt,
			const struct iovec *far, size_t nfar, unsigned long flags)
{
	struct pin_call pins;
	ssize_t r = -1;
	bool all;

	pin_call_begin(c, &pins, RF_PIN_LONG);
	all = iov_populate(c, far, nfar, true, &pins);
	if (pins.missed)
		errno = ENOMEM;
	else
		r = c->real.process_vm_writev(pid, iov, cnt, far, nfar, flags);
	for (int i = 0; r < 0 && errno == EFAULT && all && i < POPULATE_TRIES; i++) {
		all = iov_populate(c, far, nfar, true, NULL);
		r = c->real.process_vm_writev(pid, iov, cnt, far, nfar, flags);
	}
	pin_call_end(&pins);
	return r;
}

ssize_t w_process_vm_writev(pid_t pid, const struct iovec *iov, size_t cnt, const struct iovec *far,
			    size_t nfar, unsigned long flags)
{
	struct ctx *c = ctx_get();
	const bool own = far_hits(c, pid, far, nfar);

	if (likely(!own && !iov_hits(c, iov, cnt)))
		return c->real.process_vm_writev(pid, iov, cnt, far, nfar, flags);
	return POPULATED(c, iov, cnt,
			 own ? vm_store(c, pid, iov, cnt, far, nfar, flags)
			     : c->real.process_vm_writev(pid, iov, cnt, far, nfar, flags));
}

/* ---- random numbers ---- */

ssize_t w_getrandom(void *buf, size_t n, unsigned flags)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};

	if (likely(!map_hits(c, buf, n)))
		return c->real.getrandom(buf, n, flags);
	return BOUNCED(c, &v, 1, c->real.getrandom(b_->iov_base, b_->iov_len, flags));
}

int w_getentropy(void *buf, size_t n)
{
	struct ctx *c = ctx_get();
	struct iovec v = {buf, n};
	char b[ENTROPY_MAX];

	if (likely(!map_hits(c, buf, n)) || n > sizeof(b))
		return c->real.getentropy(buf, n);
	return c->real.getentropy(b, n) || !iov_scatter(c, &v, b, n) ? -1 : 0;
}

void w_arc4random_buf(void *buf, size_t n)
{
	struct ctx *c = ctx_get();
	char b[ENTROPY_MAX];

	if (likely(!map_hits(c, buf, n))) {
		c->real.arc4random_buf(buf, n);
		return;
	}
	for (size_t len; n; n -= len, buf = (char *)buf + len) {
		len = n < sizeof(b) ? n : sizeof(b);
		c->real.arc4random_buf(b, len);
		memcpy(buf, b, len);
	}
}
