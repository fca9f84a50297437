#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_start - `refault run`, `refault status`, starting and ending of agents, mmapcoh.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

echo hello >"$T/vol/f"
private_bin # so that every process of these programs can be told from other tests'
start_server
make_hosts

# ---- refault run ----
run() { "$BIN/refault" run --volume "$(VOLUMES)" "$@"; }
code() { # code STATUS ARGUMENT...
	local want=$1 rc
	shift
	run "$@" >"$T/out" 2>&1 </dev/null
	rc=$?
	cat "$T/out"
	[ "$rc" -eq "$want" ] || { echo "exit status $rc, should be $want"; return 1; }
}
refuses() { # refuses WORD PROGRAM
	code 126 "$2" && [ "$(wc -l <"$T/out")" -eq 1 ] && grep -q -e "$1" "$T/out"
}
mkdir "$T/p"
cat >"$T/p/x.c" <<'END'
int main(void) { return 0; }
END
build() { cc "$@" "$T/p/x.c" 2>"$T/p/cc.log"; }
build -o "$T/p/dynamic"
if build -static -o "$T/p/static"; then
	check run-refuses-static refuses static "$T/p/static"
	printf '#!%s\n' "$T/p/static" >"$T/p/script"
	chmod +x "$T/p/script"
	check run-refuses-script-of-static refuses static "$T/p/script"
else
	skip run-refuses-static "cannot link a static program"
fi
if build -static-pie -o "$T/p/static-pie"; then
	check run-refuses-static-pie refuses static "$T/p/static-pie"
else
	skip run-refuses-static-pie "cannot link a static-pie program"
fi
cp "$T/p/dynamic" "$T/p/setuid" && chmod 4755 "$T/p/setuid"
check run-refuses-setuid refuses setuid "$T/p/setuid"
cp "$T/p/dynamic" "$T/p/setgid" && chmod 2755 "$T/p/setgid"
check run-refuses-setgid refuses setgid "$T/p/setgid"
if cp "$T/p/dynamic" "$T/p/caps" && PATH=$PATH:/sbin:/usr/sbin setcap cap_net_raw+ep "$T/p/caps" 2>/dev/null; then
	check run-refuses-file-capabilities refuses capabilities "$T/p/caps"
else
	skip run-refuses-file-capabilities "cannot set file capabilities here"
fi
# The ELF header of a program for another architecture.
{ head -c 18 "$T/p/dynamic"; printf '\363\000'; tail -c +21 "$T/p/dynamic"; } >"$T/p/riscv"
chmod +x "$T/p/riscv"
check run-refuses-other-architecture refuses architecture "$T/p/riscv"
: >"$T/p/plain"
check run-not-executable code 126 "$T/p/plain"
check run-not-found code 127 "$T/p/nonesuch"
check run-not-in-path code 127 no-such-program-anywhere
check run-no-program code 125
check run-unknown-option code 125 --frobnicate true
check run-passes-status code 7 sh -c 'exit 7'
same run-passes-arguments "$(run -- printf '%s|' 'a b' '' c)" 'a b||c|'
same run-finds-scripts-in-path "$(printf '#!/bin/sh\necho "$0 $1"\n' >"$T/p/s" && chmod +x "$T/p/s" &&
	PATH=$T/p:$PATH run s x)" "$T/p/s x"
same run-prepends-to-preload "$(LD_PRELOAD=$BIN/librefault.so:/nonesuch.so run sh -c 'echo $LD_PRELOAD' 2>/dev/null)" \
	"$BIN/librefault.so:/nonesuch.so"
same run-under-run "$(run "$BIN/refault" run --volume "$T/p=unix:$SOCK,name=vol" sh -c 'echo $LD_PRELOAD; echo "$REFAULT_VOLUMES"')" \
	"$BIN/librefault.so
$(VOLUMES);$T/p=unix:$SOCK,name=vol"
same version "$("$BIN/refault" --version)" "refault $(sed -n 's/^#define REFAULT_VERSION "\(.*\)"/\1/p' "$ROOT/include/refault/refault.h")"

