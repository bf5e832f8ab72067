# Logical block sizes and sizes.
# shellcheck shell=bash

# Writes and verifies at both ends and everywhere, through a switch; then the legs are equal.
exercise() {
    local size block end
    size=$(field .size_bytes)
    block=$(blockdev --getss "$DEV")
    end=$((size - 64 * block))
    fio --name=all --filename="$DEV" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange="$block-65536" \
        --blockalign="$block" --size=8M --io_size=4M --verify=crc32c --verify_fatal=1 --randseed=7 --serialize_overlap=1 --output=fio.txt
    head -c $((64 * block)) /dev/urandom > tail
    dd if=tail of="$DEV" bs="$block" seek=$((end / block)) oflag=direct status=none
    tw switch "$NAME" > /dev/null
    dd if="$DEV" bs="$block" skip=$((end / block)) iflag=direct status=none | cmp - tail
    dd if=tail of="$DEV" bs="$block" count=3 seek=5 oflag=direct status=none
    settled
    equal_legs "$1" "$2" "$size"
    exits 0 twinblk verify "$NAME"
}

property four_kib_with_four_kib 40 '4 KiB blocks on both legs'
four_kib_with_four_kib() {
    mirror "$FOUR_A" "$FOUR_B"
    equals "$(blockdev --getss "$DEV")" 4096
    exercise "$FOUR_A" "$FOUR_B"
    remove
}

property four_kib_with_512 40 'a secondary of smaller blocks is fine, and may become primary'
four_kib_with_512() {
    mirror "$FOUR_A" "$B"
    equals "$(blockdev --getss "$DEV")" 4096
    exercise "$FOUR_A" "$B"
    remove
}

property created_for_larger_blocks 40 'a device created with 4 KiB blocks on a disk of 512 takes a secondary of 4 KiB'
created_for_larger_blocks() {
    mirror "$A" "$FOUR_B" --logical-block-size 4096
    equals "$(blockdev --getss "$DEV")" 4096
    holds '.logical_block_size == 4096'
    exercise "$A" "$FOUR_B"
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    equals "$(blockdev --getss "$DEV")" 4096
    remove
}

property odd_sizes 40 'a size that is no multiple of grain or extent, and a secondary one block larger'
odd_sizes() {
    mirror "$ODD_A" "$ODD_B"
    equals "$(blockdev --getsize64 "$DEV")" "$(blockdev --getsize64 "$ODD_A")"
    exercise "$ODD_A" "$ODD_B"
    remove
}

property larger_secondary 40 'what lies on a larger secondary behind the end of the device stays untouched'
larger_secondary() {
    local size
    size=$(blockdev --getsize64 "$A")
    fill "$LARGE" 8 $((size / MIB))
    tail -c +$((size + 1)) "$LARGE" | sha256sum > beyond
    create "$A"
    attach "$LARGE" --overwrite
    in_sync
    exercise "$A" "$LARGE"
    # Also when it is the primary, and everything is discarded.
    blkdiscard -f "$DEV"
    settled
    remove
    blockdev --flushbufs "$LARGE"
    tail -c +$((size + 1)) "$LARGE" | sha256sum | cmp - beyond
}
