/* SPDX-License-Identifier: MIT */
/*
 * file.c - files that the server knows, and their DataVersions.
 *
 * A dv is the file's ctime in ns when the server first looks, and max(dv + 1, ctime) after every
 * change; so it survives a restart if nobody touched the file, and a change made meanwhile shows.
 *
 * Changes by others show in two ways.  The engine reports them; and whenever the server looks at a
 * file it compares size, mtime and ctime with what they were last.  Of a file whose reports have
 * come all the time, a new ctime alone is a chmod, rename or link.
 *
 * Files held open are bounded: beyond max_files those go that nobody was promised anything about,
 * least recently used first; if there are none, promises are broken to make some.  A file whose dv
 * its ctime does not say is remembered when it is closed, so that it never gets that dv again.
 * A file without names is let go when the last holder has given it up: its blocks are free then.
 *
 * Counters: srv->nopen.  Locks: none (loop thread).
 */
#include "file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "op.h"

#define EVICT_LOOK 32 /* candidates looked at, at most, for one that is let go */
#define EVICT_BREAK 2 /* of them, so many promises are broken if none can go at once */

static int by_fid(struct srv_file *a, struct srv_file *b)
{
	if (a->vol != b->vol)
		return a->vol < b->vol ? -1 : 1;
	if (a->fid.ino != b->fid.ino)
		return a->fid.ino < b->fid.ino ? -1 : 1;
	return a->fid.gen < b->fid.gen ? -1 : a->fid.gen > b->fid.gen;
}

RB_GENERATE_INTERNAL(srv_files, srv_file, link, by_fid, static __attribute__((unused)))

struct srv_file *srv_file_find(struct srv_volume *vol, const rf_fid *fid)
{
	struct srv_file want = {.vol = vol, .fid = *fid};

	return RB_FIND(srv_files, &vol->srv->files, &want);
}

struct srv_file *srv_file_get(struct srv_volume *vol, const rf_fid *fid)
{
	struct srv_file *file = srv_file_find(vol, fid);

	if (!file) {
		file = srv_alloc(sizeof(*file));
		file->vol = vol;
		file->fid = *fid;
		TAILQ_INIT(&file->queue);
		LIST_INIT(&file->holders);
		TAILQ_INIT(&file->sync_now);
		TAILQ_INIT(&file->sync_next);
		RB_INSERT(srv_files, &vol->srv->files, file);
	}
	file->uses++;
	return file;
}

static void file_close(struct srv_file *file)
{
	struct srv *srv = file->vol->srv;

	TAILQ_REMOVE(&srv->lru, file, lru);
	srv->nopen--;
	file->vol->ops->forget(file->sf);
	file->sf = NULL;
	file->watched = false;
}

static void file_free(struct srv_file *file)
{
	struct srv *srv = file->vol->srv;

	if (srv->scan == file)
		srv->scan = RB_NEXT(srv_files, &srv->files, file);
	RB_REMOVE(srv_files, &srv->files, file);
	free(file);
}

void srv_file_check(struct srv_file *file)
{
	if (file->uses || !LIST_EMPTY(&file->holders))
		return;
	if (file->sf && !file->attr.nlink)
		file_close(file);
	if (!file->sf && (!file->dv || file->dv == (uint64_t)file->attr.ctime))
		file_free(file);
}

void srv_file_put(struct srv_file *file)
{
	struct srv *srv = file->vol->srv;

	file->uses--;
	if (file->sf) {
		TAILQ_REMOVE(&srv->lru, file, lru);
		TAILQ_INSERT_TAIL(&srv->lru, file, lru);
	}
	srv_file_check(file);
}

/* ---- versions ---- */

void srv_file_moved(struct srv_file *file)
{
	uint64_t ctime = (uint64_t)file->attr.ctime;

	file->dv = file->dv + 1 > ctime ? file->dv + 1 : ctime;
}

/* Others changed it; now: what it is like, NULL: not known while a change of ours is under way. */
static void third(struct srv_file *file, const struct store_attr *now, bool content)
{
	struct srv_note note = {.dv_before = file->dv};
	struct srv_holder *h;

	file->seq++;
	if (now)
		file->attr = *now;
	if (content)
		srv_file_moved(file);
	LIST_FOREACH(h, &file->holders, in_file)
	h->readable = 0;
	srv_break(file, &note, NULL, NULL);
}

void srv_file_compare(struct srv_file *file, const struct store_attr *now)
{
	const struct store_attr *was = &file->attr;
	bool same = now->size == was->size && now->mtime == was->mtime;

	if (same && now->ctime == was->ctime) {
		file->attr = *now;
		return;
	}
	third(file, now, !same || !file->watched);
}

int srv_file_refresh(struct srv_file *file)
{
	struct store_attr now;
	int err;

	err = file->vol->ops->status(file->sf, &now);
	if (err)
		return err;
	srv_file_compare(file, &now);
	return 0;
}

