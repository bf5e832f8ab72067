# Each protocol, from its creation on and changed at run time.
# shellcheck shell=bash

property sync_mirrors_and_switches 60 'sync: attach, wait and switch under a verified load with fsyncs; the legs are equal after, M = G'
sync_mirrors_and_switches() { under_load sync; }
property flush_mirrors_and_switches 60 'flush: attach, wait and switch under a verified load with fsyncs; the legs are equal after, M = G'
flush_mirrors_and_switches() { under_load flush; }
property async_mirrors_and_switches 60 'async: attach, wait and switch under a verified load with fsyncs; the legs are equal after, M = G'
async_mirrors_and_switches() { under_load async; }

under_load() {
    create "$A" --protocol "$1"
    holds ".protocol == \"$1\""
    load writes --fsync=8
    load large --offset=16M --size=8M --bs=128k --iodepth=4
    attach "$B"
    in_sync
    tw switch "$NAME" > /dev/null
    tw switch "$NAME" > /dev/null
    tw switch "$NAME" > /dev/null
    in_sync
    load_ends
    sync_device
    settled
    holds '.io.errors == 0 and .io.flushes > 0'
    [ "$1" = async ] || holds '.counters | .writes_flushed >= .flush_request'
    equal_legs "$A" "$B"
    remove
}

property changed_under_load 90 'the protocol is changed under load, is kept by a stop, and the legs stay equal'
changed_under_load() {
    local protocol
    mirror "$A" "$B"
    load writes --fsync=8
    for protocol in sync async flush async sync flush sync; do
        tw set "$NAME" protocol $protocol > /dev/null
        holds ".protocol == \"$protocol\""
        reaches '.state == "mirrored"'
    done
    load_ends
    settled
    equal_legs "$A" "$B"
    tw stop "$NAME" > /dev/null
    equals "$(tw status "$NAME" --json | jq -r .protocol)" sync
    tw start "$NAME" > /dev/null
    holds '.protocol == "sync" and .state == "mirrored"'
    remove
}
