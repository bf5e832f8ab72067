# Somebody else writes to a disk that the device has let go.
# shellcheck shell=bash

property proven_unchanged 60 'a disk that nobody touched is not compared: after a stop, and when a detached leg comes back without being vouched for'
proven_unchanged() {
    mirror "$A" "$B"
    reaches .tracked
    fill "$DEV" 2
    tw stop "$NAME" > /dev/null
    cmp -n 4096 "$A" "$B"
    tw start "$NAME" > /dev/null
    holds '.state == "mirrored" and .last_resync == null and .dirty_bytes == 0'
    tw detach "$NAME" b > /dev/null
    fill "$DEV" 1 12
    sync_device
    attach "$B"
    in_sync
    holds '.last_resync.kind == "dirty" and .last_resync.bytes_total <= 2097152'
    settled
    equal_legs "$A" "$B"
    remove
}

property written_after_a_stop 60 'a secondary that was written to while the device was stopped is found, read whole, and made equal'
written_after_a_stop() {
    mirror "$A" "$B"
    fill "$DEV" 4
    tw set "$NAME" quiet 1
    reaches '.signatures.unsigned_bytes == 0'
    tw stop "$NAME" > /dev/null
    fill "$B" 1 9
    tw start "$NAME" > /dev/null
    in_sync
    holds ".last_resync.kind == \"signature\" and .last_resync.bytes_written == $MIB"
    # What was known of the primary when it stopped stands for it, but where leg b differs.
    holds ".last_resync.bytes_total == .size_bytes and .last_resync.bytes_read == .size_bytes + 2 * $MIB"
    settled
    equal_legs "$A" "$B"
    grep -q 'somebody has written to it' /run/twinblk-case/"$NAME".log || fail "the log does not say why"
    remove
}

property primary_written_after_a_stop 120 'a primary that was written to while the device was stopped is served as it is, and where it differs nothing is copied before somebody has decided'
primary_written_after_a_stop() {
    local place='{"offset": 9437184, "length": 1048576}' theirs ours
    mirror "$A" "$B"
    fill "$DEV" 16
    tw stop "$NAME" > /dev/null
    ours=$(of_place "$B")
    fill "$A" 1 9
    theirs=$(of_place "$A")
    tw start "$NAME" > /dev/null
    grep -q 'is served as it is: somebody has written to it' /run/twinblk-case/"$NAME".log || fail "the log does not say why"
    # In sync is what is known to be.
    in_sync
    holds "[.legs[].suspect] == [[$place], [$place]] and .state == \"mirrored\" and .last_resync == null"
    exits 3 twinblk switch "$NAME"
    equals "$(of_place "$DEV")" "$theirs" "what is served"
    equals "$(of_place "$B")" "$ours" "what leg b keeps"
    # It is so after another stop, and what is suspect is looked at again, alone.
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    in_sync
    holds "[.legs[].suspect] == [[$place], [$place]] and .last_check.bytes_read == 2 * $MIB"
    exits 0 twinblk verify "$NAME" --repair-from b
    equals "$(of_place "$DEV")" "$ours" "what was decided"
    holds '[.legs[].suspect] | flatten == []'
    settled
    equal_legs "$A" "$B"
    remove
}

property killed_while_all_is_suspect 120 'killed before everything was looked at, what was not is still suspect, and is looked at then'
killed_while_all_is_suspect() {
    local place='{"offset": 9437184, "length": 1048576}'
    mirror "$A" "$B"
    reaches .tracked
    tw resync "$NAME" rate 1M > /dev/null
    tw stop "$NAME" > /dev/null
    fill "$A" 1 9
    tw start "$NAME" > /dev/null
    holds '.state == "syncing" and .resync.kind == "verify" and (.legs[1].suspect | map(.length) | add) > 16777216'
    exits 3 twinblk switch "$NAME"
    # Nobody is kept from an upgrade by it.
    tw restart "$NAME" > /dev/null
    holds '.state == "syncing" and (.legs[1].suspect | map(.length) | add) > 16777216'
    kill_daemon
    tw start "$NAME" > /dev/null
    holds '(.legs[1].suspect | map(.length) | add) > 16777216'
    tw resync "$NAME" rate unlimited > /dev/null
    in_sync
    holds "[.legs[].suspect] == [[$place], [$place]]"
    exits 0 twinblk verify "$NAME" --repair-from a
    settled
    equal_legs "$A" "$B"
    remove
}

# What a disk holds of the tenth MiB.
of_place() { dd if="$1" bs=1M skip=9 count=1 iflag=direct status=none | sha256sum; }

property written_after_a_kill 90 'what somebody wrote to a disk between a kill and the start is found, wherever it is, is told as suspect, and nothing copies it'
written_after_a_kill() {
    local place='{"offset": 9437184, "length": 1048576}'
    mirror "$A" "$B"
    fill "$DEV" 4
    reaches .tracked
    tw set "$NAME" quiet 1
    kill_daemon
    # Nobody was writing there, so a start does not compare it.
    fill "$B" 1 9
    tw start "$NAME" > /dev/null
    reaches "[.legs[].suspect] == [[$place], [$place]]"
    holds '.last_resync.kind != "full"'
    exits 3 twinblk switch "$NAME"
    # All of it is read.
    reaches '.signatures.unsigned_bytes <= 1048576'
    exits 0 twinblk verify "$NAME" --repair-from a
    holds '[.legs[].suspect] | flatten == []'
    settled
    equal_legs "$A" "$B"
    remove
}

property written_while_detached 60 'a detached leg that was written to is read whole when it comes back'
written_while_detached() {
    mirror "$A" "$B"
    reaches .tracked
    fill "$DEV" 4
    tw detach "$NAME" b > /dev/null
    fill "$B" 1 9
    attach "$B"
    in_sync
    holds '.last_resync.kind == "signature" and .last_resync.bytes_total == .size_bytes'
    settled
    equal_legs "$A" "$B"
    remove
}
