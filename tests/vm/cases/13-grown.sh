# Disks that have grown since they were recorded.
# shellcheck shell=bash

# sized NAME DISK MIB: a linear mapping of the beginning of a disk; prints its node.
sized() {
    echo "0 $(($3 * 2048)) linear $2 0" | dmsetup create --noudevsync --uuid "LAB-$1" "$1"
    echo "/dev/$(dmsetup info -c --noheadings -o blkdevname "$1")"
}

property grown_legs_are_taken 120 'legs that have grown are taken at a start and by attach, the device keeps its size, and what has grown may not shrink again'
grown_legs_are_taken() {
    local first second
    first=$(sized first "$LARGE" 24) second=$(sized second "$B" 24)
    mirror "$first" "$second"
    reaches .tracked
    fill "$DEV" 4
    tw stop "$NAME" > /dev/null
    dm_gone first
    dm_gone second
    first=$(sized first "$LARGE" 48) second=$(sized second "$B" 28)
    tw start "$NAME" > /dev/null
    in_sync
    settled
    holds '.size_bytes == 25165824 and .legs[0].identity.size == 50331648 and .legs[1].identity.size == 29360128'
    record_says '.legs[0].identity.size == 50331648 and .legs[1].identity.size == 29360128'
    equals "$(blockdev --getsize64 "$DEV")" 25165824
    equal_legs "$first" "$second"
    # Also one that was away meanwhile.
    tw detach "$NAME" b > /dev/null
    dm_gone second
    second=$(sized second "$B" 32)
    fill "$DEV" 1 8
    attach "$second"
    in_sync
    settled
    record_says '.legs[1].identity.size == 33554432'
    equal_legs "$first" "$second"
    tw stop "$NAME" > /dev/null
    dm_gone first
    first=$(sized first "$LARGE" 40)
    exits 3 twinblk start "$NAME"
    says "its size is"
    dm_gone first
    first=$(sized first "$LARGE" 48)
    defer dm_gone first
    defer dm_gone second
    tw start "$NAME" > /dev/null
    remove
}
