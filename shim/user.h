/* SPDX-License-Identifier: MIT */
/*
 * user.h - buffers of the program that the kernel loads from or stores to.  In a managed mapping it
 * would get EFAULT from a page without PTE:
 *
 *	what takes from the buffer (write, send)	pin and populate it, call, and again on EFAULT:
 *							nothing was taken then
 *	what consumes (read, recv)			through a private buffer, never again: after
 *							EFAULT a datagram would be gone; of a stream no
 *							more than there is a place for
 *	what reads past the page cache (O_DIRECT)	straight into the buffer, pinned and made dirty:
 *							after EFAULT a file can be read again
 *
 * Pages that are pinned for such a read stay DIRTY until it is done (state.h), for a device stores to
 * them past the page tables.
 */
#ifndef SHIM_USER_H
#define SHIM_USER_H

#include <limits.h>

#include "io.h"
#include "pin.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define BOUNCE_MAX (64u << 20) /* a larger read into a managed mapping comes back short */
#define POPULATE_TRIES 100

static inline bool iov_hits(const struct ctx *c, const struct iovec *iov, size_t cnt)
{
	if (likely(!atomic_load_explicit(&c->map_hi, memory_order_relaxed)) || cnt > IOV_MAX)
		return false;
	for (size_t i = 0; i < cnt; i++)
		if (map_hits(c, iov[i].iov_base, iov[i].iov_len))
			return true;
	return false;
}

/* What lies in managed mappings is there for the kernel to load (write: to store): true if all is.  More
 * than IOV_MAX of them the kernel does not even look at. */
bool iov_populate(struct ctx *c, const struct iovec *iov, size_t cnt, bool write,
		  struct pin_call *pins);

/* The value of `call`, repeated while a strip comes between populating and the kernel's look.  What is
 * to be there: `populate`, which pins by pins_ the first time. */
#define POPULATED_BY(c, populate, call)                                                            \
	({                                                                                         \
		struct pin_call p_, *pins_ = &p_;                                                  \
		ssize_t r_;                                                                        \
		pin_call_begin(c, &p_, 0);                                                         \
		for (int tries_ = 0; tries_ < POPULATE_TRIES; tries_++) {                          \
			bool all_ = (populate);                                                    \
			pins_ = NULL;                                                              \
			r_ = (call);                                                               \
			if (r_ >= 0 || errno != EFAULT || !all_)                                   \
				break;                                                             \
		}                                                                                  \
		pin_call_end(&p_);                                                                 \
		r_;                                                                                \
	})
#define POPULATED(c, iov, cnt, call) POPULATED_BY(c, iov_populate(c, iov, cnt, false, pins_), call)

/* The bytes of it that go through a private buffer. */
size_t iov_bytes(const struct iovec *iov, size_t cnt);

/* n bytes of ours into it.  False, and EFAULT: part of it has no place to go, and is lost. */
bool iov_scatter(struct ctx *c, const struct iovec *iov, const char *src, size_t n);

/* As many of them from the first on as have a place to go. */
size_t iov_place(struct ctx *c, const struct iovec *iov, size_t cnt);

/*
 * How many of them to take from fd: as many as have a place to go, the rest stays there; but of packets,
 * which are gone whole, all.
 */
size_t iov_room(struct ctx *c, int fd, const struct iovec *iov, size_t cnt);
/* The first that is not empty. */
struct iovec iov_first(const struct iovec *iov, size_t cnt);

/* The value of `call`, which receives into b_[0], at most n bytes, then in the place of iov. */
#define BOUNCED_BYTES(c, iov, n, call)                                                             \
	({                                                                                         \
		struct iovec b_[1] = {{NULL, n}};                                                  \
		struct io_hold h_;                                                                 \
		ssize_t r_ = -1;                                                                   \
		b_->iov_base = io_hold(&h_, b_->iov_len);                                          \
		errno = b_->iov_base ? errno : ENOMEM;                                             \
		if (b_->iov_base) {                                                                \
			r_ = (call);                                                               \
			if (r_ > 0 &&                                                              \
			    !iov_scatter(c, iov, b_->iov_base,                                     \
					 (size_t)r_ < b_->iov_len ? (size_t)r_ : b_->iov_len))     \
				r_ = -1;                                                           \
			io_release(&h_);                                                           \
		}                                                                                  \
		r_;                                                                                \
	})
#define BOUNCED(c, iov, cnt, call) BOUNCED_BYTES(c, iov, iov_bytes(iov, cnt), call)
/* The same of a call that takes from fd.  No room: the kernel, which has none either, says what then. */
#define BOUNCED_FROM(c, fd, iov, cnt, call)                                                        \
	({                                                                                         \
		const size_t room_ = iov_room(c, fd, iov, cnt);                                    \
		room_ ? BOUNCED_BYTES(c, iov, room_, call) : ({                                    \
			struct iovec b_[1] = {iov_first(iov, cnt)};                                \
			(call);                                                                    \
		});                                                                                \
	})

#endif
