# The tool: exit codes, JSON, what it does not do yet.
# shellcheck shell=bash

property every_answer_is_json 90 'with --json every command prints one object on standard output, also when it fails'
every_answer_is_json() {
    is_object 0 create "$NAME" "$A"
    DEV=$(jq -r .device <<< "$OUT")
    [ -b "$DEV" ] || fail "no device in $OUT"
    is_object 0 attach "$NAME" "$B"
    is_object 0 wait "$NAME"
    is_object 0 status
    is_object 0 status "$NAME"
    is_object 0 list
    is_object 0 switch "$NAME"
    jq -e 'has("from") and has("to") and has("pause_us") and has("generation") and has("era")' <<< "$OUT" > /dev/null
    is_object 0 verify "$NAME"
    jq -e '.equal and has("bytes_compared") and has("differences") and has("repaired_bytes")' <<< "$OUT" > /dev/null
    is_object 0 digest "$NAME"
    jq -e 'has("blake3") and has("leg") and has("generation") and has("known")' <<< "$OUT" > /dev/null
    is_object 0 resync "$NAME" pause
    is_object 0 resync "$NAME" resume
    is_object 0 resync "$NAME" rate 10M
    is_object 0 set "$NAME" quiet 3
    is_object 0 detach "$NAME" a
    is_object 5 detach "$NAME" a
    is_object 5 wait "$NAME"
    is_object 5 switch "$NAME"
    is_object 5 verify "$NAME"
    is_object 5 start "$NAME"
    is_object 3 create "$NAME" "$LARGE"
    is_object 0 stop "$NAME"
    is_object 5 stop "$NAME"
    is_object 5 attach "$NAME" "$A"
    is_object 0 start "$NAME"
    is_object 0 remove "$NAME"
    is_object 4 status "$NAME"
    is_object 0 doctor
}

is_object() {
    local want=$1
    shift
    exits "$want" twinblk --json "$@"
    jq -es 'length == 1 and (.[0] | type) == "object"' <<< "$OUT" > /dev/null || fail "not one object: $* printed $OUT"
    [ "$want" = 0 ] || [ "$want" = 7 ] || { jq -e '.error.message' <<< "$OUT" > /dev/null; [ -n "$ERR" ] || fail "nothing on standard error"; }
}

property unknown_devices_and_usage 60 'an unknown device ends every command with 4, a wrong line with 2'
unknown_devices_and_usage() {
    local command
    for command in "attach nobody $B" "wait nobody" "status nobody" "switch nobody" "detach nobody b" "verify nobody" "digest nobody" \
        "resync nobody pause" "set nobody quiet 1" "stop nobody" "start nobody" "remove nobody"; do
        # shellcheck disable=SC2086 # words
        exits 4 twinblk $command
        says nobody
    done
    exits 2 twinblk
    exits 2 twinblk nonsense
    exits 2 twinblk create "$NAME"
    exits 2 twinblk create "../$NAME" "$A"
    exits 2 twinblk create "$NAME" "$A" --protocol raid
    exits 2 twinblk create "$NAME" "$A" --depth 0
    create "$A"
    exits 2 twinblk set "$NAME" stall-budget soon
    exits 2 twinblk set "$NAME" stall-budget 0
    exits 2 twinblk set "$NAME" colour red
    exits 2 twinblk resync "$NAME" rate 0
    remove
}

property wait_ends_in_time 60 'wait ends with 6 after its time, with 5 as soon as waiting is of no use, with 0 when in sync'
wait_ends_in_time() {
    create "$A"
    exits 5 twinblk wait "$NAME"
    tw resync "$NAME" rate 1M > /dev/null
    attach "$B"
    exits 6 twinblk wait "$NAME" --timeout 1
    holds '.state == "syncing"'
    # A watcher sees the end come when the way there is given up.
    twinblk wait "$NAME" > /dev/null 2>&1 &
    local waiter=$!
    tw resync "$NAME" pause > /dev/null
    ends $waiter
    equals $STATUS 5 "status of the wait"
    tw resync "$NAME" resume > /dev/null
    tw resync "$NAME" rate unlimited > /dev/null
    exits 0 twinblk wait "$NAME"
    remove
}

property watch_shows_frames 40 'status --watch shows the status again and again, in JSON one object a line, and ends with its reader'
watch_shows_frames() {
    create "$A"
    # It ends when nobody reads it any more.
    timeout 20 twinblk status "$NAME" --watch --json < /dev/null | head -n 2 > frames
    equals "$(wc -l < frames)" 2 frames
    jq -es 'length == 2 and all(.name == "vm1" and .state == "single")' frames > /dev/null || fail "$(< frames)"
    timeout 20 twinblk status "$NAME" --watch | head -n 3 > frames
    grep -q vm1 frames
    remove
}

property settings_are_kept 60 'settings take effect, are kept by a stop, and a number already taken is refused'
settings_are_kept() {
    create "$A" --id 7 --depth 32
    tw set "$NAME" stall-budget 1234 > /dev/null
    tw set "$NAME" leg-timeout 7 > /dev/null
    tw set "$NAME" lag-bytes 1M > /dev/null
    tw set "$NAME" catch-up manual > /dev/null
    tw resync "$NAME" rate 5M > /dev/null
    tw stop "$NAME" > /dev/null
    equals "$(field .rate_limit_bytes_per_s)" 5242880 "rate of the stopped device"
    tw start "$NAME" > /dev/null
    equals "$(field .rate_limit_bytes_per_s)" 5242880 rate
    holds '.settings | .stall_budget_ms == 1234 and .leg_timeout_s == 7 and .lag_bytes == 1048576 and .catch_up == "manual"'
    exits 3 twinblk create other "$B" --id 7
    says "already" "--id"
    exits 4 twinblk status other
    remove
}

property no_daemon_says_why 40 'a daemon that cannot start says why through the tool, and leaves nothing'
no_daemon_says_why() {
    exits 1 env TWINBLK_DAEMON=/bin/true twinblk create "$NAME" "$A"
    exits 1 env TWINBLK_DAEMON=/nowhere twinblk create "$NAME" "$A"
    says /nowhere
    exits 4 twinblk status "$NAME"
    create "$A"
    remove
}
