#!/bin/sh
# Boots a small virtual machine with two NUMA nodes and runs dsv4 in it: does it see the nodes, do the
# weights of each node lie in that node's memory, are threads bound to its CPUs? Software emulation is
# enough (a few minutes), so no special rights are needed. Not part of make check.
#
# usage: tests/numa-guest.sh [BUILD]      BUILD is the folder of the build, build/release
#   KERNEL=FILE  a Linux kernel with CONFIG_NUMA and serial console; else Debian's cloud kernel is fetched
#                (apt-get download; nothing is installed)
#   TIME=900     seconds until it is given up
# Needs qemu-system-x86_64 (qemu-system-x86), a static busybox (busybox-static), cpio.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/release}
time=${TIME:-900}
work=$build/numa-guest
mkdir -p "$work"

for tool in qemu-system-x86_64 busybox cpio; do
    command -v $tool >/dev/null || {
        echo "no $tool here (Debian: apt-get install qemu-system-x86 busybox-static cpio)" >&2
        exit 2
    }
done
[ -x "$build/dsv4" ] || { echo "no $build/dsv4: run make first" >&2; exit 2; }

# ---------------------------------------------------------------- kernel
if [ -z "${KERNEL:-}" ]; then
    KERNEL=$(find "$work/kernel" -name 'vmlinuz-*' 2>/dev/null | head -n 1)
    if [ -z "$KERNEL" ]; then
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
        (cd "$work" && apt-get -q download "$package")
        dpkg-deb -x "$work/$package"_*.deb "$work/kernel"
        KERNEL=$(find "$work/kernel" -name 'vmlinuz-*' | head -n 1)
    fi
fi

# ---------------------------------------------------------------- what runs in the guest
root=$work/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/models/nano" "$root/build/guest" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for name in sh mount cat sleep awk poweroff grep kill; do ln -s busybox "$root/bin/$name"; done
cp "$build/dsv4" "$root/build/guest/dsv4"
cp models/nano/*.json models/nano/*.safetensors "$root/models/nano/"
ldd "$build/dsv4" | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")"
    cp -L "$lib" "$root$lib"
done

cat >"$root/init" <<'GUEST'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
dsv4=/build/guest/dsv4
passed=0 failed=0

check() { # what, condition...
    what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $what"; fi
}

# Pages of mappings with the policy "prefer node $1": those on that node, those elsewhere.
pages_of() {
    awk -v node="$1" '$2 == "prefer:" node || $2 == "prefer=static:" node {
        for (i = 3; i <= NF; i++) if ($i ~ /^N[0-9]+=/) {
            split(substr($i, 2), p, "=")
            if (p[1] == node) here += p[2]; else other += p[2]
        }
    }
    END { printf "%d %d\n", here, other }' /tmp/numa_maps
}

# Lists of CPUs that the threads of the process are bound to while it computes.
bound() { cat /proc/$pid/task/*/status 2>/dev/null | awk '/^Cpus_allowed_list/ { print $2 }'; }

$dsv4 topology >/tmp/topology
cat /tmp/topology
check "four threads" grep -Eq '^threads +4$' /tmp/topology
check "node 1 has CPUs 2-3" grep -Eq '^ +1 +2-3 +2 ' /tmp/topology
check "--numa 1 takes two threads" sh -c "$dsv4 topology --numa 1 | grep -Eq '^threads +2$'"

$dsv4 run --quiet --ignore-eos --greedy -n 400 "Once upon a time" >/tmp/text &
pid=$!
cpus='' looks=0
: >/tmp/numa_maps
while [ $looks -lt 10 ] && [ -d /proc/$pid ]; do
    sleep 2
    cat /proc/$pid/numa_maps >/tmp/now
    grep -q prefer /tmp/now || continue
    cat /tmp/now >/tmp/numa_maps
    looks=$((looks + 1))
    for c in $(bound); do case " $cpus " in *" $c "*) ;; *) cpus="$cpus $c" ;; esac; done
done
kill -9 $pid
for node in 0 1; do
    set -- $(pages_of $node)
    echo "node $node: ${1:-0} pages of its weights here, ${2:-0} elsewhere"
    check "weights of node $node are there" [ "${1:-0}" -gt 100 ]
    check "none of them elsewhere" [ "${2:-1}" -eq 0 ]
done
echo "threads were seen bound to:$cpus"
for c in 0 1 2 3; do
    case " $cpus " in *" $c "*) found=0 ;; *) found=1 ;; esac
    check "a thread bound to CPU $c" [ $found -eq 0 ]
done

# Bits do not depend on nodes.
for mode in auto off 0; do
    $dsv4 run --quiet --greedy -n 6 --numa $mode "The capital of Cuba" >/tmp/text.$mode
done
check "the text is there" [ -s /tmp/text.auto ]
check "the same text with --numa off" [ "$(cat /tmp/text.auto)" = "$(cat /tmp/text.off)" ]
check "the same text with --numa 0" [ "$(cat /tmp/text.auto)" = "$(cat /tmp/text.0)" ]
echo "$passed passed, $failed failed"
poweroff -f
GUEST
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"

# ---------------------------------------------------------------- boot
timeout "$time" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 1536 \
    -smp 4,sockets=2,cores=2,threads=1 \
    -object memory-backend-ram,id=m0,size=768M -object memory-backend-ram,id=m1,size=768M \
    -numa node,nodeid=0,cpus=0-1,memdev=m0 -numa node,nodeid=1,cpus=2-3,memdev=m1 \
    -kernel "$KERNEL" -initrd "$work/initramfs.gz" -append "console=ttyS0 quiet panic=-1" \
    -nographic -no-reboot -net none </dev/null >"$work/log" 2>&1 || true
tr -d '\r' <"$work/log" | sed -n '/^source /,$p'
line=$(tr -d '\r' <"$work/log" | grep -E '^[0-9]+ passed, [0-9]+ failed$' | tail -n 1)
case $line in
*" 0 failed") ;;
"") echo "the guest did not finish; see $work/log" >&2 && exit 1 ;;
*) exit 1 ;;
esac
