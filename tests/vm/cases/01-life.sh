# A device's life, from the first create to its removal.
# shellcheck shell=bash

property born_mirrored_switched_and_buried 120 'a device is mirrored, switched there and back under a verified load, detached, attached again, and its files stay intact'
born_mirrored_switched_and_buried() {
    create "$A"
    # The file system has the lower half and stays mounted all the time, the verified load has the upper one.
    local half=$(($(field .size_bytes) / 2)) pause
    mkfs.ext4 -q "$DEV" $((half / 1024))k
    mount "$DEV" /mnt
    defer umount /mnt
    files /mnt/first
    holds '.state == "single" and (.legs | length) == 1'
    load upper --offset=$half --size=$half
    attach "$B"
    files /mnt/meanwhile
    in_sync
    (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum) > before
    pause=$(tw switch "$NAME" --json | tee switched | jq .pause_us)
    jq -e '.from == "a" and .to == "b" and .era > 0 and .generation > 0' switched > /dev/null
    measured "pause of the switch under load: $pause us"
    holds '[.legs[] | select(.role == "primary").id] == ["b"]'
    pause=$(tw switch "$NAME" --json | jq .pause_us)
    measured "pause of the switch back: $pause us"
    holds '[.legs[] | select(.role == "primary").id] == ["a"]'
    tw detach "$NAME" b > /dev/null
    holds '.state == "single"'
    cp -r /mnt/meanwhile /mnt/later
    attach "$B"
    in_sync
    load_ends
    umount /mnt
    settled
    equal_legs "$A" "$B"
    mount -o ro "$DEV" /mnt
    (cd /mnt && sha256sum --quiet -c /tmp/case/before)
    diff -r /mnt/meanwhile /mnt/later
    umount /mnt
    e2fsck -fn "$DEV" > fsck 2>&1
    remove
    DEFERRED=()
}

property status_has_every_field 60 'the status has every documented field, and its words'
status_has_every_field() {
    mirror "$A" "$B"
    tw status "$NAME" --json > status
    local path
    for path in name uuid device size_bytes protocol era state legs counters dirty_bytes daemon driver_state io; do
        jq -e ".$path != null" status > /dev/null || fail "no $path: $(< status)"
    done
    jq -e 'has("resync") and .resync == null and .last_resync.kind == "full"' status > /dev/null
    for path in source_generation writes_mirrored flush_request writes_flushed; do jq -e ".counters.$path >= 0" status > /dev/null; done
    for path in reads writes flushes discards read_bytes written_bytes errors metadata_writes; do jq -e ".io.$path >= 0" status > /dev/null; done
    for path in bytes_total bytes_done bytes_read bytes_written bytes_matched rate_bytes_per_s eta_s; do
        jq -e ".last_resync.$path >= 0" status > /dev/null
    done
    jq -e '.legs | length == 2 and all(.consistent and .health == "in-sync" and .lag_bytes == 0 and .suspect == []) and all(has("consistent_at_generation"))' status > /dev/null
    jq -e --arg a "$A" --arg b "$B" '.legs[0].path == $a and .legs[1].path == $b' status > /dev/null
    equals "$(jq -r .size_bytes status)" "$(blockdev --getsize64 "$A")" size
    equals "$(jq -r .driver_state status)" live
    equals "$(jq -r .daemon.pid status)" "$(pgrep -x twinblkd)"
    dd if=/dev/urandom of="$DEV" bs=4k count=16 oflag=direct status=none
    dd if="$DEV" of=/dev/null bs=4k count=16 iflag=direct status=none
    settled
    holds '.io.writes >= 16 and .io.reads >= 16 and .io.written_bytes >= 65536 and .io.read_bytes >= 65536 and .io.errors == 0 and .counters.source_generation >= 16'
    remove
}

property digest_is_b3sum 120 'the digest is what b3sum says of the device and of both legs, at any size'
digest_is_b3sum() {
    local size digest
    # One block, less than an extent, one extent, an extent and a block, odd numbers of blocks, no multiple of a grain.
    for size in 512 524800 1048576 1049088 3145728 9437696; do
        truncate -s 0 a.img b.img
        truncate -s $size a.img b.img
        mount_scratch
        head -c $size /dev/urandom > legs/a.img
        truncate -s $size legs/b.img
        create "$PWD/legs/a.img" --logical-block-size 512
        attach "$PWD/legs/b.img"
        in_sync
        digest=$(hash_of "$DEV" $size)
        equals "$(tw digest "$NAME" --json | jq -r .blake3)" "$digest" "digest of $size bytes"
        equals "$(tw digest "$NAME" --leg b --read-back --json | jq -r .blake3)" "$digest" "digest of leg b of $size bytes"
        equals "$(tw digest "$NAME" --leg a --max-pause 0 --json | jq -r .blake3)" "$digest" "digest of leg a of $size bytes"
        remove
        equals "$(hash_of legs/a.img $size)" "$digest" "b3sum of leg a of $size bytes"
        equals "$(hash_of legs/b.img $size)" "$digest" "b3sum of leg b of $size bytes"
        rm legs/a.img legs/b.img
    done
}

