#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_pieces - a mapping that falls into pieces, becomes one again or grows shows nothing old and loses
# nothing, whatever strips it meanwhile.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

ROUNDS=${ROUNDS:-600}
head -c 131072 /dev/zero >"$T/vol/strip"
head -c 12288000 /dev/zero >"$T/vol/grow"
start_server
make_hosts

# The race: the stripper is done with one half, both become one, and the other half is passed over.
strip() {
	local rc=0
	mkfifo -m 666 "$T/ab" "$T/ba"
	timeout 100 "$T/A" "$BIN/tests/pieces" writer "$T/vol/strip" "$ROUNDS" "$T/ab" "$T/ba" &
	timeout 100 "$T/B" "$BIN/tests/pieces" reader "$T/vol/strip" "$ROUNDS" "$T/ba" "$T/ab" || rc=1
	wait $! && [ "$rc" -eq 0 ]
}
check half-protected-while-stripped strip
stripped=$(counter B strip)
if [ "$stripped" -gt $((ROUNDS / 2)) ]; then ok it-was-stripped; else not_ok it-was-stripped "$stripped times"; fi

# The race: a page is being marked as the program's own while the marks move to the longer mapping.
check private-stores-while-it-grows on A "$BIN/tests/pieces" grow "$T/vol/grow" $((ROUNDS / 30))
finish
