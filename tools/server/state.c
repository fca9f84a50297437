/* SPDX-License-Identifier: MIT */
/*
 * state.c - what survives the server's death: the file SOCKET.state beside the socket.
 *
 * It is a shared mapping: what was stored to it is there for the next server, whatever killed this
 * one, without a system call or an fsync.  A loss of power is another matter: nothing orders the file
 * with the disk, so what is found in it after a boot is not believed.
 *
 *	head	boot, exports
 *	rows	one for each client: until when its promises last, and a ring of the ids of its last
 *		requests.  Not one ring for all: a busy client must not push out what an idle one
 *		will repeat when its network is back
 *	undos	what undoes changes that are under way
 *
 * The order that makes a change happen once, whole: its undo record is armed; the file is changed;
 * the id is in the ring; the record is disarmed.  All but the second are plain stores of one thread
 * after another, and a process that is killed has stored a beginning of what each of its threads
 * would have.  Who comes next finds, of a record that is armed, the id in the ring: done; or not:
 * undone.  A change that cannot be undone is finished instead, and its id is put into the ring.
 *
 * Clients whose promises may last are brought back without a connection: nobody's change is RELEASED
 * before they have said HELLO (they have stripped then) or their leases are over.
 *
 * The file is sparse; each part is allocated before it is first touched, because on a full file
 * system that would be a SIGBUS.  The first undo record always is, so that there is always one to wait for.
 *
 * Locks: flock on the file as long as the server lives; else none (loop thread; pool threads see the
 * undo record of their change).
 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"

#define MAGIC 0x0a65746174736652u /* "Rfstate\n" */
#define VERSION 2u
#define ROWS 1024u
#define UNDOS 24u       /* more than pool threads; what more there is to do waits for them anyway */
#define LOCK_TRIES 100u /* of 10 ms: a server that is ending holds the lock a little longer */
#define SOCK_MAX 107u   /* sun_path */
#define UNDO_IDLE_MS 10000u
#define ALIGNED __attribute__((aligned(4096))) /* parts are allocated and punched alone */

struct srv_row {
	uint32_t uid;
	char id[16];
	uint64_t memory;
	uint64_t lease_end;
	uint64_t next; /* counts */
	struct {
		_Atomic uint32_t valid;
		uint32_t pad;
		uint64_t request, off;
		rf_fid fid;
	} ring[SRV_MEMO];
} ALIGNED;

struct undo {
	uint32_t volume, uid;
	char id[16];
	uint64_t request;
	char path[RF_MAX_PATH + 1];
	struct store_undo store;
} ALIGNED;

struct image {
	struct head {
		uint64_t magic; /* 0: being made */
		uint32_t version, nvols;
		uint64_t size;
		char boot[40];
		struct {
			char name[RF_MAX_NAME + 1];
			uint64_t where; /* hash */
		} vol[SRV_MAX_VOLUMES];
		/* Set when the part is allocated and in use: what is a hole must not be looked at,
		 * a look allocates, too. */
		_Atomic bool row[ROWS], undo[UNDOS];
	} head ALIGNED;
	struct srv_row row[ROWS];
	struct undo undo[UNDOS];
};

struct srv_state {
	int fd;
	char path[128];
	struct image *im;
	bool fresh;   /* nothing in it */
	bool no_undo; /* REFAULT_DISABLE=undo */
	bool full;    /* said that there is no space */
	struct {
		bool busy;
		uint64_t idle_since;
	} undo[UNDOS];
};

/* ---- the file ---- */

static int reserve(struct srv_state *s, const void *part, size_t len)
{
	off_t off = (const char *)part - (const char *)s->im;

	if (!fallocate(s->fd, 0, off, (off_t)len)) {
		s->full = false;
		return 0;
	}
	if (errno == EOPNOTSUPP || errno == ENOSYS)
		return 0;
	if (!s->full)
		srv_log("%s: %s; make space there, changes have to wait", s->path, strerror(errno));
	s->full = true;
	return -ENOSPC;
}

