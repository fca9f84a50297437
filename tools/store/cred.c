/* SPDX-License-Identifier: MIT */
/*
 * cred.c - act with a peer's rights, a thread at a time.
 *
 * A server that runs as root switches fsuid, fsgid and supplementary groups of the calling thread
 * only: by raw system calls, because the C library's setgroups changes all threads.  The kernel
 * drops the file capabilities of a thread whose fsuid is not 0 and gives them back with fsuid 0;
 * those that it does not drop (CAP_SYS_RESOURCE: reserved blocks, quotas) are given up for good at
 * the start. A server that does not run as root acts for its own user only.
 *
 * A thread keeps the identity until the next store_cred_enter, so whoever opens, creates or checks
 * something enters first, with NULL for the server's own business.
 *
 * Locks: none.  References are atomic; the identity is the thread's own.
 */
#include <refault/store.h>

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What acting for uid 0 needs, and what switching needs. */
#define KEEP                                                                                       \
	(1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FOWNER | \
	 1u << CAP_FSETID | 1u << CAP_SETGID | 1u << CAP_SETUID)

static _Atomic uint64_t serials;
/* The cred that this thread acts with; 0: the process's own.  A new thread starts with whatever its
 * maker was acting with, so it knows nothing. */
#define NOBODY UINT64_MAX
static __thread uint64_t acting = NOBODY;

struct store_cred *store_cred_new(uid_t uid, gid_t gid, const gid_t *groups, size_t ngroups)
{
	struct store_cred *c = malloc(sizeof(*c) + ngroups * sizeof(gid_t));

	if (!c)
		return NULL;
	atomic_init(&c->refs, 1);
	c->serial = atomic_fetch_add(&serials, 1) + 1;
	c->uid = uid;
	c->gid = gid;
	c->ngroups = ngroups;
	if (ngroups)
		memcpy(c->groups, groups, ngroups * sizeof(gid_t));
	return c;
}

struct store_cred *store_cred_get(struct store_cred *cred)
{
	atomic_fetch_add(&cred->refs, 1);
	return cred;
}

void store_cred_put(struct store_cred *cred)
{
	if (cred && atomic_fetch_sub(&cred->refs, 1) == 1)
		free(cred);
}

bool store_cred_any(void)
{
	return geteuid() == 0;
}

/* Some user namespaces do not allow setgroups: fine, if the groups are what they should be. */
static bool have_groups(const struct store_cred *cred)
{
	gid_t now[64];
	int n = getgroups(64, now);

	return n >= 0 && (size_t)n == cred->ngroups &&
	       !memcmp(now, cred->groups, (size_t)n * sizeof(*now));
}

/* setfsuid and setfsgid say what was, never whether they worked: ask again. */
static int switch_to(uid_t uid, gid_t gid, const struct store_cred *cred)
{
	if (syscall(SYS_setgroups, cred ? cred->ngroups : 0, cred ? cred->groups : NULL) && cred &&
	    !have_groups(cred))
		return -EACCES;
	setfsgid(gid);
	setfsuid(uid);
	if ((gid_t)setfsgid((gid_t)-1) != gid || (uid_t)setfsuid((uid_t)-1) != uid)
		return -EACCES;
	return 0;
}

int store_cred_enter(const struct store_cred *cred)
{
	uint64_t serial = cred ? cred->serial : 0;
	int err;

	if (serial == acting)
		return 0;
	if (!store_cred_any()) {
		if (cred && cred->uid != geteuid())
			return -EACCES;
		acting = serial;
		return 0;
	}
	/* If it fails halfway nobody may mistake this thread for anybody. */
	acting = NOBODY;
	err = switch_to(cred ? cred->uid : 0, cred ? cred->gid : getegid(), cred);
	if (!err)
		acting = serial;
	return err;
}

int store_cred_limit(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];

	if (!store_cred_any())
		return 0;
	if (syscall(SYS_capget, &h, d))
		return -errno;
	d[0].permitted &= KEEP;
	d[0].effective &= KEEP;
	d[0].inheritable = 0;
	memset(&d[1], 0, sizeof(d[1]));
	return syscall(SYS_capset, &h, d) ? -errno : 0;
}
