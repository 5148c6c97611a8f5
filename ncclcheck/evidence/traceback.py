"""Python tracebacks in a log: the error each one ends with, and where it was raised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ncclcheck.model import Evidence, Fact

_START = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$')
_ERROR = re.compile(r"^(?P<type>(?:\w+\.)*[A-Z]\w*): ?(?P<message>.*)$|^(?P<bare>[A-Z]\w*(?:Error|Exception|Interrupt))$")


def read(lines: Iterable[str], file: str) -> Iterator[Fact]:
    """A fact of kind "traceback" (type, message, where) for each traceback, quoting its last line."""
    where, inside = "", False
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\n")
        if line.startswith(_START):
            where, inside = "", True
        elif inside and (frame := _FRAME.match(line)):
            where = f"{frame['name']} ({frame['file']}:{frame['line']})"
        elif inside and (error := _ERROR.match(line)):
            inside = False
            kind = error["type"] or error["bare"]
            yield Fact("traceback", fields={"type": kind, "message": error["message"] or "", "where": where}, source=Evidence(file, number, line))
