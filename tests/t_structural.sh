#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_structural - truncate, fallocate, clone, dedupe and copy: what programs of the host stored is part
# of them, stores wait for them, loads do not, and no program, agent or connection that ends in the
# middle wedges anybody.
#
# A relay (tests/prog/relay.c) between host A and the server keeps the answers back: so a change is
# under way for as long as the test wants.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

P=4096
if ! export_on ext4; then
	skip structural "$WHY"
	exit 0
fi
# Page k of each file is made of the letter k: a, b, c ...
for f in moved held lost killed dead source copy one two first second late silent still other; do
	for k in a b c d e f g h; do head -c $P /dev/zero | tr '\0' $k; done >"$T/vol/$f"
done
: >"$T/vol/many"
: >"$T/vol/target"
start_server --lease 60 # answers are held back for as long as a slow machine takes
make_hosts
start_relay
export REFAULT_TIMEOUT=20 # the agents inherit it
worker a A
worker a2 A
worker b B

open_all() { # open_all N FILE: by all, mapped and read
	local w
	want relay ok pass || return # if a test before ended badly
	for w in a a2 b; do
		want $w ok open "$1" "$T/vol/$2" rw && want $w ok map "$1" "$1" rw 0 $((16 * P)) &&
			want $w 61 load "$1" 0 1 || return
	done
}
hold() { want relay ok hold; }
pass() { want relay ok pass; }
answered() { # answered NAME ANSWER: what NAME was told before
	local line
	IFS= read -r -t 60 line <&"${FROM[$1]}" || line='no answer'
	[ "$line" = "$2" ] || { echo "$1 answered '$line', should be '$2'"; return 1; }
}
waits() { # nothing was said by NAME so far
	local line
	! IFS= read -r -t 0.1 line <&"${FROM[$1]}" || { echo "$1 answered '$line'"; return 1; }
}
vnode_is() { status A | grep -q "^vnode: [0-9]* $1 .* $2"; }
becomes() { eventually 60 vnode_is "$1" "$2" || { echo "$1 does not become $2"; status A | grep vnode; return 1; }; }
free_again() { ! vnode_is "$1" '\(frozen\|gated\)'; }
# letters N WORD...: all see these letters at the beginning of pages 0, 1, ...; the size is theirs.
letters() {
	local n=$1 i=0 k w
	shift
	for k; do
		for w in a a2 b; do
			want $w "$(printf '%s' "$k" | od -An -tx1 | tr -d ' \n')" pread "$n" 1 $((i * P)) || return
		done
		i=$((i + 1))
	done
	for w in a a2 b; do want $w $((i * P)) size "$n" || return; done
}

# What was stored and not flushed moves along, also behind the end that the server knows.
moved() {
	open_all 1 moved && want a ok store 1 $((3 * P)) 58 && want a2 ok store 1 $((7 * P)) 59 &&
		want a ok pwrite 1 $((8 * P)) 5a && want a ok truncate 1 $((9 * P)) || return
	want a ok falloc 1 collapse $P $((2 * P)) && letters 1 a X e f g Y Z || return
	want a 58 load 1 $P 1 && want a2 59 load 1 $((5 * P)) 1 && want b 5a load 1 $((6 * P)) 1 || return
	want a ok store 1 $((2 * P)) 57 && want a2 ok falloc 1 insert $((2 * P)) $P || return
	want a 00 pread 1 1 $((2 * P)) && want b 57 pread 1 1 $((3 * P)) && want b $((8 * P)) size 1 || return
	want b ok store 1 $P 56 && want b ok msync 1 && want b ok falloc 1 zero $((2 * P)) $P && want a 56 load 1 $P 1 &&
		want a ok falloc 1 collapse $((2 * P)) $P && letters 1 a V W f g Y Z &&
		want a 'err EINVAL' falloc 1 collapse 5 $P && letters 1 a V W f g Y Z
}
check collapse-and-insert-move-what-was-stored moved

copied() {
	open_all 2 source && open_all 3 copy && want a ok store 2 0 58 && want a2 ok pwrite 2 $((8 * P)) 59 &&
		want a ok store 3 $((7 * P + 9)) 5a && want a2 ok copy 3 2 0 $((8 * P + 1)) $((8 * P)) || return
	want a ok fsync 3 || return # what it replaced whole, and what was dirty beside it
	for w in a a2 b; do
		want $w 58 pread 3 1 $((8 * P)) && want $w 59 pread 3 1 $((16 * P)) && want $w 5a pread 3 1 $((7 * P + 9)) &&
			want $w $((16 * P + 1)) size 3 || return
	done
	want a 'err EOPNOTSUPP' clone 3 2 0 $P 0
}
check copy-takes-what-was-stored-on-both-sides copied

