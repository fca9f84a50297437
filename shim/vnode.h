/* SPDX-License-Identifier: MIT */
/*
 * vnode.h - a file of a volume, as this process knows it.
 *
 * The objects live in a pool that is never given back (type-stable), so that a reader who raced
 * the last close finds an object, notices by refs == 0 or another id, and starts over.
 * The views (st, word, alias) only ever grow: the old ones stay mapped until the vnode goes.
 */
#ifndef SHIM_VNODE_H
#define SHIM_VNODE_H

#include <refault/state.h>

struct ctx;

/* Exclusive locks were taken here: gone with any close of the file; with the last of an open file. */
enum { VNODE_LOCK_POSIX = 1, VNODE_LOCK_OPEN = 2 };

struct vnode {
	_Atomic uint32_t
	    refs; /* files and mappings; 0 = free.  Taken under ctx->lock or from > 0 */
	uint32_t id;
	uint32_t opens; /* RF_OP_OPEN replies it stands for */
	int data_fd;    /* the page cache, read-write, close-on-exec, high */
	int state_fd;
	_Atomic uint32_t locks;      /* VNODE_LOCK_*, never cleared */
	_Atomic uint32_t pins;       /* its volume's policy, see struct volume */
	struct rf_vnode *_Atomic st; /* header; the words follow */
	_Atomic uint64_t cap;        /* words that st's view covers */
	char *_Atomic alias;         /* read-only view of the cache, registered MISSING-only */
	_Atomic uint64_t alias_len;  /* bytes */
	struct {                     /* earlier, smaller views */
		void *p;
		uint64_t len;
		bool state;
	} old[48];
	uint32_t nold;
	char path[256]; /* for messages; the end of it if it is long */
};

/*
 * Adopt what the agent sent for a file: finds or makes the vnode of this id, takes one reference,
 * consumes both descriptors.  0, -ENOMEM, -EPROTO (state makes no sense).  Not for handlers.
 */
int vnode_adopt(struct ctx *c, uint32_t id, const char *path, int data_fd, int state_fd,
		struct vnode **out);
/* Drop one; the last tells the agent (RF_OP_CLOSE) and unmaps.  Keeps errno. */
void vnode_put(struct ctx *c, struct vnode *vn);
/* The vnode of this id if this process holds it; for handlers.  NULL if not. */
struct vnode *vnode_by_id(struct ctx *c, uint32_t id);

/*
 * Make the views cover `pages` pages of the file.  0 or -errno.  Cheap when they do already.
 * Async-signal-safe (takes ctx->lock only to grow).
 */
int vnode_cover(struct ctx *c, struct vnode *vn, uint64_t pages);

/* In a fork child: the aliases are not inherited; vnode_cover maps them when they are needed. */
void vnode_forget_aliases(struct ctx *c);
/* Just attached: tell the agent of every vnode that came with the fork. 0 or the first error. */
int vnode_readopt(struct ctx *c);

/*
 * Until `frozen` is clear; nothing held.  0 or -EHOSTDOWN.  Handlers wait with the signal mask of the
 * code they interrupted: a structural change may take as long as the server does.
 */
int vnode_thaw(struct ctx *c, struct vnode *vn);

/* The callback promise holds now.  Async-signal-safe, ~10 ns. */
bool vnode_valid(const struct ctx *c, const struct vnode *vn);
/* A promise until then holds now. */
bool vnode_until(const struct ctx *c, uint64_t until);

static inline rf_word *vnode_word(const struct vnode *vn, uint64_t page)
{
	return rf_vnode_words(atomic_load_explicit(&vn->st, memory_order_acquire)) + page;
}

#endif
