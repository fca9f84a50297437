#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_lease - a host whose agent does not answer shows nothing old once others' flushes return: the
# server waits out the lease, and the programs' strippers strip by themselves before it ends.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

for f in 1 2; do head -c 65536 /dev/zero | tr '\0' a >"$T/vol/f$f"; done
start_server --lease 2
make_hosts
worker a A
worker b B

# leased N WHEN: B has f$N mapped, its agent stands still, A's flush returns.  B's next load has to wait
# for the agent.
leased() {
	local p got=
	both() { want a ok "$@" && want b ok "$@"; }
	both open "$1" "$T/vol/f$1" rw && both map "$1" "$1" rw 0 65536 && want b 61 load "$1" 0 1 || return
	if [ "$2" = after-a-break ]; then
		want a ok store "$1" 4096 71 && want a ok msync "$1" && want b 71 load "$1" 4096 1 || return
	fi
	p=$(agent_pid B)
	kill -STOP "$p"
	want a ok store "$1" 0 7a && want a ok msync "$1" || { kill -CONT "$p"; return 1; }
	# A page table entry of before would answer at once, and wrongly.
	tell b load "$1" 0 1
	IFS= read -r -t 1 got <&"${FROM[b]}" || got=
	kill -CONT "$p"
	[ -n "$got" ] || IFS= read -r -t 20 got <&"${FROM[b]}"
	[ "$got" = 7a ] || { echo "loaded '$got', should be 7a"; return 1; }
}
here stopped-agent-shows-nothing-old leased 1 at-once
here stopped-agent-shows-nothing-old-after-a-break leased 2 after-a-break
finish
