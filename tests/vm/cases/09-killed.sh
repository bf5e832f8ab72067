# The daemon dies. Its guest waits, and the next daemon takes the device over.
# shellcheck shell=bash

property taken_over_under_load 150 'killed under a verified load again and again: the guest sees no error, start gives the same number, and what was flushed is there'
taken_over_under_load() {
    local round
    create "$A" --id 3
    attach "$B"
    in_sync
    dd if=/dev/urandom of=flushed bs=1M count=4 status=none
    dd if=flushed of="$DEV" bs=1M seek=20 oflag=direct conv=fsync,notrunc status=none
    load writes --fsync=8
    for round in 1 2 3; do
        kill_daemon
        tw status "$NAME" --json > status
        jq -e '.state == "failed" and .daemon == null and .driver_state == "quiesced"' status > /dev/null || fail "$(< status)"
        exits 3 twinblk remove "$NAME"
        says "twinblk start"
        equals "$(tw start "$NAME" --json | jq -r .device)" /dev/ublkb3
        cmp -n $((4 * MIB)) <(dd if="$DEV" bs=1M skip=20 iflag=direct status=none) flushed
        # In the middle of the resync, and after it.
        [ $round = 2 ] || in_sync
    done
    load_ends
    settled
    equal_legs "$A" "$B"
    remove
}

property reconciled_not_compared 120 'killed while it is tracked: only regions that were active are compared, none after a clean stop, and detached grains are remembered'
reconciled_not_compared() {
    mirror "$A" "$B"
    reaches .tracked
    # A quarter of the device.
    load writes --size=8M
    kill_daemon
    tw start "$NAME" > /dev/null
    load_ends
    in_sync
    holds '.last_resync.kind == "reconcile" and .last_resync.bytes_total <= 12582912'
    settled
    equal_legs "$A" "$B"
    tw detach "$NAME" b > /dev/null
    fill "$DEV" 1 20
    sync_device
    kill_daemon
    tw start "$NAME" > /dev/null
    attach "$B" --unchanged
    in_sync
    holds '.last_resync.kind == "dirty" and .last_resync.bytes_total <= 12582912 and .last_resync.bytes_total >= 1048576'
    settled
    equal_legs "$A" "$B"
    reaches .tracked
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    holds '.state == "mirrored" and .dirty_bytes == 0'
    remove
}

property killed_while_taking_over 150 'a daemon that is killed while it takes the device over leaves it to the next one: no error, nothing lost'
killed_while_taking_over() {
    local after starting
    mirror "$A" "$B"
    load writes --fsync=8
    kill_daemon
    for after in 0 .1 .2 .26 .3 .34 .38 .42 .6; do
        twinblk start "$NAME" > /dev/null 2> "start-$after" &
        starting=$!
        until pgrep -x twinblkd > /dev/null || ! kill -0 $starting 2> /dev/null; do sleep 0.02; done
        sleep "$after"
        pkill -KILL -x twinblkd || true
        ends $starting
        until ! pgrep -x twinblkd > /dev/null; do sleep 0.02; done
        echo "killed after $after s: exit status $STATUS, $(< "start-$after")"
    done
    tw start "$NAME" > /dev/null
    load_ends
    in_sync
    settled
    equal_legs "$A" "$B"
    remove
}

property killed_once_it_has_mapped 150 'killed again and again as soon as it has mapped what the driver says of requests, before it has asked for one: the next one takes over'
killed_once_it_has_mapped() {
    local starting killed=0
    mirror "$A" "$B"
    load writes --fsync=8
    kill_daemon
    for _ in 1 2 3 4 5; do
        twinblk start "$NAME" > /dev/null 2> start-error &
        starting=$!
        kill_when_mapped
        ends $starting
        until ! pgrep -x twinblkd > /dev/null; do sleep 0.02; done
        [ "$STATUS" = 0 ] || killed=$((killed + 1))
    done
    tw start "$NAME" > /dev/null
    measured "$killed of 5 were killed before they served"
    load_ends
    in_sync
    settled
    equal_legs "$A" "$B"
    remove
}

kill_when_mapped() {
    python3 - << 'END'
import os, signal

def daemon():
    while True:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/comm") as comm:
                    if comm.read() == "twinblkd\n":
                        return int(pid)
            except OSError:
                pass

pid = daemon()
while True:
    try:
        with open(f"/proc/{pid}/maps") as maps:
            if "ublkc" in maps.read():
                break
    except OSError:
        pid = daemon()
os.kill(pid, signal.SIGKILL)
END
}

property force_leaves_no_dead_device 60 'remove --force after a kill: refused while mounted, then nothing is left in the driver or the state'
force_leaves_no_dead_device() {
    create "$A"
    mkfs.ext4 -q "$DEV"
    mount "$DEV" /mnt
    kill_daemon
    exits 5 twinblk remove "$NAME" --force
    says "still in use"
    timeout 60 umount /mnt
    exits 0 twinblk remove "$NAME" --force
    [ ! -e "$DEV" ] && [ ! -e "/sys/class/ublk-char/ublkc${DEV#/dev/ublkb}" ] || fail "the dead device is still in the driver"
    equals "$(tw list --json | jq '.devices | length')" 0
}

