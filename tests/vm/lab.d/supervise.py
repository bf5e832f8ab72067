#!/usr/bin/env python3
"""Runs one guest: streams the script's output, enforces the time-out or the power cut, judges the console, unpacks the results.

Everything after `--` is QEMU's command line; @OUT@ and @ERR@ in it become pipes that carry the script's stdout and stderr.
"""

import argparse
import ctypes
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import tarfile
import time

CUT_MISSED, KERNEL_REPORT, TIMED_OUT, NO_STATUS = 98, 99, 124, 125
CONSOLE_TAIL = 100
# So often at most is a guest started whose emulator dies while it boots.
BOOTS = 3

# What the kernel prints when something is wrong with it, as opposed to with a disk.
REPORT = re.compile(
    r"Kernel panic|\bOops\b|\bBUG:|kernel BUG at|------------\[ cut here \]------|general protection fault"
    r"|INFO: task .* blocked for more than|possible recursive locking|circular locking dependency|inconsistent lock state"
    r"|rcu.*detected (?:expedited )?stall|rcu.*self-detected stall|soft lockup|hard LOCKUP|UBSAN:|KASAN:|Out of memory: Killed"
)


def die_with_parent():
    """A guest never outlives its supervisor."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def start(command):
    """Starts QEMU; returns it and the reading ends of the script's stdout and stderr."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    command = [
        argument.replace("@OUT@", f"/proc/self/fd/{out_write}").replace("@ERR@", f"/proc/self/fd/{err_write}")
        for argument in command
    ]
    qemu = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=(out_write, err_write), preexec_fn=die_with_parent
    )
    os.close(out_write)
    os.close(err_write)
    return qemu, out_read, err_read


def cut_power(qemu):
    """Kills QEMU at an instant: no write to a log is half done.

    SIGKILL alone would end a write system call in the middle, leaving a log entry whose data is partly missing without any sign
    of it. SIGSTOP lets system calls end and starts no new one; an entry whose write had not begun is a hole that the
    rebuild recognises.
    """
    qemu.send_signal(signal.SIGSTOP)
    while not all_stopped(qemu.pid):
        if qemu.poll() is not None:
            break
        time.sleep(0.001)
    qemu.kill()
    qemu.wait()


def all_stopped(pid):
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii", errors="replace") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state not in "TtXZ":
            return False
    return True


class Stream:
    """One of the script's output streams: copied to a file and to the caller, and cut into lines."""

    def __init__(self, copy, live):
        self.copy = open(copy, "wb")
        self.live = live
        self.partial = b""

    def take(self, data):
        """Passes data on; returns the lines it completed."""
        self.copy.write(data)
        self.copy.flush()
        try:
            self.live.write(data)
            self.live.flush()
        except BrokenPipeError:
            pass
        *lines, self.partial = (self.partial + data).split(b"\n")
        return lines


def supervise(options, qemu, out_read, err_read):
    """Copies output until the guest ends; returns "ended", "timed out" or "cut"."""
    cut_line = options.cut_line.encode() if options.cut_line is not None else None
    end_time = time.monotonic() + options.timeout
    cut_time = None
    streams = selectors.DefaultSelector()
    streams.register(out_read, selectors.EVENT_READ, Stream(f"{options.results}/stdout", sys.stdout.buffer))
    streams.register(err_read, selectors.EVENT_READ, Stream(f"{options.results}/stderr", sys.stderr.buffer))
    while streams.get_map():
        next_time = end_time if cut_time is None else min(cut_time, end_time)
        ready = streams.select(max(0.0, next_time - time.monotonic()))
        for key, _ in ready:
            data = os.read(key.fd, 65536)
            if not data:
                streams.unregister(key.fd)
                continue
            lines = key.data.take(data)
            if key.fd == out_read and cut_line is not None and cut_time is None and cut_line in lines:
                wait_ms = random.Random(f"{options.seed}/moment").uniform(0, options.cut_window)
                cut_time = time.monotonic() + wait_ms / 1000
        now = time.monotonic()
        if cut_time is not None and now >= cut_time:
            cut_power(qemu)
            drain(streams)
            return "cut"
        if now >= end_time:
            qemu.kill()
            qemu.wait()
            drain(streams)
            return "timed out"
    qemu.wait()
    return "ended"


