"""Leaves out the middle of a flight recorder's pickled dump: what is waited for stands among the newest records.

Building the objects of all records takes most of the time of reading a dump. A record begins with the same few bytes as the
one before it, so they can be told apart without building anything: the first records stay (what later ones refer to is
spelled out there), and so do the newest. Where that fails in any way, the whole dump is read.
"""

from __future__ import annotations

import re

FIRST = 64  # records kept of the beginning, for the texts that are spelled out in them
NEWEST = 512  # records kept of the end: no rank runs further ahead of its GPU
_HEAD = 1 << 20  # bytes in which the records must begin
_PUT = re.compile(rb"q.|r.{4}", re.DOTALL)  # pickle's BINPUT and LONG_BINPUT
_START = re.compile(rb"X\x07\0\0\0entries(?:q.|r.{4})\](?:q.|r.{4})?\((?P<record>\})(?:q.|r.{4})?\(X(?P<size>.{4})", re.DOTALL)


def shortened(data: bytes) -> bytes | None:
    """The dump without its middle, if it is long and written as torch and Python's own pickle (protocol 2 or 3) write it."""
    begin = _begin(data)
    if begin is None:
        return None
    at, record = begin
    first = [at, *(match.start() for _, match in zip(range(FIRST), record.finditer(data, at), strict=False))]
    if len(first) <= FIRST:
        return None
    size = (first[-1] - first[0]) // FIRST  # bytes of a record, about
    window = max(first[-1], len(data) - 2 * NEWEST * size)
    newest = [match.start() for match in record.finditer(data, window)]
    if len(newest) <= NEWEST or newest[-NEWEST] <= first[-1]:
        return None
    return data[: first[-1]] + data[newest[-NEWEST] :]


def _begin(data: bytes) -> tuple[int, re.Pattern[bytes]] | None:
    """Where the first record begins, and what the others begin with: an empty dictionary, a mark, and the first key by reference."""
    if not (start := _START.search(data, 0, _HEAD)):
        return None
    key = start.end() + int.from_bytes(start["size"], "little")  # the first key is spelled out in the first record, and put away
    if not (put := _PUT.match(data, key)):
        return None
    get = b"h" + put[0][1:] if put[0][:1] == b"q" else b"j" + put[0][1:]
    return start.start("record"), re.compile(rb"\}(?:q.|r.{4})?\(" + re.escape(get), re.DOTALL)
