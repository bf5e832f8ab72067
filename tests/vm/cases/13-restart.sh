# The daemon is replaced under the guest: `twinblk restart`.
# shellcheck shell=bash

# The stall has a bound far above what it takes: a hang, not a slow machine.
restarts() {
    local before after
    before=$(field .daemon.pid)
    tw restart "$NAME" --json > restarted
    jq -e '.stall_ms < 30000' restarted > /dev/null || fail "$(< restarted)"
    after=$(field .daemon.pid)
    [ "$before" != "$after" ] || fail "the same daemon serves: $(< restarted)"
    [ ! -e "/proc/$before" ] || fail "the old daemon is still there"
    equals "$(jq .pid restarted)" "$after"
}

# The path of a daemon's program of another build, or where there is none, of a copy.
other_build() {
    if [ -x "$(dirname "$(type -P twinblkd)")/twinblkd-next" ]; then
        readlink -f "$(type -P twinblkd-next)"
    else
        cp "$(type -P twinblkd)" "$PWD/other"
        echo "$PWD/other"
    fi
}

property under_load 240 'each protocol: restarted twice under a verified load, into another build and back: no error, nothing compared, legs equal'
under_load() {
    local protocol other was
    other=$(other_build)
    mirror "$A" "$B"
    was=$(field .daemon.version)
    for protocol in sync flush async; do
        tw set "$NAME" protocol $protocol > /dev/null
        load writes --fsync=8
        TWINBLK_DAEMON=$other restarts
        measured "$protocol: requests were held for $(jq .stall_ms restarted) ms"
        equals "$(jq -r .from_version restarted)" "$was"
        equals "$(jq -r .to_version restarted)" "$(field .daemon.version)"
        [[ $other != *next ]] || [ "$(field .daemon.version)" != "$was" ] || fail "the other build calls itself $was too"
        equals "$(readlink "/proc/$(field .daemon.pid)/exe")" "$other"
        holds '.state == "mirrored" or .state == "syncing"'
        # Handed over clean: there was nothing to make equal.
        holds '.last_resync == null and .resync == null'
        restarts
        equals "$(field .daemon.version)" "$was"
        load_ends
        in_sync
        settled
        holds '.io.errors == 0 and .last_resync == null'
        equal_legs "$A" "$B"
    done
    remove
}

property while_a_copy_runs 150 'restarted while the secondary is being copied to: the copy goes on where it was, and the guest sees nothing'
while_a_copy_runs() {
    create "$A"
    fill "$DEV" 32
    tw resync "$NAME" rate 2M > /dev/null
    attach "$B" --overwrite
    load writes --fsync=8 --size=2M --offset=8M
    reaches '.resync.bytes_done >= 8388608'
    tw resync "$NAME" pause > /dev/null
    restarts
    holds '.paused and .legs[1].health == "syncing"'
    # What is copied is copied.
    holds '.dirty_bytes <= 25165824'
    tw resync "$NAME" resume > /dev/null
    tw resync "$NAME" rate unlimited > /dev/null
    in_sync
    load_ends
    settled
    holds '.last_resync.kind == "dirty" and .last_resync.bytes_total <= 25165824'
    equal_legs "$A" "$B"
    remove
}

property held_secondary 150 'a secondary that answers nothing: refused within a bound, naming the leg, and the old daemon serves on without error'
held_secondary() {
    local second pid
    second=$(dm second "$B")
    defer dm_gone second
    defer dm_goes_on second
    mirror "$A" "$second"
    tw set "$NAME" leg-timeout 600 > /dev/null
    tw set "$NAME" stall-budget 600000 > /dev/null
    pid=$(field .daemon.pid)
    load writes
    dm_holds second
    exits 6 twinblk restart "$NAME"
    says "leg b ($second)" "goes on"
    equals "$(field .daemon.pid)" "$pid"
    # Without load it is the flush that hangs.
    dm_goes_on second
    load_ends
    settled
    sync_device
    dm_holds second
    exits 6 twinblk restart "$NAME"
    says "leg b ($second)" "goes on"
    fill "$DEV" 1 20
    dd if="$DEV" of=/dev/null bs=1M count=1 skip=20 iflag=direct status=none
    # Now it is known beforehand.
    exits 5 twinblk restart "$NAME"
    says "leg b ($second)"
    dm_goes_on second
    settled
    equals "$(field .daemon.pid)" "$pid"
    restarts
    holds '.io.errors == 0'
    settled
    equal_legs "$A" "$second"
    remove
}

