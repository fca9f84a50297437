# shellcheck shell=bash
# SPDX-License-Identifier: MIT
#
# lib.sh - one machine plays a file server and two hosts, or more.
#
#	$T/vol		the directory that the server serves, and the volume's path on all hosts; export_on
#			puts it on a file system of the test's choice
#	$T/stale	what host B (and C, D) finds there instead: a frozen copy, bind-mounted over $T/vol
#			in a mount namespace of its own, so whatever bypasses Refault shows old bytes
#	$T/a, $T/b	the hosts' runtime directories, each with an agent of its own
#	$T/A, $T/B	scripts: run a program on that host under the library
#	$T/rawA, rawB	the same without the library
#
# REFAULT_VARIANT=@nobody runs the programs and agents of all hosts as nobody; the server stays root.
#
# A test script sources this file, fills $T/vol, calls start_server and make_hosts, then states what
# holds with `ok`, `not_ok` and `skip` (or `check NAME COMMAND...`), and ends with `finish`.
#
# Nothing here waits by sleeping: the server says when it listens, workers answer through pipes.
# Where nothing can be waited for, `eventually` looks again until a bound and then fails loudly.  Bounds
# are for what hangs: a machine that is ten times slower stays far below them.

set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=$ROOT/${B:-build}
VARIANT=${REFAULT_VARIANT:-} # "@thread": the same tests, run once more in another mode
T=$(mktemp -d "${TMPDIR:-/tmp}/refault-test.XXXXXX")
chmod 755 "$T"
mkdir "$T/vol" "$T/stale" "$T/srv"
SOCK=$T/srv/s.sock
SERVER=
HOLDER=
TESTS=0
FAILED=0
declare -A TO FROM WPID

ok() {
	TESTS=$((TESTS + 1))
	echo "ok $1$VARIANT"
}
not_ok() {
	TESTS=$((TESTS + 1))
	FAILED=$((FAILED + 1))
	echo "not ok $1$VARIANT: $2"
}
skip() {
	TESTS=$((TESTS + 1))
	echo "skip $1$VARIANT: $2"
}
# check NAME COMMAND...: the command's last line of output is the reason if it fails.
check() {
	local name=$1 out
	shift
	if out=$("$@" 2>&1 </dev/null); then
		ok "$name"
	else
		not_ok "$name" "$(printf '%s' "${out:-$* failed}" | tail -n 1)"
		printf '%s\n' "$out" | sed 's/^/    /'
	fi
}
# here NAME COMMAND...: the same for functions that start or stop something: not in a subshell.
here() {
	local name=$1
	shift
	if "$@" >"$T/why" 2>&1; then
		ok "$name"
	else
		not_ok "$name" "$(tail -n 1 "$T/why")"
		sed 's/^/    /' "$T/why"
	fi
}
die() {
	echo "not ok ${0##*/}$VARIANT: $*"
	exit 1
}

# same NAME GOT WANT: a test of its own.
same() {
	if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "got '$2', want '$3'"; fi
}

# eventually SECONDS COMMAND...: true as soon as the command is, false after the bound.
eventually() {
	local end=$(($(date +%s) + $1))
	shift
	until "$@"; do
		[ "$(date +%s)" -lt "$end" ] || return 1
		sleep 0.02
	done
}

# start_server [ARGUMENT...]: returns when it listens.  SERVE: what it is started by.
SERVE=()
start_server() {
	local line out=$T/srv/out
	rm -f "$out"
	mkfifo "$out"
	"${SERVE[@]}" "$BIN/refault-server" --export "vol=$T/vol" --listen "unix:$SOCK" "$@" >"$out" 2>&1 &
	SERVER=$!
	exec {server_fd}<"$out"
	while IFS= read -r -t 60 line <&"$server_fd"; do
		printf '%s\n' "$line" >>"$T/srv/log"
		case $line in *listening*)
			cat <&"$server_fd" >>"$T/srv/log" &
			exec {server_fd}<&-
			return 0
			;;
		esac
	done
	cat "$T/srv/log"
	die "the server does not listen"
}
# stop_server [SIGNAL]: TERM unless told.
stop_server() {
	[ -n "$SERVER" ] || return 0
	kill "-${1:-TERM}" "$SERVER" 2>/dev/null
	wait "$SERVER" 2>/dev/null
	SERVER=
}