def drain(streams):
    """What QEMU had taken from the guest before it was killed is still in the pipes, and belongs to before the cut."""
    while streams.get_map():
        for key, _ in streams.select():
            data = os.read(key.fd, 65536)
            if data:
                key.data.take(data)
            else:
                streams.unregister(key.fd)


def died_booting(options, qemu):
    """Whether the emulator has aborted before the script had said anything, or a disk was in use.

    An emulated guest of several processors can end in an assertion of QEMU's own (10.0: system/physmem.c, iotlb_to_section) while
    its kernel sizes the windows of its PCI devices: another processor translates by the map of a moment ago. Seen once in some 500 boots.
    Nothing that is tested here has run by then.
    """
    aborted = qemu.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)
    silent = all(os.path.getsize(f"{options.results}/{name}") == 0 for name in ("stdout", "stderr"))
    try:
        with open(f"{options.results}/console.log", encoding="utf-8", errors="replace") as file:
            return aborted and silent and "Run /init as init process" not in file.read()
    except FileNotFoundError:
        return aborted and silent


def unpack(options):
    """Unpacks the results; returns the script's exit status, or None if the guest left none."""
    try:
        with tarfile.open(options.out_disk, "r:") as archive:
            # Pythons that know filters want one chosen; what the guest made is a tree of plain files.
            archive.extraction_filter = getattr(tarfile, "tar_filter", None)
            status = int(archive.extractfile("exit-status").read())
            for member in archive:
                if member.name == "exit-status":
                    continue
                member.uid, member.gid = os.getuid(), os.getgid()
                if member.isfile() or member.isdir() or member.issym():
                    member.mode |= 0o600
                    if ".." not in member.name.split("/") and not member.name.startswith("/"):
                        archive.extract(member, options.results, set_attrs=False)
            return status
    except (tarfile.TarError, KeyError, ValueError, OSError):
        return None


def kernel_reports(console, allowed):
    """Line numbers of the kernel's reports."""
    return [
        number
        for number, line in enumerate(console)
        if REPORT.search(line) and not any(pattern.search(line) for pattern in allowed)
    ]


def show(title, lines):
    print(f"lab: {title}", file=sys.stderr)
    for line in lines:
        print(f"| {line}", file=sys.stderr)


def judge(options, outcome):
    try:
        with open(f"{options.results}/console.log", encoding="utf-8", errors="replace") as file:
            console = file.read().replace("\r", "").split("\n")
    except FileNotFoundError:
        console = []
    reports = kernel_reports(console, [re.compile(pattern) for pattern in options.allow])
    if outcome == "timed out":
        show(f"timed out after {options.timeout} s; the end of the console:", console[-CONSOLE_TAIL:])
        return TIMED_OUT
    status = unpack(options) if outcome == "ended" else None
    if reports:
        show("the kernel reports a problem:", console[max(0, reports[0] - 5) : reports[0] + CONSOLE_TAIL])
        return KERNEL_REPORT
    if outcome == "cut":
        return 0
    if status is None:
        show("the guest ended without a status; the end of the console:", console[-CONSOLE_TAIL:])
        return NO_STATUS
    if options.cut_line is not None:
        show(f"the script ended with status {status} before the power cut", [])
        return CUT_MISSED
    return status


def main():
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--out-disk", required=True)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--cut-line")
    parser.add_argument("--cut-window", type=float, default=0)
    parser.add_argument("--seed", default="1")
    options = parser.parse_args(sys.argv[1:split])

    die_with_parent()
    for boot in range(1, BOOTS + 1):
        qemu, out_read, err_read = start(sys.argv[split + 1 :])
        try:
            outcome = supervise(options, qemu, out_read, err_read)
        except BaseException:
            qemu.kill()
            raise
        if boot == BOOTS or outcome != "ended" or not died_booting(options, qemu):
            break
        print("lab: the emulator has aborted while the guest's kernel was starting: once more", file=sys.stderr)
    sys.exit(judge(options, outcome))


if __name__ == "__main__":
    main()
