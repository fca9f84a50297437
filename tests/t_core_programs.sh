#!/bin/bash
# SPDX-License-Identifier: MIT
#
# t_core_programs - ordinary programs, unchanged, on a volume: what host A does, host B and the server see.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

V=$T/vol
O=$T/outside # of any volume; for everybody
mkdir -m 777 "$O"
head -c 3000000 /dev/urandom >"$V/big"
: >"$V/copy"
seq 1 20000 >"$V/text"
head -c 200000 /dev/zero >"$V/blocks"
echo 'old content that is long enough to show through' >"$V/short"
: >"$V/list"
head -c 8192 /dev/zero >"$V/pymap"
mkdir "$V/sub"
echo in >"$V/sub/in"
ln "$V/text" "$V/hard"
ln -s text "$V/soft"
cp "$V/big" "$T/big"
if command -v sqlite3 >/dev/null; then
	sqlite3 "$V/db" 'create table t(a integer primary key, b text)' && cp "$V/db" "$V/dbm"
fi
start_server
make_hosts
PY=$(command -v /usr/bin/python3 || command -v python3)
"${PY:-false}" -c 'import mmap, os' 2>/dev/null || PY=

# need NAME PROGRAM: true if it is there, else the test NAME is skipped.
need() { command -v "${2:-none}" >/dev/null || { skip "$1" "no ${2:-such program} here"; false; }; }
# seen FILE FROM: FILE reads as FROM on both hosts and in the server's directory.
seen() {
	cmp "$V/$1" "$2" && on A cat "$V/$1" | cmp - "$2" && on B cat "$V/$1" | cmp - "$2"
}

t_cat() { seen big "$T/big"; }
check cat t_cat
t_cp() { on A cp "$V/big" "$V/copy" && seen copy "$T/big" && on B cp "$V/copy" "$O/out" && cmp "$O/out" "$T/big"; }
check cp t_cp
t_cp_new() { on A cp "$V/big" "$V/new" && cmp "$V/new" "$T/big" && on A cmp "$V/new" "$V/big"; }
check cp-to-a-new-file t_cp_new
t_dd() {
	cp "$V/blocks" "$T/want" &&
		dd if="$T/big" of="$T/want" bs=1000 count=7 seek=5 conv=notrunc status=none &&
		on A dd if="$T/big" of="$V/blocks" bs=1000 count=7 seek=5 conv=notrunc,fsync status=none &&
		seen blocks "$T/want" &&
		on B dd if="$V/blocks" bs=1000 skip=5 count=7 status=none | cmp - <(head -c 7000 "$T/big")
}
check dd t_dd
t_grep() {
	same_out() { [ "$1" = "$2" ] || { echo "got '$1', want '$2'"; return 1; }; }
	same_out "$(on B grep -c 99 "$V/text")" "$(grep -c 99 "$V/text")" &&
		on A dd of="$V/text" bs=1 seek=10 conv=notrunc status=none <<<needle &&
		same_out "$(on B grep -c needle "$V/text")" 1 &&
		same_out "$(on B grep -c needle "$V/hard")" 1 &&
		same_out "$(on B grep -c needle "$V/soft")" 1 &&
		same_out "$(raw B grep -c needle "$V/text")" 0
}
check grep-and-links t_grep
t_shell() {
	on A sh -c "echo one >$V/short" && echo one >"$T/want" && seen short "$T/want" || return
	on A sh -c "echo two >>$V/short; echo three >>$V/short" && on B sh -c "echo four >>$V/short" &&
		printf 'one\ntwo\nthree\nfour\n' >"$T/want" && seen short "$T/want"
}
check shell-redirections t_shell
t_loop() {
	on B sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do echo B\$i >>$V/list; done" &
	local pid=$!
	on A sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do echo A\$i >>$V/list; done"
	wait "$pid" || return
	sort "$V/list" >"$T/got"
	{ for i in 1 2 3 4 5 6 7 8 9 10; do printf 'A%d\nB%d\n' "$i" "$i"; done; } | sort | cmp - "$T/got" &&
		on A sort "$V/list" | cmp - "$T/got" && on B sort "$V/list" | cmp - "$T/got"
}
check two-hosts-append-lines t_loop
t_coreutils() {
	[ "$(on B wc -c <"$V/big")" = 3000000 ] && [ "$(on B stat -c %s "$V/big")" = 3000000 ] &&
		[ "$(on B md5sum <"$V/big")" = "$(md5sum <"$T/big")" ] &&
		on A truncate -s 1234567 "$V/big" && [ "$(on B stat -c %s "$V/big")" = 1234567 ] &&
		[ "$(on B ls -l "$V/big" | awk '{ print $5 }')" = 1234567 ] &&
		on B tail -c 100 "$V/big" | cmp - <(head -c 1234567 "$T/big" | tail -c 100) &&
		on A gzip -c "$V/big" | gunzip | cmp - <(head -c 1234567 "$T/big") &&
		on A tar -C "$V" -cf "$O/x.tar" big && tar -xOf "$O/x.tar" big | cmp - "$V/big" &&
		on A mv "$V/sub/in" "$V/sub/out" && [ "$(on A cat "$V/sub/out")" = in ] &&
		on A rm "$V/sub/out" && [ ! -e "$V/sub/out" ] && ! on A cat "$V/sub/out" 2>/dev/null
}
check wc-stat-md5sum-truncate-tail-gzip-tar-mv-rm t_coreutils
t_sed() { on A sed -i s/one/1/ "$V/short" && head -n 1 "$V/short" | grep -qx 1 && [ "$(on A head -n 1 "$V/short")" = 1 ]; }
check sed-in-place t_sed

