#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_key_rights - keys that stand for other uids: whose rights count, and until when.
#
# Programs run as nobody on host B, where names and modes are those of a copy that everybody may write
# to; so whatever is allowed or refused is the server's doing.  Background write-back is far away.
# shellcheck source=lib.sh
[ "$(id -u)" -ne 0 ] || export REFAULT_VARIANT=@nobody
. "$(dirname "$0")/lib.sh"
if [ "$(id -u)" -ne 0 ]; then
	skip key-rights "only root can act with the rights of other uids"
	exit 0
fi
export KILLS_AGENTS=1

BOB=1000 EVE=1001 GROUP=3000 LEN=8192
mkdir -m 700 "$T/keys"
# key NAME [LINE...]: the server's, and the programs' side of it.
key() {
	printf '%s\n' "secret of-$1" "${@:2}" >"$T/keys/.$1" && chmod 600 "$T/keys/.$1" &&
		mv "$T/keys/.$1" "$T/keys/$1" && printf 'name %s\nsecret of-%s\n' "$1" "$1" >"$T/$1.key" &&
		chmod 600 "$T/$1.key" && chown 65534 "$T/$1.key"
}
key bob "uid $BOB" "gid $BOB"
key eve "uid $EVE" "gid $EVE" "groups 2999,$GROUP"
mkdir "$T/vol/pub"
for f in private shared group killed exited restarted revoked both two; do
	head -c $LEN /dev/zero | tr '\0' a >"$T/vol/$f"
