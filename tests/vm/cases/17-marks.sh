# What a device writes into its state directory while the guest writes: nothing on a hot set, and little all over a large disk.
# shellcheck shell=bash

HOT_WRITES=${TWINBLK_HOT_WRITES:-10000}

property hot_set_writes_no_metadata $((60 + HOT_WRITES / 1000)) 'random writes to a hot gibibyte write no metadata at all'
hot_set_writes_no_metadata() {
    local pause
    thin_mirror 1
    hot_phase
    until [ "$(jq .io.metadata_writes first)" = "$(jq .io.metadata_writes second)" ]; do
        # A region that nobody writes to for 10 s is left, and that is written down. Where the machine stood still for as long,
        # nothing was hot.
        pause=$(longest_pause hot_iops.1.log)
        [ "$pause" -ge 9000 ] || fail "metadata was written while no region was left alone for more than $pause ms: $(cat first second)"
        measured "a region was not written to for $pause ms: once more"
        hot_phase
    done
    measured "metadata writes before and after $(($(jq .io.writes second) - $(jq .io.writes first))) writes: $(jq .io.metadata_writes second)"
    settled
    equal_legs /dev/ram0 "$SECOND"
    remove
}

# A load that writes to all regions, all the time; `first` and `second` are the status at two moments of it.
hot_phase() {
    # A block in each 64 KiB, so that the legs take little memory.
    load hot --verify=0 --size=1G --iodepth=32 --norandommap=1 --blockalign=64k --write_iops_log=hot --log_offset=1
    # Each of the 256 regions has been written to then, but once in a million times.
    written first $(($(field .io.writes) + 5000))
    written second $(($(jq .io.writes first) + HOT_WRITES))
    load_ends
}

# written FILE WRITES: the device has been written to so often; FILE has its status.
written() {
    until tw status "$NAME" --json > "$1" && jq -e ".io.writes >= $2" "$1" > /dev/null; do
        still_runs "${LOADS[0]}" "the load"
        sleep 0.2
    done
}

# longest_pause LOG: for how many milliseconds at most a region of 4 MiB was not written to, by fio's log: time, value,
# direction, size, offset.
longest_pause() {
    awk -F '[, ]+' '{ region = int($5 / 4194304); if ($1 - last[region] > most) most = $1 - last[region]; last[region] = $1 }
        END { print most + 0 }' "$1"
}

property spread_writes_share_their_marks 120 'random writes to regions that are not active wait for few marks: those that come together share theirs'
spread_writes_share_their_marks() {
    local depth=32 bursts=128 before marks
    state_on_a_disk
    # More regions than may be active at once, so that they are left, too.
    thin_mirror 12
    # A mark takes a while, so that what comes meanwhile is there when it is done: of writes that come at once, the first has
    # its mark written, and the second mark is for all others.
    dm_becomes state "$LARGE" slow_writes 30
    before=$(field .io.metadata_writes)
    fio --name=spread --filename="$DEV" --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --size=12G --norandommap=1 --randrepeat=1 \
        --iodepth=$depth --iodepth_batch_submit=$depth --iodepth_batch_complete_min=$depth --number_ios=$((depth * bursts)) \
        --output-format=json --output=spread.json
    marks=$(($(field .io.metadata_writes) - before))
    jq -e ".jobs[0] | .error == 0 and .write.total_ios == $((depth * bursts))" spread.json > /dev/null
    measured "$marks metadata writes for $((depth * bursts)) writes that came $depth at a time"
    # Some of each burst enter a region that is not active: of 3072, 2048 may be at most.
    [ $marks -ge $bursts ] || fail "$marks metadata writes for $bursts times $depth writes: they were not waited for"
    # Two for a burst, and few when regions are left; four times as many would still be shared.
    [ $marks -le $((bursts * 8)) ] || fail "$marks metadata writes for $bursts times $depth writes: they are not shared"
    dm_becomes state "$LARGE" well
    settled
    remove
}
