#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_limits - how much may be dirty, how long programs wait for a server that is away or hangs, that
# what is dirty stays so and is flushed later; and what `refault status` says meanwhile.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

BIG=67108864
LIMIT=4194304
for i in 1 2 3 4 5; do head -c 65536 /dev/zero | tr '\0' a >"$T/vol/f$i"; done
head -c "$BIG" /dev/zero >"$T/vol/big"
head -c 8388608 /dev/zero >"$T/vol/more"
mkdir "$T/keys"
for k in alice bob; do echo "secret of-$k" >"$T/keys/$k"; done
for k in alice bob; do printf 'name %s\nsecret of-%s\n' "$k" "$k" >"$T/$k.key"; done
chmod 600 "$T"/keys/* "$T"/*.key
[ ${#AS[@]} -eq 0 ] || chown 65534 "$T"/*.key
server() { start_server --keys "$T/keys" --lease 60 "$@"; } # it is stopped for a while
server
make_hosts A B C P
# Nothing is flushed because time goes by.  P is as A, and patient.
REFAULT_TIMEOUT=100 start_agent P --dirty-bytes 4M --dirty-expire 600000
REFAULT_TIMEOUT=1 start_agent A --dirty-bytes 4M --dirty-expire 600000
REFAULT_TIMEOUT=0 REFAULT_DIRTY_BYTES=1M start_agent B --dirty-expire 600000
REFAULT_TIMEOUT=100 start_agent C --dirty-expire 600000
worker a A
worker b B
worker p P
# Hosts A and B wait a second and no longer, and a server that is there may need that on a slow machine: again.
soon() { eventually 60 want "$@"; }
begin() { # WORKER N FILE LEN
	soon "$1" ok open "$2" "$T/vol/$3" rw && want "$1" ok map "$2" "$2" rw 0 "$4"
}
server_byte() { # FILE OFF HEX
	local got
	got=$(od -An -tx1 -j "$2" -N 1 "$T/vol/$1" | tr -d ' ')
	[ "$got" = "$3" ] || { echo "$1 at $2 is $got on the server, should be $3"; return 1; }
}
agent_line() { status "$1" | sed -n "s/^agent:.*$2 \([0-9]*\).*/\1/p"; }
server_line() { status "$1" | grep '^server:'; }
down() { server_line "$1" | grep -q ' down '; }
up() { server_line "$1" | grep -q ' connected '; }

# ---- how much may be dirty ----

limit_is_shown() {
	[ "$(agent_line P dirty-limit)" = "$LIMIT" ] && [ "$(agent_line A dirty-limit)" = "$LIMIT" ] && [ "$(agent_line B dirty-limit)" = 1048576 ] ||
		{ status P; status A; status B; return 1; }
}
check limits-are-as-told limit_is_shown

# The agent's own memory (what is shared with programs is not its own), in kB.
own() { awk '/^RssAnon:/ { print $2 }' "/proc/$(agent_pid P)/status"; }
sixteen_times() {
	local now high=0 looks=0 mem=0 answer='' part
	begin p 1 big "$BIG" || return
	tell p fill 1 0 "$BIG" 7a
	until IFS= read -r -t 0.05 part <&"${FROM[p]}"; do
		answer+=$part # half a line may have come
		now=$(agent_line P dirty)
		[ -n "$now" ] || { echo "the agent does not say what is dirty"; return 1; }
		[ "$now" -le "$high" ] || high=$now
		now=$(own)
		[ "$now" -le "$mem" ] || mem=$now
		looks=$((looks + 1))
		[ "$looks" -lt 2000 ] || { echo "it does not end"; return 1; }
	done
	answer+=$part
	[ "$answer" = ok ] || { echo "stores: $answer"; return 1; }
	[ "$high" -le "$LIMIT" ] || { echo "$high bytes were dirty"; return 1; }
	[ "$mem" -lt 65536 ] || { echo "the agent took $mem kB"; return 1; }
	[ "$(counter P back-pressure)" -gt 0 ] || { echo "nobody waited"; return 1; }
	want p ok msync 1 && [ "$(tr -d z <"$T/vol/big" | wc -c)" = 0 ] ||
		{ echo "not all of it is on the server"; return 1; }
}
here stores-through-16-times-the-limit sixteen_times

