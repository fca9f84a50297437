#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_badinput - what cannot work says so in a clear line, disturbs nobody else and loses nothing.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
head -c 65536 /dev/zero | tr '\0' a >"$T/vol/f"
for i in 1 2 3; do : >"$T/vol/model$i"; done
make_hosts

# refused WORD COMMAND...: fails, in time, and says WORD on stderr.
refused() {
	local word=$1 rc
	shift
	timeout 60 "$@" >"$T/out" 2>"$T/err" </dev/null
	rc=$?
	cat "$T/err"
	[ "$rc" -ne 0 ] || { echo "did not fail"; return 1; }
	[ "$rc" -ne 124 ] || { echo "did not end within 20 s"; return 1; }
	[ "$rc" -lt 128 ] || { echo "died of signal $((rc - 128))"; return 1; }
	[ ! -s "$T/out" ] || { echo "printed something: $(head -c 20 "$T/out")"; return 1; }
	grep -q -i -e "$word" "$T/err" || { echo "says nothing of '$word': $(head -n 1 "$T/err")"; return 1; }
	# The complaint is one of the first two lines: the program's own may follow.
	head -n 2 "$T/err" | grep -q -i 'refault' || { echo "does not say who complains"; return 1; }
}

check unreachable-server refused "$SOCK" "$T/A" cat "$T/vol/f"
check unreachable-server-for-a-mapping refused "$SOCK" "$T/B" "$BIN/mmapcoh" -n 1 "$T/vol/f"

fake() { # fake KIND WORD
	local pid line rc
	rm -f "$SOCK" "$T/fake.out"
	mkfifo "$T/fake.out"
	"$BIN/tests/fakeserver" "$SOCK" "$1" >"$T/fake.out" 2>&1 &
	pid=$!
	read -r -t 60 line <"$T/fake.out" || line=
	# An agent of its own: one that tried the address before may wait a while.
	mkdir -m 700 "$T/fake-$1"
	[ "$line" = listening ] && refused "$2" env REFAULT_RUNTIME_DIR="$T/fake-$1" \
		REFAULT_VOLUMES="$(VOLUMES)" "$BIN/refault" run cat "$T/vol/f"
	rc=$?
	kill "$pid"
	wait "$pid" 2>/dev/null
	rm -f "$SOCK"
	return "$rc"
}
check server-of-another-version fake version 'version'
check server-that-talks-garbage fake garbage "$SOCK"
check server-that-hangs-up fake closes "$SOCK"

start_server
# The address that could not be reached a moment ago.
check server-that-comes-later-is-found eventually 60 "$T/A" cmp "$T/vol/f" "$T/vol/f"
run() { "$BIN/refault" run "$@"; }
code() { # code STATUS WORD ARGUMENT...: how `refault run ARGUMENT...` ends
	local want=$1 word=$2 out rc
	shift 2
	out=$(run "$@" 2>&1 </dev/null)
	rc=$?
	echo "$out"
	[ "$rc" -eq "$want" ] || { echo "exit status $rc, should be $want: $out"; return 1; }
	[ "$(echo "$out" | wc -l)" -eq 1 ] || { echo "more than a line"; return 1; }
	case $out in *"$word"*) ;; *) echo "says '$out'"; return 1 ;; esac
}
check volume-path-is-a-file code 125 'not a directory' --volume "$T/vol/f=unix:$SOCK,name=vol" true
check volume-path-is-missing code 125 'No such file' --volume "$T/nowhere=unix:$SOCK,name=vol" true
check volume-without-address code 125 'PATH=' --volume "$T/vol" true
check volume-of-unknown-transport code 125 'unix:' --volume "$T/vol=pigeon:x,name=vol" true

