# Errors of a leg. A mapping under the leg is given another table while it is served: `error` fails everything, `flakey` with
# error_writes fails writes and flushes and lets reads through. A failed flush alone is made by letting all writes land first.
# shellcheck shell=bash

# A mirror whose legs are mappings: of $A as dm `first`, of $B as dm `second`.
mapped_mirror() {
    FIRST=$(dm first "$A")
    defer dm_gone first
    SECOND=$(dm second "$B")
    defer dm_gone second
    mirror "$FIRST" "$SECOND" "$@"
}

# A leg that has failed is let go before it is attached again: `wait` and `status` say so.
again() {
    tw detach "$NAME" b > /dev/null
    attach "$SECOND"
}

# Heals the secondary, attaches it again, and the legs become equal.
heals() {
    dm_becomes second "$B" well
    again
    in_sync
    settled
    equal_legs "$FIRST" "$SECOND"
}

property secondary_write_errors_for_ever 90 'write errors of the secondary never reach the guest, it is failed durably, and attached again it becomes equal'
secondary_write_errors_for_ever() {
    local protocol=${1:-flush}
    mapped_mirror --protocol "$protocol"
    load writes --fsync=8
    dm_becomes second "$B" failing_writes
    becomes b failed
    exits 5 twinblk wait "$NAME" --timeout 30
    says "twinblk detach $NAME b"
    exits 3 twinblk attach "$NAME" "$SECOND"
    says "leg b of $NAME already" "twinblk detach $NAME b"
    exits 5 twinblk switch "$NAME"
    exits 5 twinblk digest "$NAME" --leg b
    load_ends
    holds '.io.errors == 0 and .state == "degraded"'
    # Durably: what the record says when the daemon is killed.
    recorded b failed
    heals
    remove
}

property secondary_write_errors_in_sync 90 'the same in sync'
secondary_write_errors_in_sync() { secondary_write_errors_for_ever sync; }
property secondary_write_errors_in_async 90 'the same in async'
secondary_write_errors_in_async() { secondary_write_errors_for_ever async; }

property secondary_write_error_once 60 'one write error of the secondary, healed at once: failed all the same, and equal after it is attached again'
secondary_write_error_once() {
    mapped_mirror
    dm_becomes second "$B" failing_writes
    dd if=/dev/urandom of="$DEV" bs=64k count=1 seek=9 oflag=direct status=none
    becomes b failed
    dm_becomes second "$B" well
    fill "$DEV" 2 4
    sync_device
    holds '.io.errors == 0'
    heals
    remove
}

property secondary_flush_error 60 'a failed flush of the secondary does not fail the barrier, and the secondary is failed durably before that is acknowledged'
secondary_flush_error() {
    mapped_mirror
    fill "$DEV" 2 4
    settled
    dm_becomes second "$B" failing_writes
    sync_device
    # Without waiting: the acknowledgement came after the record.
    recorded b failed
    equals "$(health b)" failed
    holds '.io.errors == 0'
    heals
    remove
}

property secondary_gone 90 'a secondary that fails everything while it is being copied to never reaches the guest'
secondary_gone() {
    FIRST=$(dm first "$A")
    defer dm_gone first
    SECOND=$(dm second "$B")
    defer dm_gone second
    create "$FIRST"
    fill "$DEV" 8
    load writes --fsync=8
    tw resync "$NAME" rate 4M > /dev/null
    attach "$SECOND"
    reaches '.resync.bytes_done > 0'
    dm_becomes second "$B" failing
    reaches '.state != "syncing"'
    exits 5 twinblk wait "$NAME" --timeout 30
    tw resync "$NAME" rate unlimited > /dev/null
    load_ends
    holds '.io.errors == 0'
    heals
    remove
}

property secondary_read_error 60 'a read error of the secondary fails a verify and nothing else'
secondary_read_error() {
    mapped_mirror
    fill "$DEV" 2 4
    settled
    dm_becomes second "$B" failing
    local status=0
    tw verify "$NAME" --json > verified || status=$?
    [ $status != 0 ] || fail "verify says equal although one leg cannot be read"
    ! jq -e .equal verified > /dev/null || fail "says equal: $(< verified)"
    dd if="$DEV" of=/dev/null bs=1M iflag=direct status=none
    holds '.io.errors == 0'
    dm_becomes second "$B" well
    [ "$(health b)" = in-sync ] || again
    in_sync
    settled
    equal_legs "$FIRST" "$SECOND"
    remove
}

property primary_read_error 60 'a read error of the primary goes to the guest, and nothing else changes'
primary_read_error() {
    mapped_mirror
    fill "$DEV" 2 4
    settled
    dm_becomes first "$A" failing
    ! dd if="$DEV" of=/dev/null bs=64k count=1 iflag=direct status=none || fail "read from a leg that cannot be read"
    dm_becomes first "$A" well
    dd if="$DEV" of=/dev/null bs=1M iflag=direct status=none
    holds '.io.errors > 0'
    [ "$(health b)" != failed ] || again
    settled
    equal_legs "$FIRST" "$SECOND"
    remove
}

property primary_write_error 90 'a write error of the primary goes to the guest, the range is dirty, and after healing the legs become equal, in each protocol'
primary_write_error() {
    local protocol
    mapped_mirror
    tw resync "$NAME" pause > /dev/null
    for protocol in sync flush async; do
        tw set "$NAME" protocol $protocol > /dev/null
        dm_becomes first "$A" failing_writes
        ! dd if=/dev/urandom of="$DEV" bs=64k count=4 seek=100 oflag=direct status=none || fail "a write that the primary refused was acknowledged"
        holds '.dirty_bytes >= 65536'
        dm_becomes first "$A" well
        tw resync "$NAME" resume > /dev/null
        [ "$(health b)" != failed ] || again
        settled
        equal_legs "$FIRST" "$SECOND"
        tw resync "$NAME" pause > /dev/null
    done
    remove
}

property primary_flush_error 60 'a failed flush of the primary fails the barrier, everything since the last good one is dirty, and the legs become equal'
primary_flush_error() {
    mapped_mirror
    fill "$DEV" 2 4
    sync_device
    settled
    tw resync "$NAME" pause > /dev/null
    fill "$DEV" 2 8
    dm_becomes first "$A" failing_writes
    ! sync_device || fail "a barrier that the primary refused was acknowledged"
    local dirty; dirty=$(field .dirty_bytes)
    [ "$dirty" -ge $((2 * MIB)) ] || fail "$dirty bytes are dirty instead of 2 MiB"
    dm_becomes first "$A" well
    tw resync "$NAME" resume > /dev/null
    [ "$(health b)" != failed ] || again
    settled
    sync_device
    equal_legs "$FIRST" "$SECOND"
    remove
}

property lost_secondary_is_let_go 60 'a secondary that fails for ever is detached, and another one takes its place'
lost_secondary_is_let_go() {
    mapped_mirror
    dm_becomes second "$B" failing
    fill "$DEV" 1
    sync_device
    becomes b failed
    TW_LIMIT=30 tw detach "$NAME" b > /dev/null
    attach "$LARGE"
    in_sync
    settled
    equal_legs "$FIRST" "$LARGE"
    remove
}
