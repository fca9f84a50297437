/* SPDX-License-Identifier: MIT */
/*
 * op.c - requests, from frame to answer.
 *
 *	LOOKUP			look the name up (here, else in a pool thread), then as STATUS
 *	all others		find the file; if this identity has not found it by a name yet, look the
 *				name up first: rights on the way to a file count too
 *	STATUS FETCH SEEK	answer; a read that has to wait for a disk goes to a pool thread
 *	STORE APPEND SET_SIZE FALLOC REMAP
 *				change; new dv; breaks to the others; APPLIED; RELEASED when they answered
 *	SYNC			fdatasync in a pool thread; RELEASED when breaks are answered
 *
 * Rights are those that the identity has when the request is taken up, not when it came: it may
 * have queued meanwhile.
 *
 * Order.  While a pool thread changes a file (file->busy) all other requests for it queue, so changes
 * happen in the order in which they came, and nobody sees half of one.  Reads in pool threads do not
 * hold anybody up: file->seq moves before and after every change, and a read that finds it moved is
 * thrown away and done again, after some times with the file to itself.
 *
 * Two files.  A REMAP stands in the queue of the file that it changes, and an op of its own (a
 * `source`) in that of the file that it reads; each finds its file with the identity that is to
 * be asked for it.  Whichever comes up first holds its file (busy) until the other has, and both do
 * until the engine is through.  Both are put into their queues in one go, so that of two
 * REMAPs one is before the other wherever they meet: they cannot wait for each other, and what was
 * sent before or behind a REMAP, about either file, stays so.  Whoever is held waits for ops
 * that came before only, all of which end by themselves.  If both files are one, the source stands
 * there for both.
 *
 * A REMAP that is repeated after a restart and not remembered was not done (or undone, or changed no
 * byte: dedupe), and nobody was told of it: done now, it is as if it had come now.
 *
 * The promise that a FETCH asks for is recorded before its bytes are read and its dv is taken when it
 * is answered with seq unmoved, so a change in between breaks it.
 *
 * Locks: none (loop thread); *_work functions run in pool threads and touch their op only.
 */
#include "op.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INLINE_STORE 65536u /* larger ones take too long for the loop thread */
#define FETCH_HDR 96u       /* frame header and rf_msg of FETCH_R: nothing in it varies in length */
#define TRIES 3
#define MAX_WAITS 16384u /* changes of one client that wait for others' acknowledgements */

static void op_enqueue(struct srv_op *op);
static void op_exec(struct srv_op *op);
static int rights(struct srv_op *op);

/* ---- one request ---- */

static bool changes(rf_type type)
{
	return type == RF_STORE || type == RF_APPEND || type == RF_SET_SIZE || type == RF_FALLOC ||
	       type == RF_REMAP;
}

static uint64_t request_id(const struct rf_msg *m)
{
	switch (m->body.type) {
	case RF_STORE:
		return m->body.rf_body_u.store.request;
	case RF_APPEND:
		return m->body.rf_body_u.append.request;
	case RF_SET_SIZE:
		return m->body.rf_body_u.set_size.request;
	case RF_FALLOC:
		return m->body.rf_body_u.falloc.request;
	case RF_REMAP:
		return m->body.rf_body_u.remap.request;
	default:
		return 0;
	}
}

static bool durable(const struct rf_msg *m)
{
	return (m->body.type == RF_STORE && m->body.rf_body_u.store.durable) ||
	       (m->body.type == RF_APPEND && m->body.rf_body_u.append.durable) ||
	       (m->body.type == RF_SYNC && m->body.rf_body_u.sync.durable);
}

/* The file a request is about; NULL: LOOKUP. */
static rf_file *target(struct rf_msg *m)
{
	switch (m->body.type) {
	case RF_STATUS:
		return &m->body.rf_body_u.status.file;
	case RF_FETCH:
		return &m->body.rf_body_u.fetch.file;
	case RF_STORE:
		return &m->body.rf_body_u.store.file;
	case RF_APPEND:
		return &m->body.rf_body_u.append.file;
	case RF_SET_SIZE:
		return &m->body.rf_body_u.set_size.file;
	case RF_FALLOC:
		return &m->body.rf_body_u.falloc.file;
	case RF_REMAP:
		return &m->body.rf_body_u.remap.file;
	case RF_SEEK:
		return &m->body.rf_body_u.seek.file;
	case RF_SYNC:
		return &m->body.rf_body_u.sync.file;
	default:
		return NULL;
	}
}

static uint32_t handle(struct rf_msg *m)
{
	const rf_file *file = target(m);

	return file ? file->key : m->body.rf_body_u.lookup.key;
}

static struct srv_op *op_make(struct srv_conn *conn, const struct rf_msg *msg,
			      struct srv_volume *vol)
{
	struct srv_op *op = srv_alloc(sizeof(*op));

	op->work.data = op;
	op->client = conn->client;
	op->vol = vol;
	op->msg = *msg;
	op->ident = srv_ident_of(conn, handle(&op->msg));
	op->client->nops++;
	return op;
}

static struct srv_op *op_new(struct srv_conn *conn, struct rf_msg *msg, void *payload, size_t len,
			     struct srv_volume *vol)
{
	struct srv_op *op = op_make(conn, msg, vol);

	op->conn = conn;
	op->xid = msg->xid;
	op->payload = payload;
	op->len = len;
	TAILQ_INSERT_TAIL(&conn->ops, op, in_conn);
	conn->pending++;
	if (changes(msg->body.type))
		TAILQ_INSERT_TAIL(&op->client->changes, op, in_client);
	return op;
}

