# Runs in the lab after the cut: the acknowledged records (their number is the argument) are whole on both disks. Whatever
# was not flushed holds, sector by sector, a version that was written there after the last flush, or the last one before.
set -euo pipefail
exec python3 - "$1" << 'PYTHON'
import sys

SLOTS, TURNS = 8, 25
acked = int(sys.argv[1])
torn = old = 0
for name in ("a", "b"):
    with open(f"/lab/{name}", "rb") as disk:
        for record in range(acked):
            disk.seek(record * 16384)
            assert disk.read(16384) == (record + 1).to_bytes(8, "little") * 2048, f"{name}: record {record}"
        disk.seek(32 << 20)
        for slot in range(SLOTS):
            versions = set()
            for _ in range(32):
                sector = disk.read(512)
                version = int.from_bytes(sector[:8], "little")
                assert sector == version.to_bytes(8, "little") * 64, f"{name}: torn inside a sector"
                record, turn = version >> 8, version & 255
                # The last flush may have come after the last acknowledgement that got out.
                assert record in (acked - 1, acked) or (record == acked - 2 and turn == TURNS - 1), f"{name}: {record}.{turn}"
                versions.add(version)
            torn += len(versions) > 1
            old += len({version for version in versions if version >> 8 == acked - 2}) > 0
print(f"{torn} torn and {old} lost of {2 * SLOTS} unflushed places")
PYTHON
