#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_pins - pages that I/O uses while this host, or others, change the file: pinned by a call, or by
# refault_pin.  SEED=n repeats the choices of the load; the rest is chance.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${SEED:-$RANDOM$RANDOM}
echo "seed $SEED"
export_on ext4 || echo "the export is not on ext4: $WHY"
for f in errors brk dma direct gift self fail wait bound sequester apart again own kill fork unmap call conf agent; do
	head -c 65536 /dev/zero | tr '\0' a >"$T/vol/$f"
done
head -c 65536 /dev/zero | tr '\0' s >"$T/src" # O_DIRECT reads come from here
chmod 644 "$T/src"
head -c 2097152 /dev/zero >"$T/vol/load"
truncate -s 134217728 "$T/vol/big"
truncate -s 262144 "$T/vol/flushed"
truncate -s 8T "$T/vol/vast"
start_server
make_hosts A B C
# What A stores stays dirty until somebody asks for it.
start_agent A --dirty-expire 600000

# program NAME HOST FILE HOW [LEN]: it has the file open and mapped.
program() {
	WORKER=pins worker "$1" "$2" obey
	want "$1" ok open "$T/vol/$3" "${5:-65536}" "$4"
}
# orphans PAGES FILE: `refault status` of host A shows so many (0: none) of it.
orphans() {
	local n
	n=$(status A | awk -v p="$2" '$1 == "orphans:" && $2 == p { n += $4 } END { print n + 0 }')
	[ "$n" = "$1" ] && return
	echo "$n orphans of $2, should be $1"
	return 1
}
# waits N: so many truncates and their like have waited for pins on host A so far.
waits() { [ "$(counter A pin-wait)" -ge "$1" ]; }

# ---- refault_pin itself ----

errors() {
	program p A errors r && program w A errors rw && program c A errors p || return
	want p ok pin 1 10 && want p ok unpin 1 10 && want p 'err EINVAL' unpin 1 10 &&
		want p 'err EACCES' pin 0 4096 w && want p 'err ENOMEM' pin 0 70000 &&
		want p 'err ENOMEM' pin -4096 8192 && want p 'err EINVAL' pin 0 0 || return
	# They add up.
	want w ok pin 0 65536 w && want w ok pin 0 65536 w && want w ok unpin 0 65536 &&
		want w ok unpin 0 65536 && want w 'err EINVAL' unpin 0 65536 || return
	want w ok truncate 4096 && want w 'err EFAULT' pin 0 8192 && want w ok truncate 65536 || return
	# A private mapping has copies of its own: the file goes on without them.
	want c ok pin 0 8192 w && want c ok kstore 0 6262 && want c 6262 load 0 2 &&
		want w 6161 load 0 2 && want c ok unpin 0 8192 || return
	dismiss p w c
}

# ---- changes by the other host ----

# Every way in which a change comes: its bytes with the break; where it is; that there is one.
breaks() {
	local hex
	program a A brk rw && worker b B && want b ok open 1 "$T/vol/brk" rw &&
		want a ok pin 0 65536 w && want a ok store 8 4d || return
	for hex in 62 63; do
		want b ok pwrite 1 100 "$hex" && want b ok fsync 1 && want a "$hex" kload 100 1 || return
	done
	want b ok pwrite 1 0 "$(printf '%0131072d' 0 | sed 's/00/64/g')" && want b ok fsync 1 &&
		want a 64 kload 40000 1 && want a 4d6464 kload 8 3 || return
	printf e | dd of="$T/vol/brk" bs=1 seek=50000 conv=notrunc status=none
	eventually 60 want a 65 kload 50000 1 || return
	# A store by the kernel needs no fault either, and it reaches the other host.
	want a ok kstore 60000 66 && want a ok fsync && want b 66 pread 1 1 60000 &&
		want a ok kstore 60001 67 && want a ok fsync && want b 6667 pread 1 2 60000 || return
	want a ok unpin 0 65536 && want a ok store 60002 68 && want a ok fsync &&
		want b 666768 pread 1 3 60000 || return
	dismiss a b
}

# Registered memory: the device stores without any page table knowing.
dma() {
	program a A dma rw && worker b B && want b ok open 1 "$T/vol/dma" rw || return
	want a ok pin 0 65536 w && want a ok register 0 65536 || return
	want a ok dstore 5000 6464 && want a ok fsync && want b 646461 pread 1 3 5000 || return
	want a ok dstore 5002 6565 && want a ok fsync && want b 64646565 pread 1 4 5000 || return
	# Theirs and the device's, in one page; what came from there is what the device sees.
	want b ok pwrite 1 5010 7777 && want a ok dstore 5012 7878 && want b ok fsync 1 &&
		want a 77777878 dload 5010 4 && want a ok fsync && want b 77777878 pread 1 4 5010 || return
	want a ok dstore 9000 79 && want a ok unpin 0 65536 && want a ok fsync &&
		want b 79 pread 1 1 9000 || return
	dismiss a b
}

