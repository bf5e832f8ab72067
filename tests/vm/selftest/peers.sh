# Runs in the lab, with bench/ as its files: each peer takes a verified load, and those that mirror leave equal legs.
set -euo pipefail
# shellcheck source=tests/vm/bench/peers.sh disable=SC1091 # a path of the lab
. /lab/files/peers.sh

load() {
    fio --name=load --filename="$PEER" --rw=randwrite --bs=4k --iodepth=32 --ioengine=io_uring --direct=1 --size=16M --fsync=64 \
        --verify=crc32c --verify_state_save=0 --output=/lab/results/fio-"$1"
    blockdev --flushbufs "$PEER"
}

# check NAME OFFSET ARGS...: brings a peer up on both legs, loads it, compares the legs' data from OFFSET on, takes it down.
check() {
    local name=$1 offset=$2
    shift 2
    peer_leg lega 64
    peer_leg legb 64
    "peer_$name" /dev/lega /dev/legb "$@"
    load "$name"
    "peer_${name}_down"
    cmp -i "$offset" -n $((32 << 20)) /dev/lega /dev/legb
    if cmp -s -i "$offset" -n $((32 << 20)) /dev/lega /dev/zero; then
        echo "$name: the load did not reach the legs"
        return 1
    fi
    peer_leg_down lega
    peer_leg_down legb
    echo "ok $name${1:+ $1}"
}

check dm 0
# Before the data is the superblock, which tells the legs apart.
check md $((1 << 20))
check qsd 0 full
check qsd 0 none
if command -v rublk > /dev/null; then
    peer_leg lega 64
    peer_rublk /dev/lega
    load rublk
    peer_rublk_down
    peer_leg_down lega
    echo "ok rublk"
fi
