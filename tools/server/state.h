/* SPDX-License-Identifier: MIT */
/* state.h - what survives the server's death: the file SOCKET.state.  Source: state.c. */
#ifndef SRV_STATE_H
#define SRV_STATE_H

#include "srv.h"

/* Ids that are remembered of each client; one more, because one may be being replaced. */
#define SRV_MEMO (RF_REMEMBER + 1u)

struct srv_row; /* a client's, in the file */

/* Map and lock it; before anything is served.  On error it has said why. */
int srv_state_open(struct srv *srv, const char *sock);
/* The volumes are open: undo what was cut off, bring back the clients of before. */
void srv_state_recover(struct srv *srv);
/* The file stays. */
void srv_state_close(struct srv *srv);
/* Housekeeping: give back the memory of undo records that nobody needs; whether there is more. */
bool srv_state_tick(struct srv *srv);

/* NULL: there are too many clients. */
struct srv_row *srv_row_new(struct srv *srv, uid_t uid, const char id[16]);
void srv_row_free(struct srv *srv, struct srv_row *row);
/* Another one whenever ids of this client may have been forgotten. */
uint64_t srv_row_memory(const struct srv_row *row);
/* Its promises may last until then (srv_now). */
void srv_row_lease(struct srv_row *row, uint64_t end);
/* From here on the request, a change of that file, is done: its undo record is not needed. */
void srv_row_remember(struct srv_row *row, uint64_t request, const rf_fid *fid, uint64_t off);

/*
 * An undo record for a change by the client of row to the file at path; *undo NULL: there are to be
 * none.  -EAGAIN: all are in use by changes in pool threads.
 */
int srv_undo_get(struct srv_volume *vol, const struct srv_row *row, uint64_t request,
		 const char *path, struct store_undo **undo);
/* It would find one. */
bool srv_undo_free(struct srv *srv);
/* The change is remembered, or failed. */
void srv_undo_put(struct srv *srv, struct store_undo *undo);

#endif
