/* SPDX-License-Identifier: MIT */
/*
 * w_name.c - names that go.  They are the kernel's, but for one thing: a server refuses changes of a
 * file that has lost its last name, since nobody would ever see them; who removes the name of a file
 * that is open on this host, and goes on using it (temporary files), must not be refused.  So the
 * agent is told before.  If the name stays after all, no harm is done.
 *
 * Counters, locks: none.
 */
#include <fcntl.h>
#include <stdio.h>

#include "io.h"

/* path is about to name nothing, or another file. */
static void going(struct ctx *c, int dir, const char *path)
{
	const uint64_t arg[4] = {0};
	const int saved = errno;
	uint32_t vnode;

	if (!c->nvol || !path || file_foreign(c))
		return;
	vnode = stat_last_name(c, dir, path);
	if (vnode)
		agent_request(c, RF_OP_NAMELESS, vnode, 0, arg, NULL, 0, NULL, sys_getmask());
	errno = saved;
}

int w_unlink(const char *path)
{
	struct ctx *c = ctx_get();

	going(c, AT_FDCWD, path);
	return c->real.unlink(path);
}

int w_unlinkat(int dir, const char *path, int flags)
{
	struct ctx *c = ctx_get();

	if (!(flags & AT_REMOVEDIR))
		going(c, dir, path);
	return c->real.unlinkat(dir, path, flags);
}

int w_remove(const char *path)
{
	struct ctx *c = ctx_get();

	going(c, AT_FDCWD, path);
	return c->real.remove(path);
}

int w_rename(const char *from, const char *to)
{
	struct ctx *c = ctx_get();

	going(c, AT_FDCWD, to);
	return c->real.rename(from, to);
}

int w_renameat(int fdir, const char *from, int tdir, const char *to)
{
	struct ctx *c = ctx_get();

	going(c, tdir, to);
	return c->real.renameat(fdir, from, tdir, to);
}

int w_renameat2(int fdir, const char *from, int tdir, const char *to, unsigned flags)
{
	struct ctx *c = ctx_get();

	if (!(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE)))
		going(c, tdir, to);
	return c->real.renameat2(fdir, from, tdir, to, flags);
}
