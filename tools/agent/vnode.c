/* SPDX-License-Identifier: MIT */
/*
 * vnode.c - files on this host: made, found, used, forgotten; their promise and status.
 *
 * A vnode lives as long as a program holds it, something is under way with it, or it is dirty;
 * after that it stays in ag->unused with what is cached, for the next program, until there are more
 * than AG_UNUSED_MAX of these.  It is looked at (ag_vn_look) whenever something happened to it.
 *
 * Publishing: what programs may read under a promise is written before cb_expires_at; taking the
 * promise back comes before anything that breaks it.
 *
 * Counters: none.
 * Locks: none of its own.
 */
#include "vnode.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <refault/uffd.h>

#include "change.h"
#include "debug.h"
#include "fetch.h"
#include "freeze.h"
#include "op.h"
#include "req.h"
#include "server.h"
#include "task.h"

#define WORDS_MIN ((uint64_t)1 << 18)
#define WORDS_AMPLE ((uint64_t)1 << 28)
#define SCAN_PLAIN 4096u /* words that are walked without asking for holes */

/* ---- finding ---- */

static struct ag_list *fid_chain(struct ag *ag, const rf_fid *fid)
{
	uint64_t h = (fid->ino ^ fid->gen << 1) * 0x9e3779b97f4a7c15u;

	return &ag->fid[h >> 40 & (AG_FID_CHAINS - 1)];
}

struct ag_vnode *ag_vn_find(struct ag *ag, const struct ag_volume *vol, const rf_fid *fid)
{
	struct ag_vnode *vn;

	ag_for_each (vn, fid_chain(ag, fid), by_fid)
		if (vn->vol == vol && vn->fid.ino == fid->ino && vn->fid.gen == fid->gen)
			return vn;
	return NULL;
}

struct ag_vnode *ag_vn_get(struct ag *ag, uint32_t id)
{
	return id && id < RF_MAX_VNODES ? ag->vnode[id] : NULL;
}

/* ---- memory ---- */

static uint64_t words_for(uint64_t pages)
{
	uint64_t n = WORDS_MIN;

	/* Room to grow, but for files so large that address space is what is short. */
	while (n < (pages < WORDS_AMPLE ? 4 * pages : pages))
		n *= 2;
	return n;
}

/* Our own view of the page cache, registered so that pages can be filled whole. */
static int map_data(struct ag_vnode *vn, uint64_t pages)
{
	char *p = mmap(NULL, pages << RF_PAGE_SHIFT, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_NORESERVE, vn->data_fd, 0);
	int r;

	if (p == MAP_FAILED)
		return -errno;
	r = rf_uffd_register(vn->ag->uffd, (uintptr_t)p, pages << RF_PAGE_SHIFT,
			     UFFDIO_REGISTER_MODE_MISSING);
	if (r) {
		munmap(p, pages << RF_PAGE_SHIFT);
		return r;
	}
	if (vn->map)
		munmap(vn->map, vn->cap << RF_PAGE_SHIFT);
	vn->map = p;
	return 0;
}

bool ag_vn_fits(const struct ag_vnode *vn, uint64_t size)
{
	const uint64_t n = RF_PAGES(size), cap = words_for(n);
	const size_t len = (cap << RF_PAGE_SHIFT) + RF_VNODE_HDR + cap * 8;
	void *p;

	if (n <= vn->cap)
		return true;
	if (size > AG_SIZE_MAX)
		return false;
	p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	munmap(p, len);
	return true;
}

