#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_core - what is promised to programs (DESIGN 1), with obedient workers on two hosts.
# Each test has a file of its own: sixteen pages of 'a' unless it says otherwise.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=65536
for i in $(seq 1 29); do
	head -c $LEN /dev/zero | tr '\0' a >"$T/vol/f$i"
done
printf 'short' >"$T/vol/short"
: >"$T/vol/log"
: >"$T/vol/crowd"
start_server
make_hosts A B C
# On hosts A and B nothing is flushed because time goes by.
start_agent A --dirty-expire 3600000
start_agent B --dirty-expire 3600000
worker a A
worker a2 A
worker b B
worker c C
worker r rawB

# all N WORKER...: open file fN as descriptor N and map it all as mapping N.
all() {
	local n=$1 w
	shift
	for w; do
		want "$w" ok open "$n" "$T/vol/f$n" rw && want "$w" ok map "$n" "$n" rw 0 "$LEN" || return
	done
}
# served N OFFSET LEN: what is in the server's own directory, hex.
served() { od -An -v -tx1 -j"$2" -N"$3" "$T/vol/f$1" | tr -d ' \n'; }

flushed_store_is_seen() {
	all 1 a b r && want b 61 load 1 5 1 && want r 61 load 1 5 1 &&
		want a ok store 1 5 7a && want a ok msync 1 && want b 7a load 1 5 1 &&
		want a ok store 1 5 7b && want a ok msync 1 && want b 7b load 1 5 1 &&
		want b ok store 1 5 7c && want b ok msync 1 && want a 7c load 1 5 1 &&
		[ "$(served 1 5 1)" = 7c ] && want r 61 load 1 5 1
}
check flushed-store-is-seen flushed_store_is_seen

read_sees_store() {
	all 2 a b && want b 61 pread 2 1 4097 && want a ok store 2 4097 7a && want a ok msync 2 &&
		want b 7a pread 2 1 4097 && want b 7a61 load 2 4097 2
}
check read-sees-flushed-store read_sees_store

write_is_seen() {
	all 3 a b && want b 616161 load 3 8190 3 && want a ok pwrite 3 8190 303132 &&
		want a 303132 load 3 8190 3 && want a ok fsync 3 && want b 303132 load 3 8190 3 &&
		want b 303132 pread 3 3 8190 && want a ok pwrite 3 8191 61 &&
		want a ok fdatasync 3 && want b 306132 load 3 8190 3
}
check flushed-write-is-seen-in-mapping write_is_seen

# write() carries its whole range, also bytes that were there already; that must not make a later
# store look like no change, whatever its value.
store_after_write() {
	all 23 a b && want b 6161 load 23 0 2 && want a ok pwrite 23 0 6161 &&
		want a ok store 23 0 9e9e && want a ok msync 23 && want b 9e9e load 23 0 2 &&
		want a ok pwrite 23 100 e1e1 && want a ok store 23 100 1e1e &&
		want a ok fsync 23 && want b 1e1e load 23 100 2
}
check store-after-write-of-equal-bytes store_after_write

# B changes the byte and flushes, A writes the value that it had: the last flush wins.
equal_write_wins() {
	all 24 a b && want a 61 load 24 0 1 && want b ok store 24 0 7a && want a ok pwrite 24 0 61 &&
		want b ok msync 24 && want a ok fsync 24 && want b 61 load 24 0 1 &&
		want a 61 load 24 0 1
}
check write-of-equal-bytes-is-a-change equal_write_wins

different_bytes_survive() {
	all 4 a b && want a 6161 load 4 10 2 && want b 6161 load 4 10 2 &&
		want a ok store 4 10 aa && want b ok store 4 11 bb &&
		want a ok msync 4 && want b ok msync 4 &&
		want a aabb load 4 10 2 && want b aabb load 4 10 2 &&
		[ "$(served 4 9 4)" = 61aabb61 ]
}
check different-bytes-of-a-page-both-survive different_bytes_survive

last_flush_wins() {
	all 5 a b && want a 61 load 5 0 1 && want b 61 load 5 0 1 && want a ok store 5 0 01 &&
		want b ok store 5 0 02 && want a ok msync 5 && want b ok msync 5 &&
		[ "$(served 5 0 1)" = 02 ] && want a 02 load 5 0 1 && want b 02 load 5 0 1 &&
		want b 02 pread 5 1 0
}
check same-bytes-last-flush-wins last_flush_wins

