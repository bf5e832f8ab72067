#!/bin/bash
# Proves that the lab works: every promise of `lab run`, on each kernel (or on those given). Prints one line per property.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB=$HERE/../lab
RUBLK=$(echo "${TWINBLK_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/twinblk-lab}"/rublk-*/bin)
SCRATCH=$(mktemp -d "${TMPDIR:-/var/tmp}/twinblk-lab-selftest.XXXXXX")
trap 'rm -rf -- "$SCRATCH"' EXIT

ok() { echo "ok   $KERNEL $*"; }

fail() {
    echo "FAIL $KERNEL $*" >&2
    tail -n 30 "$SCRATCH/log" >&2
    exit 1
}

# Runs the lab with the kernel under test and fresh results; sets STATUS.
lab() {
    rm -rf -- "$SCRATCH/results"
    STATUS=0
    "$LAB" run --kernel "$KERNEL" --results "$SCRATCH/results" "$@" > "$SCRATCH/out" 2> "$SCRATCH/log" || STATUS=$?
}

# supervise BOOTS [LAST_WORDS]: of a guest whose emulator aborts that often while it boots, having printed LAST_WORDS; sets STATUS.
supervise() {
    rm -rf -- "$SCRATCH/results"
    mkdir "$SCRATCH/results"
    rm -f -- "$SCRATCH/out.img"
    truncate -s 1M "$SCRATCH/out.img"
    cat > "$SCRATCH/emulator" << 'END'
#!/bin/bash
echo boot >> "$1/boots"
echo "$3" > "$1/console.log"
[ "$(wc -l < "$1/boots")" -gt "$2" ] || kill -ABRT $$
echo 7 > "$1/exit-status"
tar -cf "$1/../out.img" -C "$1" exit-status
END
    chmod +x "$SCRATCH/emulator"
    STATUS=0
    python3 "$HERE/../lab.d/supervise.py" --timeout 20 --results "$SCRATCH/results" --out-disk "$SCRATCH/out.img" -- \
        "$SCRATCH/emulator" "$SCRATCH/results" "$1" "${2:-}" > "$SCRATCH/out" 2> "$SCRATCH/log" || STATUS=$?
}

an_emulator_that_dies_while_it_boots_is_started_again() {
    local text='an emulator that dies while the kernel starts is started again, twice at most'
    supervise 2
    [ "$STATUS" = 7 ] || fail "$text: status $STATUS"
    supervise 3
    [ "$STATUS" = 125 ] && [ "$(wc -l < "$SCRATCH/results/boots")" = 3 ] || fail "$text: status $STATUS"
    supervise 1 'Run /init as init process'
    [ "$STATUS" = 125 ] && [ "$(wc -l < "$SCRATCH/results/boots")" = 1 ] || fail "one that dies later is not: status $STATUS"
    ok "$text"
}

driver_and_modules_load() {
    lab --disk 64M --disk 32M:4096 "$HERE/driver.sh"
    [ "$STATUS" = 0 ] || fail "the driver is there and the modules load: status $STATUS"
    ok "the driver is there and the modules load"
}

things_go_in_and_come_back() {
    mkdir -p "$SCRATCH/bin" "$SCRATCH/files/deep"
    printf '#!/bin/sh\necho from-bin\n' > "$SCRATCH/bin/lab-tool"
    chmod +x "$SCRATCH/bin/lab-tool"
    echo from-files > "$SCRATCH/files/deep/file"
    lab --bin "$SCRATCH/bin" --files "$SCRATCH/files" --env "WORD=two words" "$HERE/exchange.sh" "one arg" last
    [ "$STATUS" = 7 ] || fail "the status comes back: $STATUS instead of 7"
    ok "the status comes back"
    diff <(printf '%s\n' "one arg|last|two words" from-bin from-files) "$SCRATCH/out" || fail "arguments, variables, programs, files"
    diff "$SCRATCH/out" "$SCRATCH/results/stdout" || fail "stdout is kept"
    grep -qx on-stderr "$SCRATCH/log" || fail "stderr is streamed"
    ok "arguments, variables, programs and files go in, output comes back"
    [ "$(cat "$SCRATCH/results/deep/result")" = kept ] || fail "results come back"
    [ "$(stat -c %s "$SCRATCH/results/large")" = 50000000 ] || fail "large results come back"
    grep -q "script ended with 7" "$SCRATCH/results/console.log" || fail "the console is kept"
    ok "results come back"
}