int ag_vn_capacity(struct ag_vnode *vn, uint64_t n)
{
	uint64_t cap = words_for(n);
	void *p;
	int r;

	if (n <= vn->cap)
		return 0;
	if (n > RF_PAGES(AG_SIZE_MAX))
		return -EFBIG;
	/* It grows when all else is done: it never shrinks, and the next agent has to map as much. */
	p = mmap(NULL, RF_VNODE_HDR + cap * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		 vn->state_fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	r = map_data(vn, cap);
	if (!r && ftruncate(vn->state_fd, (off_t)(RF_VNODE_HDR + cap * 8))) {
		/* The data view is larger than it need be; its length must match cap. */
		r = -errno;
		munmap(vn->map + (vn->cap << RF_PAGE_SHIFT), (cap - vn->cap) << RF_PAGE_SHIFT);
	}
	if (r) {
		munmap(p, RF_VNODE_HDR + cap * 8);
		return r;
	}
	if (vn->st)
		munmap(vn->st, RF_VNODE_HDR + vn->cap * 8);
	vn->st = p;
	vn->word = rf_vnode_words(p);
	vn->cap = cap;
	atomic_store(&vn->st->capacity, cap);
	return 0;
}

bool ag_scan_next(struct ag_scan *s, uint64_t *page)
{
	if (s->page < s->end && s->page >= s->upto) {
		off_t d, h;

		if (s->end - s->page <= SCAN_PLAIN) {
			s->upto = s->end;
		} else {
			d = lseek(s->vn->state_fd, (off_t)(RF_VNODE_HDR + s->page * 8), SEEK_DATA);
			if (d < 0)
				return false;
			h = lseek(s->vn->state_fd, d, SEEK_HOLE);
			s->page = ag_max(s->page, ((uint64_t)d - RF_VNODE_HDR) / 8);
			s->upto = h < 0 ? s->end : ag_min(s->end, ((uint64_t)h - RF_VNODE_HDR) / 8);
		}
	}
	if (s->page >= s->end)
		return false;
	*page = s->page++;
	return true;
}

/* ---- made and forgotten ---- */

static struct ag_vnode *vn_alloc(struct ag *ag)
{
	struct ag_vnode *vn = calloc(1, sizeof(*vn));

	if (!vn)
		return NULL;
	vn->ag = ag;
	vn->data_fd = vn->state_fd = -1;
	vn->epoch = 1;
	ag_list_init(&vn->by_fid);
	ag_list_init(&vn->by_server);
	ag_list_init(&vn->by_use);
	ag_list_init(&vn->kick);
	ag_list_init(&vn->starve);
	ag_list_init(&vn->soon);
	ag_list_init(&vn->unstripped);
	ag_list_init(&vn->uses);
	ag_list_init(&vn->reqs);
	ag_list_init(&vn->ops);
	ag_list_init(&vn->fetches);
	ag_list_init(&vn->tasks);
	ag_list_init(&vn->gate_waits);
	for (unsigned i = 0; i < AG_STREAMS; i++)
		vn->stream[i].next = UINT64_MAX;
	return vn;
}

static void vn_insert(struct ag_vnode *vn)
{
	struct ag *ag = vn->ag;

	ag->vnode[vn->id] = vn;
	ag->vnode_high = (uint32_t)ag_max(ag->vnode_high, vn->id);
	ag->nvnodes++;
	ag_list_add(fid_chain(ag, &vn->fid), &vn->by_fid);
	ag_list_add(&vn->vol->srv->vnodes, &vn->by_server);
	ag_list_add(&ag->unused, &vn->by_use);
	ag->nunused++;
}

static void vn_unmap(struct ag_vnode *vn)
{
	if (vn->map)
		munmap(vn->map, vn->cap << RF_PAGE_SHIFT);
	if (vn->st)
		munmap(vn->st, RF_VNODE_HDR + vn->cap * 8);
	if (vn->data_fd >= 0)
		close(vn->data_fd);
	if (vn->state_fd >= 0)
		close(vn->state_fd);
	free(vn->path);
	free(vn);
}

static void keep(struct ag_vnode *vn, bool fds)
{
	unsigned char meta[AG_KEEP_META];
	struct ag_keep_vnode *k = (void *)meta;
	size_t al = strlen(vn->vol->srv->addr), nl = strlen(vn->vol->name), pl = strlen(vn->path);
	size_t n = sizeof(*k);

	memset(k, 0, sizeof(*k));
	k->ino = vn->fid.ino;
	k->gen = vn->fid.gen;
	k->server = vn->vol->srv->index;
	k->addr_len = (uint16_t)al;
	k->name_len = (uint16_t)nl;
	k->path_len = (uint16_t)pl;
	k->extend_key = (uint16_t)vn->extend_key;
	memcpy(meta + n, vn->vol->srv->addr, al);
	n += al;
	memcpy(meta + n, vn->vol->name, nl);
	n += nl;
	memcpy(meta + n, vn->path, pl);
	n += pl;
	ag_keep_put(vn->ag->keep, AG_KEEP_VNODE, vn->id, (int[]){vn->data_fd, vn->state_fd},
		    fds ? 2 : 0, meta, (uint32_t)n);
}

static uint32_t id_take(struct ag *ag)
{
	if (ag->nvnodes >= RF_MAX_VNODES - 1)
		return 0;
	do
		ag->last_vnode = ag->last_vnode % (RF_MAX_VNODES - 1) + 1;
	while (ag->vnode[ag->last_vnode]);
	return ag->last_vnode;
}

struct ag_vnode *ag_vn_new(struct ag_volume *vol, const rf_status *st, const char *path, int *err)
{
	struct ag *ag = vol->srv->ag;
	struct ag_vnode *vn = vn_alloc(ag);

	*err = -ENOMEM;
	if (!vn)
		return NULL;
	vn->vol = vol;
	vn->fid = st->fid;
	vn->path = strdup(path);
	vn->id = id_take(ag);
	if (!vn->path || !vn->id)
		goto fail;
	*err = ag_server_index(vol->srv, UINT32_MAX);
	if (*err)
		goto fail;
	*err = -EFBIG;
	if (st->size > AG_SIZE_MAX)
		goto fail;
	vn->data_fd = memfd_create("refault-data", MFD_CLOEXEC);
	vn->state_fd = memfd_create("refault-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (vn->data_fd < 0 || vn->state_fd < 0 ||
	    fcntl(vn->state_fd, F_ADD_SEALS, F_SEAL_SHRINK) ||
	    ftruncate(vn->data_fd, (off_t)st->size)) {
		*err = -errno;
		goto fail;
	}
	*err = ag_vn_capacity(vn, RF_PAGES(st->size) + !st->size);
	if (*err)
		goto fail;
	vn->st->version = RF_STATE_VERSION;
	vn->st->id = vn->id;
	vn->st->server = vol->srv->index;
	vn->st->fid[0] = vn->fid.ino;
	vn->st->fid[1] = vn->fid.gen;
	ag_vn_set_size(vn, st->size);
	ag_vn_status(vn, st);
	ag_vn_set_dv(vn, st->dv);
	atomic_store(&vn->st->errseq, RF_ERRSEQ_NONE);
	vn->st->magic = RF_MAGIC_VNODE;
	vn_insert(vn);
	keep(vn, true);
	return vn;
fail:
	vn_unmap(vn);
	return NULL;
}

/* What an agent that died had been doing to the pages. */
static void repair(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, UINT64_MAX);
	const uint64_t pages = ag_vn_pages(vn);
	bool dirty = false, excised = false;
	uint64_t page;

	while (ag_scan_next(&s, &page)) {
		rf_word *word = &vn->word[page];
		uint64_t w = atomic_load(word);

		excised |= rf_w_state(w) == RF_PG_REJECTED;
		while (rf_w_state(w) == RF_PG_WRITEBACK || rf_w_state(w) >= RF_PG_REJECTED ||
		       (page >= pages && rf_w_state(w) != RF_PG_EMPTY)) {
			if (page < pages && ag_w_twinned(w)) {
				ag_word_move(word, w, rf_w_to(w, RF_PG_DIRTY));
			} else {
				if (ag_w_owns_twin(w))
					ag_twin_free(vn->ag, rf_w_twin(w));
				/* Here a wait for the inode lock is as short as it can be. */
				fallocate(vn->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					  (off_t)(page << RF_PAGE_SHIFT), RF_PAGE_SIZE);
				ag_word_move(word, w, rf_w_clean(w, RF_PG_EMPTY, 1));
				ag_futex_wake(word);
			}
			w = atomic_load(word);
		}
		dirty |= rf_w_state(w) == RF_PG_DIRTY;
		if (rf_w_state(w) != RF_PG_EMPTY)
			vn->ncached++;
	}
	vn->ag->cached += vn->ncached;
	if (dirty)
		atomic_store(&vn->st->dirtied, 1);
	if ((excised || vn->st->wind) && vn->size > vn->ssize) {
		ag_vn_wind(vn, true);
		ag_excise(vn, 0, 0);
	}
}

