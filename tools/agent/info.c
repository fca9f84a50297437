/* SPDX-License-Identifier: MIT */
/*
 * info.c - what `refault status` shows: for people, and one line a thing for grep.
 *
 * Counters: shows all of them; sums of programs attached, programs gone, and our own.
 * Locks: none.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "freeze.h"
#include "journal.h"
#include "key.h"
#include "peer.h"
#include "pin.h"
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
	fprintf(f, "%s",
		ag_vn_mapped(vn)           ? "mapped"
		: ag_list_empty(&vn->uses) ? "unused"
					   : "open");
	if (vn->gate)
		fprintf(f, " %s %" PRIu64 "ms", vn->frozen ? "frozen" : "gated",
			(now - vn->gate->since) / AG_MS);
	fprintf(f, "\n");
}

/* Pages that are DIRTY or in flight: of the file, and added up by key. */
static uint64_t count_dirty(struct ag_vnode *vn, uint64_t *by_key)
{
	struct ag_scan s = ag_scan(vn, 0, ag_vn_pages(vn));
	uint64_t page, n = 0;

	while (ag_scan_next(&s, &page)) {
		uint64_t w = atomic_load(&vn->word[page]);

		if (!ag_w_twinned(w))
			continue;
		by_key[rf_w_key(w)]++;
		n++;
	}
	return n;
}

static void one_server(FILE *f, struct ag_server *srv, const uint64_t *ndirty)
{
	uint64_t dirty = 0;
	struct ag_vnode *vn;
	char since[32];
	struct tm tm;

	ag_for_each (vn, &srv->vnodes, by_server)
		dirty += ndirty[vn->id] << RF_PAGE_SHIFT;
	if (srv->state == AG_UP) {
		fprintf(f,
			"server: %s connected instance %" PRIx64 " lease %" PRIu64
			"ms dirty %" PRIu64 "\n",
			srv->addr, srv->instance, srv->lease / AG_MS, dirty);
		return;
	}
	fprintf(f, "server: %s down %s", srv->addr,
		srv->why[0]     ? srv->why
		: srv->tried_at ? "it does not answer"
				: "not connected yet");
	if (srv->down_at) {
		localtime_r(&srv->down_at, &tm);
		strftime(since, sizeof(since), "%F %T", &tm);
		fprintf(f, " since %s", since);
	}
	fprintf(f, " dirty %" PRIu64 "\n", dirty);
}

/* The last first. */
static void rejections(FILE *f, const struct ag *ag)
{
	const struct ag_reject *r;
	char at[32];
	struct tm tm;
	time_t t;

	for (unsigned i = 0; (r = ag_rejected(ag, i)); i++) {
		t = (time_t)(r->time / (int64_t)AG_SEC);
		localtime_r(&t, &tm);
		strftime(at, sizeof(at), "%F %T", &tm);
		fprintf(f,
			"rejected: %s off %" PRIu64 " len %" PRIu64
			" pages %u errno %s (%s) key %s at %s\n",
			r->path, r->off, r->len, r->pages, strerrorname_np(r->err) ?: "?",
			strerror(r->err), r->key, at);
	}
}

char *ag_info_status(struct ag *ag, size_t *len)
{
	uint64_t sum, dirty = 0, now = ag_now(), by_key[RF_KEYS] = {0};
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
			dirty += nd[id] = count_dirty(ag->vnode[id], by_key);
	fprintf(f,
		"agent: pid %d, up %" PRIu64 "s, programs %u, cached %" PRIu64 ", dirty %" PRIu64
		", dirty-limit %" PRIu64 ", restarts %u\n",
		(int)getpid(), (now - ag->started) / AG_SEC, ag->nprocs,
		ag->cached << RF_PAGE_SHIFT, dirty << RF_PAGE_SHIFT,
		(uint64_t)(ag->ntwins - 1) << RF_PAGE_SHIFT, ag->life - 1);
	ag_for_each (srv, &ag->servers, link)
		one_server(f, srv, nd);
	for (uint32_t key = 0; key < RF_KEYS; key++)
		if (ag->key[key] || by_key[key])
			fprintf(f, "key: %u %s dirty %" PRIu64 "\n", key, ag_key_name(ag, key),
				by_key[key]);
	for (uint32_t id = 1; id <= ag->vnode_high; id++) {
		vn = ag->vnode[id];
		if (vn)
			one_vnode(f, vn, nd[id]);
	}
	ag_pins_show(ag, f);
	rejections(f, ag);
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
