/* SPDX-License-Identifier: MIT */
/*
 * fsx_model.h - what fsx.c compares with: the files as arrays of bytes, and who last touched each byte.
 *
 * Everything is on a board, memory that all players share; only whose turn it is looks at it or
 * changes it.  Bytes at and behind a file's size are zero in the array.
 *
 * `unflushed`: while two hosts work without a flush in between, each byte that one of them stored and
 * did not flush is marked with that host; others cannot know what they would find there.
 */
#ifndef FSX_MODEL_H
#define FSX_MODEL_H

#include "team.h"

enum {
	FILES = 3,
	MAX_SIZE = 128 * PAGE,
	PLAYERS = 9, /* at most, with the third party */
	PIDS = 20,   /* of players and readers */
};

/* name, weight, where it may come */
#define OPS(X)                                                                                     \
	X(READ, 100, MIXED)                                                                        \
	X(WRITE, 80, MIXED | THIRD)                                                                \
	X(APPEND, 15, 0)                                                                           \
	X(MAPREAD, 100, MIXED)                                                                     \
	X(MAPWRITE, 100, MIXED)                                                                    \
	X(READ_INTO, 8, 0)                                                                         \
	X(WRITE_FROM, 8, 0)                                                                        \
	X(POLLUTE, 3, 0)                                                                           \
	X(PAST_EOF, 1, 0)                                                                          \
	X(TRUNCATE, 20, THIRD)                                                                     \
	X(OPEN_TRUNC, 2, 0)                                                                        \
	X(FALLOC, 60, THIRD)                                                                       \
	X(CLONE, 14, 0)                                                                            \
	X(DEDUPE, 10, 0)                                                                           \
	X(COPY, 16, 0)                                                                             \
	X(SENDFILE, 5, 0)                                                                          \
	X(SPLICE, 4, 0)                                                                            \
	X(SEEK, 10, 0)                                                                             \
	X(FSYNC, 8, MIXED)                                                                         \
	X(INVALIDATE, 4, MIXED)                                                                    \
	X(ADVISE, 8, MIXED)                                                                        \
	X(MADVISE, 10, MIXED)                                                                      \
	X(REMOVE, 4, 0)                                                                            \
	X(MINCORE, 2, MIXED)                                                                       \
	X(MLOCK, 2, MIXED)                                                                         \
	X(UNMAP, 4, MIXED)                                                                         \
	X(MREMAP, 3, MIXED)                                                                        \
	X(REOPEN, 4, 0)                                                                            \
	X(FORK, 1, 0)                                                                              \
	X(STAT, 20, MIXED)                                                                         \
	X(CHECK, 3, THIRD)                                                                         \
	X(FLUSH, 1, 0)

enum { MIXED = 1, THIRD = 2 };
enum kind {
#define X(name, weight, where) name,
	OPS(X)
#undef X
	    KINDS
};
static const struct {
	const char *name;
	unsigned weight, where;
} kinds[] = {
#define X(name, weight, where) {#name, weight, where},
    OPS(X)
#undef X
};

struct op {
	uint32_t off, off2, len;
	uint32_t fill; /* what the bytes that it stores follow from */
	uint8_t player, kind, file, file2, how, mixed;
	int64_t result; /* or -errno */
};

struct model {
	size_t size;
	bool polluted; /* somebody stored behind the end of the last page */
	unsigned char data[MAX_SIZE];
	uint32_t owner[MAX_SIZE]; /* the op that last touched it */
	uint8_t unflushed[MAX_SIZE];
};

/* The calls that a file system may lack. */
enum { ALLOC, KEEP, PUNCH, ZERO, ZERO_KEEP, COLLAPSE, INSERT, UNSHARE, UNSHARE_KEEP, MODES };
enum { CAN_CLONE = MODES, CAN_DEDUPE, CAN_COPY, PROBES };

struct board {
	_Atomic uint32_t turn; /* futex: whose it is; PLAYERS: over */
	_Atomic uint32_t failed;
	uint64_t seed, excluded;
	uint32_t hosts, procs, players; /* players: without the third party, who is the last */
	uint32_t block;                 /* of the file system */
	int probe[PROBES];
	bool native; /* no library: shows that the model is right */
	bool list;   /* the ops are given */
	uint32_t lie_at;
	bool lie_file;
	uint32_t n, made, asked, total; /* the op that runs; how many there are */
	uint32_t mixed;                 /* so many ops to come without a flush in between */
	uint32_t child_end;             /* the last op of a child */
	uint8_t marks;                  /* hosts with unflushed marks, bit 0: host 0 */
	bool settle[PLAYERS];           /* the host has not seen yet what the third party did */
	pid_t pid[PIDS];                /* none for the third party */
	struct model file[FILES];
	struct op op[];
};

static struct board *b;

static inline struct model *model(unsigned file)
{
	return &b->file[file];
}

static void touched(struct model *m, size_t off, size_t end)
{
	for (; off < end; off++)
		m->owner[off] = b->n;
}