int ag_vn_adopt(struct ag *ag, const struct ag_keep *k)
{
	const struct ag_keep_vnode *m = (const void *)k->meta;
	const char *str = (const char *)(m + 1);
	char *addr = NULL, *name = NULL;
	struct ag_server *srv = NULL;
	struct ag_vnode *vn;
	struct stat ds, ss;
	uint64_t most;
	int r = -ENOMEM;

	if (k->nfd != 2 || k->len < sizeof(*m) || !k->id || k->id >= RF_MAX_VNODES ||
	    k->len != sizeof(*m) + m->addr_len + m->name_len + m->path_len)
		return -EPROTO;
	vn = vn_alloc(ag);
	if (!vn)
		return -ENOMEM;
	vn->id = (uint32_t)k->id;
	vn->data_fd = k->fd[0];
	vn->state_fd = k->fd[1];
	vn->fid = (rf_fid){m->ino, m->gen};
	vn->extend_key = m->extend_key;
	addr = strndup(str, m->addr_len);
	name = strndup(str + m->addr_len, m->name_len);
	vn->path = strndup(str + m->addr_len + m->name_len, m->path_len);
	if (!addr || !name || !vn->path)
		goto fail;
	srv = ag_server_get(ag, addr);
	vn->vol = srv ? ag_volume_get(srv, name) : NULL;
	if (!vn->vol)
		goto fail;
	r = ag_server_index(srv, m->server);
	if (r)
		goto fail;
	r = -EIO;
	if (fstat(vn->data_fd, &ds) || fstat(vn->state_fd, &ss))
		goto fail;
	vn->cap = ((uint64_t)ss.st_size - RF_VNODE_HDR) / 8;
	r = map_data(vn, vn->cap);
	if (r)
		goto fail;
	vn->st = mmap(NULL, RF_VNODE_HDR + vn->cap * 8, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_NORESERVE, vn->state_fd, 0);
	if (vn->st == MAP_FAILED) {
		vn->st = NULL;
		r = -errno;
		goto fail;
	}
	vn->word = rf_vnode_words(vn->st);
	atomic_store(&vn->st->cb_expires_at, 0);

	/*
	 * The sizes: i_size follows the memfd, which may have been changed just before the crash.
	 * Programs can write to both.
	 */
	most = ag_min(AG_SIZE_MAX, vn->cap << RF_PAGE_SHIFT);
	vn->size = atomic_load(&vn->st->i_size);
	if (vn->size > most)
		vn->size = ag_min((uint64_t)ds.st_size, most);
	if ((uint64_t)ds.st_size != vn->size && ftruncate(vn->data_fd, (off_t)vn->size)) {
		r = -errno;
		goto fail;
	}
	vn->ssize = ag_min(atomic_load(&vn->st->server_size), AG_SIZE_MAX);
	vn->dv = atomic_load(&vn->st->dv);
	vn->mtime = atomic_load(&vn->st->mtime);
	vn->ctime = atomic_load(&vn->st->ctime);
	vn->blocks = (vn->size + 511) / 512;
	ag_vn_set_size(vn, vn->size);
	atomic_store(&vn->st->wb_inflight, 1); /* programs may never see it and `dirtied` clear */
	ag_freeze_adopt(vn);
	ag_ops_adopt(vn);
	ag_merge_adopt(vn);
	if (!vn->gate)
		ag_vn_thaw(vn);
	repair(vn);
	/* A lock that the dead agent held; who waits for it looks again and finds no promise. */
	atomic_store(&vn->st->invalidate, 0);
	ag_futex_wake(&vn->st->invalidate);
	atomic_fetch_sub(&vn->st->wb_inflight, 1); /* the rest is of what goes on */
	if (atomic_load(&vn->st->unstable))
		vn->unstable_at = ++vn->applies;
	ag->last_vnode = (uint32_t)ag_max(ag->last_vnode, vn->id);
	vn_insert(vn);
	free(addr);
	free(name);
	return 0;
fail:
	free(addr);
	free(name);
	vn_unmap(vn);
	return r;
}