# A descriptor that was made together with its file may write, whatever the file's mode.
t_readonly() {
	on A sh -c "umask 0333; exec 3>$V/readonly; chmod 444 $V/readonly; echo one >&3; exec 3>&-" &&
		[ "$(cat "$V/readonly")" = one ] && [ "$(stat -c %a "$V/readonly")" = 444 ]
}
check create-read-only-and-write t_readonly

if need python3-mmap "$PY"; then
	cat >"$T/w.py" <<'END'
import mmap, sys
with open(sys.argv[1], "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    m[4090:4100] = b"0123456789"
    m.flush()
    m.seek(0); m.write(b"start"); m.flush()
    f.seek(100); f.write(b"written"); f.flush()
    import os; os.fsync(f.fileno())
    assert m[100:107] == b"written", m[100:107]
    m.close()
END
	cat >"$T/r.py" <<'END'
import mmap, sys
with open(sys.argv[1], "rb") as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert m[4090:4100] == b"0123456789", m[4090:4100]
    assert m[:5] == b"start" and m.find(b"written") == 100 and len(m) == 8192
    assert f.read(5) == b"start"
    print("seen")
END
	t_python() { on A "$PY" "$T/w.py" "$V/pymap" && [ "$(on B "$PY" "$T/r.py" "$V/pymap")" = seen ]; }
	check python3-mmap t_python
	# Its last name goes while it is open, here: nothing that is done with it is refused for that.
	cat >"$T/temp.py" <<-'EOF'
		import mmap, os, sys
		fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
		getattr(os, sys.argv[2])(*sys.argv[3:], sys.argv[1]) if len(sys.argv) > 3 else os.unlink(sys.argv[1])
		os.write(fd, b'a' * 10000)
		m = mmap.mmap(fd, 10000)
		m[5] = ord('b')
		m.flush()
		os.fsync(fd)
		os.pwrite(fd, b'zz', 20000)
		os.fsync(fd)
		assert os.pread(fd, 8, 0) == b'aaaaabaa' and os.fstat(fd).st_size == 20002
		os.close(fd)
	EOF
	t_temp() { on A "$PY" "$T/temp.py" "$V/temp" unlink && [ ! -e "$V/temp" ]; }
	check python3-temporary-file t_temp
	t_replaced() {
		cp "$V/text" "$V/temp2" && on A "$PY" "$T/temp.py" "$V/temp" rename "$V/temp2" && cmp "$V/temp" "$V/text"
	}
	check python3-replaced-file t_replaced
fi

if need sqlite3 sqlite3; then
	t_sqlite() {
		local n
		on A sqlite3 "$V/$1" "$2 begin; with recursive c(x) as (select 1 union all select x+1 from c
			where x < 3000) insert into t select x, hex(randomblob(20)) from c; commit;" >/dev/null || return
		n=$(on B sqlite3 "$V/$1" "$2 select count(*), max(a) from t; pragma integrity_check" | tail -n 2 | tr '\n' ' ')
		[ "$n" = '3000|3000 ok ' ] || { echo "host B: $n"; return 1; }
		# No journal: on host B names are frozen, and its journal would stay on the server.
		on B sqlite3 "$V/$1" "$2 pragma journal_mode=memory; delete from t where a % 2; vacuum" \
			>/dev/null || return
		n=$(on A sqlite3 "$V/$1" "$2 select count(*) from t; pragma integrity_check" | tail -n 2 | tr '\n' ' ')
		[ "$n" = '1500 ok ' ] || { echo "host A: $n"; return 1; }
		n=$(sqlite3 "$V/$1" 'select count(*) from t; pragma integrity_check' | tr '\n' ' ')
		[ "$n" = '1500 ok ' ] || { echo "the server's file: $n"; return 1; }
	}
	check sqlite3 t_sqlite db ''
	check sqlite3-mmap t_sqlite dbm 'pragma mmap_size=10000000;'
fi

if need git git; then
	t_git() {
		local g=(git -C "$V/repo" -c user.name=t -c user.email=t@example.org -c core.fsync=all)
		on A git -c init.defaultBranch=main init -q "$V/repo" && on A cp "$V/text" "$V/repo/text" &&
			on A "${g[@]}" add text && on A "${g[@]}" commit -q -m one &&
			on A sh -c "seq 1 100 >>$V/repo/text" && on A "${g[@]}" commit -q -a -m two &&
			on A "${g[@]}" repack -q -a -d && on A "${g[@]}" gc -q &&
			[ "$(on A "${g[@]}" log --oneline | wc -l)" -eq 2 ] &&
			[ -z "$(on A "${g[@]}" status --porcelain)" ] && on A "${g[@]}" fsck --strict &&
			git -c safe.directory='*' -C "$V/repo" fsck --strict &&
			on A git clone -q "$V/repo" "$V/clone" && cmp "$V/clone/text" "$V/repo/text"
	}
	check git t_git
fi

if need compiler cc; then
	t_cc() {
		echo 'int puts(const char *); int main(void) { return puts("built") < 0; }' >"$T/x.c"
		on A cp "$T/x.c" "$V/x.c" && on A cc -o "$V/x" "$V/x.c" && [ "$("$V/x")" = built ] &&
			[ "$(on A "$V/x")" = built ]
	}
	check compiler t_cc
fi

t_bypass() { [ "$(raw B cat "$V/copy" | wc -c)" = 0 ]; }
check bypass-reads-the-stale-copy t_bypass
finish
