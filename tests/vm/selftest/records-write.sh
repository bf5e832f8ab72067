# Runs in the lab until the power is cut: writes numbered records to both disks, flushes, then acknowledges. Between the
# flushes it overwrites another region many times, so that the cut finds writes that were not flushed.
set -euo pipefail
exec python3 - << 'PYTHON'
import mmap, os

SLOTS, TURNS = 8, 25
disks = [os.open(f"/lab/{name}", os.O_RDWR | os.O_DIRECT) for name in ("a", "b")]
buffer = mmap.mmap(-1, 16384)

def write(disk, version, offset):
    buffer[:] = version.to_bytes(8, "little") * 2048
    assert os.pwrite(disk, buffer, offset) == len(buffer)

record = 0
while True:
    for disk in disks:
        write(disk, record + 1, record * 16384)
    for disk in disks:
        os.fsync(disk)
    print(f"acked {record}", flush=True)
    if record == 5:
        print("@@CUT-READY@@", flush=True)
    for turn in range(TURNS):
        for slot in range(SLOTS):
            for disk in disks:
                write(disk, (record << 8) + turn, (32 << 20) + slot * 16384)
    record += 1
    assert record < 2000
PYTHON