property forced_start_ends_the_guest 60 'start --force after a kill: who has the device open gets errors, and it is served anew under its number'
forced_start_ends_the_guest() {
    create "$A" --id 3
    load writes
    kill_daemon
    equals "$(tw start "$NAME" --force)" /dev/ublkb3
    ends "${LOADS[0]}"
    LOADS=()
    [ "$STATUS" != 0 ] || fail "the load has not noticed that its device ended"
    fill "$DEV" 1
    remove
}

property syncing_is_recorded_first 60 'after a kill the secondary is recorded as syncing before anything is served'
syncing_is_recorded_first() {
    mirror "$A" "$B"
    fill "$DEV" 16
    sync_device
    # Recorded when it returns: the compare after the start keeps to it.
    tw resync "$NAME" rate 1M > /dev/null
    kill_daemon
    tw start "$NAME" > /dev/null
    recorded b syncing
    exits 5 twinblk switch "$NAME"
    # Killed again in the middle of it: still compared whole.
    kill_daemon
    tw start "$NAME" > /dev/null
    holds '.legs[1].health == "syncing"'
    tw resync "$NAME" rate unlimited > /dev/null
    in_sync
    settled
    equal_legs "$A" "$B"
    remove
}

property settings_survive_a_kill 60 'set and resync rate: recorded when they return, and in force again after a kill and a start'
settings_survive_a_kill() {
    local expected
    create "$A"
    set_to protocol async '.protocol == "async"'
    set_to stall-budget 1234 '.settings.stall_budget_ms == 1234'
    set_to leg-timeout 7 '.settings.leg_timeout_s == 7'
    set_to pool-bytes 32M '.settings.pool_bytes == 33554432'
    set_to lag-bytes 1M '.settings.lag_bytes == 1048576'
    set_to quiet 9 '.settings.quiet_s == 9'
    set_to catch-up manual '.settings.catch_up == "manual"'
    tw resync "$NAME" rate 3M > /dev/null
    set_so '.rate_limit_bytes_per_s == 3145728'
    kill_daemon
    tw start "$NAME" > /dev/null
    for expected in "${SET[@]}"; do holds "$expected"; done
    # The rate is kept to, not only shown.
    attach "$B"
    exits 6 twinblk wait "$NAME" --timeout 2
    tw resync "$NAME" rate unlimited > /dev/null
    record_says '.rate_limit_bytes_per_s == null'
    in_sync
    remove
}

# set_to KEY VALUE EXPRESSION
set_to() {
    tw set "$NAME" "$1" "$2" > /dev/null
    set_so "$3"
}

# What was set is in force and recorded; nothing else writes a record here.
SET=()
set_so() {
    record_says "$1"
    holds "$1"
    SET+=("$1")
}

property killed_while_mounted 120 'mount, kill, start, umount, kill, start: the file system goes on, and nothing hangs'
killed_while_mounted() {
    local round
    create "$A"
    mkfs.ext4 -q "$DEV"
    for round in 1 2; do
        mount "$DEV" /mnt
        echo $round > /mnt/file-$round
        sync -f /mnt
        echo late-$round > /mnt/late-$round
        kill_daemon
        tw start "$NAME" > /dev/null
        sync -f /mnt
        timeout 60 umount /mnt
        kill_daemon
        tw start "$NAME" > /dev/null
    done
    e2fsck -fn "$DEV" > fsck || fail "$(< fsck)"
    mount "$DEV" /mnt
    equals "$(cat /mnt/file-1 /mnt/late-1 /mnt/file-2 /mnt/late-2 | tr '\n' ' ')" "1 late-1 2 late-2 "
    umount /mnt
    remove
}

property primary_claimed 90 'a start waits for a primary that somebody holds, within a bound, and ends with 6'
primary_claimed() {
    create "$A"
    tw stop "$NAME" > /dev/null
    python3 -c 'import os, signal, sys; os.open(sys.argv[1], os.O_RDWR | os.O_EXCL); open("held", "w"); signal.pause()' "$A" &
    local holder=$!
    until [ -e held ]; do sleep 0.05; done
    exits 6 twinblk start "$NAME"
    says "$A"
    kill $holder
    wait $holder || true
    tw start "$NAME" > /dev/null
    remove
}

property legs_missing 90 'a missing primary: 3; a missing secondary: only with --degraded, and it comes back by attach'
legs_missing() {
    local first second
    first=$(dm first "$A")
    second=$(dm second "$B")
    mirror "$first" "$second"
    fill "$DEV" 4
    tw stop "$NAME" > /dev/null
    dm_gone first
    exits 3 twinblk start "$NAME"
    says "$first"
    dm first "$A" > /dev/null
    defer dm_gone first
    dm_gone second
    exits 3 twinblk start "$NAME"
    says "--degraded"
    tw start "$NAME" --degraded > /dev/null
    holds '.state == "degraded"'
    fill "$DEV" 1 20
    sync_device
    second=$(dm second "$B")
    defer dm_gone second
    attach "$second"
    in_sync
    settled
    equal_legs "$first" "$second"
    remove
}
