#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_invalidate - files are taken out of a host's cache: by the command, by refault_invalidate(), by advice.
#
# The export is a tmpfs where one can be mounted: there a store through a plain mapping whose page was
# read before leaves no trace in the file's times, so a change can be made behind the server's back, of
# which nobody is told.  Elsewhere the same is seen by the pages that are fetched.  Background write-back is far away.
KILLS_AGENTS=1
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=65536 PAGES=16
BEHIND=yes
export_on tmpfs || BEHIND=
mkdir "$T/vol/d" "$T/vol/d/e"
for f in f1 f2 f3 f4 f5 f6 f7 d/x d/e/y; do head -c $LEN /dev/zero | tr '\0' a >"$T/vol/$f"; done
truncate -s 24576 "$T/vol/count"
truncate -s 24576 "$T/vol/count2"
head -c 1048576 /dev/zero | tr '\0' w >"$T/vol/wide"
echo plain >"$T/plain"
mkfifo "$T/fifo"
start_server
make_hosts A B C
REFAULT_TIMEOUT=2 start_agent C --dirty-expire 3600000
start_agent A --dirty-expire 3600000
start_agent B --dirty-expire 3600000
worker a A
worker b B
worker c C
worker back rawA # writes to the served directory itself

inval() { raw "${1}" "$BIN/refault" invalidate "${@:2}"; }
# says STATUS TEXT HOST ARGUMENT...: exactly that, on standard output and error together.
says() {
	local want=$1 text=$2 got rc
	shift 2
	got=$(inval "$@" 2>&1)
	rc=$?
	[ "$rc" -eq "$want" ] && [ "$got" = "$text" ] && return 0
	echo "invalidate $*: status $rc, said '$got', should be status $want, '$text'"
	return 1
}
# Both hosts hold file N, all of it in memory, clean.
hold() {
	for w in a b; do
		want $w ok open "$1" "$T/vol/$2" rw && want $w ok map "$1" "$1" rw 0 $LEN &&
			want $w 61 all "$1" 0 $LEN || return
	done
}
# fetched HOST PAGES COMMAND...: so many pages, while it runs.
fetched() {
	local before h=$1 n=$2
	before=$(counter "$h" fetch-page)
	shift 2
	"$@" || return
	n=$(($(counter "$h" fetch-page) - before - n))
	[ "$n" -eq 0 ] || { echo "$n pages more were fetched than there should be"; return 1; }
}

# ---- what is clean ----

anew() {
	hold 1 f1 && fetched B 0 want b 61 all 1 0 $LEN && says 0 '' B "$T/vol/f1" &&
		fetched B $PAGES want b 61 all 1 0 $LEN && want b 61 pread 1 1 4096 &&
		want a 61 all 1 0 $LEN
}
check clean-pages-are-fetched-anew anew

behind() {
	want back ok open 1 "$T/vol/f1" rw && want back ok map 1 1 rw 0 $LEN &&
		want back 61 all 1 0 $LEN && want back ok store 1 8192 6262 && want b 61 all 1 0 $LEN && want a 61 all 1 0 $LEN &&
		"$@" && want b 6162 load 1 8191 2 && want b 62 pread 1 1 8193 &&
		want a 61 load 1 8192 1 && says 0 '' A "$T/vol/f1" && want a 6262 load 1 8192 2 &&
		want back ok store 1 8192 6161 && says 0 '' A --volume vol f1 &&
		says 0 '' B --volume vol ./f1/ && want a 61 all 1 0 $LEN && want b 61 all 1 0 $LEN
}
if [ -n "$BEHIND" ]; then
	check running-programs-see-what-nobody-was-told behind says 0 '' B "$T/vol/f1"
	check by-name behind says 0 '' B --volume vol f1
	check by-descriptor behind want b 0 invalidate 1 0
	check by-path behind want b 0 invalpath 0 "$T/vol/f1"
	check of-a-whole-volume behind says 0 '' B --volume vol
	check of-a-whole-directory behind says 0 '' B "$T/vol"