# Under way: loads go on, stores wait, of pages that are dirty already, too; then they are done.
held() {
	open_all 4 held && want a2 ok store 4 $((2 * P)) 78 && hold && tell a falloc 4 collapse $P $P || return
	becomes held frozen && want a2 63 load 4 $((2 * P + 1)) 1 && tell a2 store 4 $((2 * P)) 79 && waits a2 && waits a || return
	pass && answered a ok && answered a2 ok && want a2 78 load 4 $P 1 && want a2 79 load 4 $((2 * P)) 1 || return
	hold && tell a falloc 4 punch $P $P
	becomes held frozen && want a2 7863 pread 4 2 $P && tell a2 pwrite 4 0 58 && waits a2 && waits a || return
	pass && answered a ok && answered a2 ok && want a ok fsync 4 && want b 58 load 4 0 1 &&
		want b 79 load 4 $((2 * P)) 1 && want a2 00 load 4 $P 1 && eventually 60 free_again held
}
here loads-go-on-and-stores-wait held

# The connection ends before the answer: nobody is kept from storing by that, the change is made once.
cut_off() {
	open_all 5 lost && want a2 ok msync 5 && hold && tell a falloc 5 collapse $P $P && becomes lost frozen || return
	eventually 60 short lost $((7 * P)) || { echo "the change did not arrive"; return 1; }
	want relay ok cut && becomes lost gated && pass && answered a ok && letters 5 a c d e f g h &&
		want a2 ok store 5 $P 58 && want a2 ok msync 5 && letters 5 a X d e f g h
}
short() { [ "$(stat -c %s "$T/vol/$1")" = "$2" ]; }
here connection-that-is-lost-in-between cut_off


# The agent is killed when the server has made the change: it is not made again.
killed() {
	open_all 6 killed && want a2 ok msync 6 && hold && tell a falloc 6 collapse $P $P && becomes killed frozen || return
	eventually 60 short killed $((7 * P)) || { echo "the change did not arrive"; return 1; }
	replace_agent && pass && answered a ok && letters 6 a c d e f g h &&
		want a2 ok store 6 $((2 * P)) 58 && want a2 ok msync 6 && letters 6 a c X e f g h
	# The same with the flush on its way: there is no change yet, and nothing is frozen for ever.
	want a2 ok store 6 $((5 * P)) 59 && hold && tell a falloc 6 insert $P $P && becomes killed frozen && replace_agent &&
		pass && answered a ok && want a2 ok store 6 $((7 * P)) 5a && want b 00 pread 6 1 $P &&
		want b 59 pread 6 1 $((6 * P)) && want a ok msync 6 && want b 5a pread 6 1 $((7 * P)) || return
	# And a copy, of a file that nobody has open any more when it is asked for again.
	want a ok open 20 "$T/vol/other" rw && hold && tell a2 copy 6 2 0 $P $((8 * P)) && replace_agent && pass && answered a2 ok &&
		want b 58 pread 6 1 $((8 * P)) && want a 58 load 6 $((8 * P)) 1
}
here agent-that-is-killed-in-between killed

# So is the program: its change goes on, others go on after it.
died() {
	open_all 7 dead && hold && tell a falloc 7 collapse $P $P && becomes dead frozen || return
	kill -9 "${WPID[a]}" && tell a2 store 7 $P 58 && waits a2 && pass && answered a2 ok || return
	want b ok fsync 7 && want a2 ok msync 7 && want b 58 pread 7 1 $P && want b $((7 * P)) size 7 &&
		eventually 60 free_again dead || return
	exec {TO[a]}>&- {FROM[a]}<&-
	wait "${WPID[a]}" 2>/dev/null
	worker a A
}
here program-that-is-killed-in-between died

# Two hosts, both at once, the same file and crosswise: neither waits for the other for ever.
crosswise() {
	local i w
	for w in a b; do want $w ok open 10 "$T/vol/one" rw && want $w ok open 11 "$T/vol/two" rw || return; done
	for i in $(seq 25); do
		for w in a b; do
			for f in 10 11; do
				tell $w pwrite $f $((i * 64)) 58
			done
		done
		tell a copy 10 11 0 $((4 * P)) $((4 * P))
		tell b copy 11 10 0 $((4 * P)) $((4 * P))
		for w in a b; do
			tell $w falloc 10 collapse 0 $P
			tell $w falloc 10 insert $P $P
			tell $w truncate 11 $((8 * P))
		done
	done
	for i in $(seq 25); do
		for w in a b; do
			for f in 1 2 3 4 5 6; do answered $w ok || return; done
		done
	done
}
here two-hosts-crosswise crosswise

# A pin that is taken after the connection was lost, before the change is known to be made, is of the
# pages that are there then: it does not lose them to a change that it came after.
pinned_late() {
	local n
	WORKER=pins worker p A obey
	open_all 15 late && want p ok open "$T/vol/late" $((7 * P)) rw && hold && tell a falloc 15 collapse $P $P &&
		becomes late frozen && want relay ok cut && becomes late gated && tell p pin $((4 * P)) $P w && asked p && pass && answered a ok && answered p ok || return
	n=$(status A | grep -c '^orphans: late ')
	[ "$n" = 0 ] || { echo "the pin has lost its page"; status A | grep '^orphans'; return 1; }
	want p 66 load $((4 * P)) 1 && want p ok kstore $((4 * P)) 7a && want a ok msync 15 && want b 7a pread 15 1 $((4 * P)) &&
		want p ok unpin $((4 * P)) $P && dismiss p
}

