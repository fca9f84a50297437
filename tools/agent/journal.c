/* SPDX-License-Identifier: MIT */
/*
 * journal.c - the slots in which changes are on their way.
 *
 * A slot is filled, armed (release), sent, and disarmed when the change is over.  A crash before it
 * is armed: nothing was sent, and what was being collected is flushed anew.  A crash after: the
 * next agent takes all armed slots over (op.c), and sends them again under their ids.
 *
 * Free slots are a stack, so that few of them are ever touched; the pages of those that were not
 * used for a second are given back.  One server has AG_JOURNAL_SHARE of them at most; who finds
 * none waits in `starved`, and some of these are looked at whenever a slot is put back.
 *
 * What is read from the slots of the agent before is checked like anything else that a crash may
 * have cut in half.
 *
 * Counters: none.
 * Locks: none; one agent maps it at a time.
 */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "io.h"
#include "server.h"
#include "vnode.h"

#define MAGIC 0x6c616e72756f6a52u /* "Rjournal" */
#define VERSION 3
#define WAKE 4 /* of the starved, for each slot that is put back */

/* What of it need not outlive us. */
struct ag_slots {
	uint32_t free[AG_JOURNAL_SLOTS], nfree;
	uint32_t orphans;
	bool orphan[AG_JOURNAL_SLOTS];  /* armed by the agent before */
	bool touched[AG_JOURNAL_SLOTS]; /* has memory */
	bool recent[AG_JOURNAL_SLOTS];  /* used since the last look */
};

static uint32_t index_of(const struct ag *ag, const struct ag_slot *s)
{
	return (uint32_t)(s - ag->journal->slot);
}

static void local_init(struct ag *ag, bool adopted)
{
	struct ag_slots *l = ag->slots = ag_alloc(sizeof(*l));

	for (uint32_t i = AG_JOURNAL_SLOTS; i--;) {
		l->touched[i] = adopted;
		l->orphan[i] = adopted && atomic_load(&ag->journal->armed[i]);
		if (l->orphan[i])
			l->orphans++;
		else
			l->free[l->nfree++] = i;
	}
}

int ag_journal_make(struct ag *ag)
{
	void *map;

	ag->journal_fd = ag_shared("refault-journal", sizeof(struct ag_journal),
				   F_SEAL_SHRINK | F_SEAL_GROW, &map);
	if (ag->journal_fd < 0)
		return ag->journal_fd;
	ag->journal = map;
	ag->journal->version = VERSION;
	ag->journal->magic = MAGIC;
	local_init(ag, false);
	return 0;
}

int ag_journal_adopt(struct ag *ag, int fd)
{
	struct stat st;
	void *map;

	if (fstat(fd, &st) || st.st_size != sizeof(struct ag_journal))
		return -EPROTO;
	map = mmap(NULL, sizeof(struct ag_journal), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	ag->journal_fd = fd;
	ag->journal = map;
	if (ag->journal->magic != MAGIC || ag->journal->version != VERSION)
		return -EPROTO;
	local_init(ag, true);
	return 0;
}

/* ---- taken and put back ---- */

struct ag_slot *ag_slot_take(struct ag_vnode *vn, bool spare)
{
	struct ag *ag = vn->ag;
	struct ag_slots *l = ag->slots;
	struct ag_server *srv = vn->vol->srv;
	struct ag_slot *s;
	uint32_t i;

	if (l->nfree <= (spare ? 0 : AG_JOURNAL_SPARE) ||
	    (!spare && srv->slots >= AG_JOURNAL_SHARE)) {
		if (ag_list_empty(&vn->starve))
			ag_list_add(&ag->starved, &vn->starve);
		return NULL;
	}
	i = l->free[--l->nfree];
	l->touched[i] = l->recent[i] = true;
	srv->slots++;
	s = &ag->journal->slot[i];
	memset(s, 0, offsetof(struct ag_slot, page));
	s->vnode = vn->id;
	s->fid = vn->fid;
	return s;
}

void ag_slot_arm(struct ag *ag, struct ag_slot *s)
{
	atomic_store_explicit(&ag->journal->armed[index_of(ag, s)], 1, memory_order_release);
}

static void put(struct ag *ag, uint32_t i)
{
	atomic_store_explicit(&ag->journal->armed[i], 0, memory_order_release);
	ag->slots->free[ag->slots->nfree++] = i;
}

static void wake(struct ag *ag, unsigned n)
{
	struct ag_vnode *vn;

	while (n-- && (vn = ag_first(&ag->starved, struct ag_vnode, starve))) {
		ag_list_del(&vn->starve);
		ag_vn_kick(vn);
	}
}

void ag_slot_put(struct ag_vnode *vn, struct ag_slot *s)
{
	struct ag *ag = vn->ag;

	put(ag, index_of(ag, s));
	vn->vol->srv->slots--;
	wake(ag, WAKE);
}

void ag_journal_check(struct ag *ag)
{
	struct ag_slots *l = ag->slots;

	for (uint32_t k = 0; k < l->nfree; k++) {
		uint32_t i = l->free[k];

		if (l->touched[i] && !l->recent[i]) {
			fallocate(
			    ag->journal_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)(offsetof(struct ag_journal, slot) + i * sizeof(struct ag_slot)),
			    sizeof(struct ag_slot));
			l->touched[i] = false;
		}
		l->recent[i] = false;
	}
	wake(ag, UINT32_MAX);
}

