#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_stress [SEED] - everyone stores to everyone's pages at once, and no store is lost.
#
# On each host two processes (tests/prog/stress.c), and in the server's directory an editor, each with
# words of its own in all pages.  In the end every word is its owner's last on both hosts and there.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${1:-$RANDOM$RANDOM}
PAGES=24
CHILDREN=(8 9 10 11) # whose the words are that children store to
EDITOR=15
echo "seed $SEED"
for f in plain modes killed native; do head -c $((PAGES * 4096)) /dev/zero >"$T/vol/$f"; done
start_server
make_hosts
export REFAULT_TIMEOUT=20 # the agents inherit it

# begin NUMBER HOST FILE SECONDS: start process NUMBER, two threads.
begin() {
	timeout $(($4 + 300)) "$T/$2" "$BIN/tests/stress" store "$T/vol/$3" "$PAGES" "$4" "$SEED" \
		$(($1 * 2)) 2 "${CHILDREN[$1]}" "$T/$3.$1" >"$T/stress.$1" 2>&1 &
	WPID[stress$1]=$!
}
# begin_edits FILE SECONDS: they end before the stores, so that both are under way until then.
begin_edits() {
	"$BIN/tests/stress" edit "$T/vol/$1" "$PAGES" $(($2 - 1)) "$SEED" "$EDITOR" 3000 "$T/$1.edits" \
		>"$T/stress.edits" 2>&1 &
	WPID[stress.edits]=$!
}
# end_all: all that were started have ended, each content with what it saw.
end_all() {
	local p rc=0
	for p in "${!WPID[@]}"; do
		wait "${WPID[$p]}" || { echo "$p ended with status $?"; rc=1; }
		unset "WPID[$p]"
	done
	cat "$T"/stress.*
	rm "$T"/stress.*
	return "$rc"
}
# verify FILE: what the owners say is what both hosts and the server have.
verify() {
	local where rc=0
	for where in A B ''; do
		echo "${where:-server}:"
		${where:+"$T/$where"} "$BIN/tests/stress" verify "$T/vol/$1" "$PAGES" "$T/$1".* 2>&1 || rc=1
	done
	return "$rc"
}
# The server notices an edit by and by; what was flushed is to be seen at once.
noticed() {
	local h
	for h in A B; do
		on "$h" "$BIN/tests/stress" told "$T/vol/$1" "$PAGES" "$T/$1.edits" >/dev/null 2>&1 || return
	done
}
# Both, even if the first fails: what was lost for good tells more than what was not seen.
judge() {
	local rc=0
	end_all || rc=1
	eventually 60 noticed "$1" || echo "the edits are not noticed"
	verify "$1" || rc=1
	[ "$rc" -eq 0 ] || echo "stores were lost or not seen, seed $SEED"
	return "$rc"
}

two_hosts() {
	begin 0 A plain 8
	begin 1 A plain 8
	begin 2 B plain 8
	begin 3 B plain 8
	begin_edits plain 8
	judge plain
}
here stress-two-hosts two_hosts

# On each host one process whose faults a thread resolves, one whose stores cannot go on write-protected.
other_modes() {
	REFAULT_FAULTS=thread begin 0 A modes 4
	REFAULT_DISABLE=continue-wp begin 1 A modes 4
	REFAULT_FAULTS=thread begin 2 B modes 4
	REFAULT_DISABLE=continue-wp begin 3 B modes 4
	begin_edits modes 4
	judge modes
}
here stress-other-modes other_modes

check stress-no-agent-died-unasked crashes
export KILLS_AGENTS=1

kill_agent() {
	local p
	p=$(agent_pid "$1") && kill -9 "$p"
}
agents_killed() {
	local h=B kills=0 end=$((SECONDS + 5)) # a second before the stores do
	begin 0 A killed 6
	begin 1 A killed 6
	begin 2 B killed 6
	begin 3 B killed 6
	begin_edits killed 6
	while [ "$SECONDS" -lt "$end" ] || [ "$kills" -lt 2 ]; do
		sleep 0.6 # of stores
		h=$(echo "$h" | tr AB BA)
		eventually 60 kill_agent "$h" || { echo "host $h has no agent"; break; }
		kills=$((kills + 1))
	done
	judge killed || return
	[ "$kills" -ge 2 ]
}
here stress-agents-killed agents_killed

# The harness can fail: what B stores natively goes to its frozen copy and is lost.
native() {
	begin 0 A native 1
	begin 2 rawB native 1
	end_all && verify native
}
if native >"$T/native.log" 2>&1; then
	not_ok stress-can-fail "stores that did not go through the library were not missed"
elif grep -q 'owner 4: read: page .* got 0, wanted ' "$T/native.log"; then
	ok stress-can-fail
else
	not_ok stress-can-fail "$(tail -n 1 "$T/native.log")"
fi
finish
