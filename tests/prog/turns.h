/* SPDX-License-Identifier: MIT */
/*
 * turns.h - for test programs of which two take turns: numbers through pipes.
 */
#ifndef TURNS_H
#define TURNS_H

#include <err.h>
#include <stdint.h>
#include <unistd.h>

static inline void put(int fd, uint64_t v)
{
	if (write(fd, &v, sizeof(v)) != sizeof(v))
		err(1, "pipe");
}

static inline uint64_t get(int fd)
{
	uint64_t v;

	if (read(fd, &v, sizeof(v)) != sizeof(v))
		errx(1, "the other side is gone");
	return v;
}

#endif