# ---- agents ----
processes() { # how many agent processes of this test there are
	local p n=0
	for p in /proc/[0-9]*/exe; do
		case $(readlink "$p" 2>/dev/null) in "$BIN/refault-agent"*) n=$((n + 1)) ;; esac
	done
	echo $n
}
untouched() {
	on A true && on A cat /etc/hostname >/dev/null && on A sh -c 'ls / | wc -l' >/dev/null || return
	[ "$(processes)" = 0 ] || { echo "an agent was started"; return 1; }
	[ ! -e "$T/a/agent.sock" ] || { echo "a socket was made"; return 1; }
	REFAULT_RUNTIME_DIR=$T/a "$BIN/refault" status >"$T/out" 2>&1 && { echo "status succeeded"; return 1; }
	grep -q 'no agent is running' "$T/out"
}
check untouched-volume-starts-no-agent untouched

same one-program-reads "$(on B cat "$T/vol/f")" hello
as_many() { [ "$(processes)" -eq "$1" ]; } # those that started it, and losers of a race, may still be leaving
check one-program-starts-an-agent eventually 60 as_many 2 # with its supervisor

ten() {
	local i pids=()
	for i in 1 2 3 4 5 6 7 8 9 10; do
		on A cat "$T/vol/f" >"$T/out.$i" 2>&1 &
		pids+=($!)
	done
	for i in "${pids[@]}"; do wait "$i" || { echo "a program failed: $(cat "$T"/out.*)"; return 1; }; done
	[ "$(cat "$T"/out.* | sort | uniq -c | tr -s ' ')" = ' 10 hello' ] || { cat "$T"/out.*; return 1; }
	eventually 60 as_many 4 || { echo "$(processes) processes, two agents have 4"; return 1; }
}
check ten-programs-start-one-agent ten

state() { # status names the volume's server and the counters
	status A >"$T/out" || return
	cat "$T/out"
	local w
	for w in "$SOCK" fetch validate break strip drop flush fault-read; do
		grep -q -e "$w" "$T/out" || { echo "status says nothing of $w"; return 1; }
	done
	[ "$(counter A fetch)" -ge 1 ] || { echo "no fetch was counted"; return 1; }
}
check status state
stop() {
	gone() { [ -z "$(agent_pids A)" ]; }
	REFAULT_RUNTIME_DIR=$T/a "$BIN/refault" stop && eventually 60 gone || { echo "it is still there"; return 1; }
	REFAULT_RUNTIME_DIR=$T/a "$BIN/refault" status 2>&1 | grep -q 'no agent is running' &&
		[ "$(on A cat "$T/vol/f")" = hello ]
}
check stop-and-start-again stop

# ---- mmapcoh, without the library ----
printf '\376xyz' >"$T/p/coh"
same mmapcoh-reads "$("$BIN/mmapcoh" -n 2 -i 0 -o 1 "$T/p/coh" | tr '\n' ' ')" '120 120 '
same mmapcoh-counts "$("$BIN/mmapcoh" -n 3 -i 0.001 "$T/p/coh" mod | tr '\n' ' ')" '255 0 1 '
same mmapcoh-steps "$(printf '\n\n' | "$BIN/mmapcoh" -s -o 3 "$T/p/coh" mod | tr '\n' ' ')" '123 124 '
same mmapcoh-wrote "$(od -An -tx1 "$T/p/coh" | tr -d ' ')" '0178797c'
bad() { ! "$BIN/mmapcoh" "$@" >"$T/out" 2>"$T/err" && [ ! -s "$T/out" ] && [ -s "$T/err" ]; }
check mmapcoh-no-such-byte bad -o 4 "$T/p/coh"
check mmapcoh-no-such-file bad "$T/p/nonesuch"
check mmapcoh-bad-interval bad -i -1 "$T/p/coh"
check mmapcoh-bad-word bad "$T/p/coh" modify
finish