# Who needs two files is not overtaken for ever by those who need one of them: what comes after a copy
# waits for it, though one of its files is free.
asked() { # asked NAME: the agent has its request
	eventually 10 grep -q futex "/proc/${WPID[$1]}/wchan" && status A >/dev/null || { echo "$1 does not ask"; return 1; }
}
turns() {
	local w
	worker a3 A
	worker a4 A
	for w in a a2 a3 a4; do
		want $w ok open 13 "$T/vol/first" rw && want $w ok open 14 "$T/vol/second" rw || return
	done
	hold && tell a truncate 13 $((4 * P)) && becomes first frozen && tell a2 copy 14 13 0 $((4 * P)) $((8 * P)) &&
		asked a2 && tell a3 truncate 13 0 && asked a3 && tell a4 truncate 14 $P && asked a4 || return
	! vnode_is second '\(frozen\|gated\)' || { echo "what came later is served before"; return 1; }
	pass
	for w in a a2 a3 a4; do answered $w ok || return; done
	# All of them come to an end.
	want a 0 size 13 && want a $P size 14
}
here two-files-in-turn turns
here pin-that-comes-after-a-lost-connection pinned_late
dismiss a3 a4

# Another agent on host A, with these in its environment.
anew() {
	dismiss a a2
	raw A "$BIN/refault" stop >/dev/null && eventually 60 gone || { echo "the agent does not leave"; return 1; }
	env "$@" "$T/rawA" "$BIN/refault-agent" --daemon
}
gone() { [ -z "$(agent_pids A)" ]; }

# The server has nothing to say for too long: who asked is told, and stores do not wait any longer.
silent() {
	anew REFAULT_TIMEOUT=4 || return
	worker a A
	worker a2 A
	open_all 8 silent && want a2 ok store 8 0 58 && want a ok open 12 "$T/vol/other" rw && hold && tell a falloc 8 punch $P $P && becomes silent frozen &&
		tell a2 store 8 1 59 && answered a 'err ETIMEDOUT' && answered a2 ok && becomes silent gated || return
	# So is who comes for the same file then, by whatever way.
	tell a copy 12 8 0 $P 0 && raw A timeout 60 "$BIN/refault" invalidate --flush --volume vol silent
	[ $? -eq 1 ] && answered a 'err ETIMEDOUT' || { echo "they wait for what a silent server has to say"; return 1; }
	pass && eventually 60 want a ok msync 8 && want b 585961 load 8 0 3 && want b 00 load 8 $P 1 && want a 00 load 8 $P 1 &&
		eventually 60 free_again silent
}
here server-that-is-silent silent

# A program stands still with a page in use: who would move that page is told, and nobody else waits.
still() {
	local line
	want a2 ok open 9 "$T/vol/still" rw && want a2 ok map 9 9 rw 0 $((8 * P)) || return
	mkfifo "$T/still.out"
	timeout 300 "${AS[@]}" "$BIN/tests/agent_probe" "$T/a/agent.sock" "unix:$T/srv/relay.sock" vol still still \
		>"$T/still.out" 2>&1 &
	exec {still}<"$T/still.out"
	read -r -t 60 line <&"$still" && [ "$line" = asking ] || { echo "said '$line'"; return 1; }
	want a2 ok store 9 $((5 * P)) 58 && want a2 ok msync 9 && want b ok open 9 "$T/vol/still" rw &&
		want b 5866 pread 9 2 $((5 * P)) || return
	read -r -t 60 line <&"$still" && [ "$line" = moved ] || { echo "said '$line'"; return 1; }
	want a2 7374696c6c load 9 $P 5 && want a2 ok msync 9 &&
		want b 7374696c6c pread 9 5 $P && want b 5866 pread 9 2 $((4 * P)) && want b $((7 * P)) size 9
}
here program-that-stands-still still

# What is copied is the file of one moment, though programs store to it all the time.
frozen() {
	local line
	line=$(on A "$BIN/tests/frozen" "$T/vol/many" "$T/vol/target" 2) || return
	case $line in
	0\ *) echo "$line" ; return 1 ;;
	*' copies, 0 torn, 0 busy') return 0 ;;
	esac
	echo "$line"
	return 1
}
check copies-are-of-one-moment frozen
# Without, what is stored to all the time does not become clean: the same is tried again and again.
unguarded() {
	anew REFAULT_DISABLE=freeze || return
	for _ in {1..50}; do
		on A "$BIN/tests/frozen" "$T/vol/many" "$T/vol/target" 2 || return
		[ "$(counter A give-way)" -eq 0 ] || return 0
	done
	echo "never given way: this test cannot fail"
	return 1
}
here without-frozen-they-begin-anew unguarded
dismiss b
export KILLS_AGENTS=1
finish