# The library by itself, without `refault run`: says what it cannot do, and lets the program run.
library_only() { # library_only VOLUMES FILE
	local out
	out=$(REFAULT_RUNTIME_DIR=$T/a REFAULT_VOLUMES=$1 LD_PRELOAD=$BIN/librefault.so \
		cat "$2" 2>"$T/err") || { echo "cat failed: $(cat "$T/err")"; return 1; }
	[ "$out" = "$(cat "$2")" ] || { echo "cat printed '$out'"; return 1; }
	[ "$(grep -c . "$T/err")" -le 1 ] || { echo "more than a line"; return 1; }
}
check library-with-a-path-that-is-a-file library_only "$T/vol/f=unix:$SOCK,name=vol" "$T/vol/f"
check library-with-nonsense library_only 'nonsense' /etc/hostname
says_so() { grep -q -i 'refault.*nonsense' "$T/err"; }
check library-with-nonsense-says-so says_so
check unknown-export refused 'nosuch' env REFAULT_RUNTIME_DIR="$T/a" \
	REFAULT_VOLUMES="$T/vol=unix:$SOCK,name=nosuch" "$BIN/refault" run cat "$T/vol/f"

runtime_open_to_others() {
	mkdir -p "$T/open" && chmod 755 "$T/open" &&
		refused "$T/open" env REFAULT_RUNTIME_DIR="$T/open" \
			REFAULT_VOLUMES="$(VOLUMES)" "$BIN/refault" run cat "$T/vol/f"
}
check runtime-directory-open-to-others runtime_open_to_others

# Garbage on the sockets, while a mapped worker and a random model go on beside it.
worker a A
worker b B
for w in a b; do
	ask $w open 1 "$T/vol/f" rw >/dev/null
	ask $w map 1 1 rw 0 65536 >/dev/null
done
beside_fuzz() { # beside_fuzz agent|server SOCKET BYTE FILE PIDS-COMMAND
	local before rc=0
	before=$($5)
	want a ok store 1 0 "$3" && want a ok msync 1 || return
	timeout 300 "$BIN/tests/model" "$SEED" 150 "$T/vol/$4" "$T/A" "$T/B" "$BIN/tests/worker" \
		>"$T/model" 2>&1 &
	WPID[model]=$!
	"${AS[@]}" timeout 300 "$BIN/tests/fuzz" "$1" "$2" "$SEED" 10000 || rc=1
	wait "${WPID[model]}" || { cat "$T/model"; return 1; }
	[ "$rc" -eq 0 ] || { echo "fuzz with seed $SEED was not taken to its end"; return 1; }
	want a "$3" load 1 0 1 && want b "$3" load 1 0 1 && want b ok store 1 1 "$3" &&
		want b ok msync 1 && want a "$3$3" load 1 0 2 || return
	[ "$($5)" = "$before" ] || { echo "it did not survive seed $SEED: $before, now $($5)"; return 1; }
}
agents() { agent_pids A | tr '\n' ' '; }
server() { kill -0 "$SERVER" && echo "$SERVER"; }
echo "seed $SEED"
check garbage-to-the-agent beside_fuzz agent "$T/a/agent.sock" 31 model1 agents
check garbage-to-the-server beside_fuzz server "$SOCK" 32 model2 server

# A program can write to what it shares with the agent: a size that it made up must not keep the next
# agent from going on with the files of others.
made_up_size() {
	local fd pid old
	pid=$(agent_pid A) && old=$pid && printf x >"$T/vol/victim" && want a ok open 2 "$T/vol/victim" rw &&
		want a ok store 1 7 33 || return
	for fd in "/proc/$pid/fd/"*; do
		case $(readlink "$fd") in
		*/memfd:refault-data*) truncate -s 2199023255557 "$fd" || return ;;
		*/memfd:refault-state*) # struct rf_vnode: fid is at 24, i_size at 104
			[ "$(od -An -tu8 -j24 -N8 "$fd" | tr -d ' ')" = "$(stat -c %i "$T/vol/victim")" ] || continue
			printf '\0\0\0\0\0\040\0\0' | dd of="$fd" bs=1 seek=104 conv=notrunc status=none || return
			;;
		esac
	done
	kill -9 "$pid"
	another() { pid=$(agent_pid A) && [ "$pid" != "$old" ]; }
	eventually 60 another || { echo "no other agent"; return 1; }
	ask a pread 2 1 2199023255552 >"$T/out" # whatever comes of it
	want a ok msync 1 && want b 33 load 1 7 1
}
here made-up-size made_up_size
dismiss a b
export KILLS_AGENTS=1
finish
