#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_key - REFAULT_KEY, seen from programs: which files are keys, what a key is pinned to, and two
# keys that store to one page.
#
# The server acts with its clients' rights, and root would have them all: so the hosts are nobody's.
[ "$(id -u)" -ne 0 ] || REFAULT_VARIANT=@nobody
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

LEN=8192
for i in $(seq 1 9); do
	head -c "$LEN" /dev/zero | tr '\0' a >"$T/vol/f$i"
done
head -c 32768 /dev/zero | tr '\0' a >"$T/vol/race"
mkdir -m 700 "$T/keys"
mkdir "$T/mine"
[ "$(id -u)" -ne 0 ] || chown 65534 "$T/mine"
for k in one two; do
	printf 'secret of-%s\n' $k >"$T/keys/$k"
	chmod 600 "$T/keys/$k"
done
start_server --keys "$T/keys"
make_hosts A B
start_agent A --dirty-expire 3600000 # nothing is refused because time goes by

# key FILE TEXT: replaced as a whole, and the hosts' own.
key() {
	printf '%b' "$2" >"$T/$1.new" && chmod 600 "$T/$1.new" || return
	[ ${#AS[@]} -eq 0 ] || chown 65534:65534 "$T/$1.new"
	mv "$T/$1.new" "$T/$1"
}
ONE='name one\nsecret of-one\n'
TWO='name two\nsecret of-two\n'
# A program says TEXT, and refault one line that has WHY in it, when it opens a file twice.
says() { # TEXT WHY KEYFILE
	local out
	out=$(REFAULT_KEY=$3 on A sh -c 'cat "$0" || cat "$0"' "$T/vol/f1" 2>&1) && {
		echo "$3 was good enough"
		return 1
	}
	[ "$(grep -c "cat: .*$1" <<<"$out")" -eq 2 ] && [ "$(grep -c "refault: .*$2" <<<"$out")" -eq 2 ] &&
		[ "$(REFAULT_KEY=$3 on A cat "$T/vol/f1" "$T/vol/f2" 2>&1 | grep -c "refault: .*$2")" -eq 1 ] &&
		return
	printf '%s\n' "$out"
	return 1
}
NO='Required key not available'

no_key() {
	says "$NO" 'No such file' "$T/nothing" && says "$NO" 'absolute path' key &&
		key k "$ONE" && chmod 640 "$T/k" && says "$NO" 'chmod 600' "$T/k" &&
		says "$NO" 'regular file' "$T" && rm "$T/k" && mkfifo -m 666 "$T/k" &&
		says "$NO" 'regular file' "$T/k" && key k 'name one\n' && says "$NO" 'two lines' "$T/k" &&
		key k "$ONE$ONE" && says "$NO" 'two lines' "$T/k" &&
		key k 'name one\nsecret of one\n' && says "$NO" 'two lines' "$T/k" &&
		key k "name one\nsecret $(printf 'x%.0s' {1..256})\n" && says "$NO" 'two lines' "$T/k" &&
		key k '' && says "$NO" 'two lines' "$T/k"
}
check not-a-key no_key

somebody_elses() {
	if [ ${#AS[@]} -eq 0 ]; then
		[ ! -O /etc/passwd ] && says "$NO" 'regular file' /etc/passwd
	else
		key k "$ONE" && chown 0:0 "$T/k" && chmod 604 "$T/k" && says "$NO" 'regular file' "$T/k"
	fi
}
check somebody-elses-key somebody_elses

good() {
	key k "# a comment\n\n \tname\tone \r\nsecret  of-one" &&
		[ "$(REFAULT_KEY=$T/k on A head -c 3 "$T/vol/f1")" = aaa ] &&
		[ "$(REFAULT_KEY='' on A head -c 3 "$T/vol/f1")" = aaa ]
}
check good-key good

rejected() {
	key k 'name one\nsecret of-two\n' && ! REFAULT_KEY=$T/k on A cat "$T/vol/f1" >"$T/out" 2>&1 &&
		grep -q 'cat: .*Key was rejected' "$T/out" && key k 'name three\nsecret of-two\n' &&
		! REFAULT_KEY=$T/k on A cat "$T/vol/f1" >"$T/out" 2>&1 && grep -q 'cat: .*Key was rejected' "$T/out"
}
check wrong-secret-or-name rejected

# What is open keeps its key, in a forked child, too; what is opened or executed next has the new one.
key k "$ONE"
REFAULT_KEY=$T/k worker k A
pinned() {
	want k ok open 1 "$T/vol/f1" rw && want k ok map 1 1 rw 0 "$LEN" && key k 'name one\nsecret none\n' &&
		want k 'err EKEYREJECTED' open 2 "$T/vol/f2" r && want k ok pwrite 1 0 7a && want k ok store 1 1 7a &&
		want k ok fsync 1 && [ "$(head -c 3 "$T/vol/f1")" = zza ] && want k ok fork pwrite 1 2 7a &&
		want k ok fork store 1 3 7a && want k ok fsync 1 && [ "$(head -c 5 "$T/vol/f1")" = zzzza ] &&
		key k "$TWO" && want k ok open 2 "$T/vol/f2" r && want k 6161 pread 2 2 0
}
check pinned-at-open pinned
executed() {
	local out
	# shellcheck disable=SC2016 # expanded by the inner shell
	out=$(REFAULT_KEY=$T/k on A bash -c 'exec 3<"$0"; head -c 1 <&3; REFAULT_KEY=/none exec head -c 1 <&3' \
		"$T/vol/f3" 2>&1) && return 1
	case $out in a*'REFAULT_KEY=/none'*"$NO"*) ;; *)
		printf '%s\n' "$out"
		return 1
		;;
	esac
}
check exec-reads-it-anew executed

# Two descriptors of one program, two keys, one page: each store waits until the other key's are
# written back.
two_keys() {
	local n
	n=$(counter A key-flush)
	key k "$ONE" && want k ok open 4 "$T/vol/f4" rw && key k "$TWO" && want k ok open 5 "$T/vol/f4" rw &&
		want k ok map 4 4 rw 0 "$LEN" && want k ok map 5 5 rw 0 "$LEN" || return
	for i in 0 1 2 3; do
		want k ok store 4 $((10 * i)) 7a && want k ok store 5 $((10 * i + 1)) 7a &&
			want k ok pwrite 4 $((10 * i + 2)) 7a && want k ok pwrite 5 $((10 * i + 3)) 7a || return
	done
	want k ok fsync 4 && want k ok fsync 5 && [ "$(counter A key-flush)" -gt "$n" ] &&
		[ "$(head -c 40 "$T/vol/f4")" = zzzzaaaaaazzzzaaaaaazzzzaaaaaazzzzaaaaaa ]
}
check two-keys-in-one-page two_keys

# What the first key stored is refused: the second starts from what the server has.
worker a A
refused_first() { # N HOW
	want a ok open "$1" "$T/vol/f$1" rw && want a ok map "$1" "$1" rw 0 "$LEN" &&
		want k ok open "$1" "$T/vol/f$1" rw && want k ok map "$1" "$1" rw 0 "$LEN" &&
		want k 61 load "$1" 0 1 && chmod 444 "$T/vol/f$1" && want a ok store "$1" 5 7a7a &&
		want a ok "$2" "$1" 7 7b && want k ok "$2" "$1" 8 7c && want k 616161617c load "$1" 4 5 &&
		want a 616161617c load "$1" 4 5 && chmod 644 "$T/vol/f$1" && want a 'err EACCES' fsync "$1" &&
		want a ok fsync "$1" && want k 'err EACCES' msync "$1" && want k ok msync "$1" &&
		[ "$(head -c 10 "$T/vol/f$1")" = 'aaaaaaaa|a' ]
}
check refused-under-the-first-key-store refused_first 6 store
check refused-under-the-first-key-write refused_first 7 pwrite

# The race between the keys of four threads: whatever is in a page, it goes out under the key that it
# was stored under.  The server lets the first key write, not the second.
race() {
	local in out line
	printf 'secret of-two\nuid 12345\n' >"$T/keys/two" && kill -HUP "$SERVER" &&
		eventually 60 grep -q 'read anew' "$T/srv/log" && key mine/k "$ONE" && key mine/one "$ONE" &&
		key mine/two "$TWO" && chmod 666 "$T/vol/race" && mkfifo "$T/race.in" || return
	REFAULT_KEY=$T/mine/k on A "$BIN/tests/keys" "$T/vol/race" "$T/mine/k" "$T/mine/one" "$T/mine/two" \
		"$T/mine/want" \
		<"$T/race.in" >"$T/race.out" 2>&1 &
	exec {in}>"$T/race.in"
	eventually 60 grep -q . "$T/race.out" && chmod 644 "$T/vol/race" && (trap "" PIPE && echo go >&"$in")
	wait $!
	out=$? line=$(tail -n 1 "$T/race.out")
	exec {in}>&-
	echo "$line"
	[ "$out" -eq 0 ] && [ "$line" = '1600 stored EACCES ok EACCES ok' ] &&
		cmp "$T/mine/want" "$T/vol/race"
}
if [ "$(id -u)" -eq 0 ]; then
	here stores-go-out-under-their-own-key race
else
	skip stores-go-out-under-their-own-key "only a server that is root acts with other uids"
fi

# Revoked: nothing is read or written any more under the key; who has another is not disturbed.
no_read() { [ "$(ask k pread 8 1 4096)" = 'err EKEYREVOKED' ]; }
revoked() {
	key k "$ONE" && want k ok open 8 "$T/vol/f8" rw && want k ok map 8 8 rw 0 "$LEN" &&
		want k 61 load 8 0 1 && want a ok open 9 "$T/vol/f9" rw || return
	printf 'secret of-one\nrevoked\n' >"$T/keys/one"
	kill -HUP "$SERVER" && eventually 60 no_read && want k sigbus load 8 4096 1 &&
		want k sigbus store 8 4096 7a && want k 'err EKEYREVOKED' pwrite 8 4096 7a &&
		want k 'err EKEYREVOKED' open 9 "$T/vol/f9" r &&
		grep -q 'SIGBUS at f8 offset 4096: Key has been revoked' "$T/k.err" &&
		want a ok pwrite 9 4096 7b && want a ok fsync 9 &&
		[ "$(tail -c +4097 "$T/vol/f9" | head -c 2)" = '{a' ]
}
check revoked revoked

finish
