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

# The leg that failed as primary is healed and taken back, and the legs become equal.
first_comes_back() {
    dm_becomes first "$A" well
    tw detach "$NAME" a > /dev/null
    attach "$FIRST"
    in_sync
    settled
    equal_legs "$FIRST" "$SECOND"
}

# The guest was moved to the second leg, durably, and has seen nothing of it.
moved() {
    reaches '.legs[] | select(.id == "b").role == "primary"'
    equals "$(health a)" failed
    equals "$(health b)" in-sync
    holds '.io.errors == 0 and .state == "degraded"'
    # Durably: what the record says when the daemon is killed.
    recorded a failed
    record_says '.legs[] | select(.id == "b").role == "primary"'
}

property primary_read_error_once 60 'a read that the primary fails is served by the secondary, and the bad block written anew'
primary_read_error_once() {
    mapped_mirror
    fill "$DEV" 2 4
    settled
    local want; want=$(dd if="$DEV" bs=64k count=1 skip=64 iflag=direct status=none | b3sum --no-names)
    # The secondary alone knows what is to be there.
    dd if=/dev/zero of="$A" bs=64k count=1 seek=64 oflag=direct conv=notrunc status=none
    dm_becomes first "$A" failing_reads
    equals "$(dd if="$DEV" bs=64k count=1 skip=64 iflag=direct status=none | b3sum --no-names)" "$want" "what was read"
    holds '.io.errors == 0 and .state == "mirrored"'
    is_primary a
    dm_becomes first "$A" well
    equals "$(dd if="$DEV" bs=64k count=1 skip=64 iflag=direct status=none | b3sum --no-names)" "$want" "what the primary has now"
    settled
    equal_legs "$FIRST" "$SECOND"
    remove
}

property primary_gone 90 'a primary that fails everything for ever: the guest goes on at the secondary, which is primary'
primary_gone() {
    mapped_mirror
    load writes --fsync=8
    dm_becomes first "$A" failing
    moved
    load_ends
    holds '.io.errors == 0'
    first_comes_back
    exits 0 twinblk switch "$NAME"
    is_primary a
    equal_legs "$FIRST" "$SECOND"
    remove
}

property primary_write_errors 180 'a primary that fails writes for ever: nothing of it reaches the guest, the secondary is primary, durably, in each protocol'
primary_write_errors() {
    local protocol
    mapped_mirror
    for protocol in sync flush async; do
        tw set "$NAME" protocol $protocol > /dev/null
        load writes --fsync=8
        dm_becomes first "$A" failing_writes
        moved
        load_ends
        holds '.io.errors == 0'
        first_comes_back
        tw switch "$NAME" > /dev/null
        settled
    done
    remove
}

property primary_flush_error 90 'a flush that the primary fails is acknowledged by the secondary once that is primary, durably'
primary_flush_error() {
    mapped_mirror
    fill "$DEV" 2 4
    sync_device
    fill "$DEV" 2 8
    settled
    dm_becomes first "$A" failing_writes
    sync_device
    # Without waiting: the acknowledgement came after the record.
    record_says '.legs[] | select(.id == "b").role == "primary"'
    recorded a failed
    moved
    first_comes_back
    remove
}

property moved_guest_outlives_the_daemon 90 'killed after the guest was moved, the device is taken over with the new primary'
moved_guest_outlives_the_daemon() {
    mapped_mirror
    load writes --fsync=8
    dm_becomes first "$A" failing_writes
    moved
    kill_daemon
    tw start "$NAME" > /dev/null
    is_primary b
    equals "$(health a)" failed
    load_ends
    first_comes_back
    remove
}

property failed_and_gone 90 'a primary that failed and was taken away is missed by nobody: a daemon that was killed, and one that was stopped, start without it'
failed_and_gone() {
    mapped_mirror
    load writes --fsync=8
    dm_becomes first "$A" failing
    moved
    kill_daemon
    dm_gone first
    tw start "$NAME" > /dev/null
    is_primary b
    load_ends
    holds '.io.errors == 0 and .state == "degraded"'
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    is_primary b
    dm first "$A" > /dev/null
    remove
}

