#!/bin/sh
# Tests of the build: installing and uninstalling, using the installed library, the layer check itself.
# Runs from the top of the tree; BUILD is the folder of the build under test.
set -u
BUILD=${BUILD:-build/release}
CC=${CC:-cc}
unset MAKEFLAGS MAKELEVEL MFLAGS
MAKE=${MAKE:-make}
passed=0 failed=0 skipped=0
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

ok() { # name, command...
    name=$1
    shift
    if "$@" >"$dir/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name: $*"
        cat "$dir/log"
    fi
}
not() { ! "$@"; }
skip() {
    skipped=$((skipped + 1))
    echo "SKIP $1"
}

# ---- install
root=$dir/root
at=$root/opt/dsv4
ok "install" "$MAKE" -s VARIANT="${BUILD#build/}" DESTDIR="$root" PREFIX=/opt/dsv4 install
for f in bin/dsv4 include/dsv4.h lib/libdsv4.a lib/pkgconfig/dsv4.pc share/dsv4/models/nano/model.safetensors; do
    ok "installed $f" test -s "$at/$f"
done
for p in "$at"/bin/*; do
    p=${p##*/}
    for f in man/man1/$p.1 bash-completion/completions/$p zsh/site-functions/_$p fish/vendor_completions.d/$p.fish; do
        ok "installed share/$f" test -s "$at/share/$f"
    done
done
ok "the installed program runs" "$at/bin/dsv4" version
ok "the installed program finds the embedded model" sh -c "cd / && '$at/bin/dsv4' -n 4 Hello </dev/null"
# ---- the library, as others use it
cat >"$dir/use.c" <<'END'
#include <dsv4.h>
#include <stdio.h>
int main(void)
{
    dsv4_err err;
    char *json;
    if (dsv4_about(&json, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    puts(json);
    dsv4_free(json);
    return 0;
}
END
if command -v pkg-config >/dev/null; then
    export PKG_CONFIG_PATH="$at/lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$root"
    # shellcheck disable=SC2046,SC2086 # flags are words
    ok "link against the shared library" $CC -o "$dir/shared" "$dir/use.c" $(pkg-config --cflags --libs dsv4)
    ok "run with the shared library" env LD_LIBRARY_PATH="$at/lib" "$dir/shared"
    # shellcheck disable=SC2046,SC2086
    ok "link against the static library" $CC -o "$dir/static" "$dir/use.c" $(pkg-config --cflags dsv4) \
        "$at/lib/libdsv4.a" $(pkg-config --static --libs-only-l dsv4 | sed 's/-ldsv4//') -fopenmp
    ok "run with the static library" "$dir/static"
else
    skip "using the installed library: no pkg-config"
fi
if [ "$(uname -s)" = Linux ]; then
    ok "the shared library shows only dsv4_ names" \
        sh -c "! nm -D --defined-only '$at/lib/libdsv4.so' | awk '{print \$3}' | grep -v '^dsv4_'"
    ok "the static library shows only dsv4_ names" \
        sh -c "! nm -g --defined-only '$at/lib/libdsv4.a' | awk 'NF == 3 {print \$3}' | grep -v '^dsv4_'"
fi

ok "uninstall" "$MAKE" -s VARIANT="${BUILD#build/}" DESTDIR="$root" PREFIX=/opt/dsv4 uninstall
ok "nothing is left" sh -c "! find '$root' -type f -o -type l | grep ."

# ---- a change of flags builds anew, no change builds nothing
object=build/test-build/src/system/err.o
builds() { "$MAKE" VARIANT=test-build CC="$CC" "$@" "$object" | grep -q CC; }
rm -rf build/test-build
ok "an object is built" builds
ok "it is not built twice" not builds
ok "other flags build it anew" builds CFLAGS=-DOTHER
ok "these are not built twice either" not builds CFLAGS=-DOTHER
rm -rf build/test-build

# ---- what is missing is said, and nothing is installed by looking
mkdir "$dir/bin"
for c in sh sed id uname ls; do ln -s "$(command -v $c)" "$dir/bin/$c"; done
printf '#!/bin/sh\necho "$@" >>%s/installed\n' "$dir" >"$dir/bin/dnf"
chmod +x "$dir/bin/dnf"
ok "everything needed is here" tools/install-deps --check build
ok "an empty machine lacks something" not env PATH="$dir/bin" tools/install-deps --check build
ok "it says what to type" sh -c "PATH='$dir/bin' tools/install-deps --check build 2>&1 | $(command -v grep) -q 'dnf install .*jansson-devel'"
ok "looking installs nothing" test ! -e "$dir/installed"
ok "installing calls the package manager" not env PATH="$dir/bin" CC=cc tools/install-deps build
ok "with what is missing" grep -q "install -y .*jansson-devel" "$dir/installed"

# ---- the layers hold, and the check finds what is against them
ok "layers" tests/layers.sh
wrong() { # file, line
    rm -rf "$dir/tree"
    mkdir -p "$dir/tree/src/system" "$dir/tree/src/model" "$dir/tree/simd/scalar" "$dir/tree/tools"
    for h in src/dsv4.h src/system/system.h src/system/inner.h src/model/model.h simd/simd.h; do
        : >"$dir/tree/$h"
    done
    echo '#include "simd/simd.h"' >"$dir/tree/src/model/good.c"
    ok "a good tree" tests/layers.sh "$dir/tree"
    echo "$2" >"$dir/tree/$1"
    ok "found: $1 with $2" not tests/layers.sh "$dir/tree"
}
wrong simd/scalar/a.c '#include "../../src/system/system.h"'
wrong src/system/a.c '# include "../model/model.h"'
wrong src/model/a.c '#include "src/system/inner.h"'
wrong src/model/a.c '#include "absent.h"'
wrong src/model/a.c '#include <omp.h>'
wrong tools/a.c '#include "src/model/model.h"'
wrong tools/a.c '#include NAME'

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
