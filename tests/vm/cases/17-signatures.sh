# What is known of the legs by signatures: digests, and resyncs that move what differs.
# shellcheck shell=bash

# Everything that was written is hashed.
signed() { reaches '.state == "mirrored" and .signatures.unsigned_bytes == 0' "${1:-$PATIENCE}"; }

# blocks_change FROM BLOCKS OF: writes so many random 4 KiB blocks of the device at random places of the first OF; how many
# different ones is in CHANGED.
blocks_change() {
    CHANGED=$(python3 - "$DEV" "$1" "$2" "$3" << 'END'
import mmap, os, random, sys
device, seed, blocks, of = sys.argv[1], *map(int, sys.argv[2:])
random.seed(seed)
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
places = random.sample(range(of), blocks)
for place in places:
    buffer[:] = os.urandom(4096)
    os.pwritev(fd, [buffer], place * 4096)
os.fsync(fd)
print(len(places))
END
    )
}

# What b3sum says of the device, until it is written.
content() { CONTENT=$(hash_of "$DEV" "$(field .size_bytes)"); }

# digest_is KNOWN [OPTION...]: so says the digest of where it comes from (one of several, with | between them), and it is that of the
# content.
digest_is() {
    local known=$1 of
    shift
    of=$(tw digest "$NAME" --json "$@")
    [[ "|$known|" == *"|$(jq -r .known <<< "$of")|"* ]] || fail "the digest is not $known: $of"
    equals "$(jq -r .blake3 <<< "$of")" "$CONTENT" "digest"
}

property digest_from_the_table 240 'the digest comes from the table, whatever was written, over switches and clean stops; after a kill, or of a disk that was written to, it is read'
digest_from_the_table() {
    create "$A"
    fill "$DEV" 8
    attach "$B"
    in_sync
    tw set "$NAME" quiet 1
    # What was copied is known at once; what has been written since is hashed when it is quiet.
    blocks_change 1 20 8192
    signed
    content
    digest_is recorded
    digest_is recorded --leg b
    digest_is read-back --read-back
    tw set "$NAME" quiet 3600
    fill "$DEV" 1 5
    content
    digest_is mixed
    digest_is recorded
    # Of one leg nothing follows for the other.
    digest_is mixed --leg b
    tw switch "$NAME" > /dev/null
    digest_is recorded
    settled
    equal_legs "$A" "$B"
    equals "$(hash_of "$A" "$(field .size_bytes)")" "$CONTENT" "b3sum of the old primary"
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    digest_is recorded
    tw restart "$NAME" > /dev/null
    digest_is recorded
    # Nobody knows who wrote to the disks between two daemons of which one died: what was not compared since is read. While nothing is tracked
    # a kill has everything compared.
    reaches .tracked
    kill_daemon
    tw start "$NAME" > /dev/null
    settled
    digest_is 'mixed|read-back'
    digest_is recorded
    tw stop "$NAME" > /dev/null
    fill "$A" 1 9
    tw start "$NAME" > /dev/null
    in_sync
    exits 0 twinblk verify "$NAME" --repair-from a
    settled
    content
    digest_is 'recorded|mixed|read-back'
    equal_legs "$A" "$B"
    remove
}

property digest_of_one_leg 60 'a device of one leg keeps what a digest has read, over a clean stop too'
digest_of_one_leg() {
    create "$A"
    fill "$DEV" 3
    content
    digest_is read-back
    digest_is recorded
    blocks_change 1 1 8192
    content
    digest_is mixed
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    digest_is recorded
    remove
}

property only_what_differs_is_moved 180 'one in a hundred blocks of 1 GiB changed while a leg was detached: little more than the dirty grains is read, and than the blocks written'
only_what_differs_is_moved() {
    local dirty blocks
    thin_mirror 1
    settled
    tw detach "$NAME" b > /dev/null
    blocks=$(($(field .size_bytes) / 4096))
    blocks_change 2 $((blocks / 100)) $blocks
    dirty=$(field .dirty_bytes)
    [ "$dirty" -gt 0 ] && [ "$dirty" -lt "$(field .size_bytes)" ] || fail "$dirty bytes are dirty"
    attach "$SECOND" --unchanged
    in_sync
    settled
    holds ".last_resync.bytes_read <= 2 * 1.1 * $dirty and .last_resync.bytes_written <= 1.05 * 4096 * $CHANGED"
    measured "$CHANGED blocks changed in $dirty dirty bytes: $(field '"\(.last_resync.bytes_read) read, \(.last_resync.bytes_written) written"')"
    equal_legs /dev/ram0 "$SECOND"
    remove
}

property seeded_by_signature 180 'seeded with trusted signatures on both sides: nothing is read where they are equal, nothing is written but what differs; of a disk that nobody knows nothing is read twice but that'
seeded_by_signature() {
    local size extents
    create "$A"
    size=$(field .size_bytes)
    fill "$DEV" $((size / MIB))
    attach "$B"
    in_sync 600
    tw set "$NAME" quiet 1
    signed
    tw detach "$NAME" b > /dev/null
    # Of three extents.
    blocks_change 3 40 768
    reaches '.signatures.unsigned_bytes == 0'
    attach "$B" --seeded
    in_sync
    settled
    extents=$((3 * MIB))
    holds ".last_resync.kind == \"signature\" and .last_resync.bytes_total == $size"
    holds ".last_resync.bytes_read == 2 * $extents and .last_resync.bytes_written <= 1.05 * 4096 * $CHANGED"
    holds ".last_resync.bytes_matched == $size - 4096 * $CHANGED"
    equal_legs "$A" "$B"
    content
    digest_is recorded
    # Somebody wrote to it: what was known of it is not believed; it is read, and held against what is known of the primary.
    tw detach "$NAME" b > /dev/null
    fill "$B" 1 9
    attach "$B" --seeded
    in_sync
    settled
    holds ".last_resync.kind == \"signature\" and .last_resync.bytes_read == $size + 2 * $MIB and .last_resync.bytes_written == $MIB"
    holds ".last_resync.bytes_matched == $size - $MIB"
    digest_is recorded --leg b
    equal_legs "$A" "$B"
    remove
}

property seeded_with_an_older_copy 120 'a disk that holds an older copy, made by somebody else, gets no more than what differs'
seeded_with_an_older_copy() {
    local size
    create "$A"
    size=$(field .size_bytes)
    fill "$DEV" $((size / MIB))
    sync_device
    dd if="$A" of="$B" bs=1M oflag=direct status=none
    blocks_change 4 82 8192
    exits 3 twinblk attach "$NAME" "$B"
    load one --offset=16M --size=4M --rate_iops=50
    attach "$B" --seeded
    in_sync
    load_ends
    settled
    holds ".last_resync.bytes_written < $size / 4"
    measured "$CHANGED blocks differed, beside a load: $(field '"\(.last_resync.bytes_written) bytes written"')"
    equal_legs "$A" "$B"
    remove
}

property hot_extents_are_left 90 'what is being written is not hashed before it is quiet, and how often that was spared is told'
hot_extents_are_left() {
    mirror "$A" "$B"
    tw set "$NAME" quiet 1
    load one --size=2M --rate_iops=200
    reaches '.signatures.hot_skipped >= 4'
    holds '.signatures.unsigned_bytes >= 2097152'
    load_ends
    settled
    signed
    content
    digest_is recorded
    remove
}