static void uncharge(struct srv_op *op)
{
	if (!op->conn)
		return;
	op->conn->pending--;
	op->conn->pending_bytes -= op->charged;
	TAILQ_REMOVE(&op->conn->ops, op, in_conn);
	if (op->conn->paused)
		srv_kick(op->conn);
	op->conn = NULL;
}

static void charge(struct srv_op *op, size_t n)
{
	op->charged += n;
	if (op->conn)
		op->conn->pending_bytes += n;
}

static void source_release(struct srv_op *op);

static void op_free(struct srv_op *op)
{
	struct srv_op *source = op->source ? NULL : op->other;
	struct srv_file *file = op->file;

	uncharge(op);
	if (changes(op->msg.body.type))
		TAILQ_REMOVE(&op->client->changes, op, in_client);
	op->client->nops--;
	free(op->owned);
	free(op->out);
	store_cred_put(op->cred);
	srv_ident_put(op->ident);
	rf_wire_free(&op->msg);
	free(op);
	if (source)
		source_release(source);
	if (file)
		srv_file_put(file);
}

static void source_fail(struct srv_op *op, int err);

static void op_fail(struct srv_op *op, int err)
{
	static const char *const name[] = {
	    [RF_LOOKUP] = "lookup", [RF_STATUS] = "status", [RF_FETCH] = "fetch",
	    [RF_STORE] = "store",   [RF_APPEND] = "append", [RF_SET_SIZE] = "set size",
	    [RF_FALLOC] = "falloc", [RF_SYNC] = "sync",     [RF_REMAP] = "remap",
	    [RF_SEEK] = "seek",
	};
	const rf_file *file = target(&op->msg);
	char text[RF_MAX_NAME + 1];

	if (op->source) {
		source_fail(op, err);
		return;
	}
	if (op->conn) {
		snprintf(text, sizeof(text), "%s %.160s: %s", name[op->msg.body.type],
			 file ? file->path : op->msg.body.rf_body_u.lookup.path, strerror(-err));
		srv_error(op->conn, op->xid, err, text);
	}
	op_free(op);
}

/* The receive buffer will not be there any more. */
static int op_own(struct srv_op *op)
{
	if (op->owned || !op->len)
		return 0;
	op->owned = op->conn ? rf_rx_take(&op->conn->rx, op->len) : NULL;
	if (!op->owned) {
		op->owned = malloc(op->len);
		if (!op->owned)
			return -ENOMEM;
		memcpy(op->owned, op->payload, op->len);
		op->payload = op->owned;
	}
	charge(op, op->len);
	return 0;
}

static void submit(struct srv_op *op, uv_work_cb work, uv_after_work_cb done)
{
	/* Fails only for missing arguments. */
	uv_queue_work(&op->vol->srv->loop, &op->work, work, done);
}

struct srv_op *srv_op_find(struct srv_client *client, uint64_t request)
{
	struct srv_op *op;

	TAILQ_FOREACH(op, &client->changes, in_client)
	if (!op->replay && request_id(&op->msg) == request)
		return op;
	return NULL;
}

void srv_op_next(struct srv_file *file)
{
	struct srv_op *op;

	file->uses++;
	while (!file->busy && (op = TAILQ_FIRST(&file->queue))) {
		TAILQ_REMOVE(&file->queue, op, in_file);
		op_exec(op);
	}
	srv_file_put(file);
}

/* ---- a REMAP and its source ---- */

/* The REMAP is over. */
static void source_release(struct srv_op *op)
{
	struct srv_file *file = op->file;

	op->other = NULL;
	if (!op->held)
		return; /* it is freed when it comes up */
	file->uses++;
	if (file->busy == op)
		file->busy = NULL;
	op_free(op);
	srv_op_next(file);
	srv_file_put(file);
}

/* The REMAP is held: it goes on. */
static void remap_resume(struct srv_op *op)
{
	struct srv_file *file = op->file;

	file->uses++;
	file->busy = NULL;
	op->held = false;
	op_exec(op);
	srv_op_next(file);
	srv_file_put(file);
}

/* The source comes up, its file is found. */
static void exec_source(struct srv_op *op)
{
	struct srv_op *remap = op->other;

	if (!remap) {
		op_free(op);
		return;
	}
	op->held = true;
	if (op->file == remap->file) {
		op_exec(remap);
		return;
	}
	op->file->busy = op;
	if (remap->held)
		remap_resume(remap);
}

static void source_fail(struct srv_op *op, int err)
{
	struct srv_op *remap = op->other;
	bool same = remap && remap->file == op->file;

	if (remap) {
		remap->other = NULL;
		remap->src_err = err;
	}
	op_free(op);
	if (same)
		op_exec(remap);
	else if (remap && remap->held)
		remap_resume(remap);
}

/* The REMAP comes up: whether it is to go on now. */
static bool remap_ready(struct srv_op *op)
{
	int err = op->other ? 0 : op->src_err;

	if (op->other && !op->other->held) {
		op->held = true;
		op->file->busy = op;
		return false;
	}
	/* It may have waited for the other file. */
	if (op->other)
		err = rights(op->other);
	if (err)
		op_fail(op, err);
	return !err;
}

/* ---- rights ---- */

/* What the identity may do now. */
static int rights(struct srv_op *op)
{
	store_cred_put(op->cred);
	return srv_ident_cred(op->ident, &op->cred);
}

