# Building the lab: host packages, QEMU, kernels, initrds, root image. Sourced, not run.
#
# The lab runs the QEMU of its own root, not the host's: with QEMU 7.2 (Debian 12) one emulated boot in ten oopses (in
# wake_up_q, from a lost update between two emulated processors).
#
# Everything lands in one directory of the cache, named by a hash of the recipe (this file, the initrd's init, the mirror).
# It is made under a temporary name and renamed when complete, under a lock: a directory with the final name is whole.
# The guest's own init is not part of it: it travels with each run, so that changing it costs no build.
# shellcheck shell=bash

HOST_PACKAGES=(mmdebstrap e2fsprogs busybox-static cpio kmod zstd xz-utils python3)

ROOT_PACKAGES=(
    b3sum btrfs-progs busybox-static dmsetup e2fsprogs fio iproute2 jq kmod mdadm nbd-client procps psmisc python3-minimal
    qemu-system-x86 qemu-utils socat sqlite3 strace stress-ng util-linux xfsprogs
)

# Modules without which the lab is of no use: the build fails if a kernel lacks one.
NEEDED_MODULES=(
    ublk_drv null_blk loop nbd scsi_debug brd virtio_blk xfs btrfs dm_mod dm_delay dm_flakey dm_mirror dm_log dm_log_writes
    dm_raid dm_snapshot raid1 vdpa vduse virtio_vdpa vhost_vdpa
)

DEBIAN_MIRROR=${TWINBLK_DEBIAN_MIRROR:-http://deb.debian.org/debian}
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

recipe_hash() {
    {
        cat "$LAB_DIR/lab.d/build.sh" "$LAB_DIR/guest/initrd-init"
        echo "$DEBIAN_MIRROR ${LAB_KERNELS[*]}"
    } | sha256sum | cut -c1-16
}

# Sets LAB_BUILT and builds the lab if it is not there.
ensure_built() {
    LAB_BUILT=$LAB_CACHE/$(recipe_hash)
    [ -d "$LAB_BUILT" ] || build_lab
}

build_lab() {
    LAB_BUILT=$LAB_CACHE/$(recipe_hash)
    mkdir -p "$LAB_CACHE"
    exec {LAB_LOCK}> "$LAB_CACHE/lock"
    flock -n "$LAB_LOCK" || { say "waiting for another build"; flock "$LAB_LOCK"; }
    if [ -d "$LAB_BUILT" ]; then
        say "already built: $LAB_BUILT"
    else
        build_under_lock
    fi
    exec {LAB_LOCK}>&-
}

build_under_lock() {
    local started=$SECONDS partial=$LAB_CACHE/partial kernel
    [ "$(id -u)" = 0 ] || die "building the lab makes a Debian root and needs root; running it later does not"
    install_host_packages
    # Nobody else can be in it: this process holds the lock.
    rm -rf --one-file-system -- "$partial"
    mkdir -p "$partial/debs"
    make_root "$partial"
    store_qemu "$partial/root" "$partial/qemu"
    for kernel in "${LAB_KERNELS[@]}"; do
        unpack_kernel "$partial" "$kernel"
    done
    # For a guest in the guest: see README.md.
    mkdir -p "$partial/root/lab/guest"
    cp -- "$partial/vmlinux-${LAB_KERNELS[0]}" "$partial/root/lab/guest/vmlinux"
    cp -- "$partial/initrd-${LAB_KERNELS[0]}" "$partial/root/lab/guest/initrd"
    say "making the root image"
    make_image "$partial/root" "$partial/root.img"
    rm -rf --one-file-system -- "$partial/root" "$partial/debs"
    mv -- "$partial" "$LAB_BUILT"
    say "built $LAB_BUILT ($(du -sh "$LAB_BUILT" | cut -f1)) in $((SECONDS - started)) s"
}

install_host_packages() {
    local package missing=()
    for package in "${HOST_PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    {
        apt-get update || say "apt-get update failed, going on with the lists that are there"
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
    } > "$LAB_CACHE/apt.log" 2>&1 || { tail -n 20 "$LAB_CACHE/apt.log" >&2; die "could not install ${missing[*]}"; }
}

# The root, and beside it the kernels' packages, fetched by the same apt so that they are verified. The host's own package
# sources are neither used nor changed.
make_root() {
    local partial=$1 pattern patterns=()
    for pattern in "${LAB_KERNELS[@]}"; do
        patterns+=("^linux-(image|binary|modules|base)-${pattern//./\\.}\\.[0-9]+\\+deb13-cloud-amd64\$")
    done
    say "making a Debian root with ${#ROOT_PACKAGES[@]} packages and fetching the kernels ${LAB_KERNELS[*]}"
    write_fetch_hook "$partial/fetch" "$partial/debs" "${patterns[@]}"
    # In a mount namespace of its own, so that nothing stays mounted if it is killed.
    unshare --mount mmdebstrap --mode=root --variant=minbase --keyring="$DEBIAN_KEYRING" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --include="$(IFS=,; echo "${ROOT_PACKAGES[*]}")" \
        --customize-hook="$partial/fetch" \
        trixie "$partial/root" \
        "deb $DEBIAN_MIRROR trixie main" "deb $DEBIAN_MIRROR trixie-backports main" \
        > "$LAB_CACHE/mmdebstrap.log" 2>&1 || { tail -n 30 "$LAB_CACHE/mmdebstrap.log" >&2; die "mmdebstrap failed"; }
    rm -- "$partial/fetch"
    mkdir -p "$partial/root/lab/in"
}

