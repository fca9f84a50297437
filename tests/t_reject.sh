#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_reject - the server says no to a write-back, for every reason that it may have.
#
# Host A holds changes that nobody has flushed when the cause arises; background write-back is far
# away, so it is the test's own flush that meets the refusal.  The hosts run as nobody where that
# can be arranged: root may do everything.
#
#	$T/vol		remounted read-only in the server's own mount namespace
#	$T/small	a tmpfs of 2 MiB in that namespace, $T/quota one with a quota, if there are quotas; the
#			hosts see the directories underneath
#	$T/keys		the server's keys; $T/NAME.key the programs' side of them
# shellcheck source=lib.sh
[ "$(id -u)" -ne 0 ] || export REFAULT_VARIANT=@nobody
. "$(dirname "$0")/lib.sh"

LEN=65536  # of fN: 'a', and what B stored
BIG=25165824 # of fbig: zeros
HOLE=1048576 # at the beginning of file in $T/small and $T/quota; so much data fits in a STORE
DATA=262144 # behind it
VOLUMES() {
	echo "$T/vol=unix:$SOCK,name=vol;$T/small=unix:$SOCK,name=small;$T/quota=unix:$SOCK,name=quota"
}
me=$(id -u)
[ ${#AS[@]} -eq 0 ] || me=65534

mkdir -m 755 "$T/small" "$T/quota"
mkdir -m 700 "$T/keys"
head -c $LEN /dev/zero | tr '\0' a >"$T/a.txt"
for i in $(seq 1 9); do cp "$T/a.txt" "$T/vol/f$i"; done
chmod 666 "$T/vol/f4"
for f in small/file quota/file vol/gone vol/other; do
	head -c $DATA /dev/zero | tr '\0' d | dd of="$T/$f" bs=$HOLE seek=1 status=none
	chown "$me" "$T/$f"
done
truncate -s $BIG "$T/vol/fbig"

# key NAME SECRET [LINE...]: the server's.
key() {
	local name=$1
	shift
	printf '%s\n' "secret $1" "${@:2}" >"$T/keys/.$name" && chmod 600 "$T/keys/.$name" &&
		mv "$T/keys/.$name" "$T/keys/$name"
}
# mine NAME SECRET: the programs'.
mine() {
	printf 'name %s\nsecret %s\n' "$1" "$2" >"$T/$1.key" && chmod 600 "$T/$1.key" &&
		chown "$me" "$T/$1.key"
}
# Nothing tells when a signal was obeyed, but this one breaks all promises.
reread() {
	local breaks
	breaks=$(counter A mass-break)
	kill -HUP "$SERVER"
	more_breaks() { [ "$(counter A mass-break)" -gt "$breaks" ]; }
	eventually 60 more_breaks || { echo "SIGHUP was no mass break"; return 1; }
}
for k in alice carol dave; do key $k "s-$k" && mine $k "s-$k"; done
key bob s-bob 'uid 1000' 'gid 1000' && mine bob s-bob

# The server's mounts are its own.
QUOTA=
if [ "$(id -u)" -eq 0 ]; then
	QUOTA=size=16M,usrquota,usrquota_block_hardlimit=2M
	unshare -m --propagation private mount -t tmpfs -o $QUOTA none "$T/quota" 2>/dev/null || QUOTA=
	# shellcheck disable=SC2016 # expanded by the inner shell
	SERVE=(unshare -m --propagation private sh -c '
		T=$1 QUOTA=$2 && shift 2 && mkdir "$T/seed" && cp --sparse=always "$T/small/file" "$T/seed" &&
		chown --reference="$T/small/file" "$T/seed/file" && mount --bind "$T/vol" "$T/vol" &&
		mount -t tmpfs -o size=2M,mode=755 none "$T/small" &&
		cp -p --sparse=always "$T/seed/file" "$T/small/" || exit
		if [ -n "$QUOTA" ]; then
			mount -t tmpfs -o "$QUOTA,mode=777" none "$T/quota" &&
				cp -p --sparse=always "$T/seed/file" "$T/quota/" || exit
		fi
		rm -r "$T/seed"
		exec "$@"' - "$T" "$QUOTA")
fi
KEYS=(--keys "$T/keys")
"$BIN/refault-server" --help | grep -q -e --keys || KEYS=()
start_server --export "small=$T/small" --export "quota=$T/quota" "${KEYS[@]}"
in_server() { nsenter -t "$SERVER" -m -- "$@"; }
make_hosts
start_agent A --dirty-expire 3600000
start_agent B --dirty-expire 3600000
worker a A # whose changes are refused
worker other A
worker b B

# ---- one file of $T/vol, changed by all ----

# begin N WORKER: it has fN open three times, the others once; a change of B's is accepted.
begin() {
	local n=$1 w=$2 f
	for f in "$n" $((n + 10)) $((n + 20)); do
		want "$w" ok open "$f" "$T/vol/f$n" rw && want "$w" ok map "$f" "$f" rw 0 131072 || return
	done
	for w in other b; do
		want "$w" ok open "$n" "$T/vol/f$n" rw && want "$w" ok map "$n" "$n" rw 0 131072 || return
	done
	want "$2" 61 all "$n" 0 "$LEN" && want b 61 all "$n" 0 "$LEN" &&
		want b ok store "$n" 32768 62 && want b ok msync "$n"
}
# Five pages, by stores and by write(), also across and past the end.
PAGES=5
change() {
	want "$2" ok store "$1" 0 7a7a && want "$2" ok store "$1" 20490 7b &&
		want "$2" ok pwrite "$1" 8190 7c7c7c7c && want "$2" ok pwrite "$1" 69632 7d &&
		want "$2" 69633 size "$1" && want other 7c load "$1" 8193 1 &&
		want other 7d pread "$1" 9 69632
}
# told N WORKER ERRNO: whoever had it open hears of it, once for each open file.
told() {
	local n=$1 w=$2 e="err $3"
	want "$w" "$e" fsync "$n" && want "$w" ok fsync "$n" && want "$w" ok msync "$n" &&
		want "$w" "$e" msync $((n + 10)) && want "$w" ok msync $((n + 10)) &&
		want "$w" ok fdatasync $((n + 10)) && want "$w" "$e" close $((n + 20)) &&
		want other "$e" fdatasync "$n" && want other ok fsync "$n" &&
		want other ok open $((n + 20)) "$T/vol/f$n" r && want other ok fsync $((n + 20)) &&
		want b ok fsync "$n"
}
# shows N WORKER...: the server's content and size, mapped and read.
shows() {
	local n=$1 w
	shift
	for w; do
		want "$w" 6161 load "$n" 0 2 && want "$w" 61616161 load "$n" 8190 4 &&
			want "$w" 61 load "$n" 20490 1 && want "$w" 616261 load "$n" 32767 3 &&
			want "$w" 61616161 pread "$n" 4 8190 && want "$w" 6162 pread "$n" 2 32767 &&
			want "$w" "$LEN" size "$n" && want "$w" sigbus load "$n" 69632 1 &&
			want "$w" sigbus store "$n" "$LEN" 00 && want "$w" eof pread "$n" 9 69632 &&
			want "$w" 61 pread "$n" 9 65535 || return
	done
}
# The server's file is what it was, with B's byte.
kept() {
	{ head -c 32768 "$T/a.txt" && printf b && head -c 32767 "$T/a.txt"; } | cmp - "$T/vol/f$1"
}
# listed FILE ERRNO KEY PAGES: one line in the status and one in the log say what was thrown away.
listed() {
	local line n
	line=$(status A | grep "^rejected: $1 ")
	case $line in
	*$'\n'*) echo "more than one line: $line" ; return 1 ;;
	"rejected: $1 off "*" len "*" pages $4 errno $2 ("*") key $3 at "*) ;;
	*) echo "rejected line: '$line', should say $4 pages, $2, key $3"; return 1 ;;
	esac
	n=$(grep -c "$1: .*refused" "$T/a/agent.log")
	[ "$n" -eq 1 ] || { echo "the log has $n lines about $1"; return 1; }
}
# Nothing is left that could be refused again, and what comes now is accepted.
again() {
	local n=$1 w=$2
	shows "$n" "$w" && want "$w" ok store "$n" 1 31 && want "$w" ok msync "$n" &&
		want "$w" ok pwrite "$n" 69632 32 && want "$w" ok fsync "$n" &&
		want b 6131 load "$n" 0 2 && want b 32 load "$n" 69632 1 && want b 69633 size "$n" &&
		want "$w" 32 load "$n" 69632 1 && want other ok fsync "$n" &&
		[ "$(od -An -tx1 -N2 "$T/vol/f$n")" = ' 61 31' ]
}