/* The identity could read the file. */
static void could_read(struct srv_op *op)
{
	struct srv_holder *h = srv_holder_find(op->file, op->client);

	if (h && op->ident->expires > h->readable)
		h->readable = op->ident->expires;
}

/* Its bit in srv_holder.found; 0: the handle means somebody else by now. */
static uint64_t found_bit(const struct srv_op *op)
{
	const struct srv_ident *id = op->ident;

	return id && id->client->ident[id->handle] == id ? (uint64_t)1 << id->handle : 0;
}

/*
 * What is applied may be made durable whoever asks; what was applied is so whatever rights are left:
 * the server looks with its own.
 */
static bool no_rights(const struct srv_op *op)
{
	return op->replay || op->msg.body.type == RF_SYNC;
}

/* ---- names ---- */

static int found(struct srv_op *op)
{
	int err;

	err = srv_file_adopt(op->file, op->sf);
	op->sf = NULL;
	if (err || no_rights(op))
		return err;
	srv_holder_get(op->file, op->client)->found |= found_bit(op);
	op->found = true;
	return 0;
}

static void lookup_finish(struct srv_op *op)
{
	int err = op->err;

	if (!err) {
		op->file = srv_file_get(op->vol, &op->attr.fid);
		err = found(op);
	}
	if (err) {
		op_fail(op, err);
		return;
	}
	if (op->msg.body.rf_body_u.lookup.flags & RF_LK_READ)
		could_read(op);
	op_enqueue(op);
}

static void lookup_work(uv_work_t *work)
{
	struct srv_op *op = work->data;
	rf_lookup *l = &op->msg.body.rf_body_u.lookup;

	op->err = op->vol->ops->lookup(op->vol->vol, op->cred, l->path, l->flags, l->mode, false,
				       &op->sf, &op->attr);
}

static void lookup_done(uv_work_t *work, int status)
{
	struct srv_op *op = work->data;
	struct srv *srv = op->vol->srv;

	(void)status;
	lookup_finish(op);
	srv_flush(srv);
}

static void op_lookup(struct srv_op *op)
{
	rf_lookup *l = &op->msg.body.rf_body_u.lookup;
	int err = rights(op);

	if (err) {
		op_fail(op, err);
		return;
	}
	if (l->flags & ~(u_int)(RF_LK_READ | RF_LK_WRITE | RF_LK_CREATE | RF_LK_EXCL)) {
		op_fail(op, -EINVAL);
		return;
	}
	op->err = op->vol->ops->lookup(op->vol->vol, op->cred, l->path, l->flags, l->mode, true,
				       &op->sf, &op->attr);
	if (op->err == -EAGAIN)
		submit(op, lookup_work, lookup_done);
	else
		lookup_finish(op);
}

/* The file of a request is found by its id if it is known, by its last known name else. */
static int resolved(struct srv_op *op)
{
	int err = op->err;

	if (err == -ENOENT || err == -ENOTDIR || err == -EISDIR)
		return -ESTALE;
	if (err)
		return err;
	if (op->attr.fid.ino != op->file->fid.ino || op->attr.fid.gen != op->file->fid.gen) {
		op->vol->ops->forget(op->sf);
		op->sf = NULL;
		return -ESTALE;
	}
	return found(op);
}

static void resolve_work(uv_work_t *work)
{
	struct srv_op *op = work->data;

	op->err = op->vol->ops->lookup(op->vol->vol, op->cred, target(&op->msg)->path, 0, 0, false,
				       &op->sf, &op->attr);
}

static void resolve_done(uv_work_t *work, int status)
{
	struct srv_op *op = work->data;
	struct srv *srv = op->vol->srv;
	struct srv_file *file = op->file;
	int err;

	(void)status;
	file->uses++;
	file->busy = NULL;
	err = resolved(op);
	if (err)
		op_fail(op, err);
	else
		op_exec(op);
	srv_op_next(file);
	srv_file_put(file);
	srv_flush(srv);
}

/* 1: the file is there and may be known to whom this is for; 0: a pool thread looks, the op comes back. */
static int resolve(struct srv_op *op)
{
	const struct srv_holder *h = srv_holder_find(op->file, op->client);
	bool held = h && op->file->sf;
	int err;

	if (no_rights(op) && op->file->sf)
		return 1;
	err = no_rights(op) ? 0 : rights(op);
	if (err)
		return err;
	if (held && (op->found || h->found & found_bit(op)))
		return 1;
	if (op->msg.body.type == RF_LOOKUP)
		return -ESTALE; /* given up before it was found */
	op->err = op->vol->ops->lookup(op->vol->vol, op->cred, target(&op->msg)->path, 0, 0, true,
				       &op->sf, &op->attr);
	if (op->err == -EAGAIN) {
		err = op_own(op);
		if (err)
			return err;
		op->file->busy = op;
		submit(op, resolve_work, resolve_done);
		return 0;
	}
	err = resolved(op);
	return err ? err : 1;
}

/* ---- reading ---- */

static void exec_status(struct srv_op *op, bool promise)
{
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_STATUS_R};
	int err;

	err = srv_file_refresh(op->file);
	if (err || !op->conn) { /* the break of a change by others may have met its end */
		op_fail(op, err);
		return;
	}
	if (promise)
		srv_promise(srv_holder_find(op->file, op->client));
	srv_file_status(op->file, op->client, &msg.body.rf_body_u.status_r);
	srv_send(op->conn, &msg, NULL, 0);
	op_free(op);
}

