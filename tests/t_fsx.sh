#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_fsx - a short `make stress` on each file system with one host and with two, in other modes, while
# daemons are killed, and that it can fail.
cd "$(dirname "$0")" || exit 1
OPS=8000
SEED=${SEED:-$RANDOM$RANDOM}
bad=0

# run FS HOSTS LABEL [FSX-OPTION...]: its lines; when all was well only what tests/run wants.
run() {
	local out
	out=$(OPS=$OPS SEED=$SEED FS=$1 HOSTS=$2 LABEL=$3 ./stress "${@:4}" 2>&1)
	grep -E '^(ok|not ok|skip) ' <<<"$out"
	grep -qE '^not ok ' <<<"$out" || return 0
	bad=1
	grep -vE '^(ok|not ok|skip) ' <<<"$out"
}
# found WHAT: what was spoilt at op 500 is noticed.
found() {
	local out
	out=$(OPS=5000 SEED=1 FS=tmpfs HOSTS=1 ./stress -x "$1@500" 2>&1)
	if grep -q '^skip ' <<<"$out"; then
		echo "skip fsx-can-fail-$1: $(sed -n 's/^skip [^:]*: //p' <<<"$out")"
	elif grep -qE '^not ok .*op [0-9]+: .*should be' <<<"$out"; then
		echo "ok fsx-can-fail-$1"
	else
		echo "not ok fsx-can-fail-$1: nothing was found"
		grep -vE '^(ok|not ok|skip) ' <<<"$out"
		bad=1
	fi
}

for fs in ext4 xfs tmpfs; do
	run $fs 1 ''
	run $fs 2 -readers -r 2
done
REFAULT_FAULTS=thread run xfs 2 -thread
REFAULT_DISABLE=continue-wp run ext4 2 -no-continue-wp
TROUBLE=small,hup,agents,server run xfs 2 -trouble
found model
found file
exit $bad
