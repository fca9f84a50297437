#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_restart - server, agent or program dies; nothing acknowledged is lost, nothing stale is seen.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=65536
for i in $(seq 1 9); do head -c $LEN /dev/zero | tr '\0' a >"$T/vol/f$i"; done
start_server
make_hosts A B C
REFAULT_TIMEOUT=2 start_agent C
worker a A
worker b B
worker c C

both() {
	local n=$1 w
	shift
	for w; do
		want "$w" ok open "$n" "$T/vol/f$n" rw && want "$w" ok map "$n" "$n" rw 0 "$LEN" || return
	done
}
edit() { printf '%s' "$3" | dd of="$T/vol/f$1" bs=1 seek="$2" conv=notrunc status=none; }
changed_meanwhile() { # SIGNAL FILE
	both "$2" b && want b 61 all "$2" 0 "$LEN" || return
	stop_server "$1"
	edit "$2" 5000 XY
	start_server || return
	eventually 60 want b 5859 load "$2" 5000 2 && want b 61 load "$2" 0 1 &&
		want b 5859 pread "$2" 2 5000
}
term() { changed_meanwhile TERM 1; }
killed() { changed_meanwhile KILL 2; }
here change-while-server-was-stopped-is-seen term
here change-while-server-was-killed-is-seen killed

# What was stored before the server went is not lost: flush, load and open wait for it.
server_back() { # server_back ANSWER WORD...: worker a asks meanwhile
	local answer
	tell a "${@:2}"
	start_server || return
	IFS= read -r -t 60 answer <&"${FROM[a]}" || answer='no answer'
	[ "$answer" = "$1" ] || { echo "${*:2}: $answer"; return 1; }
}
flush_waits() {
	both 3 a b && want b 61 load 3 0 1 && want a ok store 3 0 7a || return
	stop_server KILL
	server_back ok msync 3 && want b 7a load 3 0 1
}
here flush-waits-for-the-server flush_waits
load_waits() {
	stop_server KILL
	eventually 60 lost A && server_back 61 load 3 4096 1 && want a ok store 3 8192 7b &&
		want a ok msync 3 && want b 7b load 3 8192 1
}
lost() { status "$1" | grep -q '^server: .* down'; }
here load-waits-for-the-server load_waits
store_waits() {
	stop_server KILL
	eventually 60 lost A && server_back ok store 3 1 7c && want a ok msync 3 && want b 7a7c load 3 0 2
}
here store-waits-for-the-server store_waits
gives_up() { # after REFAULT_TIMEOUT, which host C has a short one of
	eventually 60 both 3 c && eventually 60 want c 7a7c pread 3 2 0 || return
	stop_server KILL
	eventually 60 lost C && want c sigbus load 3 4096 1 && want c 'err EHOSTDOWN' pread 3 1 0 &&
		start_server && eventually 60 want c 61 load 3 4096 1 && eventually 60 want c 7a7c pread 3 2 0
}
here waiting-ends-with-sigbus-and-ehostdown gives_up

agent_killed_reader() {
	local pid
	both 4 a b && want b 61 load 4 0 1 || return
	pid=$(agent_pid B) || { echo "host B has no agent under a supervisor"; return 1; }
	kill -9 "$pid"
	want b 61 load 4 0 1 && want b 61 all 4 0 "$LEN" && want a ok store 4 8192 7a &&
		want a ok msync 4 && want b 7a load 4 8192 1 && want b ok store 4 1 7b &&
		want b ok msync 4 && want a 617b load 4 0 2 || return
	another() { pid2=$(agent_pid B) && [ "$pid2" != "$pid" ]; }
	eventually 60 another || { echo "the supervisor started no other agent"; return 1; }
}
here reader-goes-on-after-kill-of-agent agent_killed_reader

agent_killed_dirty() {
	both 5 a b && want b 61 load 5 0 1 && want a 61 load 5 0 1 &&
		want a ok store 5 0 7a && want a ok pwrite 5 4097 7b || return
	kill -9 "$(agent_pid A)" || return
	want a ok store 5 8192 7c && want a ok msync 5 && want a ok fsync 5 &&
		want b 7a load 5 0 1 && want b 617b load 5 4096 2 && want b 7c load 5 8192 1
}
here dirty-pages-survive-kill-of-agent agent_killed_dirty

# Its pages belong to the agent, which flushes them.
program_killed() {
	worker victim A
	both 6 victim b && want b 61 load 6 0 1 && want victim ok store 6 0 7a &&
		want victim ok pwrite 6 4096 7b || return
	kill -9 "${WPID[victim]}"
	wait "${WPID[victim]}" 2>/dev/null
	want b ok spin 6 0 7a && want b ok spin 6 4096 7b
}
here stores-survive-kill-of-program program_killed

# Supervisor and agent gone: whoever comes next starts another pair.
all_killed() {
	local p got
	for p in $(agent_pids B); do kill -9 "$p"; done
	gone() { [ -z "$(agent_pids B)" ]; }
	eventually 60 gone || return
	got=$(on B head -c 2 "$T/vol/f6" | od -An -tx1 | tr -d ' \n')
	[ "$got" = 7a61 ] || { echo "read '$got', want '7a61'"; return 1; }
	got=$(raw B head -c 2 "$T/vol/f6")
	[ "$got" = aa ] || { echo "the copy on host B is not frozen: '$got'"; return 1; }
}
here new-programs-start-a-new-agent all_killed
dismiss a c
export KILLS_AGENTS=1
finish