# Files as legs, on a file system that can do direct I/O.
mount_scratch() {
    mkdir -p legs
    ! mountpoint -q legs || return 0
    mkfs.ext4 -q "$LARGE"
    mount "$LARGE" legs
    defer umount /tmp/case/legs
}

property digest_under_load 90 'a digest under load is that of one generation, and never wrong'
digest_under_load() {
    create "$A"
    fill "$DEV" 4 20
    load one --size=4M --rate_iops=200
    # What is written all the time cannot be hashed without holding it: done, or given up after the rounds; never a hang.
    local status=0
    tw digest "$NAME" --max-pause 100 --json > digest || status=$?
    [ $status = 0 ] || [ $status = 6 ] || fail "exit code $status"
    load_ends
    equals "$(tw digest "$NAME" --json | jq -r .blake3)" "$(hash_of "$DEV" "$(field .size_bytes)")"
    remove
}

property verify_finds_what_was_changed_behind_it 60 'verify finds a block changed behind it, says where, and ends with 7; equal legs end with 0'
verify_finds_what_was_changed_behind_it() {
    create "$A"
    fill "$DEV" 4 3
    attach "$B"
    in_sync
    exits 0 twinblk verify "$NAME" --json
    jq -e --argjson size "$(field .size_bytes)" '.equal and .bytes_compared == $size and .differences == []' <<< "$OUT" > /dev/null
    # The claim keeps others from an exclusive open, not from a plain one.
    printf x | dd of="$B" bs=1 seek=$((5 * MIB + 12345)) conv=notrunc,fsync status=none
    exits 7 twinblk verify "$NAME" --json
    jq -e --argjson at $((5 * MIB + 12345)) '(.equal | not) and (.differences | length) == 1 and (.differences[0] | .offset <= $at and .offset + .length > $at and .length <= 1048576) and .repaired_bytes == 0' <<< "$OUT" > /dev/null || fail "$OUT"
    exits 7 twinblk verify "$NAME"
    [[ $OUT == *differs:* ]] || fail "$OUT"
    remove
}

property stop_is_refused_while_in_use 60 'a stop is refused while the device is mounted or open, and names the user'
stop_is_refused_while_in_use() {
    create "$A"
    mkfs.ext4 -q "$DEV"
    mount "$DEV" /mnt
    exits 3 twinblk stop "$NAME"
    says "$DEV" "mounted on /mnt"
    exits 3 twinblk remove "$NAME"
    says "mounted on /mnt"
    umount /mnt
    sleep 1000 7< "$DEV" &
    local sleeper=$!
    exits 3 twinblk stop "$NAME"
    says "sleep" "$sleeper"
    kill $sleeper
    wait $sleeper || true
    tw stop "$NAME" > /dev/null
    remove
}

property stopped_and_started_again 60 'a device that was stopped is listed, starts with the same number and content, and goes on mirrored'
stopped_and_started_again() {
    create "$A" --id 5
    equals "$DEV" /dev/ublkb5
    attach "$B"
    in_sync
    fill "$DEV" 8
    local digest size
    size=$(field .size_bytes)
    digest=$(hash_of "$DEV" "$size")
    equals "$(tw list --json | jq -r '.devices[] | select(.name == "vm1") | "\(.state) \(.device)"')" "mirrored /dev/ublkb5"
    tw stop "$NAME" > /dev/null
    [ ! -e /dev/ublkb5 ] || fail "the device is still there"
    ! pgrep -x twinblkd || fail "the daemon is still there"
    equals "$(tw list --json | jq -r '.devices[] | select(.name == "vm1").state')" stopped
    equals "$(tw status "$NAME" --json | jq -r .state)" stopped
    cmp -n "$size" "$A" "$B"
    equals "$(tw start "$NAME" --json | jq -r .device)" /dev/ublkb5
    holds '.state == "mirrored" and .resync == null'
    equals "$(hash_of "$DEV" "$size")" "$digest"
    tw switch "$NAME" > /dev/null
    tw stop "$NAME" > /dev/null
    tw start "$NAME" > /dev/null
    holds '[.legs[] | select(.role == "primary").id] == ["b"]'
    equals "$(hash_of "$DEV" "$size")" "$digest"
    remove
    equals "$(tw list --json | jq -c .devices)" "[]"
    exits 4 twinblk status "$NAME"
    equals "$(hash_of "$A" "$size")" "$digest"
    equals "$(hash_of "$B" "$size")" "$digest"
}

property stopped_as_soon_as_started 60 'a device that is stopped the moment it is there is gone, every time'
stopped_as_soon_as_started() {
    local round
    create "$A"
    for round in $(seq 12); do
        tw stop "$NAME" > /dev/null
        tw start "$NAME" > /dev/null
    done
    remove
}
