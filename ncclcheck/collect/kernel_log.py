"""The kernel's newest messages (Xid, out of memory, links), in the form of `journalctl -k`."""

from __future__ import annotations

import errno
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime

from ncclcheck.collect import host, patient
from ncclcheck.collect.taken import Item, Missing, Taken, refused

_LINES = 500
_RECORD = 8192  # bytes: the longest that /dev/kmsg gives at once
_REMEDY = "sudo ncclcheck collect; or sysctl kernel.dmesg_restrict=0; or: journalctl -k -n 500 > dmesg.txt"
_DMESG = re.compile(r"\[\s*(\d+\.\d+)\] ?(.*)")


def messages() -> Iterator[Item]:
    """`dmesg.txt`: the last 500, with this node's name and local time."""
    origin = "/dev/kmsg"
    try:
        lines = _records()
    except OSError as error:
        try:
            lines, origin = deque(map(_parse, patient.output(("dmesg",), 5.0).splitlines()), _LINES), "dmesg"
        except OSError:
            yield refused("kernel log", error, _REMEDY)
            return
    if not lines:
        yield Missing("kernel log", f"{origin} is empty; a container may not see it", "on the host: journalctl -k -n 500 > dmesg.txt")
        return
    booted, name = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC), host.name()
    text = "".join(f"{datetime.fromtimestamp(booted + seconds):%b %d %H:%M:%S} {name} kernel: {message}\n" for seconds, message in lines)
    yield Taken("dmesg.txt", text, origin)


def since(moment: float) -> list[str]:
    """The messages since a moment of the monotonic clock, without their times; none where the log may not be read."""
    try:
        return [message for seconds, message in _records() if seconds >= moment]
    except OSError:
        return []


def about(pattern: re.Pattern[str], most: int) -> list[tuple[float, str]]:
    """The newest messages since boot that match: seconds since then, and text. Raises OSError where the log may not be read."""
    return list(deque((record for record in _all() if pattern.search(record[1])), most))


def _records() -> deque[tuple[float, str]]:
    """Seconds since boot and text of each of the newest messages. Raises OSError."""
    return deque(_all(), _LINES)


def _all() -> Iterator[tuple[float, str]]:
    """Every message that the kernel still has. Raises OSError."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(descriptor, _RECORD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten while it was read: the next read goes on after it
                    continue
                raise
            if not record:
                return
            head, _, text = record.decode("utf-8", "replace").partition(";")
            fields = head.split(",")
            if len(fields) > 2 and fields[2].isdecimal():
                yield int(fields[2]) / 1e6, text.split("\n", 1)[0]
    finally:
        os.close(descriptor)


def _parse(line: str) -> tuple[float, str]:
    match = _DMESG.match(line)
    return (float(match[1]), match[2]) if match else (0.0, line)
