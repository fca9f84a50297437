#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_halted - a program stands still at each system call of a store, a write or an mremap, with what it holds, while
# the file is cut, punched, flushed and written to: tests/prog/halted.c.
#
# A change does not wait for such a program for ever, and what it stores when it goes on is not lost.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

mkdir "$T/back" # the server's own file, out of the volume
: >"$T/vol/file"
ln "$T/vol/file" "$T/back/file"
chmod 666 "$T/vol/file"
start_server
make_hosts
mkfifo "$T/far.in" "$T/far.out"

halted() {
	on B "$BIN/tests/halted" far "$T/vol/file" <"$T/far.in" >"$T/far.out" 2>"$T/far.err" &
	on A "$BIN/tests/halted" "$T/vol/file" "$T/back/file" "$T/far.in" "$T/far.out" 2>&1 || return
	wait
}
check halted-stores-are-in-the-file-or-not halted
finish
