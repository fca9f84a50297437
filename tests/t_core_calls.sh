#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_core_calls - calls on descriptors behave as the kernel's own, whatever is done to the descriptor.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

V=$T/vol
for f in table buffers calls-file left readers; do : >"$V/$f"; done
head -c 4096 /dev/zero >"$V/left.cold"
mkdir "$T/plain" "$V/calls" "$V/race"
chmod 777 "$T/plain" "$V/calls" "$V/race"
start_server
make_hosts

SEED=${SEED:-$RANDOM}
t_calls() { on A "$BIN/tests/calls" "$V/calls" "$T/plain" "$SEED" 3000; }
check "same-as-native-seed-$SEED" t_calls
t_fds() { [ "$(on A "$BIN/tests/fds" "$@" | tee "$T/out" | tail -n 1)" = ok ] || { cat "$T/out"; false; }; }
check descriptor-table t_fds table "$V/table"
check kernel-and-managed-buffers t_fds buffers "$V/buffers"
t_buffers() { [ "$(on A "$BIN/tests/buffers" "$@" | tee "$T/out" | tail -n 1)" = ok ] || { cat "$T/out"; false; }; }
check every-other-call-and-managed-buffers t_buffers calls "$V/calls-file"
check buffers-stripped-under-calls t_buffers stripped "$V/calls-file"

# A call that a handler jumps out of, or that is cancelled, leaves nothing behind: in the program, and at the agent.
unused() { [ "$(status A | awk -v p="$1" '$1 == "vnode:" && $3 == p { print $NF }')" = unused ]; }
left_calls() {
	local r=0
	WORKER=buffers worker left A left
	want left 'stop the server' "$V/left" || return
	kill -STOP "$SERVER"
	want left 'go on' stopped || r=1
	kill -CONT "$SERVER"
	[ $r = 0 ] && want left 'all closed' running && eventually 10 unused left && eventually 10 unused left.cold &&
		want left ok done || return
	dismiss left
}
here calls-that-are-left left_calls
check descriptor-reuse-race t_fds race "$V/race" 2
check shared-position t_fds readers "$V/readers"
finish
