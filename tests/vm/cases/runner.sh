# Runs in the guest: each case given as FILE/NAME, in a fresh environment, with a bound in time. Prints `ok` or `FAIL` for each,
# with the case's output if it failed. Ends with 0, or with 1 when what a case left cannot be cleared away: a new boot then
# runs the rest.
set -uo pipefail

CASES=/lab/files

# What a case must not leave behind; empty output means that nothing is left. Without other programs: it runs after each case.
leftovers() {
    local path stat comm
    for path in /proc/[0-9]*; do
        read -r stat 2> /dev/null < "$path/stat" || continue
        comm=${stat#*(} comm=${comm%)*}
        # After the name: state, parent, group, session.
        # shellcheck disable=SC2086 # words
        set -- "$1" ${stat##*) }
        [ "$2" = Z ] || { [ "$comm" != twinblkd ] && [ "$5" != "$1" ]; } || echo "process: ${path#/proc/} $comm"
    done
    for path in /dev/ublkb* /dev/ublkc* /sys/class/ublk-char/* /sys/block/dm-* /sys/block/loop*/loop/backing_file \
        /sys/kernel/config/nullb/*/ /sys/module/scsi_debug /sys/module/brd; do
        [ ! -e "$path" ] || echo "there is $path"
    done
    [ "$(< /proc/mounts)" = "$MOUNTS" ] || { echo "mounts:"; diff <(echo "$MOUNTS") /proc/mounts; }
    mapfile -t stat < /proc/swaps
    [ ${#stat[@]} -le 1 ] || echo "swap: ${stat[*]:1}"
}

# Takes away by force what a failed case has left.
clear_away() {
    local PS4='+ ${SECONDS}s '
    set -x
    local path name
    for path in $(dmsetup ls 2> /dev/null | grep -v '^No devices' | cut -f1); do timeout 5 dmsetup resume "$path"; done
    pkill -KILL -s "$1"
    for path in "$2"/*/; do
        name=$(basename "$path")
        timeout 20 twinblk --state-dir "$2" --run-dir "$3" remove "$name" --force
    done
    diff <(cut -d' ' -f2 /proc/mounts) <(cut -d' ' -f2 <<< "$MOUNTS") | sed -n 's/^< //p' | while read -r path; do umount -l "$path"; done
    pkill -KILL -x twinblkd
    swapoff -a
    for _ in 1 2 3; do
        losetup -D
        for path in $(dmsetup ls 2> /dev/null | grep -v '^No devices' | cut -f1); do timeout 5 dmsetup remove --force "$path"; done
    done
    for path in /sys/kernel/config/nullb/*/; do [ ! -e "$path" ] || { echo 0 > "$path/power"; rmdir "$path"; }; done
    rmmod scsi_debug brd
    for path in /lab/disk*; do blockdev --setrw "$path"; blkdiscard -zf "$path"; blockdev --rereadpt "$path"; done
    # Killed processes take a moment to be gone.
    for _ in $(seq 50); do
        [ -n "$(leftovers "$1")" ] || break
        sleep 0.1
    done
    set +x
} > "/tmp/cleared" 2>&1

run_case() {
    local full=$1 file name text limit begun=$SECONDS session status=0 left
    file=$(echo "$CASES"/[0-9]*-"${full%%/*}".sh) name=${full#*/}
    IFS=$'\t' read -r limit text < <(
        property() { [ "$1" != "$name" ] || printf '%s\t%s\n' "$2" "$3"; }
        # shellcheck source=/dev/null
        . "$file"
    )
    rm -rf --one-file-system /tmp/case /run/twinblk-case /var/lib/twinblk-case
    mkdir -p /tmp/case /run/twinblk-case /var/lib/twinblk-case
    for disk in /lab/disk*; do blkdiscard -zf "$disk" 2> /dev/null || { echo "     $disk cannot be wiped"; return 1; }; done
    echo "lab: case $full" > /dev/kmsg
    setsid --wait bash -c 'echo $$ > /tmp/case.session; exec timeout --foreground -k 10 "$@"' - $((limit * 4)) \
        env TWINBLK_STATE_DIR=/var/lib/twinblk-case TWINBLK_RUN_DIR=/run/twinblk-case \
        bash /lab/files/one.sh "$file" "$name" > /tmp/case.out 2>&1 < /dev/null || status=$?
    session=$(< /tmp/case.session)
    # The last reference to a device or a process that has just ended may take a moment.
    left=''
    if [ "$status" = 0 ]; then
        for _ in $(seq 30); do
            left=$(leftovers "$session")
            [ -n "$left" ] || break
            sleep 0.1
        done
    fi
    if grep -qs 'panicked' /run/twinblk-case/*.log; then
        echo "a daemon has panicked" >> /tmp/case.out
        [ "$status" != 0 ] || status=1
    fi
    if [ "$status" = 0 ] && [ -z "$left" ]; then
        echo "ok   $LAB_KERNEL $text  [$full $((SECONDS - begun)) s]"
        [ ! -s /tmp/case/measured ] || sed 's/^/     /' /tmp/case/measured
        return 0
    fi
    echo "FAIL $LAB_KERNEL $text  [$full $((SECONDS - begun)) s]"
    {
        case $status in
            0) echo "it has left something behind:"; echo "$left" ;;
            124 | 137) echo "not done after $((limit * 4)) s" ;;
            *) echo "status $status" ;;
        esac
        tail -n 60 /tmp/case.out
        echo "--- steps"; tail -n 12 /tmp/case/trace
        for log in /run/twinblk-case/*.log; do echo "--- $log"; tail -n 20 "$log"; done
        # The stacks of whatever is stuck in the kernel go to its log.
        echo w > /proc/sysrq-trigger
        echo "--- kernel"; dmesg | tac | sed '/lab: case/q' | tac | tail -n 60
    } 2> /dev/null | sed 's/^/     /'
    mkdir -p "/lab/results/${full/\//-}"
    cp -r /tmp/case.out /tmp/case/trace /run/twinblk-case /var/lib/twinblk-case "/lab/results/${full/\//-}/" 2> /dev/null
    clear_away "$session" /var/lib/twinblk-case /run/twinblk-case
    cp /tmp/cleared "/lab/results/${full/\//-}/"
    left=$(leftovers "$session")
    [ -z "$left" ] || { printf 'a new boot is needed:\n%s\n' "$left" | sed 's/^/     /'; return 1; }
}

# Loops and modules are loaded once, so that nothing but the case counts.
modprobe -a loop dm_mod 2> /dev/null
MOUNTS=$(< /proc/mounts)
for case in "$@"; do
    run_case "$case" || exit 1
done
