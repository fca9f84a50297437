/* SPDX-License-Identifier: MIT */
/*
 * store_test.c - the engine store_dir by itself: stores of many small ranges.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <refault/store.h>

#include "tools/store/dir.h"

enum { SIZE = 256 * 1024, RANGES = 4096 };

static char dir[64], path[128];
static struct store_vol *vol;
static struct store_cred *cred;
static struct store_file *file;
static struct store_undo *undo;
static rf_range range[RANGES];
static unsigned char data[RF_MAX_DATA], model[SIZE], got[SIZE];

static void open_vol(void)
{
	const char *why;

	cr_assert_eq(store_dir.open(dir, &vol, &why), 0, "%s", why);
	cred = store_cred_new(geteuid(), getegid(), NULL, 0);
	undo = calloc(1, sizeof(*undo));
	cr_assert(cred && undo);
}

static void setup(void)
{
	snprintf(dir, sizeof(dir), "/tmp/refault-store-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/f", dir);
	open_vol();
}

static void teardown(void)
{
	if (file)
		store_dir.forget(file);
	if (vol)
		store_dir.close(vol);
	unlink(path);
	umount2(dir, MNT_DETACH);
	rmdir(dir);
}

static void make_file(bool hole)
{
	struct store_attr attr;
	int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0644);

	memset(model, hole ? 0 : 'a', SIZE);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	if (!hole)
		cr_assert_eq(pwrite(fd, model, SIZE, 0), SIZE);
	close(fd);
	cr_assert_eq(
	    store_dir.lookup(vol, cred, "f", RF_LK_READ | RF_LK_WRITE, 0, false, &file, &attr), 0);
}

static void same(const char *when)
{
	struct stat st;
	int fd = open(path, O_RDONLY);

	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq(st.st_size, SIZE, "%s: %jd bytes", when, (intmax_t)st.st_size);
	cr_assert_eq(read(fd, got, SIZE), SIZE);
	close(fd);
	for (int i = 0; i < SIZE; i++)
		cr_assert_eq(got[i], model[i], "%s: byte %d is %02x, should be %02x", when, i,
			     got[i], model[i]);
}

/* n ranges of len bytes, every step bytes; c in all of them. */
static struct store_change change(size_t n, uint64_t len, uint64_t step, unsigned char c)
{
	struct store_change ch = {.ranges = range, .nranges = n, .data = data, .len = n * len};

	for (size_t i = 0; i < n; i++)
		range[i] = (rf_range){i * step, len};
	memset(data, c, n * len);
	ch.undo = undo;
	return ch;
}

static void to_model(uint64_t len, uint64_t step, size_t n, unsigned char c)
{
	for (size_t i = 0; i < n; i++)
		memset(model + i * step, c, len);
}

TestSuite(store_scatter, .init = setup, .fini = teardown, .timeout = 300);

Test(store_scatter, only_the_ranges_change)
{
	static const struct {
		size_t n;
		uint64_t len, step;
	} t[] = {{64, 1, 4096}, {4096, 1, 8}, {4096, 3, 64}, {100, 5000, 2500 + 3}, {63, 1, 9}};
	struct store_change ch;
	unsigned char c = 'b';

	make_file(false);
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++, c++) {
		ch = change(t[i].n, t[i].len, t[i].step, c);
		ch.len = t[i].n * t[i].len;
		cr_assert_eq(store_dir.store(file, cred, &ch, false), 0);
		cr_assert(ch.touched && !ch.torn);
		cr_assert_eq(ch.len, t[i].n * t[i].len);
		cr_assert_neq(ch.before.ctime, ch.after.ctime, "nobody would notice the change");
		to_model(t[i].len, t[i].step, t[i].n, c);
		same("after a store");
	}
}

Test(store_scatter, what_lies_past_the_end_is_clipped)
{
	struct store_change ch;

	make_file(false);
	ch = change(1000, 4, 300, 'z'); /* the last 126 are outside */
	cr_assert_eq(store_dir.store(file, cred, &ch, false), 0);
	cr_assert_lt(ch.nranges, 1000u);
	to_model(4, 300, (SIZE - 4) / 300 + 1, 'z');
	same("after a store");
}

