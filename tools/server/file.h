/* SPDX-License-Identifier: MIT */
/* file.h - a file, its DataVersion and the order of what happens to it.  Source: file.c. */
#ifndef SRV_FILE_H
#define SRV_FILE_H

#include "promise.h"

struct srv_file {
	RB_ENTRY(srv_file) link;
	TAILQ_ENTRY(srv_file) lru; /* if sf */
	struct srv_volume *vol;
	rf_fid fid;
	struct store_file *sf;  /* NULL: has to be looked up by a name */
	uint64_t dv;            /* 0: never seen */
	struct store_attr attr; /* as of dv */
	uint64_t seq;        /* + 1 before and after every change: a read across it starts over */
	bool watched;        /* others' changes are reported, since before attr was taken */
	struct srv_op *busy; /* a pool thread changes it: everything else queues */
	struct srv_ops queue;
	unsigned uses; /* requests and syncs that point here */
	LIST_HEAD(, srv_holder) holders;

	/* One fdatasync at a time; who asks meanwhile shares the next. */
	bool syncing;
	TAILQ_HEAD(srv_waits, srv_wait) sync_now, sync_next;
};

struct srv_file *srv_file_find(struct srv_volume *vol, const rf_fid *fid);
/* Found or made, used once more. */
struct srv_file *srv_file_get(struct srv_volume *vol, const rf_fid *fid);
/* One use less. */
void srv_file_put(struct srv_file *file);
/* Nothing may need it any more: look. */
void srv_file_check(struct srv_file *file);
/* The engine's file that a lookup gave; it is the file's now, or forgotten if there was one. */
int srv_file_adopt(struct srv_file *file, struct store_file *sf);
/* Attributes as they are now; a change by others that shows in them is dealt with. */
int srv_file_refresh(struct srv_file *file);
/* now is what the file was right before a change of ours. */
void srv_file_compare(struct srv_file *file, const struct store_attr *now);
/* The content changed: a new dv. */
void srv_file_moved(struct srv_file *file);
/* Somebody else changed it. */
void srv_file_third(struct srv_file *file, bool content);
void srv_file_status(struct srv_file *file, const struct srv_client *client, rf_status *out);
/* The engine's report. */
void srv_file_changed(void *arg, void *priv, unsigned what);
/* A slice of the once-a-second look at files under promise; whether there are any files. */
bool srv_files_scan(struct srv *srv, unsigned max);
void srv_files_free(struct srv *srv);

#endif