# ---- calls ----

# O_DIRECT reads store into the mapping itself.
direct() {
	program a A direct rw && worker b B && want b ok open 1 "$T/vol/direct" r || return
	want a 8192 direct "$T/src" 4096 8192 && want a 61 load 4095 1 && want a 7373 load 4096 2 &&
		want a 7361 load 12287 2 && want a ok fsync && want b 617373 pread 1 3 4095 || return
	# To the end of the source, and past that of the file.
	want a 65536 direct "$T/src" 0 65536 && want a ok truncate 8192 &&
		want a 'err EFAULT' direct "$T/src" 8192 4096 && want a ok truncate 65536 &&
		want a 0000 load 8192 2 && want a 4096 direct "$T/src" 8192 4096 &&
		want a 7373 load 8192 2 && want a 0000 load 12288 2 || return
	dismiss a b
}

gift() {
	program a A gift rw && want a ok gift 0 4096 && want a ok store 1 62 &&
		want a ok truncate 0 && want a 6162 drain 2 && want a ok truncate 65536 &&
		want a 0000 load 0 2 || return
	dismiss a
}

# Into a buffer that maps the same file; where it overlaps what is read, only what comes before is certain.
self() {
	program a A self rw && want a ok store 0 62636465 && want a 4 self 0 4 100 &&
		want a 62636465 load 100 4 && want a 4096 self 0 4096 2 && want a 62636263 load 0 4 ||
		return
	dismiss a
}

# ---- policies ----

fail() {
	program p A fail rw && program t A fail rw && want p ok pin 8192 4096 &&
		want t ok policy fail && want t 'err ETXTBSY' truncate 4096 &&
		want t 'err ETXTBSY' punch 8192 4096 && want t 65536 size || return
	# Not in the way: what lies elsewhere, and parts of pages.
	want t ok punch 12288 8192 && want t ok punch 8200 8 && want p 6100 load 8199 2 &&
		want t ok truncate 12288 && want p ok unpin 8192 4096 && want t ok truncate 4096 ||
		return
	dismiss p t
}

# The truncate has asked, and waits, until the pin is given back; meanwhile others go on.
wait_for_it() {
	local n
	program p A wait rw && program t A wait rw && want p ok pin 0 4096 &&
		want t ok policy wait 600000 fail || return
	n=$(counter A pin-wait)
	tell t truncate 0
	eventually 60 waits $((n + 1)) || { echo "it does not wait"; return 1; }
	want p ok store 20000 62 && want p ok fsync && want p 65536 size && want p 62 load 20000 1 &&
		want p ok unpin 0 4096 || return
	IFS= read -r -t 60 n <&"${FROM[t]}" && [ "$n" = ok ] || { echo "then it says '$n'"; return 1; }
	want p 0 size || return
	dismiss p t
}

bounded() {
	program p A bound rw && program t A bound rw && want p ok pin 0 4096 &&
		want t ok policy wait 50 fail && want t 'err ETXTBSY' truncate 0 && want t 65536 size &&
		want t ok policy wait 50 sequester && want t ok truncate 0 && want t 0 size || return
	dismiss p t
}

# The file goes on without the pages; the device keeps them, and nothing that it does shows.
sequester() {
	program p A sequester rw && program t A sequester rw && worker b B &&
		want b ok open 1 "$T/vol/sequester" r && want p ok pin 0 65536 w &&
		want p ok register 0 65536 && want t ok policy sequester && orphans 0 sequester ||
		return
	want t ok truncate 8192 && orphans 14 sequester && want t ok truncate 65536 &&
		want p ok dstore 20000 7a7a && want p 7a7a dload 20000 2 && want p 0000 load 20000 2 &&
		want t 0000 load 20000 2 && want p ok fsync && want b 0000 pread 1 2 20000 || return
	# What it still has is the file's; what it has lost nobody waits for any more.
	want p ok dstore 4000 7b7b && want t 7b7b load 4000 2 && want p ok fsync &&
		want b 7b7b pread 1 2 4000 && want t ok policy fail && want t ok truncate 8192 &&
		want t 'err ETXTBSY' truncate 0 && want t ok truncate 65536 || return
	want t ok store 20000 7c && want p 7c load 20000 1 && want p 7a7a dload 20000 2 || return
	want p ok unpin 0 65536 && orphans 0 sequester && want t ok truncate 0 || return
	dismiss p t b
}

