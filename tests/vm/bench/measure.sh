# Runs in the lab with --icount, with bench/ as its files: what one I/O costs, in instructions of the whole machine, on each of
# the devices that it is given by name. Leaves a line of JSON for each device and load in /lab/results/measured.
#
# All devices are measured in one boot, on memory-backed legs that are made anew for each, by the same jobs. The first
# job of each run is not counted: it takes the faults and fills the legs. These loads work on a range that is hot: nothing has to
# be written down about it. Those of spread.sh work all over a large disk.
set -euo pipefail
# shellcheck source=tests/vm/bench/peers.sh disable=SC1091 # a path of the lab
. /lab/files/peers.sh
# shellcheck source=tests/vm/bench/spread.sh disable=SC1091
. /lab/files/spread.sh

LEG_MIB=64
# The bytes that are worked on: md's data is a little shorter than the leg.
SIZE=48M
RUNTIME=${BENCH_RUNTIME:-1}

# What follows is read by fio.
jobs_of() {
    cat << END
[global]
filename=$1
ioengine=io_uring
direct=1
size=$SIZE
time_based=1
runtime=$RUNTIME
randrepeat=1
norandommap=1
group_reporting=0
stonewall=1

[warm-up]
rw=write
bs=128k
iodepth=32
time_based=0

[warm-up-small]
rw=randrw
bs=4k
iodepth=32
runtime=300ms

[write-4k-qd1]
rw=randwrite
bs=4k
iodepth=1

[write-4k-qd32]
rw=randwrite
bs=4k
iodepth=32

[read-4k-qd32]
rw=randread
bs=4k
iodepth=32

[write-4k-fsync]
rw=randwrite
bs=4k
iodepth=1
fsync=1

[write-128k-qd32]
rw=randwrite
bs=128k
iodepth=32
END
}

# load NAME DEVICE: one line for each load, named after the device's kind.
load() {
    jobs_of "$2" > /tmp/jobs
    fio --output-format=json --output="/lab/results/fio-$1.json" /tmp/jobs
    # A fsync is no I/O of its own here: it belongs to its write.
    jq -c --arg device "$1" '.jobs[] | select(.jobname | startswith("warm-up") | not)
        | (if .read.total_ios > 0 then .read else .write end) as $done
        | if .error != 0 then error("\(.jobname) on \($device) failed") else . end
        | {device: $device, load: .jobname, instructions: ($done.runtime * 1e6 / $done.total_ios | round), ios: $done.total_ios}' \
        "/lab/results/fio-$1.json" > /tmp/measured
    cat /tmp/measured >> /lab/results/measured
    # For whoever waits, or has given up waiting.
    jq -r '"\(.device) \(.load): \(.instructions)"' /tmp/measured
}

# ran THREAD: nanoseconds, which are instructions, that a thread of the daemon has run, in user and in kernel mode. (How much of
# it in which cannot be told in the lab: clock ticks always meet the same place of a load that is as regular as this one.)
ran() {
    local task ns
    for task in /proc/"$(pidof twinblkd)"/task/*; do
        [ "$(< "$task/comm")" = "$1" ] || continue
        read -r ns _ < "$task/schedstat"
        echo "$ns"
        return
    done
    echo "no thread $1" >&2
    return 1
}

# breakdown NAME DEVICE: where the instructions of a 4 KiB write at depth 32 go.
breakdown() {
    local before after
    before=$(ran shard)
    fio --name=breakdown --filename="$2" --ioengine=io_uring --direct=1 --size="$SIZE" --time_based=1 --runtime=1 --norandommap=1 \
        --rw=randwrite --bs=4k --iodepth=32 --output-format=json --output=/tmp/breakdown.json
    after=$(ran shard)
    jq -c --arg device "$1" --argjson ran $((after - before)) '.jobs[0].write | .total_ios as $ios
        | {device: $device, total: (.runtime * 1e6 / $ios | round), daemon: ($ran / $ios | round)}' \
        /tmp/breakdown.json >> /lab/results/breakdown
}

# legs MIB
legs() {
    peer_leg lega "$1"
    peer_leg legb "$1"
}

legs_down() {
    peer_leg_down lega
    peer_leg_down legb
}

bench_raw() {
    load raw /dev/lega
}

bench_rublk() {
    peer_rublk /dev/lega
    load rublk "$PEER"
    peer_rublk_down
}

# peer NAME ARGS...: a peer with two legs.
peer() {
    local name=$1
    shift
    "peer_$name" /dev/lega /dev/legb "$@"
    load "$name" "$PEER"
    "peer_${name}_down"
}

bench_md() { peer md; }
bench_dm() { peer dm; }
bench_qsd() { peer qsd none; }

# twinblk on one leg, then in each protocol.
bench_twinblk() {
    local device protocol
    modprobe ublk_drv
    device=$(twinblk create bench /dev/lega)
    load single "$device"
    breakdown single "$device"
    twinblk attach bench /dev/legb --overwrite
    twinblk wait bench --timeout 300
    for protocol in ${BENCH_PROTOCOLS:-sync flush async}; do
        twinblk set bench protocol "$protocol"
        load "$protocol" "$device"
        breakdown "$protocol" "$device"
        # What the secondary has not yet done would be missing in the count.
        twinblk wait bench --timeout 60
    done
    twinblk status bench --json > /lab/results/status.json
    twinblk stop bench
    twinblk remove bench
    cmp -n "$((LEG_MIB << 20))" /dev/lega /dev/legb
}

has_load() { [[ " ${BENCH_LOADS:-hot spread} " == *" $1 "* ]]; }

mkdir -p /run/twinblk /var/lib/twinblk
peer_leg state 64
mkfs.ext4 -q /dev/state
mount /dev/state /var/lib/twinblk
for device in "$@"; do
    if has_load hot; then
        legs "$LEG_MIB"
        "bench_$device"
        legs_down
    fi
    if has_load spread && declare -F "spread_$device" > /dev/null; then
        spread_legs
        "spread_$device"
        spread_legs_down
    fi
done