void ag_vn_path(struct ag_vnode *vn, const char *path)
{
	char *p;

	if (!strcmp(vn->path, path))
		return;
	p = strdup(path);
	if (!p)
		return;
	free(vn->path);
	vn->path = p;
	keep(vn, false);
}

void ag_vn_extend_key(struct ag_vnode *vn, uint32_t key)
{
	if (vn->extend_key == key)
		return;
	vn->extend_key = key;
	keep(vn, false);
}

static void give_up(struct ag_vnode *vn)
{
	struct rf_msg m = {.body.type = RF_GIVE_UP};
	rf_give_up *g = &m.body.rf_body_u.give_up;

	if (vn->vol->srv->state != AG_UP || !vn->vol->ready)
		return;
	g->volume = vn->vol->handle;
	g->fids.fids_len = 1;
	g->fids.fids_val = &vn->fid;
	ag_server_send(vn->vol->srv, &m);
}

static bool forgettable(struct ag_vnode *vn)
{
	/* The promise ends first: a program that still looks at it has to ask, and is told ESTALE.
	 */
	if (!ag_list_empty(&vn->uses) || ag_vn_busy(vn) || !ag_list_empty(&vn->reqs) ||
	    !ag_list_empty(&vn->ops) || !ag_list_empty(&vn->fetches) || vn->asking || vn->nlate ||
	    vn->gate || !ag_list_empty(&vn->gate_waits) || !ag_list_empty(&vn->unstripped) ||
	    ag_vn_unclean(vn) || ag_vn_mapped(vn))
		return false;
	ag_vn_unpromise(vn);
	return !ag_vn_ndirty(vn);
}