# The programs where nobody can run them, too.
private_bin() {
	local f
	mkdir -p "$T/bin/tests"
	for f in refault refault-agent refault-server librefault.so mmapcoh; do cp "$BIN/$f" "$T/bin/"; done
	for f in "$BIN"/tests/*; do [ -d "$f" ] || cp "$f" "$T/bin/tests/"; done
	BIN=$T/bin
}

AS=()
if [ "$VARIANT" = @nobody ]; then
	if [ "$(id -u)" -ne 0 ]; then
		skip "${0##*/}" "needs root to become nobody; the plain run was unprivileged already"
		rm -rf "$T"
		exit 0
	fi
	AS=(setpriv --reuid=65534 --regid=65534 --clear-groups --)
fi

# export_on FS [MKFS-OPTION...]: $T/vol on a new ext4, xfs (with reflink) or tmpfs; before it is filled.
# Or 1, and WHY says why not.  The images are in memory, so nobody waits for a disk.
export_on() {
	local fs=$1 size=256M mk=(-F -b 4096) # small ones would get blocks of 1024 bytes
	shift
	if [ "$(id -u)" -ne 0 ]; then
		WHY="needs root to mount a file system"
		return 1
	fi
	if [ "$fs" = tmpfs ]; then
		WHY=$(mount -t tmpfs -o size=$size,mode=755 tmpfs "$T/vol" 2>&1)
		return
	fi
	if ! command -v "mkfs.$fs" >/dev/null; then
		WHY="there is no mkfs.$fs"
		return 1
	fi
	[ "$fs" = xfs ] && size=320M mk=(-f -m reflink=1) # it makes none below 300M
	mkdir "$T/img"
	# shellcheck disable=SC2034 # for the caller
	WHY=$(mount -t tmpfs -o size=400M,mode=700 tmpfs "$T/img" 2>&1 &&
		truncate -s $size "$T/img/$fs" 2>&1 && "mkfs.$fs" -q "${mk[@]}" "$@" "$T/img/$fs" 2>&1 &&
		mount -t "$fs" -o loop "$T/img/$fs" "$T/vol" 2>&1) || return
	rm -rf "$T/vol/lost+found"
}

VOLUMES() { echo "$T/vol=unix:$SOCK,name=vol"; }

# wrapper NAME RUNTIME COMMAND-PREFIX...
wrapper() {
	local name=$1 rt=$2
	shift 2
	{
		echo '#!/bin/sh'
		echo "export REFAULT_RUNTIME_DIR='$rt' REFAULT_VOLUMES='$(VOLUMES)'"
		echo "exec $* \"\$@\""
	} >"$T/$name"
	chmod 755 "$T/$name"
}

# start_agent HOST OPTION...: one with options, before a program starts it without.
start_agent() { raw "$1" "$BIN/refault-agent" --daemon "${@:2}" || die "host $1 has no agent"; }

