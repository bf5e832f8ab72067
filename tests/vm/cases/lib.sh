# What the cases share. Sourced with `set -Eeuo pipefail`: any step that fails ends the case.
# shellcheck shell=bash

# Two alike, a larger one, two of 4 KiB blocks, two whose size is no multiple of a grain (the second one block larger).
A=/lab/disk0 B=/lab/disk1 LARGE=/lab/disk2 FOUR_A=/lab/disk3 FOUR_B=/lab/disk4 ODD_A=/lab/disk5 ODD_B=/lab/disk6
A=$(readlink -f $A) B=$(readlink -f $B) LARGE=$(readlink -f $LARGE)
FOUR_A=$(readlink -f $FOUR_A) FOUR_B=$(readlink -f $FOUR_B) ODD_A=$(readlink -f $ODD_A) ODD_B=$(readlink -f $ODD_B)
# Seconds after which waiting is given up: a hang, not a slow machine.
PATIENCE=120
NAME=vm1 DEV='' LOADS=() DEFERRED=()
MIB=1048576

fail() {
    echo "$*"
    exit 1
}

# A figure worth printing with the result.
measured() { echo "$*" >> /tmp/case/measured; }

# Runs a command at the end of the case; the last one given runs first.
defer() { DEFERRED=("$(printf '%q ' "$@")" ${DEFERRED[@]+"${DEFERRED[@]}"}); }

