# What is refused: exit code 3, a message that says why, nothing written.
# shellcheck shell=bash

# refused DISK TEXT COMMAND...: it ends with 3, says TEXT, and the first and last MiB of DISK are as before.
refused() {
    local disk=$1 text=$2
    shift 2
    ends_of "$disk" > ends.before
    exits 3 twinblk "$@"
    says "$text" "refused"
    ends_of "$disk" | cmp - ends.before || fail "something was written to $disk"
}

ends_of() {
    local size
    size=$(blockdev --getsize64 "$1" 2> /dev/null || stat -c %s "$1")
    head -c $MIB "$1"
    tail -c $MIB "$1" 2> /dev/null || dd if="$1" bs=1M skip=$((size / MIB - 1)) status=none
}

property mounted_is_refused 40 'a mounted disk is refused, as first and as second leg, with its mount point'
mounted_is_refused() {
    mkfs.ext4 -q "$B"
    # Read-only, so that the file system itself writes nothing.
    mount -o ro "$B" /mnt
    defer umount /mnt
    refused "$B" "mounted on /mnt" create "$NAME" "$B"
    create "$A"
    refused "$B" "mounted on /mnt" attach "$NAME" "$B"
    refused "$B" "mounted on /mnt" attach "$NAME" "$B" --overwrite
    remove
}

property held_is_refused 40 'a disk held by device mapper or by a loop device is refused, naming the holder'
held_is_refused() {
    local mapped loop
    create "$A"
    mapped=$(dm held "$B")
    defer dm_gone held
    refused "$B" "$mapped" create vm2 "$B"
    refused "$B" "$mapped" attach "$NAME" "$B" --overwrite
    loop=$(losetup -f --show "$LARGE")
    defer losetup -d "$loop"
    refused "$LARGE" "$loop" attach "$NAME" "$LARGE" --overwrite
    remove
}

property swap_is_refused 40 'a disk used as swap is refused'
swap_is_refused() {
    mkswap "$B" > /dev/null
    swapon "$B"
    defer swapoff "$B"
    refused "$B" "swap" create "$NAME" "$B"
    create "$A"
    refused "$B" "swap" attach "$NAME" "$B" --overwrite
    remove
}

property leg_of_another_device_is_refused 40 'a leg of another device, and the device itself, are refused'
leg_of_another_device_is_refused() {
    create "$A"
    tw create vm2 "$B" > /dev/null
    refused "$B" "claimed" attach "$NAME" "$B" --overwrite
    refused "$A" "claimed" create vm3 "$A"
    refused "$LARGE" "twinblk device" create vm3 /dev/ublkb1
    refused "$LARGE" "twinblk device" attach "$NAME" /dev/ublkb1 --overwrite
    refused "$LARGE" "twinblk device" attach "$NAME" "$DEV" --overwrite
    tw remove vm2 > /dev/null
    remove
}

property smaller_is_refused 40 'a disk that is smaller than the device by one block is refused'
smaller_is_refused() {
    create "$ODD_B"
    refused "$ODD_A" "$(blockdev --getsize64 "$ODD_A") bytes" attach "$NAME" "$ODD_A"
    refused "$ODD_A" "$(blockdev --getsize64 "$ODD_B") are needed" attach "$NAME" "$ODD_A" --overwrite
    remove
}

property same_disk_is_refused 40 'the same disk is refused a second time, also by another path, by a loop device, whole or in part'
same_disk_is_refused() {
    create "$A"
    refused "$A" "$A" attach "$NAME" "$A" --overwrite
    ln -s "$A" link
    refused "$A" "$A" attach "$NAME" "$PWD/link" --overwrite
    mknod node b "$((0x$(stat -c %t "$A")))" "$((0x$(stat -c %T "$A")))"
    refused "$A" "$A" attach "$NAME" "$PWD/node" --overwrite
    remove
    partition "$LARGE" 2048 32768 36864 40960
    defer unpartition "$LARGE"
    create "${LARGE}1"
    refused "$LARGE" "bytes in common" attach "$NAME" "$LARGE" --overwrite
    attach "${LARGE}2"
    in_sync
    equal_legs "${LARGE}1" "${LARGE}2"
    remove
    mkfs.ext4 -q "$B"
    mount "$B" /mnt
    truncate -s 8M /mnt/leg
    create /mnt/leg
    ln /mnt/leg /mnt/hard-link
    refused /mnt/leg "refused" attach "$NAME" /mnt/hard-link --overwrite
    local loop
    loop=$(losetup -f --show /mnt/leg)
    refused /mnt/leg "refused" attach "$NAME" "$loop" --overwrite
    losetup -d "$loop"
    remove
    umount /mnt
}

