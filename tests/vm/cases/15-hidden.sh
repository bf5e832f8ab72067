# A leg holds the labels of the device in front of it: nothing on the host takes it for that, with udev and the installed rules.
# shellcheck shell=bash

# udev with the rules as they are installed, but for the paths.
udev_runs() {
    local rules
    mkdir -p /run/udev/rules.d
    for rules in /lab/bin/*.rules; do
        sed -e "s,/var/lib/twinblk,$TWINBLK_STATE_DIR," -e "s,/usr/local/sbin/twinblk,/lab/bin/twinblk --state-dir $TWINBLK_STATE_DIR," \
            "$rules" > "/run/udev/rules.d/${rules##*/}"
    done
    defer rm -rf /run/udev /dev/disk
    /usr/lib/systemd/systemd-udevd --daemon
    defer udev_ends
    udev_looks add
}

# Its workers go on without it, and write to what is removed then.
udev_ends() {
    local all='^(systemd-udevd|[(]udev-worker[)])$'
    while pgrep "$all" > /dev/null; do
        pkill -KILL "$all"
        sleep 0.05
    done
}

# udev_looks ACTION: at every block device, as at a boot.
udev_looks() {
    udevadm trigger --subsystem-match=block --action="$1"
    udevadm settle --timeout=60
}

# knows DISK EXPECTED...: what udev knows of it, and nothing else of that name.
knows() {
    local disk=$1 pair all
    shift
    all=$(udevadm info --query=property --name="$disk")
    for pair; do
        grep -qxF -- "$pair" <<< "$all" || fail "udev does not know $pair of $disk: $all"
    done
}

# is_hidden DISK LEG
is_hidden() {
    knows "$1" "TWINBLK_LEG=$2" SYSTEMD_READY=0 UDISKS_IGNORE=1 ID_FS_TYPE=twinblk_leg nompath=1
    ! udevadm info --query=property --name="$1" | grep -E '^(ID_FS_(UUID|LABEL|USAGE)|MD_)' || fail "$1 shows what it holds"
    ! udevadm info --query=symlink --name="$1" | grep -E '(^| )disk/by-(uuid|label)' || fail "$1 has names of its content"
}

is_shown() {
    ! udevadm info --query=property --name="$1" | grep -E '^(TWINBLK_LEG|SYSTEMD_READY=0|UDISKS_IGNORE)' || fail "$1 is hidden"
}

property legs_are_hidden_from_the_host 150 'a leg is hidden from mounting and assembly with and without a daemon, the device is not, and a disk that is no leg any more is shown again'
legs_are_hidden_from_the_host() {
    mkfs.ext4 -q -L keepme "$A"
    udev_runs
    is_shown "$A"
    knows "$A" ID_FS_TYPE=ext4 ID_FS_LABEL=keepme
    equals "$(readlink -f /dev/disk/by-label/keepme)" "$A"
    mirror "$A" "$B"
    udevadm settle
    is_hidden "$A" vm1/a
    is_hidden "$B" vm1/b
    is_shown "$DEV"
    is_shown "$LARGE"
    # What comes at a boot, before any daemon.
    tw stop "$NAME" > /dev/null
    udev_looks add
    is_hidden "$A" vm1/a
    is_hidden "$B" vm1/b
    [ "$(readlink -f /dev/disk/by-label/keepme)" != "$A" ] || fail "the label leads to a leg"
    tw start "$NAME" > /dev/null
    tw detach "$NAME" b > /dev/null
    udevadm settle
    is_hidden "$B" vm1/b
    # What shows no label any more is free for others, until it shows one again.
    tw detach "$NAME" b --retire > /dev/null
    udevadm settle
    is_shown "$B"
    tw unretire "$NAME" b > /dev/null
    udevadm settle
    is_hidden "$B" vm1/b
    # Another disk takes its place.
    attach "$LARGE"
    udevadm settle
    is_hidden "$LARGE" vm1/b
    is_shown "$B"
    remove
    udevadm settle
    is_shown "$A"
    is_shown "$LARGE"
    knows "$A" ID_FS_TYPE=ext4
    knows "$B" ID_FS_TYPE=ext4 ID_FS_LABEL=keepme
}

