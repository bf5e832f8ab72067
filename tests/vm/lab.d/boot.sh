# The virtual machine: accelerator, kernel command line, fixed part of QEMU's arguments. Sourced, not run.
# shellcheck shell=bash

# An oops ends the run at once, a hung task is reported after a minute; the limits for soft lockups and RCU stalls leave
# room for an emulated machine on a busy host.
KERNEL_OPTIONS=(
    console=ttyS0 loglevel=7 panic=-1 oops=panic mitigations=off nokaslr no_timer_check
    watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 sysctl.kernel.hung_task_timeout_secs=60
    scsi_mod.scan=sync random.trust_cpu=on
)

# The guest measures the speed of its TSC against a timer while it boots. On a busy host it is interrupted there and finds a wrong
# one (seen: 96 MHz for 2592, so that its clock ran 27 times too fast). The HPET needs no measuring. With --icount the TSC is exact.
EMULATED_CLOCK=(clocksource=hpet tsc=unstable)

# Prints kvm or tcg. A /dev/kvm can be there and still boot nothing, so it is tried with the lab's own kernel, once per boot of
# the host.
accelerator() {
    local kernel=$1 verdict
    case ${TWINBLK_LAB_ACCEL:-probe} in
        kvm | tcg) echo "$TWINBLK_LAB_ACCEL"; return ;;
        probe) ;;
        *) die "TWINBLK_LAB_ACCEL is kvm or tcg" ;;
    esac
    verdict=$LAB_BUILT/accel-$(cat /proc/sys/kernel/random/boot_id)
    if [ ! -s "$verdict" ]; then
        if probe_kvm "$kernel"; then echo kvm; else echo tcg; fi > "$verdict.$$"
        mv -- "$verdict.$$" "$verdict"
    fi
    cat "$verdict"
}

probe_kvm() {
    local kernel=$1 console
    [ -w /dev/kvm ] || return 1
    console=$(timeout --signal=KILL 15 "$LAB_BUILT/qemu/start" -M pc -accel kvm -cpu host -m 512 -no-reboot -nodefaults -no-user-config \
        -display none -serial stdio -kernel "$LAB_BUILT/vmlinux-$kernel" -initrd "$LAB_BUILT/initrd-$kernel" \
        -append "console=ttyS0 panic=-1 lab.probe" < /dev/null 2> /dev/null) || return 1
    [[ $console == *LAB-PROBE-OK* ]]
}

# Fills QEMU with the arguments every boot has. Arguments: kernel, cpus, MiB, 1 for exact cost.
base_machine() {
    local kernel=$1 cpus=$2 memory=$3 icount=$4 clock=(tsc=reliable)
    QEMU=("$LAB_BUILT/qemu/start" -M pc -m "$memory" -nodefaults -no-user-config -display none -no-reboot)
    if [ "$icount" = 1 ]; then
        QEMU+=(-accel "tcg,thread=single" -icount "shift=0,sleep=off" -rtc clock=vm -smp 1 -cpu "max,erms=off,fsrm=off")
    elif [ "$(accelerator "$kernel")" = kvm ]; then
        QEMU+=(-accel kvm -cpu host -smp "$cpus")
    else
        QEMU+=(-accel "tcg,thread=multi" -cpu max -smp "$cpus")
        clock=("${EMULATED_CLOCK[@]}")
    fi
    QEMU+=(-kernel "$LAB_BUILT/vmlinux-$kernel" -initrd "$LAB_BUILT/initrd-$kernel" -append "${KERNEL_OPTIONS[*]} ${clock[*]}")
    add_disk lab-root "$LAB_BUILT/root.img" "snapshot=on"
}

# Adds a raw disk: serial, file, more options of the drive, more options of the device.
add_disk() {
    local serial=$1 file=$2 drive=${3:-} device=${4:-}
    QEMU+=(
        -drive "if=none,id=$serial,format=raw,cache=unsafe,discard=unmap,file=${file//,/,,}${drive:+,$drive}"
        -device "virtio-blk-pci,drive=$serial,serial=$serial${device:+,$device}"
    )
}

# Adds a disk that logs what is written to it, for a power cut: name, file, log, more options of the device.
# Write-zeroes is off: QEMU places the log's copy of the zeroes after it has written the entry, so another entry can get
# between them and the log cannot be read any more. The guest's kernel writes zeroes instead.
add_logged_disk() {
    local name=$1 file=$2 log=$3 device=${4:-} unsafe="cache.direct=off,cache.no-flush=on"
    QEMU+=(
        -blockdev "driver=blklogwrites,node-name=$name,discard=unmap,log-sector-size=512$(
        )$(printf ',%s.driver=file,%s.filename=%s' file file "${file//,/,,}"),${unsafe//cache/file.cache},file.discard=unmap$(
        )$(printf ',%s.driver=file,%s.filename=%s' log log "${log//,/,,}"),${unsafe//cache/log.cache}"
        -device "virtio-blk-pci,drive=$name,serial=$name,write-cache=on,write-zeroes=off${device:+,$device}"
    )
}