property held_primary 120 'a primary that answers nothing: refused within a bound, naming the leg; when it goes on so does the guest'
held_primary() {
    local first pid reader
    first=$(dm first "$A")
    defer dm_gone first
    defer dm_goes_on first
    mirror "$first" "$B"
    pid=$(field .daemon.pid)
    dm_holds first
    dd if="$DEV" of=/dev/null bs=4k count=1 iflag=direct status=none &
    reader=$!
    exits 6 twinblk restart "$NAME"
    says "leg a ($first)"
    dm_goes_on first
    ends $reader
    equals "$STATUS" 0 "the read's status"
    equals "$(field .daemon.pid)" "$pid"
    restarts
    remove
}

property busy 90 'while a verify runs: 5, nothing changes; not running: 5; no such device: 4'
busy() {
    local verify pid
    exits 4 twinblk restart "$NAME"
    mirror "$A" "$B"
    pid=$(field .daemon.pid)
    tw resync "$NAME" rate 1M > /dev/null
    twinblk verify "$NAME" > /dev/null &
    verify=$!
    reaches '.resync.kind == "verify"'
    exits 5 twinblk restart "$NAME"
    says "busy"
    equals "$(field .daemon.pid)" "$pid"
    tw resync "$NAME" rate unlimited > /dev/null
    ends $verify
    equals "$STATUS" 0 "the verify's status"
    tw stop "$NAME" > /dev/null
    exits 5 twinblk restart "$NAME"
    tw start "$NAME" > /dev/null
    remove
}

property while_mounted 120 'restarted under a mounted file system, again and again: it goes on, and is clean'
while_mounted() {
    local round
    mirror "$A" "$B"
    mkfs.ext4 -q "$DEV"
    mount "$DEV" /mnt
    for round in 1 2 3; do
        echo $round > /mnt/file-$round
        [ $round = 1 ] || sync -f /mnt
        restarts
        echo late-$round > /mnt/late-$round
    done
    sync -f /mnt
    timeout 60 umount /mnt
    restarts
    e2fsck -fn "$DEV" > fsck || fail "$(< fsck)"
    mount "$DEV" /mnt
    equals "$(cat /mnt/file-? /mnt/late-? | tr '\n' ' ')" "1 2 3 late-1 late-2 late-3 "
    umount /mnt
    settled
    equal_legs "$A" "$B"
    remove
}

# broken_daemon COMMANDS: a daemon's program that can say its version, and nothing else.
broken_daemon() {
    printf '#!/bin/sh\n[ "$1" != --version ] || { echo twinblkd 9.9.9; exit; }\n%s\n' "$1" > broken
    chmod +x broken
}