# Before stores have to wait: more than half of what may be dirty.
early() {
	want p ok fill 1 0 3145728 79 && eventually 60 server_byte big 3145727 79 && server_byte big 0 79
}
check half-of-the-limit-is-flushed-by-itself early

# The server hangs, but its promises hold yet: stores go on until nothing more may be dirty.
full() {
	begin a 2 more 8388608 && soon a 00 all 2 0 8388608 || return
	kill -STOP "$SERVER"
	want a sigbus fill 2 0 8388608 7b
	local r=$?
	[ "$(agent_line A dirty)" -le "$LIMIT" ] || { echo "the limit does not hold"; r=1; }
	[ "$(agent_line A dirty)" -gt $((LIMIT / 2)) ] || { echo "it stopped too early"; r=1; }
	kill -CONT "$SERVER"
	[ "$r" = 0 ] && soon a ok msync 2 && server_byte more 0 7b && soon a ok fill 2 0 8388608 7c &&
		soon a ok msync 2 && server_byte more 8388607 7c
}
here a-full-host-and-a-server-that-hangs full

# ---- how long is waited ----

hangs() {
	begin a 3 f1 65536 && soon a 61 load 3 0 1 || return
	kill -STOP "$SERVER"
	want a ok store 3 0 7a && want a 'err ETIMEDOUT' msync 3 && want a 'err ETIMEDOUT' fsync 3 &&
		want a 7a load 3 0 1 && server_byte f1 0 61
	local r=$?
	[ "$(agent_line A dirty)" = 4096 ] || { echo "it is not dirty any more"; r=1; }
	kill -CONT "$SERVER"
	[ "$r" = 0 ] && soon a ok msync 3 && server_byte f1 0 7a
}
here flush-to-a-server-that-hangs hangs

killed() {
	begin a 4 f2 65536 && begin b 4 f3 65536 && soon a 61 load 4 0 1 && soon b 61 load 4 0 1 &&
		soon a ok store 4 0 7a && soon b ok store 4 0 7b || return
	stop_server KILL
	want b 'err EHOSTDOWN' msync 4 && want b 'err EHOSTDOWN' msync 4 &&
		want a 'err EHOSTDOWN' msync 4 && want a 'err EHOSTDOWN' fsync 4 &&
		server_byte f2 0 61 || return
	server_line A | grep -E ' down .* since 20[0-9-]+ [0-9:]+ dirty 4096$' >/dev/null ||
		{ server_line A; return 1; }
	server
	soon a ok msync 4 && server_byte f2 0 7a && soon b ok msync 4 && server_byte f3 0 7b &&
		server_line A | grep ' connected .* dirty 0$' >/dev/null || { server_line A; return 1; }
}
here flush-to-a-server-that-was-killed killed

# A change of size that is under way keeps others waiting, and they, too, wait no longer.
size() {
	soon a ok open 5 "$T/vol/f4" rw || return
	kill -STOP "$SERVER"
	want a 'err ETIMEDOUT' truncate 5 10 && want a 'err ETIMEDOUT' truncate 5 20 &&
		want a 'err ETIMEDOUT' pwrite 5 70000 7a
	local r=$?
	kill -CONT "$SERVER"
	[ "$r" = 0 ] && soon a ok truncate 5 30 && soon a 30 size 5 &&
		[ "$(stat -c %s "$T/vol/f4")" = 30 ]
}
here size-of-a-file-of-a-server-that-hangs size

