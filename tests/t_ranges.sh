#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_ranges - calls on ranges of files do what they do natively, to the errno, and the other host sees it.
#
# tests/prog/ranges.c is run natively on a directory of the export's file system, then on host A under
# the library, with its peer on host B: line by line the same.  Then programs that live on these calls.
# On ext4, xfs and tmpfs, which take different calls; or on FS; or where nothing can be mounted on what
# there is.
if [ -z "${FS:-}" ] && [ "$(id -u)" -eq 0 ]; then
	rc=0
	for fs in ext4 xfs tmpfs; do FS=$fs REFAULT_VARIANT=@$fs "$0" || rc=1; done
	exit $rc
fi
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
[ -z "${FS:-}" ] || export_on "$FS" || { skip t_ranges "$WHY"; finish; }
GROUPS_OF_CALLS=(falloc truncate copy pipes clone seek limit advice lock)
V=$T/vol
head -c 300000 /dev/urandom >"$T/random"
{ head -c 8192 "$T/random"; head -c 200000 /dev/zero; head -c 8192 "$T/random"; } >"$T/holes"
cp "$T/random" "$T/holes" "$V/"
cp "$T/random" "$V/part"
cp "$T/random" "$V/away"
: >"$V/vast"
for f in cp sparse dd python splice reflink tar; do : >"$V/$f.out"; done
for g in "${GROUPS_OF_CALLS[@]}"; do
	mkdir -p "$V/$g" "$V/native/$g"
	for f in "$V/$g" "$V/native/$g"; do : >"$f/a" && : >"$f/b" && head -c 40960 "$T/random" >"$f/c"; done
done
chmod -R a+rwX "$V"
start_server
make_hosts A B C

# compare GROUP
compare() {
	local g=$1 rc=0
	raw A "$BIN/tests/ranges" "$V/native/$g" "$g" >"$T/$g.native"
	mkfifo -m 666 "$T/$g.to" "$T/$g.from"
	# shellcheck disable=SC2016 # expanded by the inner shell; timeout ends it while it opens them, too
	timeout 300 "$T/B" sh -c 'exec "$1" "$2" peer <"$3" >"$4"' - \
		"$BIN/tests/ranges" "$V/$g" "$T/$g.to" "$T/$g.from" 2>"$T/$g.peer" &
	timeout 300 "$T/A" "$BIN/tests/ranges" "$V/$g" "$g" "$T/$g.to" "$T/$g.from" >"$T/$g.managed" 2>"$T/$g.said"
	diff "$T/$g.native" "$T/$g.managed" >"$T/$g.diff" || rc=1
	wait $! || rc=1
	cat "$T/$g.peer" "$T/$g.said"
	head -n 40 "$T/$g.diff"
	[ "$rc" -eq 0 ] || echo "the lines that differ from native ones ($(grep -c '^>' "$T/$g.diff")) are above"
	return "$rc"
}
for g in "${GROUPS_OF_CALLS[@]}"; do check "$g-as-native" compare "$g"; done

# Pages are populated while the other host changes them.
t_populate() {
	local stop rc=0
	mkfifo "$T/changes"
	on B "$BIN/tests/ranges" "$V/advice" changes <"$T/changes" &
	exec {stop}>"$T/changes"
	timeout 300 "$T/A" "$BIN/tests/ranges" "$V/advice" populate || rc=1
	exec {stop}>&-
	wait $! && [ "$rc" -eq 0 ]
}
here populate-while-others-change t_populate

# seen FILE FROM: FILE reads as FROM on both hosts and in the server's directory.
seen() {
	cmp "$V/$1" "$2" && on A cat "$V/$1" | cmp - "$2" && on B cat "$V/$1" | cmp - "$2"
}
# thin FILE: it takes less than half of its size on the server's file system.
thin() {
	[ $(($(stat -c %b "$V/$1") * 1024)) -lt "$(stat -c %s "$V/$1")" ] || {
		stat -c "$1 has %s bytes in %b blocks" "$V/$1"
		false
	}
}
# Files that are longer than hosts can hold, which xfs has: whoever would make one is told.
t_vast() {
	worker v A
	want v ok open 1 "$V/random" r && want v ok open 2 "$V/vast" rw &&
		want v 'err EFBIG' clone 2 1 0 0 $(((1 << 47) - 4096)) && want v ok truncate 2 8192 &&
		want v 'err EFBIG' falloc 2 insert 0 $(((1 << 47) - 4096)) && want v 8192 size 2 &&
		want v ok clone 2 1 0 0 8192 && want v 308192 size 2 && dismiss v
}
[ "${FS:-}" != xfs ] || here no-file-that-hosts-cannot-hold t_vast

# Pages that are registered stay dirty, and need not be clean for what changes none of them.
t_pinned() {
	worker v A
	WORKER=pins worker p A obey
	want p ok open "$V/part" 8192 rw && want p ok pin 0 8192 w && want v ok open 1 "$V/random" r &&
		want v ok open 2 "$V/part" rw && want v ok dedupe 2 1 0 8192 0 && want p ok unpin 0 8192 && dismiss v p
}
[ "${FS:-}" != xfs ] || here dedupe-of-pinned-pages t_pinned

