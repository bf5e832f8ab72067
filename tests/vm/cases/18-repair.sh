# What verify finds, who is wrong, and how it is mended.
# shellcheck shell=bash

# flip DISK OFFSET: one bit of this byte changes on the disk, without anybody being told.
flip() {
    python3 - "$1" "$2" << 'END'
import mmap, os, sys
disk, offset = sys.argv[1], int(sys.argv[2])
fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
place = offset // 4096 * 4096
os.preadv(fd, [buffer], place)
buffer[offset - place] ^= 1
os.pwritev(fd, [buffer], place)
os.fsync(fd)
END
}

# found CODE LEG OFFSET OPTION...: verify ends with this code, and finds one difference, of the 4 KiB at OFFSET, with this leg wrong
# ("null": neither is proven to be).
found() {
    local code=$1 leg=$2 offset=$3
    shift 3
    exits "$code" twinblk verify "$NAME" --json "$@"
    equals "$(jq -r '"\(.differences | length) \(.differences[0].offset) \(.differences[0].length) \(.differences[0].wrong_leg)"' <<< "$OUT")" \
        "1 $offset 4096 $leg" "what verify found"
}

# A mirror with all of it signed.
signed_mirror() {
    create "$A"
    fill "$DEV" 12
    attach "$B"
    in_sync
    settled
    reaches '.signatures.unsigned_bytes == 0'
}

property a_flipped_bit_is_mended 120 'a bit that flips on either leg is found at its place, and mended from the other, whichever is the primary'
a_flipped_bit_is_mended() {
    local disk leg
    signed_mirror
    for leg in b a; do
        disk=$([ $leg = a ] && echo "$A" || echo "$B")
        flip "$disk" $((5 * MIB + 70000))
        found 7 $leg $((5 * MIB + 69632))
        holds ".legs[] | select(.id == \"$leg\") | .suspect == [{\"offset\": $((5 * MIB + 69632)), \"length\": 4096}]"
        exits 3 twinblk switch "$NAME"
        says suspect --repair
        found 0 $leg $((5 * MIB + 69632)) --repair
        equals "$(jq .repaired_bytes <<< "$OUT")" 4096 "bytes mended"
        holds '[.legs[].suspect] | flatten == []'
        equal_legs "$A" "$B"
        exits 0 twinblk verify "$NAME"
    done
    tw switch "$NAME" > /dev/null
    flip "$A" $((9 * MIB))
    found 0 a $((9 * MIB)) --repair
    equal_legs "$A" "$B"
    equals "$(tw digest "$NAME" --json | jq -r .blake3)" "$(hash_of "$B" "$(field .size_bytes)")" "digest"
    remove
}

property beside_a_load 120 'beside a load nothing is reported but what differs, and it is mended'
beside_a_load() {
    signed_mirror
    load one --offset=16M --size=8M --rate_iops=200
    exits 0 twinblk verify "$NAME"
    flip "$A" $((3 * MIB))
    flip "$B" $((7 * MIB))
    exits 0 twinblk verify "$NAME" --repair --json
    equals "$(jq -c '[.differences[] | [.offset, .wrong_leg]] | sort' <<< "$OUT")" "[[$((3 * MIB)),\"a\"],[$((7 * MIB)),\"b\"]]"
    load_ends
    settled
    exits 0 twinblk verify "$NAME"
    equal_legs "$A" "$B"
    remove
}

property what_nothing_proves 180 'where nothing proves who is wrong, the place is kept on both legs, over kills and stops and copies, until somebody decides'
what_nothing_proves() {
    local place=$((6 * MIB)) of_a of_b
    block() { dd if="$1" bs=4096 count=1 skip=$((place / 4096)) iflag=direct status=none | b3sum --no-names; }
    signed_mirror
    # Both legs of one extent are bad, in different places.
    flip "$A" $place
    flip "$B" $((place + 8192))
    exits 7 twinblk verify "$NAME" --repair --json
    equals "$(jq -c '[.differences[] | [.offset, .length, .wrong_leg]]' <<< "$OUT")" "[[$place,4096,null],[$((place + 8192)),4096,null]]"
    equals "$(jq .repaired_bytes <<< "$OUT")" 0
    of_a=$(block "$A") of_b=$(block "$B")
    exits 3 twinblk switch "$NAME"
    kill_daemon
    tw start "$NAME" > /dev/null
    settled
    holds '[.legs[].suspect | length] == [2, 2]'
    tw detach "$NAME" b > /dev/null
    fill "$DEV" 1 7
    # The guest decides what is in one of them: that is copied.
    dd if=/dev/urandom of="$DEV" bs=4096 count=1 seek=$((place / 4096 + 2)) oflag=direct conv=notrunc status=none
    sync_device
    attach "$B" --unchanged
    in_sync
    settled
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    settled
    holds "[.legs[].suspect] == [[{\"offset\": $place, \"length\": 4096}], [{\"offset\": $place, \"length\": 4096}]]"
    equals "$(block "$A") $(block "$B")" "$of_a $of_b" "the place on both legs"
    exits 0 twinblk verify "$NAME" --repair-from a --json
    equals "$(jq .repaired_bytes <<< "$OUT")" 4096
    equals "$(block "$B")" "$of_a" "the place on leg b"
    equal_legs "$A" "$B"
    tw switch "$NAME" > /dev/null
    remove
}

property found_while_hashing 120 'what differs is found when it is hashed, without being asked for, and is suspect'
found_while_hashing() {
    signed_mirror
    tw set "$NAME" quiet 1
    flip "$B" $((4 * MIB + 8192))
    # The extent is hashed because another block of it is written.
    fill "$DEV" 1 3
    dd if=/dev/urandom of="$DEV" bs=4096 count=1 seek=$(((4 * MIB + 65536) / 4096)) oflag=direct conv=notrunc status=none
    reaches '[.legs[].suspect | length] == [1, 1]'
    grep -q 'the legs differ in 4096 bytes' /run/twinblk-case/"$NAME".log || fail "the log does not say so"
    # The guest decides: it writes the block.
    dd if=/dev/urandom of="$DEV" bs=4096 count=1 seek=$(((4 * MIB + 8192) / 4096)) oflag=direct conv=notrunc status=none
    reaches '[.legs[].suspect] | flatten == []'
    settled
    equal_legs "$A" "$B"
    remove
}