same_host() {
	all 6 a a2 && want a2 61 load 6 0 1 && want a ok store 6 0 7a && want a2 7a load 6 0 1 &&
		want a2 ok store 6 70 7b && want a 7b load 6 70 1 && want a2 7b pread 6 1 70 &&
		want a ok pwrite 6 70 7c && want a2 7c load 6 70 1
}
check one-host-shares-stores-at-once same_host

beyond_eof() {
	want a ok open 7 "$T/vol/short" rw && want a ok map 7 7 rw 0 8192 &&
		want a 73686f7274 load 7 0 5 && want a sigbus load 7 4096 1 &&
		want a sigbus store 7 5000 00 && want a 73 load 7 0 1 &&
		want a SIGBUS die 7 4096 && want a 00 load 7 5 1 && want a 5 size 7
}
check beyond-eof-is-sigbus beyond_eof

fork_child() {
	all 8 a b && want a ok store 8 0 7a && want a 7a fork load 8 0 1 &&
		want a ok fork store 8 1 7b && want a 7a7b load 8 0 2 &&
		want a ok fork store 8 4096 7c && want a ok msync 8 && want b 7a7b load 8 0 2 &&
		want b 7c load 8 4096 1 && want b ok store 8 0 30 && want b ok msync 8 &&
		want a 30 fork load 8 0 1 && want a 307b fork pread 8 2 0
}
check fork-child-is-coherent fork_child

dirty_elsewhere() {
	all 9 a b && want b 61 all 9 0 "$LEN" && want a 61 all 9 0 "$LEN" &&
		want b ok store 9 12288 d1 && want a ok store 9 0 d0 && want a ok msync 9 &&
		want b d0 load 9 0 1 && want b d1 load 9 12288 1 && want b 61 load 9 20480 1 &&
		want b ok msync 9 && want a d1 load 9 12288 1
}
check break-with-dirty-page-elsewhere dirty_elsewhere

dirty_same_page() {
	all 10 a b && want b ok store 10 100 d1 && want a ok store 10 200 d0 &&
		want a ok msync 10 && want b d0 load 10 200 1 && want b d1 load 10 100 1 &&
		want b ok msync 10 && want a d1 load 10 100 1 && want a d0 load 10 200 1
}
check break-into-dirty-page dirty_same_page

# In both, the reader is told that something happened, validates, and finds its copy to be good.
no_refetch_chmod() {
	local before after
	all 11 b && want b 61 all 11 0 "$LEN" || return
	before=$(counter B fetch)
	[ "$before" -gt 0 ] || { echo "no fetch was counted"; return 1; }
	chmod 600 "$T/vol/f11" && touch -a "$T/vol/f11" && chmod 644 "$T/vol/f11"
	want b 61 all 11 0 "$LEN" || return
	after=$(counter B fetch)
	[ "$after" = "$before" ] || { echo "fetched $((after - before)) times"; return 1; }
}
no_refetch_restart() {
	local before after breaks
	all 21 b && want b 61 all 21 0 "$LEN" || return
	before=$(counter B fetch) breaks=$(counter B mass-break)
	stop_server
	more_breaks() { [ "$(counter B mass-break)" -gt "$breaks" ]; }
	eventually 60 more_breaks || { echo "a lost connection was no mass break"; return 1; }
	start_server >/dev/null
	want b 61 all 21 0 "$LEN" || return
	after=$(counter B fetch)
	[ "$after" = "$before" ] || { echo "fetched $((after - before)) times"; return 1; }
}

no_refetch_hup() {
	local before after breaks
	all 22 a b && want b 61 all 22 0 "$LEN" || return
	before=$(counter B fetch) breaks=$(counter B mass-break)
	kill -HUP "$SERVER"
	more_breaks() { [ "$(counter B mass-break)" -gt "$breaks" ]; }
	eventually 60 more_breaks || { echo "SIGHUP was no mass break"; return 1; }
	want b 61 all 22 0 "$LEN" || return
	after=$(counter B fetch)
	[ "$after" = "$before" ] || { echo "fetched $((after - before)) times"; return 1; }
	want a ok store 22 0 7a && want a ok msync 22 && want b 7a load 22 0 1
}

