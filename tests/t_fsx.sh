#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_fsx - a short `make stress` on each file system with one host and with two, and that it can fail.
cd "$(dirname "$0")" || exit 1
OPS=12000
SEED=${SEED:-$RANDOM$RANDOM}
bad=0

# judge NAME: the run's lines; when all was well only that.
judge() {
	local out=$1
	grep -E '^(ok|not ok|skip) ' <<<"$out"
	grep -qE '^not ok ' <<<"$out" || return 0
	bad=1
	sed 's/^/    /' <<<"$out"
}
for fs in ext4 xfs tmpfs; do
	for hosts in 1 2; do
		judge "$(OPS=$OPS SEED=$SEED FS=$fs HOSTS=$hosts ./stress -e INVALIDATE 2>&1)"
	done
done
# Where the library cannot protect what it maps, and where another thread serves the faults.
judge "$(OPS=$OPS SEED=$SEED FS=xfs HOSTS=2 REFAULT_FAULTS=thread ./stress -e INVALIDATE 2>&1 | sed 's/hosts/&-thread/')"
judge "$(OPS=$OPS SEED=$SEED FS=xfs HOSTS=2 REFAULT_DISABLE=continue-wp ./stress -e INVALIDATE 2>&1 | sed 's/hosts/&-no-continue-wp/')"

# found WHAT PATTERN OPTION...: what was spoilt at op 500 is noticed.
found() {
	local what=$1 pattern=$2 out
	shift 2
	out=$(OPS=5000 SEED=1 FS=tmpfs HOSTS=1 ./stress "$@" 2>&1)
	if grep -q '^skip ' <<<"$out"; then
		echo "skip fsx-can-fail-$what: $(sed -n 's/^skip [^:]*: //p' <<<"$out")"
	elif grep -qE "^not ok .*op [0-9]+: .*$pattern" <<<"$out"; then
		echo "ok fsx-can-fail-$what"
	else
		echo "not ok fsx-can-fail-$what: it was not missed"
		sed 's/^/    /;s/^    not ok/    (not ok)/' <<<"$out"
		bad=1
	fi
}
found model 'should be' -x model@500
found file 'should be' -x file@500
exit $bad
