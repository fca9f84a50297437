#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_memory - what Refault costs: shared state at most 16 bytes a cached page, an idle agent 8 MiB.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

PAGES=16384
head -c 4096 /dev/zero >"$T/vol/small"
head -c $((PAGES * 4096)) /dev/zero | tr '\0' m >"$T/vol/large"
start_server
make_hosts

# Bytes of all memfds of host A's agent, each counted once.
memfd_bytes() {
	local p f
	for p in $(agent_pids A); do
		for f in "/proc/$p/fd/"*; do
			case $(readlink "$f") in /memfd:*) stat -L -c '%i %b %B' "$f" ;; esac
		done
	done | sort -u | awk '{ sum += $2 * $3 } END { print sum + 0 }'
}
# Proportional set size, kB: what would be free if they were not there.
pss() {
	local p
	for p in $(agent_pids A); do
		awk '/^Pss:/ { print $2 }' "/proc/$p/smaps_rollup"
	done | awk '{ sum += $1 } END { print sum + 0 }'
}

[ "$(on A head -c 2 "$T/vol/small" | wc -c)" -eq 2 ] || die "host A cannot read"
if [ "${B:-build}" = build-san ]; then
	skip idle-agent-8-MiB "the sanitizers' own memory"
else
	idle=$(pss)
	echo "idle agent and supervisor: $idle KiB"
	if [ "$idle" -gt 0 ] && [ "$idle" -le 8192 ]; then
		ok idle-agent-8-MiB
	else
		not_ok idle-agent-8-MiB "agent and supervisor take $idle KiB"
		for p in $(agent_pids A); do grep -E '^(Name|PPid|Vm|Rss)' "/proc/$p/status"; done
	fi
fi

worker a A
before=$(memfd_bytes)
why=$(want a ok open 1 "$T/vol/large" rw && want a ok map 1 1 rw 0 $((PAGES * 4096)) &&
	want a 6d all 1 0 $((PAGES * 4096)))
if [ -n "$why" ]; then
	not_ok state-16-bytes-a-page "$why"
else
	after=$(memfd_bytes)
	state=$((after - before - PAGES * 4096))
	echo "memfds: $before before, $after with $PAGES pages cached: $state besides the pages"
	if [ "$after" -ge $((before + PAGES * 4096)) ] && [ $state -le $((PAGES * 16)) ]; then
		ok state-16-bytes-a-page
	else
		not_ok state-16-bytes-a-page "$state bytes for $PAGES pages"
	fi
fi
dismiss a
finish
