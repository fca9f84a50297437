#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_core_calls - calls on descriptors behave as the kernel's own, whatever is done to the descriptor.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

V=$T/vol
for f in table buffers calls-file readers; do : >"$V/$f"; done
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
check descriptor-reuse-race t_fds race "$V/race" 2
check shared-position t_fds readers "$V/readers"
finish