done
start_server --keys "$T/keys"
make_hosts
chmod 777 "$T/vol/pub"
chown $BOB:$GROUP "$T"/vol/*[a-z]
chown 0:0 "$T/vol/pub"
chmod 644 "$T"/vol/[a-z]*d
chmod 600 "$T/vol/private"
chmod 060 "$T/vol/group"
chmod 660 "$T/vol/both"
chmod 666 "$T/vol/two" # names and modes on host A are the server's
chmod -R a+rwX "$T/stale"
start_agent B --dirty-expire 3600000
worker own B
REFAULT_KEY=$T/bob.key worker bob B
REFAULT_KEY=$T/eve.key worker eve B
V=$T/vol

open() { # WORKER N FILE
	want "$1" ok open "$2" "$V/$3" rw && want "$1" ok map "$2" "$2" rw 0 "$LEN"
}
starts() { # FILE TEXT: the server's
	[ "$(head -c ${#2} "$V/$1")" = "$2" ] && return
	echo "$1 begins with '$(head -c ${#2} "$V/$1")', should be '$2'"
	return 1
}

opened() {
	want own 'err EACCES' open 1 "$V/private" r && want eve 'err EACCES' open 1 "$V/private" r &&
		open bob 1 private && want bob 61 load 1 0 1 && want bob ok store 1 0 7a &&
		want bob ok pwrite 1 1 7a && want bob ok fsync 1 && starts private zza &&
		want own ok open 2 "$V/shared" r && want own 'err EACCES' open 3 "$V/shared" rw &&
		want eve 'err EACCES' open 3 "$V/shared" rw && want bob ok open 3 "$V/shared" rw
}
check rights-are-those-of-the-keys-uid opened
groups() {
	want own 'err EACCES' open 4 "$V/group" r && want bob 'err EACCES' open 4 "$V/group" r &&
		open eve 4 group && want eve ok store 4 0 7a && want eve ok msync 4 && starts group za
}
check rights-are-those-of-the-keys-groups groups
made() {
	want bob ok open 5 "$V/pub/new" rwc && want bob ok write 5 7a && want bob ok fsync 5 &&
		same_owner "$BOB" "$V/pub/new" && starts pub/new z &&
		want own ok open 6 "$V/pub/own" rwc && same_owner 65534 "$V/pub/own"
}
same_owner() {
	[ "$(stat -c %u "$2")" -eq "$1" ] || { echo "$2 belongs to $(stat -c %u "$2")"; return 1; }
}
check files-belong-to-the-keys-uid made

# The key's file is gone, and what is open does not care.
pinned() {
	mv "$T/bob.key" "$T/bob.gone" && want bob 'err ENOKEY' open 7 "$V/shared" rw &&
		want bob ok store 1 2 7b && want bob ok msync 1 && want bob ok pwrite 1 3 7b &&
		want bob ok fsync 1 && starts private 'zz{{a' && mv "$T/bob.gone" "$T/bob.key" &&
		want bob ok open 7 "$V/shared" rw
}
check open-files-keep-their-key pinned

# Only bob may write to these.  He is gone when it is written back: somebody else asks for that.
REFAULT_KEY=$T/bob.key worker gone B
store_and_die() { # FILE [COMMAND]: in between
	open gone 8 "$1" && want own ok open 8 "$V/$1" r && want gone ok store 8 0 7a &&
		want gone ok pwrite 8 4096 7b && starts "$1" a && ${2:-:} && kill -9 "${WPID[gone]}" || return
	wait "${WPID[gone]}" 2>/dev/null
	true
}
after_kill() {
	store_and_die killed || return
	REFAULT_KEY=$T/bob.key worker gone B
	want own ok fsync 8 && starts killed za && [ "$(tail -c 4096 "$V/killed" | head -c 1)" = '{' ]
}
here written-back-under-the-key-of-who-was-killed after_kill
after_restart() {
	local p
	store_and_die restarted || return
	p=$(agent_pid B) && kill -9 "$p" || return
	REFAULT_KEY=$T/bob.key worker gone B
	want own ok fsync 8 && starts restarted za && [ "$(tail -c 4096 "$V/restarted" | head -c 1)" = '{' ]
}
here written-back-under-the-key-after-the-agent-was-killed after_restart
after_exit() {
	open gone 8 exited && want gone ok store 8 0 7a && want gone ok close 8 && starts exited za
}
check written-back-at-the-last-close after_exit

reread() {
	local breaks
	breaks=$(counter B mass-break)
	kill -HUP "$SERVER"
	more_breaks() { [ "$(counter B mass-break)" -gt "$breaks" ]; }
	eventually 60 more_breaks || { echo "SIGHUP was no mass break"; return 1; }
}
revoke() { key bob "uid $BOB" "gid $BOB" revoked && reread; }
after_revocation() {
	store_and_die revoked revoke && want own 'err EKEYREVOKED' fsync 8 &&
		want own ok fsync 8 && want own 6161 pread 8 2 0 && want own 61 pread 8 1 4096 &&
		starts revoked aa || return
	status B | grep -q '^rejected: revoked .* pages 2 errno EKEYREVOKED .* key bob ' ||
		{ status B | grep '^rejected:'; return 1; }
	key bob "uid $BOB" "gid $BOB" && reread && want own ok fsync 8 && starts revoked aa
}
here refused-under-the-key-of-who-was-killed after_revocation

# Bob's program cannot be stripped, and what it stored cannot be merged with what Eve stores elsewhere: as
# long as it shows the old bytes, Eve is not told that nobody does.
unmerged() {
	local s='' line r=0
	REFAULT_KEY=$T/eve.key worker far A
	open bob 10 two && open far 10 two && want bob 61 load 10 0 1 && want bob ok store 10 1 7a &&
		s=$(stripper bob) || { echo "$s"; return 1; }
	returned() { read -r -t 0 <&"${FROM[far]}"; }
	returned_or_held() { returned || grep -q 'two: a program does not let go of' "$T/b/agent.log"; }
	old() { want bob 61 load 10 0 1; }
	kill -STOP "$s"
	revoke && want far ok store 10 0 62 && tell far msync 10 && eventually 60 returned_or_held || r=1
	! { returned && old; } || { echo "Eve was told, and Bob still sees the old byte"; r=1; }
	kill -CONT "$s"
	[ "$r" -eq 0 ] && IFS= read -r -t 60 line <&"${FROM[far]}" && [ "$line" = ok ] || return
	! old && key bob "uid $BOB" "gid $BOB" && reread && want bob 627a load 10 0 2 && want bob ok fsync 10 &&
		starts two bz && dismiss far
}
here what-cannot-be-merged-is-seen-by-nobody unmerged

# Two programs, two keys, one page.  Bob may not write any more when Eve stores: his changes are refused
# and gone, hers start from what the server has.
both_keys() {
	open bob 9 both && open eve 9 both && want bob 61 load 9 0 1 && want eve 61 load 9 0 1 &&
		want bob ok store 9 0 7a && want bob ok pwrite 9 100 7a && chmod 060 "$V/both" &&
		want eve ok store 9 1 7b && want eve 617b61 load 9 0 3 && want eve 61 load 9 100 1 &&
		want bob 617b61 load 9 0 3 && starts both aaa && want eve 'err EACCES' fsync 9 &&
		want eve ok fsync 9 && want bob 'err EACCES' fsync 9 && want bob ok fsync 9 &&
		starts both 'a{a' && want eve ok pwrite 9 2 7c && want eve ok fsync 9 && starts both 'a{|a'
}
check two-keys-in-one-page both_keys
# Neither is refused: both survive, each under its own key.
both_accepted() {
	local n
	n=$(counter B key-flush)
	chmod 660 "$V/both" && want bob ok store 9 10 7a && want eve ok store 9 11 7b &&
		want bob ok pwrite 9 12 7c && want eve ok fsync 9 &&
		[ "$(head -c 14 "$V/both" | tail -c 4)" = 'z{|a' ] && [ "$(counter B key-flush)" -gt "$n" ]
}
check two-keys-in-one-page-both-accepted both_accepted
finish
