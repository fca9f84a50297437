#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_revoke - write-back is refused and allowed again while a program goes on storing (prog/revoke.c).
#
# ROUNDS: how many, 500 unless told; SECONDS_MAX: but no longer than that for each test.
# shellcheck source=lib.sh
[ "$(id -u)" -ne 0 ] || export REFAULT_VARIANT=@nobody
. "$(dirname "$0")/lib.sh"

ROUNDS=${ROUNDS:-500}
SECONDS_MAX=${SECONDS_MAX:-20}
SEED=${SEED:-$RANDOM}
me=$(id -u)
[ ${#AS[@]} -eq 0 ] || me=65534
mkdir -m 700 "$T/keys"
printf 'name alice\nsecret sesame\n' >"$T/alice.key"
chmod 600 "$T/alice.key"
chown "$me" "$T/alice.key"
for f in key chmod thread unguarded; do truncate -s 65536 "$T/vol/$f"; done
truncate -s 1M "$T/shared"
chmod 666 "$T/shared"
start_server --keys "$T/keys"
make_hosts

# race HOST FILE key|chmod ROUNDS: what it says at the end is in $said.
race() {
	local rc key='' mine='' controller
	[ "$3" = chmod ] || key=$T/keys/alice mine=$T/alice.key
	printf 'secret sesame\n' >"$T/keys/alice" && chmod 600 "$T/keys/alice" && kill -HUP "$SERVER"
	rm -f "$T/to" "$T/from"
	mkfifo "$T/to" "$T/from"
	chown "$me" "$T/to" "$T/from"
	"$BIN/tests/revoke" control "$T/vol/$2" "$T/shared" "$key" "$SERVER" "$T/from" "$T/to" &
	controller=$!
	REFAULT_KEY=$mine on "$1" "$BIN/tests/revoke" write "$T/vol/$2" "$T/shared" "$3" "$4" \
		"$SECONDS_MAX" "$SEED" "$T/to" "$T/from" >"$T/said" 2>>"$T/$2.err"
	rc=$?
	[ "$rc" -eq 0 ] || kill "$controller" 2>/dev/null
	wait "$controller"
	said=$(tail -n 1 "$T/said")
	[ "$rc" -eq 0 ] && return
	cat "$T/said"
	grep '^revoke: ' "$T/$2.err"
	echo "seed $SEED: ${said:-ended with status $rc}"
	return "$rc"
}
# told NAME RACE...
told() {
	here "$1" race "${@:2}"
	echo "    $said"
}
told revoked-while-storing A key key "$ROUNDS"
export REFAULT_FAULTS=thread
told revoked-while-storing-in-thread-mode A thread key $(((ROUNDS + 9) / 10))
unset REFAULT_FAULTS
if [ "$me" -eq 0 ]; then
	skip mode-changed-while-storing "root may do everything"
else
	told mode-changed-while-storing A chmod chmod $(((ROUNDS + 4) / 5))
fi

# It fires if what was refused is not excised.
REFAULT_DISABLE=excise start_agent B
if race B unguarded key 10 >"$T/why"; then
	not_ok revoke-can-fail "nobody noticed that refused pages were kept: $said"
elif ! grep -q ' [1-9][0-9]* refused values at the server' <<<"$said"; then
	not_ok revoke-can-fail "$said"
else
	ok revoke-can-fail
fi
finish