# Lost here and there: each page is counted once, and none of them is waited for; what is in between is.
apart() {
	local page
	program p A apart rw && program t A apart rw && want p ok pin 0 65536 && want t ok policy sequester || return
	for page in 1 5 9 5 3 4 9; do want t ok punch $((page * 4096)) 4096 || return; done
	orphans 5 apart && want t ok policy fail || return
	for page in 1 3 4 5 9; do want t ok punch $((page * 4096)) 4096 || return; done
	for page in 0 2 6 8 10; do want t 'err ETXTBSY' punch $((page * 4096)) 4096 || return; done
	want t ok punch 12288 12288 && want t 'err ETXTBSY' punch 4096 12288 && orphans 5 apart || return
	want t ok policy sequester && want t ok punch 0 49152 && orphans 12 apart && want t ok truncate 0 &&
		orphans 16 apart && want p ok unpin 0 65536 && orphans 0 apart || return
	dismiss p t
}

# What takes the place of orphans is as good as any page: it is flushed, moved, and thrown away.
again() {
	program p A again rw && worker a A && worker b B && want a ok open 1 "$T/vol/again" rw &&
		want b ok open 1 "$T/vol/again" r && want p ok pin 0 65536 w && want p ok policy sequester &&
		want p ok truncate 0 && orphans 16 again && want p ok truncate 65536 && want p ok store 8192 7a ||
		return
	want a ok falloc 1 collapse 0 4096 && want p 7a load 4096 1 && want b 7a pread 1 1 4096 &&
		want p ok store 4097 7b && want a ok falloc 1 insert 0 4096 && want p 7a7b load 8192 2 &&
		want b 7a7b pread 1 2 8192 && want p ok unpin 0 65536 && orphans 0 again || return
	dismiss p a b
}

# Whatever a program writes where its pins are, other files, and this one, can be had in time.
scribbled() {
	program p A vast rw && worker a A && want a ok open 1 "$T/vol/vast" rw && want p ok pin 0 4096 &&
		want p ok scribble && ask a invalidate 1 0 | grep -x '[1-9][0-9]*' && want p ok store 0 7a &&
		want a ok fsync 1 && want a ok advise 1 0 0 4 || return
	dismiss p a
}

own() {
	program p A own rw && want p ok pin 0 4096 && want p ok policy wait 600000 fail &&
		want p 'err EDEADLK' truncate 0 && want p 'err EDEADLK' punch 0 4096 &&
		want p ok policy fail && want p 'err ETXTBSY' truncate 0 && want p ok policy sequester &&
		want p ok truncate 0 && want p ok unpin 0 4096 || return
	# By a call of its own that is under way: its handler interrupts it.
	want p ok truncate 65536 && want p ok policy wait 600000 fail &&
		want p 'EDEADLK, 4096' handler 0 4096 0 && want p ok truncate 0 || return
	dismiss p
}

# Neither a program that was killed, nor a child, nor what is unmapped or overmapped, has pins.
gone() {
	program p A kill rw && program t A kill rw && want p ok pin 0 65536 w && want t ok policy fail &&
		want t 'err ETXTBSY' truncate 0 || return
	kill -9 "${WPID[p]}" && wait "${WPID[p]}" 2>/dev/null
	want t ok policy wait 20000 fail && want t ok truncate 0 || return
	dismiss p t
	program p A fork rw && program t A fork rw && want t ok policy fail && want p ok pin 0 4096 &&
		want p 'err EINVAL' fork unpin 0 4096 && want t 'err ETXTBSY' truncate 0 &&
		want p ok unpin 0 4096 && want t ok truncate 0 || return
	dismiss p t
	program p A unmap rw && program t A unmap rw && want t ok policy fail &&
		want p ok pin 0 65536 && want t 'err ETXTBSY' truncate 0 && want p ok unmap 4096 4096 &&
		want p ok unmap 0 4096 && want t 'err ETXTBSY' truncate 0 && want p ok unmap 8192 57344 &&
		want t ok truncate 0 || return
	dismiss p t
}

# A write(2) that is under way is a pin; one that was left by a jump, or with its thread, is none.
calls() {
	program p A call rw && program t A call rw && want t ok policy fail && want p ok block 4096 4096 &&
		want t 'err ETXTBSY' truncate 0 && want t ok truncate 8192 && want p 4096 unblock &&
		want t ok truncate 0 && want t ok truncate 65536 || return
	want p ok jump 4096 4096 && want t ok truncate 0 && want t ok truncate 65536 &&
		want p ok cancel 4096 4096 && want t ok truncate 0 && want t ok truncate 65536 &&
		want p ok jumps 10000 && want t ok truncate 0 || return
	dismiss p t
}

