# dsv4: no configure step. Everything is built below build/; each variant (asan, tsan, ...) has its own
# folder there, build/release is the ordinary one. `make help` lists the targets; docs/building.md tells
# more. Needs GNU make 3.81 or later.
#
# Variables for the command line: CC, OPT, CFLAGS, LDFLAGS, PREFIX, DESTDIR, DEPS=no, TIME, V=1.

VERSION := $(shell sed -n 's/^.define DSV4_VERSION "\(.*\)"/\1/p' src/dsv4.h)
SOVER   := 0
VARIANT ?= release
B       := build/$(VARIANT)
PREFIX  ?= /usr/local
DESTDIR ?=
DEPS    ?= yes
TIME    ?= 60
OS      := $(shell uname -s)
ARCH    := $(shell uname -m)
ARCH_NAME := $(ARCH:arm64=aarch64)

# ---------------------------------------------------------------- tools
PKG          := $(or $(shell command -v pkg-config),$(shell command -v pkgconf),false)
CLANG        ?= clang
CLANG_FORMAT ?= $(or $(shell command -v clang-format-14),clang-format)
OBJCOPY      ?= objcopy
JOBS         ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# A make of our own that is parallel even if the user did not ask for it.
MAKE_ALL      = $(MAKE) --no-print-directory $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))

# ---------------------------------------------------------------- libraries
# jansson and OpenMP are needed. Each of the others costs only its feature: `make info` says which are
# there. The list of tools/install-deps is the same.
have       = $(shell $(PKG) --exists $(1) 2>/dev/null && echo yes)
HAVE_PCRE2    := $(call have,libpcre2-8)
HAVE_UTF8PROC := $(call have,libutf8proc)
HAVE_XXHASH   := $(call have,libxxhash)
HAVE_HWLOC    := $(call have,hwloc)
HAVE_EDIT     := $(call have,libedit)
HAVE_MHD      := $(call have,libmicrohttpd)

LIB_PKGS  := $(if $(HAVE_PCRE2),libpcre2-8) $(if $(HAVE_UTF8PROC),libutf8proc) \
             $(if $(HAVE_XXHASH),libxxhash) $(if $(HAVE_HWLOC),hwloc)
LIB_CF    := $(shell $(PKG) --cflags jansson $(LIB_PKGS) 2>/dev/null) \
             $(if $(HAVE_PCRE2),-DHAVE_PCRE2) $(if $(HAVE_UTF8PROC),-DHAVE_UTF8PROC) \
             $(if $(HAVE_XXHASH),-DHAVE_XXHASH) $(if $(HAVE_HWLOC),-DHAVE_HWLOC)
LIB_LD    := $(or $(shell $(PKG) --libs jansson $(LIB_PKGS) 2>/dev/null),-ljansson)
TOOL_CF   := $(if $(HAVE_EDIT),-DHAVE_EDIT $(shell $(PKG) --cflags libedit))
TOOL_LD   := $(if $(HAVE_EDIT),$(shell $(PKG) --libs libedit))
CHECK_CF  := $(shell $(PKG) --cflags check 2>/dev/null)
CHECK_LD  := $(or $(shell $(PKG) --libs check 2>/dev/null),-lcheck)

# ---------------------------------------------------------------- systems
OMP_CF  := -fopenmp
OMP_LD  := -fopenmp
SO      := libdsv4.so.$(VERSION)
SO_NAME := libdsv4.so.$(SOVER)
SO_LINK := libdsv4.so
SO_LD    = -shared -Wl,-soname,$(SO_NAME) $(if $(SAN),,-Wl,-z,defs)
SAFE_LD := -Wl,-z,relro,-z,now
ifeq ($(OS),Darwin)
# Apple's clang has OpenMP's pragmas but not its runtime: Homebrew's libomp brings it.
OMP     := $(or $(shell brew --prefix libomp 2>/dev/null),/usr/local)
OMP_CF  := -Xpreprocessor -fopenmp -I$(OMP)/include -D_DARWIN_C_SOURCE
OMP_LD  := -L$(OMP)/lib -lomp
SO      := libdsv4.$(VERSION).dylib
SO_NAME := libdsv4.$(SOVER).dylib
SO_LINK := libdsv4.dylib
SO_LD    = -dynamiclib -install_name $(PREFIX)/lib/$(SO_NAME)
SAFE_LD :=
endif

