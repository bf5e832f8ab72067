# After the migration: nobody takes the old disk for the one in use.
# shellcheck shell=bash

# Anything that a probe knows, on the disk itself.
labels_of() {
    blockdev --flushbufs "$1"
    wipefs --no-act --parsable --noheadings "$1"
}

property retire_leaves_no_label 120 'a retired disk shows no label and the guest goes on; unretire puts it back byte for byte, also when the tool was killed in between'
retire_leaves_no_label() {
    local before try
    # The load writes behind it.
    mkfs.ext4 -q -L keepme "$A" 8M
    mirror "$A" "$B"
    mkdir -p mnt
    mount "$DEV" mnt
    files mnt/files
    tw switch "$NAME" > /dev/null
    umount mnt
    before=$(hash_of "$A" $((32 * MIB)))
    equals "$(hash_of "$DEV" $((32 * MIB)))" "$before" "content of the old disk"
    load guest --offset=8M
    exits 3 twinblk detach "$NAME" b --retire
    tw detach "$NAME" a --retire --json | jq -e '.retired | length == 2' > /dev/null
    equals "$(labels_of "$A")" '' "labels of the retired disk"
    [[ $(labels_of "$DEV") == *keepme* ]] || fail "the device has lost its label"
    # What only the state directory has is not forgotten by the way.
    exits 3 twinblk remove "$NAME"
    says "unretire"
    # The tool is killed at any moment, there and back; the next goes on.
    for try in 1 2 3 4 5 6 7 8 9 10; do
        timeout -s KILL "0.$((RANDOM % 5))$((RANDOM % 10))" twinblk unretire "$NAME" a > /dev/null 2>&1 || true
        timeout -s KILL "0.$((RANDOM % 5))$((RANDOM % 10))" twinblk detach "$NAME" a --retire --force > /dev/null 2>&1 || true
    done
    # A claim ends with the process that had it.
    until twinblk detach "$NAME" a --retire --force > out 2>&1; do grep -q claimed out || fail "$(< out)"; done
    equals "$(labels_of "$A")" '' "labels after ${try} kills"
    holds '.legs[0].retired and (.legs[1].retired | not)'
    [[ $(tw status "$NAME") == *'detached, retired'* ]] || fail "status does not show it"
    tw unretire "$NAME" a > /dev/null
    [[ $(labels_of "$A") == *keepme* ]] || fail "the label is not put back"
    holds '.legs[0].retired | not'
    load_ends
    # Not one byte is another than when it was detached.
    equals "$(hash_of "$A" $((8 * MIB)))" "$(hash_of "$DEV" $((8 * MIB)))" "content of the disk that was put back"
    cmp -i $((24 * MIB)) "$A" "$DEV" || fail "the end of the disk that was put back is another"
    e2fsck -fn "$A" > /dev/null
    remove
}

property anothers_leg_is_not_retired 90 'a disk that has become a leg of another device is neither wiped nor put back, also when that is stopped'
anothers_leg_is_not_retired() {
    local content
    mirror "$A" "$B"
    tw detach "$NAME" b > /dev/null
    tw create other "$B" > other
    fill "$(< other)" 32
    tw stop other > /dev/null
    content=$(hash_of "$B" $((32 * MIB)))
    exits 3 twinblk detach "$NAME" b --retire
    says "leg a of other"
    equals "$(hash_of "$B" $((32 * MIB)))" "$content" "content of the other device"
    tw start other > /dev/null
    tw remove other > /dev/null
    remove
}

property a_retired_disk_is_compared_whole 90 'a retired disk comes back with what was wiped on it, whoever vouches for it'
a_retired_disk_is_compared_whole() {
    mkfs.ext4 -q -L keepme "$A"
    mirror "$A" "$B"
    tw detach "$NAME" b --retire > /dev/null
    tw attach "$NAME" "$B" --unchanged > /dev/null
    in_sync
    settled
    holds '.last_resync.bytes_total == .size_bytes'
    equal_legs "$A" "$B"
    exits 5 twinblk unretire "$NAME" b
    # Put back first, it is as it was: only what it missed is looked at.
    tw detach "$NAME" b --retire > /dev/null
    fill "$DEV" 1 4
    tw unretire "$NAME" b > /dev/null
    tw attach "$NAME" "$B" --unchanged > /dev/null
    in_sync
    settled
    holds '.last_resync.kind == "dirty" and .last_resync.bytes_done <= 2097152'
    equal_legs "$A" "$B"
    remove
}

property a_retired_disk_that_was_used_is_left_alone 60 'what somebody wrote to a retired disk is not overwritten by what was saved'
a_retired_disk_that_was_used_is_left_alone() {
    local now
    mkfs.ext4 -q -L old "$A"
    mirror "$A" "$B"
    tw detach "$NAME" b --retire > /dev/null
    mkfs.ext4 -q -L new "$B"
    now=$(hash_of "$B" $((32 * MIB)))
    exits 3 twinblk unretire "$NAME" b
    says "written to since"
    exits 3 twinblk detach "$NAME" b --retire
    equals "$(hash_of "$B" $((32 * MIB)))" "$now"
    tw remove "$NAME" --force > /dev/null
}

property what_was_used_since_is_not_wiped 60 'a disk that was detached before and used since is retired only with --force'
what_was_used_since_is_not_wiped() {
    local now
    mkfs.ext4 -q -L old "$A"
    mirror "$A" "$B"
    # Nobody has used it: that is proven.
    tw detach "$NAME" b > /dev/null
    tw detach "$NAME" b --retire > /dev/null
    equals "$(labels_of "$B")" '' "labels of the retired disk"
    tw unretire "$NAME" b > /dev/null
    mkfs.ext4 -q -F -L new "$B"
    now=$(hash_of "$B" $((32 * MIB)))
    exits 3 twinblk detach "$NAME" b --retire
    says "another use" "--force"
    equals "$(hash_of "$B" $((32 * MIB)))" "$now" "content of a disk that is used"
    tw detach "$NAME" b --retire --force > /dev/null
    equals "$(labels_of "$B")" '' "labels of the retired disk"
    tw unretire "$NAME" b > /dev/null
    equals "$(hash_of "$B" $((32 * MIB)))" "$now" "content of the disk that was put back"
    remove
}

property an_older_retire_is_not_put_back 90 'what was saved before a disk was a leg again is neither gone on with nor put back'
an_older_retire_is_not_put_back() {
    local before
    mkfs.ext4 -q -L old "$A"
    mirror "$A" "$B"
    tw detach "$NAME" b --retire > /dev/null
    cp "$TWINBLK_STATE_DIR/$NAME/retired-1" older
    attach "$B" --overwrite
    in_sync
    mkfs.ext4 -q -F -L new "$DEV"
    sync_device
    settled
    tw detach "$NAME" b > /dev/null
    # As if it could not be forgotten when the disk was a leg again.
    cp older "$TWINBLK_STATE_DIR/$NAME/retired-1"
    holds '.legs[1].retired | not'
    before=$(hash_of "$B" $((32 * MIB)))
    exits 3 twinblk unretire "$NAME" b
    says "is newer"
    equals "$(hash_of "$B" $((32 * MIB)))" "$before" "content of the detached disk"
    tw detach "$NAME" b --retire > /dev/null
    equals "$(labels_of "$B")" '' "labels of the retired disk"
    tw unretire "$NAME" b > /dev/null
    equals "$(hash_of "$B" $((32 * MIB)))" "$before" "content of the disk that was put back"
    tw remove "$NAME" --force > /dev/null
}
