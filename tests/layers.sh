#!/bin/sh
# Checks the direction of includes: a folder may include its own files, and of other folders only their
# header (x/x.h), and only along the arrows of these tables. usage: tests/layers.sh [TOP]
set -u
cd "${1:-.}" || exit 2

# from: the folders whose header it may include (dsv4 is src/dsv4.h)
arrows='
system:             dsv4
simd:
quant:              simd
load:               dsv4 system quant text
text:               dsv4 system
gpu:                dsv4 system
convert:            dsv4 system load quant simd session
model:              dsv4 system load quant simd gpu
session:            dsv4 system load text model
server:             dsv4 system
tools:              dsv4 system
tools/dsv4-server.c:    server
'

# headers that are interfaces beside x/x.h: the bits of the stored codes; the option table for programs
also=' simd/codes.h src/system/opt.h '

# header of another project: the folders that may know it
outside='
omp.h:              system
hwloc.h:            system
liburing.h:         system
jansson.h:          load convert text session server tools
pcre2.h:            text
utf8proc.h:         text
xxhash.h:           session convert
histedit.h:         tools
editline/readline.h: tools
microhttpd.h:       server
vulkan/vulkan.h:    gpu
immintrin.h:        simd
arm_neon.h:         simd
'

files=$(find src simd quant tools -type f \( -name '*.c' -o -name '*.h' -o -name '*.def' -o -name '*.inc' \) 2>/dev/null | sort)
[ -n "$files" ] || { echo "no sources in $(pwd)"; exit 2; }

# shellcheck disable=SC2086 # our file names have no blanks
grep -n '^[[:space:]]*#[[:space:]]*include' /dev/null $files |
    awk -v arrows="$arrows" -v outside="$outside" -v also="$also" -v files="$files" '
    function table(text, to,    line, n, i, key, word, k, w) {
        n = split(text, line, "\n")
        for (i = 1; i <= n; i++) {
            if (line[i] !~ /:/) continue
            key = line[i]; sub(/:.*/, "", key)
            word = line[i]; sub(/^[^:]*:/, "", word)
            known[key] = 1
            k = split(word, w, " ")
            while (k > 0) to[key, w[k--]] = 1
        }
    }
    function folder(path) {
        if (path == "src/dsv4.h") return "dsv4"
        sub(/^src\//, "", path); sub(/\/.*/, "", path)
        return path
    }
    # "a/b/../c" -> "a/c"
    function tidy(path) {
        while (match(path, /[^\/]+\/\.\.\//)) path = substr(path, 1, RSTART - 1) substr(path, RSTART + RLENGTH)
        gsub(/\.\//, "", path)
        return path
    }
    function bad(why) { print file ":" nr ": " why; wrong++ }
    BEGIN {
        table(arrows, arrow)
        table(outside, may)
        n = split(files, f, "\n")
        for (i = 1; i <= n; i++) exists[f[i]] = 1
    }
    {
        file = $0; sub(/:.*/, "", file)
        nr = $0; sub(/^[^:]*:/, "", nr); sub(/:.*/, "", nr)
        here = folder(file)
        seen++
    }
    /include[[:space:]]*</ {
        name = $0; sub(/^[^<]*</, "", name); sub(/>.*/, "", name)
        if ((name in known) && !((name, here) in may)) bad("<" name "> is not for " here)
        next
    }
    /include[[:space:]]*"/ {
        name = $0; sub(/^[^"]*"/, "", name); sub(/".*/, "", name)
        path = file; sub(/[^\/]*$/, "", path); path = tidy(path name)
        if (!(path in exists)) path = tidy(name)
        if (!(path in exists)) { bad("\"" name "\" is no file of the project"); next }
        there = folder(path)
        if (there == here) next
        base = path; sub(/.*\//, "", base)
        if (!((here, there) in arrow) && !((file, there) in arrow)) bad(here " must not include " there " (" path ")")
        else if (base != there ".h" && !index(also, " " path " ")) bad(path " is private to " there "; its interface is " there ".h")
        next
    }
    { bad("an include that is neither \"...\" nor <...>") }
    END {
        printf "%d includes, %d against the layers\n", seen, wrong
        exit wrong > 0 || seen == 0
    }'
