# The loads that write all over a large disk. Sourced by measure.sh, after peers.sh.
#
# Most of these writes enter a region that is not active, and wait until a mark that says so is durable. So does md, with the bits
# of its bitmap. Each load begins when neither has anything marked. twinblk has at most 2048 regions active at once, and leaves
# them when there are more: that is in its figures. md's bits have no such bound.
#
# What is measured is time, and time is instructions only as long as the processor never idles. Therefore twinblk's state
# directory lies on a memory-backed disk, as md's bitmap does, which is on the legs: a durable write is done when it is asked for,
# and costs what the file system, the block layer and the threads take for it. On a disk of the host the guest would idle
# meanwhile, and its clock leap to the next timer. What a real disk takes for a flush is in none of the figures, be it twinblk's
# or md's. That the processor did not idle is checked for each load.
#
# The legs lie behind linear mappings, for all devices. While twinblk copies 32 GiB of nothing, which would take memory and hours of
# emulation, they are mapped to disks that have no content; then to the true ones, which hold zeroes, both.
# shellcheck shell=bash

# twinblk has 8192 regions of 4 MiB then. The last GiB is not written to: md's data ends before it.
SPREAD_GIB=32
SPREAD_MIB=$(((SPREAD_GIB - 1) * 1024))
# How many writes are measured: about as many as there are regions.
SPREAD_WRITES=${BENCH_SPREAD_WRITES:-8192}
# Seconds after which both have cleared their marks, if nothing was written: twinblk leaves a region after 10 to 20, md looks every 5.
SPREAD_REST=30

# spread_job DEVICE NAME OPTION...: writes of 4 KiB, one block in each MiB, so that the legs take memory for no more than those.
# The clock at both ends, and how long the processor idled until then, go to NAME.prerun.txt and NAME.postrun.txt.
spread_job() {
    local device=$1 name=$2
    shift 2
    fio --name="$name" --filename="$device" --ioengine=io_uring --direct=1 --bs=4k --size="${SPREAD_MIB}m" \
        --exec_prerun='cat /proc/uptime' --exec_postrun='cat /proc/uptime' --output-format=json --output=/tmp/spread.json "$@"
}

# spread NAME DEVICE FACTS...: the loads. FACTS prints how many writes the device has made to say where its legs may differ,
# and how long a thread for them has run.
spread() {
    local name=$1 device=$2 depth load metadata ns metadata_before ns_before
    shift 2
    # Every block has its memory then.
    spread_job "$device" fill --rw=write:1020k --iodepth=32 --number_ios="$SPREAD_MIB"
    for depth in 1 32; do
        load=write-4k-spread-qd$depth
        rest "$@"
        read -r metadata_before ns_before < <("$@")
        spread_job "$device" "$load" --rw=randwrite --randrepeat=1 --randseed="$depth" --norandommap=1 --blockalign=1m --iodepth="$depth" \
            --number_ios="$SPREAD_WRITES"
        read -r metadata ns < <("$@")
        jq -c --arg device "$name" --argjson metadata $((metadata - metadata_before)) --argjson ns $((ns - ns_before)) \
            --argjson idle "$(idle_of "$load")" '.jobs[0] | .jobname as $load | .write.total_ios as $ios
            | if .error != 0 then error("\($load) on \($device) failed") else . end
            | if $idle > 0.02 then error("\($load) on \($device): the processor idled for \($idle) of the time") else . end
            | {device: $device, load: $load, instructions: (.write.runtime * 1e6 / $ios | round), ios: $ios, idle: $idle,
                metadata_writes: ($metadata / $ios), metadata_thread: ($ns / $ios | round)}' /tmp/spread.json > /tmp/measured
        cat /tmp/measured >> /lab/results/measured
        jq -r '"\(.device) \(.load): \(.instructions), \(.metadata_writes) metadata writes"' /tmp/measured
    done
}

# Until nothing is marked: nothing was written about it for long enough. The guest's clock leaps over that.
rest() {
    local before='' now
    now=$("$@")
    until [ "$now" = "$before" ]; do
        before=$now
        sleep "$SPREAD_REST"
        now=$("$@")
    done
}

# idle_of LOAD: the part of the time that the processor idled.
idle_of() {
    local from idle_from to idle_to
    read -r from idle_from < "$1.prerun.txt"
    read -r to idle_to < "$1.postrun.txt"
    jq -n "($idle_to - $idle_from) / ($to - $from)"
}

# Facts of what keeps nothing about its legs.
no_facts() { echo 0 0; }

# Facts of a twinblk, when its secondary has done all that it still had to do.
twinblk_facts() {
    peer_until 60 mirrored
    echo "$(twinblk status bench --json | jq .io.metadata_writes) $(ran tables)"
}

mirrored() { twinblk status bench --json | jq -e '.state == "single" or .counters.writes_mirrored == .counters.source_generation' > /dev/null; }

# Facts of an md: what was written to a member beyond what was written to the array. It has no thread of its own for that.
md_facts() { echo "$(($(writes_of lega) - $(writes_of "${PEER#/dev/}"))) 0"; }

writes_of() {
    local stat
    read -ra stat < "/sys/block/$1/stat"
    echo "${stat[4]}"
}

# A leg becomes a mapping of another disk: leg_is first|second DISK
leg_is() {
    local table
    table="0 $(blockdev --getsz "$2") linear $2 0"
    if dmsetup info "$1" > /dev/null 2>&1; then
        dmsetup load "$1" --table "$table"
        dmsetup suspend "$1"
        dmsetup resume "$1"
    else
        dmsetup create "$1" --table "$table"
        dmsetup mknodes "$1"
    fi
}

spread_legs() {
    modprobe dm_mod
    legs $((SPREAD_GIB << 10))
    leg_is first /dev/lega
    leg_is second /dev/legb
}

spread_legs_down() {
    dmsetup remove --retry first
    dmsetup remove --retry second
    legs_down
}

spread_raw() { spread raw /dev/mapper/first no_facts; }

# md with the chunk that it chooses, then with one as large as twinblk's regions.
spread_md() {
    local chunk name
    for chunk in '' --bitmap-chunk=4M; do
        name=md${chunk:+-4m}
        peer_md /dev/mapper/first /dev/mapper/second ${chunk:+"$chunk"}
        spread "$name" "$PEER" md_facts
        mdadm --examine-bitmap /dev/lega > "/lab/results/bitmap-$name"
        peer_md_down
        wipefs --quiet --all /dev/mapper/first /dev/mapper/second
    done
}

spread_twinblk() {
    local device protocol
    modprobe ublk_drv
    # One leg that never had another: nothing is marked.
    device=$(twinblk create bench /dev/mapper/first)
    spread single "$device" twinblk_facts
    twinblk stop bench
    twinblk remove bench
    spread_legs_down
    spread_legs
    peer_leg nothing-a $((SPREAD_GIB << 10)) 0
    peer_leg nothing-b $((SPREAD_GIB << 10)) 0
    leg_is first /dev/nothing-a
    leg_is second /dev/nothing-b
    device=$(twinblk create bench /dev/mapper/first)
    twinblk attach bench /dev/mapper/second --overwrite
    twinblk wait bench --timeout 3600 > /dev/null
    leg_is first /dev/lega
    leg_is second /dev/legb
    peer_leg_down nothing-a
    peer_leg_down nothing-b
    for protocol in ${BENCH_PROTOCOLS:-sync flush}; do
        twinblk set bench protocol "$protocol"
        spread "$protocol" "$device" twinblk_facts
    done
    twinblk status bench --json > /lab/results/status-spread.json
    twinblk stop bench
    twinblk remove bench
}
