/* SPDX-License-Identifier: MIT */
/*
 * refault.h - for programs that know about Refault.  Programs need not: preload the library.
 */
#ifndef REFAULT_REFAULT_H
#define REFAULT_REFAULT_H

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

#ifdef __cplusplus
}
#endif
#endif
