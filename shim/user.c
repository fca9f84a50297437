/* SPDX-License-Identifier: MIT */
/*
 * user.c - buffers of the program that the kernel loads from or stores to (user.h).
 *
 * Counters, locks: none of its own.
 */
#include <sys/socket.h>

#include "map.h"
#include "user.h"

bool iov_populate(struct ctx *c, const struct iovec *iov, size_t cnt, bool write,
		  struct pin_call *pins)
{
	bool all = true;

	for (size_t i = 0; i < cnt && cnt <= IOV_MAX; i++)
		if (map_hits(c, iov[i].iov_base, iov[i].iov_len))
			all &= !map_populate(c, iov[i].iov_base, iov[i].iov_len, write, pins);
	return all;
}

size_t iov_bytes(const struct iovec *iov, size_t cnt)
{
	size_t n = 0;

	for (size_t i = 0; i < cnt; i++)
		n += iov[i].iov_len < BOUNCE_MAX - n ? iov[i].iov_len : BOUNCE_MAX - n;
	return n;
}

/* *arg, where the memory ends, comes down to where this mapping has no page for a store. */
static int piece_ends(struct ctx *c, const struct map_entry *e, uintptr_t lo, uintptr_t hi,
		      void *arg)
{
	struct vnode *vn = e->l->vn;
	uintptr_t *end = arg;
	uint64_t pages;

	if (map_may_store(e)) {
		if (io_validate(c, vn, file_key(e->l->file)))
			return 0; /* whether it comes is seen when it is stored */
		pages = RF_PAGES(atomic_load(&atomic_load(&vn->st)->i_size));
		if (map_page(e, hi - 1) < pages)
			return 0;
		if (map_page(e, lo) < pages)
			lo = e->start + ((pages - e->pgoff) << RF_PAGE_SHIFT);
	}
	*end = lo;
	return 1;
}

size_t iov_place(struct ctx *c, const struct iovec *iov, size_t cnt)
{
	const size_t all = iov_bytes(iov, cnt);
	uintptr_t at, end;
	size_t n = 0;

	for (size_t i = 0; i < cnt && n < all; i++) {
		at = (uintptr_t)iov[i].iov_base;
		end = at + iov[i].iov_len;
		if (map_hits(c, iov[i].iov_base, iov[i].iov_len))
			map_each(c, iov[i].iov_base, iov[i].iov_len, piece_ends, &end);
		n += end - at;
		if (end - at < iov[i].iov_len)
			break;
	}
	return n < all ? n : all;
}

bool iov_scatter(struct ctx *c, const struct iovec *iov, const char *src, size_t n)
{
	for (; n; iov++) {
		size_t len = iov->iov_len < n ? iov->iov_len : n;

		/* Asked first: a store that the mapping does not allow is no SIGBUS. */
		if (iov_place(c, &(struct iovec){iov->iov_base, len}, 1) < len ||
		    page_copy_user(c, iov->iov_base, src, len)) {
			errno = EFAULT;
			return false;
		}
		src += len;
		n -= len;
	}
	return true;
}

static bool has_packets(int fd)
{
	socklen_t len = sizeof(int);
	int type;

	return !rf_syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &len) &&
	       type != SOCK_STREAM;
}

size_t iov_room(struct ctx *c, int fd, const struct iovec *iov, size_t cnt)
{
	const size_t all = iov_bytes(iov, cnt), n = iov_place(c, iov, cnt);

	return n == all || !has_packets(fd) ? n : all;
}

struct iovec iov_first(const struct iovec *iov, size_t cnt)
{
	for (; cnt > 1 && !iov->iov_len; cnt--)
		iov++;
	return *iov;
}
