/* SPDX-License-Identifier: MIT */
/*
 * agent.h - what programs (librefault.so, refault) and refault-agent say to each other.
 *
 * Transport: SOCK_SEQPACKET on RUNTIME/agent.sock, one struct rf_req a packet, followed by its
 * variable part; at most RF_REQ_MAX bytes.  The first packet on a connection is RF_OP_ATTACH or
 * RF_OP_INFO; anything malformed ends the connection, with one line in the agent's log.
 *
 * RUNTIME is, in this order: $REFAULT_RUNTIME_DIR; /run/user/UID/refault where /run/user/UID is
 * there and ours (whatever the environment says, so that cron and a login shell meet the same
 * agent); $XDG_RUNTIME_DIR/refault; /tmp/refault-UID.  It is made with mode 0700; a directory of
 * another owner, or open to others, or a symlink, is refused.
 *
 * Starting.  connect() fails with ENOENT or ECONNREFUSED -> flock RUNTIME/lock, connect again, if
 * it still fails run `refault-agent --daemon` (which exits 0 as soon as its socket listens, and
 * inherits nothing but fds 0-2), connect, unlock.
 *
 * ATTACH carries a user id's view: the agent checks SO_PEERCRED (its own uid only).  Reply: one
 * struct rf_attach_r on the same socket.  After it the socket only carries requests, never data
 * back: answers go to rf_proc.cell[req.cell] - ret, err, then state = DONE, futex wake - but for
 * RF_OP_OPEN, whose answer (struct rf_open_r with descriptors) goes to the socket sent along.
 *
 * A request is abandoned by bumping the cell's seq; an answer whose seq is not the cell's is
 * dropped.  All requests are idempotent: when rf_proc.agent_gen moves, a waiter sends its request
 * again, with the same cell and seq, from which the agent makes the ids of changing calls: what the
 * agent before had sent to the server is not done twice, APPEND neither.  A connection that hung up
 * means that agent and supervisor are both gone.
 *
 * Stripper.  The other end of the socket passed as ATTACH's second descriptor (SEQPACKET) carries
 * struct rf_strip both ways: the agent orders, the stripper answers with the same packet when no
 * PTE of these vnodes is left in the program, or none but of pinned pages, and it says so.  Orders are
 * carried out in order.
 */
#ifndef REFAULT_AGENT_H
#define REFAULT_AGENT_H

#include <stdint.h>

#define RF_AGENT_VERSION 3
#define RF_REQ_MAX (160u * 1024)
#define RF_APPEND_MAX (128u * 1024)

enum rf_op {
	/* descriptors: userfaultfd, stripper's socket.  Variable part: none. -> struct rf_attach_r
	 */
	RF_OP_ATTACH = 1,
	/* descriptor: reply socket.  Variable part: struct rf_open. -> struct rf_open_r */
	RF_OP_OPEN = 2,
	/*
	 * Make pages [arg0, arg0 + arg1) readable: promise valid, content in the cache as far as it
	 * goes.  arg1 >= 1; the agent may read ahead and may answer when the first page is there.
	 * arg2: RF_FAULT_*.  err: -EIO, -ESTALE, -EACCES, -EHOSTDOWN ... ; -ENXIO: past EOF.
	 */
	RF_OP_FAULT = 3,
	/* Write back pages [arg0, arg0 + arg1) (arg1 0: all).  arg2: RF_FLUSH_*.  vnode 0:
	 * everything of this host; without RF_FLUSH_DURABLE twins are short, and it is answered as
	 * soon as some are free again.  err: why it was not tried to the end (-EHOSTDOWN: the
	 * server is away, -ETIMEDOUT: it does not answer; all that is dirty stays so).  What the
	 * server refused is not in err but in rf_vnode.errseq, which has moved before the answer.
	 */
	RF_OP_FLUSH = 4,
	/* write() goes past EOF: make i_size at least arg0.  ret0: i_size. */
	RF_OP_EXTEND = 5,
	/* ftruncate to arg0.  Pins: -ETXTBSY, -EDEADLK, see struct rf_req; so FALLOC and REMAP. */
	RF_OP_SETSIZE = 6,
	/* fallocate: arg0 mode (FALLOC_FL_*), arg1 offset, arg2 length. */
	RF_OP_FALLOC = 7,
	/* O_APPEND write; variable part: the bytes.  arg0: RF_FLUSH_DURABLE or 0.  ret0: offset. */
	RF_OP_APPEND = 8,
	/* The program closed its last use of the vnode and gives back arg0 RF_OP_OPEN replies (an
	 * open that is under way in another thread keeps it held).  No answer. */
	RF_OP_CLOSE = 9,
	/* For `refault`: variable part: a word ("status", "ping", "stop"; "invalidate" goes on, see
	 * struct rf_inval).  Answer: text packets on the same socket, then end of file. */
	RF_OP_INFO = 10,
	/* A fork child holds the vnode that its parent opened: count arg0 opens for it. -ESTALE:
	   gone. */
	RF_OP_ADOPT = 11,
	/* A program of this host is about to remove the file's last name: what is stored in it is
	 * not to be refused for that. */
	RF_OP_NAMELESS = 12,
	/* Take all pages out of the cache and out of every program, to be validated and fetched anew.
	 * arg2: RF_INVAL_*.  ret0: pages that stay, because they are dirty, pinned, or hold
	 * synchronisation objects.  What is on its way to the server when DISCARD comes may still arrive
	 * there, and then shows again.  arg1 not 0: advice, which only drops what is clean in pages
	 * [arg0, arg0 + arg1); no arg2. */
	RF_OP_INVALIDATE = 13,
	/*
	 * Clone, dedupe or copy within one volume.  vnode and key: the destination; arg0: rf_remap_arg;
	 * arg1 offset in the source, arg2 in the destination, arg3 length.  ret0: bytes done.  -EXDEV:
	 * they are not of one volume; other errors are the server's.
	 */
	RF_OP_REMAP = 14,
	/* SEEK_DATA, SEEK_HOLE: arg0 offset, arg1 whence; flushes first.  ret0: offset.  -ENXIO. */
	RF_OP_SEEK = 15,
};