static void fetch_reply(struct srv_op *op)
{
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_FETCH_R};
	rf_fetch_r *r = &msg.body.rf_body_u.fetch_r;

	could_read(op);
	srv_file_status(op->file, op->client, &r->status);
	r->off = op->msg.body.rf_body_u.fetch.range.off;
	if (rf_wire_encode(op->out->data, FETCH_HDR, &msg, (size_t)op->got) != FETCH_HDR) {
		op_fail(op, -EMSGSIZE);
		return;
	}
	op->out->len = FETCH_HDR + (size_t)op->got;
	srv_send_out(op->conn, op->out);
	op->out = NULL;
	op_free(op);
}

static void seek_reply(struct srv_op *op)
{
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_SEEK_R};

	msg.body.rf_body_u.seek_r.off = (uint64_t)op->got;
	srv_send(op->conn, &msg, NULL, 0);
	op_free(op);
}

static ssize_t read_call(struct srv_op *op, bool nowait)
{
	const struct store_ops *ops = op->vol->ops;
	const rf_seek *s = &op->msg.body.rf_body_u.seek;
	struct store_file *sf = op->file->sf;

	if (op->msg.body.type == RF_SEEK)
		return ops->seek(sf, op->cred, s->off, (int)s->whence, nowait);
	return ops->read(sf, op->cred, op->out->data + FETCH_HDR, op->want,
			 op->msg.body.rf_body_u.fetch.range.off, nowait);
}

/* What was read is of one moment. */
static void read_reply(struct srv_op *op)
{
	if (op->got < 0)
		op_fail(op, (int)op->got);
	else if (op->msg.body.type == RF_SEEK)
		seek_reply(op);
	else
		fetch_reply(op);
}

static void read_work(uv_work_t *work)
{
	struct srv_op *op = work->data;

	op->got = read_call(op, false);
}

static void read_done(uv_work_t *work, int status)
{
	struct srv_op *op = work->data;
	struct srv *srv = op->vol->srv;
	struct srv_file *file = op->file;
	bool alone = file->busy == op;

	(void)status;
	file->uses++;
	if (alone)
		file->busy = NULL;
	if (!op->conn) {
		op_free(op);
	} else if (op->got < 0 || file->seq == op->seq) {
		read_reply(op);
	} else {
		op->tries++;
		free(op->out);
		op->out = NULL;
		if (alone)
			op_exec(op);
		else
			op_enqueue(op);
	}
	srv_op_next(file);
	srv_file_put(file);
	srv_flush(srv);
}

/* It was tried without waiting. */
static void read_or_wait(struct srv_op *op)
{
	if (op->got != -EAGAIN) {
		read_reply(op);
		return;
	}
	charge(op, op->want);
	if (op->tries >= TRIES)
		op->file->busy = op;
	submit(op, read_work, read_done);
}

static void exec_seek(struct srv_op *op)
{
	op->seq = op->file->seq;
	op->got = read_call(op, true);
	read_or_wait(op);
}

static void exec_fetch(struct srv_op *op)
{
	const rf_fetch *f = &op->msg.body.rf_body_u.fetch;
	struct srv_file *file = op->file;
	uint64_t off = f->range.off, size;
	int err;

	if (f->range.len > RF_MAX_DATA || off > INT64_MAX || f->range.len > INT64_MAX - off) {
		op_fail(op, -EINVAL);
		return;
	}
	err = srv_file_refresh(file);
	if (err || !op->conn) {
		op_fail(op, err);
		return;
	}
	size = file->attr.size;
	op->want = off >= size ? 0 : f->range.len < size - off ? f->range.len : size - off;
	op->out = srv_out_new(FETCH_HDR + op->want);
	if (!op->out) {
		op_fail(op, -ENOMEM);
		return;
	}
	op->seq = file->seq;
	op->got = read_call(op, true);
	if (f->promise && (op->got >= 0 || op->got == -EAGAIN))
		srv_promise(srv_holder_find(file, op->client));
	read_or_wait(op);
}

/* ---- durability ---- */

struct sync_job {
	uv_work_t work;
	struct srv_file *file;
	int err;
};

static void sync_work(uv_work_t *work)
{
	struct sync_job *job = work->data;

	job->err = job->file->vol->ops->sync(job->file->sf);
}

static void sync_start(struct srv_file *file);

static void sync_done(uv_work_t *work, int status)
{
	struct sync_job *job = work->data;
	struct srv_file *file = job->file;
	struct srv *srv = file->vol->srv;
	struct srv_wait *w;

	(void)status;
	while ((w = TAILQ_FIRST(&file->sync_now))) {
		TAILQ_REMOVE(&file->sync_now, w, sync_link);
		w->syncing = false;
		w->err = job->err;
		srv_wait_check(w);
	}
	file->syncing = false;
	if (!TAILQ_EMPTY(&file->sync_next))
		sync_start(file);
	free(job);
	srv_file_put(file);
	srv_flush(srv);
}

static void sync_start(struct srv_file *file)
{
	struct sync_job *job = srv_alloc(sizeof(*job));

	TAILQ_CONCAT(&file->sync_now, &file->sync_next, sync_link);
	job->work.data = job;
	job->file = file;
	file->uses++;
	file->syncing = true;
	uv_queue_work(&file->vol->srv->loop, &job->work, sync_work, sync_done);
}

static void sync_for(struct srv_file *file, struct srv_wait *w)
{
	if (file->vol->ops->never_durable(file->vol->vol))
		return;
	w->syncing = true;
	TAILQ_INSERT_TAIL(&file->sync_next, w, sync_link);
	if (!file->syncing)
		sync_start(file);
}