void srv_file_third(struct srv_file *file, bool content)
{
	struct store_attr now;
	bool known = file->sf && !file->busy && !file->vol->ops->status(file->sf, &now);

	third(file, known ? &now : NULL, content);
}

void srv_file_changed(void *arg, void *priv, unsigned what)
{
	struct srv_volume *vol = arg;
	struct srv_file *file;

	if (what != STORE_LOST) {
		srv_file_third(priv, what & STORE_CONTENT);
		return;
	}
	srv_log("%s: reports of changes were lost; every promise is broken", vol->where);
	RB_FOREACH(file, srv_files, &vol->srv->files)
	if (file->vol == vol && file->sf)
		srv_file_third(file, true);
}

void srv_file_status(struct srv_file *file, const struct srv_client *client, rf_status *out)
{
	const struct store_attr *a = &file->attr;
	struct srv_holder *h;

	out->fid = file->fid;
	out->dv = file->dv;
	out->size = a->size;
	out->blocks = a->blocks;
	out->mtime = a->mtime;
	out->ctime = a->ctime;
	out->mode = a->mode;
	out->uid = a->uid;
	out->gid = a->gid;
	out->promise_ms = 0;
	LIST_FOREACH(h, &file->holders, in_file)
	if (h->client == client)
		out->promise_ms = srv_promise_ms(h);
}

/* ---- open and closed ---- */

static bool promised(const struct srv_file *file)
{
	const struct srv_holder *h;

	LIST_FOREACH(h, &file->holders, in_file)
	if (srv_holder_busy(h))
		return true;
	return false;
}

/* A promise is held; not just a break unacknowledged. */
static bool breakable(const struct srv_file *file)
{
	const struct srv_holder *h;

	LIST_FOREACH(h, &file->holders, in_file)
	if (h->promise)
		return true;
	return false;
}

/* One too many is open. */
static void evict(struct srv *srv)
{
	struct srv_file *file, *next, *recall[EVICT_BREAK];
	struct srv_note note = {0};
	struct srv_holder *h;
	int look = EVICT_LOOK, n = 0;

	for (file = TAILQ_FIRST(&srv->lru); file && look; file = next, look--) {
		next = TAILQ_NEXT(file, lru);
		if (file->uses)
			continue;
		if (promised(file)) {
			if (n < EVICT_BREAK && breakable(file))
				recall[n++] = file;
			continue;
		}
		while ((h = LIST_FIRST(&file->holders)))
			srv_holder_drop(h);
		file_close(file);
		srv_file_check(file);
		return;
	}
	/* They go when that is acknowledged. */
	while (n--) {
		note.dv_before = recall[n]->dv;
		srv_break(recall[n], &note, NULL, NULL);
	}
}

int srv_file_adopt(struct srv_file *file, struct store_file *sf)
{
	struct srv_volume *vol = file->vol;
	struct srv *srv = vol->srv;
	struct store_attr now;
	int err;

	if (file->sf) {
		vol->ops->forget(sf);
		return 0;
	}
	while (srv->nopen >= srv->max_files) {
		unsigned n = srv->nopen;

		evict(srv);
		if (srv->nopen == n)
			break;
	}
	file->sf = sf;
	srv->nopen++;
	TAILQ_INSERT_TAIL(&srv->lru, file, lru);
	/* Watched first: what status says then is still so, or will be reported. */
	err = vol->watch_fd >= 0 ? vol->ops->watch_file(sf, file) : vol->watch_fd;
	if (err && vol->watch_fd >= 0 && !vol->mark_failed) {
		vol->mark_failed = true;
		srv_log("%s: changes by others to some files are seen by looking once a second "
			"only: %s",
			vol->where, strerror(-err));
	}
	file->watched = false;
	err = vol->ops->status(sf, &now) ? -EIO : err;
	if (err == -EIO) {
		file_close(file);
		return err;
	}
	if (file->dv) {
		srv_file_compare(file, &now);
	} else {
		file->attr = now;
		file->dv = now.ctime ? (uint64_t)now.ctime : 1;
	}
	file->watched = !err;
	srv_tick_start(srv);
	return 0;
}

bool srv_files_scan(struct srv *srv, unsigned max)
{
	struct srv_file *file = srv->scan, *next;

	if (!file)
		file = RB_MIN(srv_files, &srv->files);
	for (; file && max; file = next, max--) {
		next = RB_NEXT(srv_files, &srv->files, file);
		if (file->sf && !file->busy && promised(file))
			srv_file_refresh(file);
		else if (!file->uses)
			srv_file_check(file);
	}
	srv->scan = file;
	return srv->nopen > 0;
}

void srv_files_free(struct srv *srv)
{
	struct srv_file *file, *next;

	for (file = RB_MIN(srv_files, &srv->files); file; file = next) {
		next = RB_NEXT(srv_files, &srv->files, file);
		if (file->sf)
			file_close(file);
		file_free(file);
	}
}
