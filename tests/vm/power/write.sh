# Runs in the lab until the power is cut: load on a device with two legs, and what the phase wants to see cut.
set -euo pipefail
protocol=$1 phase=$2

# The state directory is durable before anybody relies on it: the disk loses what was not flushed.
mkfs.ext4 -q /lab/state
mkdir -p /var/lib/twinblk
mount /lab/state /var/lib/twinblk
device=$(twinblk create vm1 /lab/a --protocol "$protocol")

mirror() {
    twinblk attach vm1 /lab/b >&2
    twinblk wait vm1 --timeout 60 >&2
}

# Its output is what may be relied on after the cut. Returns when something was acknowledged.
load() {
    mkfifo journal
    tee copy < journal &
    # Many barriers let the cut fall between them; few leave it more to lose.
    local often=(--sync-every 12 --forced 5)
    [ $((LAB_SEED / 2 % 2)) = 1 ] || often=(--sync-every 100 --forced 0)
    twinblk-load write "$device" --seed "$LAB_SEED" "${often[@]}" > journal &
    load=$!
    acknowledged 5
}

# Waits until so many barriers were acknowledged in all.
acknowledged() {
    until [ "$(grep -c '^synced ' copy)" -ge "$1" ]; do
        kill -0 "$load"
        sleep 0.1
    done
}

ready() { echo @@CUT-READY@@; }

# Every other seed lets the cut fall where only active regions are compared afterwards, and marks come and go under the load.
tracked() {
    [ $((LAB_SEED % 2)) = 1 ] || return 0
    until twinblk status vm1 --json | jq -e .tracked > /dev/null; do
        kill -0 "$load"
        sleep 0.1
    done
}

# Every other seed lets the cut fall into the command itself, the others into the copy that it begins, which lasts longer than
# the cut can wait.
attach_for_the_cut() {
    twinblk resync vm1 rate 6M >&2
    [ $((LAB_SEED / 5 % 2)) = 1 ] || ready
    twinblk attach vm1 /lab/b >&2
    ready
}

# Tells whether the roles were exchanged. 6: the lag did not fit the pause, nothing has changed. In async a secondary that cannot keep
# up is left behind at once; it comes back by itself.
exchange() {
    local status=0
    twinblk switch vm1 >&2 || status=$?
    case $status,$protocol in
        0,*) return 0 ;;
        6,*) return 1 ;;
        5,async) twinblk wait vm1 --timeout 60 >&2 || exit; return 1 ;;
        *) exit 1 ;;
    esac
}

case $phase in
    load)
        mirror
        load
        tracked
        ready
        ;;
    attach)
        load
        attach_for_the_cut
        ;;
    resync)
        mirror
        load
        twinblk detach vm1 b >&2
        acknowledged $(($(grep -c '^synced ' copy) + 10))
        tracked
        attach_for_the_cut
        ;;
    switch)
        mirror
        load
        tracked
        ready
        while kill -0 "$load"; do
            exchange || true
        done
        ;;
    switched)
        mirror
        load
        until exchange; do :; done
        tracked
        ready
        ;;
esac
status=0
wait "$load" || status=$?
echo "the load ended before the cut, with status $status" >&2
exit 1