enum {
	RF_FAULT_WRITE = 1,
	RF_FAULT_RANDOM = 2, /* no readahead */
	RF_FAULT_NOWAIT = 4, /* readahead: start to fetch them, answer at once */
};
enum {
	RF_INVAL_FLUSH = 1,   /* write back first; programs' stores wait meanwhile */
	RF_INVAL_DISCARD = 2, /* dirty pages go, too, and what was stored is lost */
};
/*
 * RF_OP_INFO "invalidate", a NUL, this, then what is to be invalidated: `files` pairs of uint64_t, device
 * and inode as programs see them; or (files 0) the name of an export and, each for itself or all that is
 * below it, names in it as the server knows them (none: all of it), each ended by a NUL.
 *
 * The answer, for each of them that is held here: "INDEX PAGES ERRNO PATH" and a NUL: the index of what
 * was asked for, the pages that stay, 0 or why it was not done to the end, its name at the server; and
 * at the end "done".
 */
struct rf_inval {
	uint32_t flags; /* RF_INVAL_* */
	uint32_t files;
};

enum { RF_KIND_CLONE = 1, RF_KIND_DEDUPE = 2, RF_KIND_COPY = 3 }; /* as RF_REMAP_* on the wire */

static inline uint64_t rf_remap_arg(uint32_t vnode, uint32_t key, uint32_t kind)
{
	return (uint64_t)kind << 40 | (uint64_t)key << 32 | vnode;
}

/*
 * What SETSIZE, FALLOC and REMAP do when they meet pins (state.h) in what they cut off, punch or
 * replace.  Wait so many ms, then fail or sequester; or do that at once.
 */
enum { RF_PINS_FAIL = 1, RF_PINS_SEQUESTER = 2 };
#define RF_PINS_WAIT_MAX 0x0fffffffu

static inline uint32_t rf_pins(uint32_t then, uint32_t wait_ms)
{
	return then << 28 | (wait_ms < RF_PINS_WAIT_MAX ? wait_ms : RF_PINS_WAIT_MAX);
}
#define RF_PINS_DEFAULT rf_pins(RF_PINS_FAIL, 10000)

enum {
	RF_FLUSH_DURABLE = 1, /* and fsync on the server */
	RF_FLUSH_NOWAIT = 2,  /* start it, answer at once */
	RF_FLUSH_APPLIED = 4, /* answer when it is applied, not when it is released */
};

struct rf_req {
	uint32_t op;
	uint32_t version; /* RF_AGENT_VERSION */
	uint32_t cell;
	uint32_t seq;
	uint32_t vnode;
	uint32_t key;  /* of the open file, from rf_open_r: all that need a right at the server */
	uint32_t pins; /* rf_pins(); 0: RF_PINS_DEFAULT */
	uint32_t tid;  /* who asks: who waits for a pin of its own gets -EDEADLK */
	uint64_t arg[4];
};

/* Descriptors with it: proc, host (read-only), twins. */
struct rf_attach_r {
	int32_t err; /* 0 or -errno; text says why */
	uint32_t version;
	uint32_t proc_id;
	uint32_t pad;
	char text[112];
};

enum { RF_OPEN_READ = 1, RF_OPEN_WRITE = 2, RF_OPEN_CREATE = 4, RF_OPEN_EXCL = 8 };

/* A file: which server, which export, which path, and what the program's fstat says it is. */
struct rf_open {
	uint32_t flags;
	uint32_t mode; /* permission bits for CREATE, umask applied */
	uint64_t dev, ino;
	uint16_t addr_len, name_len, path_len;
	/* REFAULT_KEY: the key's name and secret; key_len 0: the user's own uid */
	uint16_t key_len, secret_len;
	uint16_t pad[3];
	/* addr, name, path, key, secret follow, not terminated */
};

/* Descriptors with it, if err is 0: data (read-write), state. */
struct rf_open_r {
	int32_t err; /* 0 or -errno; text says why */
	uint32_t vnode;
	uint32_t key; /* below RF_KEYS, good on this host as long as the file is open or dirty */
	char text[116];
};

struct rf_strip {
	uint32_t seq;
	uint32_t vnode; /* 0: every managed mapping */
	uint32_t flags;
	uint32_t left; /* the answer's: something stayed */
};
/* Pinned pages keep their PTEs. */
enum { RF_STRIP_PINS = 1 };

#endif
