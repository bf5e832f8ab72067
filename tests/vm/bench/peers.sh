# The block devices that twinblk is measured against, set up in the lab. Sourced by scripts that run there.
# Each function ends with the device ready for I/O and sets PEER to its path; peer_*_down takes it away again.
# shellcheck shell=bash

# peer_leg NAME MIB [0]: a memory-backed disk /dev/NAME that completes at once; with 0 it has no content.
peer_leg() {
    local directory=/sys/kernel/config/nullb/$1
    modprobe null_blk nr_devices=0
    mkdir "$directory"
    echo "${3:-1}" > "$directory/memory_backed"
    echo "$2" > "$directory/size"
    echo 512 > "$directory/blocksize"
    echo 0 > "$directory/irqmode"
    echo 0 > "$directory/completion_nsec"
    echo 1 > "$directory/submit_queues"
    echo 128 > "$directory/hw_queue_depth"
    echo 1 > "$directory/discard"
    echo 1 > "$directory/power"
    echo none > "/sys/block/$1/queue/scheduler"
    [ -b "/dev/$1" ]
}

peer_leg_down() {
    echo 0 > "/sys/kernel/config/nullb/$1/power"
    rmdir "/sys/kernel/config/nullb/$1"
}

# peer_until SECONDS COMMAND...: waits for a condition, polling.
peer_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "gave up waiting for: $*" >&2; return 1; }
        read -r -t 0.05 < <(:) || true
    done
}

# peer_md LEG LEG: md raid1 with an internal bitmap, both legs taken as equal.
peer_md() {
    modprobe raid1
    mdadm --create /dev/md0 --run --quiet --metadata=1.2 --level=1 --raid-devices=2 --bitmap=internal --assume-clean "$@" < /dev/null
    PEER=/dev/md0
}

peer_md_down() {
    mdadm --stop --quiet /dev/md0
}

# peer_dm LEG LEG: dm-mirror with its log in memory, both legs taken as equal. Regions of 512 KiB.
peer_dm() {
    modprobe dm_mirror
    dmsetup create peer-mirror --table "0 $(blockdev --getsz "$1") mirror core 2 1024 nosync 2 $1 0 $2 0 1 handle_errors"
    dmsetup mknodes peer-mirror
    PEER=/dev/mapper/peer-mirror
}

peer_dm_down() {
    dmsetup remove --retry peer-mirror
}

# peer_qsd LEG LEG [SYNC]: qemu-storage-daemon, a blocking mirror from the first leg to the second, over VDUSE.
# SYNC is what the mirror job does with data that is there already: full copies it first (the default), none does not.
peer_qsd() {
    local before
    modprobe -a vduse virtio_vdpa
    qemu-storage-daemon \
        --blockdev "driver=host_device,node-name=source,filename=$1,cache.direct=on,aio=io_uring" \
        --blockdev "driver=host_device,node-name=target,filename=$2,cache.direct=on,aio=io_uring" \
        --chardev socket,path=/run/peer-qsd.sock,server=on,wait=off,id=control --monitor chardev=control \
        --export type=vduse-blk,id=export,node-name=source,name=peer,num-queues=1,queue-size=128,writable=on &
    PEER_QSD=$!
    peer_until 60 test -S /run/peer-qsd.sock
    peer_until 60 test -e /dev/vduse/peer
    peer_qmp "{'execute':'blockdev-mirror','arguments':{'job-id':'mirror','device':'source','target':'target','sync':'${3:-full}','copy-mode':'write-blocking'}}" > /dev/null
    peer_until 300 peer_qsd_ready
    before=$(ls /sys/block)
    vdpa dev add name peer mgmtdev vduse
    peer_until 60 peer_new_disk "$before"
}

# The job is ready when everything is copied and each write now goes to both.
peer_qsd_ready() {
    peer_qmp "{'execute':'query-jobs'}" | jq -es '[.[] | .return? | arrays | .[] | select(.id == "mirror" and .status == "ready")] | length == 1' > /dev/null
}

# peer_qmp COMMAND: one command, printed are the answers.
peer_qmp() {
    printf '%s\n' "{'execute':'qmp_capabilities'}" "$1" | socat -t 5 - UNIX-CONNECT:/run/peer-qsd.sock
}

peer_new_disk() {
    local disk
    disk=$(comm -13 <(sort <<< "$1") <(ls /sys/block)) || return 1
    [ -n "$disk" ] && [ -b "/dev/$disk" ] || return 1
    PEER=/dev/$disk
}

peer_qsd_down() {
    vdpa dev del peer
    kill "$PEER_QSD"
    wait "$PEER_QSD" || true
    rm -f /run/peer-qsd.sock
}

# peer_rublk LEG: rublk's loop device on one leg, one queue of 128, not a mirror. rublk must be on PATH.
peer_rublk() {
    local before
    modprobe ublk_drv
    before=$(ls /sys/block)
    rublk add loop -f "$1" -d 128 -q 1 > /dev/null
    peer_until 60 peer_new_disk "$before"
}

peer_rublk_down() {
    rublk del -n "${PEER#/dev/ublkb}"
}
