#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_journal - the agent is killed between a change that the server has made and its answer.
#
# A relay (tests/prog/relay.c) between host A and the server keeps the answers back, so the race does
# not depend on luck: the server has applied the change, others have seen it and have overwritten
# it, and host A's agent dies without having heard of it.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=65536
LARGE=33554432
for f in store longer lost append cut twice none long crash cutoff merged; do head -c $LEN /dev/zero | tr '\0' a >"$T/vol/$f"; done
head -c $LARGE /dev/zero | tr '\0' a >"$T/vol/large"
: >"$T/vol/many"
: >"$T/vol/ids"
start_server --lease 60 # answers are held back for as long as a slow machine takes
make_hosts A B C
start_relay
export REFAULT_TIMEOUT=20 # the agents inherit it
worker a A
worker b B
worker c C

open_all() { # open_all N FILE: on all hosts, mapped and read
	local w
	for w in a b c; do
		want $w ok open "$1" "$T/vol/$2" rw && want $w ok map "$1" "$1" rw 0 $LEN &&
			want $w 61 load "$1" 0 1 || return
	done
}
hold() { want relay ok hold; }
pass() { want relay ok pass; }
answered() { # answered ANSWER: what a was told before
	local line
	IFS= read -r -t 40 line <&"${FROM[a]}" || line='no answer'
	[ "$line" = "$1" ] || { echo "a answered '$line', should be '$1'"; return 1; }
}
exported() { # exported FILE OFFSET HEX: what the server has
	[ "$(tail -c +$(($2 + 1)) "$T/vol/$1" | head -c $((${#3} / 2)) | od -An -tx1 | tr -d ' \n')" = "$3" ]
}
# agent_memfd NAME: a memfd of host A's agent.
agent_memfd() {
	local pid fd
	pid=$(agent_pid A) || return
	for fd in "/proc/$pid/fd/"*; do
		case $(readlink "$fd") in */memfd:$1*) echo "$fd" && return ;; esac
	done
	echo "the agent has no $1"
	return 1
}
# put_bytes FILE OFFSET BYTE...
put_bytes() {
	# shellcheck disable=SC2059 # the bytes
	printf "$(printf '\\x%02x' "${@:3}")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
# Another pair of supervisor and agent: five crashes in ten seconds are one too many.
anew() {
	supervisor
	dismiss a
	raw A "$BIN/refault" stop >/dev/null || return
	eventually 10 test ! -d "/proc/$SUPERVISOR" || { echo "the agent does not leave"; return 1; }
	SUPERVISOR=
	[ $# -eq 0 ] || "$@"
	worker a A
}

# all_have N FILE OFFSET HEX
all_have() {
	local w
	exported "$2" "$3" "$4" || { echo "the server does not have $4 at $3"; return 1; }
	for w in a b c; do want $w "$4" load "$1" "$3" $((${#4} / 2)) || return; done
}

# Stored by a, seen by b, overwritten by c; then a's agent goes on.
overwritten() { # overwritten N FILE
	open_all "$1" "$2" && want a ok store "$1" 5 7a7a || return
	hold && tell a msync "$1"
	eventually 10 exported "$2" 5 7a7a || { echo "the store did not arrive"; return 1; }
	eventually 10 want b 7a7a load "$1" 5 2 || return # the server has it before it tells b
	replace_agent && want c ok store "$1" 5 63 && want c ok msync "$1" || return
	want b 637a load "$1" 5 2 && pass && answered ok
}
store() { overwritten 1 store && all_have 1 store 5 637a; }
here store-that-was-overwritten-does-not-come-back store

# The same, twice: the second agent dies as well before it hears of it.
twice() {
	open_all 2 twice && want a ok store 2 5 7a7a || return
	hold && tell a msync 2
	eventually 10 exported twice 5 7a7a || { echo "the store did not arrive"; return 1; }
	replace_agent && want c ok store 2 5 63 && want c ok msync 2 && replace_agent &&
		pass && answered ok && all_have 2 twice 5 637a
}
here nor-after-a-second-crash twice

# Stores go on while the connection is lost: what is new goes out, what is old does not.
lost() {
	open_all 3 lost && want a ok store 3 5 7a7a && want a ok store 3 9000 7a || return
	hold && tell a msync 3
	eventually 10 exported lost 5 7a7a || { echo "the store did not arrive"; return 1; }
	replace_agent && want c ok store 3 5 63 && want c ok msync 3 || return
	pass && answered ok && want a ok store 3 6 79 && want a ok msync 3 &&
		all_have 3 lost 5 6379 && all_have 3 lost 9000 7a
}
here stores-afterwards-do-arrive lost

# A program that still has a dirty page in its page tables, because its stripper stands still, must not
# see what others have overwritten: the server is not called again before it is stripped.
unstripped() { # unstripped FILE COMMAND...: what takes host A's connection away
	local s line r=0
	anew && open_all 9 "$1" && worker d A && want d ok open 9 "$T/vol/$1" rw &&
		want d ok map 9 9 rw 0 $LEN && want a ok store 9 5 7a7a && want d 7a7a load 9 5 2 &&
		hold && tell a msync 9 || return
	eventually 10 exported "$1" 5 7a7a || { echo "the store did not arrive"; return 1; }
	s=$(stripper d) || { echo "$s"; return 1; }
	kill -STOP "$s"
	returned() { read -r -t 0 <&"${FROM[c]}"; }
	# As long as c is not answered, d may see what is old.
	{ "${@:2}" && pass && want c ok store 9 5 63 && tell c msync 9 &&
		eventually 10 returned_or_held "$1" && { returned || want d 7a7a load 9 5 2; } &&
		{ ! returned || want d 637a load 9 5 2; }; } || r=1
	kill -CONT "$s"
	[ $r -ne 0 ] || { IFS= read -r -t 40 line <&"${FROM[c]}" && [ "$line" = ok ] &&
		want d 637a load 9 5 2 && answered ok && all_have 9 "$1" 5 637a; } || r=1
	dismiss d
	return $r
}
returned_or_held() { returned || grep -q "$1: a program does not let go of" "$T/a/agent.log"; }
here page-that-cannot-be-stripped-shows-nothing-old-after-a-crash unstripped crash replace_agent
here page-that-cannot-be-stripped-shows-nothing-old-after-a-cut unstripped cutoff want relay ok cut

# The connection ends right behind an answer with a promise, and while the cache is still being made to
# fit that answer: the promise is void by then.
void() {
	local n
	anew && on A cat "$T/vol/large" >"$T/seen" && want a ok open 8 "$T/vol/large" rw &&
		want b ok open 8 "$T/vol/large" rw && n=$(counter A break) || return
	printf b >>"$T/vol/large"
	broken() { [ "$(counter A break)" -gt "$n" ]; }
	eventually 10 broken || { echo "the server does not tell of the change"; return 1; }
	want relay ok last && want a $((LARGE + 1)) size 8 && want a ok open 10 "$T/vol/many" rw &&
		want b ok truncate 8 5 && want a 5 size 8
}
here promise-of-a-lost-connection-is-void void

# The agent dies in the middle of a merge: what it put into a's dirty page is not a change of a's, which
# would be sent over what others store there later.  The middle is one instruction wide, so it is made by
# hand: the page has the byte, the twin has not, and the journal says what was going on.
halfway() {
	local journal vnode
	anew start_agent A --dirty-expire 60000 && open_all 11 merged && want a ok store 11 9 7a && want a ok store 11 5 71 || return
	journal=$(agent_memfd refault-journal) && vnode=$(agent_memfd refault-state) &&
		vnode=$(od -An -tu4 -j12 -N4 "$vnode") || return # struct rf_vnode: id is at 12
	# struct ag_journal: merging is at 24: vnode, from, to, some, page (8 bytes), bytes
	put_bytes "$journal" 28 5 0 0 0 6 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0x71 &&
		put_bytes "$journal" 24 $((vnode & 255)) $((vnode >> 8 & 255)) $((vnode >> 16)) 0 || return
	replace_agent && want c ok store 11 5 72 && want c ok msync 11 && want a ok msync 11 &&
		all_have 11 merged 5 726161617a
}
here what-was-half-merged-is-not-sent halfway

append() {
	local w
	anew || return
	for w in a b c; do want $w ok open 4 "$T/vol/append" rwa || return; done
	hold && tell a write 4 6f6e65
	eventually 10 exported append $LEN 6f6e65 || { echo "the append did not arrive"; return 1; }
	replace_agent && want c ok write 4 7878 && pass && answered ok || return
	for w in a b c; do
		want $w 6f6e657878 pread 4 100 $LEN && want $w $((LEN + 5)) size 4 || return
	done
	want a ok write 4 2e && want b 6f6e6578782e pread 4 100 $LEN
}
here append-is-done-once append

cut() {
	open_all 5 cut || return
	hold && tell a truncate 5 4096
	eventually 10 short cut 4096 || { echo "it was not cut"; return 1; }
	replace_agent && want c ok truncate 5 8192 && want c ok pwrite 5 5000 63 || return
	want c ok fsync 5 && pass && answered ok && want a 8192 size 5 &&
		want a 63 pread 5 1 5000 && want a 8192 size 5 && all_have 5 cut 5000 63
}
short() { [ "$(stat -c %s "$T/vol/$1")" = "$2" ]; }
here truncate-is-done-once cut

# A file that the lost write made longer, and that c has cut since, stays short.
longer() {
	anew && want a ok open 7 "$T/vol/longer" rw && want c ok open 7 "$T/vol/longer" rw || return
	want b ok open 7 "$T/vol/longer" rw && want a ok pwrite 7 100000 7a7a || return
	hold && tell a fsync 7
	eventually 10 short longer 100002 || { echo "the write did not arrive"; return 1; }
	replace_agent && want c ok truncate 7 4096 && pass && answered ok && want a 4096 size 7 &&
		want a ok fsync 7 && want a eof pread 7 1 4096 && want b 4096 size 7 && short longer 4096
}
here file-that-was-cut-stays-short longer

# Applied long ago and not released, because host B stands still: meanwhile there were so many other
# changes that the server has forgotten the id of this one.
forgotten() {
	local b i w
	anew && open_all 8 long && b=$(agent_pid B) && kill -STOP "$b" && want a ok store 8 5 7a7a &&
		tell a msync 8 && eventually 10 exported long 5 7a7a && want c ok store 8 5 63 &&
		tell c msync 8 && eventually 10 exported long 5 637a || return
	# shellcheck disable=SC2016 # expanded on host A
	on A sh -c 'i=0; while [ $i -lt 1100 ]; do echo $i; i=$((i + 1)); done >>"$1"' - "$T/vol/many"
	i=$(wc -l <"$T/vol/many")
	[ "$i" = 1100 ] || { echo "$i of 1100 appends"; return 1; }
	replace_agent && eventually 10 resent
	kill -CONT "$b"
	for w in a c; do
		IFS= read -r -t 40 i <&"${FROM[$w]}" && [ "$i" = ok ] || { echo "$w: $i"; return 1; }
	done
	all_have 8 long 5 637a
}
resent() { [ "$(counter A resend)" -gt 0 ]; }
here change-of-long-ago-is-not-repeated forgotten

# The ids of programs begin again after 65535 of them; those of their changes do not.
ids() {
	local journal n
	on A sh -c 'echo one >>"$1"' - "$T/vol/ids" && journal=$(agent_memfd refault-journal) || return
	# struct ag_journal: nprocs is at 16
	n=$(od -An -tu8 -j16 -N8 "$journal") && n=$((n + 65534)) || return
	put_bytes "$journal" 16 $((n & 255)) $((n >> 8 & 255)) $((n >> 16)) &&
		on A sh -c 'echo two >>"$1"' - "$T/vol/ids" || return
	[ "$(cat "$T/vol/ids")" = "$(printf 'one\ntwo')" ] || { echo "got $(tr '\n' ' ' <"$T/vol/ids")"; return 1; }
}
here append-is-not-taken-for-that-of-another-program ids

# Without the journal the next agent diffs again, and takes what c stored for its own to overwrite.
unguarded() {
	REFAULT_DISABLE=journal anew start_agent A || return
	overwritten 6 none || return
	if exported none 5 637a; then
		echo "nothing was lost: this test cannot fail"
		return 1
	fi
}
here without-the-journal-it-does unguarded
dismiss a b c
export KILLS_AGENTS=1
finish
