#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_unlock - an unlock is a flush: what A stored under a lock, B reads when A has unlocked, in
# whatever way a lock goes.  No test calls msync, fsync or the last close of a writable descriptor.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=8192
for i in $(seq 1 13); do
	head -c "$LEN" /dev/zero | tr '\0' a >"$T/vol/f$i"
done
start_server
make_hosts A B
worker a A
worker a2 A
worker b B

# A's file N is open as N for writing and mapped; B has read it.
begin() {
	want a ok open "$1" "$T/vol/f$1" rw && want a ok map "$1" "$1" rw 0 "$LEN" &&
		want b ok open "$1" "$T/vol/f$1" r && want b 6161 pread "$1" 2 4095
}
stored() { want a ok store "$1" 4095 7a7a; }
seen() { want b 7a7a pread "$1" 2 4095; }

unlocked() { # N KIND
	begin "$1" && want a ok lock "$1" "$2" ex && stored "$1" && want a ok lock "$1" "$2" un && seen "$1"
}
check flock unlocked 1 flock
check posix unlocked 2 posix
check open-file-description unlocked 3 ofd
check lockf unlocked 4 lockf

downgraded() {
	begin "$1" && want a ok lock "$1" "$2" ex && stored "$1" && want a ok lock "$1" "$2" sh && seen "$1"
}
check flock-made-shared downgraded 5 flock
check posix-made-shared downgraded 11 posix
check open-file-description-made-shared downgraded 12 ofd

# POSIX locks go with any close of the file: here of a descriptor that could not even write.
posix_close() {
	begin 6 && want a ok open 36 "$T/vol/f6" r && want a ok lock 6 posix ex && stored 6 &&
		want a ok close 36 && seen 6
}
check close-of-another-descriptor-drops-posix-locks posix_close

posix_dup2() {
	begin 7 && want a ok open 37 "$T/vol/f7" r && want a ok open 38 "$T/vol/f1" r &&
		want a ok lock 7 posix ex && stored 7 && want a ok dup2 37 38 && seen 7
}
check dup2-over-a-descriptor-drops-posix-locks posix_dup2

# What the library itself opens and closes drops none.
truncated() {
	begin 13 && want a2 ok open 13 "$T/vol/f13" r && want a ok lock 13 posix ex &&
		want a2 yes locked 13 && want a ok cut "$T/vol/f13" 4096 && want a2 4096 size 13 &&
		want a2 yes locked 13
}
check truncate-keeps-posix-locks truncated

# The lock belongs to an open file that is read-only; its last close unlocks.
flock_close() {
	begin 8 && want a ok open 39 "$T/vol/f8" r && want a ok dup 40 39 && want a ok lock 39 flock ex &&
		stored 8 && want a ok close 39 && want a ok close 40 && seen 8
}
check last-close-drops-flock flock_close

# Another program of the host takes the lock, and ends with it.
flock_exit() {
	begin 9 && want a2 ok open 9 "$T/vol/f9" r && want a2 ok lock 9 flock ex && stored 9 &&
		dismiss a2 && seen 9
}
here exit-drops-flock flock_exit

# flock(1) holds the lock for a program that stores through a mapping and leaves it mapped.
flock_program() {
	begin 10 && stored 10 && on A flock "$T/vol/f10" true && seen 10
}
check flock-program flock_program

finish
