#!/usr/bin/env python3
"""Prints what `measure.sh` has left as a table, and writes it as JSON.

usage: table.py KERNEL RESULTS JSON
"""

import json
import os
import sys

NAMES = {
    "raw": "the raw leg",
    "rublk": "rublk loop, one leg, no mirror",
    "single": "twinblk, one leg",
    "sync": "twinblk, mirrored, sync",
    "flush": "twinblk, mirrored, flush",
    "async": "twinblk, mirrored, async",
    "md": "md raid1 with bitmap",
    "md-4m": "md raid1, bitmap of 4 MiB chunks",
    "dm": "dm-mirror",
    "qsd": "qemu-storage-daemon, VDUSE",
}
LOADS = {
    "write-4k-qd1": "write qd1",
    "write-4k-qd32": "write qd32",
    "read-4k-qd32": "read qd32",
    "write-4k-fsync": "write+fsync",
    "write-128k-qd32": "128K write",
}
SPREAD = {
    "write-4k-spread-qd1": "write qd1",
    "write-4k-spread-qd32": "write qd32",
}
# What is aimed at: (device, load, measure, at most so many times the measure's).
AIMS = [
    ("sync", "write-4k-qd32", "md", 1.2),
    ("single", "write-4k-qd32", "rublk", 1.1),
    ("single", "read-4k-qd32", "rublk", 1.1),
]


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def row(first, rest):
    print(f"{first:34}" + "".join(f"{cell:>13}" for cell in rest))


def print_spread(spread):
    print("\nThe same for 4 KiB writes all over a disk of 32 GiB, to twinblk's regions of 4 MiB, of which 2048 may be active, and to chunks")
    print("of md's bitmap of which any number may be set; nothing is marked at first. Metadata: how many writes of marks there are for")
    print("one of these, to the state directory or to a member of md. All of it is on memory-backed disks: counted is what is done for")
    print("it (its thread: by that of twinblk which writes marks), none of the time that a disk takes for a flush. See spread.sh.")
    row("", [heading for name in SPREAD.values() for heading in (name, "metadata", "its thread")])
    for device, name in NAMES.items():
        if device not in spread:
            continue
        cells = []
        for line in (spread[device][load] for load in SPREAD):
            thread = "" if device.startswith("md") else f"{line['metadata_thread']:,.0f}"
            cells += [f"{line['instructions']:,.0f}", f"{line['metadata_writes']:.4f}", thread]
        row(name, cells)


def main():
    kernel, results, out = sys.argv[1:]
    figures, spread = {}, {}
    for line in lines(os.path.join(results, "measured")):
        if line["load"] in SPREAD:
            spread.setdefault(line["device"], {})[line["load"]] = line
        else:
            figures.setdefault(line["device"], {})[line["load"]] = line["instructions"]
    breakdown = {line.pop("device"): line for line in lines(os.path.join(results, "breakdown"))}

    print(f"Instructions of the whole machine for one I/O of fio, 4 KiB unless said, kernel {kernel}")
    row("", LOADS.values())
    for device, name in NAMES.items():
        if any(load in figures.get(device, {}) for load in LOADS):
            row(name, (f"{figures[device][load]:,.0f}" for load in LOADS))

    if breakdown:
        print("\nWhere those of a 4 KiB write at depth 32 go. The daemon's: its own code (the example `cost` counts it), and what the")
        print("kernel does on its thread, which is taking the request, the writes to the legs, and the answer.")
        row("", ["all", "fio's side", "the daemon's", "2nd leg's"])
        single = breakdown.get("single")
        for device, parts in breakdown.items():
            second = f"{parts['daemon'] - single['daemon']:,.0f}" if single and device != "single" else ""
            shares = (f"{parts['total']:,.0f}", f"{parts['total'] - parts['daemon']:,.0f}", f"{parts['daemon']:,.0f}", second)
            row(NAMES[device], shares)

    if spread:
        print_spread(spread)

    aims = []
    for device, load, measure, most in AIMS:
        if load in figures.get(device, {}) and load in figures.get(measure, {}):
            ratio = figures[device][load] / figures[measure][load]
            aims.append({"device": device, "load": load, "of": measure, "ratio": round(ratio, 3), "aim": most})
    if aims:
        print()
    for aim in aims:
        verdict = "within" if aim["ratio"] <= aim["aim"] else "NOT within"
        print(f"{LOADS[aim['load']]}: {NAMES[aim['device']]} is {aim['ratio']} of {NAMES[aim['of']]}, {verdict} {aim['aim']}")

    with open(out, "w") as file:
        json.dump(
            {"kernel": kernel, "instructions": figures, "breakdown": breakdown, "spread": spread, "aims": aims}, file, indent=1
        )
        file.write("\n")
    print(f"\nwritten: {out}")


main()