# refused N WORKER ERRNO KEY CAUSE REMEDY: meanwhile a worker with a key of its own cannot read.
refused() {
	thrown_away "$@"
	local rc=$?
	"$6" "$1" && [ "$rc" -eq 0 ] && again "$1" "$2"
}
thrown_away() {
	local n=$1 w=$2 before after who=(other b)
	[ "$w" != a ] || who+=(a)
	begin "$n" "$w" && before=$(counter A excise) && change "$n" "$w" && "$5" "$n" &&
		told "$n" "$w" "$3" && shows "$n" "${who[@]}" && kept "$n" || return
	after=$(counter A excise)
	[ $((after - before)) -eq "$PAGES" ] || { echo "excised $((after - before)) pages"; return 1; }
	listed "f$n" "$3" "$4" "$PAGES"
}

chmod_off() { chmod 444 "$T/vol/f$1"; }
chmod_on() { chmod 644 "$T/vol/f$1"; }
chmod_off_others() { chmod 644 "$T/vol/f$1"; }
chmod_on_others() { chmod 666 "$T/vol/f$1"; }
remount_ro() { in_server mount -o remount,bind,ro "$T/vol"; }
remount_rw() { in_server mount -o remount,bind,rw "$T/vol"; }
revoke() { key alice s-alice revoked && reread; }
unrevoke() { key alice s-alice && reread; }
expire() { # it is good when it is read
	local until=$(($(date +%s) + 2))
	key carol s-carol "expires @$until" && reread
	passed() { [ "$(date +%s)" -gt "$until" ]; }
	eventually 60 passed
}
unexpire() { key carol s-carol 'expires 2999-12-31T23:59:59Z' && reread; }
other_secret() { key dave s-other && reread; }
old_secret() { key dave s-dave && reread; }

