# One payload and one order: whatever the guest does, both legs hold the same bytes.
# shellcheck shell=bash

property hot_block_sync 60 'eight writers on one hot 64 KiB in sync: equal legs'
hot_block_sync() { hot_block sync; }
property hot_block_flush 60 'eight writers on one hot 64 KiB in flush: equal legs'
hot_block_flush() { hot_block flush; }
property hot_block_async 60 'eight writers on one hot 64 KiB in async: equal legs'
hot_block_async() { hot_block async; }

hot_block() {
    create "$A" --protocol "$1"
    eight_writers & local writers=$!
    attach "$B"
    in_sync
    ends $writers 60
    equals $STATUS 0 "status of the writers"
    settled
    equal_legs "$A" "$B"
    # Once more with both legs there from the first write on, and the roles exchanged under it.
    eight_writers & writers=$!
    tw switch "$NAME" > /dev/null
    ends $writers 60
    equals $STATUS 0 "status of the writers"
    settled
    holds '.io.errors == 0'
    equal_legs "$A" "$B"
    remove
}

eight_writers() {
    fio --name=hot --filename="$DEV" --direct=1 --ioengine=libaio --iodepth=8 --numjobs=8 --thread --rw=randwrite \
        --bsrange=512-65536 --blockalign=512 --size=64k --norandommap --time_based --runtime=4 --refill_buffers --output=hot.txt
}

property buffers_change_places 90 'buffers of requests and of the pool change places, the pool is given back and wanted again: what was written is read, and is on both legs'
buffers_change_places() {
    # A registered buffer names pages: were one of them given back, a disk would get what the page held before.
    local round
    create "$A" --protocol flush
    for round in 1 2 3; do
        attach "$B" --overwrite
        in_sync
        rewrite "$round"
        tw detach "$NAME" b > /dev/null
        equal_legs "$A" "$B"
        # The pool's memory is given back now.
        rewrite "1$round"
        rewrite "2$round"
    done
    holds '.io.errors == 0'
    remove
}

# rewrite SEED: writes of all sizes, then reads and compares all of them.
rewrite() {
    fio --name=rewrite --filename="$DEV" --ioengine=io_uring --direct=1 --size=24M --io_size=24M --iodepth=32 --rw=randwrite \
        --bssplit=4k/50:32k/10:128k/40 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --randseed="$1" --output="rewrite-$1.txt"
}

property buffers_changed_in_flight 60 'a writer that changes its buffers while its writes are in flight: equal legs'
buffers_changed_in_flight() {
    mirror "$A" "$B"
    cat > scribble.py << 'PYTHON'
import mmap, os, sys, threading, time

device, seconds, block = sys.argv[1], float(sys.argv[2]), 65536
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, block)
end = time.monotonic() + seconds
written = 0

def scribble():
    patterns = [bytes([n]) * block for n in range(256)]
    n = 0
    while time.monotonic() < end:
        buffer[:] = patterns[n % 256]
        n += 1

def write(index):
    global written
    offset = 0
    while time.monotonic() < end:
        os.pwritev(fd, [buffer], (index * 64 + offset % 64) * block)
        offset += 1
        written += 1

threads = [threading.Thread(target=scribble) for _ in range(2)] + [threading.Thread(target=write, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
# It is a test only if payloads were caught in the middle of a change.
torn = 0
for block_number in range(4 * 64):
    os.preadv(fd, [buffer], block_number * block)
    torn += len(set(buffer[::512])) > 1
print(written, torn)
sys.exit(written < 64 or torn == 0)
PYTHON
    local protocol caught
    for protocol in sync flush async; do
        tw set "$NAME" protocol $protocol > /dev/null
        caught=$(timeout 30 python3 scribble.py "$DEV" 3)
        measured "$protocol: writes, torn blocks: $caught"
        settled
        equal_legs "$A" "$B"
    done
    remove
}
