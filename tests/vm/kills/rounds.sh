# shellcheck shell=bash
# Runs in the guest: `rounds.sh SEED ROUNDS [PHASE]`. One device, loads that never stop, and a kill per round. Prints `ok` with each round
# that ended well, and ends with the first that did not.
set -Eeuo pipefail

export TWINBLK_STATE_DIR=/var/lib/twinblk-case TWINBLK_RUN_DIR=/run/twinblk-case
rm -rf /tmp/case
mkdir -p /tmp/case "$TWINBLK_STATE_DIR" "$TWINBLK_RUN_DIR"
cd /tmp/case
# shellcheck source=../cases/lib.sh
. /lab/files/lib.sh

FIRST=$1 ROUNDS=$2 PHASE=${3:-}
PROTOCOLS=(sync flush async)
PHASES=(load switch verify detach attach resync restart start)
# So many kills between two looks at the legs, which need the loads to rest.
BETWEEN=4

report() {
    trap - ERR
    echo "FAIL $LAB_KERNEL seed $seed: $protocol, $phase: failed at line $1: $2"
    timeout 10 twinblk status "$NAME" || true
    tail -n 30 /tmp/case/verb /tmp/case/*.err "$TWINBLK_RUN_DIR"/*.log 2> /dev/null
    mkdir -p /lab/results/failed
    cp -r /tmp/case "$TWINBLK_RUN_DIR" "$TWINBLK_STATE_DIR" /lab/results/failed/ 2> /dev/null
    echo w > /proc/sysrq-trigger
    exit 1
}
trap 'report $LINENO "$BASH_COMMAND"' ERR
# `fail` of the library ends with a message and no error.
fail() {
    echo "$*"
    report "${BASH_LINENO[0]}" "${FUNCNAME[1]}"
}

# pick N: a number below N (at most 32768) in PICKED, from the round's seed. Not printed: a subshell has numbers of its own.
pick() { PICKED=$((RANDOM % $1)); }

# Rests for less than so many milliseconds.
rests() {
    pick "$1"
    sleep "$(printf '%d.%03d' $((PICKED / 1000)) $((PICKED % 1000)))"
}

# Starts a verb of the tool beside the loads; that it fails when its daemon dies is its right.
verb() {
    timeout "$PATIENCE" twinblk "$@" > /tmp/case/verb 2>&1 &
    VERB=$!
}

verb_ends() {
    [ -z "$VERB" ] || { wait "$VERB" || true; }
    VERB=''
}

daemon_gone() {
    local end=$((SECONDS + 30))
    until ! pgrep -x twinblkd > /dev/null; do
        [ $SECONDS -lt $end ] || fail "a killed daemon is still there"
        sleep 0.02
    done
}

secondary() { field '.legs[] | select(.role == "secondary") | .id'; }
disk_of() { if [ "$1" = a ]; then echo "$A"; else echo "$B"; fi; }

loads() {
    load writes --size=12M --offset=0
    load syncs --size=12M --offset=12M --rw=randwrite --iodepth=1 --fsync=1
}

# What is under way when the daemon dies.
begin_phase() {
    local leg
    case $phase in
        load) rests 1500 ;;
        switch)
            verb switch "$NAME"
            rests 400
            ;;
        verify)
            verb verify "$NAME"
            rests 1500
            ;;
        detach)
            verb detach "$NAME" "$(secondary)"
            rests 500
            ;;
        attach | resync)
            leg=$(secondary)
            tw detach "$NAME" "$leg" > /dev/null
            rests 1000
            verb attach "$NAME" "$(disk_of "$leg")"
            if [ "$phase" = resync ]; then wait "$VERB"; VERB=''; fi
            rests 1500
            ;;
        restart)
            verb restart "$NAME"
            rests 1500
            ;;
        start)
            pkill -KILL -x twinblkd
            daemon_gone
            verb start "$NAME"
            rests 1200
            ;;
    esac
}

round() {
    local was after leg
    RANDOM=$seed
    pick ${#PROTOCOLS[@]}
    protocol=${PROTOCOLS[PICKED]} phase=${PHASE:-${PHASES[$((seed % ${#PHASES[@]}))]}}
    tw set "$NAME" protocol "$protocol" > /dev/null
    reaches .tracked
    begin_phase
    # A restart may be between two daemons, and a start may have ended: then there is nobody to kill.
    pkill -KILL -x twinblkd || true
    verb_ends
    # Whoever was just being started.
    pkill -KILL -x twinblkd || true
    daemon_gone
    equals "$(tw start "$NAME" --json | jq -r .device)" "$DEV"
    if [ "$(field '[.legs[] | select(.attached)] | length')" = 1 ]; then
        # The detach was done.
        leg=$(secondary)
        tw attach "$NAME" "$(disk_of "$leg")" > /dev/null
    fi
    in_sync 2> /dev/null
    # It was tracked: there is nothing that would have to be compared as a whole.
    after=$(field '(.last_resync // {kind: "none", bytes_total: 0}) | "\(.kind) of \(.bytes_total) bytes"')
    [[ $after != full* ]] || fail "everything was compared: $after"
    for was in "${LOADS[@]}"; do still_runs "$was" "a load ($(head -c 2000 /tmp/case/*.err))"; done
    RESULT=$after
}

modprobe -a loop dm_mod ublk_drv 2> /dev/null || true
PICKED=0 VERB='' seed=$FIRST protocol='' phase='set-up' RESULT=''
mirror "$A" "$B" 2> /dev/null
loads
for ((seed = FIRST; seed < FIRST + ROUNDS; seed++)); do
    begun=$SECONDS
    round
    if [ $(((seed - FIRST + 1) % BETWEEN)) = 0 ] || [ $((seed + 1)) = $((FIRST + ROUNDS)) ]; then
        load_ends
        settled
        holds '.io.errors == 0'
        equal_legs "$A" "$B"
        RESULT+=', legs equal'
        [ $((seed + 1)) = $((FIRST + ROUNDS)) ] || loads
    fi
    echo "ok   $LAB_KERNEL seed $seed: killed in $phase, $protocol: $RESULT  [$((SECONDS - begun)) s]"
done
remove
