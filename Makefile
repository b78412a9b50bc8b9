# dsv4: no configure step. Everything is built below build/; variants (asan, tsan, ...) have their own
# folder there. `make help` lists the targets.

VERSION  := $(shell sed -n 's/^.define DSV4_VERSION "\(.*\)"/\1/p' src/dsv4.h)
VARIANT  ?= release
B        := build/$(VARIANT)
PREFIX   ?= /usr/local
DESTDIR  ?=
PYTHON   ?= python3

# ---- dependencies: only jansson, hwloc and OpenMP are needed, the others cost just their feature
PKG      := $(or $(shell command -v pkg-config),false)
have      = $(shell $(PKG) --exists $(1) 2>/dev/null && echo 1)
HAVE_PCRE2 := $(call have,libpcre2-8)
HAVE_EDIT  := $(call have,libedit)
LIB_CF   := $(shell $(PKG) --cflags jansson 2>/dev/null)
LIB_LD   := $(or $(shell $(PKG) --libs jansson 2>/dev/null),-ljansson)
ifeq ($(HAVE_PCRE2),1)
LIB_CF   += -DHAVE_PCRE2 $(shell $(PKG) --cflags libpcre2-8)
LIB_LD   += $(shell $(PKG) --libs libpcre2-8)
endif
ifeq ($(HAVE_EDIT),1)
TOOL_CF  := -DHAVE_EDIT $(shell $(PKG) --cflags libedit)
TOOL_LD  := $(shell $(PKG) --libs libedit)
endif

# ---- flags
WARN     := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla
OPT      ?= -O3
HARDEN   ?= -D_FORTIFY_SOURCE=2 -fstack-protector-strong
SAN      ?=
CFLAGS   ?=
ALL_CF    = -std=c17 -D_GNU_SOURCE -I. $(WARN) $(OPT) $(HARDEN) -g -fno-math-errno -fno-trapping-math \
            -ffp-contract=off -fPIC -fvisibility=hidden -fopenmp $(SAN) $(LIB_CF) $(CFLAGS)
ALL_LD    = $(OPT) -fopenmp $(SAN) $(LDFLAGS) -Wl,-z,relro,-z,now
ALL_LIBS  = $(LIB_LD) -lm -lpthread

# ---- sources
LIB_SRC  := $(wildcard src/*/*.c simd/*.c simd/*/*.c quant/*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(B)/%.o)
TOOL_SRC := $(wildcard tools/*.c)
TOOL_OBJ := $(TOOL_SRC:%.c=$(B)/%.o)
# Every tests/check_*.c is a test program of its own, with the whole library behind it.
TEST_SRC := $(wildcard tests/check_*.c)
TESTS    := $(TEST_SRC:tests/%.c=$(B)/tests/%)
TEST_SH  := $(wildcard tests/test_*.sh)

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all lib tests check-only format format-check clean

all: $(B)/dsv4 lib

lib: $(B)/libdsv4.a $(B)/libdsv4.so

# One object whose hidden symbols are local: names inside the library cannot clash with a program's.
$(B)/libdsv4.o: $(LIB_OBJ)
	$(LD) -r -o $@ $^
	objcopy --localize-hidden $@

$(B)/libdsv4.a: $(B)/libdsv4.o
	rm -f $@
	$(AR) rcs $@ $^

$(B)/libdsv4.so: $(LIB_OBJ)
	$(CC) -shared -Wl,-soname,libdsv4.so.0 $(ALL_LD) -o $@ $^ $(ALL_LIBS)

# The tests see the inner names, so they link the plain objects.
$(B)/libinner.a: $(LIB_OBJ)
	rm -f $@
	$(AR) rcs $@ $^

$(B)/dsv4: $(TOOL_OBJ) $(B)/libinner.a
	$(CC) $(ALL_LD) -o $@ $^ $(TOOL_LD) $(ALL_LIBS)

$(B)/tools/%.o: tools/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CF) $(TOOL_CF) -MMD -MP -c -o $@ $<

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CF) -MMD -MP -c -o $@ $<

CHECK_LD  = $(shell $(PKG) --libs check 2>/dev/null || echo -lcheck)

$(B)/tests/%: $(B)/tests/%.o $(B)/libinner.a
	$(CC) $(ALL_LD) -o $@ $^ $(CHECK_LD) $(ALL_LIBS)

tests: $(TESTS)

check-only: all tests
	BUILD=$(B) tests/run.sh $(TESTS) $(TEST_SH)

FORMATTED := $(filter-out src/text/unicode_table.c,$(shell git ls-files '*.c' '*.h' 2>/dev/null))
format:
	clang-format -i $(FORMATTED)

format-check:
	clang-format --dry-run -Werror $(FORMATTED)

clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(TOOL_OBJ:.o=.d) $(TEST_SRC:%.c=$(B)/%.d)