static void exec_sync(struct srv_op *op)
{
	struct srv_wait *w = srv_wait_new(op->client, op->conn, op->xid);

	srv_breaks_wait(op->file, w);
	if (durable(&op->msg))
		sync_for(op->file, w);
	srv_wait_check(w);
	op_free(op);
}

/* A change that was applied before. */
static void exec_replay(struct srv_op *op)
{
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_APPLIED};
	rf_applied *applied = &msg.body.rf_body_u.applied;
	int err;

	if (op->untold && op->conn) {
		err = srv_file_refresh(op->file);
		if (err) {
			op_fail(op, err);
			return;
		}
		applied->off = op->change.off;
		srv_file_status(op->file, op->client, &applied->status);
		if (op->conn)
			srv_send(op->conn, &msg, NULL, 0);
	}
	exec_sync(op);
}

/* ---- changing ---- */

/* What a break needs to say about a change; ranges and data are to be freed. */
struct what_changed {
	struct srv_note note;
	rf_range *ranges;
	unsigned char *data;
};

static void add_range(struct what_changed *w, uint64_t off, uint64_t len, const unsigned char *data,
		      size_t *at)
{
	w->ranges[w->note.nranges].off = off;
	w->ranges[w->note.nranges++].len = len;
	if (!w->data)
		return;
	if (data)
		memcpy(w->data + *at, data, len);
	*at += len; /* zeros are there already */
}

/*
 * A store that extended the file also made zeros between the old end and what it wrote.  Ranges
 * that are not in order, or too many, become the one range that holds them all, without bytes.
 */
static void store_ranges(struct what_changed *w, struct store_change *ch, uint64_t before,
			 uint64_t after)
{
	uint64_t end = before, total = ch->len, hole = after > before ? before : UINT64_MAX;
	uint64_t lo = UINT64_MAX, hi = 0, last = 0;
	size_t i, at = 0, pos = 0;
	bool sorted = true;

	for (i = 0; i < ch->nranges; i++) {
		const rf_range *r = &ch->ranges[i];

		sorted = sorted && (!i || r->off >= last);
		last = r->off + r->len;
		lo = r->off < lo ? r->off : lo;
		hi = last > hi ? last : hi;
		if (r->off > end)
			total += r->off - end;
		if (last > end)
			end = last;
	}
	if (hole < lo)
		lo = hole;
	if (after > hi)
		hi = after;
	w->ranges = srv_alloc((2 * ch->nranges + 1) * sizeof(*w->ranges));
	w->note.ranges = w->ranges;
	if (!sorted || ch->nranges >= RF_MAX_RANGES / 2) {
		add_range(w, lo, hi - lo, NULL, &at);
		return;
	}
	if (total <= RF_PUSH_MAX)
		w->data = srv_alloc(RF_PUSH_MAX);
	for (i = 0, end = before; i < ch->nranges; i++) {
		const rf_range *r = &ch->ranges[i];

		if (r->off > end)
			add_range(w, end, r->off - end, NULL, &at);
		add_range(w, r->off, r->len, ch->data + pos, &at);
		pos += r->len;
		if (r->off + r->len > end)
			end = r->off + r->len;
	}
	w->note.data = w->data;
	w->note.len = w->data ? at : 0;
}

static void one_range(struct what_changed *w, uint64_t off, uint64_t len, const void *data,
		      bool zeros)
{
	if (!len)
		return;
	w->ranges = srv_alloc(sizeof(*w->ranges));
	w->ranges->off = off;
	w->ranges->len = len;
	w->note.ranges = w->ranges;
	w->note.nranges = 1;
	if (len > RF_PUSH_MAX || (!data && !zeros))
		return;
	if (!data)
		data = w->data = srv_alloc(RF_PUSH_MAX);
	w->note.data = data;
	w->note.len = len;
}