/* Of pages that were cut off under a slot, and never filled again. */
static void free_twins(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, UINT64_MAX);
	uint64_t page;

	while (ag_scan_next(&s, &page)) {
		const uint64_t w = atomic_load(&vn->word[page]);

		if (ag_w_owns_twin(w))
			ag_twin_free(vn->ag, rf_w_twin(w));
	}
}

static void vn_forget(struct ag_vnode *vn)
{
	struct ag *ag = vn->ag;

	give_up(vn);
	free_twins(vn);
	for (uint32_t i = 0; i < vn->nstat; i++)
		ag_stat_drop(ag->host, vn->stat[i], vn->id);
	ag->vnode[vn->id] = NULL;
	ag->nvnodes--;
	ag->nunused--;
	ag->cached -= vn->ncached;
	ag_list_del(&vn->by_fid);
	ag_list_del(&vn->by_server);
	ag_list_del(&vn->by_use);
	ag_list_del(&vn->kick);
	ag_list_del(&vn->starve);
	ag_list_del(&vn->soon);
	ag_keep_del(ag->keep, AG_KEEP_VNODE, vn->id);
	free(vn->stat);
	free(vn->merge);
	free(vn->late);
	vn_unmap(vn);
}

void ag_vn_trim(struct ag *ag, bool all)
{
	struct ag_vnode *vn;

	ag_for_each (vn, &ag->unused, by_use) {
		if (!all && ag->nunused <= ag->unused_max)
			break;
		if (forgettable(vn))
			vn_forget(vn);
	}
}

/* ---- used ---- */

struct ag_use *ag_vn_use(struct ag_vnode *vn, struct ag_proc *p, uint32_t opens, uint64_t keys)
{
	struct ag_keep_use meta = {0};
	struct ag_use *u;