# partition DISK: one of the second half, in an MBR.
partition() {
    python3 - "$1" << 'MBR'
import struct, sys
with open(sys.argv[1], 'r+b') as disk:
    disk.seek(440)
    disk.write(struct.pack('<IH4B4BII', 0x74626c6b, 0, 0, 0, 0, 0, 0x83, 0, 0, 0, 32768, 32768) + bytes(48) + b'\x55\xaa')
MBR
    blockdev --rereadpt "$1"
}

property partitions_and_arrays_on_legs_are_left_alone 150 'partitions of a leg are hidden with it, and an array on a leg is not assembled'
partitions_and_arrays_on_legs_are_left_alone() {
    modprobe raid1
    partition "$A"
    mkfs.ext4 -q -L inside "${A}1"
    mdadm --quiet --create /dev/md/lab --run --level=1 --raid-devices=2 --metadata=1.0 "$FOUR_A" missing
    mdadm --quiet --stop /dev/md/lab
    udev_runs
    # The host does assemble what it finds.
    [ -n "$(ls /sys/class/block/"${FOUR_A##*/}"/holders)" ] || fail "the array was not assembled by udev; nothing is shown by this case"
    mdadm --quiet --stop --scan
    knows "${A}1" ID_FS_LABEL=inside
    create "$A"
    udevadm settle
    knows "${A}1" TWINBLK_LEG=vm1/a TWINBLK_PARTITION=1
    is_hidden "${A}1" vm1/a
    ! udevadm info --query=symlink --name="${A}1" | grep -E '(^| )disk/by-partuuid' || fail "the partition's name leads to the leg"
    tw stop "$NAME" > /dev/null
    NAME=vm2
    create "$FOUR_A"
    udevadm settle
    # The array is there, on the device and not on the leg.
    [ -n "$(ls "/sys/class/block/${DEV##*/}/holders")" ] || fail "the array on the device is not assembled"
    mdadm --quiet --stop --scan
    udevadm settle
    tw stop "$NAME" > /dev/null
    udev_looks add
    equals "$(ls /sys/class/block/"${FOUR_A##*/}"/holders)" '' "what stands on the leg"
    is_hidden "${A}1" vm1/a
    is_hidden "$FOUR_A" vm2/a
    tw remove vm1 > /dev/null
    tw remove vm2 > /dev/null
    wipefs --quiet --all "$A" "$FOUR_A"
    mdadm --quiet --stop --scan
    blockdev --rereadpt "$A"
}

property mapped_partitions_are_hidden 60 'a partition that device mapper makes of a leg is hidden with it'
mapped_partitions_are_hidden() {
    local mapped
    udev_runs
    create "$A"
    udevadm settle
    tw stop "$NAME" > /dev/null
    echo "0 32768 linear $A 32768" | dmsetup create --noudevsync --uuid part1-LAB-kpartx kpartx1
    mapped=/dev/$(dmsetup info -c --noheadings -o blkdevname kpartx1)
    mkfs.ext4 -q -L inside "$mapped"
    udev_looks change
    is_hidden "$mapped" vm1/a
    knows "$mapped" TWINBLK_PARTITION=1
    dmsetup create --noudevsync --uuid LVM-0123 volume --table "0 32768 linear $B 0"
    udev_looks change
    is_shown "/dev/$(dmsetup info -c --noheadings -o blkdevname volume)"
    dm_gone volume
    dm_gone kpartx1
    remove
}

property state_that_is_not_mounted_is_told 60 'while the file system with the state directory is not mounted, udev and the log are told that nobody knows; then all legs are hidden'
state_that_is_not_mounted_is_told() {
    udev_runs
    create "$A"
    udevadm settle
    tw stop "$NAME" > /dev/null
    # Over the old one, so that whoever clears away what a failed case leaves has that again.
    touch /etc/fstab
    (cat /etc/fstab && echo "/dev/none $TWINBLK_STATE_DIR ext4 defaults 0 0") > fstab
    mount --bind fstab /etc/fstab
    udev_looks change
    is_shown "$A"
    knows "$A" TWINBLK_UNKNOWN=1
    # Not down a pipe: whoever writes into one that nobody reads to its end has failed.
    grep -q "twinblk: $TWINBLK_STATE_DIR is not mounted" <<< "$(dmesg)" || fail "the kernel's log does not say it"
    umount /etc/fstab
    tw leg-at --again
    udevadm settle
    is_hidden "$A" vm1/a
    is_shown "$B"
    remove
}