# With a short lease it is noticed that the server hangs; it takes connections all the same.
unheard() {
	stop_server
	server --lease 0.5
	begin a 6 f5 65536 && soon a 61 load 6 0 1 && soon a ok store 6 0 7a || return
	kill -STOP "$SERVER"
	eventually 60 down A && want a 'err EHOSTDOWN' msync 6 && want a sigbus load 6 4096 1 &&
		want a 'err EHOSTDOWN' open 7 "$T/vol/f1" r
	local r=$?
	kill -CONT "$SERVER"
	[ "$r" = 0 ] && eventually 60 up A && soon a ok msync 6 && server_byte f5 0 7a && soon a 61 load 6 4096 1
}
here server-that-takes-connections-and-hangs unheard
stop_server
server

# ---- all of the host ----

whole() {
	soon a ok store 3 1 7d && soon a ok store 4 1 7d && eventually 60 on A sync -f "$T/vol/f3" &&
		server_byte f1 1 7d && server_byte f2 1 7d
}
check syncfs-flushes-what-others-stored whole
unasked() {
	soon a ok store 3 2 7e && soon a ok msync 3 async && soon a ok store 4 2 7e &&
		soon a ok syncrange 4 0 4096 && server_byte f2 2 7e
}
check part-of-a-file unasked

# ---- keys ----

key_line() { status C | grep -E "^key: [0-9]+ $1 dirty $2\$" >/dev/null || { status C | grep ^key; return 1; }; }
two_keys() {
	worker c C
	REFAULT_KEY=$T/alice.key worker alice C
	REFAULT_KEY=$T/bob.key worker bob C
	begin c 1 f1 65536 && begin alice 1 f1 65536 && begin bob 1 f2 65536 &&
		want alice ok store 1 4096 61 && want alice ok store 1 8192 62 &&
		want bob ok store 1 4096 63 && want c ok store 1 12288 64 &&
		key_line alice 2 && key_line bob 1 && key_line 'uid [0-9]+' 1 || return
	! status C | grep 'of-alice' && ! grep 'of-alice' "$T/c/agent.log"
}
here keys-and-what-is-dirty-under-them two_keys

# What bob may do does not depend on alice, although both wait for the same answer.
asked() { [ "$(counter C request)" -ge "$1" ]; }
broken() { [ "$(counter C mass-break)" -gt "$1" ]; }
revoked() {
	local n got r=0
	begin bob 3 f3 65536 && begin alice 3 f3 65536 && want alice 61 load 3 4096 1 &&
		want alice ok store 3 20481 65 || return
	n=$(counter C mass-break)
	echo revoked >>"$T/keys/alice"
	kill -HUP "$SERVER"
	eventually 60 broken "$n" || { echo "the server forgot no promises"; return 1; }
	kill -STOP "$SERVER"
	n=$(counter C request)
	tell alice load 3 8192 1
	eventually 60 asked $((n + 1)) && tell bob load 3 8192 1 && eventually 60 asked $((n + 2)) ||
		{ echo "they do not ask"; r=1; }
	kill -CONT "$SERVER"
	[ "$r" = 0 ] || return
	IFS= read -r -t 60 got <&"${FROM[alice]}"
	[ "$got" = sigbus ] || { echo "alice loads '$got'"; return 1; }
	IFS= read -r -t 60 got <&"${FROM[bob]}"
	[ "$got" = 61 ] || { echo "bob loads '$got'"; return 1; }
	want alice 'err EKEYREVOKED' open 4 "$T/vol/f3" rw && want bob ok store 3 0 64 &&
		want bob 'err EKEYREVOKED' msync 3 && server_byte f3 0 64 && want bob ok msync 3 || return
	grep -q 'key alice was revoked' "$T/alice.err" || { cat "$T/alice.err"; return 1; }
	# What alice stored before went, and whoever has the file open was told; what bob stored did not.
	want alice 'err EKEYREVOKED' msync 3 && want alice ok msync 3 && want bob 61 load 3 20481 1 && server_byte f3 20481 61 &&
		status C | grep -E '^rejected: f3 off 20481 len 1 pages 1 errno EKEYREVOKED \(.*\) key alice at 20' >/dev/null ||
		{ status C | grep ^rejected; return 1; }
}
here one-key-revoked-and-another-good revoked
dismiss a b c p alice bob
finish
