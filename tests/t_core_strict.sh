#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_core_strict - after a flush has returned on one host, no load on another gives an old byte.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# The other modes of the library run the same rounds, fewer of them.
ROUNDS=${ROUNDS:-$([ -z "$VARIANT" ] && echo 10000 || echo 2000)}
for f in 1 2 3; do head -c 65536 /dev/zero >"$T/vol/f$f"; done
start_server
make_hosts

# pair WRITER-HOST READER-HOST FILE
pair() {
	local rc
	rm -f "$T/ab" "$T/ba"
	mkfifo -m 666 "$T/ab" "$T/ba"
	timeout 300 "$T/$1" "$BIN/tests/strict" writer "$T/vol/$3" "$ROUNDS" "$T/ab" "$T/ba" \
		>"$T/writer" 2>&1 &
	WPID[writer]=$!
	timeout 300 "$T/$2" "$BIN/tests/strict" reader "$T/vol/$3" "$ROUNDS" "$T/ba" "$T/ab" \
		>"$T/reader" 2>&1
	rc=$?
	kill "${WPID[writer]}" 2>/dev/null
	wait "${WPID[writer]}" 2>/dev/null
	cat "$T/writer" "$T/reader"
	[ $rc -eq 0 ] && [ "$(tail -n 1 "$T/reader")" = "$ROUNDS rounds, 0 old" ]
}
check "strict-$ROUNDS-rounds-A-to-B" pair A B f1
ROUNDS=$((ROUNDS / 10))
check "strict-$ROUNDS-rounds-B-to-A" pair B A f2
# The harness can fail: without the library the reader sees nothing but old bytes.
if pair A rawB f3 >/dev/null; then
	not_ok strict-can-fail "a reader without the library saw every round"
else
	ok strict-can-fail
fi
finish
