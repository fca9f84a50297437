#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_agent - refault-agent and programs that speak its language badly, or not to the end.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=65536
for i in $(seq 1 7); do head -c $LEN /dev/zero | tr '\0' a >"$T/vol/f$i"; done
start_server
make_hosts
worker a A
worker b B
want a ok open 1 "$T/vol/f1" rw >/dev/null && want a ok map 1 1 rw 0 "$LEN" >/dev/null ||
	die "host A cannot map"
probe() { # FILE TEST
	timeout 300 "${AS[@]}" "$BIN/tests/agent_probe" "$T/a/agent.sock" "unix:$SOCK" vol "$1" "$2"
}
goes_on() { want a 61 load 1 0 1 && want a ok store 1 8 7a && want a ok msync 1; }
server_has() { [ "$(od -An -c -j "$2" -N "$3" "$T/vol/$1" | tr -d ' \n')" = "$4" ]; }

flushed() { probe f2 path && server_has f2 4196 5 probe; }
check probe-flushes-what-it-stored flushed

# Its slot names a page all the time, then it is killed with a slot, a twin and a dirty page.
stuck() {
	local rc
	probe f3 stuck
	rc=$?
	[ "$rc" -eq 137 ] || { echo "ended with $rc"; return 1; }
	server_has f3 8192 5 stuck && eventually 60 server_has f3 12288 6 killed
}
check flush-ends-though-a-slot-is-held stuck

# A program whose stripper never answers delays a break, and sees no old page after it.
deaf() {
	local in out line
	mkfifo "$T/deaf.in" "$T/deaf.out"
	probe f4 deaf <"$T/deaf.in" >"$T/deaf.out" &
	exec {in}>"$T/deaf.in" {out}<"$T/deaf.out"
	read -r -t 60 line <&"$out" && [ "$line" = mapped ] || { echo "not mapped"; return 1; }
	# More than a break carries along, and all of the file: nothing can be done in place.
	want b ok open 4 "$T/vol/f4" rw && want b ok map 4 4 rw 0 "$LEN" || return
	tr '\0' b </dev/zero | head -c "$LEN" >"$T/vol/f4"
	echo >&"$in"
	read -r -t 60 line <&"$out" && [ "$line" = taken ] || { echo "said '$line'"; return 1; }
	eventually 60 want b 62 load 4 20480 1
}
here break-goes-on-without-a-stripper deaf

check cache-punched-by-a-program probe f5 punch
check others-go-on-after-that goes_on
check random-page-words probe f6 words
check others-go-on-after-those goes_on
check random-requests probe f7 noise
check others-go-on-after-them goes_on

# A command that somebody stops while it waits for the agent, and that goes on.
stopped() {
	local agent pid
	agent=$(agent_pid A) && kill -STOP "$agent" || return
	REFAULT_RUNTIME_DIR=$(runtime A) "${AS[@]}" "$BIN/refault" status >"$T/status" &
	pid=$!
	eventually 60 asleep "$pid" && kill -STOP "$pid" && eventually 60 state "$pid" T &&
		kill -CONT "$pid" && eventually 60 asleep "$pid"
	local rc=$?
	kill -CONT "$agent"
	wait "$pid" && grep -q '^agent:' "$T/status" && [ "$rc" -eq 0 ]
}
state() { [ "$(sed 's/.*) //; s/ .*//' "/proc/$1/stat")" = "$2" ]; }
asleep() { state "$1" S && grep -qE "^(45|207) " "/proc/$1/syscall"; } # recvfrom: x86-64, arm64
check command-that-was-stopped-goes-on stopped

# What is left of all these programs is nothing.
alone() { [ "$(status A | sed -n 's/^agent:.* programs \([0-9]*\),.*/\1/p')" = 1 ]; }
check dead-programs-are-forgotten eventually 60 alone
dismiss a b
finish
