# Runs in the lab: what the guest writes is what disks get, when tags' buffers and blocks of the pool have changed places, the
# pool was given back, and it was wanted again. (A registered buffer names pages: were one of them given back, a disk would
# get what the page held before.)
set -euo pipefail
# shellcheck source=tests/vm/bench/peers.sh disable=SC1091 # a path of the lab
. /lab/files/peers.sh

load() {
    fio --name=load --filename="$device" --ioengine=io_uring --direct=1 --size=48M --io_size=64M --iodepth=32 --rw=randwrite \
        --bssplit=4k/50:32k/10:128k/40 --verify=crc32c --verify_state_save=0 --randseed="$1" --output="/lab/results/fio-$1.txt"
}

mkdir -p /run/twinblk /var/lib/twinblk
modprobe ublk_drv
peer_leg lega 64
peer_leg legb 64
device=$(twinblk create buffers /dev/lega --protocol flush)
for round in 1 2 3; do
    twinblk attach buffers /dev/legb --overwrite
    twinblk wait buffers --timeout 120
    load "$round"
    twinblk detach buffers b
    cmp -n $((64 << 20)) /dev/lega /dev/legb
    # The pool's memory is given back now.
    load "$((10 + round))"
    load "$((20 + round))"
    echo "ok round $round"
done
twinblk stop buffers
twinblk remove buffers