	ag_for_each (u, &vn->uses, by_vnode)
		if (u->proc == p)
			goto found;
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->proc = p;
	u->vn = vn;
	if (ag_list_empty(&vn->uses)) {
		ag_list_del(&vn->by_use);
		vn->ag->nunused--;
	}
	ag_list_add(&p->uses, &u->by_proc);
	ag_list_add(&vn->uses, &u->by_vnode);
found:
	u->opens += opens;
	u->keys |= keys;
	meta.opens = u->opens;
	meta.keys = u->keys;
	ag_keep_put(vn->ag->keep, AG_KEEP_USE, (uint64_t)p->id << 32 | vn->id, NULL, 0, &meta,
		    sizeof(meta));
	return u;
}

void ag_vn_unuse(struct ag_use *u)
{
	struct ag_vnode *vn = u->vn;
	struct ag *ag = vn->ag;

	ag_keep_del(ag->keep, AG_KEEP_USE, (uint64_t)u->proc->id << 32 | vn->id);
	ag_list_del(&u->by_proc);
	ag_list_del(&u->by_vnode);
	free(u);
	if (ag_list_empty(&vn->uses)) {
		ag_list_add(&ag->unused, &vn->by_use);
		ag->nunused++;
	}
}

bool ag_vn_mapped(struct ag_vnode *vn)
{
	return atomic_load(&vn->st->mappings) && ag_procs_map(vn->ag, vn->id);
}

/* ---- twins and dirt ---- */

void ag_twin_unmark(struct ag *ag, uint32_t twin)
{
	if (!(atomic_fetch_and(&ag->twins->owner[twin], ~RF_TWIN_MARKED) & RF_TWIN_MARKED))
		return;
	memset((void *)rf_twin_mark(ag->twins, ag->ntwins, twin), 0, RF_MARK_SIZE);
}

void ag_twin_mark_again(struct ag *ag, uint32_t twin, const uint8_t *bits)
{
	if (!twin || twin >= ag->ntwins)
		return;
	ag_mark_bits(rf_twin_mark(ag->twins, ag->ntwins, twin), bits);
	atomic_fetch_or(&ag->twins->owner[twin], RF_TWIN_MARKED);
}

void ag_twin_free(struct ag *ag, uint32_t twin)
{
	if (!twin || twin >= ag->ntwins)
		return;
	if (twin >= ag->twin_high)
		ag->twin_high = twin + 1;
	ag_twin_unmark(ag, twin);
	atomic_store(&ag->twins->owner[twin], 0);
	ag->twins_freed++;
}

void ag_vn_twins(struct ag_vnode *vn, unsigned char *used)
{
	struct ag_scan s = ag_scan(vn, 0, UINT64_MAX);
	uint64_t page;

	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (ag_w_owns_twin(w) && rf_w_twin(w) < vn->ag->ntwins)
			used[rf_w_twin(w) / 8] |= (unsigned char)(1u << rf_w_twin(w) % 8);
	}
}

uint64_t ag_vn_ndirty(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page, n = 0;

	while (ag_scan_next(&s, &page))
		n += ag_w_twinned(atomic_load(&vn->word[page]));
	return n;
}

void ag_vn_recount(struct ag_vnode *vn)
{
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page, n = 0;

	while (ag_scan_next(&s, &page))
		n += rf_w_state(atomic_load(&vn->word[page])) != RF_PG_EMPTY;
	vn->ag->cached += n - vn->ncached;
	vn->ncached = n;
}

bool ag_vn_dirty_in(struct ag_vnode *vn, uint64_t off, uint64_t len)
{
	struct ag_scan s =
	    ag_scan(vn, off >> RF_PAGE_SHIFT, ag_min(RF_PAGES(off + len), ag_vn_pages(vn)));
	uint64_t page;

	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (ag_w_twinned(w) || (w & RF_W_SYNC))
			return true;
	}
	return false;
}

/* ---- looked at ---- */

void ag_vn_kick(struct ag_vnode *vn)
{
	if (ag_list_empty(&vn->kick))
		ag_list_add(&vn->ag->kicked, &vn->kick);
}

void ag_vn_kick_soon(struct ag_vnode *vn)
{
	if (ag_list_empty(&vn->soon))
		ag_list_add(&vn->ag->soon, &vn->soon);
	ag_fast_start(vn->ag);
}