third_party() {
	all 12 b && want b 61 all 12 0 "$LEN" &&
		printf 'XY' | dd of="$T/vol/f12" bs=1 seek=4100 conv=notrunc status=none &&
		eventually 60 want b 5859 load 12 4100 2 >/dev/null && want b 5859 pread 12 2 4100 &&
		printf 'Z' | dd of="$T/vol/f12" bs=1 seek=0 conv=notrunc status=none &&
		eventually 60 want b 5a load 12 0 1 >/dev/null || { echo "not seen"; return 1; }
}
check third-party-edit-is-seen third_party

truncate_is_seen() {
	all 13 a b && want b 61 all 13 0 "$LEN" && want a ok truncate 13 5000 &&
		want a 5000 size 13 && want b 5000 size 13 && want b 5000 stat "$T/vol/f13" &&
		want b 61 load 13 4999 1 && want b 00 load 13 5000 1 && want b sigbus load 13 8192 1 &&
		want b eof pread 13 10 5000 && want a ok truncate 13 16384 && want b 16384 size 13 &&
		want b 6100 load 13 4999 2 && want b 00 all 13 8192 8192 &&
		want b 610000 pread 13 3 4999 && want a 16384 size 13
}
check truncate-is-seen truncate_is_seen

# Host B has the file open, and was not told, because it has no promise: who has only the name sees it, too.
stat_by_name() {
	local breaks got
	want a ok open 29 "$T/vol/f29" rw && want b ok open 29 "$T/vol/f29" r && want b "$LEN" size 29 || return
	breaks=$(counter B mass-break)
	kill -HUP "$SERVER"
	forgotten() { [ "$(counter B mass-break)" -gt "$breaks" ]; }
	eventually 60 forgotten && want a ok truncate 29 5000 || return
	got=$(on B stat -c %s "$T/vol/f29")
	[ "$got" = 5000 ] || { echo "stat of the name says $got"; return 1; }
}
check stat-by-name-without-a-promise stat_by_name

append() {
	want a ok open 14 "$T/vol/log" rwa && want b ok open 14 "$T/vol/log" rwa &&
		want a ok write 14 6131 && want b ok write 14 6231 && want a ok write 14 6132 &&
		want b ok write 14 6232 && want a 613162316132 pread 14 6 0 &&
		want b 6131623161326232 pread 14 100 0 && want a 8 size 14
}
check append-on-two-hosts append

# More threads than can have a request under way (RF_CELLS): who waits takes no answer of another's.
crowd() {
	local said
	said=$(on A "$BIN/tests/crowd" "$T/vol/crowd" 600 20 2>&1) || { echo "$said"; return 1; }
	[ "$said" = 12000 ] || { echo "told of $said lines, not of 12000"; return 1; }
	[ "$(sort -u "$T/vol/crowd" | wc -l) $(wc -l <"$T/vol/crowd")" = '12000 12000' ] || {
		echo "$(sort -u "$T/vol/crowd" | wc -l) different ones of $(wc -l <"$T/vol/crowd") lines are there"
		return 1
	}
}
check append-from-600-threads crowd

# What was written is in a dirty page when its place is cut off or punched: it is no change of A's
# any more, and must not win over what is put there afterwards, by A itself or by B.
cut_dirty() {
	want a ok open 26 "$T/vol/f26" rw && want a ok open 27 "$T/vol/f26" rwa &&
		want a ok pwrite 26 100 3132333435363738 && want a ok truncate 26 104 &&
		want a ok write 27 7a7b7c7d && want a 31323334 pread 26 4 100 &&
		want a 7a7b7c7d pread 26 4 104 && want a ok fsync 26 &&
		[ "$(served 26 100 20)" = 313233347a7b7c7d ] && want a 7a7b7c7d pread 26 4 104
}
check append-behind-a-cut-write cut_dirty
punch_dirty() {
	all 28 a b && want b 61 load 28 0 1 && want a ok pwrite 28 200 31323334 &&
		want a ok punch 28 200 2 && want b 0000 load 28 200 2 &&
		want b ok pwrite 28 200 7a7b && want b ok fsync 28 && want a ok fsync 28 &&
		want a 7a7b3334 pread 28 4 200 && want b 7a7b3334 load 28 200 4 &&
		[ "$(served 28 200 4)" = 7a7b3334 ]
}
check write-to-a-punched-write punch_dirty