# Per pattern (one per kernel): the newest version that the archive has, all packages of it.
write_fetch_hook() {
    local hook=$1 debs=$2
    shift 2
    {
        echo '#!/bin/bash'
        echo 'set -euo pipefail'
        printf 'cd %q\n' "$debs"
        printf 'patterns=('
        printf ' %q' "$@"
        echo ' )'
        cat << 'HOOK'
# The package lists of the new root, not of the host.
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
for pattern in "${patterns[@]}"; do
    names=$(apt-cache pkgnames | grep -E "$pattern") || { echo "no package like $pattern" >&2; exit 1; }
    version=$(sed -E 's/^linux-[a-z]+-//' <<< "$names" | sort -uV | tail -n 1)
    mapfile -t wanted < <(grep -E -- "-${version//+/\\+}\$" <<< "$names" | sort)
    apt-get download "${wanted[@]}"
done
HOOK
    } > "$hook"
    chmod +x "$hook"
}

# Takes QEMU out of the root, with its loader, libraries and firmware, and a script that starts it on any host.
store_qemu() {
    local root=$1 out=$2 library
    mkdir -p "$out/lib" "$out/share"
    cp -- "$root/usr/bin/qemu-system-x86_64" "$out/qemu"
    while read -r library; do
        cp -L -- "$root$library" "$out/lib/"
    done < <(chroot "$root" ldd /usr/bin/qemu-system-x86_64 | grep -oE '/[^ ]+\.so[^ ]*')
    cp -L -- "$root/usr/share/seabios/bios-256k.bin" "$root"/usr/share/qemu/{kvmvapic,linuxboot_dma,pvh}.bin "$out/share/"
    cat > "$out/start" << 'START'
#!/bin/sh
here=${0%/*}
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/qemu" -L "$here/share" "$@"
START
    chmod 755 "$out/start"
}

unpack_kernel() {
    local partial=$1 kernel=$2 deb tree=$1/tree release
    rm -rf -- "$tree"
    mkdir -p "$tree"
    for deb in "$partial/debs"/linux-*-"$kernel".*.deb; do
        dpkg-deb -x "$deb" "$tree"
    done
    release=$(basename "$tree"/usr/lib/modules/*)
    [ -d "$tree/usr/lib/modules/$release/kernel" ] || die "the packages of kernel $kernel hold no modules"
    # Unpacked modules load several times faster in an emulated machine.
    find "$tree/usr/lib/modules/$release" -name '*.ko.xz' -print0 | xargs -0 -r -P "$(nproc)" -n 64 xz -d
    mkdir -p "$partial/root/usr/lib/modules"
    cp -a "$tree/usr/lib/modules/$release" "$partial/root/usr/lib/modules/"
    depmod -b "$partial/root" "$release"
    check_modules "$partial/root" "$release"
    store_kernel "$(find "$tree" -name 'vmlinuz*' | head -n 1)" "$partial/vmlinux-$kernel"
    make_initrd "$partial/root/usr/lib/modules/$release" "$partial/initrd-$kernel"
    echo "$release" > "$partial/release-$kernel"
    rm -rf -- "$tree"
    say "kernel $kernel is $release"
}

check_modules() {
    local root=$1 release=$2 module missing=()
    for module in "${NEEDED_MODULES[@]}"; do
        [ -n "$(find "$root/usr/lib/modules/$release" -name "${module//_/[-_]}.ko")" ] || missing+=("$module")
    done
    [ ${#missing[@]} -eq 0 ] || die "kernel $release lacks the modules ${missing[*]}"
}

# The kernel without its compression: QEMU starts it directly, which saves the emulated decompression.
store_kernel() {
    local bzimage=$1 out=$2 offset
    while read -r offset; do
        # zstd complains about what follows the frame; the ELF header tells whether this was the kernel.
        tail -c "+$((offset + 1))" "$bzimage" | zstd -dcq > "$out" 2> /dev/null || true
        [ "$(head -c 4 "$out" | od -An -tx1 | tr -d ' ')" != 7f454c46 ] || return 0
    done < <(LC_ALL=C grep -obUaP '\x28\xb5\x2f\xfd' "$bzimage" | cut -d: -f1)
    cp -- "$bzimage" "$out"
}

make_initrd() {
    local modules=$1 out=$2 tree
    tree=$(mktemp -d "$LAB_CACHE/initrd.XXXXXX")
    mkdir -p "$tree"/{bin,dev,proc,sys,root}
    cp /bin/busybox "$tree/bin/busybox"
    cp "$LAB_DIR/guest/initrd-init" "$tree/init"
    chmod 755 "$tree/init"
    find "$modules" -name virtio_blk.ko -exec cp -t "$tree" {} +
    (cd "$tree" && find . | cpio -o -H newc --quiet) > "$out"
    rm -rf -- "$tree"
}

# A file system image of a directory, without journal: it is never written to.
make_image() {
    local directory=$1 image=$2 kib inodes
    kib=$(du -sk --apparent-size "$directory" | cut -f1)
    inodes=$(find "$directory" | wc -l)
    rm -f -- "$image"
    truncate -s "$((kib * 5 / 4 + inodes * 4 + 65536))K" "$image"
    mke2fs -q -F -t ext4 -O ^has_journal,^resize_inode -m 0 -N "$((inodes + 1024))" \
        -d "$directory" "$image" > /dev/null
}
