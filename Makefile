# Refault.  `make help` lists the targets.
#
# Objects go to build/ (build-san/ with SAN=1, build-debug/ with DEBUG=1, which SAN=1 implies: lock order
# and other things that must be so are asserted).  SAN=1: the daemons, the command and the unit tests
# with ASan and UBSan; the library is always built plain, because it is preloaded into others.

CC      ?= gcc
PREFIX  ?= /usr/local
DESTDIR ?=
V       ?= 0
SAN     ?= 0

DEBUG   ?= 0
ifeq ($(SAN),1)
B       := build-san
DEBUG   := 1
SANF    := -fsanitize=address,undefined -fno-sanitize-recover=undefined
else
B       := $(if $(filter 1,$(DEBUG)),build-debug,build)
SANF    :=
endif
DEBUGF  := $(if $(filter 1,$(DEBUG)),-DRF_DEBUG)

# Everything a fresh Debian 12 needs, in one place.
PACKAGES := gcc make pkg-config libc6-dev linux-libc-dev rpcsvc-proto libtirpc-dev libuv1-dev \
            libunwind-dev libbsd-dev libcriterion-dev util-linux mount e2fsprogs xfsprogs \
            python3-minimal

PC       := pkg-config
WARN     := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS   ?= -O2 -g
BASE     := -std=gnu17 $(WARN) -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Iinclude -I$(B)/gen \
            -fno-strict-aliasing -fstack-protector-strong $(DEBUGF) -MMD -MP
Q        := $(if $(filter 0,$(V)),@,)

# Recursive on purpose: pkg-config runs after `make deps`.
UV_CF     = $(shell $(PC) --cflags libuv libtirpc libbsd-overlay)
UV_LD     = $(shell $(PC) --libs libuv libtirpc libbsd-overlay)
UNWIND_LD = $(shell $(PC) --libs libunwind)
CRIT_CF   = $(shell $(PC) --cflags criterion)
CRIT_LD   = $(shell $(PC) --libs criterion)

