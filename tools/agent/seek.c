/* SPDX-License-Identifier: MIT */
/*
 * seek.c - SEEK_DATA and SEEK_HOLE.
 *
 * Where a file has holes, the server's file system says: so what is dirty goes there first, and then it
 * is asked.  What becomes dirty meanwhile is a change of afterwards.
 *
 * Counters: none.
 * Locks: none.
 */
#include "seek.h"

#include <errno.h>

#include "key.h"
#include "server.h"

static bool on_seek(struct ag_call *c, struct rf_msg *m, void *payload, size_t len)
{
	struct ag_req *req = c->arg;

	(void)payload;
	(void)len;
	if (!req)
		return false; /* the program is gone */
	req->call = NULL;
	if (!m)
		ag_vn_kick(req->vn); /* asked again when the server is back */
	else if (m->body.type == RF_ERROR)
		ag_req_finish(req, -(int)ag_min(m->body.rf_body_u.error.err ?: EIO, 4095), 0);
	else if (m->body.type == RF_SEEK_R && m->body.rf_body_u.seek_r.off <= AG_SIZE_MAX)
		ag_req_finish(req, 0, m->body.rf_body_u.seek_r.off);
	else {
		ag_vn_kick(req->vn);
		ag_server_garbage(c->srv, "an answer to SEEK that is none");
	}
	return false;
}

void ag_seek_serve(struct ag_req *req)
{
	struct rf_msg m = {.body.type = RF_SEEK};
	struct ag_vnode *vn = req->vn;
	const char *why;
	int r;

	if (!req->asked) {
		req->asked = true;
		ag_req_flush_part(req, vn, NULL, 0, UINT64_MAX);
	}
	if (req->parts || (req->call && !ag_overdue(req->ag, req->call->sent_at)))
		return;
	r = req->err ? req->err : ag_volume_ready(vn->vol, req->born, &why);
	if (r > 0 && req->call)
		r = -ETIMEDOUT;
	if (r < 0)
		ag_req_finish(req, r, 0);
	if (r <= 0)
		return;
	m.body.rf_body_u.seek.file = ag_key_file(vn, req->q.key);
	m.body.rf_body_u.seek.off = req->q.arg[0];
	m.body.rf_body_u.seek.whence = (u_int)req->q.arg[1];
	req->call = ag_call_new(vn->vol, NULL, on_seek, req);
	ag_call_send(req->call, &m, NULL, 0);
}