t_cp() { on A cp --reflink=auto "$V/random" "$V/cp.out" && seen cp.out "$T/random"; }
check cp-reflink-auto t_cp
t_always() {
	local native=0 managed=0
	: >"$V/native/reflink.out"
	cp --reflink=always "$V/random" "$V/native/reflink.out" 2>/dev/null || native=1
	on A cp --reflink=always "$V/random" "$V/reflink.out" || managed=1
	[ "$native" = "$managed" ] || { echo "natively it ends with $native, not with $managed"; return 1; }
	[ "$managed" = 1 ] || seen reflink.out "$T/random"
}
check cp-reflink-always t_always
t_sparse() {
	on A cp --reflink=never --sparse=always "$V/holes" "$V/sparse.out" && seen sparse.out "$T/holes" && thin sparse.out &&
		on B cp --reflink=never --sparse=auto "$V/sparse.out" "$V/cp.out" && seen cp.out "$T/holes" && thin cp.out
}
check cp-sparse t_sparse
t_dd() {
	on B dd if="$V/holes" of="$V/dd.out" bs=4096 conv=sparse status=none && seen dd.out "$T/holes" && thin dd.out
}
check dd-sparse t_dd
t_tar() {
	on B tar -cSf - -C "$V" sparse.out >"$T/holes.tar" && [ "$(stat -c %s "$T/holes.tar")" -lt 100000 ] &&
		tar -xOf "$T/holes.tar" | cmp - "$T/holes"
}
if command -v tar >/dev/null; then check tar-sparse t_tar; else skip tar-sparse "no tar here"; fi

# Each on a native copy and on the volume's file: the same bytes, or the same refusal.
t_fallocate() {
	local how native managed
	cp "$T/random" "$V/native/part"
	for how in '-p -o 5000 -l 9000' '-z -o 40960 -l 8192' '-c -o 8192 -l 4096' '-i -o 12288 -l 8192' \
		'-z -n -o 299000 -l 90000' '-n -l 900000' '-l 400001' '-d' '-x -l 410000'; do
		native=0 managed=0
		# shellcheck disable=SC2086 # the words of one line
		fallocate $how "$V/native/part" 2>"$T/native.err" || native=$?
		# shellcheck disable=SC2086
		on A fallocate $how "$V/part" 2>"$T/managed.err" || managed=$?
		if [ "$native" != "$managed" ] || ! diff "$T/native.err" "$T/managed.err" >/dev/null; then
			echo "fallocate $how: natively $native $(cat "$T/native.err"), here $managed $(cat "$T/managed.err")"
			return 1
		fi
		seen part "$V/native/part" || { echo "after fallocate $how"; return 1; }
	done
}
check fallocate-program t_fallocate
t_truncate() {
	local how
	for how in -s50K -s+100 -s%4096 -s-1 -s0 -s70000; do
		truncate "$how" "$V/native/part" && on B truncate "$how" "$V/part" &&
			seen part "$V/native/part" || { echo "truncate $how"; return 1; }
	done
}
check truncate-program t_truncate

PY=$(command -v /usr/bin/python3 || command -v python3)
t_python() {
	on A "$PY" - "$V/random" "$V/python.out" "$V/splice.out" <<-'END'
		import os, shutil, sys
		src, dst, spliced = sys.argv[1:]
		want = open(src, 'rb').read()
		def check(name, path):
		    if open(path, 'rb').read() != want:
		        sys.exit(name + ' made something else')
		    os.truncate(path, 0)
		shutil.copyfile(src, dst)
		check('shutil.copyfile', dst)
		i, o = os.open(src, os.O_RDONLY), os.open(dst, os.O_RDWR)
		n = 0
		while (k := os.copy_file_range(i, o, 1 << 20)):
		    n += k
		if n != len(want) or os.lseek(i, 0, 1) != n or os.lseek(o, 0, 1) != n:
		    sys.exit('os.copy_file_range moved %d bytes' % n)
		check('os.copy_file_range', dst)
		n = 0
		os.lseek(o, 0, 0)
		while (k := os.sendfile(o, i, n, 1 << 20)):
		    n += k
		check('os.sendfile', dst)
		r, w = os.pipe()
		n = 0
		o = os.open(spliced, os.O_RDWR)
		while (k := os.splice(i, w, 1 << 20, offset_src=n)):
		    n += k
		    while k:
		        k -= os.splice(r, o, k)
		if open(spliced, 'rb').read() != want:
		    sys.exit('os.splice made something else')
		shutil.copyfile(src, dst)
	END
	seen python.out "$T/random" && seen splice.out "$T/random"
}
if "${PY:-false}" -c 'import os; os.splice' 2>/dev/null; then check python t_python; else skip python "no python 3.10 here"; fi

# A pipe's bytes are for a page that cannot be had, because the server is away: they stay in the pipe.
t_away() {
	local line
	mkfifo "$T/py.in" "$T/py.out"
	REFAULT_TIMEOUT=5 "$T/C" "$PY" -u -c '
import os, sys
o = os.open(sys.argv[1], os.O_RDWR)
r, w = os.pipe()
os.write(w, b"precious")
print("open", flush=True)
sys.stdin.readline()
try:
    print("moved", os.splice(r, o, 100, offset_dst=10000))
except OSError as e:
    print(e.errno, os.read(r, 100))
' "$V/away" <"$T/py.in" >"$T/py.out" &
	exec {py_in}>"$T/py.in" {py_out}<"$T/py.out"
	IFS= read -r -t 60 line <&"$py_out" && [ "$line" = open ] || return
	stop_server
	echo >&"$py_in"
	IFS= read -r -t 60 line <&"$py_out"
	exec {py_in}>&- {py_out}<&-
	case $line in *"b'precious'") return 0 ;; esac
	echo "it says: $line"
	return 1
}
if "${PY:-false}" -c 'import os; os.splice' 2>/dev/null; then here bytes-stay-in-the-pipe t_away; fi
finish