attached_images_keep_what_is_written() {
    truncate -s 8M "$SCRATCH/image"
    lab --attach "leg=$SCRATCH/image" "$HERE/attached.sh"
    [ "$STATUS" = 0 ] || fail "writing to an attached image: status $STATUS"
    [ "$(dd if="$SCRATCH/image" bs=1 skip=4096 count=7 status=none)" = written ] || fail "an attached image keeps what is written"
    ok "an attached image keeps what is written"
}

a_hang_ends_in_a_timeout() {
    lab --timeout 30 "$HERE/hang.sh"
    [ "$STATUS" = 124 ] || fail "a hang ends in a time-out: status $STATUS"
    grep -q "^| .*the last words before the hang" "$SCRATCH/log" || fail "a time-out prints the console"
    ok "a hang ends in a time-out that prints the console"
}

a_panic_is_a_failure() {
    lab "$HERE/panic.sh"
    [ "$STATUS" = 99 ] || fail "a panic is a failure: status $STATUS"
    grep -q "^| .*Kernel panic" "$SCRATCH/log" || fail "a panic is printed"
    lab --allow 'BUG: just a line' "$HERE/report.sh"
    [ "$STATUS" = 0 ] || fail "an allowed report is no failure: status $STATUS"
    lab "$HERE/report.sh"
    [ "$STATUS" = 99 ] || fail "a report is a failure even if the script succeeds: status $STATUS"
    ok "a kernel report is a failure"
}

# Records in the log of acknowledged writes are on both disks after the cut; and the cut does lose something.
a_cut_keeps_what_was_flushed() {
    local seed
    for seed in 1 2 3; do
        lab --seed "$seed" --cut-disk a=64M --cut-disk b=64M:4096 "$HERE/records-write.sh"
        [ "$STATUS" = 0 ] || fail "the power is cut: status $STATUS"
        ! grep -q "script ended" "$SCRATCH/results/console.log" || fail "the guest is gone at the cut"
        acked=$(grep -c '^acked ' "$SCRATCH/results/stdout") || fail "no record was acknowledged before the cut"
        mv "$SCRATCH/results/a.img" "$SCRATCH/a.img"
        mv "$SCRATCH/results/b.img" "$SCRATCH/b.img"
        lab --attach "a=$SCRATCH/a.img" --attach "b=$SCRATCH/b.img" "$HERE/records-check.sh" "$acked"
        [ "$STATUS" = 0 ] || fail "seed $seed: $acked acknowledged records are on both disks: status $STATUS"
        ok "seed $seed: $acked records survived the cut ($(tail -n 1 "$SCRATCH/results/stdout"))"
    done
    ok "a cut keeps what was flushed"
}

a_guest_runs_in_the_guest() {
    lab --disk 16M "$HERE/nested.sh"
    [ "$STATUS" = 0 ] || fail "a guest runs in the guest: status $STATUS"
    ok "a guest runs in the guest"
}

# rublk too if it was built.
the_peers_work() {
    local rublk=()
    [ ! -x "$RUBLK/rublk" ] || rublk=(--bin "$RUBLK")
    lab --files "$HERE/../bench" ${rublk[@]+"${rublk[@]}"} "$HERE/peers.sh"
    [ "$STATUS" = 0 ] || fail "the peers work: status $STATUS"
    ok "the peers work: $(sed -n 's/^ok //p' "$SCRATCH/out" | paste -sd ,)"
}

"$HERE/../cut" selftest > "$SCRATCH/cut" || { cat "$SCRATCH/cut" >&2; exit 1; }
"$LAB" build
[ $# -gt 0 ] || set -- 6.12 7.2
for KERNEL in "$@"; do
    an_emulator_that_dies_while_it_boots_is_started_again
    driver_and_modules_load
    things_go_in_and_come_back
    attached_images_keep_what_is_written
    a_hang_ends_in_a_timeout
    a_panic_is_a_failure
    a_cut_keeps_what_was_flushed
    a_guest_runs_in_the_guest
    the_peers_work
done
echo "the lab works"