/* ---- after a crash ---- */

bool ag_slot_sound(const struct ag_slot *s, uint64_t words)
{
	uint64_t end = 0, sum = 0;

	if (s->npages > AG_JOURNAL_PAGES || s->nranges > RF_MAX_RANGES || s->len > RF_MAX_DATA ||
	    s->key >= RF_KEYS || !s->request)
		return false;
	for (uint32_t i = 0; i < s->npages; i++) {
		const struct ag_slot_page *p = &s->page[i];

		if (p->page >= words || (i && p->page <= s->page[i - 1].page))
			return false;
		if (p->word != AG_SLOT_DONE &&
		    (rf_w_state(p->word) != RF_PG_WRITEBACK || !ag_w_twinned(p->word)))
			return false;
	}
	for (uint32_t i = 0; i < s->nranges; i++) {
		const rf_range *r = &s->range[i];

		if (r->off < end || r->off > AG_SIZE_MAX || r->len > AG_SIZE_MAX)
			return false;
		end = r->off + r->len;
		sum += r->len;
	}
	switch (s->type) {
	case RF_STORE:
		return !s->program && (s->rejected || s->nranges) && sum == s->len;
	case RF_APPEND:
		return s->program && !s->npages && !s->nranges;
	case RF_FALLOC:
		return s->program && !s->npages && s->nranges == 1 && !s->len;
	case RF_REMAP:
		return s->program && !s->npages && s->nranges == 1 && s->src.key < RF_KEYS &&
		       s->src.kind >= RF_REMAP_CLONE && s->src.kind <= RF_REMAP_COPY &&
		       s->src.off <= AG_SIZE_MAX && s->len <= RF_MAX_PATH &&
		       !memchr(s->data, 0, s->len);
	case RF_SET_SIZE:
		return !s->npages && !s->nranges && !s->len && s->size <= AG_SIZE_MAX;
	default:
		return false;
	}
}

static bool before(const struct ag_slot *a, const struct ag_slot *b)
{
	return a->seq != b->seq ? a->seq < b->seq : a->request < b->request;
}

struct ag_slot *ag_slot_adopt(struct ag_vnode *vn)
{
	struct ag *ag = vn->ag;
	struct ag_slots *l = ag->slots;
	struct ag_slot *first = NULL;

	for (uint32_t i = 0; l->orphans && i < AG_JOURNAL_SLOTS; i++) {
		struct ag_slot *s = &ag->journal->slot[i];

		if (l->orphan[i] && s->vnode == vn->id && s->fid.ino == vn->fid.ino &&
		    s->fid.gen == vn->fid.gen && (!first || before(s, first)))
			first = s;
	}
	if (first) {
		l->orphan[index_of(ag, first)] = false;
		l->orphans--;
		vn->vol->srv->slots++;
	}
	return first;
}

void ag_slots_forget(struct ag *ag)
{
	struct ag_slots *l = ag->slots;

	for (uint32_t i = 0; l->orphans && i < AG_JOURNAL_SLOTS; i++) {
		if (!l->orphan[i])
			continue;
		ag_log("after the crash: a change on its way belongs to no file that is held");
		l->orphan[i] = false;
		l->orphans--;
		put(ag, i);
	}
}

/* ---- rejections ---- */

const struct ag_reject *ag_rejected(const struct ag *ag, unsigned i)
{
	const struct ag_journal *j = ag->journal;

	return i < AG_REJECTS && i < j->nrejects ? &j->reject[(j->nrejects - 1 - i) % AG_REJECTS]
						 : NULL;
}