uid="uid $me"
if [ "$me" -eq 0 ]; then
	skip refused-chmod "root may do everything"
else
	check refused-chmod refused 1 a EACCES "$uid" chmod_off chmod_on
fi
if [ "$(id -u)" -ne 0 ]; then
	skip refused-read-only "only root can remount"
else
	check refused-read-only refused 2 a EROFS "$uid" remount_ro remount_rw
fi
if [ ${#KEYS[@]} -gt 0 ]; then
	for k in alice bob carol dave; do REFAULT_KEY=$T/$k.key worker $k A; done
	check refused-key-revoked refused 3 alice EKEYREVOKED alice revoke unrevoke
	if [ "$(id -u)" -ne 0 ]; then
		skip refused-key-without-permission "the server is not root"
	else
		check refused-key-without-permission refused 4 bob EACCES bob chmod_off_others chmod_on_others
	fi
	check refused-key-expired refused 5 carol EKEYEXPIRED carol expire unexpire
	check refused-key-with-another-secret refused 6 dave EKEYREJECTED dave other_secret old_secret
fi

# ---- what a refusal does not take along ----

# A has extended the file under a key that is revoked; B's extension, and one of A's under another
# identity, are accepted: the end of the file stays where they put it.
extended_later() {
	want alice ok open 40 "$T/vol/f7" rw && want alice ok map 40 40 rw 0 131072 &&
		want b ok open 40 "$T/vol/f7" rw && want b ok map 40 40 rw 0 131072 &&
		want other ok open 40 "$T/vol/f7" rw && want alice 61 all 40 0 "$LEN" &&
		want alice ok pwrite 40 69632 7d && want alice ok store 40 0 7a && revoke &&
		want b ok pwrite 40 77824 62 && want b ok fsync 40 &&
		want alice 'err EKEYREVOKED' fsync 40 && want other 77825 size 40 &&
		want other 6100 pread 40 2 65535 && want other 0062 pread 40 2 77823 &&
		want other 00 pread 40 1 69632 && want other 61 pread 40 1 0 &&
		want b 00 load 40 69632 1 && want b 77825 size 40 && unrevoke &&
		want alice 77825 size 40 && want alice 00 load 40 69632 1 &&
		want alice 62 load 40 77824 1 && want alice 61 load 40 0 1
}
extended_by_another_key() {
	want alice ok open 41 "$T/vol/f8" rw && want alice ok map 41 41 rw 0 131072 &&
		want other ok open 41 "$T/vol/f8" rw && want b ok open 41 "$T/vol/f8" rw &&
		want alice 61 all 41 0 "$LEN" && want alice ok pwrite 41 69632 7d &&
		want other ok pwrite 41 77824 6f && want other ok pwrite 41 4096 6f && revoke &&
		want other 'err EKEYREVOKED' fsync 41 && want other ok fsync 41 &&
		want other 77825 size 41 && want other 006f pread 41 2 77823 &&
		want other 00 pread 41 1 69632 && want other 6f pread 41 1 4096 &&
		want b 006f pread 41 2 77823 && want b 00 pread 41 1 69632 && want b 6f pread 41 1 4096 &&
		want alice 'err EKEYREVOKED' fsync 41 && want alice ok fsync 41
}
then_unrevoke() {
	"$1"
	local rc=$?
	unrevoke && return "$rc"
}
if [ ${#KEYS[@]} -gt 0 ]; then
	check extended-by-another-host-is-not-wound-back then_unrevoke extended_later
	check extended-under-another-key-is-not-wound-back then_unrevoke extended_by_another_key
fi

# full VOLUME ERRNO N: what needs blocks that are not there is refused, what overwrites others is not,
# and neither are both for ever.
full() {
	local n=$3 file=$T/$1/file at=/proc/$SERVER/root$T/$1 end=$((HOLE + DATA)) i w before after room
	for w in a b; do
		want "$w" ok open "$n" "$file" rw && want "$w" ok map "$n" "$n" rw 0 $((2 * end)) || return
	done
	want a 00 all "$n" 0 "$HOLE" && want a 64 all "$n" "$HOLE" "$DATA" &&
		want a ok fill "$n" 0 "$end" 7a && before=$(counter A excise) || return
	# Eight pages are left, or some more.
	dd if=/dev/zero of="$at/filler" bs=4096 count=$((512 - 64 - 8)) status=none
	chown "$me" "$at/filler"
	want a "err $2" msync "$n" && want a ok msync "$n" && after=$(counter A excise) || return
	# What there was room for is there; the rest, and nothing else, is gone.
	room=$(head -c "$HOLE" "$at/file" | tr -cd z | wc -c)
	[ $((room % 4096)) -eq 0 ] && [ "$room" -ge $((8 * 4096)) ] &&
		[ $((after - before)) -eq $(((HOLE - room) / 4096)) ] ||
		{ echo "room for $room bytes, excised $((after - before)) pages"; return 1; }
	for w in a b; do
		want "$w" 7a all "$n" "$HOLE" "$DATA" || return
	done
	on A cat "$file" | cmp - "$at/file" && on B cat "$file" | cmp - "$at/file" || return
	for i in $(seq 0 31); do want a ok pwrite "$n" $((end + i * 4096)) 7b || return; done
	want a "err $2" fsync "$n" && want a ok fsync "$n" && want a "$end" size "$n" &&
		want a sigbus load "$n" "$end" 1 && want b "$end" size "$n" &&
		[ "$(stat -c %s "$at/file")" -eq "$end" ] && want a ok fill "$n" "$HOLE" "$DATA" 7c &&
		want a ok fsync "$n" && want b 7c all "$n" "$HOLE" "$DATA" || return
	rm "$at/filler"
	want a ok fill "$n" 0 "$end" 7d && want a ok msync "$n" && want b 7d all "$n" 0 "$end" &&
		want a ok pwrite "$n" "$end" 7e && want a ok fsync "$n" && want b 7e load "$n" "$end" 1
}
if [ "$(id -u)" -ne 0 ]; then
	skip refused-no-space "only root can mount"
else
	check refused-no-space full small ENOSPC 42
fi
if [ -z "$QUOTA" ]; then
	skip refused-quota "tmpfs has no quotas here"
else
	check refused-quota full quota EDQUOT 43
fi

# One record of many stores: when the first are refused, the rest is not tried.
big_record() {
	local stores excised
	want a ok open 44 "$T/vol/fbig" rw && want a ok map 44 44 rw 0 "$BIG" &&
		want b ok open 44 "$T/vol/fbig" rw && want a ok fill 44 0 "$BIG" 7a || return
	excised=$(counter A excise) stores=$(counter A store)
	chmod 444 "$T/vol/fbig"
	want a 'err EACCES' fsync 44 && want a ok fsync 44 && want a 00 all 44 0 "$BIG" || return
	excised=$(($(counter A excise) - excised)) stores=$(($(counter A store) - stores))
	[ "$excised" -eq $((BIG / 4096)) ] || { echo "excised $excised pages"; return 1; }
	[ "$stores" -lt 16 ] || { echo "$stores stores were sent"; return 1; }
	chmod 644 "$T/vol/fbig"
	want a ok store 44 4096 7b && want a ok fsync 44 && want b 007b00 pread 44 3 4095
}
if [ "$me" -eq 0 ]; then
	skip refused-once-for-the-whole-record "root may do everything"
else
	check refused-once-for-the-whole-record big_record
fi

# What is asked for at once is answered at once, and is nobody else's error.
at_once() {
	want a ok open 45 "$T/vol/f9" rwa && want a ok open 46 "$T/vol/f9" rw || return
	chmod 444 "$T/vol/f9"
	want a 'err EACCES' write 45 7a && want a 'err EACCES' truncate 46 100 &&
		want a 'err EACCES' punch 46 0 4096 && want a "$LEN" size 46 &&
		want a 6161 pread 46 4 65534 && want a ok fsync 46 && want a ok fsync 45 || return
	chmod 644 "$T/vol/f9"
	want a ok write 45 7a && want a 617a pread 46 4 65535
}
if [ "$me" -eq 0 ]; then
	skip refused-append-and-truncate "root may do everything"
else
	check refused-append-and-truncate at_once
fi

# ---- a file that is gone ----

# Its changes are thrown away, once; who has it open can still read it.
gone() {
	want a 'err ESTALE' fsync "$1" && want a ok fsync "$1" && want a 00 load "$1" 0 1 && want a $((HOLE + DATA)) size "$1"
}
dirty_gone() {
	want a ok open "$1" "$T/vol/$2" rw && want a ok map "$1" "$1" rw 0 $((HOLE + DATA)) &&
		want b ok open "$1" "$T/vol/$2" r && want b 00 pread "$1" 1 0 &&
		want a ok store "$1" 0 7a && want a ok pwrite "$1" $((HOLE + DATA)) 7a
}
unlinked() {
	dirty_gone 50 gone && rm "$T/vol/gone" && gone 50 &&
		want other 'err ENOENT' open 50 "$T/vol/gone" rw
}
# What has its name now has nothing to do with it.
replaced() {
	cp "$T/vol/other" "$T/other" && dirty_gone 51 other && cp -p "$T/vol/other" "$T/vol/.other" &&
		mv "$T/vol/.other" "$T/vol/other" && gone 51 && cmp "$T/vol/other" "$T/other" &&
		want other ok open 51 "$T/vol/other" rw && want other 00 pread 51 1 0 &&
		want other ok pwrite 51 0 7c && want other ok fsync 51
}
check refused-unlinked unlinked
check refused-replaced replaced

# Of what is refused nothing is done.
undone() {
	! grep 'could not be undone' "$T/srv/log"
}
check nothing-was-half-done undone
finish
