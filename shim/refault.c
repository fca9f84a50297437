/* SPDX-License-Identifier: MIT */
/*
 * refault.c - the calls of refault.h.
 */
#include <fcntl.h>

#include "file.h"

#define API __attribute__((visibility("default")))

API const char *refault_version(void)
{
	return REFAULT_VERSION;
}

API int refault_managed(int fd)
{
	struct ctx *c = ctx_get();
	long r = rf_syscall(SYS_fcntl, fd, F_GETFD);

	if (r < 0 || file_hidden(c, fd))
		return wrap_ret(-EBADF);
	return file_entry(c, fd) != NULL;
}