# ---------------------------------------------------------------- flags
# -ffp-contract=off: a fused multiply-add only where the code says so, or results would differ from one
# compiler to the next. No -march=native and no -ffast-math for the same reason, and because one binary
# serves all CPUs. Frame pointers are kept: perf record -g needs nothing else.
WARN   := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla
OPT    ?= -O3
SAN    ?=
CFLAGS ?=
accepts = $(shell $(CC) -Werror $(1) -S -o /dev/null -x c /dev/null 2>/dev/null && echo $(1))
HARDEN ?= -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
          $(call accepts,-fstack-clash-protection) \
          $(call accepts,$(if $(filter x86_64,$(ARCH)),-fcf-protection,-mbranch-protection=standard))
HARDEN := $(HARDEN)

ALL_CF    = -std=c17 -D_GNU_SOURCE -I. $(WARN) $(OPT) $(HARDEN) -g -fno-omit-frame-pointer -fno-math-errno -fno-trapping-math \
            -ffp-contract=off -fPIC -fvisibility=hidden $(OMP_CF) $(SAN) $(LIB_CF) $(CFLAGS) \
            $(LEVEL_CF) $(if $(EMULATE),-DDSV4_EMULATE -Itests -Wno-psabi)
ALL_LD    = $(OPT) $(SAN) $(LDFLAGS) $(SAFE_LD)
ALL_LIBS  = $(LIB_LD) $(OMP_LD) -lm -lpthread

