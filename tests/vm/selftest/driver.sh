# Runs in the lab: the driver is loaded, and what the tests need besides it loads too.
set -euo pipefail
[ -c /dev/ublk-control ]
[ "$(uname -r | cut -d. -f1-2)" = "$LAB_KERNEL" ]
for module in null_blk loop nbd scsi_debug brd xfs btrfs dm_mod dm_delay dm_flakey dm_mirror dm_log dm_log_writes dm_raid \
    dm_snapshot raid1 vdpa vduse virtio_vdpa vhost_vdpa; do
    modprobe "$module"
done
dmsetup targets
for target in delay flakey error mirror linear log-writes snapshot raid; do
    dmsetup targets | grep -q "^$target "
done
[ "$(blockdev --getsize64 /lab/disk0)" = $((64 << 20)) ]
[ "$(blockdev --getss /lab/disk0)" = 512 ]
[ "$(blockdev --getss /lab/disk1)" = 4096 ]
for program in fio mkfs.ext4 e2fsck mkfs.xfs xfs_repair mkfs.btrfs mdadm dmsetup sqlite3 jq python3 b3sum socat strace stress-ng vdpa \
    qemu-system-x86_64 qemu-storage-daemon qemu-img qemu-nbd nbd-client losetup blkdiscard fsfreeze; do
    command -v "$program" > /dev/null || { echo "no $program"; exit 1; }
done