# partition DISK START LENGTH START LENGTH: two partitions, in sectors.
partition() {
    python3 - "$@" << 'PYTHON'
import struct, sys
table = bytearray(512)
for n, (start, length) in enumerate([sys.argv[2:4], sys.argv[4:6]]):
    table[446 + 16 * n:462 + 16 * n] = struct.pack("<8xII", int(start), int(length))
    table[450 + 16 * n] = 0x83
table[510:] = b"\x55\xaa"
open(sys.argv[1], "r+b").write(table)
PYTHON
    blockdev --rereadpt "$1"
}
unpartition() { wipe "$1"; blockdev --rereadpt "$1"; }

property not_blank_is_refused 60 'a disk that is not blank is refused, saying what was found; --overwrite takes it'
not_blank_is_refused() {
    create "$A"
    mkfs.ext4 -q -L keepme "$B"
    refused "$B" "ext4" attach "$NAME" "$B"
    wipe "$B"
    mkfs.btrfs -q -f "$LARGE" 2> /dev/null && { refused "$LARGE" "btrfs" attach "$NAME" "$LARGE"; }
    wipe "$LARGE"
    mkfs.xfs -q -f "$LARGE" 2> /dev/null && { refused "$LARGE" "xfs" attach "$NAME" "$LARGE"; }
    wipe "$LARGE"
    mkswap "$B" > /dev/null
    refused "$B" "swap" attach "$NAME" "$B"
    wipe "$B"
    # No known signature, but something in the first and in the last MiB.
    printf x | dd of="$B" bs=1 seek=700000 conv=notrunc,fsync status=none
    refused "$B" "not blank" attach "$NAME" "$B"
    wipe "$B"
    printf x | dd of="$B" bs=1 seek=$(($(blockdev --getsize64 "$B") - 1)) conv=notrunc,fsync status=none
    refused "$B" "not blank" attach "$NAME" "$B"
    attach "$B" --overwrite
    in_sync
    equal_legs "$A" "$B"
    remove
}

wipe() { blkdiscard -zf "$1" 2> /dev/null; blockdev --flushbufs "$1"; }

property read_only_is_refused 40 'a read-only disk is refused'
read_only_is_refused() {
    blockdev --setro "$B"
    defer blockdev --setrw "$B"
    refused "$B" "read-only" create "$NAME" "$B"
    create "$A"
    refused "$B" "read-only" attach "$NAME" "$B"
    remove
}

property larger_blocks_are_refused 40 'a disk of larger logical blocks than the device has is refused'
larger_blocks_are_refused() {
    create "$A"
    refused "$FOUR_A" "logical block size is 4096" attach "$NAME" "$FOUR_A"
    says "--logical-block-size"
    refused "$FOUR_A" "logical block size" create vm2 "$FOUR_A" --logical-block-size 512
    remove
}

property no_disk_is_refused 40 'what is neither a block device nor a file is refused'
no_disk_is_refused() {
    exits 3 twinblk create "$NAME" /dev/null
    says "neither a block device nor a regular file"
    exits 3 twinblk create "$NAME" /tmp/case
    says "directory"
    create "$A"
    exits 3 twinblk attach "$NAME" /dev/zero
    remove
}

property zoned_is_refused 40 'a zoned disk is refused'
zoned_is_refused() {
    local nullb=/sys/kernel/config/nullb/zoned
    modprobe null_blk nr_devices=0
    mkdir $nullb
    defer rmdir $nullb
    defer sh -c "echo 0 > $nullb/power"
    echo 32 > $nullb/size
    echo 1 > $nullb/memory_backed
    echo 1 > $nullb/zoned
    echo 4 > $nullb/zone_size
    echo 1 > $nullb/power
    exits 3 twinblk create "$NAME" "/dev/$(find_nullb zoned)"
    says "zoned"
}

# Named after its directory on newer kernels, by its number on older ones.
find_nullb() { if [ -b "/dev/$1" ]; then echo "$1"; else echo "nullb$(cat "/sys/kernel/config/nullb/$1/index")"; fi; }

property state_on_the_device_is_refused 60 'a state directory that lies on the device is refused, at create, attach and start'
state_on_the_device_is_refused() {
    mkfs.ext4 -q "$B"
    mount "$B" /mnt
    defer umount -l /mnt
    mkdir /mnt/state
    exits 3 twinblk --state-dir /mnt/state create "$NAME" "$B"
    says "$B" refused
    # A device served, its file system holds the state directory of a second one: its own disks are refused.
    umount /mnt
    create "$A"
    mkfs.ext4 -q "$DEV"
    mount "$DEV" /mnt
    mkdir /mnt/state
    refused "$LARGE" "refused" --state-dir /mnt/state create vm2 "$DEV"
    umount /mnt
    DEFERRED=()
    remove
}