else
	for t in running-programs-see-what-nobody-was-told by-name by-descriptor by-path \
		of-a-whole-volume of-a-whole-directory; do skip $t "$WHY"; done
fi

only_what_is_meant() {
	hold 2 d/x && hold 3 d/e/y && hold 4 f2 && says 0 '' B "$T/vol/d" &&
		fetched B $PAGES want b 61 all 2 0 $LEN && fetched B $PAGES want b 61 all 3 0 $LEN &&
		fetched B 0 want b 61 all 4 0 $LEN && says 0 '' B --volume vol d/e &&
		fetched B $PAGES want b 61 all 3 0 $LEN && fetched B 0 want b 61 all 2 0 $LEN &&
		says 0 '' B --volume vol d/ f && fetched B 0 want b 61 all 4 0 $LEN &&
		says 0 "$T/vol/d/x: out of the cache" B -v "$T/vol/d/x" "$T/vol/f7" &&
		says 0 'd/e/y: out of the cache' B -v --volume vol d/e d/e/y d/e && says 0 '' B --volume other
}
check only-what-is-meant only_what_is_meant

# ---- what is dirty ----

stays() {
	hold 5 f3 && want b ok store 5 12288 7a && want b ok pwrite 5 40960 79 &&
		says 1 "refault: $T/vol/f3: 2 dirty pages stay; --flush writes them back" B "$T/vol/f3" &&
		fetched B $((PAGES - 2)) want b 'mixed at 12288: 7a' all 5 0 $LEN &&
		want b 79 load 5 40960 1 && want b 2 invalidate 5 0 && want a 61 all 5 0 $LEN &&
		want b ok msync 5 && want a 7a load 5 12288 1 && says 0 '' B "$T/vol/f3"
}
check dirty-pages-stay stays

flushed() {
	hold 6 f4 && want b ok store 6 0 7a7a && want b ok pwrite 6 69631 79 &&
		says 0 '' B --flush "$T/vol/f4" && want a 7a7a load 6 0 2 && want a 69632 size 6 &&
		[ "$(od -An -tx1 -N3 "$T/vol/f4")" = ' 7a 7a 61' ] &&
		want b 79 pread 6 1 69631 && want b 7a load 6 1 1 &&
		want b ok store 6 4096 7b && want b 0 invalidate 6 1 && want a 7b load 6 4096 1
}
check flush-writes-back flushed

# 256 pages that follow one another, and not as many requests.
large_requests() {
	local before
	want b ok open 20 "$T/vol/wide" rw && want b ok map 20 20 rw 0 1048576 &&
		want b ok fill 20 0 1048576 78 && before=$(counter B store) &&
		says 0 '' B --flush --volume vol wide || return
	before=$(($(counter B store) - before))
	[ "$before" -ge 1 ] && [ "$before" -le 4 ] || { echo "$before STOREs"; return 1; }
	tr -d x <"$T/vol/wide" | cmp -s - /dev/null && want b ok fill 20 0 1048576 77 &&
		want b ok msync 20 && want b ok close 20
}
check flush-in-large-requests large_requests

discarded() {
	hold 7 f5 && want b ok store 7 0 7a && want b ok pwrite 7 73727 79 && want b 73728 size 7 &&
		says 0 '' B --discard "$T/vol/f5" && want b 61 all 7 0 $LEN && want b $LEN size 7 &&
		want b eof pread 7 1 65536 && want b ok fsync 7 && want a 61 all 7 0 $LEN &&
		want a $LEN size 7 && want b ok store 7 1 7b && want b ok msync 7 && want a 617b load 7 0 2
}
check discard-throws-away discarded

