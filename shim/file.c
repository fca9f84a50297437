/* SPDX-License-Identifier: MIT */
/*
 * file.c - the descriptor table.
 *
 * One anonymous mapping, made at the start if there are volumes: a page that is wiped on fork, with
 * the process's id; then the table; then the objects.  The wiped page is how a vfork child (sees
 * its parent's id) is told from any other: a fork child's first atfork handler enters its own.
 *
 * Reuse.  close() takes the entry out before it closes, so whoever gets the number next finds an
 * empty entry.  A reader between the two holds a reference to the old object and finishes on the
 * old vnode, as a native read() would that had passed fdget().
 *
 * Locks: none.  Entries change by atomic exchange; an object is freed by whoever takes refs from 1
 * to BUSY, and is reused only after that went to 0.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "anchor.h"
#include "file.h"
#include "key.h"

#define POOL 65536u /* open files that can be managed at one time */
#define BUSY (1u << 31)
#define RETRY_NS UINT64_C(1000000000) /* between attempts to reach an agent that was not there */

struct own {
	_Atomic int32_t pid;
	char pad[RF_PAGE_SIZE - 4];
};

/* ---- the table ---- */

static struct own *own_page(struct ctx *c)
{
	return (struct own *)(void *)((char *)(void *)atomic_load(&c->fds) - sizeof(struct own));
}

static struct file *pool(struct ctx *c)
{
	return (struct file *)(void *)(atomic_load(&c->fds) + CTX_FDS);
}

int file_init(struct ctx *c)
{
	const size_t len =
	    sizeof(struct own) + CTX_FDS * sizeof(struct file *) + POOL * sizeof(struct file);
	struct own *own = ctx_reserve(c, len);

	if (sys_err(own))
		return (int)(long)own;
	rf_syscall(SYS_madvise, own, sizeof(*own), MADV_WIPEONFORK);
	atomic_store(&own->pid, (int32_t)rf_syscall(SYS_getpid));
	atomic_store(&c->fds, (struct file * _Atomic *)(void *)(own + 1));
	fork_init(c);
	return 0;
}

bool file_foreign(struct ctx *c)
{
	return atomic_load(&own_page(c)->pid) != (int32_t)rf_syscall(SYS_getpid);
}

bool file_orphan(struct ctx *c)
{
	return atomic_load(&own_page(c)->pid) == 0; /* wiped, and not entered again */
}

void file_fork_child(struct ctx *c)
{
	atomic_store(&c->once_lock.w, 0);
	if (atomic_load(&c->fds))
		atomic_store(&own_page(c)->pid, (int32_t)rf_syscall(SYS_getpid));
}

static void raise_top(struct ctx *c, int fd)
{
	uint32_t top = atomic_load(&c->fd_top), want = (uint32_t)fd + 1;

	while (top < want && !atomic_compare_exchange_weak(&c->fd_top, &top, want))
		;
}

/* ---- objects ---- */

static struct file *file_new(struct ctx *c, struct vnode *vn, uint32_t key, int flags)
{
	uint32_t n, zero;
	struct file *f;

	for (uint32_t i = 0; i < POOL; i++) {
		f = &pool(c)[i];
		zero = 0;
		if (atomic_load_explicit(&f->refs, memory_order_relaxed) != 0 ||
		    !atomic_compare_exchange_strong(&f->refs, &zero, 1))
			continue;
		n = atomic_load(&c->nfiles);
		while (n < i + 1 && !atomic_compare_exchange_weak(&c->nfiles, &n, i + 1))
			;
		atomic_store(&f->nfds, 0);
		f->flags = flags & (O_ACCMODE | O_SYNC | O_DSYNC);
		atomic_store(&f->key, key);
		atomic_store(&f->vn, vn);
		if (vn)
			atomic_store(&f->errseq, rf_errseq_sample(atomic_load(&vn->st)));
		return f;
	}
	return NULL;
}