property new_one_does_not_start 150 'a new daemon that does not start: said so, the guest goes on with the old program, also when that was deleted; one that cannot run at all: nothing changes'
new_one_does_not_start() {
    local pid
    cp "$(type -P twinblkd)" old
    TWINBLK_DAEMON=$PWD/old mirror "$A" "$B"
    load writes --fsync=8
    pid=$(field .daemon.pid)
    TWINBLK_DAEMON=/bin/false exits 1 twinblk restart "$NAME"
    equals "$(field .daemon.pid)" "$pid"
    broken_daemon 'echo no such library >&2; exit 127'
    TWINBLK_DAEMON=$PWD/broken exits 1 twinblk restart "$NAME"
    says "9.9.9" "no such library" "served by the old one"
    equals "$(readlink "/proc/$(field .daemon.pid)/exe")" "$PWD/old"
    pid=$(field .daemon.pid)
    rm old
    TWINBLK_DAEMON=$PWD/broken exits 1 twinblk restart "$NAME"
    says "served by the old one"
    [ "$(field .daemon.pid)" != "$pid" ] || fail "the same daemon serves"
    load_ends
    restarts
    in_sync
    settled
    holds '.io.errors == 0'
    equal_legs "$A" "$B"
    remove
}

property handed_over_and_not_taken 120 'a device that was handed over and not taken: told as waiting, kept from remove, gone with --force; a start takes it over without an error'
handed_over_and_not_taken() {
    local reader
    mirror "$A" "$B" --id 3
    load writes --fsync=8
    hand_over
    record_says '.record_number > 0'
    tw status "$NAME" --json > status
    jq -e '.state == "failed" and .driver_state == "quiesced" and .daemon == null' status > /dev/null || fail "$(< status)"
    equals "$(tw list --json | jq -r '.devices[0].state')" failed
    exits 5 twinblk stop "$NAME"
    exits 3 twinblk remove "$NAME"
    says "twinblk start"
    equals "$(tw start "$NAME")" /dev/ublkb3
    load_ends
    holds '.last_resync == null and .io.errors == 0'
    settled
    equal_legs "$A" "$B"
    hand_over
    exits 0 twinblk remove "$NAME" --force
    [ ! -e "$DEV" ] && [ ! -e /sys/class/ublk-char/ublkc3 ] || fail "the device is still in the driver"
    # Of a device that was stopped, somebody else's number says nothing.
    create "$A" --id 3
    tw stop "$NAME" > /dev/null
    twinblk create other "$B" --id 3 > /dev/null
    equals "$(tw list --json | jq -r ".devices[] | select(.name == \"$NAME\").state")" stopped
    tw remove "$NAME" > /dev/null
    tw remove other > /dev/null
}

# As `twinblk restart` does it; nobody takes the device.
hand_over() {
    local pid
    pid=$(field .daemon.pid)
    python3 - "$TWINBLK_RUN_DIR/$NAME.sock" << 'PYTHON' > handed
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"command":"hand-over"}\n')
print(s.makefile().readline())
PYTHON
    jq -e '.ok.clean' handed > /dev/null || fail "$(< handed)"
    until [ ! -e "/proc/$pid" ]; do sleep 0.05; done
}

# stays: a service manager's process for the device; its pid is in STAYING.
stays() {
    # Datagrams of a service manager's socket; it sees that the device can be used.
    socat -u UNIX-RECV:"$PWD/notify" CREATE:"$PWD/told" &
    local listener=$!
    until [ -S notify ]; do still_runs $listener; done
    NOTIFY_SOCKET=$PWD/notify twinblk start "$NAME" --stay > stayed 2>&1 &
    STAYING=$!
    until grep -q READY=1 told 2> /dev/null; do still_runs $STAYING "start --stay ($(< stayed))"; done
    kill $listener
    wait $listener || true
    rm -f notify told
}

property a_service_follows_the_device 120 'start --stay stays through a restart, ends badly when the daemon dies, takes the device over, and ends well with a stop'
a_service_follows_the_device() {
    mirror "$A" "$B"
    load writes
    # One that runs already.
    stays
    tw restart "$NAME" > /dev/null
    kill -KILL "$(field .daemon.pid)"
    ends $STAYING
    equals "$STATUS" 1 "status after the daemon's death"
    # As the unit does it again.
    stays
    in_sync
    load_ends
    still_runs $STAYING
    settled
    tw stop "$NAME" > /dev/null
    ends $STAYING
    equals "$STATUS" 0 "status after a stop"
    remove
}
