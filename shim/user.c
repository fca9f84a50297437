/* SPDX-License-Identifier: MIT */
/*
 * user.c - buffers of the program that the kernel loads from or stores to (user.h).
 *
 * Counters, locks: none of its own.
 */
#include "user.h"

bool iov_populate(struct ctx *c, const struct iovec *iov, size_t cnt, bool write,
		  struct pin_call *pins)
{
	bool all = true;

	for (size_t i = 0; i < cnt; i++)
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

bool iov_scatter(struct ctx *c, const struct iovec *iov, const char *src, size_t n)
{
	for (; n; iov++) {
		size_t len = iov->iov_len < n ? iov->iov_len : n;

		if (page_copy_user(c, iov->iov_base, src, len)) {
			errno = EFAULT;
			return false;
		}
		src += len;
		n -= len;
	}
	return true;
}