struct file *file_ref(struct ctx *c, int fd)
{
	for (;;) {
		struct file *f = file_entry(c, fd);
		uint32_t n;

		if (!f || f == FILE_HIDDEN)
			return NULL;
		n = atomic_load_explicit(&f->refs, memory_order_relaxed);
		while (n && !(n & BUSY) &&
		       !atomic_compare_exchange_weak_explicit(
			   &f->refs, &n, n + 1, memory_order_acquire, memory_order_relaxed))
			;
		if (n && !(n & BUSY)) {
			if (file_entry(c, fd) == f)
				return f;
			file_put(c, f);
		}
	}
}

void file_put(struct ctx *c, struct file *f)
{
	uint32_t n = atomic_load_explicit(&f->refs, memory_order_relaxed);
	struct vnode *vn;

	do {
		while (n > 1)
			if (atomic_compare_exchange_weak_explicit(
				&f->refs, &n, n - 1, memory_order_release, memory_order_relaxed))
				return;
	} while (!atomic_compare_exchange_weak(&f->refs, &n, BUSY));
	vn = atomic_exchange(&f->vn, NULL);
	atomic_store(&f->refs, 0);
	if (vn)
		vnode_put(c, vn);
}

/* ---- opening ---- */

/* Attach, and open what *a found, under the key of now. */
static int open_vnode(struct ctx *c, int fd, const struct anchor *a, int flags, struct vnode **vn,
		      uint32_t *number)
{
	struct rf_open o = {
	    .mode = a->st.st_mode & 07777, .dev = a->st.st_dev, .ino = a->st.st_ino};
	int acc = flags & O_ACCMODE, r;
	struct key key;
	/*
	 * Made read-only and open for writing, which a descriptor may be and a name may not: let
	 * the server see it writable, and say what its mode will be (store/dir.c, `made`).
	 */
	const bool made = (flags & O_CREAT) && acc != O_RDONLY && !(a->st.st_mode & 0200) &&
			  !a->st.st_size && a->st.st_uid == geteuid() && geteuid() != 0;

	o.flags = (acc != O_WRONLY ? RF_OPEN_READ : 0) | (acc != O_RDONLY ? RF_OPEN_WRITE : 0) |
		  (flags & O_CREAT ? RF_OPEN_CREATE : 0);
	r = agent_attach(c, true);
	if (r == -ENOENT) /* of the agent, not of the file */
		r = -EHOSTDOWN;
	if (r)
		return r;
	if (made)
		rf_syscall(SYS_fchmod, fd, o.mode | 0200);
	r = key_read(c, &key);
	if (!r)
		r = agent_open(c, &o, a->vol->addr, a->vol->name, a->rel, &key, vn, number);
	if (!r)
		atomic_store(&(*vn)->pins, a->vol->pins);
	key_wipe(&key);
	if (made)
		rf_syscall(SYS_fchmod, fd, o.mode);
	return r;
}

int file_adopt(struct ctx *c, int fd, const char *text, int flags)
{
	struct anchor a;
	struct vnode *vn;
	struct file *f;
	uint32_t key;
	int r;

	if ((flags & (O_PATH | O_DIRECTORY)) || (flags & O_ACCMODE) == O_ACCMODE ||
	    (unsigned)fd >= CTX_FDS || !anchor_of_fd(c, fd, text, &a) || file_foreign(c))
		return 0;
	r = open_vnode(c, fd, &a, flags, &vn, &key);
	if (r)
		return r;
	if ((flags & O_TRUNC) &&
	    (!vnode_valid(c, vn) || atomic_load(&atomic_load(&vn->st)->i_size))) {
		const uint64_t arg[4] = {0};
		r = agent_request(c, RF_OP_SETSIZE, vn->id, key, arg, NULL, 0, NULL, sys_getmask());
	}
	f = r ? NULL : file_new(c, vn, key, flags);
	if (!f) {
		vnode_put(c, vn);
		return r ? r : -ENFILE;
	}
	log_debug(c, "descriptor %d: %s of %s, vnode %u", fd, a.rel, a.vol->name, vn->id);
	file_enter(c, fd, f);
	return 1;
}

