#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_writeback - how dirty pages get to the server: in few large stores, in the background within
# dirty_expire, at each call that asks for it, in order, made durable once.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

BIG=67108864
for f in one two three four five six; do head -c 65536 /dev/zero | tr '\0' a >"$T/vol/$f"; done
head -c "$BIG" /dev/zero >"$T/vol/big"
start_server --lease 60
make_hosts
# What host A stores is flushed when it asks for it, and not because time goes by; B's expires.
# There is room for all of it, however little memory the machine has.
start_agent A --dirty-expire 600000 --dirty-bytes 256M --cache-bytes 512M
worker a A
worker b B
# begin WORKER N FILE LEN
begin() { want "$1" ok open "$2" "$T/vol/$3" rw && want "$1" ok map "$2" "$2" rw 0 "$4"; }
on_server() { # FILE OFF HEX
	[ "$(od -An -tx1 -j "$2" -N 1 "$T/vol/$1" | tr -d ' ')" = "$3" ]
}

# ---- few large stores, one fdatasync ----

TRACE=
if command -v strace >/dev/null &&
	timeout 5 strace -o /dev/null true 2>/dev/null; then
	strace -f -qq -o "$T/trace" -e trace=fdatasync,fsync -p "$SERVER" 2>/dev/null &
	TRACE=$!
	attached() { grep -qE "^TracerPid:[[:space:]]+$TRACE" "/proc/$SERVER/status"; }
	decided() { attached || ! kill -0 "$TRACE" 2>/dev/null; }
	eventually 60 decided && attached || TRACE=
fi
few_stores() {
	local before after
	begin a 1 big "$BIG" && want a ok fill 1 0 "$BIG" 62 || return
	before=$(counter A store)
	want a ok fsync 1 || return
	after=$(counter A store)
	echo "$((after - before)) stores for 64 MiB"
	[ $((after - before)) -ge 64 ] && [ $((after - before)) -le 80 ] &&
		[ "$(tr -d b <"$T/vol/big" | wc -c)" -eq 0 ]
}
here 64-MiB-are-at-most-80-stores few_stores
one_sync() {
	local n
	[ "$(stat -f -c %T "$T/vol")" != tmpfs ] || { echo "a tmpfs"; return 2; }
	kill -INT "$TRACE" && wait "$TRACE"
	n=$(grep -cE 'f(data)?sync\(' "$T/trace")
	[ "$n" -eq 1 ] || { echo "the server called fdatasync $n times"; cat "$T/trace"; return 1; }
}
if [ -z "$TRACE" ]; then
	skip one-fdatasync-for-64-MiB "no strace, or it may not look"
elif [ "$(stat -f -c %T "$T/vol")" = tmpfs ]; then
	kill -INT "$TRACE" && wait "$TRACE"
	skip one-fdatasync-for-64-MiB "nothing on a tmpfs is durable"
else
	here one-fdatasync-for-64-MiB one_sync
fi

# ---- a small change is a small message ----

small_message() {
	local sent received
	begin a 2 one 65536 && want a 61 load 2 0 1 || return
	sent=$(counter A wire-sent) received=$(counter A wire-received)
	want a ok store 2 4096 0102030405060708 && want a ok msync 2 || return
	sent=$(($(counter A wire-sent) - sent)) received=$(($(counter A wire-received) - received))
	echo "8 bytes of a page: $sent bytes sent, $received received"
	[ "$sent" -gt 8 ] && [ "$sent" -lt 200 ]
}
here 8-bytes-are-less-than-200-on-the-wire small_message

# ---- in the background ----

visible() { [ "$(ask "$1" pread "$2" 1 "$3")" = "$4" ]; }
expires() {
	begin b 1 two 65536 && want a ok open 3 "$T/vol/two" r && want a 61 pread 3 1 5000 &&
		want b ok store 1 5000 65 || return
	eventually 60 visible a 3 5000 65 || { echo "nobody flushed it"; return 1; }
}
check unflushed-stores-are-flushed-within-dirty-expire expires
# As on any file system: it starts nothing, waits for nothing, and what is dirty expires.
async() {
	local before
	begin a 4 three 65536 && begin b 2 three 65536 && want b 61 load 2 9000 1 || return
	before=$(counter A store)
	want a ok store 4 9001 66 && want a ok msync 4 async || return
	[ "$(counter A store)" -eq "$before" ] || { echo "MS_ASYNC sent something"; return 1; }
	want b ok store 2 9000 66 && want b ok msync 2 async || return
	eventually 60 on_server three 9000 66 || { echo "nobody flushed it"; return 1; }
	on_server three 9001 61 || { echo "host A flushed though nothing was due"; return 1; }
}
check MS_ASYNC-leaves-it-to-dirty-expire async

# ---- at once ----

range() {
	want a ok store 4 20000 67 && want a ok store 4 60000 67 &&
		want a ok syncrange 4 16384 8192 && want b 67 load 2 20000 1 &&
		on_server three 60000 61
}
check sync_file_range-is-visible-at-return range
through() { # MODE BYTE
	want a ok open 5 "$T/vol/four" "rw$1" && want b ok open 3 "$T/vol/four" r &&
		want b 61 pread 3 1 "$((0x$2))" && want a ok pwrite 5 "$((0x$2))" "$2" &&
		want b "$2" pread 3 1 "$((0x$2))" && want a ok write 5 "$2" && want b "$2" pread 3 1 0 &&
		want a ok close 5
}
check O_SYNC-writes-through through s 70
check O_DSYNC-writes-through through d 71

# ---- in order ----

# What fsync said is on the server is there though the server dies at once, and what was not asked
# for was not sent before it.
order() {
	begin a 6 five 65536 && begin a 7 six 65536 || return
	want a ok store 7 100 68 && want a ok store 6 100 68 && want a ok fsync 6 || return
	on_server five 100 68 || { echo "fsync has returned, and the server does not have it"; return 1; }
	on_server six 100 61 || { echo "a file that nobody flushed went along"; return 1; }
	want a ok fsync 7 || return
	on_server six 100 68 || { echo "the second fsync has returned, and the server does not have it"; return 1; }
}
check a-flush-that-returned-is-on-the-server-before-the-next order

# ---- and nobody waits for who is not there ----

gives_back() {
	begin a 8 two 65536 && want b 61 load 1 0 1 || return
	dismiss b
	REFAULT_RUNTIME_DIR=$(runtime B) "${AS[@]}" timeout 60 "$BIN/refault" stop || return
	# Not the 60 s of B's lease.
	want a ok store 8 0 69 && PATIENCE=40 want a ok fsync 8
}
here a-host-that-leaves-is-not-waited-for gives_back

# ---- what somebody else cut off ----

head -c 65536 /dev/zero | tr '\0' a >"$T/vol/cut"
# A stores before and after the cut, which it has not seen yet, and behind it nobody did.
stays_cut() {
	begin a 4 cut 65536 && want a ok store 4 10 62 || return
	truncate -s 4096 "$T/vol/cut"
	want a ok fsync 4 && want a ok store 4 20 62 && want a ok fsync 4 || return
	[ "$(stat -c %s "$T/vol/cut")" -eq 4096 ] || {
		echo "the file has $(stat -c %s "$T/vol/cut") bytes again"
		return 1
	}
	on_server cut 10 62 && on_server cut 20 62
}
here what-others-cut-off-does-not-come-back-with-a-flush stays_cut

dismiss a
finish
