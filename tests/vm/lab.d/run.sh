# `lab run` and `lab shell`: options, the run's disks, the results. Sourced, not run.
# shellcheck shell=bash

RESULTS_DISK_SIZE=4G

# Sets the options as globals, and REST to what follows them.
parse_options() {
    KERNEL=6.12 TIMEOUT=300 CPUS=2 MEMORY=2048 ICOUNT=0 BIN='' FILES='' RESULTS=''
    CUT_LINE=@@CUT-READY@@ CUT_WINDOW=2000 SEED=1
    DISKS=() ATTACHED=() CUT_DISKS=() ENVIRONMENT=() ALLOWED=()
    while [ $# -gt 0 ]; do
        case $1 in
            --icount) ICOUNT=1; shift; continue ;;
            --) shift; break ;;
            -*) [ $# -ge 2 ] || die "$1 needs a value" ;;
            *) break ;;
        esac
        case $1 in
            --kernel) KERNEL=$2 ;;
            --timeout) TIMEOUT=$2 ;;
            --cpus) CPUS=$2 ;;
            --mem) MEMORY=$2 ;;
            --bin) BIN=$2 ;;
            --files) FILES=$2 ;;
            --env) ENVIRONMENT+=("$2") ;;
            --disk) DISKS+=("$2") ;;
            --attach) ATTACHED+=("$2") ;;
            --results) RESULTS=$2 ;;
            --allow) ALLOWED+=("$2") ;;
            --cut-disk) CUT_DISKS+=("$2") ;;
            --cut-when) CUT_LINE=$2 ;;
            --cut-window) CUT_WINDOW=$2 ;;
            --seed) SEED=$2 ;;
            *) die "unknown option $1" ;;
        esac
        shift 2
    done
    REST=("$@")
    is_kernel "$KERNEL" || die "no kernel $KERNEL: there are ${LAB_KERNELS[*]}"
}

