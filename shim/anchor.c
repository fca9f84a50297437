/* SPDX-License-Identifier: MIT */
/*
 * anchor.c - overlay volumes: from a descriptor to a volume and a name inside it.
 *
 * A volume's directory is looked at when the first regular file is opened, not before: a program
 * that opens none pays nothing, and a directory on a dead mount hangs nobody.  A path that is not
 * there or is no directory binds nothing, as a mount point that is not there would not: one line
 * when the program names something in it, and the kernel's own ENOENT or ENOTDIR for what it asks.
 * It is looked at again when a name in it is opened, so the directory may appear later, or another
 * file system be mounted over it.
 *
 * Locks: once_lock, for the volumes' places; held over open and readlink only.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "anchor.h"
#include "core.h"

/* /proc/self/fd/N into buf, terminated.  Its length or -errno. */
static long fd_link(int fd, char *buf, size_t cap)
{
	char name[32] = "/proc/self/fd/";
	char tmp[12];
	size_t n = strlen(name), k = 0;
	long r;

	do
		tmp[k++] = (char)('0' + fd % 10);
	while ((fd /= 10) != 0);
	while (k)
		name[n++] = tmp[--k];
	name[n] = '\0';
	r = rf_syscall(SYS_readlinkat, AT_FDCWD, name, buf, cap);
	if (r == (long)cap)
		return -ENAMETOOLONG;
	if (r >= 0)
		buf[r] = '\0';
	return r;
}

/* Where a volume is.  Never changed once published; replaced and leaked if the volume moves. */
struct place {
	uint64_t dev;
	bool any_dev; /* overlayfs: files may show other devices than their directory */
	size_t len;   /* of path, without trailing slash: 0 for the root */
	char path[PATH_MAX];
};

/* 0 or -errno. */
static int look(const char *conf, struct place *p)
{
	struct statfs fs = {0};
	struct stat st = {0};
	long fd, r;

	fd = rf_syscall(SYS_openat, AT_FDCWD, conf, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	r = rf_syscall(SYS_fstat, fd, &st);
	p->any_dev = rf_syscall(SYS_fstatfs, fd, &fs) == 0 && fs.f_type == OVERLAYFS_SUPER_MAGIC;
	if (!r)
		r = fd_link((int)fd, p->path, sizeof(p->path));
	rf_syscall(SYS_close, fd);
	if (r < 0)
		return (int)r;
	p->dev = st.st_dev;
	p->len = r == 1 ? 0 : (size_t)r;
	return 0;
}

static int resolve(struct ctx *c, struct volume *v)
{
	const struct place *old;
	struct place *p;
	sys_mask m;
	int r;

	p = sys_mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sys_err(p))
		return (int)(long)p;
	m = sys_lock(&c->once_lock);
	r = look(*v->conf ? v->conf : "/", p);
	old = atomic_load(&v->place);
	if (r)
		atomic_store(&v->place, NULL);
	else if (!old || old->dev != p->dev || strcmp(old->path, p->path) != 0)
		atomic_store(&v->place, p);
	atomic_store_explicit(&v->looked, 1, memory_order_release);
	sys_unlock(&c->once_lock, m);
	if (atomic_load(&v->place) != p)
		rf_syscall(SYS_munmap, p, sizeof(*p));
	return r;
}

static bool on_dev(const struct place *p, uint64_t dev)
{
	return p->dev == dev || p->any_dev;
}

static bool below(const char *text, const char *dir, size_t len)
{
	return strncmp(text, dir, len) == 0 && (text[len] == '/' || !text[len]);
}

/* The program names something in a volume that leads nowhere, or to another device than it says. */
static void look_again(struct ctx *c, struct volume *v)
{
	int r = resolve(c, v);

	if (r && !atomic_exchange(&v->said, 1))
		log_line("volume %s: %s; until it is a directory its files are not kept coherent",
			 v->conf, strerrordesc_np(-r));
}

static bool by_dev(struct ctx *c, uint64_t dev, const char *text)
{
	bool found = false;

	for (uint32_t i = 0; i < c->nvol; i++) {
		struct volume *v = &c->vol[i];
		const struct place *p;

		if (!atomic_load_explicit(&v->looked, memory_order_acquire))
			resolve(c, v);
		p = atomic_load(&v->place);
		if (text && (!p || !on_dev(p, dev)) && below(text, v->conf, v->conf_len)) {
			look_again(c, v);
			p = atomic_load(&v->place);
		}
		found |= p && on_dev(p, dev);
	}
	return found;
}

void anchor_missed(struct ctx *c, const char *text)
{
	for (uint32_t i = 0; i < c->nvol; i++)
		if (below(text, c->vol[i].conf, c->vol[i].conf_len) &&
		    !atomic_load(&c->vol[i].place))
			look_again(c, &c->vol[i]);
}

bool anchor_names(struct ctx *c, int dir, const char *path)
{
	char at[PATH_MAX];
	long r;

	if (*path != '/') {
		r = dir == AT_FDCWD ? rf_syscall(SYS_getcwd, at, sizeof(at))
				    : fd_link(dir, at, sizeof(at));
		if (r < 0)
			return false;
		path = at;
	}
	for (uint32_t i = 0; i < c->nvol; i++) {
		const struct place *p = atomic_load(&c->vol[i].place);

		if (below(path, c->vol[i].conf, c->vol[i].conf_len) ||
		    (p && below(path, p->path, p->len)))
			return true;
	}
	return false;
}

bool anchor_dev(struct ctx *c, uint64_t dev)
{
	return by_dev(c, dev, NULL);
}

bool anchor_maybe(struct ctx *c, int dir, const char *path, int at_flags)
{
	struct stat st = {0};

	return rf_syscall(SYS_newfstatat, dir, path, &st, at_flags) == 0 && S_ISREG(st.st_mode) &&
	       by_dev(c, st.st_dev, path);
}

bool anchor_of_fd(struct ctx *c, int fd, const char *text, struct anchor *a)
{
	size_t best = 0;
	long r;

	a->st = (struct stat){0};
	if (rf_syscall(SYS_fstat, fd, &a->st) || !S_ISREG(a->st.st_mode) ||
	    !by_dev(c, a->st.st_dev, text))
		return false;
	r = fd_link(fd, a->path, sizeof(a->path));
	if (r < 0) {
		log_line(
		    "descriptor %d may be of a volume, but /proc/self/fd cannot be read: errno %d",
		    fd, (int)-r);
		return false;
	}
	a->vol = NULL;
	for (uint32_t i = 0; i < c->nvol; i++) {
		const struct place *p = atomic_load(&c->vol[i].place);

		if (!p || !on_dev(p, a->st.st_dev) || !below(a->path, p->path, p->len) ||
		    (a->vol && p->len < best))
			continue;
		a->vol = &c->vol[i];
		best = p->len;
	}
	if (!a->vol || !a->path[best])
		return false;
	a->rel = a->path + best + 1;
	return a->st.st_nlink > 0; /* unlinked meanwhile: the link says "... (deleted)" */
}
