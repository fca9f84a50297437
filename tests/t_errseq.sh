#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_errseq - the server refuses a write-back (the file's mode forbids it by then): every open file is
# told exactly once, by its next fsync, msync or close; one that is opened when nobody was told yet is
# told, too; one that is opened later is not.  And what is written through is refused at once.
#
# The server acts with its clients' rights, and root would have them all: so the hosts are nobody's.
[ "$(id -u)" -ne 0 ] || REFAULT_VARIANT=@nobody
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=8192
for i in $(seq 1 9); do
	head -c "$LEN" /dev/zero | tr '\0' a >"$T/vol/f$i"
done
start_server
make_hosts A B
worker a A
worker a2 A

excised() { [ "$(counter A excise)" -gt "$1" ]; }
# A store to fN through mapping N, in A's hands already, is refused in the background.
refused() {
	local before
	before=$(counter A excise)
	chmod 444 "$T/vol/f$1" && want a ok store "$1" 5 7a7a || return
	eventually 60 excised "$before" || {
		echo "f$1 was not refused"
		return 1
	}
	# Counted when it is decided: it may be in page tables a moment longer.
	chmod 644 "$T/vol/f$1" && eventually 60 want a 6161 load "$1" 5 2
}
begin() {
	want a ok open "$1" "$T/vol/f$1" rw && want a ok map "$1" "$1" rw 0 "$LEN"
}
# once WORKER WORD...: that is told, and only once.
once() {
	local w=$1
	shift
	want "$w" 'err EACCES' "$@" && want "$w" ok "$@"
}

by_fsync() {
	begin 1 && want a ok open 20 "$T/vol/f1" rw && want a2 ok open 21 "$T/vol/f1" r &&
		want a2 ok open 22 "$T/vol/f1" rw && refused 1 && want a ok open 23 "$T/vol/f1" rw &&
		once a fsync 1 && want a ok open 24 "$T/vol/f1" rw && want a ok fsync 24 &&
		want a ok msync 1 && once a fdatasync 20 && once a2 fsync 21 &&
		once a2 syncrange 22 0 "$LEN" && once a fsync 23 && want a ok fsync 24
}
check told-once-by-fsync by_fsync

# What is told is told for the next rejection anew.
again() {
	refused 1 && once a fsync 24 && once a fsync 1 && once a2 fsync 21
}
check told-of-the-next-one-too again

# Mapping 26 has outlived its descriptor.
by_msync() {
	begin 2 && want a ok open 25 "$T/vol/f2" rw && want a ok map 25 25 rw 0 "$LEN" &&
		want a2 ok open 26 "$T/vol/f2" rw && want a2 ok map 26 26 r 0 "$LEN" &&
		want a2 ok close 26 && refused 2 && want a ok msync 2 async && once a msync 2 &&
		want a ok fsync 2 && want a ok fsync 2 && once a msync 25 && once a2 msync 26
}
check told-once-by-msync by_msync

# dup makes no open file; a mere reader's close is not a place to say it, its fsync is.
by_close() {
	begin 3 && want a ok dup 27 3 && want a ok open 28 "$T/vol/f3" rw &&
		want a ok open 29 "$T/vol/f3" r && want a ok dup 30 29 && want a2 ok open 31 "$T/vol/f3" rw &&
		want a2 ok fopen 32 "$T/vol/f3" r+ && refused 3 && want a 'err EACCES' close 27 &&
		want a ok fsync 3 && want a ok close 3 && want a ok msync 3 && want a 'err EACCES' close 28 &&
		want a ok close 30 && once a fsync 29 && want a2 'err EACCES' close 31 &&
		want a2 'err EACCES' fclose 32 && want a ok open 28 "$T/vol/f3" rw && want a ok close 28
}
check told-once-by-close by_close

# Whoever replaces a descriptor cannot be told; the open file can, still.
by_dup2() {
	begin 4 && want a ok dup 33 4 && want a ok open 34 "$T/vol/f1" r && refused 4 &&
		want a ok dup2 33 34 && once a fsync 4
}
check dup2-does-not-swallow-it by_dup2

# Flushed at once, so refused at once; nothing of it stays, and the position is where it was.
through() { # N MODE
	want a ok open "$1" "$T/vol/f$1" "$2" && want a ok seek "$1" 4090 && chmod 444 "$T/vol/f$1" &&
		want a 'err EACCES' write "$1" "$(printf '7a%.0s' {1..20})" &&
		want a ok fsync "$1" && want a 6161616161616161 read "$1" 8 &&
		want a 'err EACCES' pwrite "$1" "$((LEN - 2))" 7a7a7a7a && want a "$LEN" size "$1" &&
		want a 6161 pread "$1" 8 "$((LEN - 2))" && want a eof pread "$1" 8 "$LEN" &&
		chmod 644 "$T/vol/f$1" && want a ok pwrite "$1" "$((LEN - 2))" 7a7a7a7a &&
		want a "$((LEN + 2))" size "$1" && [ "$(tail -c 4 "$T/vol/f$1")" = zzzz ]
}
check O_SYNC-refused through 5 rws
check O_DSYNC-refused through 6 rwd

appended() {
	want a ok open 7 "$T/vol/f7" ra && want a ok write 7 7a && chmod 444 "$T/vol/f7" &&
		want a 'err EACCES' write 7 7a && want a "$((LEN + 1))" size 7 && chmod 644 "$T/vol/f7" &&
		want a ok write 7 7b && want a "$((LEN + 2))" size 7 && want a ok fsync 7
}
check append-refused appended

finish
