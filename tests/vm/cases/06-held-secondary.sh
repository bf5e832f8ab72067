# A secondary that answers nothing for a while: `dmsetup suspend` holds all its operations.
# shellcheck shell=bash

held_mirror() {
    SECOND=$(dm second "$B")
    defer dm_gone second
    defer dm_goes_on second
    mirror "$A" "$SECOND" "$@"
    tw set "$NAME" leg-timeout 600 > /dev/null
    tw set "$NAME" stall-budget 600000 > /dev/null
}

property fsync_waits_for_resume 90 'flush: writes go on, the lag is shown, fsync returns only after the secondary goes on, then F >= R and the legs are equal'
fsync_waits_for_resume() {
    held_mirror
    dm_holds second
    fill "$DEV" 4
    holds '(.legs[] | select(.id == "b").lag_bytes) >= 4194304 and .counters.writes_mirrored < .counters.source_generation'
    # For how long, and on.
    reaches '.legs[1].lag_ms > 1000'
    sync_device &
    local barrier=$!
    reaches '.counters.flush_request > .counters.writes_flushed'
    # Writes after the barrier are acknowledged while it waits.
    fill "$DEV" 2 8
    dd if="$DEV" of=/dev/null bs=1M count=8 iflag=direct status=none
    still_runs $barrier "the fsync"
    equals "$(health b)" in-sync
    local request
    request=$(field .counters.flush_request)
    dm_goes_on second
    ends $barrier
    equals $STATUS 0 "status of fsync"
    reaches '.legs[1].lag_ms == 0'
    holds ".counters.writes_flushed >= $request"
    settled
    equal_legs "$A" "$SECOND"
    remove
}

property pool_full_holds_writes 90 'flush: writes go on until the pool is full, then wait, and all of them land when the secondary goes on'
pool_full_holds_writes() {
    held_mirror
    tw set "$NAME" pool-bytes 16M > /dev/null
    dm_holds second
    dd if=/dev/urandom of=data bs=1M count=30 status=none
    dd if=data of="$DEV" bs=1M oflag=direct status=none &
    local writer=$!
    # Full but for less than a request of the largest size for each that waits.
    reaches '.pool_used_bytes >= 8388608 and .counters.source_generation > 0'
    local before after=-1
    before=$(field .io.written_bytes)
    # It stands still once it is full.
    while [ "$before" != "$after" ]; do before=$after; sleep 0.5; after=$(field .io.written_bytes); done
    still_runs $writer "the writer of 30 MiB with a pool of 16 MiB"
    holds '.pool_used_bytes <= 16777216'
    equals "$(health b)" in-sync
    dm_goes_on second
    ends $writer
    equals $STATUS 0 "status of the writer"
    settled
    cmp -n $((30 * MIB)) data "$DEV"
    equal_legs "$A" "$SECOND"
    remove
}

property budget_ends_the_wait 120 'each protocol: after the stall budget the secondary is behind, durably, the guest goes on without error, and it catches up'
budget_ends_the_wait() {
    local protocol
    held_mirror
    for protocol in flush sync async; do
        tw set "$NAME" protocol $protocol > /dev/null
        tw set "$NAME" stall-budget 300 > /dev/null
        [ $protocol != async ] || tw set "$NAME" pool-bytes 16M > /dev/null
        dm_holds second
        # In async more than the pool holds: nothing waits there.
        fill "$DEV" 24
        sync_device
        [ $protocol != async ] || becomes b behind
        # Without waiting: the acknowledgement came after the record.
        [ "$(health b)" != in-sync ] || fail "$protocol: a barrier was acknowledged while the secondary counts and is held"
        recorded b behind
        holds '.io.errors == 0 and .state == "degraded"'
        dm_goes_on second
        in_sync
        settled
        equal_legs "$A" "$SECOND"
    done
    remove
}

property leg_timeout_ends_it 60 'an operation older than the leg time-out makes the secondary behind though nobody waits'
leg_timeout_ends_it() {
    held_mirror
    tw set "$NAME" leg-timeout 1 > /dev/null
    dm_holds second
    fill "$DEV" 1
    becomes b behind
    holds '.io.errors == 0'
    reaches '.legs[1] | .lag_ms > 2000 and .not_in_sync_since != null'
    dm_goes_on second
    in_sync
    settled
    equal_legs "$A" "$SECOND"
    remove
}

property held_again_and_again 90 'a load goes on over a secondary that is held again and again'
held_again_and_again() {
    held_mirror
    tw set "$NAME" stall-budget 200 > /dev/null
    load writes --fsync=8
    local round
    for round in 1 2 3; do
        dm_holds second
        becomes b behind
        dm_goes_on second
        in_sync
    done
    load_ends
    holds '.io.errors == 0'
    settled
    equal_legs "$A" "$SECOND"
    remove
}