property primary_error_while_copying 90 'while the secondary has not got everything, an error of the primary goes to the guest, and roles stay'
primary_error_while_copying() {
    mapped_mirror
    tw resync "$NAME" pause > /dev/null
    # What the secondary misses: it was away.
    tw detach "$NAME" b > /dev/null
    fill "$DEV" 2 8
    attach "$SECOND"
    dm_becomes first "$A" failing_writes
    ! dd if=/dev/urandom of="$DEV" bs=64k count=4 seek=100 oflag=direct status=none || fail "a write that the primary refused was acknowledged"
    ! sync_device || fail "a barrier that the primary refused was acknowledged"
    holds '.dirty_bytes >= 65536'
    is_primary a
    dm_becomes first "$A" well
    tw resync "$NAME" resume > /dev/null
    [ "$(health b)" != failed ] || again
    in_sync
    settled
    sync_device
    equal_legs "$FIRST" "$SECOND"
    remove
}

property unrecorded_failover_is_made_up_for 240 'a primary that fails while no record can be written: the guest is told, the second disk keeps what it has, and the guest is moved when a record can be written'
unrecorded_failover_is_made_up_for() {
    local began
    state_on_a_disk
    mapped_mirror
    fill "$DEV" 2 4
    sync_device
    settled
    dd if=/dev/urandom of=data bs=64k count=1 status=none
    dm_becomes state "$LARGE" failing_writes
    dm_becomes first "$A" failing_writes
    began=$SECONDS
    ! dd if=data of="$DEV" bs=64k count=1 seek=64 oflag=direct conv=notrunc status=none || fail "a write that is nowhere recorded was acknowledged"
    measured "the guest was told after $((SECONDS - began)) s"
    is_primary a
    equals "$(health b)" in-sync
    holds '.dirty_bytes > 0 and .io.errors > 0 and .record_failing'
    # Nothing is copied over it, and a stop would not wait for ever: nothing of the kind is under way.
    dm_becomes first "$A" well
    dd if=/dev/urandom of="$DEV" bs=64k count=1 seek=70 oflag=direct conv=notrunc status=none
    cmp data <(dd if="$SECOND" bs=64k count=1 skip=64 iflag=direct status=none) || fail "the second disk does not hold what the first failed"
    is_primary a
    dm_becomes state "$LARGE" well
    reaches '.legs[] | select(.id == "b").role == "primary"'
    recorded a failed
    record_says '.legs[] | select(.id == "b").role == "primary"'
    cmp data <(dd if="$DEV" bs=64k count=1 skip=64 iflag=direct status=none) || fail "the guest was moved to something else"
    first_comes_back
    exits 0 twinblk switch "$NAME"
    is_primary a
    remove
}

property stop_during_a_failover_ends 180 'a stop while the guest cannot be moved for want of a record ends, is not clean, and the device starts again'
stop_during_a_failover_ends() {
    local writer ended=0
    state_on_a_disk
    mapped_mirror
    fill "$DEV" 2 4
    sync_device
    settled
    dm_becomes state "$LARGE" failing_writes
    dm_becomes first "$A" failing_writes
    dd if=/dev/urandom of="$DEV" bs=64k count=1 seek=64 oflag=direct conv=notrunc status=none 2> /dev/null &
    writer=$!
    reaches '.dirty_bytes > 0'
    TW_LIMIT=90 tw stop "$NAME" --force > /dev/null 2> stopped || ended=$?
    [ $ended != 124 ] || fail "the stop does not end"
    measured "the stop ended with $ended: $(head -1 stopped)"
    equals "$(twinblk status "$NAME" --json | jq -r '.state, .daemon' | xargs)" "failed null" "what became of it"
    ends $writer
    [ "$STATUS" != 0 ] || fail "a write that is nowhere recorded was acknowledged"
    dm_becomes state "$LARGE" well
    dm_becomes first "$A" well
    # Whichever record is found: nobody was told that either is in force.
    tw start "$NAME" > /dev/null
    [ "$(health a)" != failed ] || first_comes_back
    in_sync
    settled
    equal_legs "$FIRST" "$SECOND"
    remove
}

property single_leg_errors 60 'with one leg its errors are the guest'"'"'s'
single_leg_errors() {
    FIRST=$(dm first "$A")
    defer dm_gone first
    create "$FIRST"
    fill "$DEV" 2 4
    dm_becomes first "$A" failing
    ! dd if="$DEV" of=/dev/null bs=64k count=1 iflag=direct status=none || fail "read from a leg that cannot be read"
    ! dd if=/dev/urandom of="$DEV" bs=64k count=1 oflag=direct status=none || fail "wrote to a leg that cannot be written"
    dm_becomes first "$A" well
    dd if="$DEV" of=/dev/null bs=1M iflag=direct status=none
    holds '.io.errors > 0'
    is_primary a
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
