#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_huge - files that are sparse, and so long that a host has no room for all of them at once: who makes
# one too long is told so, who reads one that another host made too long gets an error, nobody hangs, and
# nothing that is stored is lost.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

if ! export_on tmpfs; then # its files may have any length
	skip huge "$WHY"
	exit 0
fi
HALF=$((1 << 45)) # two of these are half of what there is
FULL=$((1 << 46))
for f in one two; do head -c 65536 /dev/zero | tr '\0' a >"$T/vol/$f"; done
start_server
make_hosts
worker a A
worker b B

fits() {
	for n in 1 2; do
		want a ok open $n "$T/vol/$([ $n = 1 ] && echo one || echo two)" rw && want a ok map $n $n rw 0 65536 &&
			want a ok truncate $n $HALF && want a ok store $n 5 58 || return
	done
	want a ok pwrite 1 $((HALF - 1)) 59 && want a ok fsync 1 && want b ok open 1 "$T/vol/one" rw &&
		want b ok map 1 1 rw 0 65536 && want b 58 load 1 5 1 && want b 59 pread 1 1 $((HALF - 1))
}
check as-long-as-there-is-room fits

too_long() {
	want a 'err EFBIG' truncate 1 $FULL && want a 'err EFBIG' falloc 1 zero $HALF $HALF &&
		want a 'err EFBIG' pwrite 1 $FULL 5a && want a 'err EFBIG' copy 1 2 0 4096 $FULL &&
		want a $HALF size 1 && want b $HALF size 1 && want a ok truncate 1 $((HALF - 4096)) && want a ok truncate 1 $HALF
}
check too-long-is-EFBIG too_long

# What could not be had before is not wanted again by the agent that comes after this one.
adopted() {
	want a ok store 1 6 59 && replace_agent && want a 5859 load 1 5 2 && want a ok fsync 1 && want b 5859 pread 1 2 5
}
here agent-that-is-killed-after-that adopted

# What host A's memory holds of files is counted, all of it: else it is never given back.
counted() {
	local pid fd have=0 says
	pid=$(agent_pid A) || return
	for fd in "/proc/$pid/fd/"*; do
		case $(readlink "$fd") in */memfd:refault-data*) have=$((have + $(stat -Lc %b "$fd") * 512)) ;; esac
	done
	says=$(raw A "$BIN/refault" status | sed -n 's/^agent:.* cached \([0-9]*\),.*/\1/p')
	[ "$have" -le "$says" ] || { echo "$have bytes are held, $says are known of"; return 1; }
}

# The other host has room.
by_others() {
	want a 5859 load 1 5 2 && want b ok truncate 1 $FULL && want a 'err ENOMEM' pread 1 1 5 && want a 'err ENOMEM' pread 1 1 5 &&
		counted && want a 61 load 2 0 1 && want b ok store 1 7 5a && want b ok msync 1 && want b ok truncate 1 65536 || return
	want a 58595a pread 1 3 5 && want a 58595a load 1 5 3 && want a 65536 size 1
}
if [ "${B:-build}" = build-san ]; then
	skip made-too-long-by-another-host "the sanitizers have taken the room"
else
	check made-too-long-by-another-host by_others
fi
export KILLS_AGENTS=1
finish
