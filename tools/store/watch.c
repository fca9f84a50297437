/* SPDX-License-Identifier: MIT */
/*
 * watch.c - notice what others do to the files of a served directory.
 *
 * fanotify, where it is there (also unprivileged, Linux 5.13): marks on the inodes, events that
 * name files by handle, and by the pid of whoever did it, so that our own changes are told apart. A
 * listener without privilege sees pid 0 for everybody else.
 *
 * inotify else: it does not say who.  An event is ours if we changed the file and its ctime and
 * size are what we left; a change by somebody else in the same instant as one of ours is then
 * missed.
 *
 * Neither sees stores through somebody's own mmap: the server looks at ctime once a second.
 *
 * Locks: everything belongs to the loop thread, but for own_* and changing (vol->lock).
 */
#include "dir.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <unistd.h>

#define FAN_MASK (FAN_MODIFY | FAN_ATTRIB | FAN_DELETE_SELF | FAN_MOVE_SELF)
#define READS 16 /* a wake-up; somebody may write without end */
#define INO_MASK (IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF)

static int by_key(struct store_file *a, struct store_file *b)
{
	return a->key < b->key ? -1 : a->key > b->key;
}

RB_GENERATE_INTERNAL(dir_watched, store_file, watch_link, by_key, static __attribute__((unused)))

static struct store_file *find_key(struct store_vol *vol, uint64_t key)
{
	struct store_file want = {.key = key};

	return RB_FIND(dir_watched, &vol->watched, &want);
}

/* ---- fanotify ---- */

static int fan_start(struct store_vol *vol)
{
	const unsigned base = FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_CLOEXEC | FAN_NONBLOCK;
	char proc[DIR_PROC_LEN];
	bool handle;
	int fd;

	dir_generation(vol->dirfd, &handle);
	if (!handle)
		return -EOPNOTSUPP;
	fd = fanotify_init(base | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS, O_RDONLY);
	if (fd < 0)
		fd = fanotify_init(base, O_RDONLY);
	if (fd < 0)
		return -errno;
	/* Does this file system do it?  Not all have what it takes. */
	dir_proc(vol->dirfd, proc);
	if (fanotify_mark(fd, FAN_MARK_ADD, FAN_MASK, AT_FDCWD, proc)) {
		int err = -errno;

		close(fd);
		return err;
	}
	fanotify_mark(fd, FAN_MARK_REMOVE, FAN_MASK, AT_FDCWD, proc);
	return fd;
}

/* The hash of the handle in an event, as dir_generation makes it; 0: there is none. */
static uint64_t fan_key(const char *p, const char *end)
{
	const size_t off = offsetof(struct fanotify_event_info_fid, handle);
	struct fanotify_event_info_header h;
	struct file_handle fh;

	while (end - p >= (ptrdiff_t)sizeof(h)) {
		memcpy(&h, p, sizeof(h));
		if (h.len < sizeof(h) || h.len > end - p)
			break;
		if (h.info_type == FAN_EVENT_INFO_TYPE_FID && h.len >= off + sizeof(fh)) {
			memcpy(&fh, p + off, sizeof(fh));
			if (fh.handle_bytes > h.len - off - sizeof(fh))
				break;
			return dir_hash(fh.handle_type, p + off + sizeof(fh), fh.handle_bytes);
		}
		p += h.len;
	}
	return 0;
}

/* Events are not aligned: copy what is read from them. */
static void fan_events(struct store_vol *vol, const char *p, const char *end)
{
	const pid_t self = getpid();
	struct fanotify_event_metadata m;
	struct store_file *file;

	for (; end - p >= (ptrdiff_t)sizeof(m); p += m.event_len) {
		memcpy(&m, p, sizeof(m));
		if (m.event_len < sizeof(m) || m.event_len > end - p)
			return;
		if (m.mask & FAN_Q_OVERFLOW) {
			vol->changed(vol->arg, NULL, STORE_LOST);
			continue;
		}
		if (m.pid == self)
			continue;
		file = find_key(vol, fan_key(p + m.metadata_len, p + m.event_len));
		if (file)
			vol->changed(vol->arg, file->priv,
				     (m.mask & FAN_MODIFY ? STORE_CONTENT : 0) |
					 (m.mask & ~(uint64_t)FAN_MODIFY ? STORE_ATTR : 0));
	}
}