# Only of a case that has passed: what a failed one leaves is cleared away by force.
tidy() {
    local status=$? command
    set +e
    trap - ERR
    [ ${#LOADS[@]} -eq 0 ] || kill -KILL "${LOADS[@]}" 2> /dev/null
    if [ "$status" != 0 ]; then
        timeout 10 twinblk status 2>&1
        exit "$status"
    fi
    for command in ${DEFERRED[@]+"${DEFERRED[@]}"}; do
        eval "$command" > /dev/null || { echo "could not tidy up: $command"; status=1; }
    done
    exit "$status"
}

# The tool, with a bound: nothing in the product may hang.
tw() { timeout "${TW_LIMIT:-$PATIENCE}" twinblk "$@"; }

# exits CODE COMMAND...: runs it; its output is in OUT and ERR.
exits() {
    local want=$1 got=0
    shift
    timeout "${TW_LIMIT:-$PATIENCE}" "$@" > /tmp/case/out 2> /tmp/case/err || got=$?
    OUT=$(< /tmp/case/out) ERR=$(< /tmp/case/err)
    [ "$got" = "$want" ] || fail "exit code $got instead of $want: $*"$'\n'"$OUT"$'\n'"$ERR"
}

# says TEXT...: the last `exits` said each on standard error.
says() {
    local text
    for text in "$@"; do
        [[ $ERR == *"$text"* ]] || fail "does not say \"$text\": $ERR"
    done
}

equals() { [ "$1" = "$2" ] || fail "${3:-value}: \"$1\" instead of \"$2\""; }

# create DISK [OPTION...]: a device of the name NAME; sets DEV.
create() {
    DEV=$(tw create "$NAME" "$@")
    [ -b "$DEV" ] || fail "create printed $DEV, which is no block device"
}

attach() { tw attach "$NAME" "$@" > /dev/null; }
in_sync() { tw wait "$NAME" --timeout "${1:-$PATIENCE}" > /dev/null; }

# mirror DISK DISK [OPTION...]: a device of the two, in sync.
mirror() {
    local a=$1 b=$2
    shift 2
    create "$a" "$@"
    attach "$b"
    in_sync
}

# thin_mirror GIB: a mirrored device of two disks that take memory only where they are written to, /dev/ram0 and SECOND. What is
# copied at first are zeroes: the second one swallows those.
thin_mirror() {
    modprobe brd rd_nr=2 rd_size=$(($1 << 20))
    defer rmmod brd
    create /dev/ram0
    modprobe dm_zero
    SECOND=$(dm second /dev/ram1)
    defer dm_gone second
    dm_becomes second /dev/ram1 swallowing
    attach "$SECOND"
    TW_LIMIT=600 in_sync 600
    dm_becomes second /dev/ram1 well
    # From then on it is recorded that it is known where the legs may differ.
    reaches .tracked
}

remove() { tw remove "$NAME" > /dev/null; }

# field EXPRESSION: of the status.
field() { tw status "$NAME" --json | jq -er "$1"; }
holds() { tw status "$NAME" --json | jq -e "$1" > /dev/null || fail "not so: $1 in $(tw status "$NAME" --json)"; }

# reaches EXPRESSION [SECONDS]: waits for the status to be so.
reaches() {
    local end=$((SECONDS + ${2:-$PATIENCE}))
    until tw status "$NAME" --json | jq -e "$1" > /dev/null; do
        [ $SECONDS -lt $end ] || fail "not so after ${2:-$PATIENCE} s: $1 in $(tw status "$NAME" --json)"
        sleep 0.1
    done
}

# Nothing is in flight any more: M = G, nothing runs.
SETTLED='.state == "mirrored" and .resync == null and .dirty_bytes == 0 and .counters.writes_mirrored == .counters.source_generation'
settled() { reaches "$SETTLED" "${1:-$PATIENCE}"; }

# The two legs hold the same bytes, over the device's size.
equal_legs() {
    blockdev --flushbufs "$1" 2> /dev/null || true
    blockdev --flushbufs "$2" 2> /dev/null || true
    cmp -n "${3:-$(field .size_bytes)}" "$1" "$2" || fail "the legs $1 and $2 differ"
}

# hash DISK BYTES
hash_of() {
    blockdev --flushbufs "$1" 2> /dev/null || true
    head -c "$2" "$1" | b3sum --no-names
}

# Random bytes: fill DISK [MIB [AT_MIB]]
fill() { dd if=/dev/urandom of="$1" bs=1M count="${2:-8}" seek="${3:-0}" oflag=direct conv=notrunc status=none; }

# files DIRECTORY: a directory of files that nobody can compress or guess.
files() {
    mkdir "$1"
    head -c 1500K /dev/urandom | split -b 37K - "$1/file-"
}

# load NAME OPTION...: fio in the background until `load_ends`, writing and verifying. Each load needs a range of its own.
load() {
    local name=$1 written
    shift
    written=$(sectors_written)
    fio --name="$name" --filename="$DEV" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=16M \
        --verify=crc32c --verify_backlog=128 --verify_fatal=1 --serialize_overlap=1 --time_based --runtime=3600 \
        --allow_mounted_write=1 --output="/tmp/case/$name.json" --output-format=json --randrepeat=0 "$@" > "/tmp/case/$name.err" 2>&1 &
    LOADS+=($!)
    # It has written before anything else happens, and can be ended: until then it ignores the signal, as all in the background do.
    until [ "$(sectors_written)" -ge $((written + 64)) ] && catches_interrupt "${LOADS[-1]}"; do
        still_runs "${LOADS[-1]}" "the load $name ($(head -c 2000 "/tmp/case/$name.err"))"
        sleep 0.1
    done
}

catches_interrupt() {
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status")
    [ $((0x${mask:-0} & 2)) != 0 ]
}

sectors_written() {
    local stat
    read -ra stat < "/sys/class/block/${DEV##*/}/stat"
    echo "${stat[6]}"
}

# All loads end, and none has seen an error or a wrong byte.
load_ends() {
    local pid json
    for pid in "${LOADS[@]}"; do still_runs "$pid" "a load ($(cat /tmp/case/*.err | head -c 2000))"; done
    kill -INT "${LOADS[@]}"
    for pid in "${LOADS[@]}"; do wait "$pid" || true; done
    LOADS=()
    for json in /tmp/case/*.json; do
        # fio prints notes before the object.
        sed -n '/^{/,$p' "$json" | jq -e '[.jobs[].error] | all(. == 0)' > /dev/null || fail "the load failed: $(head -c 3000 "$json") $(cat "${json%.json}.err")"
        ! grep -E 'verify|error' "${json%.json}.err" || fail "the load found something wrong"
        rm -- "$json"
    done
}

# --- device mapper: a disk that can be made to fail, to hang, or to be slow ---

# dm NAME DISK: a linear mapping; prints its node.
dm() {
    local sectors
    sectors=$(blockdev --getsz "$2")
    echo "0 $sectors linear $2 0" | dmsetup create --noudevsync --uuid "LAB-$1" "$1"
    echo "/dev/$(dmsetup info -c --noheadings -o blkdevname "$1")"
}

# dm_becomes NAME DISK HOW: another table under the running device. What is in flight lands first.
dm_becomes() {
    local sectors table
    sectors=$(blockdev --getsz "$2")
    case $3 in
        well) table="0 $sectors linear $2 0" ;;
        failing) table="0 $sectors error" ;;
        # Writes go nowhere, reads are zeroes.
        swallowing) table="0 $sectors zero" ;;
        # Up for 0 s, down for ever.
        failing_reads) table="0 $sectors flakey $2 0 0 1000000 1 error_reads" ;;
        failing_writes) table="0 $sectors flakey $2 0 0 1000000 1 error_writes" ;;
        slow_writes) table="0 $sectors delay $2 0 0 $2 0 ${4:-3000}" ;;
        *) fail "no such table: $3" ;;
    esac
    dmsetup load --noudevsync "$1" --table "$table"
    dmsetup suspend --noflush --nolockfs --noudevsync "$1"
    dmsetup resume --noudevsync "$1"
}

dm_holds() { dmsetup suspend --nolockfs --noudevsync "$1"; }
dm_goes_on() { dmsetup resume --noudevsync "$1"; }
dm_gone() { dmsetup remove --noudevsync "$1"; }

# The state directory lies on a disk of its own that can be made to fail, and to answer again.
state_on_a_disk() {
    local disk; disk=$(dm state "$LARGE")
    defer dm_gone state
    # Without a journal it goes on where it was when the disk does.
    mkfs.ext4 -q -O ^has_journal "$disk"
    mkdir -p "$TWINBLK_STATE_DIR"
    mount -o errors=continue,noatime "$disk" "$TWINBLK_STATE_DIR"
    defer umount "$TWINBLK_STATE_DIR"
}

# ends PID [SECONDS]: waits for a child; its status is in STATUS. One that does not end fails the case.
ends() {
    local end=$((SECONDS + ${2:-$PATIENCE}))
    while kill -0 "$1" 2> /dev/null; do
        [ $SECONDS -lt $end ] || fail "process $1 still runs after ${2:-$PATIENCE} s: $(cat "/proc/$1/wchan" 2> /dev/null)"
        sleep 0.05
    done
    STATUS=0
    wait "$1" || STATUS=$?
}

still_runs() { kill -0 "$1" 2> /dev/null || fail "${2:-process $1} has ended"; }

kill_daemon() {
    local pid
    pid=$(field .daemon.pid)
    kill -KILL "$pid"
    # Its lock and claims go with it; with nothing in flight on a leg that is at once.
    local end=$((SECONDS + 30))
    while [ -e "/proc/$pid" ]; do [ $SECONDS -lt $end ] || fail "the killed daemon is still there"; sleep 0.05; done
}

# health LEG
health() { field ".legs[] | select(.id == \"$1\").health"; }
becomes() { reaches ".legs[] | select(.id == \"$1\") | .health == \"$2\"" "${3:-$PATIENCE}"; }

sync_device() { python3 -c 'import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); os.fsync(fd)' "$DEV"; }

# record_says EXPRESSION: so says the state directory right now, whatever the daemon knows.
record_says() {
    rm -rf copy
    cp -r "$TWINBLK_STATE_DIR" copy
    mkdir -p nobody
    twinblk --state-dir "$PWD/copy" --run-dir "$PWD/nobody" status "$NAME" --json > copy/status
    jq -e "$1" copy/status > /dev/null || fail "not recorded: $1 in $(< copy/status)"
}

# Which leg is the primary.
is_primary() { holds ".legs[] | select(.id == \"$1\").role == \"primary\""; }

# recorded LEG HEALTH
recorded() { record_says ".legs[] | select(.id == \"$1\") | .health == \"$2\""; }
