# Discard and write-zeroes, by block device and file system, on legs that can punch holes and legs that cannot.
# shellcheck shell=bash

# nullb NAME DISCARD: a memory-backed disk of 32 MiB with or without discard; prints its node.
nullb() {
    local at=/sys/kernel/config/nullb/$1 node
    modprobe null_blk nr_devices=0
    mkdir "$at"
    echo 32 > "$at/size"
    echo 1 > "$at/memory_backed"
    echo "$2" > "$at/discard"
    echo 1 > "$at/power"
    node=/dev/$1
    [ -b "$node" ] || node=/dev/nullb$(< "$at/index")
    echo "$node"
}
nullb_gone() { echo 0 > "/sys/kernel/config/nullb/$1/power"; rmdir "/sys/kernel/config/nullb/$1"; }

# zero_at MIB COUNT: that range of the device is zero.
zero_at() { cmp -n $(($2 * MIB)) <(dd if="$DEV" bs=1M skip="$1" count="$2" iflag=direct status=none) /dev/zero || fail "not zero at $1 MiB"; }

# Everything that can be discarded and zeroed, whole and in part, beside writes; `punched` says that a discard zeroes.
shapes() {
    local punched=$1
    fill "$DEV" 16
    blkdiscard -f -o $MIB -l $((4 * MIB)) "$DEV"
    [ "$punched" = no ] || zero_at 1 4
    blkdiscard -f -z -o $((6 * MIB)) -l $((3 * MIB)) "$DEV"
    zero_at 6 3
    # No multiple of a grain, and across its border.
    blkdiscard -f -z -o $((10 * MIB + 12288)) -l $((MIB + 8192)) "$DEV"
    blkdiscard -f -o $((12 * MIB + 4096)) -l 4096 "$DEV"
    # With and without unmap.
    fallocate -z -o $((13 * MIB)) -l $MIB "$DEV"
    zero_at 13 1
    fallocate -p -o $((14 * MIB)) -l $MIB "$DEV"
    zero_at 14 1
    sync_device
    settled
    holds '.io.discards > 0 and .io.errors == 0'
}

under() {
    local a=$1 b=$2 punched=$3
    create "$a"
    fill "$DEV" 20
    blkdiscard -f -o $((17 * MIB)) -l $MIB "$DEV"
    blkdiscard -f -z -o $((18 * MIB)) -l $MIB "$DEV"
    zero_at 18 1
    attach "$b" --overwrite
    in_sync
    shapes "$punched"
    equal_legs "$a" "$b"
    tw switch "$NAME" > /dev/null
    shapes "$punched"
    equal_legs "$a" "$b"
    blkdiscard -f "$DEV"
    settled
    equal_legs "$a" "$b"
    blkdiscard -f -z "$DEV"
    zero_at 0 $(($(field .size_bytes) / MIB))
    settled
    equal_legs "$a" "$b"
    remove
}

property disks_that_punch 60 'discard and zeroing on two disks that can discard'
disks_that_punch() { under "$A" "$B" maybe; }

property disks_with_and_without 60 'discard and zeroing on a disk that can discard and one that cannot, and the other way round'
disks_with_and_without() {
    local with without
    with=$(nullb with 1)
    defer nullb_gone with
    without=$(nullb without 0)
    defer nullb_gone without
    under "$with" "$without" no
    under "$without" "$with" no
}

property files_punch 60 'discard and zeroing on files: holes on both'
files_punch() {
    mkdir legs
    mkfs.ext4 -q "$LARGE"
    mount "$LARGE" legs
    defer umount /tmp/case/legs
    mkdir other
    mkfs.ext4 -q "$B"
    mount "$B" other
    defer umount /tmp/case/other
    truncate -s 20M legs/leg
    truncate -s 20M other/leg
    under "$PWD/legs/leg" "$PWD/other/leg" yes
}

property scsi_disk 60 'discard and zeroing on a SCSI disk that unmaps and a plain one'
scsi_disk() {
    modprobe sd_mod
    modprobe scsi_debug dev_size_mb=32 lbpu=1 lbpws=1 sector_size=512 delay=0
    defer rmmod scsi_debug
    local disk='' end=$((SECONDS + PATIENCE))
    # The disk is looked at in the background.
    until [ -b "$disk" ]; do
        [ $SECONDS -lt $end ] || fail "no SCSI disk"
        sleep 0.1
        disk=/dev/$(basename /sys/class/scsi_disk/*/device/block/*)
    done
    under "$A" "$disk" maybe
}

property file_system_with_discard 90 'ext4 mounted with discard, and fstrim, while attach and switch go on'
file_system_with_discard() {
    create "$A"
    mkfs.ext4 -q "$DEV"
    mount -o discard "$DEV" /mnt
    defer umount /mnt
    churn 1
    attach "$B"
    churn 2
    in_sync
    churn 3
    fstrim /mnt
    tw switch "$NAME" > /dev/null
    churn 4
    fstrim /mnt
    (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum) > before
    umount /mnt
    DEFERRED=()
    settled
    holds '.io.discards > 0 and .io.errors == 0'
    equal_legs "$A" "$B"
    e2fsck -fn "$DEV" > fsck
    mount -o ro "$DEV" /mnt
    (cd /mnt && sha256sum --quiet -c /tmp/case/before)
    umount /mnt
    remove
}

# Files that come, go, and stay.
churn() {
    files "/mnt/$1"
    files "/mnt/gone-$1"
    sync -f /mnt
    rm -r "/mnt/gone-$1"
    sync -f /mnt
}
