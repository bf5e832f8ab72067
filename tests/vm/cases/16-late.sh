# A disk lands a write seconds after it was issued: after its daemon has died, or after its leg was given up. What was written to the
# same place since must not be undone by it.
#
# The mapper's delay keeps the order of what goes through one mapping, whoever it comes from: here it is shown that the disk is
# waited for, and that the guest goes on meanwhile. What an unfenced late write would do is shown by the simulation, whose disks keep no order.
# shellcheck shell=bash

# late_mirror [first|second]: a mirror in which that leg lands every write LATE ms after it was issued. Sets FIRST, SECOND.
late_mirror() {
    FIRST=$A SECOND=$B
    if [ "$1" = first ]; then FIRST=$(dm first "$A"); else SECOND=$(dm second "$B"); fi
    defer dm_gone "$1"
    mirror "$FIRST" "$SECOND"
    becomes_late "$1"
}

becomes_late() { dm_becomes "$1" "$(under "$1")" slow_writes 4000; }
becomes_prompt() { dm_becomes "$1" "$(under "$1")" well; }
under() { if [ "$1" = first ]; then echo "$A"; else echo "$B"; fi; }

# The daemon is killed with writes in flight. It may be held by them for as long as they take.
kill_it() { kill -KILL "$(field .daemon.pid)"; }

# start_when_free [OPTION...]: the state stays locked as long as the dead process is held by its own write.
start_when_free() {
    local end=$((SECONDS + PATIENCE))
    HELD=0
    until tw start "$NAME" "$@" > /dev/null 2> start.err; do
        grep -qE 'running already|still in use' start.err || fail "$(< start.err)"
        [ $SECONDS -lt $end ] || fail "not started after $PATIENCE s: $(< start.err)"
        HELD=1
        sleep 0.2
    done
}

# Right after the start: the dead daemon's write was waited for, or its disk is.
fenced() { [ "$HELD" = 1 ] || holds '[.legs[].awaited] | any'; }

# The same MiB again and again: whatever of it is in flight is older than what is written last.
overwrite() { fill "$DEV" 1; }

ends_equal() {
    in_sync
    settled
    equal_legs "$FIRST" "$SECOND"
    remove
}

property of_the_dead 120 'a write of the killed daemon that lands late on the secondary is fenced: the disk is taken only after it, and the legs are equal'
of_the_dead() {
    late_mirror second
    overwrite
    kill_it
    start_when_free
    fenced
    becomes_prompt second &
    # What was late must not win.
    overwrite
    reaches '[.legs[].awaited] | any | not'
    wait
    ends_equal
}

property of_the_dead_on_the_primary 120 'a write of the killed daemon that lands late on the primary is fenced: start waits for it, then serves, and newer data stays'
of_the_dead_on_the_primary() {
    local writer
    late_mirror first
    dd if=/dev/urandom of="$DEV" bs=1M count=1 oflag=direct status=none &
    writer=$!
    until [ "$(in_flight_writes)" -gt 0 ]; do still_runs "$writer" "the writer"; sleep 0.05; done
    kill_it
    start_when_free
    becomes_prompt first
    ends "$writer"
    equals "$STATUS" 0 "the status of the write that was in flight"
    head -c 1M /dev/urandom > newest
    dd if=newest of="$DEV" bs=1M oflag=direct conv=fsync,notrunc status=none
    in_sync
    settled
    cmp -n $MIB newest "$DEV"
    ends_equal
}

# Writes that the device has taken and not answered.
in_flight_writes() {
    local inflight
    read -ra inflight < "/sys/class/block/${DEV##*/}/inflight"
    echo "${inflight[1]}"
}

property served_anew 150 'killed with a late write in flight, ended by force and served anew: what the next guest writes is not undone'
served_anew() {
    late_mirror second
    overwrite
    kill_it
    start_when_free --force
    fenced
    head -c 1M /dev/urandom > newest
    dd if=newest of="$DEV" bs=1M oflag=direct conv=fsync,notrunc status=none
    becomes_prompt second
    in_sync
    settled
    cmp -n $MIB newest "$DEV"
    ends_equal
}

property after_the_deadline 150 'given up at its deadline, the secondary catches up only after its last write has landed, and the legs are equal'
after_the_deadline() {
    late_mirror second
    tw set "$NAME" leg-timeout 1 > /dev/null
    overwrite
    becomes b behind
    # In flight there is what is older than this.
    overwrite
    becomes_prompt second
    in_sync
    ends_equal
}

property of_the_copier 150 'a copy of a resync that lands late, after a kill and after newer data, is fenced like the rest'
of_the_copier() {
    late_mirror second
    tw detach "$NAME" b > /dev/null
    fill "$DEV" 8
    # Slow, so that it is in the middle of it.
    tw resync "$NAME" rate 1M > /dev/null
    attach "$SECOND" --unchanged
    reaches '.resync != null and .resync.bytes_read > 0'
    kill_it
    start_when_free
    fenced
    fill "$DEV" 8
    becomes_prompt second
    tw resync "$NAME" rate unlimited > /dev/null
    ends_equal
}

property write_after_the_kill 90 'a write to a device whose killed daemon is still held by a slow disk is served when start has taken over'
write_after_the_kill() {
    local writer
    late_mirror second
    overwrite
    kill_it
    dd if=/dev/urandom of="$DEV" bs=1M count=1 seek=3 oflag=direct status=none 2> /dev/null &
    writer=$!
    start_when_free
    ends "$writer"
    equals "$STATUS" 0 "the write's status"
    becomes_prompt second
    ends_equal
}
