#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_merge - hosts that store to the same page or file at the same time lose nothing of each other's.
# SEED=n repeats the choices; the rest is chance.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${SEED:-$RANDOM$RANDOM}
echo "seed $SEED"
for f in counters ring same write equal native; do head -c 16384 /dev/zero >"$T/vol/$f"; done
: >"$T/vol/log"
: >"$T/vol/log.killed"
start_server
make_hosts A B C D

PARTS=0
# begin HOST ARGUMENT...: a program of the test's team on that host.
begin() {
	PARTS=$((PARTS + 1))
	timeout 300 "$T/$1" "$BIN/tests/merge" "${@:2}" >"$T/merge.$PARTS" 2>&1 &
	WPID[merge.$PARTS]=$!
}
# end_all: all of them have ended, content with what they saw.
end_all() {
	local p rc=0
	for p in "${!WPID[@]}"; do
		case $p in merge.*) ;; *) continue ;; esac
		wait "${WPID[$p]}" || { echo "$p ended with status $?"; rc=1; }
		unset "WPID[$p]"
	done
	[ "$rc" -eq 0 ] || echo "seed $SEED"
	cat "$T"/merge.*
	rm "$T"/merge.*
	return "$rc"
}
# everywhere ARGUMENT...: what all hosts and the server have is right.
everywhere() {
	local where rc=0
	for where in A B C ''; do
		echo "${where:-server}:"
		${where:+"$T/$where"} "$BIN/tests/merge" "$@" 2>&1 || rc=1
	done
	return "$rc"
}

# write() of the bytes that were there already is a change, a mapped store of them is none.  The agent
# is told not to flush by itself.
equal_bytes() {
	raw A "$BIN/refault-agent" --daemon --dirty-expire 600000 || return
	worker a A
	worker b B
	local w i
	for w in a b; do
		want "$w" ok open 1 "$T/vol/equal" rw && want "$w" ok map 1 1 rw 0 8192 || return
	done
	want a 0000 load 1 0 2 && want a 0000 load 1 4096 2 &&
		want a ok pwrite 1 10 00000000 && want a ok store 1 4106 00000000 &&
		want a ok store 1 4200 77 || return # else there is nothing to flush
	for i in 8 4104; do want b ok store 1 "$i" 6161616161616161 || return; done
	want b ok msync 1 && want a 6161000000006161 load 1 8 8 && want a 6161616161616161 load 1 4104 8 &&
		want a ok msync 1 && want b 6161000000006161 load 1 8 8 &&
		want b 6161616161616161 load 1 4104 8 && want b 77 load 1 4200 1 || return
	on B cat "$T/vol/equal" | cmp - "$T/vol/equal" || return
	dismiss a b
	REFAULT_RUNTIME_DIR=$T/a "$BIN/refault" stop # the next one is as usual
}
here merge-write-carries-equal-bytes equal_bytes

counters() {
	local h n=0
	for h in A B C; do
		begin "$h" counters "$T/vol/counters" "$T/counters" "$((n++))" 3 400 "$SEED"
	done
	begin D counting "$T/vol/counters" "$T/counters" 3
	end_all && everywhere counted "$T/vol/counters" "$T/counters" 3
}
here merge-counters-of-three-hosts-in-one-page counters

appends() {
	local h n=0
	for h in A B C D; do begin "$h" append "$T/vol/$1" "$((n++))" 2 "$2"; done
}
several_append() {
	appends log 100
	end_all && everywhere appended "$T/vol/log" 4 2 100
}
here merge-appends-of-four-hosts several_append

ring() {
	begin A ring produce "$T/vol/ring" "$T/ring" 600 "$SEED"
	begin B ring consume "$T/vol/ring" "$T/ring" 600 "$SEED"
	end_all
}
here merge-ring-buffer ring

same_store() {
	begin A same store "$T/vol/same" "$T/same" 0 400 "$SEED"
	begin B same store "$T/vol/same" "$T/same" 1 400 "$SEED"
	begin C watch "$T/vol/same" "$T/same"
	end_all && identical same
}
same_write() {
	begin A same write "$T/vol/write" "$T/write" 0 300 "$SEED"
	begin B same write "$T/vol/write" "$T/write" 1 300 "$SEED"
	end_all && identical write
}
identical() {
	local h
	for h in A B C; do
		on "$h" cat "$T/vol/$1" | cmp - "$T/vol/$1" || return
	done
}
here merge-same-words-flushed-at-once same_store
here merge-overlapping-writes-flushed-at-once same_write

# What was asked of the server in the meantime is asked again, and not done twice.
log_has() { [ "$(stat -c %s "$T/vol/$1")" -ge "$2" ]; }
appends_agents_killed() {
	local at host=B
	appends log.killed 200
	for at in 150000 400000 650000 900000; do
		eventually 60 log_has log.killed "$at" || { echo "the log does not grow"; break; }
		kill -9 "$(agent_pid "$host")" || break
		host=$(echo "$host" | tr BC CB)
	done
	end_all && everywhere appended "$T/vol/log.killed" 4 2 200
}
export KILLS_AGENTS=1
here merge-appends-agents-killed appends_agents_killed

# The test can fail: what B stores natively goes to its frozen copy.
native() {
	begin A counters "$T/vol/native" "$T/native" 0 2 20 "$SEED"
	begin rawB counters "$T/vol/native" "$T/native" 1 2 20 "$SEED"
	end_all
}
if native >"$T/native.log" 2>&1; then
	not_ok merge-can-fail "stores that did not go through the library were not missed"
elif grep -q ': counter .* was flushed as' "$T/native.log"; then
	ok merge-can-fail
else
	not_ok merge-can-fail "$(tail -n 1 "$T/native.log")"
fi
finish
