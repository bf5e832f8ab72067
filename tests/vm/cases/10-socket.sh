# The admin socket under abuse, and the daemon's memory.
# shellcheck shell=bash

# private_kib: what the daemon has for itself.
private_kib() { awk '/^Private_(Clean|Dirty):/ { sum += $2 } END { print sum }' "/proc/$(field .daemon.pid)/smaps_rollup"; }

property abuse_is_bounded 90 'garbage, floods, half lines and slow readers on the socket: no effect on the load, bounded memory, and it answers after'
abuse_is_bounded() {
    mirror "$A" "$B"
    load writes --fsync=8
    local before after
    before=$(private_kib)
    cat > abuse.py << 'PYTHON'
import json, os, random, socket, sys, threading, time

path, seconds = sys.argv[1], float(sys.argv[2])
end = time.monotonic() + seconds
status = b'{"command":"status"}\n'

def connect():
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(2)
    client.connect(path)
    return client

def until_end(abuse):
    def run():
        rng = random.Random(abuse.__name__)
        while time.monotonic() < end:
            try:
                with connect() as client: abuse(client, rng)
            except (OSError, socket.timeout):
                time.sleep(0.01)
    return run

def garbage(client, rng): client.sendall(rng.randbytes(5000)); client.recv(4096)
def endless_line(client, rng):
    for _ in range(64): client.sendall(b"x" * 65536)
def deep(client, rng): client.sendall(b"[" * 60000 + b"\n"); client.recv(4096)
def half_line(client, rng): client.sendall(b'{"command":"sta'); time.sleep(0.5)
def flood(client, rng):
    for _ in range(200): client.sendall(status * 20)
def slow_reader(client, rng):
    client.sendall(status * 20)
    while time.monotonic() < end: client.recv(1); time.sleep(0.2)
def many(client, rng):
    others = [connect() for _ in range(50)]
    time.sleep(0.3)
    for other in others: other.close()
def descriptors(client, rng):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    try: socket.send_fds(client, [status], fds); client.recv(4096)
    finally:
        for fd in fds: os.close(fd)
def walks(client, rng): client.sendall(b'{"command":"verify"}\n'); time.sleep(0.1)

threads = [threading.Thread(target=until_end(f)) for f in (garbage, endless_line, deep, half_line, flood, slow_reader, many, descriptors, walks)]
for thread in threads: thread.start()
for thread in threads: thread.join()
PYTHON
    timeout 40 python3 abuse.py "$TWINBLK_RUN_DIR/$NAME.sock" 8
    after=$(private_kib)
    measured "private memory before and after: $before KiB, $after KiB"
    # 16 connections with a stack, a line and a reply each are its bound.
    [ "$after" -le $((before + 8192)) ] || fail "it grew from $before to $after KiB"
    reaches '.state == "mirrored"'
    equals "$(ls "/proc/$(field .daemon.pid)/fd" | wc -l | awk '{print ($1 < 64)}')" 1 "few descriptors"
    load_ends
    holds '.io.errors == 0'
    settled
    equal_legs "$A" "$B"
    remove
}

property idle_memory 60 'an idle device has at most 4 MiB of private memory beside 8 MiB of buffers; a mirrored one adds its pool'
idle_memory() {
    local single mirrored detached end
    create "$A"
    single=$(private_kib)
    measured "private memory: single $single KiB"
    [ "$single" -le 12288 ] || fail "single and idle: $single KiB"
    attach "$B"
    in_sync
    mirrored=$(private_kib)
    measured "mirrored $mirrored KiB, of it the pool of 65536 KiB"
    # The copies' buffers are part of what a mirrored one needs.
    [ "$mirrored" -le $((12288 + 65536 + 16384)) ] || fail "mirrored and idle: $mirrored KiB"
    tw detach "$NAME" b > /dev/null
    # It is given back behind the answer.
    end=$((SECONDS + PATIENCE))
    until detached=$(private_kib) && [ "$detached" -le 12288 ]; do
        [ $SECONDS -lt $end ] || fail "detached again: $detached KiB"
        sleep 0.1
    done
    measured "detached again $detached KiB"
    remove
}