/* First use of an inherited descriptor. */
static int open_pending(struct ctx *c, int fd, struct file *f)
{
	static _Atomic uint64_t failed_at;
	struct vnode *vn, *none = NULL;
	struct anchor a;
	struct timespec t;
	uint64_t now;
	uint32_t key;
	int r;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	if (atomic_load(&failed_at) && now - atomic_load(&failed_at) < RETRY_NS)
		return -EHOSTDOWN;
	r = anchor_of_fd(c, fd, NULL, &a) ? open_vnode(c, fd, &a, f->flags, &vn, &key) : -ESTALE;
	atomic_store(&failed_at, r ? now : 0);
	if (r)
		return r;
	atomic_store(&f->errseq, rf_errseq_sample(atomic_load(&vn->st)));
	atomic_store(&f->key, key);
	if (!atomic_compare_exchange_strong(&f->vn, &none, vn))
		vnode_put(c, vn);
	return 0;
}

static void held_put(void *arg)
{
	const struct file_held *h = arg;

	file_put(rf_ctx, h->f);
}

struct file *file_get_slow(struct ctx *c, int fd, struct file_held *h)
{
	struct file *f = file_ref(c, fd);
	int r = 0;

	if (!f)
		return NULL;
	h->f = f;
	undo_begin(&h->undo, held_put, h);
	if (__builtin_expect(!atomic_load_explicit(&f->vn, memory_order_acquire), 0)) {
		if (file_foreign(
			c)) { /* a vfork child about to exec; the new image will adopt it */
			file_done(h);
			return NULL;
		}
		r = open_pending(c, fd, f);
	} else if (__builtin_expect(!(atomic_load_explicit(&c->attached, memory_order_relaxed) & 1),
				    0)) {
		r = agent_attach(c, true);
	}
	if (__builtin_expect(!r, 1))
		return f;
	file_done(h);
	return (struct file *)(long)r;
}

/* ---- entries ---- */

void file_enter(struct ctx *c, int fd, struct file *f)
{
	struct file *_Atomic *t = atomic_load(&c->fds);
	struct file *old;

	if (!f && !file_entry(c, fd))
		return;
	if (f && (unsigned)fd >= CTX_FDS) {
		file_put(c, f);
		return;
	}
	if (f) {
		stdio_init(c);
		atomic_fetch_add(&f->nfds, 1);
	}
	raise_top(c, fd);
	old = atomic_exchange(&t[fd], f);
	if (old && old != FILE_HIDDEN)
		file_close(c, old, false);
}

struct file *file_remove(struct ctx *c, int fd)
{
	struct file *_Atomic *t = atomic_load(&c->fds);
	struct file *f = file_entry(c, fd);

	if (!f || f == FILE_HIDDEN || !atomic_compare_exchange_strong(&t[fd], &f, NULL))
		return NULL;
	return f;
}

int file_error(struct file *f)
{
	struct vnode *vn = atomic_load(&f->vn);

	return -rf_errseq_report(atomic_load(&vn->st), &f->errseq);
}

int file_flush(struct ctx *c, struct file *f, uint64_t page, uint64_t npages, uint32_t flags)
{
	int r = agent_flush(c, atomic_load(&f->vn), page, npages, flags);
	int e = file_error(f);

	return e ? e : r;
}

int file_close(struct ctx *c, struct file *f, bool tell)
{
	const bool last = atomic_fetch_sub(&f->nfds, 1) == 1;
	struct vnode *vn = atomic_load(&f->vn);
	int r = 0, e = 0;

	if (vn && (atomic_load(&c->attached) & 1)) {
		const uint32_t locks = atomic_load(&vn->locks);

		if ((locks & VNODE_LOCK_POSIX) ||
		    (last && (file_writable(f) || (locks & VNODE_LOCK_OPEN))))
			r = agent_flush(c, vn, 0, 0, 0);
		if (tell && file_writable(f))
			e = file_error(f);
	}
	file_put(c, f);
	return e ? e : r;
}

void file_replace(struct ctx *c, int fd, int to)
{
	struct vnode *vn;
	struct file *f;

	if (!file_entry(c, to) || to == fd || file_foreign(c))
		return;
	f = file_ref(c, to);
	vn = f ? atomic_load(&f->vn) : NULL;
	if (vn && atomic_load(&vn->locks) && (atomic_load(&c->attached) & 1))
		agent_flush(c, vn, 0, 0, 0);
	if (f)
		file_put(c, f);
}