/* ---- inotify ---- */

/* Whether the file is as our last change left it, or one of ours is under way. */
static bool ours(struct store_file *file)
{
	struct store_attr now;
	bool mine;

	if (dir_attr(file, file->fd, &now))
		return false;
	pthread_mutex_lock(&file->vol->lock);
	mine = file->changing ||
	       (file->own && file->own_ctime == now.ctime && file->own_size == now.size);
	if (!mine)
		file->own = false;
	pthread_mutex_unlock(&file->vol->lock);
	return mine;
}

static void ino_events(struct store_vol *vol, const char *p, const char *end)
{
	struct inotify_event e;
	struct store_file *file;

	for (; end - p >= (ptrdiff_t)sizeof(e); p += sizeof(e) + e.len) {
		memcpy(&e, p, sizeof(e));
		if (e.mask & IN_Q_OVERFLOW) {
			vol->changed(vol->arg, NULL, STORE_LOST);
			continue;
		}
		file = find_key(vol, (uint64_t)(unsigned)e.wd);
		if (!file || (e.mask & IN_IGNORED))
			continue;
		if (!(e.mask & IN_MODIFY))
			vol->changed(vol->arg, file->priv, STORE_ATTR);
		else if (!ours(file))
			vol->changed(vol->arg, file->priv, STORE_CONTENT);
	}
}

/* ---- both ---- */

int dir_watch(struct store_vol *vol, store_changed_fn *fn, void *arg)
{
	int fd;

	store_cred_enter(NULL);
	vol->changed = fn;
	vol->arg = arg;
	vol->how = DIR_WATCH_FANOTIFY;
	fd = fan_start(vol);
	if (fd < 0) {
		vol->how = DIR_WATCH_INOTIFY;
		fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
		if (fd < 0)
			fd = -errno;
	}
	if (fd < 0)
		vol->how = DIR_WATCH_NONE;
	vol->watch_fd = fd;
	return fd;
}

void dir_watch_read(struct store_vol *vol)
{
	char buf[16384];
	ssize_t n;
	int i;

	for (i = 0; i < READS && (n = read(vol->watch_fd, buf, sizeof(buf))) > 0; i++) {
		if (vol->how == DIR_WATCH_FANOTIFY)
			fan_events(vol, buf, buf + n);
		else
			ino_events(vol, buf, buf + n);
	}
}

int dir_watch_file(struct store_file *file, void *priv)
{
	struct store_vol *vol = file->vol;
	char proc[DIR_PROC_LEN];
	int wd, err;

	if (file->watched)
		return 0;
	if (vol->how == DIR_WATCH_NONE)
		return -EOPNOTSUPP;
	err = store_cred_enter(NULL);
	if (err)
		return err;
	dir_proc(file->fd, proc);
	if (vol->how == DIR_WATCH_FANOTIFY) {
		if (fanotify_mark(vol->watch_fd, FAN_MARK_ADD, FAN_MASK, AT_FDCWD, proc))
			return -errno;
		file->key = file->fid.gen;
	} else {
		wd = inotify_add_watch(vol->watch_fd, proc, INO_MASK);
		if (wd < 0)
			return -errno;
		file->key = (uint64_t)(unsigned)wd;
	}
	/* An inode that is watched already: it is held twice, which the caller does not do. */
	if (RB_INSERT(dir_watched, &vol->watched, file))
		return -EEXIST;
	file->priv = priv;
	file->watched = true;
	return 0;
}

void dir_unwatch_file(struct store_file *file)
{
	struct store_vol *vol = file->vol;
	char proc[DIR_PROC_LEN];

	if (!file->watched)
		return;
	RB_REMOVE(dir_watched, &vol->watched, file);
	file->watched = false;
	store_cred_enter(NULL);
	if (vol->how == DIR_WATCH_FANOTIFY)
		fanotify_mark(vol->watch_fd, FAN_MARK_REMOVE, FAN_MASK, AT_FDCWD,
			      dir_proc(file->fd, proc));
	else
		inotify_rm_watch(vol->watch_fd, (int)file->key);
}

void dir_watch_close(struct store_vol *vol)
{
	if (vol->watch_fd >= 0)
		close(vol->watch_fd);
	vol->watch_fd = -1;
	vol->how = DIR_WATCH_NONE;
}
