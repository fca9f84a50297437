/* SPDX-License-Identifier: MIT */
/*
 * info.c - what `refault status` shows: for people, and one line a thing for grep.
 *
 * Counters: shows all of them; sums of programs attached, programs gone, and our own.
 * Locks: none.
 */
#include <inttypes.h>
#include <stdio.h>

#include "peer.h"
#include "proc.h"
#include "server.h"
#include "vnode.h"

static void one_vnode(FILE *f, struct ag_vnode *vn, uint64_t ndirty)
{
	uint64_t now = ag_now();

	fprintf(f,
		"vnode: %u %s %s/%s dv %" PRIu64 " size %" PRIu64 " pages %" PRIu64
		" cached %" PRIu64 " dirty %" PRIu64 " ",
		vn->id, vn->path, vn->vol->srv->addr, vn->vol->name, vn->dv, vn->size,
		ag_vn_pages(vn), vn->ncached, ndirty);
	if (ag_vn_valid(vn))
		fprintf(f, "promise %" PRIu64 "ms ", (vn->until - now) / AG_MS);
	else
		fprintf(f, "promise none ");
	fprintf(f, "%s\n",
		ag_vn_mapped(vn)           ? "mapped"
		: ag_list_empty(&vn->uses) ? "unused"
					   : "open");
}

char *ag_info_status(struct ag *ag, size_t *len)
{
	uint64_t sum, dirty = 0, now = ag_now();
	struct ag_server *srv;
	struct ag_vnode *vn;
	struct ag_proc *p;
	uint64_t *nd;
	char *buf = NULL;
	FILE *f = open_memstream(&buf, len);

	if (!f)
		return NULL;
	nd = ag_alloc((ag->vnode_high + 1) * sizeof(*nd));
	for (uint32_t id = 1; id <= ag->vnode_high; id++)
		if (ag->vnode[id])
			dirty += nd[id] = ag_vn_ndirty(ag->vnode[id]);
	fprintf(f,
		"agent: pid %d, up %" PRIu64 "s, programs %u, cached %" PRIu64 ", dirty %" PRIu64
		", restarts %u\n",
		(int)getpid(), (now - ag->started) / AG_SEC, ag->nprocs,
		ag->cached << RF_PAGE_SHIFT, dirty << RF_PAGE_SHIFT, ag->life - 1);
	ag_for_each (srv, &ag->servers, link) {
		if (srv->state == AG_UP)
			fprintf(f,
				"server: %s connected instance %" PRIx64 " lease %" PRIu64 "ms\n",
				srv->addr, srv->instance, srv->lease / AG_MS);
		else
			fprintf(f, "server: %s down %s\n", srv->addr,
				srv->why[0] ? srv->why : "not connected yet");
	}
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		vn = ag->vnode[id];
		if (vn)
			one_vnode(f, vn, nd[id]);
	}
	for (unsigned i = 0; i < RF_REASONS; i++) {
		sum = ag->count[i] + ag->gone[i];
		ag_for_each (p, &ag->procs, link)
			sum += atomic_load_explicit(&p->mem->count[i], memory_order_relaxed);
		fprintf(f, "counter: %s %" PRIu64 "\n", rf_reason_name(i), sum);
	}
	free(nd);
	if (fclose(f)) {
		free(buf);
		return NULL;
	}
	return buf;
}