# make_hosts [NAME...]: freeze $T/vol for all but the first, make the hosts: A and B unless told.
make_hosts() {
	local line enter via h
	[ $# -gt 0 ] || set -- A B
	if [ ${#AS[@]} -gt 0 ]; then
		"${AS[@]}" test -x "$BIN/refault" -a -r "$BIN/librefault.so" || private_bin
		chown -R 65534:65534 "$T/vol"
	fi
	cp -a "$T/vol/." "$T/stale/"
	mkfifo "$T/holder.in" "$T/holder.out"
	local as=() user=()
	if [ "$(id -u)" -ne 0 ]; then as=(-r) user=(-U --preserve-credentials); fi
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare "${as[@]}" -m --propagation private sh -c \
		'mount --bind "$1" "$2" && echo ready && exec cat' - "$T/stale" "$T/vol" \
		<"$T/holder.in" >"$T/holder.out" 2>&1 &
	HOLDER=$!
	enter="nsenter -t $HOLDER ${user[*]} -m --"
	# shellcheck disable=SC2034 # held open: the holder leaves when it sees end of file
	exec {holder_in}>"$T/holder.in" {holder_out}<"$T/holder.out"
	IFS= read -r -t 60 line <&"$holder_out" || line='no answer'
	[ "$line" = ready ] || die "host ${2:-$1} has no mount namespace: $line"
	for h; do
		line=$(runtime "$h")
		mkdir -m 700 "$line"
		[ ${#AS[@]} -eq 0 ] || chown 65534:65534 "$line"
		[ "$h" = "$1" ] && via='' || via=$enter
		wrapper "$h" "$line" "$via" "${AS[@]}" "$BIN/refault run --"
		wrapper "raw$h" "$line" "$via" "${AS[@]}"
	done
}

on() {
	"$T/$1" "${@:2}"
}
raw() {
	"$T/raw$1" "${@:2}"
}
runtime() { echo "$T/${1,,}"; }
status() {
	REFAULT_RUNTIME_DIR=$(runtime "$1") "${AS[@]}" timeout 60 "$BIN/refault" status
}
# counter HOST NAME: what `refault status` counted; 0 if it is not listed.
counter() {
	status "$1" | awk -v n="$2" '$1 == "counter:" && $2 == n { v = $3 } END { print v + 0 }'
}

# punctual HOST COMMAND...: an agent that waits 20 ms in vain for a program drops clean pages, and what was
# counted then tells nothing: again.
punctual() {
	local n log
	log=$(runtime "$1")/agent.log
	late() { grep -c 'did not answer within\|a slot was held for more than' "$log"; }
	shift
	for _ in {1..20}; do
		n=$(late)
		"$@" && return
		[ "$(late)" -gt "$n" ] || return 1
	done
	return 1
}

# The processes of a host's agent, supervisor first: they hold the sockets bound to its name.
agent_pids() { socket_pids "$(runtime "$1")/agent.sock"; }
socket_pids() {
	local inodes p
	inodes=$(awk -v s="$1" '$8 == s { print "socket:[" $7 "]" }' /proc/net/unix)
	[ -n "$inodes" ] || return 0
	find /proc/[0-9]*/exe -maxdepth 0 -lname '*/refault-agent*' 2>/dev/null | while IFS= read -r p; do
		p=${p%/exe}
		if find "$p/fd" -lname 'socket:*' -printf '%l\n' 2>/dev/null | grep -qxF "$inodes"; then
			echo "${p#/proc/}"
		fi
	done | sort -n
}
# The agent proper is the supervisor's child.
agent_pid() {
	local all p parent
	all=" $(agent_pids "$1" | tr '\n' ' ')"
	for p in $all; do
		parent=$(awk '/^PPid:/ { print $2 }' "/proc/$p/status" 2>/dev/null)
		case $all in *" ${parent:-none} "*)
			echo "$p"
			return 0
			;;
		esac
	done
	return 1
}

# start_relay: host A's way to the server, which worker "relay" (tests/prog/relay.c) holds up and cuts.
start_relay() {
	SOCK=$T/srv/relay.sock wrapper A "$T/a" "${AS[@]}" "$BIN/refault run --"
	SOCK=$T/srv/relay.sock wrapper rawA "$T/a" "${AS[@]}"
	mkfifo "$T/relay.in" "$T/relay.out"
	"$BIN/tests/relay" "$T/srv/relay.sock" "$SOCK" <"$T/relay.in" >"$T/relay.out" &
	WPID[relay]=$!
	exec {relay_in}>"$T/relay.in" {relay_out}<"$T/relay.out"
	TO[relay]=$relay_in FROM[relay]=$relay_out
	read -r -t 60 _ <&"$relay_out" || die "the relay does not run"
	[ ${#AS[@]} -eq 0 ] || chmod 666 "$T/srv/relay.sock"
}

# replace_agent: host A's is killed, and its supervisor has started the next one when this returns.
SUPERVISOR=
replace_agent() {
	local pid
	supervisor
	pid=$(agent_child) && [ -n "$pid" ] || { echo "host A has no agent under a supervisor"; return 1; }
	kill -9 "$pid"
	another() { [ -n "$(agent_child)" ] && [ "$(agent_child)" != "$pid" ]; }
	eventually 60 another || { echo "the supervisor started no other agent"; return 1; }
}
supervisor() {
	[ -n "$SUPERVISOR" ] || SUPERVISOR=$(awk '/^PPid:/ { print $2 }' "/proc/$(agent_pid A)/status")
}
agent_child() { tr -d ' ' 2>/dev/null <"/proc/$SUPERVISOR/task/$SUPERVISOR/children"; }

# worker NAME HOST [ARGUMENT]: an obedient program (tests/prog/worker.c, or WORKER) on A, B, ..., rawA, ...
worker() {
	local name=$1 in out
	rm -f "$T/$name.in" "$T/$name.out"
	mkfifo "$T/$name.in" "$T/$name.out"
	"$T/$2" "$BIN/tests/${WORKER:-worker}" ${3:+"$3"} <"$T/$name.in" >"$T/$name.out" 2>>"$T/$name.err" &
	WPID[$name]=$!
	exec {in}>"$T/$name.in" {out}<"$T/$name.out"
	TO[$name]=$in
	FROM[$name]=$out
}
# tell NAME WORD...: a line to NAME.  One that is gone is seen by the answer that does not come.
tell() {
	local name=$1
	shift
	trap '' PIPE
	{ printf '%s\n' "$*" >&"${TO[$name]}"; } 2>/dev/null
	trap : PIPE # programs started later should not inherit that it is ignored
}
# ask NAME WORD...: one command, one line of answer on standard output.
ask() {
	local name=$1 line
	shift
	tell "$name" "$@"
	if IFS= read -r -t "${PATIENCE:-120}" line <&"${FROM[$name]}"; then
		printf '%s\n' "$line"
	else
		echo "no answer from $name to '$*'"
		tail -n 3 "$T/$name.err" 2>/dev/null
		return 1
	fi
}
# want NAME ANSWER WORD...: silent if the worker answers so, else says what it answered and fails.
want() {
	local name=$1 answer=$2 got
	shift 2
	got=$(ask "$name" "$@")
	[ "$got" = "$answer" ] && return 0
	echo "$name: $*: answered '$got', should be '$answer'"
	return 1
}
# stripper NAME: the process that strips that worker's mappings.
stripper() {
	local p
	p=$(ask "$1" pid) || return
	for p in $(cat "/proc/$p/task/$p/children"); do
		[ "$(cat "/proc/$p/comm")" = refault-strip ] && echo "$p" && return
	done
	echo "$1 has no stripper"
	return 1
}
dismiss() {
	local name in out
	for name; do
		in=${TO[$name]} out=${FROM[$name]}
		tell "$name" exit # others may have inherited the pipe: no end of file
		exec {in}>&- {out}<&-
		wait "${WPID[$name]}" 2>/dev/null
		unset "TO[$name]" "FROM[$name]" "WPID[$name]"
	done
}

cleanup() {
	local h p
	trap - EXIT
	exec 2>/dev/null # "Killed" is what is meant to happen
	for p in "${WPID[@]}"; do kill -9 "$p" 2>/dev/null; done
	for h in "$T"/*/agent.sock; do
		[ -S "$h" ] && p=$(socket_pids "$h") && [ -n "$p" ] || continue
		REFAULT_RUNTIME_DIR=${h%/*} "${AS[@]}" timeout 3 "$BIN/refault" stop >/dev/null 2>&1
		for p in $(socket_pids "$h"); do kill -9 "$p" 2>/dev/null; done
	done
	stop_server KILL
	for p in $(jobs -p); do kill "$p" 2>/dev/null; done
	[ -n "$HOLDER" ] && kill "$HOLDER" 2>/dev/null
	wait 2>/dev/null
	if [ "$FAILED" -ne 0 ]; then
		for p in "$T"/srv/log "$T"/[a-d]/*log* "$T"/*.err; do
			[ -s "$p" ] && echo "--- ${p#"$T/"}" && tail -n 20 "$p"
		done
	fi
	if declare -F cleanup_more >/dev/null; then cleanup_more; fi
	if [ -n "${KEEP:-}" ]; then
		echo "kept $T"
		return
	fi
	for p in vol img; do mountpoint -q "$T/$p" && umount -l "$T/$p"; done
	rm -rf "$T"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Daemons that crash are started again, and a test may not notice.
crashes() {
	! grep -h 'lock order:' "$T"/*.err 2>/dev/null || return 1
	! grep -h -E 'AddressSanitizer|runtime error:|LeakSanitizer|assert' "$T"/*/agent.log "$T/srv/log" 2>/dev/null || return 1
	[ -n "${KILLS_AGENTS:-}" ] || ! grep -h -E 'supervisor: (agent|.*crashes)' "$T"/*/agent.log 2>/dev/null
}
finish() {
	check no-daemon-crashed crashes
	[ "$TESTS" -gt 0 ] || die "nothing was tested"
	[ "$FAILED" -eq 0 ]
	exit
}