SHIM_SRC   := $(wildcard shim/*.c)
WIRE_SRC   := $(wildcard tools/wire/*.c)
STORE_SRC  := $(wildcard tools/store/*.c)
AGENT_SRC  := $(wildcard tools/agent/*.c)
SERVER_SRC := $(wildcard tools/server/*.c)
CMD_SRC    := $(wildcard tools/refault/*.c)
COH_SRC    := $(wildcard tools/mmapcoh/*.c)
BENCH_SRC  := $(wildcard tools/bench/*.c)
UNIT_SRC   := $(wildcard tests/unit/*.c)
PROG_SRC   := $(wildcard tests/prog/*.c)

obj = $(patsubst %.c,$(B)/%.o,$(1))
WIRE_OBJ   := $(call obj,$(WIRE_SRC)) $(B)/gen/protocol_xdr.o

BINS := $(B)/librefault.so $(B)/refault-agent $(B)/refault-server $(B)/refault $(B)/mmapcoh
PROGS := $(patsubst tests/prog/%.c,$(B)/tests/%,$(PROG_SRC))

.PHONY: all demo check check-kernel soak stress holes bench install clean format lint help deps progs tests
.DELETE_ON_ERROR:

all: $(BINS)

help:
	@echo 'make all           build librefault.so, refault-agent, refault-server, refault, mmapcoh'
	@echo 'make demo          install what is missing, build, show one host seeing another'
	@echo 'make check         the same, then all tests (SAN=1: under ASan+UBSan; DEBUG=1: with assertions)'
	@echo 'make soak          four hosts against a model, all killed and revoked (SECONDS=300, SEED=n)'
	@echo 'make stress        random file operations against a model (OPS=n HOSTS=1|2 FS=ext4|xfs|tmpfs SEED=n)'
	@echo 'make holes         punch, truncate, collapse against faults, reads and stores, two hosts (SECONDS=60)'
	@echo 'make check-kernel  the core tests on Debian'"'"'s 6.1 kernel in qemu'
	@echo 'make bench         ratios against the native kernel, build/bench.svg'
	@echo 'make install       to DESTDIR/PREFIX ($(PREFIX))'
	@echo 'make format lint   clang-format in place; clang-tidy'
	@echo 'make clean'

deps:
	@tools/deps $(PACKAGES)

$(B)/gen/protocol.h: include/refault/protocol.x
	@mkdir -p $(@D)
	$(Q)cd $(<D) && rpcgen -N -h protocol.x > $(abspath $@)
$(B)/gen/protocol_xdr.c: include/refault/protocol.x $(B)/gen/protocol.h
	$(Q)cd $(<D) && rpcgen -N -c protocol.x > $(abspath $@)
$(B)/gen/protocol_xdr.o: $(B)/gen/protocol_xdr.c
	$(Q)$(CC) $(BASE) $(CFLAGS) $(SANF) $(UV_CF) -Wno-unused-variable -c -o $@ $<

# The library: plain, hidden by default, TLS that a signal handler may touch.
$(B)/shim/%.o: shim/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE) $(CFLAGS) -fPIC -fvisibility=hidden -ftls-model=initial-exec \
		-fno-stack-protector -U_FORTIFY_SOURCE -c -o $@ $<
$(B)/librefault.so: $(call obj,$(SHIM_SRC)) shim/librefault.map
	$(Q)$(CC) -shared -Wl,-soname,librefault.so -Wl,--version-script=shim/librefault.map \
		-Wl,-z,now -Wl,-z,relro -Wl,-z,defs -o $@ $(filter %.o,$^) -ldl -lpthread $(UNWIND_LD)

# Plain C programs: no sanitizer, no libuv, no libbsd.
$(B)/tools/mmapcoh/%.o $(B)/tools/bench/%.o: SANF :=
$(B)/tools/mmapcoh/%.o $(B)/tools/bench/%.o: UV_CF :=
$(B)/tools/%.o: tools/%.c $(B)/gen/protocol.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE) $(CFLAGS) $(SANF) $(UV_CF) -c -o $@ $<

$(B)/refault-agent: $(call obj,$(AGENT_SRC)) $(WIRE_OBJ)
	$(Q)$(CC) $(SANF) -o $@ $^ $(UV_LD) -lpthread
$(B)/refault-server: $(call obj,$(SERVER_SRC) $(STORE_SRC)) $(WIRE_OBJ)
	$(Q)$(CC) $(SANF) -o $@ $^ $(UV_LD) -lpthread
$(B)/refault: $(call obj,$(CMD_SRC))
	$(Q)$(CC) $(SANF) -o $@ $^ $(UV_LD)
$(B)/mmapcoh: $(call obj,$(COH_SRC))
	$(Q)$(CC) -o $@ $^
$(B)/bench: $(call obj,$(BENCH_SRC))
	$(Q)$(CC) -o $@ $^ -lpthread -lm

# Tests: one Criterion binary, small programs, scripts.
$(B)/tests/unit/%.o: tests/unit/%.c $(B)/gen/protocol.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE) $(CFLAGS) $(SANF) $(UV_CF) $(CRIT_CF) -I. -c -o $@ $<
$(B)/unit: $(call obj,$(UNIT_SRC)) $(filter-out %/main.o,$(call obj,$(AGENT_SRC) $(STORE_SRC) $(SERVER_SRC))) $(WIRE_OBJ)
	$(Q)$(CC) $(SANF) -o $@ $^ $(UV_LD) $(CRIT_LD) -lpthread
$(B)/tests/%: tests/prog/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE) $(CFLAGS) -o $@ $< -lpthread

progs: all $(PROGS)
tests: progs $(B)/unit

demo: deps
	@$(MAKE) --no-print-directory all
	@B=$(B) tests/demo

# The core tests run once more with assertions, unless all do.
check: deps
	@$(MAKE) --no-print-directory tests
	$(if $(DEBUGF),,@$(MAKE) --no-print-directory DEBUG=1 progs)
	@B=$(B) DEBUG_B=$(if $(DEBUGF),,build-debug) tests/run

check-kernel: deps
	@$(MAKE) --no-print-directory tests
	@B=$(B) tests/kernel

soak: SECONDS ?= 300
soak: deps
	@$(MAKE) --no-print-directory tests
	@B=$(B) tests/soak $(SECONDS)

OPS     ?= 1000000
HOSTS   ?= 1
FS      ?= ext4
SEED    ?=
stress: deps
	@$(MAKE) --no-print-directory tests
	@B=$(B) OPS=$(OPS) HOSTS=$(HOSTS) FS=$(FS) SEED=$(SEED) tests/stress

holes: SECONDS ?= 60
holes: deps
	@$(MAKE) --no-print-directory tests
	@B=$(B) tests/holes $(SECONDS)

bench: deps
	@$(MAKE) --no-print-directory all $(B)/bench
	@B=$(B) tools/bench/run

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/refault $(DESTDIR)$(PREFIX)/include/refault \
		$(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(B)/refault $(B)/refault-server $(B)/refault-agent $(B)/mmapcoh $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(B)/librefault.so $(DESTDIR)$(PREFIX)/lib/refault
	install -m 644 include/refault/refault.h $(DESTDIR)$(PREFIX)/include/refault
	install -m 644 docs/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 docs/*.8 $(DESTDIR)$(PREFIX)/share/man/man8

format:
	clang-format -i $$(git ls-files '*.c' '*.h')
lint:
	@tools/deps clang clang-format clang-tidy
	clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')
	$(MAKE) CC=clang B=build-clang tests
	clang-tidy --quiet $$(git ls-files '*.c') -- $(BASE) $(UV_CF) $(CRIT_CF) -I.

clean:
	rm -rf build build-debug build-san build-clang

-include $(shell find $(B) -name '*.d' 2>/dev/null)
