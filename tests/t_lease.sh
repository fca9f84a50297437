#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_lease - a host whose agent does not answer shows nothing old once others' flushes return: the
# server waits out the lease, and the programs' strippers strip by themselves before it ends.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

for f in 1 2 3 4; do head -c 65536 /dev/zero | tr '\0' a >"$T/vol/f$f"; done
start_server --lease 3 # by an eighth of which a busy machine may be late
make_hosts
worker a A
worker b B

# leased N WHEN [OFFSET]: B has f$N mapped, its agent stands still, A's flush returns.  B's next load has to wait
# for the agent.
leased() {
	local p got='' how=rw
	[ "$2" != private-and-longer ] || how=p
	want a ok open "$1" "$T/vol/f$1" rw && want b ok open "$1" "$T/vol/f$1" rw &&
		want a ok map "$1" "$1" rw 0 65536 && want b ok map "$1" "$1" "$how" 0 61440 &&
		want b 61 load "$1" 4096 1 && want b 61 load "$1" 0 1 || return
	if [ "$2" = after-a-break ]; then
		want a ok store "$1" 4096 71 && want a ok msync "$1" && want b 71 load "$1" 4096 1 || return
	fi
	case $2 in
	in-pieces) want b ok mprotect "$1" r 8192 4096 && want b 61 load "$1" 12288 1 ;;
	private-and-longer) want b ok mremap "$1" 65536 ;;
	esac || return
	p=$(agent_pid B)
	kill -STOP "$p"
	want a ok store "$1" "${3:-0}" 7a && want a ok msync "$1" || { kill -CONT "$p"; return 1; }
	# A page table entry of before would answer at once, and wrongly.
	tell b load "$1" "${3:-0}" 1
	IFS= read -r -t 1 got <&"${FROM[b]}" || got=
	kill -CONT "$p"
	[ -n "$got" ] || IFS= read -r -t 60 got <&"${FROM[b]}"
	[ "$got" = 7a ] || { echo "loaded '$got', should be 7a"; return 1; }
}
here stopped-agent-shows-nothing-old leased 1 at-once
here stopped-agent-shows-nothing-old-after-a-break leased 2 after-a-break
here stopped-agent-shows-nothing-old-in-pieces leased 3 in-pieces 12288
here stopped-agent-shows-nothing-old-private leased 4 private-and-longer
finish