# What was on its way to a server that did not answer may arrive after all: then all see it.
discard_in_flight() {
	local got
	hold 8 f6 && kill -STOP "$SERVER" && want b ok store 8 0 7a && want b ok msync 8 async &&
		want b ok store 8 4096 7a
	inval B --discard "$T/vol/f6"
	got=$?
	kill -CONT "$SERVER"
	[ "$got" -eq 0 ] && want b ok fsync 8 && got=$(ask b load 8 0 1) && want b 61 load 8 4096 1 &&
		[ "$got" = "$(od -An -tx1 -N1 "$T/vol/f6" | tr -d ' ')" ] && want a "$got" load 8 0 1
}
check discard-of-what-is-on-its-way discard_in_flight

numbered() {
	local got n i=0 v
	got=$(on B "$BIN/tests/inval" "$T/vol/$1" "$2" "$3")
	case $got in "ok "*) ;; *)
		echo "$got"
		return 1
		;;
	esac
	for n in ${got#ok}; do
		for v in $i $((i + 3)); do
			[ "$(od -An -tu8 -j $((v * 4096)) -N 8 "$T/vol/$1" | tr -d ' ')" = "$n" ] ||
				{ echo "slot $v of the server's file is not $n"; return 1; }
		done
		i=$((i + 1))
	done
}
check no-racing-write-is-lost numbered count 300 1
# The same without the write-back: it does fire.
loses() {
	local got
	got=$(numbered count2 3000 2)
	case $got in "writer "*" is "*) ;; *) echo "$got" && return 1 ;; esac
}
check a-lost-write-would-be-seen loses

# ---- others go on ----

busy() { # until $T/stop is there
	on "$1" bash -c 'until [ -e "$1/stop" ]; do
		for i in 1 2 3; do echo "$$" >"$1/vol/b.$$.$i" && cat "$1/vol/b.$$.$i" || exit; done >"$1/out.$$"
		[ "$(sort -u "$1/out.$$")" = $$ ] || { echo "$$ reads what it did not write"; exit 1; }
		rm -f "$1"/vol/b.$$.*
	done' - "$T" >>"$T/busy" 2>&1
}
others() {
	local i pids=()
	chmod 777 "$T" 2>/dev/null
	for i in 1 2; do busy A & pids+=($!); done
	for i in $(seq 25); do
		timeout 60 "$T/rawA" "$BIN/refault" invalidate --flush --volume vol >"$T/said" 2>&1 ||
			{ echo "round $i: status $?: $(tail -n 1 "$T/said")"; break; }
	done
	touch "$T/stop"
	wait "${pids[@]}" || return
	[ ! -s "$T/busy" ] && [ "$i" -eq 25 ]
}
here a-volume-while-its-files-are-opened-closed-and-left others

# ---- who cannot ----

usage() {
	local rc
	for args in '' '--flush' '--flush --discard x' '--volume' '--nonsense x'; do
		# shellcheck disable=SC2086
		inval B $args >"$T/said" 2>&1
		rc=$?
		[ "$rc" -eq 2 ] && [ -s "$T/said" ] || { echo "'$args': status $rc"; return 1; }
	done
	inval B --help | grep -q -e --discard
}
check usage usage
check no-such-file says 1 "refault: $T/vol/none: No such file or directory" B "$T/vol/none"
check no-file-of-ours says 0 '' B "$T/plain"
nobody() {
	mkdir -m 700 "$T/nobody" && [ -z "$(REFAULT_RUNTIME_DIR=$T/nobody "$BIN/refault" invalidate "$T/vol" 2>&1)" ] &&
		REFAULT_RUNTIME_DIR=$T/nobody "$BIN/refault" invalidate "$T/vol" &&
		REFAULT_RUNTIME_DIR=$T/none "$BIN/refault" invalidate --volume vol
}
check no-agent-nothing-to-do nobody
calls() {
	want b 'err EINVAL' invalidate 1 3 && want b 'err EINVAL' invalidate 1 4 &&
		want b 'err EBADF' invalidate 60 0 && want b ok open 9 "$T/plain" r &&
		want b 'err EINVAL' invalidate 9 0 && want b 'err EINVAL' invalpath 0 "$T/plain" &&
		want b 'err ENOENT' invalpath 0 "$T/vol/none" && want b 'err EINVAL' invalpath 0 "$T/vol/d"
}
check errors-of-the-calls calls