Test(store_scatter, a_crash_halfway_is_undone)
{
	struct store_change ch;

	make_file(false);
	ch = change(2000, 2, 100, 'y');
	cr_assert_eq(store_dir.store(file, cred, &ch, false), 0);
	cr_assert_eq(atomic_load(&undo->armed), (uint32_t)STORE_UNDO_BYTES);
	cr_assert_eq(store_dir.recover(vol, "f", undo), 0);
	same("put back");
}

Test(store_scatter, those_who_watch_the_file_are_told)
{
	struct pollfd p = {.fd = inotify_init1(IN_NONBLOCK), .events = POLLIN};
	struct store_change ch;

	make_file(false);
	cr_assert_geq(inotify_add_watch(p.fd, path, IN_MODIFY), 0);
	ch = change(500, 1, 100, 'x');
	cr_assert_eq(store_dir.store(file, cred, &ch, false), 0);
	cr_assert_eq(poll(&p, 1, 0), 1);
	close(p.fd);
}

/* All or nothing, though the space runs out somewhere in the middle of the holes. */
Test(store_scatter, without_space_nothing_changes)
{
	struct store_change ch;

	if (geteuid() || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		cr_skip_test("needs root");
	store_dir.close(vol);
	cr_assert_eq(mount("t", dir, "tmpfs", 0, "size=128k,mode=777"), 0);
	open_vol();
	make_file(true);
	ch = change(64, 8, 4096, 'w');
	cr_assert_eq(store_dir.store(file, cred, &ch, false), -ENOSPC);
	cr_assert(!ch.torn);
	same("refused");
	ch = change(64, 8, 1024, 'v');
	cr_assert_eq(store_dir.store(file, cred, &ch, false), 0, "what fits does");
	to_model(8, 1024, 64, 'v');
	same("after a store");
}

/* Somebody on the server cuts the file off under the mapping. */
Test(store_scatter, a_file_that_is_cut_off_ends_the_copy)
{
	struct dir_scatter s;
	int fd;

	make_file(false);
	change(64, 8, 4096, 'u');
	fd = open(path, O_RDWR);
	cr_assert(!dir_scatter_map(&s, fd, range, 64, SIZE - 4096), "the last is outside");
	cr_assert(dir_scatter_map(&s, fd, range, 64, SIZE));
	cr_assert_eq(ftruncate(fd, 10 * 4096), 0);
	cr_assert_eq(dir_scatter_copy(&s, data, true), 10);
	cr_assert_eq(dir_scatter_copy(&s, data, false), 10);
	dir_scatter_unmap(&s);
	close(fd);
}

struct other {
	_Atomic bool stop;
	unsigned lost, stores;
};

/* A program on the server stores to bytes between the ranges, and looks whether they stay. */
static void *store_beside(void *arg)
{
	struct other *o = arg;
	int fd = open(path, O_RDWR);
	volatile unsigned char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	for (unsigned i = 0; !atomic_load(&o->stop); i++) {
		volatile unsigned char *b = p + (i % 500) * 100 + 50;
		const unsigned char v = (unsigned char)(*b + 1);

		*b = v;
		for (int k = 0; k < 50; k++)
			o->lost += *b != v;
		o->stores++;
	}
	munmap((void *)(uintptr_t)p, SIZE);
	close(fd);
	return NULL;
}

/*
 * The race of reading a page, changing it and writing it back: what others store meanwhile is
 * undone.  It shows within a second if dir_scatter_copy is made to do that.
 */
Test(store_scatter, what_others_store_beside_the_ranges_stays)
{
	struct other o = {0};
	struct store_change ch;
	pthread_t thread;

	make_file(false);
	cr_assert_eq(pthread_create(&thread, NULL, store_beside, &o), 0);
	for (int i = 0; i < 300; i++) {
		ch = change(2000, 1, 100, (unsigned char)i);
		cr_assert_eq(store_dir.store(file, cred, &ch, false), 0);
	}
	atomic_store(&o.stop, true);
	pthread_join(thread, NULL);
	cr_assert_gt(o.stores, 0u);
	cr_assert_eq(o.lost, 0u, "%u of %u were lost", o.lost, o.stores);
}
