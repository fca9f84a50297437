/* SPDX-License-Identifier: MIT */
/*
 * refault.h - for programs that know about Refault.  Programs need not: preload the library.
 */
#ifndef REFAULT_REFAULT_H
#define REFAULT_REFAULT_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define REFAULT_VERSION "0.1.0"

/*
 * The version of the library that is loaded, as "MAJOR.MINOR.PATCH"; static storage.
 * Never fails.  Thread-safe, async-signal-safe.  Source: shim/refault.c.
 */
const char *refault_version(void);

/*
 * Whether fd is a descriptor of a file that Refault keeps coherent: 1, 0, or -1 with errno EBADF.
 * Thread-safe, async-signal-safe.  Source: shim/refault.c.
 */
int refault_managed(int fd);

/*
 * Pin [addr, addr + len), any bytes of mappings of managed files, for I/O that goes past the library:
 * memory registered with a NIC or as io_uring fixed buffers, or a thread of the kernel's.
 * Afterwards the pages are there, the kernel finds them without EFAULT, they are not replaced by others
 * (changes by other hosts are merged in place), and stores to them by whatever way count as
 * changes.  flags: REFAULT_PIN_WRITE if the I/O stores; the mapping must be writable then.
 *
 * Pinned pages count as dirty until they are unpinned, looked through for changes by every flush and
 * every second or so, and a program may pin as much as three quarters of what may be dirty on this
 * host (refault-agent(8), dirty-bytes).  They are written back under the key of the program that pinned
 * them; programs with another key cannot store there meanwhile.  What a device stores is not held
 * back while a clone or a flush takes the file of one moment.  When the server is not heard of for a
 * lease, the kernel may find EFAULT all the same, until the program touches the page; a device goes on.
 *
 * A private mapping must be writable: its pages become the program's own copies first, as they do for
 * the kernel's own pins, and the file has nothing to do with them any more.
 *
 * A truncate, a hole punch and their like by any program of this host wait for the pin, or fail, or leave
 * it the pages as orphans: see refault_pins.  Pins add up; each is given back by refault_unpin with
 * the same addr and len, by munmap of all of it, or by the end of the program; fork children have
 * none.
 *
 * 0, or -1 with errno, and nothing is pinned: EINVAL (flags, len 0), ENOMEM (not all of it is managed;
 * 1024 pins are in use; more than may be dirty), EACCES (the mapping does not allow it), EFAULT (past
 * the end of the file), EBUSY (a page is dirty under another key, and stays so), EHOSTDOWN, ETIMEDOUT,
 * EIO, ESTALE (a page cannot be had).  Thread-safe, not async-signal-safe; waits for the
 * server where pages are not cached.  Source: shim/pin.c.
 */
#define REFAULT_PIN_WRITE 1
int refault_pin(void *addr, size_t len, unsigned flags);
/* -1 with errno EINVAL: there is no such pin.  Thread-safe.  Source: shim/pin.c. */
int refault_unpin(void *addr, size_t len);

/*
 * What this thread's truncate, fallocate, clone and copy calls do from now on when what they would cut
 * off or replace is pinned (by refault_pin, or by a system call that is under way):
 *
 *	REFAULT_PINS_WAIT	wait up to wait_ms (-1: as configured), then do as `then` says, one of
 *				the two below
 *	REFAULT_PINS_FAIL	fail at once, with ETXTBSY
 *	REFAULT_PINS_SEQUESTER	go on; the pins keep the old pages, which are no part of the file any more
 *	REFAULT_PINS_DEFAULT	as REFAULT_PINS, or the volume's option, says; 10 seconds, then ETXTBSY
 *
 * A thread that would wait for a pin of its own gets EDEADLK.  0, or -1 with errno EINVAL.
 * Source: shim/pin.c.
 */
enum { REFAULT_PINS_DEFAULT = 0, REFAULT_PINS_WAIT, REFAULT_PINS_FAIL, REFAULT_PINS_SEQUESTER };
int refault_pins(int policy, int wait_ms, int then);

/*
 * Take a file out of this host's cache and out of all programs' mappings of it, so that the next touch
 * asks the server: the file at path, or of fd.  flags:
 *
 *	0			only clean pages go
 *	REFAULT_FLUSH		write back first; stores wait meanwhile, so no write is lost or kept
 *	REFAULT_DISCARD		dirty pages go, too: what was stored there is lost
 *
 * Returns how many pages stay (dirty or pinned ones), or -1 with errno: EINVAL (both flags, others; not a
 * managed file), what open(2) says of path, what a flush says; what the server refused
 * is reported as by fsync.  Thread-safe.  Source: shim/invalidate.c.
 */
#define REFAULT_FLUSH 1
#define REFAULT_DISCARD 2
ssize_t refault_invalidate(const char *path, int flags);
ssize_t refault_finvalidate(int fd, int flags);

#ifdef __cplusplus
}
#endif
#endif
