# The primary is gone. The other leg is served if it is an image of some moment, and what is lost is accepted by whoever asks for it.
# shellcheck shell=bash

# fallen_behind: FIRST and SECOND are mappings, a device of the two; SECOND is behind: it has the file `before`, it may have what is
# at 8 MiB, which was on its way when it was given up, and it lacks what is at 16 MiB.
fallen_behind() {
    FIRST=$(dm first "$A") SECOND=$(dm second "$B")
    mirror "$FIRST" "$SECOND"
    fill "$DEV" 4
    sync_device
    settled
    dd if="$DEV" of=before bs=1M count=4 iflag=direct status=none
    tw set "$NAME" catch-up manual > /dev/null
    tw set "$NAME" stall-budget 300 > /dev/null
    dm_holds second
    fill "$DEV" 1 8
    sync_device
    becomes b behind
    dm_goes_on second
    fill "$DEV" 2 16
    sync_device
    recorded b behind
}

property stale_is_accepted 120 'a leg that is behind is served only with --accept-stale, as it was when it fell behind; the old primary is never touched unasked'
stale_is_accepted() {
    local generation content
    fallen_behind
    generation=$(field '.legs[1].consistent_at_generation')
    tw stop "$NAME" > /dev/null
    content=$(hash_of "$FIRST" $((32 * MIB)))
    dm_gone first
    for flag in '' --degraded --force; do
        # shellcheck disable=SC2086 # none is no argument
        exits 3 twinblk start "$NAME" $flag
        says "$FIRST is not there" "generation $generation (at 2" "--accept-stale"
    done
    record_says '.legs[0].role == "primary"'
    tw start "$NAME" --accept-stale > /dev/null
    cmp -n $((4 * MIB)) before "$DEV"
    cmp -n $((2 * MIB)) <(dd if="$DEV" bs=1M skip=16 iflag=direct status=none) /dev/zero
    record_says '.legs[1] | .role == "primary" and .health == "in-sync"'
    record_says '.legs[0] | .health == "absent" and (.attached | not)'
    # Nothing brings it back but whoever asks for it, and then nothing of it is trusted.
    FIRST=$(dm first "$A")
    defer dm_gone first
    fill "$DEV" 1 20
    kill_daemon
    tw start "$NAME" > /dev/null
    equals "$(hash_of "$FIRST" $((32 * MIB)))" "$content" "content of the old primary"
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    holds '.state == "single" and .legs[1].role == "primary"'
    attach "$FIRST"
    in_sync
    settled
    holds '.last_resync.bytes_total == .size_bytes'
    equal_legs "$FIRST" "$SECOND"
    remove
    dm_gone second
}

property a_guest_does_not_go_back 120 'a guest that waits is not given a leg that may lack what it was told is there, but with --force: it sees the device end; what it flushed is there'
a_guest_does_not_go_back() {
    local first second
    first=$(dm first "$A") second=$(dm second "$B")
    mirror "$first" "$second"
    fill "$DEV" 4 24
    sync_device
    dd if="$DEV" of=flushed bs=1M skip=24 count=4 iflag=direct status=none
    load writes
    kill_daemon
    dm_gone first
    exits 3 twinblk start "$NAME"
    says "everything that was flushed" "--accept-stale"
    exits 3 twinblk start "$NAME" --accept-stale
    says "may not have what it was told" "--force"
    record_says '.legs[0].role == "primary"'
    still_runs "${LOADS[0]}" "the guest that waits"
    tw start "$NAME" --accept-stale --force > /dev/null
    ends "${LOADS[0]}"
    LOADS=()
    [ "$STATUS" != 0 ] || fail "the load has not noticed that its device ended"
    holds '.state == "single" and .legs[1].role == "primary"'
    cmp -n $((4 * MIB)) <(dd if="$DEV" bs=1M skip=24 iflag=direct status=none) flushed
    remove
    dm_gone second
}

property a_guest_goes_on_with_a_complete_leg 120 'in sync, a guest whose daemon and primary have died goes on with the other leg, without an error'
a_guest_goes_on_with_a_complete_leg() {
    local first second
    first=$(dm first "$A") second=$(dm second "$B")
    mirror "$first" "$second" --protocol sync
    load writes --fsync=8
    kill_daemon
    dm_gone first
    exits 3 twinblk start "$NAME"
    says "every write that was acknowledged" "--degraded"
    tw start "$NAME" --degraded > /dev/null
    load_ends
    holds '.state == "single" and .legs[1].role == "primary" and .io.errors == 0'
    remove
    dm_gone second
}

property a_mixture_is_never_served 60 'a leg that was being copied to is not served, whatever is accepted'
a_mixture_is_never_served() {
    local first
    first=$(dm first "$A")
    create "$first"
    fill "$DEV" 16
    tw resync "$NAME" rate 1M > /dev/null
    attach "$B"
    recorded b syncing
    kill_daemon
    dm_gone first
    exits 3 twinblk start "$NAME" --accept-stale --degraded --force
    says "syncing"
    dm first "$A" > /dev/null
    defer dm_gone first
    tw start "$NAME" > /dev/null
    remove
}
