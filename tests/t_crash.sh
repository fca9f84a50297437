#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_crash - kill -9 of programs, agents and the server at random moments.  SEED=n repeats the choices.
#
# The races are there: with REFAULT_DISABLE=journal (agents make in-flight changes anew) a word goes back,
# with REFAULT_DISABLE=undo the server is left with half a flush.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${SEED:-$RANDOM$RANDOM}
RANDOM=$((SEED % 32768))
WRITERS=4
KILLS=50 # of each
HOSTS=(A B C D)
echo "seed $SEED"
zeros() { head -c "$(($2 * 4096))" /dev/zero >"$T/vol/$1"; }
zeros written $((WRITERS * KILLS * 3))
zeros native $((WRITERS * KILLS * 3))
zeros busy $((4 * 384 + 1))
zeros whole $((4 * 200))
: >"$T/vol/log"
: >"$T/vol/log2"
mkdir "$T/back" # the server's own files, out of the volume
for f in busy whole log log2; do ln "$T/vol/$f" "$T/back/$f"; done
start_server
make_hosts "${HOSTS[@]}"
export KILLS_AGENTS=1 REFAULT_TIMEOUT=60 # the agents inherit it

PARTS=0
# begin HOST ARGUMENT...: a program of the test's on that host.
begin() {
	PARTS=$((PARTS + 1))
	timeout 300 "$T/$1" "$BIN/tests/crash" "${@:2}" >"$T/crash.$PARTS" 2>&1 &
	WPID[crash.$PARTS]=$!
}
# end_all: all of them have ended, content with what they saw.
end_all() {
	local p rc=0
	for p in "${!WPID[@]}"; do
		case $p in crash.*) ;; *) continue ;; esac
		wait "${WPID[$p]}" || { echo "$p ended with status $?"; rc=1; }
		unset "WPID[$p]"
	done
	[ "$rc" -eq 0 ] || echo "seed $SEED"
	cat "$T"/crash.*
	rm "$T"/crash.*
	return "$rc"
}
crash() { "$BIN/tests/crash" "$@"; }

# The agent flushes what a killed program stored: nobody else is there any more.
wrote() { crash wrote "$T/vol/$1" "$T/$1" "$WRITERS" "$KILLS" "$SEED" >"$T/wrote" 2>&1; }
program_killed() {
	begin A write "$T/vol/written" "$T/written" 0 "$KILLS" "$SEED"
	REFAULT_FAULTS=thread begin A write "$T/vol/written" "$T/written" 1 "$KILLS" "$SEED"
	begin B write "$T/vol/written" "$T/written" 2 "$KILLS" "$SEED"
	REFAULT_DISABLE=continue-wp begin B write "$T/vol/written" "$T/written" 3 "$KILLS" "$SEED"
	end_all && eventually 60 wrote written
	local rc=$?
	cat "$T/wrote"
	return "$rc"
}
here crash-200-kills-of-programs-lose-no-store program_killed
[ -f "$T/wrote" ] && tail -n 1 "$T/wrote"

# The test can fail: what was stored without the library went to B's frozen copy.
begin rawB write "$T/vol/native" "$T/native" 0 1 "$SEED"
end_all >/dev/null
WRITERS=1 KILLS=1
if wrote native; then
	not_ok crash-can-fail "lost stores were not missed"
else
	ok crash-can-fail
fi

# strike HOST-NUMBER KIND PID: kill it in the middle of that, or just after.
strike() { crash strike "$T/$board" "$1" "$2" "$3" "$RANDOM"; }
agents_killed() {
	local board=busy n i kind pid rc=0
	for n in 0 1 2 3; do
		begin "${HOSTS[n]}" busy "$T/vol/busy" "$T/vol/log" "$T/back" "$T/busy" "$n" "$SEED"
	done
	crash goes-on "$T/busy" 4 4 || rc=1
	for i in 0 1 2 3; do
		for n in 0 1 2 3; do
			kind=$(echo flush append fault pong | cut -d' ' -f$(((i + n) % 4 + 1)))
			pid=$(agent_pid "${HOSTS[n]}") && strike "$n" "$kind" "$pid" &&
				crash goes-on "$T/busy" 4 4 || { rc=1; break 2; }
		done
	done
	crash stop "$T/busy"
	end_all || rc=1
	crash logged "$T/vol/log" "$T/busy" || rc=1
	return "$rc"
}
here crash-agents-lose-nothing-and-repeat-nothing agents_killed
grep -h 'killed\|went on' "$T/why"

# No flush but the programs' own, so that each is one request.
left() { [ -z "$(agent_pids "$1")" ]; }
server_killed() {
	local board=whole i h kind pids=() rc=0
	for h in A B; do
		REFAULT_RUNTIME_DIR=$(runtime "$h") "$BIN/refault" stop
		eventually 60 left "$h" || { echo "the agent of $h does not leave"; return 1; }
		raw "$h" "$BIN/refault-agent" --daemon --dirty-expire 600000 &&
			eventually 60 agent_pid "$h" >"$T/pid" || return
		pids+=("$(cat "$T/pid")")
	done
	begin A whole "$T/vol/whole" "$T/vol/log2" "$T/back" "$T/whole" 0 "$SEED"
	begin B whole "$T/vol/whole" "$T/vol/log2" "$T/back" "$T/whole" 1 "$SEED"
	crash goes-on "$T/whole" 2 2 || rc=1
	for i in $(seq 12); do
		kind=$(echo flush append flush | cut -d' ' -f$((i % 3 + 1)))
		strike $((i % 2)) "$kind" "$SERVER" || { rc=1; break; }
		wait "$SERVER"
		kill -STOP "${pids[@]}"
		start_server
		crash wholly "$T/back/whole" "$T/whole" || rc=1
		kill -CONT "${pids[@]}"
		[ "$rc" -eq 0 ] && crash goes-on "$T/whole" 2 2 || { rc=1; break; }
	done
	crash stop "$T/whole"
	end_all || rc=1
	crash wholly "$T/back/whole" "$T/whole" || rc=1
	crash logged "$T/vol/log2" "$T/whole" || rc=1
	return "$rc"
}
here crash-server-has-each-flush-whole-or-not server_killed
grep -h 'killed\|went on' "$T/why"
finish
