"""Finds private keys in a text, also where a log put something before each of their lines, or where one end is cut off."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator

from ncclcheck.secret_names import is_random

Span = tuple[int, int]

LARGEST = 1 << 16  # characters between the beginning and the end of a key
_MARK = re.compile(r"-{4,5} ?(?P<side>BEGIN|END) [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)? ?-{0,5}")
_BODY = r"[A-Za-z0-9+/=]"
_ALPHABET = f"{string.ascii_letters}{string.digits}+/=\\"
_RUN = re.compile(rf"(?:(?<=\\n)|(?<=\\r)|(?<![A-Za-z0-9+/=\\])){_BODY}+")
_TAIL = re.compile(r"(?:\\+[nr]|\x1b\[[\d;]*m|[\"',\s+)])*\Z")  # what may stand after the last run of a line
_GOES_ON = re.compile(r"[ \t]+\S")
_ESCAPED = re.compile(rf"(?:(?:\\+[nr]|[ \t])*+{_BODY}{{16,}}+)*+")  # what follows a beginning in its own line
_LONG = 40  # characters that a whole line of a key has, wherever it stands in the line of a log
_SHORT = 16  # and one where the others of the key stand, or at the end of the line
_OTHERS = 3  # lines of others between those of a key, after which a key without an end is over


def spans(text: str) -> Iterator[Span]:
    """Where the secret part of private keys stands."""
    if "PRIVATE KEY" not in text:
        return
    marks: list[re.Match[str] | None] = [None, *_MARK.finditer(text), None]
    for before, after in itertools.pairwise(marks):
        begins = before is not None and before["side"] == "BEGIN"
        ends = after is not None and after["side"] == "END"
        start, end = before.end() if before else 0, after.start() if after else len(text)
        if begins and before and ends and after and end - start <= LARGEST:
            yield from _whole(text, start, end, _column(text, before.start()))
            continue
        if begins and before:
            yield from _open(text, start, min(end, start + LARGEST), _column(text, before.start()))
        if ends and after:
            yield from _cut(text, max(start, end - LARGEST), end, _column(text, after.start()))


def _whole(text: str, start: int, end: int, column: int) -> Iterator[Span]:
    """Of a key with both its ends: between them may stand what others logged meanwhile."""
    lines = [*_lines(text, start, end)]
    if len(lines) == 1:  # with escaped line ends, or with spaces in their place
        yield start, end
        return
    last = len(lines) - 3  # where the last two before that of the end begin: they may be short
    for number, (begin, stop) in enumerate(lines):
        yield from _runs(text, begin, stop, column, 1 if last <= number < len(lines) - 1 else _SHORT)


def _open(text: str, start: int, end: int, column: int) -> Iterator[Span]:
    """Of a key whose end is missing."""
    if escaped := _ESCAPED.match(text, start, end):
        yield escaped.span()
    yield from _row(text, [*_lines(text, start, end)][1:], column, _SHORT)


def _cut(text: str, start: int, end: int, column: int) -> Iterator[Span]:
    """Of a key whose beginning is missing, as in the last megabytes of a log."""
    lines = [*_lines(text, start, end)]
    begin, stop = lines.pop()
    if len(head := text[begin:stop].rstrip(_ALPHABET)) <= stop - begin - _SHORT:  # with escaped line ends
        yield begin + len(head), stop
    yield from _row(text, lines[::-1], column, 1)


def _row(text: str, lines: list[Span], column: int, least: int) -> Iterator[Span]:
    """Lines of a key in a row, until there are `_OTHERS` that are none; the first may be as short as `least`."""
    others = 0
    for begin, stop in lines:
        found = [*_runs(text, begin, stop, column, least)]
        yield from found
        others = 0 if found else others + 1
        least = _SHORT
        if others == _OTHERS:
            return


def _runs(text: str, begin: int, stop: int, column: int, least: int) -> Iterator[Span]:
    """Runs of a key's characters in a line: long ones, and those with which the line ends or that stand where the key does."""
    for run in _RUN.finditer(text, begin, stop):
        long = run.end() - run.start()
        if long < _LONG:
            ends = _TAIL.fullmatch(text, run.end(), min(stop, run.end() + 64)) and long >= _SHORT and is_random(run[0])
            if long < least or not (ends or (run.start() - begin == column and not _GOES_ON.match(text, run.end(), stop))):
                continue
        yield run.span()


def _lines(text: str, start: int, end: int) -> Iterator[Span]:
    while (stop := text.find("\n", start, end)) >= 0:
        yield start, stop
        start = stop + 1
    yield start, end


def _column(text: str, at: int) -> int:
    return at - text.rfind("\n", max(0, at - LARGEST), at) - 1