static void set_size(struct model *m, size_t size)
{
	if (size != m->size)
		m->polluted = false;
	if (size < m->size) {
		memset(m->data + size, 0, m->size - size);
		touched(m, size, m->size);
	}
	touched(m, m->size, size);
	m->size = size;
}

static void model_write(struct model *m, size_t off, const void *bytes, size_t n)
{
	if (n == 0)
		return;
	if (off + n > m->size)
		set_size(m, off + n);
	memcpy(m->data + off, bytes, n);
	touched(m, off, off + n);
}

static void model_zero(struct model *m, size_t off, size_t n)
{
	size_t end = off + n < m->size ? off + n : m->size;

	if (off >= end)
		return;
	memset(m->data + off, 0, end - off);
	touched(m, off, end);
}

static void model_collapse(struct model *m, size_t off, size_t n)
{
	memmove(m->data + off, m->data + off + n, m->size - off - n);
	memset(m->data + m->size - n, 0, n);
	touched(m, off, m->size);
	set_size(m, m->size - n);
}

static void model_insert(struct model *m, size_t off, size_t n)
{
	memmove(m->data + off + n, m->data + off, m->size - off);
	memset(m->data + off, 0, n);
	set_size(m, m->size + n);
	touched(m, off, m->size);
}

static void model_copy(struct model *to, size_t to_off, struct model *from, size_t off, size_t n)
{
	static unsigned char bytes[MAX_SIZE];

	memcpy(bytes, from->data + off, n);
	model_write(to, to_off, bytes, n);
}

/* ---- what the kernel says before or instead of doing it ---- */

static const char *const mode_name[MODES] = {
    "ALLOC", "KEEP", "PUNCH", "ZERO", "ZERO_KEEP", "COLLAPSE", "INSERT", "UNSHARE", "UNSHARE_KEEP"};
static const int mode_flags[MODES] = {
    [ALLOC] = 0,
    [KEEP] = FALLOC_FL_KEEP_SIZE,
    [PUNCH] = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    [ZERO] = FALLOC_FL_ZERO_RANGE,
    [ZERO_KEEP] = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
    [COLLAPSE] = FALLOC_FL_COLLAPSE_RANGE,
    [INSERT] = FALLOC_FL_INSERT_RANGE,
    [UNSHARE] = FALLOC_FL_UNSHARE_RANGE,
    [UNSHARE_KEEP] = FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
};

static inline bool aligned(uint64_t n)
{
	return n % b->block == 0;
}

static inline bool overlap(size_t a, size_t c, size_t n)
{
	return a + n > c && a < c + n;
}

/* What fallocate is to return; *m is as after it. */
static int model_falloc(struct model *m, unsigned mode, size_t off, size_t n)
{
	if (n == 0)
		return -EINVAL;
	if (b->probe[mode])
		return -b->probe[mode];
	switch (mode) {
	case COLLAPSE:
		if (!aligned(off | n) || off + n >= m->size)
			return -EINVAL;
		model_collapse(m, off, n);
		return 0;
	case INSERT:
		if (!aligned(off | n) || off >= m->size)
			return -EINVAL;
		model_insert(m, off, n);
		return 0;
	case PUNCH:
	case ZERO:
	case ZERO_KEEP:
		model_zero(m, off, n);
		break;
	default:
		break;
	}
	if ((mode == ALLOC || mode == ZERO || mode == UNSHARE) && off + n > m->size)
		set_size(m, off + n);
	return 0;
}

static int model_clone(struct model *to, size_t to_off, struct model *from, size_t off, size_t n)
{
	if (b->probe[CAN_CLONE])
		return -b->probe[CAN_CLONE];
	if (n == 0) {
		if (off > from->size)
			return -EINVAL;
		n = from->size - off;
		if (n == 0)
			return 0;
	}
	if (!aligned(off) || !aligned(to_off) || off >= from->size || off + n > from->size)
		return -EINVAL;
	size_t blocks = n;
	if (off + n == from->size)
		blocks = (n + b->block - 1) / b->block * b->block;
	else if (!aligned(n))
		return -EINVAL;
	if (to == from && overlap(off, to_off, blocks))
		return -EINVAL;
	if (!aligned(n) && to_off + n < to->size)
		return -EINVAL;
	model_copy(to, to_off, from, off, n);
	return 0;
}

/* -errno, or 1 if they differ. */
static int model_dedupe(struct model *to, size_t to_off, struct model *from, size_t off, size_t n)
{
	size_t same = n, blocks;

	if (b->probe[CAN_DEDUPE])
		return -b->probe[CAN_DEDUPE];
	if (off + n > from->size)
		return -EINVAL;
	if (n == 0)
		return 0;
	if (!aligned(off) || !aligned(to_off) || to_off + n > to->size)
		return -EINVAL;
	if (off + n == from->size && to_off + n == to->size)
		blocks = (n + b->block - 1) / b->block * b->block;
	else
		blocks = same = n / b->block * b->block;
	if (to == from && overlap(off, to_off, blocks))
		return -EINVAL;
	return memcmp(from->data + off, to->data + to_off, same) != 0;
}

#endif