/* ---- internal descriptors ---- */

int fd_hide(struct ctx *c, int fd)
{
	struct file *_Atomic *t = atomic_load(&c->fds);
	uint64_t lim[2] = {1024, 0};
	uint64_t base = CTX_FD_BASE;
	long to;

	rf_syscall(SYS_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, lim);
	while (base + 64 > lim[0] && base > 8)
		base /= 2;
	to = rf_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, base);
	if (to >= 0)
		rf_syscall(SYS_close, fd);
	else
		to = fd;
	if (to < (long)CTX_FDS) {
		raise_top(c, (int)to);
		atomic_store(&t[to], FILE_HIDDEN);
	}
	return (int)to;
}

void fd_unhide(struct ctx *c, int fd)
{
	struct file *_Atomic *t = atomic_load(&c->fds);
	struct file *hidden = FILE_HIDDEN;

	if (fd < 0)
		return;
	if ((unsigned)fd < CTX_FDS)
		atomic_compare_exchange_strong(&t[fd], &hidden, NULL);
	rf_syscall(SYS_close, fd);
}

/* ---- start and end ---- */

static void inherit_one(struct ctx *c, int fd)
{
	struct anchor a;
	struct file *f;
	long flags;

	if ((unsigned)fd >= CTX_FDS || !anchor_of_fd(c, fd, NULL, &a))
		return;
	flags = rf_syscall(SYS_fcntl, fd, F_GETFL);
	if (flags < 0 || (flags & O_PATH) || (flags & O_ACCMODE) == O_ACCMODE)
		return;
	f = file_new(c, NULL, 0, (int)flags);
	if (f)
		file_enter(c, fd, f);
}

void file_inherit(struct ctx *c)
{
	struct entry {
		uint64_t ino;
		int64_t off;
		uint16_t len;
		unsigned char type;
		char name[];
	};
	_Alignas(8) char buf[1024] = {0};
	long dir, n;

	dir = rf_syscall(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return;
	while ((n = rf_syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0)
		for (long at = 0; at < n;) {
			struct entry *e = (struct entry *)(void *)(buf + at);
			int fd = 0;

			at += e->len;
			for (const char *s = e->name; *s >= '0' && *s <= '9'; s++)
				fd = fd * 10 + (*s - '0');
			if (e->name[0] != '.' && fd != dir)
				inherit_one(c, fd);
		}
	rf_syscall(SYS_close, dir);
}

/* One server that is away is waited for once, not once a file; the agent goes on trying. */
static void exit_flush(struct ctx *c, struct vnode *vn, uint32_t flags, uint64_t *away)
{
	const uint64_t server = UINT64_C(1) << atomic_load(&vn->st)->server % RF_MAX_SERVERS;
	int r = agent_flush(c, vn, 0, 0, *away & server ? RF_FLUSH_NOWAIT : flags);

	if (r == -EHOSTDOWN || r == -ETIMEDOUT)
		*away |= server;
}

void file_exit(struct ctx *c)
{
	uint64_t away = 0;
	int saved = errno;

	if (!atomic_load(&c->fds) || file_foreign(c))
		return;
	if (!(atomic_load(&c->attached) & 1))
		return;
	for (uint32_t i = 0; i < atomic_load(&c->nfiles); i++) {
		struct file *f = &pool(c)[i];
		struct vnode *vn = atomic_load(&f->vn);

		if (atomic_load(&f->refs) && vn && file_writable(f))
			exit_flush(c, vn, 0, &away);
	}
	/* What is still mapped and dirty: native munmap promises nothing, so only start it; but for
	 * what was stored under a lock, which goes now. */
	for (uint32_t i = 0; i < atomic_load(&c->nvnodes); i++)
		if (atomic_load(&c->vnode_pool[i].refs))
			exit_flush(c, &c->vnode_pool[i],
				   atomic_load(&c->vnode_pool[i].locks) ? 0 : RF_FLUSH_NOWAIT,
				   &away);
	errno = saved;
}
