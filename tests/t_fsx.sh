#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_fsx - a short `make stress` on each file system with one host and with two, in other modes, while
# daemons are killed, and that it can fail.
cd "$(dirname "$0")" || exit 1
OPS=8000
case ${B:-} in *san*) OPS=3000 ;; esac # several times slower
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
# again NAME HOSTS: ops on standard input that went wrong once.
again() {
	local list
	list=$(mktemp)
	cat >"$list"
	OPS=1000 run tmpfs "$2" "-$1" -i "$list"
	rm -f "$list"
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

# A part of a mapping was locked for a while: it can be moved as a whole.
again locked-and-moved 1 <<'EOF'
seed 1
0 FALLOC 2 1 221009 9132 8192 0 0 726
0 MLOCK 2 0 26192 123369 4096 32 0 740
0 MREMAP 2 0 37187 41489 6928 236 0 831
EOF
# Another host made the file larger while this one had no promise: a store there is no SIGBUS.
again store-behind-the-old-end 2 <<'EOF'
seed 7
1 WRITE 2 1 24576 65421 7375 195 0 53636
1 FLUSH 0 0 0 0 0 0 0 53637
0 MAPWRITE 2 2 12288 20480 1749 58 1 53643
3 WRITE 2 2 4096 31712 202 114 1 53665
3 WRITE 2 2 15587 11593 4096 225 1 53673
3 FSYNC 2 2 3889 24576 39 112 1 53680
0 FLUSH 0 0 0 0 0 252 1 53698
2 TRUNCATE 2 0 186047 31366 33 17 0 53977
1 MAPWRITE 2 0 186023 78390 28672 49 1 53998
EOF

found model
found file
exit $bad