static void release(struct srv_state *s, const void *part, size_t len)
{
	off_t off = (const char *)part - (const char *)s->im;

	fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, (off_t)len);
}

static void boot_id(char id[40])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, id, 36);

	memset(id + (n < 0 ? 0 : n), 0, (size_t)(40 - (n < 0 ? 0 : n)));
	if (fd >= 0)
		close(fd);
}

static uint64_t random_id(void)
{
	uint64_t id = 0;

	while (!id)
		if (getrandom(&id, sizeof(id), 0) < 0)
			id = srv_now();
	return id;
}

static uint64_t hash(const char *s)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

	for (; *s; s++)
		h = (h ^ (unsigned char)*s) * 0x100000001b3u;
	return h;
}

static int open_locked(struct srv_state *s, const char *sock)
{
	struct stat st;
	unsigned i;

	s->fd =
	    open(s->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
	if (s->fd < 0 && errno == ENOENT)
		srv_log("--listen unix:%s: the directory of the socket is not there; make it first",
			sock);
	else if (s->fd < 0)
		srv_log("%s: %s; the server keeps there what it must remember", s->path,
			errno == ELOOP ? "a symbolic link, remove it" : strerror(errno));
	if (s->fd < 0)
		return -errno;
	if (fstat(s->fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
	    (st.st_mode & 077) || st.st_nlink != 1) {
		srv_log("%s: not a file of uid %u that nobody else may open; remove it", s->path,
			(unsigned)geteuid());
		return -EPERM;
	}
	for (i = 0; flock(s->fd, LOCK_EX | LOCK_NB); i++) {
		if (i == LOCK_TRIES) {
			srv_log("--listen unix:%s: another server listens there (it has locked "
				"%s); stop it or take another path",
				sock, s->path);
			return -EADDRINUSE;
		}
		usleep(10000);
	}
	return 0;
}

static bool undo_valid(const struct image *im, const struct undo *u)
{
	uint32_t armed = atomic_load(&u->store.armed), i;
	uint64_t len = 0;

	if (!armed)
		return true;
	if (armed > STORE_UNDO_REMAP || u->volume >= im->head.nvols ||
	    strnlen(u->path, sizeof(u->path)) == sizeof(u->path) ||
	    u->store.nranges > RF_MAX_RANGES || u->store.len > STORE_UNDO_DATA ||
	    (armed != STORE_UNDO_FINISH && u->store.size > INT64_MAX))
		return false;
	if (armed == STORE_UNDO_REMAP &&
	    (u->store.nranges != 2 || !u->store.len || u->store.len > RF_MAX_PATH + 1 ||
	     u->store.data[u->store.len - 1]))
		return false;
	for (i = 0; i < u->store.nranges; i++) {
		const rf_range *r = &u->store.range[i];

		if (r->off > INT64_MAX || r->len > INT64_MAX - r->off)
			return false;
		len += armed == STORE_UNDO_BYTES ? r->len : 0;
		if (len > u->store.len)
			return false;
	}
	return armed != STORE_UNDO_BYTES || len == u->store.len;
}

static bool valid(const struct image *im)
{
	unsigned i;

	if (im->head.version != VERSION || im->head.size != sizeof(*im) ||
	    im->head.nvols > SRV_MAX_VOLUMES)
		return false;
	for (i = 0; i < im->head.nvols; i++)
		if (!memchr(im->head.vol[i].name, 0, sizeof(im->head.vol[i].name)))
			return false;
	for (i = 0; i < UNDOS; i++)
		if (im->head.undo[i] && !undo_valid(im, &im->undo[i]))
			return false;
	return true;
}

/* It is mapped: is it to be believed? */
static int load(struct srv_state *s, off_t was)
{
	struct head *h = &s->im->head;
	char boot[40];

	boot_id(boot);
	if (was == sizeof(*s->im) && h->magic == MAGIC && *boot &&
	    memcmp(h->boot, boot, sizeof(boot)) == 0 && valid(s->im))
		return 0;
	if (was && (was != sizeof(*s->im) || (h->magic && (h->magic != MAGIC || !valid(s->im)))))
		srv_log(
		    "%s: damaged, or of another version; started anew, what was remembered is lost",
		    s->path);
	s->fresh = true;
	if (ftruncate(s->fd, 0) || ftruncate(s->fd, sizeof(*s->im))) {
		srv_log("%s: %s", s->path, strerror(errno));
		return -errno;
	}
	if (reserve(s, h, sizeof(*h)))
		return -ENOSPC;
	h->version = VERSION;
	h->size = sizeof(*s->im);
	memcpy(h->boot, boot, sizeof(boot));
	return 0;
}

static bool undo_disabled(void)
{
	const char *s = getenv("REFAULT_DISABLE");

	while (s && (strncmp(s, "undo", 4) != 0 || (s[4] && s[4] != ','))) {
		s = strchr(s, ',');
		s += s != NULL;
	}
	return s != NULL;
}

int srv_state_open(struct srv *srv, const char *sock)
{
	struct srv_state *s = srv->state = srv_alloc(sizeof(*s));
	struct stat st;
	int err;

	s->fd = -1;
	s->no_undo = undo_disabled();
	if (!*sock || strlen(sock) > SOCK_MAX) {
		srv_log("--listen unix:%s: %s", sock,
			*sock ? "the path is too long; take one of at most 107 bytes"
			      : "a path is missing; use unix:PATH");
		return -EINVAL;
	}
	snprintf(s->path, sizeof(s->path), "%s.state", sock);
	store_cred_enter(NULL);
	err = open_locked(s, sock);
	if (err)
		return err;
	if (fstat(s->fd, &st) ||
	    (st.st_size < (off_t)sizeof(*s->im) && ftruncate(s->fd, sizeof(*s->im)))) {
		srv_log("%s: %s", s->path, strerror(errno));
		return -errno;
	}
	s->im = mmap(NULL, sizeof(*s->im), PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	if (s->im == MAP_FAILED) {
		s->im = NULL;
		srv_log("%s: %s", s->path, strerror(errno));
		return -ENOMEM;
	}
	err = load(s, st.st_size);
	if (!err)
		err = reserve(s, &s->im->undo[0], sizeof(s->im->undo[0]));
	if (!err)
		s->im->head.undo[0] = true;
	return err;
}

void srv_state_close(struct srv *srv)
{
	struct srv_state *s = srv->state;

	if (!s)
		return;
	if (s->im)
		munmap(s->im, sizeof(*s->im));
	if (s->fd >= 0)
		close(s->fd);
	free(s);
	srv->state = NULL;
}

/* ---- clients ---- */

struct srv_row *srv_row_new(struct srv *srv, uid_t uid, const char id[16])
{
	struct srv_state *s = srv->state;
	struct srv_row *row;
	unsigned i;

	for (i = 0; i < ROWS && s->im->head.row[i]; i++)
		;
	if (i == ROWS || reserve(s, &s->im->row[i], sizeof(*row)))
		return NULL;
	row = &s->im->row[i];
	memset(row, 0, sizeof(*row)); /* also if it could not be punched */
	row->uid = uid;
	memcpy(row->id, id, sizeof(row->id));
	row->memory = random_id();
	s->im->head.row[i] = true;
	return row;
}

void srv_row_free(struct srv *srv, struct srv_row *row)
{
	struct srv_state *s = srv->state;

	s->im->head.row[row - s->im->row] = false;
	release(s, row, sizeof(*row));
}

uint64_t srv_row_memory(const struct srv_row *row)
{
	return row->memory;
}

void srv_row_lease(struct srv_row *row, uint64_t end)
{
	row->lease_end = end;
}

void srv_row_remember(struct srv_row *row, uint64_t request, const rf_fid *fid, uint64_t off)
{
	unsigned i = row->next++ % SRV_MEMO;

	atomic_store_explicit(&row->ring[i].valid, 0, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	row->ring[i].request = request;
	row->ring[i].off = off;
	row->ring[i].fid = *fid;
	atomic_store_explicit(&row->ring[i].valid, 1, memory_order_release);
}

static bool remembered(const struct srv_row *row, uint64_t request)
{
	unsigned i;

	for (i = 0; i < SRV_MEMO; i++)
		if (atomic_load(&row->ring[i].valid) && row->ring[i].request == request)
			return true;
	return false;
}

static struct srv_row *row_find(struct image *im, uid_t uid, const char id[16])
{
	unsigned i;

	for (i = 0; i < ROWS; i++)
		if (im->head.row[i] && im->row[i].uid == uid &&
		    !memcmp(im->row[i].id, id, sizeof(im->row[i].id)))
			return &im->row[i];
	return NULL;
}

/* ---- undo records ---- */

int srv_undo_get(struct srv_volume *vol, const struct srv_row *row, uint64_t request,
		 const char *path, struct store_undo **undo)
{
	struct srv_state *s = vol->srv->state;
	struct undo *u;
	unsigned i;

	*undo = NULL;
	if (s->no_undo || !vol->ops->recover)
		return 0;
	for (i = 0; i < UNDOS && (s->undo[i].busy || !s->im->head.undo[i]); i++)
		;
	if (i == UNDOS) {
		for (i = 0; i < UNDOS && s->im->head.undo[i]; i++)
			;
		if (i == UNDOS || reserve(s, &s->im->undo[i], sizeof(*u)))
			return -EAGAIN;
		s->im->head.undo[i] = true;
	}
	s->undo[i].busy = true;
	u = &s->im->undo[i];
	u->volume = (uint32_t)(vol - vol->srv->vol);
	u->uid = row->uid;
	memcpy(u->id, row->id, sizeof(u->id));
	u->request = request;
	snprintf(u->path, sizeof(u->path), "%s", path);
	*undo = &u->store;
	return 0;
}

bool srv_undo_free(struct srv *srv)
{
	struct srv_state *s = srv->state;
	unsigned i;

	for (i = 0; i < UNDOS; i++)
		if (s->im->head.undo[i] ? !s->undo[i].busy : !s->full)
			return true;
	return false;
}

void srv_undo_put(struct srv *srv, struct store_undo *undo)
{
	struct srv_state *s = srv->state;
	unsigned i;

	if (!undo)
		return;
	atomic_store_explicit(&undo->armed, 0, memory_order_release);
	i = (unsigned)(((char *)undo - (char *)s->im->undo) / sizeof(s->im->undo[0]));
	s->undo[i].busy = false;
	s->undo[i].idle_since = srv_now();
}

bool srv_state_tick(struct srv *srv)
{
	struct srv_state *s = srv->state;
	uint64_t now = srv_now();
	bool more = false;
	unsigned i;

	for (i = 1; i < UNDOS; i++) {
		if (!s->im->head.undo[i] || s->undo[i].busy)
			continue;
		if (now - s->undo[i].idle_since < UNDO_IDLE_MS) {
			more = true;
			continue;
		}
		s->im->head.undo[i] = false;
		release(s, &s->im->undo[i], sizeof(s->im->undo[i]));
	}
	return more;
}

/* ---- after a crash ---- */

static struct srv_volume *volume_of(struct srv *srv, unsigned i)
{
	struct srv_state *s = srv->state;
	unsigned k;

	for (k = 0; k < srv->nvols; k++)
		if (!strcmp(srv->vol[k].name, s->im->head.vol[i].name) &&
		    hash(srv->vol[k].where) == s->im->head.vol[i].where)
			return &srv->vol[k];
	return NULL;
}

static void undo_one(struct srv *srv, struct undo *u)
{
	struct srv_row *row = row_find(srv->state->im, u->uid, u->id);
	struct srv_volume *vol = volume_of(srv, u->volume);
	uint32_t armed = atomic_load(&u->store.armed);
	const char *why = NULL;
	uint64_t off = 0;
	int r;

	if (row && remembered(row, u->request))
		return;
	r = vol && vol->ops->recover ? vol->ops->recover(vol->vol, u->path, &u->store) : -ENODEV;
	if (armed == STORE_UNDO_APPEND)
		off = u->store.size;
	else if (armed == STORE_UNDO_REMAP)
		off = u->store.range[0].len;
	if (r > 0 && row)
		srv_row_remember(row, u->request, &u->store.fid, off);
	if (r == -ENODEV)
		why = "it is not exported any more";
	else if (r == -ESTALE)
		why = "it is not there under that name any more";
	else if (r == -EEXIST)
		why = "others have written behind it";
	else if (r < 0)
		why = strerror(-r);
	if (why)
		srv_log("%s in %s: a change was cut off when the server died, and may be there in "
			"part: %s",
			u->path, srv->state->im->head.vol[u->volume].name, why);
}

/* Ids belong to files of the exports of then. */
static bool same_exports(struct srv *srv)
{
	const struct head *h = &srv->state->im->head;
	unsigned i;

	for (i = 0; i < srv->nvols && i < h->nvols; i++)
		if (volume_of(srv, i) != &srv->vol[i])
			return false;
	return srv->nvols == h->nvols;
}

static void forget_requests(struct srv_row *row)
{
	unsigned i;

	for (i = 0; i < SRV_MEMO; i++)
		atomic_store(&row->ring[i].valid, 0);
	row->memory = random_id();
}

static void bring_back(struct srv *srv)
{
	struct srv_state *s = srv->state;
	uint64_t now = srv_now(), last = now;
	bool same = same_exports(srv);
	struct srv_client *c;
	unsigned i, k, ghosts = 0;

	for (i = 0; i < ROWS; i++) {
		struct srv_row *row = &s->im->row[i];

		if (!s->im->head.row[i])
			continue;
		if (!same)
			forget_requests(row);
		c = srv_client_back(srv, row, row->uid, row->id, row->lease_end);
		for (k = 0; k < SRV_MEMO; k++) {
			unsigned at = (unsigned)((row->next + k) % SRV_MEMO);

			if (atomic_load(&row->ring[at].valid))
				srv_memo_back(c, row->ring[at].request, &row->ring[at].fid,
					      row->ring[at].off);
		}
		if (!c->ghost)
			continue;
		ghosts++;
		last = c->lease_end > last ? c->lease_end : last;
	}
	if (ghosts)
		srv_log("restarted: %u client%s of before ha%s %llu ms to come back", ghosts,
			ghosts > 1 ? "s" : "", ghosts > 1 ? "ve" : "s",
			(unsigned long long)(last - now));
}

void srv_state_recover(struct srv *srv)
{
	struct head *h = &srv->state->im->head;
	unsigned i;

	if (!srv->state->fresh) {
		for (i = 0; i < UNDOS; i++) {
			struct undo *u = &srv->state->im->undo[i];

			if (!h->undo[i] || !atomic_load(&u->store.armed))
				continue;
			undo_one(srv, u);
			atomic_store(&u->store.armed, 0);
		}
		bring_back(srv);
	}
	for (i = 0; i < srv->nvols; i++) {
		snprintf(h->vol[i].name, sizeof(h->vol[i].name), "%s", srv->vol[i].name);
		h->vol[i].where = hash(srv->vol[i].where);
	}
	h->nvols = srv->nvols;
	h->magic = MAGIC;
	for (i = 1; i < UNDOS; i++) {
		h->undo[i] = false;
		release(srv->state, &srv->state->im->undo[i], sizeof(struct undo));
	}
}