background() {
	all 15 c b && want b 61 load 15 0 1 && want c ok store 15 0 7a &&
		want b ok spin 15 0 7a && want c ok pwrite 15 9000 7b && want b ok spin 15 9000 7b
}
check unflushed-store-arrives-by-itself background

last_close() {
	all 16 a b && want b 61 load 16 0 1 && want a ok store 16 0 7a &&
		want a ok unmap 16 && want a ok close 16 && want b 7a load 16 0 1 &&
		want a ok open 16 "$T/vol/f16" rw && want a ok pwrite 16 1 7b &&
		want a ok close 16 && want b 7a7b load 16 0 2
}
check last-close-flushes last_close

private() {
	all 17 b && want a ok open 17 "$T/vol/f17" rw && want a ok map 17 17 p 0 "$LEN" &&
		want a 61 load 17 0 1 && want a ok store 17 0 99 &&
		want b ok store 17 1 7a && want b ok store 17 4096 7b && want b ok msync 17 &&
		want a 9961 load 17 0 2 && want a 7b load 17 4096 1 &&
		want b 617a load 17 0 2 && want a 617a pread 17 2 0
}
check private-mapping-keeps-its-copies private

remap() {
	want a ok open 18 "$T/vol/f18" rw && want a ok map 18 18 rw 4096 4096 && all 18 b &&
		want a ok store 18 0 7a && want a ok mremap 18 32768 && want a 7a load 18 0 1 &&
		want a 61 load 18 20480 1 && want a ok store 18 20480 7b &&
		want a ok msync 18 && want b 7a load 18 4096 1 && want b 7b load 18 24576 1 &&
		want b ok store 18 24577 7c && want b ok msync 18 && want a 7b7c load 18 20480 2 &&
		want a ok mprotect 18 r && want a 7b load 18 20480 1 && want a ok mprotect 18 rw &&
		want a ok store 18 20480 7d && want a ok msync 18 && want b 7d load 18 24576 1 &&
		want a ok dontneed 18 && want a 7d7c load 18 20480 2
}
check mremap-mprotect-madvise remap

punch() {
	all 19 a b && want b 61 all 19 0 "$LEN" && want a ok punch 19 4096 8192 &&
		want a 00 all 19 4096 8192 && want b 00 all 19 4096 8192 &&
		want b 61 load 19 12288 1 && want b 61 load 19 4095 1 && want b "$LEN" size 19 &&
		want a ok store 19 4096 7a && want a ok msync 19 && want b 7a00 load 19 4096 2
}
check punch-hole-is-seen punch

grow_by_write() {
	want a ok open 20 "$T/vol/short" rw && want b ok open 20 "$T/vol/short" rw &&
		want b ok map 20 20 rw 0 8192 && want b 5 size 20 && want a ok pwrite 20 6000 7a &&
		want a 6001 size 20 && want a ok fsync 20 && want b 6001 size 20 &&
		want b 740000 load 20 4 3 && want b 7a load 20 6000 1 && want b 7a pread 20 10 6000
}
check write-past-eof-grows grow_by_write

# Only somebody who is not root can be refused.
refused() {
	all 25 a b && want a 61 load 25 0 1 && want b 61 load 25 0 1 || return
	chown 0:0 "$T/vol/f25" && chmod 444 "$T/vol/f25" || return
	want a ok store 25 0 7a && want a 'err EACCES' msync 25 && want a 61 load 25 0 1 &&
		want b 61 load 25 0 1 && want a "$LEN" size 25 && want a ok fsync 25 &&
		[ "$(served 25 0 1)" = 61 ]
}
if [ "$VARIANT" = @nobody ]; then
	check refused-flush-shows-the-servers-content refused
fi

check chmod-refetches-nothing punctual B no_refetch_chmod
here restart-refetches-nothing punctual B no_refetch_restart
check mass-break-refetches-nothing punctual B no_refetch_hup
same bypass-reads-the-stale-copy "$(ask r load 1 0 6)" 616161616161
dismiss a a2 b c r
finish
