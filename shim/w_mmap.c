/* SPDX-License-Identifier: MIT */
/*
 * w_mmap.c - mmap and its family.  A mapping of a managed descriptor goes to map.c; so does every
 * call whose range touches one; all else falls through after one compare.
 */
#include <string.h>
#include <sys/mman.h>

#include "io.h"
#include "map.h"

/* A child made by _Fork() or clone() ran no handler of ours: what it calls is between it and the
 * kernel, and the table is its parent's. */
static inline bool managed(struct ctx *c, const void *p, size_t n)
{
	return map_hits(c, p, n) && !file_orphan(c);
}

#define mmap_ret(p)                                                                                \
	({                                                                                         \
		void *p_ = (p);                                                                    \
		if (sys_err(p_)) {                                                                 \
			errno = (int)-(long)p_;                                                    \
			p_ = MAP_FAILED;                                                           \
		}                                                                                  \
		p_;                                                                                \
	})

void *w_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	struct ctx *c = ctx_get();
	struct file_held held;
	struct file *f = flags & MAP_ANONYMOUS ? NULL : file_get(c, fd, &held);
	void *p;
	int r;

	if (sys_err(f))
		return mmap_ret((void *)f);
	if (f) {
		p = map_mmap(c, f, addr, len, prot, flags, (uint64_t)off);
		file_done(&held);
		return mmap_ret(p);
	}
	if ((flags & MAP_FIXED) && managed(c, addr, len)) {
		r = map_forget(c, addr, len);
		if (r)
			return mmap_ret((void *)(long)r);
	}
	return c->real.mmap(addr, len, prot, flags, fd, off);
}
WRAP_ALIAS(mmap64, mmap);

int w_munmap(void *addr, size_t len)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.munmap(addr, len);
	return wrap_ret(map_munmap(c, addr, len));
}

void *w_mremap(void *addr, size_t old, size_t len, int flags, void *to)
{
	struct ctx *c = ctx_get();
	int r;

	if (managed(c, addr, old ? old : 1))
		return mmap_ret(map_mremap(c, addr, old, len, flags, to));
	if ((flags & MREMAP_FIXED) && managed(c, to, len)) {
		r = map_forget(c, to, len);
		if (r)
			return mmap_ret((void *)(long)r);
	}
	return c->real.mremap(addr, old, len, flags, to);
}

int w_mprotect(void *addr, size_t len, int prot)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.mprotect(addr, len, prot);
	return wrap_ret(map_mprotect(c, addr, len, prot));
}

int w_madvise(void *addr, size_t len, int advice)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.madvise(addr, len, advice);
	return wrap_ret(map_madvise(c, addr, len, advice));
}

/* Returns the error instead of setting errno; POSIX's DONTNEED discards nothing. */
int w_posix_madvise(void *addr, size_t len, int advice)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.posix_madvise(addr, len, advice);
	return advice == POSIX_MADV_DONTNEED ? 0 : -map_madvise(c, addr, len, advice);
}

int w_msync(void *addr, size_t len, int flags)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.msync(addr, len, flags);
	return wrap_ret(map_msync(c, addr, len, flags));
}

int w_mlock(const void *addr, size_t len)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.mlock(addr, len);
	return wrap_ret(map_mlock(c, addr, len, 0));
}

int w_mlock2(const void *addr, size_t len, unsigned flags)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.mlock2(addr, len, flags);
	return wrap_ret(map_mlock(c, addr, len, flags));
}

int w_munlock(const void *addr, size_t len)
{
	struct ctx *c = ctx_get();

	if (!managed(c, addr, len))
		return c->real.munlock(addr, len);
	return wrap_ret(map_munlock(c, addr, len));
}

int w_mlockall(int flags)
{
	struct ctx *c = ctx_get();

	if (!c->nvol || !(flags & (MCL_CURRENT | MCL_FUTURE)) ||
	    (flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)))
		return c->real.mlockall(flags);
	return wrap_ret(map_mlockall(c, flags));
}

int w_munlockall(void)
{
	struct ctx *c = ctx_get();

	return c->nvol ? wrap_ret(map_mlockall(c, 0)) : c->real.munlockall();
}

/* The memfd is the page cache, so what the kernel says of it is right; where it says it may be ours. */
int w_mincore(void *addr, size_t len, unsigned char *vec)
{
	const size_t n = RF_PAGES(len);
	struct ctx *c = ctx_get();
	unsigned char *buf;
	int r;

	if (!managed(c, vec, n))
		return c->real.mincore(addr, len, vec);
	buf = io_buf_get(n);
	if (!buf)
		return wrap_ret(-EAGAIN);
	r = c->real.mincore(addr, len, buf);
	if (!r)
		memcpy(vec, buf, n);
	io_buf_put(buf, n);
	return r;
}