# ---------------------------------------------------------------- sources
# A new file is found by itself. The levels of simd/, a folder each, get compiler flags of their own from
# simd/isa.def; folders of other architectures are left out.
LEVELS   := $(shell sed -n 's/^ISA.\([a-z0-9]*\), $(ARCH_NAME), .*/\1/p' simd/isa.def)
OTHER_LEVELS := $(filter-out $(LEVELS),$(shell sed -n 's/^ISA.\([a-z0-9]*\),.*/\1/p' simd/isa.def))
LIB_SRC  := $(wildcard $(filter-out src/server/%,$(wildcard src/*/*.c)) simd/*.c quant/*.c \
              $(patsubst %,simd/%/*.c,scalar $(LEVELS)))
LIB_OBJ  := $(LIB_SRC:%.c=$(B)/%.o)
# make emulated: those levels are compiled without their instructions, against an emulation.
EMULATE  ?=
level_cf  = $(filter-out $(if $(EMULATE),-mavxvnni -mavx512% -mamx%),$(shell sed -n 's/^ISA.$(1), $(ARCH_NAME), "\([^"]*\)".*/\1/p' simd/isa.def))
$(foreach l,$(LEVELS),$(eval $(B)/simd/$(l)/%.o $(B)/headers/simd/$(l)/%.ok: LEVEL_CF := $(call level_cf,$(l))))

# tools/dsv4.c and each tools/dsv4-NAME.c is a program; the other files there serve all of them.
MAIN_SRC := $(filter-out $(if $(HAVE_MHD),,tools/dsv4-server.c),$(wildcard tools/dsv4.c tools/dsv4-*.c))
PROGRAMS := $(MAIN_SRC:tools/%.c=$(B)/%)
TOOL_SRC := $(filter-out tools/dsv4-%,$(filter-out tools/dsv4.c,$(wildcard tools/*.c)))
TOOL_OBJ := $(TOOL_SRC:%.c=$(B)/%.o)

# dsv4-server stands on an archive of its own, so that nothing else needs the HTTP library. The files of
# its page become arrays of bytes.
PAGE_SRC   := $(wildcard src/server/page/*)
SERVER_SRC := $(if $(HAVE_MHD),$(wildcard src/server/*.c))
SERVER_OBJ := $(SERVER_SRC:%.c=$(B)/%.o) $(if $(HAVE_MHD),$(PAGE_SRC:%=$(B)/%.o))
MHD_LD      = $(shell $(PKG) --libs libmicrohttpd)

# tests/check_NAME.c: a test program (Check). tests/fuzz_NAME.c: a fuzz target, of which the ordinary
# build makes replay_NAME, that runs it over tests/corpus/NAME. tests/test_NAME.sh: a test of programs
# or of the build itself. The other .c files there serve all test programs.
CHECK_SRC := $(filter-out $(if $(HAVE_MHD),,tests/check_answer.c tests/check_sched.c tests/check_server.c tests/check_server_faults.c),$(wildcard tests/check_*.c))
FUZZ_SRC  := $(filter-out tests/fuzz_main.c $(if $(HAVE_MHD),,tests/fuzz_server.c),$(wildcard tests/fuzz_*.c))
TESTS     := $(CHECK_SRC:tests/%.c=$(B)/tests/%)
REPLAYS   := $(FUZZ_SRC:tests/fuzz_%.c=$(B)/tests/replay_%)
FUZZERS   := $(FUZZ_SRC:tests/%.c=$(B)/tests/%)
TEST_SRC  := $(filter-out $(CHECK_SRC) $(FUZZ_SRC) tests/fuzz_main.c,$(wildcard tests/*.c))
TEST_OBJ  := $(TEST_SRC:%.c=$(B)/%.o)
TEST_SH   ?= $(wildcard tests/test_*.sh)

# tests/checkkernels: one program of simd/ and quant/ alone, so that it can be built for any architecture.
KERNEL_SRC  := $(wildcard tests/checkkernels/*.c)
KERNEL_OBJ  := $(KERNEL_SRC:tests/checkkernels/%.c=$(B)/tests/kernels/%.o) \
               $(filter $(B)/simd/% $(B)/quant/%,$(LIB_OBJ))
KERNEL_TEST := $(B)/tests/checkkernels

# The tools and tests link the plain objects: they use names that the library keeps to itself.
INNER := $(if $(TOOL_OBJ),$(B)/libtools.a) $(B)/libinner.a

.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
.PHONY: FORCE all lib programs tests replays fuzzers help info clean format format-check layers hdr-check \
        deps deps-test deps-dev demo check check-only check-long clang asan ubsan tsan valgrind \
        check-arm check-v1 emulated fuzz bench bench-kernels bench-targets nano-tables install uninstall

all: programs lib ; @:

# ---------------------------------------------------------------- compiling and linking
# V=1 shows the commands.
Q   := $(if $(V),,@)
say  = $(if $(V),@:,@printf '  %-5s %s\n' $(1))

# These stamps change only when what they hold does, and everything built with it is then built anew.
export FLAGS_NOW = $(CC) $(ALL_CF) / $(TOOL_CF) / $(CHECK_CF)
export LINK_NOW  = $(CC) $(ALL_LD) $(SO_LD) / $(TOOL_LD) $(CHECK_LD) $(ALL_LIBS) / \
                   $(LIB_OBJ) $(TOOL_OBJ) $(TEST_OBJ)
stamp = printf '%s\n' "$$$(1)" | cmp -s - $@ || printf '%s\n' "$$$(1)" >$@

$(B)/flags: FORCE
	@mkdir -p $(@D)
	@[ -f $@ ] || printf '\043include <jansson.h>\n\043include <omp.h>\n' | \
	    $(CC) $(ALL_CF) -E -o /dev/null - 2>/dev/null || \
	    { echo "dsv4: no $(CC), no jansson or no OpenMP here; 'make deps' installs what is missing" >&2; exit 1; }
	@$(call stamp,FLAGS_NOW)

$(B)/link: FORCE
	@mkdir -p $(@D)
	@$(call stamp,LINK_NOW)

$(B)/tools/%.o: tools/%.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(ALL_CF) $(TOOL_CF) -MMD -MP -c -o $@ $<

$(B)/tests/%.o: tests/%.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(ALL_CF) $(CHECK_CF) $(if $(filter tests/fuzz_%,$<),-Wno-missing-prototypes) -MMD -MP -c -o $@ $<

$(B)/tests/kernels/%.o: tests/checkkernels/%.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(ALL_CF) -MMD -MP -c -o $@ $<

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(ALL_CF) -MMD -MP -c -o $@ $<

$(B)/lib%.a:
	$(call say,AR $@)
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $(filter %.o,$^)

$(B)/libinner.a: $(LIB_OBJ) $(B)/link
$(B)/libtools.a: $(TOOL_OBJ) $(B)/link
$(B)/libtests.a: $(TEST_OBJ) $(B)/link
$(B)/libserver.a: $(SERVER_OBJ) $(B)/link

# page/chat.js -> page_chat_js, page_chat_js_len
$(B)/src/server/page/%.c: src/server/page/% Makefile
	@mkdir -p $(@D)
	@{ n=page_$(subst .,_,$(notdir $<)); \
	    printf '\043include <stddef.h>\nextern const unsigned char %s[];\nextern const size_t %s_len;\n' $$n $$n; \
	    printf 'const unsigned char %s[] = {\n' $$n; \
	    od -An -v -tx1 $< | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'; \
	    printf '};\nconst size_t %s_len = sizeof %s;\n' $$n $$n; } >$@
$(B)/src/server/page/%.o: $(B)/src/server/page/%.c
	$(call say,CC $<)
	$(Q)$(CC) $(ALL_CF) -c -o $@ $<
.PRECIOUS: $(B)/src/server/page/%.c

WITH_SERVER := $(addprefix $(B)/,dsv4-server tests/check_answer tests/check_sched tests/check_server tests/check_server_faults tests/replay_server tests/fuzz_server)
$(WITH_SERVER): TOOL_LD := $(B)/libserver.a $(B)/libinner.a $(TOOL_LD) $(if $(HAVE_MHD),$(MHD_LD))
$(WITH_SERVER): $(B)/libserver.a
$(B)/tests/replay_server $(B)/tests/fuzz_server: $(B)/tests/fake_engine.o $(B)/tests/fake_server.o

$(PROGRAMS): $(B)/%: $(B)/tools/%.o $(INNER) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(ALL_LD) -o $@ $(filter %.o %.a,$^) $(TOOL_LD) $(ALL_LIBS)

programs: $(PROGRAMS) ; @:

# The library for others: one object whose hidden symbols are local, so that no name inside it can clash
# with a program's.
lib: $(B)/libdsv4.a $(B)/$(SO) ; @:

ifeq ($(OS),Darwin)
$(B)/libdsv4.a: $(LIB_OBJ) $(B)/link
else
$(B)/libdsv4.a: $(B)/libdsv4.o
$(B)/libdsv4.o: $(LIB_OBJ) $(B)/link
	$(call say,LD $@)
	$(Q)$(LD) -r -o $@ $(filter %.o,$^)
	$(Q)$(OBJCOPY) --localize-hidden $@
endif

$(B)/$(SO): $(LIB_OBJ) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(SO_LD) $(ALL_LD) -o $@ $(filter %.o,$^) $(ALL_LIBS)

# ---------------------------------------------------------------- what to run first
# DEPS=no only looks, and says what is missing.
DEPS_ARGS := $(if $(filter no,$(DEPS)),--check)

deps:
	@tools/install-deps $(DEPS_ARGS) build
deps-test:
	@tools/install-deps $(DEPS_ARGS) build test
deps-dev:
	@tools/install-deps $(DEPS_ARGS) build test dev

# The second make sees what the first one has installed.
demo: deps
	@$(MAKE_ALL) programs
	@printf '\n$$ %s --greedy "%s"\n' $(B)/dsv4 "$(QUESTION)"
	@$(B)/dsv4 --greedy "$(QUESTION)"

QUESTION ?= What is the capital of Cuba?

# ---------------------------------------------------------------- tests
check: deps-test
	@$(MAKE_ALL) programs lib tests replays
	@$(MAKE) --no-print-directory check-only

# Time limits of Check are for hangs, not for busy machines or sanitizers.
check-only: export CK_TIMEOUT_MULTIPLIER = $(if $(SAN),20,5)
check-only: export CHECK_QUICK = $(if $(SAN),1)
# What sanitizers slow down runs side by side; the rest one by one, because some of it looks at the clock.
check-only: programs tests replays
	@BUILD=$(B) CC='$(CC)' JOBS=$(if $(SAN),$(JOBS),1) tests/run.sh $(KERNEL_TEST) $(TESTS) $(REPLAYS) $(TEST_SH)

# What takes too long for every change: the slow cases, all sanitizers, half an hour of fuzzing a target.
check-long: deps-dev
	@CHECK_LONG=1 $(MAKE_ALL) check
	@CHECK_LONG=1 $(MAKE_ALL) asan
	@$(MAKE_ALL) ubsan
	@CHECK_LONG=1 $(MAKE_ALL) tsan
	@$(MAKE_ALL) valgrind
	@$(MAKE_ALL) fuzz TIME=1800

tests: $(TESTS) $(KERNEL_TEST) ; @:
replays: $(REPLAYS) ; @:

$(TESTS): $(B)/tests/%: $(B)/tests/%.o $(if $(TEST_OBJ),$(B)/libtests.a) $(INNER) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(ALL_LD) -o $@ $(filter %.o %.a,$^) $(CHECK_LD) $(TOOL_LD) $(ALL_LIBS)

$(KERNEL_TEST): $(KERNEL_OBJ) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(ALL_LD) -o $@ $(filter %.o,$^) $(OMP_LD) -lm

$(REPLAYS): $(B)/tests/replay_%: $(B)/tests/fuzz_%.o $(B)/tests/fuzz_main.o $(INNER) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(ALL_LD) -o $@ $(filter %.o %.a,$^) $(TOOL_LD) $(ALL_LIBS)

# ---- the same tests, looked at harder, each in a variant of its own. Tests of the build, of tables in the
# documentation, and those that talk to a server through Python are left out, but for the server's in
# `make check-long`.
BUILD_TESTS := tests/test_build.sh tests/test_page.sh tests/test_presets.sh $(if $(CHECK_LONG),,tests/test_server.sh)
variant = +@$(MAKE_ALL) VARIANT=$(1) TEST_SH='$(filter-out $(BUILD_TESTS),$(TEST_SH))' HARDEN=
STRICT := -fno-sanitize-recover=all -fno-omit-frame-pointer
# More than what the standard calls undefined: values that change in a conversion, bounds of local arrays.
# Programs and faults are asan's business.
MORE_UB := undefined,float-divide-by-zero,implicit-conversion,local-bounds

clang:
	$(call variant,clang) CC=$(CLANG) CFLAGS='$(CFLAGS) -Werror' check-only

asan:
	$(call variant,asan) OPT=-O1 SAN='-fsanitize=address,undefined $(STRICT)' check-only

ubsan:
	$(call variant,ubsan) CC=$(CLANG) OPT=-O1 SAN='-fsanitize=$(MORE_UB) $(STRICT)' TEST_SH= \
	    TESTS='$(filter-out %faults,$(CHECK_SRC:tests/%.c=build/ubsan/tests/%))' check-only

# clang, because its OpenMP tells ThreadSanitizer (through libarcher, which lies beside it) what waits for
# what; gcc's does not. Only the tests that have threads.
THREADED := system placement topology session golden $(if $(HAVE_MHD),sched)
tsan: export TSAN_OPTIONS = ignore_noninstrumented_modules=1 halt_on_error=1
tsan:
	$(call variant,tsan) CC=$(CLANG) OPT=-O1 SAN=-fsanitize=thread REPLAYS= \
	    TEST_SH='$(if $(CHECK_LONG),tests/test_server.sh)' KERNEL_TEST= \
	    TESTS='$(THREADED:%=build/tsan/tests/check_%)' check-only

valgrind: programs
	valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite,indirect \
	    --errors-for-leak-kinds=definite \
	    $(B)/dsv4 --threads 2 -n 8 --greedy "$(QUESTION)"

# ---- the kernels of other CPUs, in an emulator: arm cores without and with the newer instructions, and the
# oldest x86-64.
CROSS ?= aarch64-linux-gnu-
check-arm:
	+@$(MAKE_ALL) VARIANT=arm CC=$(CROSS)gcc ARCH=aarch64 OS=Linux LDFLAGS='$(LDFLAGS) -static' \
	    build/arm/tests/checkkernels
	qemu-aarch64 -cpu cortex-a53 build/arm/tests/checkkernels --quick --best neon
	qemu-aarch64 -cpu cortex-a76 build/arm/tests/checkkernels --quick --best dotprod --level dotprod
	qemu-aarch64 -cpu max build/arm/tests/checkkernels --quick --best i8mm --level i8mm

# The kernels of AVX-VNNI, AVX-512 and AMX on any x86-64: their instructions as functions (tests/emulate; SIMDe).
emulated:
	+@$(MAKE_ALL) VARIANT=emulated EMULATE=yes build/emulated/tests/checkkernels
	build/emulated/tests/checkkernels --quick

check-v1: $(KERNEL_TEST)
	qemu-x86_64 -cpu qemu64 $(KERNEL_TEST) --quick --best scalar

# ---- fuzzing: TIME seconds for each target, FUZZ='fuzz_a fuzz_b' for some of them only.
fuzz:
	+@$(MAKE_ALL) VARIANT=fuzz CC=$(CLANG) OPT=-O1 HARDEN= \
	    SAN='-fsanitize=fuzzer-no-link,address,undefined $(STRICT)' fuzzers
	@TIME=$(TIME) JOBS=$(JOBS) tests/fuzz.sh build/fuzz $(FUZZ)

fuzzers: $(FUZZERS) ; @:

$(FUZZERS): $(B)/tests/%: $(B)/tests/%.o $(INNER) $(B)/link
	$(call say,LD $@)
	$(Q)$(CC) $(ALL_LD) -fsanitize=fuzzer -o $@ $(filter %.o %.a,$^) $(TOOL_LD) $(ALL_LIBS)

# ---------------------------------------------------------------- checks of the source itself
SOURCES   := $(shell find src simd quant tools tests -name '*.[ch]' 2>/dev/null | sort)
FORMATTED := $(filter-out %_table.c,$(SOURCES))
HEADERS   := $(filter-out tests/emulate/% $(patsubst %,simd/%/%,$(OTHER_LEVELS)),$(filter %.h,$(SOURCES)))

layers:
	@tests/layers.sh

format:
	$(CLANG_FORMAT) -i $(FORMATTED)

format-check:
	@$(CLANG_FORMAT) --dry-run -Werror $(FORMATTED)
	@echo "$(words $(FORMATTED)) files are formatted"

# Each header compiles alone, and twice, and the public one as C++ too.
hdr-check: $(HEADERS:%=$(B)/headers/%.ok) $(B)/headers/c++.ok
	@echo "$(words $(HEADERS)) headers compile alone"

$(B)/headers/%.h.ok: %.h $(B)/flags
	@mkdir -p $(@D)
	@printf '\043include "%s"\n\043include "%s"\n' $< $< | \
	    $(CC) $(ALL_CF) $(CHECK_CF) -Werror -Wno-unused-function -fsyntax-only -x c -
	@touch $@

$(B)/headers/c++.ok: src/dsv4.h $(B)/flags
	@mkdir -p $(@D)
	@if command -v $(firstword $(CXX)) >/dev/null; then \
	    echo '#include "src/dsv4.h"' | $(CXX) -Wall -Wextra -Werror -I. -fsyntax-only -x c++ -; fi
	@touch $@

# ---------------------------------------------------------------- measuring
bench: programs
	@BUILD=$(B) tests/bench.sh

bench-kernels: $(KERNEL_TEST)
	@$(KERNEL_TEST) --bench

bench-targets: programs
	@python3 tests/bench_targets.py $(B) $(SLICE)

nano-tables: programs $(B)/tests/check_quality
	@python3 tests/nano_tables.py $(B) $(TABLES)

# ---------------------------------------------------------------- install
BIN   = $(DESTDIR)$(PREFIX)/bin
LIB   = $(DESTDIR)$(PREFIX)/lib
INC   = $(DESTDIR)$(PREFIX)/include
SHARE = $(DESTDIR)$(PREFIX)/share
NANO  = $(SHARE)/dsv4/models/nano
MODEL_FILES = config.json generation_config.json tokenizer.json tokenizer_config.json model.safetensors

NAMES = $(PROGRAMS:$(B)/%=%)
MAN   = $(SHARE)/man/man1
BASH  = $(SHARE)/bash-completion/completions
ZSH   = $(SHARE)/zsh/site-functions
FISH  = $(SHARE)/fish/vendor_completions.d

# What programs tell about themselves. Only dsv4 has commands, and these among them.
man        = $(B)/$(1) $(if $(filter dsv4,$(1)),help --man,--man)
completion = $(B)/$(1) $(if $(filter dsv4,$(1)),completion $(2),--completion=$(2))
define documents

	$(call man,$(1)) >$(MAN)/$(1).1
	$(call completion,$(1),bash) >$(BASH)/$(1)
	$(call completion,$(1),zsh) >$(ZSH)/_$(1)
	$(call completion,$(1),fish) >$(FISH)/$(1).fish
endef

install: all
	install -d $(BIN) $(LIB)/pkgconfig $(INC) $(NANO) $(MAN) $(BASH) $(ZSH) $(FISH)
	install -m 755 $(PROGRAMS) $(BIN)
	install -m 644 src/dsv4.h $(INC)
	install -m 644 $(B)/libdsv4.a $(LIB)
	install -m 755 $(B)/$(SO) $(LIB)
	ln -sf $(SO) $(LIB)/$(SO_NAME)
	ln -sf $(SO_NAME) $(LIB)/$(SO_LINK)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' -e 's|@LIBS@|$(ALL_LIBS)|' src/dsv4.pc.in \
	    >$(LIB)/pkgconfig/dsv4.pc
	$(foreach p,$(NAMES),$(call documents,$(p)))
	install -m 644 $(MODEL_FILES:%=models/nano/%) $(NANO)

# Of all programs, those that this build leaves out as well.
uninstall: NAMES = $(MAIN_SRC:tools/%.c=%)
uninstall:
	rm -f $(NAMES:%=$(BIN)/%) $(NAMES:%=$(MAN)/%.1) $(NAMES:%=$(BASH)/%) $(NAMES:%=$(ZSH)/_%) $(NAMES:%=$(FISH)/%.fish) \
	    $(INC)/dsv4.h $(LIB)/libdsv4.a $(LIB)/$(SO) $(LIB)/$(SO_NAME) $(LIB)/$(SO_LINK) $(LIB)/pkgconfig/dsv4.pc
	rm -rf $(SHARE)/dsv4

# ---------------------------------------------------------------- the rest
clean:
	rm -rf build

info:
	@echo "dsv4 $(VERSION) on $(OS) $(ARCH), built into $(B)"
	@echo "compiler   $(shell $(CC) --version 2>/dev/null | head -n 1)"
	@echo "flags      $(OPT) $(HARDEN) $(SAN) $(CFLAGS)"
	@echo "jansson    $(or $(shell $(PKG) --modversion jansson 2>/dev/null),MISSING: needed for everything)"
	@echo "PCRE2      $(or $(shell $(PKG) --modversion libpcre2-8 2>/dev/null),no: tokenizers with unknown split patterns are refused)"
	@echo "utf8proc   $(or $(shell $(PKG) --modversion libutf8proc 2>/dev/null),no: V4.1 models are refused)"
	@echo "xxHash     $(or $(shell $(PKG) --modversion libxxhash 2>/dev/null),no: sequences cannot be saved)"
	@echo "hwloc      $(or $(shell $(PKG) --modversion hwloc 2>/dev/null),no: dsv4 topology --synthetic is refused)"
	@echo "libedit    $(or $(shell $(PKG) --modversion libedit 2>/dev/null),no: the prompt of dsv4 chat has no history and no editing keys)"
	@echo "libmicrohttpd $(or $(shell $(PKG) --modversion libmicrohttpd 2>/dev/null),no: dsv4-server is not built)"
	@echo "Check      $(or $(shell $(PKG) --modversion check 2>/dev/null),no: make check needs it)"
	@echo "clang      $(or $(shell $(CLANG) --version 2>/dev/null | head -n 1),no: make tsan; ubsan and fuzz need it)"
	@echo "sources    $(words $(LIB_SRC)) files in the library and $(words $(MAIN_SRC) $(TOOL_SRC)) in the programs"

help:
	@echo "make                build the program and the library into $(B)"
	@echo "make demo           install what is missing, build, ask the embedded model a question"
	@echo "make check          install what is missing, build, run all tests"
	@echo "make check-long     the slow tests, every sanitizer, half an hour of fuzzing a target"
	@echo "make install        to PREFIX (/usr/local), below DESTDIR; make uninstall takes it away"
	@echo "make deps           only install what building needs (deps-test, deps-dev: testing, developing)"
	@echo "make asan           the tests with AddressSanitizer and UBSan; also ubsan, tsan, valgrind, clang"
	@echo "make fuzz           each fuzz target for TIME=60 seconds"
	@echo "make check-arm      the kernels for arm, cross-built and run by qemu; check-v1: on the oldest x86-64"
	@echo "make emulated       the kernels of AVX-VNNI, AVX-512 and AMX with their instructions as functions"
	@echo "make bench          speed of the embedded model and of the tokenizer; bench-kernels: of every kernel;"
	@echo "                    bench-targets: slices of V4-Flash, as shares of what the machine can do; SLICE=DIR: and loading"
	@echo "make nano-tables    the tables that were measured on models/nano, for other weights (TABLES='prune bits')"
	@echo "make layers         includes point down only; hdr-check: headers compile alone"
	@echo "make format         clang-format; format-check only looks"
	@echo "make info           compiler, libraries found, flags"
	@echo "make clean          remove build/"
	@echo "DEPS=no only checks what is installed; V=1 shows commands; CC=clang another compiler"

-include $(patsubst %.c,$(B)/%.d,$(LIB_SRC) $(SERVER_SRC) $(MAIN_SRC) $(TOOL_SRC) $(wildcard tests/*.c)) \
         $(KERNEL_SRC:tests/checkkernels/%.c=$(B)/tests/kernels/%.d)
