#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_model - random operations on two hosts against a plain in-memory model.  SEED=n repeats a run.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
for i in 1 2 3 4 5 6 7; do : >"$T/vol/f$i"; done
start_server
make_hosts
model() { timeout 300 "$BIN/tests/model" "$SEED" "$1" "$T/vol/$2" "$T/$3" "$T/$4" "$BIN/tests/worker"; }
echo "seed $SEED"
for i in 1 2 3 4 5; do
	check "model-two-hosts-1000-operations-$i" model 1000 "f$i" A B
	SEED=$((SEED + 1))
done
check "model-one-host-two-programs" model 500 f6 A A
# The model can fail: two hosts of which one is bypassed do not agree.
if model 200 f7 A rawB >/dev/null; then
	not_ok model-can-fail "a host without the library agreed"
else
	ok model-can-fail
fi
finish