# What configuration says, where the program says nothing; one clear line for what it cannot mean.
configured() {
	local out=$T/conf.out
	program p A conf rw && want p ok pin 0 4096 || return
	for v in REFAULT_PINS=fail "REFAULT_PINS=wait:0.02" REFAULT_VOLUMES="$(VOLUMES),pins=wait:0.02:fail"; do
		"$T/A" env "$v" truncate -s 0 "$T/vol/conf" 2>"$out" && { echo "$v: no error"; return 1; }
		grep -q 'Text file busy' "$out" || { cat "$out"; return 1; }
	done
	"$T/A" env REFAULT_PINS=wait:x truncate -s 65536 "$T/vol/conf" 2>"$out" &&
		grep -qx "refault: REFAULT_PINS=wait:x: not fail, sequester or wait\[:SECONDS\[:fail|:sequester\]\]; taken as wait:10:fail" "$out" ||
		{ cat "$out"; return 1; }
	"$T/rawA" env -u REFAULT_VOLUMES "$BIN/refault" run --volume "$T/vol=unix:$SOCK,pins=fail,name=vol" -- \
		truncate -s 0 "$T/vol/conf" 2>"$out" && { echo "--volume with pins=fail: no error"; return 1; }
	grep -q 'Text file busy' "$out" || { cat "$out"; return 1; }
	"$T/A" env REFAULT_VOLUMES="$(VOLUMES),pins=no" true 2>"$out"
	grep -q 'option "pins=no" is not name=NAME or pins=' "$out" || { cat "$out"; return 1; }
	REFAULT_PINS=fail "$T/A" env REFAULT_VOLUMES="$(VOLUMES),pins=sequester" truncate -s 0 "$T/vol/conf" &&
		orphans 1 conf && want p ok unpin 0 4096 || return
	dismiss p
}

# Host C has 64 MiB for dirty pages: a pin takes at most three quarters, and the rest is for others.
budget() {
	start_agent C --dirty-bytes 67108864
	program p C big rw 134217728 && want p 'err ENOMEM' pin 0 134217728 w &&
		want p 'err ENOMEM' pin 0 60000000 && want p ok pin 0 40000000 w &&
		want p 'err ENOMEM' pin 0 40000000 && worker t C && want t ok open 1 "$T/vol/big" rw &&
		want t ok map 1 1 rw 67108864 67108864 && want t ok fill 1 0 67108864 62 || return
	want p ok unpin 0 40000000 && want p ok pin 0 40000000 && want p ok unpin 0 40000000 || return
	dismiss p t
}

# An agent that is killed leaves the pins, and what is known of their orphans.
killed_agent() {
	program p A agent rw && program t A agent rw && want p ok pin 0 65536 w &&
		want t ok policy sequester && want t ok truncate 32768 && orphans 8 agent || return
	kill -9 "$(agent_pid A)"
	orphans 8 agent && want t ok truncate 65536 && want t ok policy fail &&
		want t ok truncate 32768 && want t 'err ETXTBSY' truncate 0 && want p ok unpin 0 65536 &&
		want t ok truncate 0 || return
	dismiss p t
}

# ---- under load ----

# loaded POLICY: threads use the pages of a file while another cuts them off.
loaded() {
	timeout 300 "$T/A" "$BIN/tests/pins" load "$T/vol/load" "$T/pattern" 150 "$1" "$SEED" &&
		"$BIN/tests/pins" look "$T/vol/load" && "$T/B" "$BIN/tests/pins" look "$T/vol/load"
}

here refault-pin-does-what-its-manual-says errors
here changes-of-others-show-in-pinned-pages-without-a-fault breaks
here what-a-device-stores-is-flushed-while-pinned-and-after dma
here direct-reads-go-into-the-pages direct
here what-a-pipe-was-given-stays-as-it-was gift
here a-file-is-read-into-its-own-mapping self
here fail-refuses-at-once fail
here wait-waits-for-the-pin wait_for_it
here wait-is-bounded bounded
here sequester-goes-on-and-orphans-harm-nobody sequester
here orphans-are-counted-wherever-they-are apart
here what-takes-the-place-of-orphans-is-free again
here nobody-waits-for-a-pin-of-his-own own
here scribbled-pins-hold-nobody-up scribbled
here pins-end-with-their-owners gone
here calls-pin-for-as-long-as-they-are-under-way calls
here policies-can-be-configured configured
here pins-leave-room-for-other-dirty-pages budget
"$BIN/tests/pins" source "$T/pattern" 1048576
chmod 644 "$T/pattern"
check direct-reads-are-not-lost-under-flushes timeout 300 "$T/A" "$BIN/tests/pins" flushed "$T/vol/flushed" "$T/pattern" 300
for p in fail:0:fail wait:5:fail wait:2:sequester sequester:0:fail; do
	here "$p-under-load" loaded "$p"
done
check no-daemon-crashed-under-load crashes
# shellcheck disable=SC2034 # for finish
KILLS_AGENTS=1
here an-agent-that-is-killed-loses-no-pin killed_agent
finish