run_script() {
    parse_options "$@"
    [ ${#REST[@]} -gt 0 ] || die "which script?"
    [ -r "${REST[0]}" ] || die "cannot read the script ${REST[0]}"
    ensure_built
    prepare
    stage_input "${REST[@]}"
    add_disk lab-out "$WORK/out.img"
    QEMU+=(
        -chardev "file,id=console,path=${RESULTS//,/,,}/console.log" -serial chardev:console
        -device virtio-serial-pci
        -chardev "file,id=out,path=@OUT@" -device "virtserialport,chardev=out,name=out"
        -chardev "file,id=err,path=@ERR@" -device "virtserialport,chardev=err,name=err"
    )
    local allowed=() status=0 pattern
    for pattern in ${ALLOWED[@]+"${ALLOWED[@]}"}; do allowed+=(--allow "$pattern"); done
    [ ${#CUT_DISKS[@]} -eq 0 ] || allowed+=(--cut-line "$CUT_LINE" --cut-window "$CUT_WINDOW" --seed "$SEED")
    python3 "$LAB_DIR/lab.d/supervise.py" --timeout "$TIMEOUT" --results "$RESULTS" --out-disk "$WORK/out.img" \
        ${allowed[@]+"${allowed[@]}"} -- "${QEMU[@]}" &
    SUPERVISOR=$!
    wait "$SUPERVISOR" || status=$?
    if [ "$status" = 0 ] && [ ${#CUT_DISKS[@]} -gt 0 ]; then rebuild_cut_disks; fi
    exit "$status"
}

run_shell() {
    parse_options "$@"
    ensure_built
    prepare
    : > "$WORK/empty"
    : > "$WORK/interactive"
    stage_input "$WORK/empty"
    QEMU+=(-serial mon:stdio)
    say "end the shell or press ctrl-a x to leave"
    "${QEMU[@]}"
}

# Makes the work directory and the results directory and the disks of the guest.
prepare() {
    WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/twinblk-lab.XXXXXX")
    # shellcheck disable=SC2064 # the directory of this run, also after WORK is gone
    trap "rm -rf -- '$WORK'" EXIT
    # The guest ends with its supervisor.
    SUPERVISOR=''
    trap '[ -z "$SUPERVISOR" ] || kill "$SUPERVISOR" || true; exit 143' INT TERM HUP
    [ -n "$RESULTS" ] || RESULTS=$WORK/results
    mkdir -p "$RESULTS"
    RESULTS=$(cd "$RESULTS" && pwd)
    truncate -s "$RESULTS_DISK_SIZE" "$WORK/out.img"
    base_machine "$KERNEL" "$CPUS" "$MEMORY" "$ICOUNT"
    local disk number=0
    for disk in ${DISKS[@]+"${DISKS[@]}"}; do
        truncate -s "${disk%%:*}" "$WORK/disk$number.img"
        add_disk "disk$number" "$WORK/disk$number.img" "" "$(block_size_options "$disk")"
        number=$((number + 1))
    done
    for disk in ${ATTACHED[@]+"${ATTACHED[@]}"}; do
        check_name "$disk"
        [ -f "${disk#*=}" ] || die "no image ${disk#*=}"
        add_disk "${disk%%=*}" "${disk#*=}"
    done
    for disk in ${CUT_DISKS[@]+"${CUT_DISKS[@]}"}; do
        prepare_cut_disk "$disk"
    done
}

# NAME=WHAT, the name fit for a serial and a file.
check_name() {
    [[ $1 =~ ^[a-z][a-z0-9-]{0,18}=. ]] || die "a disk is given as NAME=..., not $1"
    [[ $1 != lab-* ]] || die "disk names that begin with lab- are taken"
}

# SIZE[:BLOCK] to options of the virtio device.
block_size_options() {
    case $1 in
        *:*) printf 'logical_block_size=%s,physical_block_size=%s' "${1##*:}" "${1##*:}" ;;
    esac
}

prepare_cut_disk() {
    local name=${1%%=*} what=${1#*=} live
    check_name "$1"
    live=$WORK/$name.live
    if [ -f "$what" ]; then
        cp --sparse=always -- "$what" "$live"
        what=''
    else
        truncate -s "${what%%:*}" "$live"
    fi
    rm -f -- "$RESULTS/$name.log" "$RESULTS/$name.img"
    : > "$RESULTS/$name.log"
    add_logged_disk "$name" "$live" "$RESULTS/$name.log" "$(block_size_options "$what")"
}

rebuild_cut_disks() {
    local disk name what from
    for disk in "${CUT_DISKS[@]}"; do
        name=${disk%%=*} what=${disk#*=} from=()
        if [ -f "$what" ]; then
            from=(--base "$what")
        else
            from=(--size "$(stat -c %s "$WORK/$name.live")")
        fi
        "$LAB_DIR/cut" rebuild --seed "$SEED" --name "$name" --log "$RESULTS/$name.log" --out "$RESULTS/$name.img" "${from[@]}" >&2
    done
}

# The disk that carries the script, its arguments and files into the guest.
stage_input() {
    local stage=$WORK/stage
    mkdir -p "$stage/bin" "$stage/files"
    cp -- "$LAB_DIR/guest/init" "$stage/init"
    chmod 755 "$stage/init"
    cp -- "$1" "$stage/script"
    shift
    : > "$stage/args"
    [ $# -eq 0 ] || printf '%s\0' "$@" > "$stage/args"
    printf '%s\0' "LAB_KERNEL=$KERNEL" "LAB_SEED=$SEED" ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} > "$stage/env"
    [ ! -e "$WORK/interactive" ] || : > "$stage/interactive"
    [ -z "$BIN" ] || cp -aL -- "$BIN/." "$stage/bin/"
    [ -z "$FILES" ] || cp -a -- "$FILES/." "$stage/files/"
    make_image "$stage" "$WORK/in.img"
    rm -rf -- "$stage"
    add_disk lab-in "$WORK/in.img" "readonly=on"
}
