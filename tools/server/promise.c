/* SPDX-License-Identifier: MIT */
/*
 * promise.c - callback promises: who holds which file, breaks, and who waits for whom.
 *
 * A holder of a file is in one of three states:
 *
 *	nothing		no promise, nothing to acknowledge: a change needs nothing from it
 *	promise		a change sends it a break and waits for the acknowledgement.  A break that says
 *			what changed keeps the promise; any other ends it
 *	unacked		the promise was ended by a break that is not acknowledged yet: the client may
 *			still show old content, so a change waits for that acknowledgement too
 *
 * Nothing is waited for beyond the client's lease: then its strippers have stripped by themselves.
 * A client whose connection is lost keeps its promises until then, because it may not know yet.
 * GIVE_UP and HELLO end them at once: the client has stripped before it says so.
 *
 * After a restart it is not known who holds what.  Whoever was here before and has not said HELLO
 * since (a ghost) is waited for by all changes, as if it held all files.
 *
 * A break never lengthens a lease, else a client that is stuck could be waited for for ever.
 *
 * Locks: none (loop thread).
 */
#include "promise.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

#define MAX_BRKS 65536u

struct srv_holder *srv_holder_find(struct srv_file *file, struct srv_client *client)
{
	struct srv_holder *h;

	LIST_FOREACH(h, &file->holders, in_file)
	if (h->client == client)
		return h;
	return NULL;
}

struct srv_holder *srv_holder_get(struct srv_file *file, struct srv_client *client)
{
	struct srv_holder *h = srv_holder_find(file, client);

	if (h)
		return h;
	h = srv_alloc(sizeof(*h));
	h->file = file;
	h->client = client;
	LIST_INSERT_HEAD(&file->holders, h, in_file);
	LIST_INSERT_HEAD(&client->holders, h, in_client);
	return h;
}

/* Milliseconds (srv_now) when the promise is over without another word. */
static uint64_t end_of(const struct srv_client *client, uint64_t until)
{
	return until && until < client->lease_end ? until : client->lease_end;
}

void srv_promise(struct srv_holder *h)
{
	h->promise = true;
	h->until = 0;
}

uint32_t srv_promise_ms(const struct srv_holder *h)
{
	uint64_t now = srv_now(), end = h->client->lease_end, lease = h->client->srv->lease_ms;

	if (!h->promise || h->until || now >= end)
		return 0;
	return (uint32_t)(end - now < lease ? end - now : lease);
}

bool srv_holder_busy(const struct srv_holder *h)
{
	return (h->promise || h->unacked) && srv_now() < end_of(h->client, h->until);
}

/* ---- breaks under way ---- */

static void brk_free(struct srv_client *client, struct srv_brk *b)
{
	struct srv_wait *w = b->wait;

	TAILQ_REMOVE(&client->brks, b, link);
	client->nbrks--;
	if (b->holder && b->holder->unacked == b->id)
		b->holder->unacked = 0;
	free(b);
	if (w) {
		w->left--;
		srv_wait_check(w);
	}
}

static void lease_at(struct srv *srv, uint64_t end)
{
	uint64_t now = srv_now(), ms = end > now ? end - now : 0;

	uv_update_time(&srv->loop);
	if (!uv_is_active((uv_handle_t *)&srv->lease) || uv_timer_get_due_in(&srv->lease) > ms)
		uv_timer_start(&srv->lease, srv_lease_timer, ms, 0);
}

/* Remember that id is to be acknowledged; a second entry of one id is for a second wait. */
static void brk_add(struct srv_client *client, struct srv_holder *h, uint64_t id, uint64_t until,
		    struct srv_wait *wait)
{
	struct srv_brk *b = srv_alloc(sizeof(*b)), *prev;

	b->id = id;
	b->until = until;
	b->holder = h;
	b->wait = wait;
	prev = TAILQ_LAST(&client->brks, srv_brks);
	while (prev && prev->id > id)
		prev = TAILQ_PREV(prev, srv_brks, link);
	if (prev)
		TAILQ_INSERT_AFTER(&client->brks, prev, b, link);
	else
		TAILQ_INSERT_HEAD(&client->brks, b, link);
	client->nbrks++;
	if (wait) {
		wait->left++;
		lease_at(client->srv, end_of(client, until));
	}
}

void srv_lease_timer(uv_timer_t *timer)
{
	struct srv *srv = timer->data;
	uint64_t now = srv_now(), end, next = UINT64_MAX;
	struct srv_client *c;
	struct srv_brk *b, *bn;

	TAILQ_FOREACH(c, &srv->clients, link)
	{
		for (b = TAILQ_FIRST(&c->brks); b; b = bn) {
			bn = TAILQ_NEXT(b, link);
			end = end_of(c, b->until);
			if (now >= end)
				brk_free(c, b);
			else if (b->wait && end < next)
				next = end;
		}
	}
	if (next != UINT64_MAX)
		lease_at(srv, next);
	srv_flush(srv);
}

bool srv_ack(struct srv_client *client, uint64_t id)
{
	struct srv_brk *b, *next;

	if (!id || id > client->last_brk)
		return false;
	for (b = TAILQ_FIRST(&client->brks); b && b->id <= id; b = next) {
		next = TAILQ_NEXT(b, link);
		if (b->id == id)
			brk_free(client, b);
	}
	return true;
}

void srv_brks_end(struct srv_client *client)
{
	struct srv_brk *b;

	while ((b = TAILQ_FIRST(&client->brks)))
		brk_free(client, b);
}