# An agent that is killed in between is followed by the next: the command asks again.
killed() {
	local i pid
	for i in 1 2 3; do
		pid=$(agent_pid B) && kill -STOP "$pid" || return
		inval B "$T/vol" >"$T/said" 2>&1 &
		pid_inval=$!
		kill -9 "$pid"
		wait "$pid_inval" || { echo "status $?: $(cat "$T/said")"; return 1; }
		want b 61 all 2 0 $LEN || return
	done
}
here agent-killed killed

away() {
	local got
	eventually 60 want c ok open 10 "$T/vol/f7" rw && want c ok map 10 10 rw 0 $LEN &&
		eventually 60 want c ok store 10 0 7a && hold 10 f7 && stop_server KILL || return
	got=$(inval C --flush "$T/vol/f7" 2>&1)
	[ $? -eq 1 ] && case $got in *"f7: cannot be written back: "*"; 1 dirty pages stay"*) ;; *) false ;; esac ||
		{ echo "said '$got'"; return 1; }
	start_server && eventually 60 want c ok store 10 1 7a && eventually 60 want c 7a7a load 10 0 2 &&
		eventually 60 want c ok fsync 10 && want a 7a7a load 10 0 2 && want b 7a7a load 10 0 2
}
here server-away away

# ---- advice ----

NORMAL=0 RANDOM_=1 SEQUENTIAL=2 WILLNEED=3 DONTNEED=4 NOREUSE=5
grows() { [ "$(counter B fetch-page)" -ge $(($1 + $2)) ]; }
will_need() {
	local before
	want b ok open 20 "$T/vol/wide" rw && before=$(counter B fetch-page) &&
		want b ok advise 20 65536 262144 $WILLNEED && eventually 60 grows "$before" 64 &&
		fetched B 0 want b 7777 pread 20 2 131071 && want b ok readahead 20 524288 524288 &&
		eventually 60 grows "$before" 192 && fetched B 0 want b 77 pread 20 1 1048575
}
check willneed-and-readahead-fetch will_need

# Nothing is stripped: whom an agent cannot get stripped in time loses all that is clean.
dont_need() {
	local s
	want b ok map 20 20 rw 0 1048576 && want b 77 all 20 0 1048576 && s=$(stripper b) && kill -STOP "$s" &&
		want b ok advise 20 4000 8300 $DONTNEED && fetched B 2 want b 77 all 20 0 1048576 &&
		want b ok advise 20 1 4094 $DONTNEED && fetched B 0 want b 77 all 20 0 1048576 &&
		kill -CONT "$s" && want b ok store 20 8192 78 && want b ok advise 20 0 0 $DONTNEED &&
		want b 78 load 20 8192 1 && want b ok msync 20 && want b 78 load 20 8192 1
}
check dontneed-drops-whole-clean-pages dont_need

advice_errors() {
	local adv
	for adv in $NORMAL $RANDOM_ $SEQUENTIAL $NOREUSE; do
		fetched B 0 want b ok advise 20 0 0 $adv || return
	done
	want b 'err EINVAL' advise 20 0 0 77 && want b 'err EINVAL' advise 20 0 -1 $WILLNEED &&
		want b 'err EBADF' advise 61 0 0 $NORMAL && want b ok open 21 "$T/fifo" rw &&
		want b 'err ESPIPE' advise 21 0 0 $WILLNEED && want b ok open 22 "$T/vol/wide" w &&
		want b 'err EBADF' readahead 22 0 4096 && want b 'err EBADF' readahead 61 0 4096 &&
		want b 'err EINVAL' readahead 20 0 -1
}
check advice-errors advice_errors

finish