void ag_vn_look(struct ag_vnode *vn)
{
	ag_assert(vn->gate || !vn->frozen);
	ag_tasks_run(vn);
	if (ag_vn_busy(vn))
		return; /* looked at again when the task ends */
	ag_ops_resend(vn);
	ag_reqs_serve(vn);
	if (!ag_vn_busy(vn))
		ag_fetch_want(vn);
}

/* ---- promise and status ---- */

static uint64_t s_break(const struct ag_vnode *vn)
{
	return atomic_load(&vn->ag->host->server[vn->vol->srv->index].cb_s_break);
}

bool ag_vn_valid(const struct ag_vnode *vn)
{
	/* A program's stripper may have taken the promise back, too. */
	uint64_t until = ag_min(vn->until, atomic_load(&vn->st->cb_expires_at));

	return vn->dv && until > ag_now() + AG_MS && atomic_load(&vn->st->cb_s_seen) == s_break(vn);
}

static void set_until(struct ag_vnode *vn, uint64_t until)
{
	vn->until = until;
	atomic_store(&vn->st->cb_expires_at, until);
	for (uint32_t i = 0; i < vn->nstat; i++)
		ag_stat_promise(vn->ag->host, vn->stat[i], vn->id, until);
}

void ag_vn_promise(struct ag_vnode *vn, uint64_t until)
{
	atomic_store(&vn->st->cb_s_seen, s_break(vn));
	set_until(vn, until);
}

void ag_vn_unpromise(struct ag_vnode *vn)
{
	set_until(vn, 0);
}

void ag_vn_set_dv(struct ag_vnode *vn, uint64_t dv)
{
	if (vn->dv != dv)
		vn->epoch++;
	vn->dv = dv;
	atomic_store(&vn->st->dv, dv);
}

void ag_vn_forget_version(struct ag_vnode *vn)
{
	ag_vn_unpromise(vn);
	ag_vn_set_dv(vn, 0);
	vn->target = 0;
	vn->nmerge = 0;
	vn->epoch++;
}

void ag_vn_wind(struct ag_vnode *vn, bool on)
{
	vn->wind = on;
	vn->st->wind = on;
}

void ag_vn_publish(struct ag_vnode *vn)
{
	struct ag_stat s = {vn->size, vn->blocks, vn->mtime, vn->ctime};

	for (uint32_t i = 0; i < vn->nstat; i++)
		ag_stat_write(vn->ag->host, vn->stat[i], vn->id, &s);
}

void ag_vn_set_size(struct ag_vnode *vn, uint64_t size)
{
	vn->size = size;
	atomic_store(&vn->st->i_size, size);
	ag_vn_publish(vn);
}

void ag_vn_status(struct ag_vnode *vn, const rf_status *st)
{
	vn->ssize = st->size;
	vn->mtime = st->mtime;
	vn->ctime = st->ctime;
	vn->blocks = st->blocks;
	atomic_store(&vn->st->mtime, st->mtime);
	atomic_store(&vn->st->ctime, st->ctime);
	atomic_store(&vn->st->server_size, st->size);
	ag_vn_publish(vn);
}

void ag_vn_accepted(struct ag_vnode *vn, uint64_t size)
{
	vn->ssize = ag_max(vn->ssize, ag_min(vn->size, size));
	atomic_store(&vn->st->server_size, vn->ssize);
}

int ag_vn_stat_add(struct ag_vnode *vn, uint64_t dev, uint64_t ino)
{
	uint32_t i, *p;

	if (!dev && !ino)
		return 0;
	i = ag_stat_find(vn->ag->host, dev, ino, vn->id);
	if (i == UINT32_MAX)
		return -ENOSPC;
	for (uint32_t k = 0; k < vn->nstat; k++)
		if (vn->stat[k] == i)
			return 0;
	p = realloc(vn->stat, (vn->nstat + 1) * sizeof(*p));
	if (!p)
		return -ENOMEM;
	vn->stat = p;
	vn->stat[vn->nstat++] = i;
	ag_vn_publish(vn);
	ag_stat_promise(vn->ag->host, i, vn->id, vn->until);
	return 0;
}