void srv_holder_release(struct srv_holder *h)
{
	struct srv_brk *b, *next;

	h->promise = false;
	h->readable = 0;
	h->until = 0;
	for (b = TAILQ_FIRST(&h->client->brks); b; b = next) {
		next = TAILQ_NEXT(b, link);
		if (b->holder == h)
			brk_free(h->client, b);
	}
	h->unacked = 0;
}

void srv_holder_drop(struct srv_holder *h)
{
	struct srv_brk *b;

	TAILQ_FOREACH(b, &h->client->brks, link)
	if (b->holder == h)
		b->holder = NULL;
	LIST_REMOVE(h, in_file);
	LIST_REMOVE(h, in_client);
	free(h);
}

/* ---- telling ---- */

static void tell(struct srv_holder *h, const struct srv_note *note, bool known, uint64_t id)
{
	struct rf_msg msg = {.body.type = RF_BREAK};
	rf_break *b = &msg.body.rf_body_u.brk;
	struct srv_file *file = h->file;
	bool push = known && note->data && srv_in_time(h->readable);

	b->id = id;
	b->volume = (u_int)(file->vol - file->vol->srv->vol);
	b->dv_before = note->dv_before;
	b->known = known;
	if (known) {
		b->ranges.ranges_len = (u_int)note->nranges;
		b->ranges.ranges_val = note->ranges;
	}
	srv_file_status(file, h->client, &b->status);
	srv_send(h->client->conn, &msg, push ? note->data : NULL, push ? note->len : 0);
}

static void ghosts_wait(struct srv *srv, struct srv_wait *wait)
{
	struct srv_client *c;

	if (!srv->nghosts || !wait)
		return;
	TAILQ_FOREACH(c, &srv->clients, link)
	if (c->ghost && !srv_lease_over(c))
		brk_add(c, NULL, 0, 0, wait);
}

void srv_break(struct srv_file *file, const struct srv_note *note, struct srv_client *changer,
	       struct srv_wait *wait)
{
	struct srv_holder *h, *next;
	bool live, known;
	uint64_t id;

	ghosts_wait(file->vol->srv, wait);

	for (h = LIST_FIRST(&file->holders); h; h = next) {
		struct srv_client *client = h->client;

		next = LIST_NEXT(h, in_file);
		live = srv_now() < end_of(client, h->until);
		if (!live)
			h->unacked = 0;
		if (client == changer)
			continue;
		if (!h->promise) {
			if (h->unacked && wait)
				brk_add(client, h, h->unacked, h->until, wait);
			continue;
		}
		id = ++client->last_brk;
		known = note->known && live && !h->until && client->conn;
		if (!known) {
			h->promise = false;
			h->unacked = live ? id : 0;
		}
		if (live)
			brk_add(client, h, id, h->until, wait);
		/* Also if the lease is over: so that it does not believe in the promise again. */
		if (client->conn)
			tell(h, note, known, id);
		if (client->conn && client->nbrks > MAX_BRKS)
			srv_garbage(client->conn,
				    "does not acknowledge its breaks; connection closed");
		h->until = h->promise ? h->until : 0;
	}
}

void srv_breaks_wait(struct srv_file *file, struct srv_wait *wait)
{
	struct srv_holder *h;
	struct srv_brk *b;
	uint64_t last;

	ghosts_wait(file->vol->srv, wait);
	LIST_FOREACH(h, &file->holders, in_file)
	{
		if (h->client == wait->client)
			continue;
		/* What is added stands behind the others of its id. */
		last = 0;
		TAILQ_FOREACH(b, &h->client->brks, link)
		{
			if (b->holder != h || b->id == last)
				continue;
			last = b->id;
			brk_add(h->client, h, b->id, b->until, wait);
		}
	}
}

/*
 * The clients are told and validate anew; until they have, or their leases are over, what they held
 * is still waited for: INIT_STATE has no acknowledgement.
 */
void srv_forget_all(struct srv *srv)
{
	struct rf_msg msg = {.body.type = RF_INIT_STATE};
	struct srv_client *c;
	struct srv_holder *h;

	TAILQ_FOREACH(c, &srv->clients, link)
	{
		LIST_FOREACH(h, &c->holders, in_client)
		{
			h->readable = 0;
			if (h->promise && !h->until)
				h->until = c->lease_end;
		}
		if (c->conn)
			srv_send(c->conn, &msg, NULL, 0);
	}
}

/* ---- waiting ---- */

struct srv_wait *srv_wait_new(struct srv_client *client, struct srv_conn *conn, uint32_t xid)
{
	struct srv_wait *w = srv_alloc(sizeof(*w));

	w->client = client;
	w->conn = conn;
	w->xid = xid;
	TAILQ_INSERT_TAIL(&client->waits, w, link);
	client->nwaits++;
	return w;
}

void srv_wait_free(struct srv_wait *w)
{
	TAILQ_REMOVE(&w->client->waits, w, link);
	w->client->nwaits--;
	free(w);
}

void srv_wait_check(struct srv_wait *w)
{
	struct rf_msg msg = {.xid = w->xid, .body.type = RF_RELEASED};
	struct srv_memo_entry *e;

	if (w->left || w->syncing)
		return;
	if (w->err && w->change && !w->conn) {
		e = srv_memo_find(w->client, w->request);
		if (e)
			e->sync_err = w->err;
	}
	if (w->conn && w->err)
		srv_error(w->conn, w->xid, w->err, "written, but it could not be made durable");
	else if (w->conn)
		srv_send(w->conn, &msg, NULL, 0);
	srv_wait_free(w);
}