/* What fallocate changed; the size that it should have left. */
static uint64_t falloc_range(struct what_changed *w, const struct store_change *ch)
{
	uint64_t off = ch->ranges->off, end = off + ch->ranges->len;
	uint64_t size = ch->before.size;

	if (ch->mode == FALLOC_FL_COLLAPSE_RANGE) {
		one_range(w, off, size - off, NULL, false);
		return size - ch->ranges->len;
	}
	if (ch->mode == FALLOC_FL_INSERT_RANGE) {
		size += ch->ranges->len;
		one_range(w, off, size - off, NULL, false);
		return size;
	}
	if (ch->mode & FALLOC_FL_KEEP_SIZE && end > size)
		end = size;
	/* Allocated or made its own: as it was, but what is new. */
	if (off > size || !(ch->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
		off = size;
	if (end > off)
		one_range(w, off, end - off, NULL, true);
	return end > size ? end : size;
}

/* The same for a clone or a copy. */
static uint64_t remap_range(struct what_changed *w, const struct store_change *ch)
{
	uint64_t off = ch->ranges->off, end = off + ch->off, size = ch->before.size;

	if (!ch->off)
		return size;
	if (off > size)
		off = size;
	one_range(w, off, end - off, NULL, false);
	return end > size ? end : size;
}

/* Fill in w; false: nothing changed. */
static bool describe(struct what_changed *w, const struct srv_op *op, struct store_change *ch)
{
	uint64_t before = ch->before.size, after = ch->after.size, expect = before;
	size_t i;

	memset(w, 0, sizeof(*w));
	w->note.known = true;
	switch (op->msg.body.type) {
	case RF_STORE:
		for (i = 0; i < ch->nranges; i++)
			if (ch->ranges[i].off + ch->ranges[i].len > expect)
				expect = ch->ranges[i].off + ch->ranges[i].len;
		if (ch->nranges)
			store_ranges(w, ch, before, expect);
		break;
	case RF_APPEND:
		expect = before + ch->len;
		one_range(w, before, ch->len, ch->data, false);
		break;
	case RF_SET_SIZE:
		if (!ch->grow_only || ch->size > before)
			expect = ch->size;
		if (expect < before)
			one_range(w, expect, before - expect, NULL, false);
		else
			one_range(w, before, expect - before, NULL, true);
		break;
	case RF_REMAP:
		if (ch->kind != RF_REMAP_DEDUPE)
			expect = remap_range(w, ch);
		break;
	default:
		expect = falloc_range(w, ch);
		break;
	}
	/* Somebody else changed it at the same time. */
	if (after != expect || (op->msg.body.type == RF_APPEND && ch->len && ch->off != before)) {
		w->note.known = false;
		w->note.data = NULL;
		w->note.len = 0;
		return true;
	}
	return w->note.nranges > 0;
}

static void change_applied(struct srv_op *op)
{
	struct store_change *ch = &op->change;
	struct srv_file *file = op->file;
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_APPLIED};
	rf_applied *applied = &msg.body.rf_body_u.applied;
	struct what_changed what;
	struct srv_wait *w;
	bool changed;

	w = srv_wait_new(op->client, op->conn, op->xid);
	w->change = true;
	w->request = request_id(&op->msg);
	applied->dv_before = file->dv;
	if (op->msg.body.type == RF_APPEND || op->msg.body.type == RF_REMAP)
		applied->off = ch->off;
	file->attr = ch->after;
	changed = describe(&what, op, ch);
	if (changed)
		srv_file_moved(file);
	srv_file_status(file, op->client, &applied->status);
	/* Before anybody is told: what was seen is not undone after a crash. */
	srv_memo_add(op->client, w->request, applied);
	if (changed) {
		what.note.dv_before = applied->dv_before;
		/*
		 * The changer steps over its own change by APPLIED.  It cannot if it is not known
		 * what changed, or if its connection was lost: on a new one it may have a new
		 * promise.
		 */
		srv_break(file, &what.note, what.note.known && op->conn ? op->client : NULL, w);
		srv_file_status(file, op->client, &applied->status);
	}
	free(what.ranges);
	free(what.data);
	if (op->conn && w->left)
		srv_send_lazy(op->conn, &msg);
	else if (op->conn)
		srv_send(op->conn, &msg, NULL, 0);
	if (durable(&op->msg))
		sync_for(file, w);
	srv_wait_check(w);
	op_free(op);
}

/* The engine is through with it. */
static void change_finish(struct srv_op *op)
{
	struct store_change *ch = &op->change;
	struct store_undo *undo = ch->undo;
	struct srv_file *file = op->file;
	struct srv *srv = op->vol->srv;

	file->seq++;
	if (ch->touched)
		srv_file_compare(file, &ch->before);
	if (!op->err) {
		change_applied(op); /* remembers it */
		srv_undo_put(srv, undo);
		return;
	}
	srv_undo_put(srv, undo);
	if (ch->touched)
		file->attr = ch->after;
	if (ch->torn) {
		srv_log("%s: a failed change (%s) could not be undone", op->vol->where,
			strerror(-op->err));
		srv_file_third(file, true);
	}
	op_fail(op, op->err);
}

static int change_call(struct srv_op *op, bool nowait)
{
	const struct store_ops *ops = op->vol->ops;
	struct store_change *ch = &op->change;

	switch (op->msg.body.type) {
	case RF_STORE:
		return ops->store(op->file->sf, op->cred, ch, nowait);
	case RF_APPEND:
		return ops->append(op->file->sf, op->cred, ch, nowait);
	case RF_SET_SIZE:
		return ops->resize(op->file->sf, op->cred, ch, nowait);
	case RF_REMAP:
		if (!ops->remap)
			return -EOPNOTSUPP;
		return ops->remap(op->file->sf, op->cred, op->other->file->sf, op->other->cred, ch,
				  nowait);
	default:
		return ops->fallocate(op->file->sf, op->cred, ch, nowait);
	}
}

static void change_work(uv_work_t *work)
{
	struct srv_op *op = work->data;

	op->err = change_call(op, false);
}

static void change_done(uv_work_t *work, int status)
{
	struct srv_op *op = work->data;
	struct srv *srv = op->vol->srv;
	struct srv_file *file = op->file;

	(void)status;
	file->uses++;
	file->busy = NULL;
	change_finish(op);
	srv_op_next(file);
	srv_file_put(file);
	srv_op_undo(srv);
	srv_flush(srv);
}

static void change_fill(struct srv_op *op)
{
	struct store_change *ch = &op->change;
	struct rf_msg *m = &op->msg;

	memset(ch, 0, sizeof(*ch));
	ch->nameless = target(m)->nameless;
	ch->data = op->payload;
	ch->len = op->len;
	switch (m->body.type) {
	case RF_STORE:
		ch->ranges = m->body.rf_body_u.store.ranges.ranges_val;
		ch->nranges = m->body.rf_body_u.store.ranges.ranges_len;
		ch->may_extend = m->body.rf_body_u.store.may_extend;
		ch->soon = m->body.rf_body_u.store.soon;
		break;
	case RF_SET_SIZE:
		ch->size = m->body.rf_body_u.set_size.size;
		ch->grow_only = m->body.rf_body_u.set_size.grow_only;
		break;
	case RF_FALLOC:
		ch->mode = (int)m->body.rf_body_u.falloc.mode;
		ch->ranges = &m->body.rf_body_u.falloc.range;
		ch->nranges = 1;
		break;
	case RF_REMAP:
		ch->kind = m->body.rf_body_u.remap.kind;
		ch->src_off = m->body.rf_body_u.remap.src_off;
		ch->src_path = target(&op->other->msg)->path;
		op->dst.off = m->body.rf_body_u.remap.dst_off;
		op->dst.len = m->body.rf_body_u.remap.len;
		ch->ranges = &op->dst;
		ch->nranges = 1;
		break;
	default:
		break;
	}
}

/* All undo records are in use by pool threads. */
static void undo_wait(struct srv_op *op)
{
	int err = op_own(op);

	if (err) {
		op_fail(op, err);
		return;
	}
	op->file->busy = op;
	TAILQ_INSERT_TAIL(&op->vol->srv->undo_wait, op, in_file);
}

static void exec_change(struct srv_op *op)
{
	struct srv_file *file = op->file;
	int err;

	if (op->msg.body.type == RF_REMAP && !remap_ready(op))
		return;
	if (op->client->nwaits >= MAX_WAITS) {
		op_fail(op, -EAGAIN);
		return;
	}
	change_fill(op);
	err = srv_undo_get(op->vol, op->client->row, request_id(&op->msg), target(&op->msg)->path,
			   &op->change.undo);
	if (err) {
		undo_wait(op);
		return;
	}
	file->seq++;
	op->err = op->len > INLINE_STORE ? -EAGAIN : change_call(op, true);
	if (op->err != -EAGAIN) {
		change_finish(op);
		return;
	}
	err = op_own(op);
	if (err) {
		srv_undo_put(op->vol->srv, op->change.undo);
		op_fail(op, err);
		return;
	}
	op->change.data = op->payload;
	file->busy = op;
	submit(op, change_work, change_done);
}

void srv_op_undo(struct srv *srv)
{
	struct srv_file *file;
	struct srv_op *op;

	while (srv_undo_free(srv) && (op = TAILQ_FIRST(&srv->undo_wait))) {
		TAILQ_REMOVE(&srv->undo_wait, op, in_file);
		file = op->file;
		file->uses++;
		file->busy = NULL;
		op_exec(op);
		srv_op_next(file);
		srv_file_put(file);
	}
}

/* ---- dispatch ---- */

static void op_exec(struct srv_op *op)
{
	rf_type type = op->msg.body.type;
	int r;

	/* What changes something is done even if the connection is lost: it may be asked about. */
	if (!op->conn && !changes(type) && !op->source) {
		op_free(op);
		return;
	}
	r = resolve(op);
	if (r <= 0) {
		if (r)
			op_fail(op, r);
		return;
	}
	if (op->source)
		exec_source(op);
	else if (type == RF_LOOKUP)
		exec_status(op, true);
	else if (type == RF_STATUS)
		exec_status(op, op->msg.body.rf_body_u.status.promise);
	else if (type == RF_FETCH)
		exec_fetch(op);
	else if (type == RF_SEEK)
		exec_seek(op);
	else if (op->replay)
		exec_replay(op);
	else if (type == RF_SYNC)
		exec_sync(op);
	else
		exec_change(op);
}

static void op_enqueue(struct srv_op *op)
{
	int err;

	if (!op->file->busy && TAILQ_EMPTY(&op->file->queue)) {
		op_exec(op);
		return;
	}
	err = op_own(op);
	if (err) {
		op_fail(op, err);
		return;
	}
	TAILQ_INSERT_TAIL(&op->file->queue, op, in_file);
}

/*
 * A change that was asked for before, on a connection that was lost: it is done once.  True: it is
 * taken care of; else op goes on, as a replay if that is set.
 */
static bool repeated(struct srv_op *op)
{
	uint64_t id = request_id(&op->msg);
	struct rf_msg msg = {.xid = op->xid, .body.type = RF_APPLIED};
	struct srv_memo_entry *memo;
	struct srv_op *before;
	struct srv_file *file;
	struct srv_wait *w;
	rf_fid *fid;

	op->replay = true; /* so that it does not find itself */
	before = srv_op_find(op->client, id);
	if (before) {
		struct srv_conn *conn = op->conn;

		uncharge(before);
		before->conn = conn;
		before->xid = op->xid;
		TAILQ_INSERT_TAIL(&conn->ops, before, in_conn);
		conn->pending++;
		conn->pending_bytes += before->charged;
		op_free(op);
		return true;
	}
	memo = srv_memo_find(op->client, id);
	if (!memo) {
		op->replay = false;
		return false;
	}
	fid = &target(&op->msg)->fid;
	if (memo->applied.status.fid.ino != fid->ino || memo->applied.status.fid.gen != fid->gen) {
		op_fail(op, -EINVAL);
		return true;
	}
	op->untold = memo->before;
	op->change.off = memo->applied.off;
	if (op->untold)
		return false;
	msg.body.rf_body_u.applied = memo->applied;
	srv_send(op->conn, &msg, NULL, 0);
	TAILQ_FOREACH(w, &op->client->waits, link)
	if (w->change && w->request == id)
		break;
	if (w) {
		w->conn = op->conn;
		w->xid = op->xid;
		op_free(op);
		return true;
	}
	if (durable(&op->msg) && !memo->sync_err)
		return false;
	w = srv_wait_new(op->client, op->conn, op->xid);
	w->err = memo->sync_err;
	file = srv_file_find(op->vol, &target(&op->msg)->fid);
	if (file)
		srv_breaks_wait(file, w);
	srv_wait_check(w);
	op_free(op);
	return true;
}

static void give_up(struct srv_conn *conn, struct srv_volume *vol, const rf_give_up *g)
{
	struct srv_holder *h;
	struct srv_file *file;
	u_int i;

	for (i = 0; i < g->fids.fids_len; i++) {
		file = srv_file_find(vol, &g->fids.fids_val[i]);
		h = file ? srv_holder_find(file, conn->client) : NULL;
		if (!h)
			continue;
		srv_holder_release(h);
		srv_holder_drop(h);
		srv_file_check(file);
	}
}

static void attach(struct srv_conn *conn, uint32_t xid, const rf_volume *v)
{
	struct rf_msg msg = {.xid = xid, .body.type = RF_VOLUME_R};
	struct srv *srv = conn->srv;
	unsigned i;

	for (i = 0; i < srv->nvols && strcmp(srv->vol[i].name, v->name) != 0; i++)
		;
	if (i == srv->nvols) {
		srv_error(conn, xid, ENOENT, "no export of that name");
		return;
	}
	conn->volumes |= (uint64_t)1 << i;
	msg.body.rf_body_u.volume_r.volume = i;
	msg.body.rf_body_u.volume_r.memory = srv_row_memory(conn->client->row);
	srv_send(conn, &msg, NULL, 0);
}

static struct srv_volume *volume(struct srv_conn *conn, uint32_t v)
{
	if (v >= conn->srv->nvols || !(conn->volumes >> v & 1)) {
		srv_garbage(conn, "named a volume that it has not attached to; connection closed");
		return NULL;
	}
	return &conn->srv->vol[v];
}

static int remap_wrong(const rf_remap *r)
{
	if (r->kind < RF_REMAP_CLONE || r->kind > RF_REMAP_COPY)
		return -EINVAL;
	return r->src.volume == r->file.volume ? 0 : -EXDEV;
}

/* Both files of a REMAP. */
static void enqueue_remap(struct srv_op *op)
{
	struct rf_msg msg = {.body.type = RF_STATUS};
	rf_remap *r = &op->msg.body.rf_body_u.remap;
	struct srv_op *source;
	bool same;

	msg.body.rf_body_u.status.file = r->src;
	source = op_make(op->conn, &msg, op->vol);
	r->src.path = NULL; /* the other's now */
	source->source = true;
	source->other = op;
	op->other = source;
	source->file = srv_file_get(op->vol, &target(&source->msg)->fid);
	same = source->file == op->file;
	op_enqueue(source);
	if (!same)
		op_enqueue(op);
}

static void file_request(struct srv_conn *conn, struct rf_msg *msg, void *payload, size_t len)
{
	rf_file *file = target(msg);
	struct srv_volume *vol =
	    volume(conn, file ? file->volume : msg->body.rf_body_u.lookup.volume);
	struct srv_op *op;
	int err;

	if (!vol) {
		rf_wire_free(msg);
		return;
	}
	if (msg->body.type == RF_REMAP && !volume(conn, msg->body.rf_body_u.remap.src.volume)) {
		rf_wire_free(msg);
		return;
	}
	op = op_new(conn, msg, payload, len, vol);
	if (msg->body.type == RF_REMAP) {
		err = remap_wrong(&msg->body.rf_body_u.remap);
		if (err) {
			op_fail(op, err);
			return;
		}
	}
	if (!file) {
		op_lookup(op);
		return;
	}
	if (changes(msg->body.type) && repeated(op))
		return;
	op->file = srv_file_get(vol, &target(&op->msg)->fid);
	if (msg->body.type == RF_REMAP && !op->replay)
		enqueue_remap(op);
	else
		op_enqueue(op);
}

void srv_request(struct srv_conn *conn, struct rf_msg *msg, void *payload, size_t len)
{
	struct rf_msg pong = {.xid = msg->xid, .body.type = RF_PONG};
	rf_type type = msg->body.type;
	struct srv_volume *vol;

	if (len > RF_MAX_DATA || (len && type != RF_STORE && type != RF_APPEND)) {
		srv_garbage(conn, "sent a payload where none belongs; connection closed");
		rf_wire_free(msg);
		return;
	}
	switch (type) {
	case RF_LOOKUP:
	case RF_STATUS:
	case RF_FETCH:
	case RF_STORE:
	case RF_APPEND:
	case RF_SET_SIZE:
	case RF_FALLOC:
	case RF_REMAP:
	case RF_SEEK:
	case RF_SYNC:
		file_request(conn, msg, payload, len);
		return; /* msg is the request's now */
	case RF_VOLUME:
		attach(conn, msg->xid, &msg->body.rf_body_u.volume);
		break;
	case RF_KEY:
		srv_ident_show(conn, &msg->body.rf_body_u.key);
		break;
	case RF_PING:
		srv_send(conn, &pong, NULL, 0);
		break;
	case RF_BREAK_ACK:
		if (!srv_ack(conn->client, msg->body.rf_body_u.break_ack.id))
			srv_garbage(conn,
				    "acknowledged a break that was never sent; connection closed");
		break;
	case RF_GIVE_UP:
		vol = volume(conn, msg->body.rf_body_u.give_up.volume);
		if (vol)
			give_up(conn, vol, &msg->body.rf_body_u.give_up);
		break;
	default:
		srv_garbage(
		    conn,
		    "sent a message that only a server sends, or HELLO twice; connection closed");
		break;
	}
	rf_wire_free(msg);
}
