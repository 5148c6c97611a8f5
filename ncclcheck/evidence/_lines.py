"""The lines of a piece of text, each made once, however many readers look ahead at it."""

from __future__ import annotations

import re

from ncclcheck.evidence import places
from ncclcheck.evidence._chunks import LONGEST_LINE
from ncclcheck.evidence._reads import Line

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")  # colours and the like
_BEHIND = 4096  # lines that were passed and are still held


class Lines:
    """The lines of a chunk and of the one after it, from the one that was last moved to."""

    def __init__(self, chunk: bytes, ahead: bytes, file: str) -> None:
        self.raw: dict[int, str] = {}  # number -> the line as it stands in the file, where that has terminal escapes
        self._pieces = ((chunk, 0), (ahead, len(chunk)))
        self._file = file
        self._made: list[Line] = []
        self._first = 0  # the number of the first that is held
        self._next = 0  # where the next to be made begins

    def move(self, number: int, at: int) -> None:
        """Those before this number, which begins at `at`, are not asked for any more."""
        behind = number - self._first
        if behind >= len(self._made):
            self._made, self._first, self._next = [], number, at
        elif behind > _BEHIND:
            del self._made[:behind]
            self._first = number

    def get(self, number: int) -> Line | None:
        """The line of this number, if the chunks have it."""
        while number >= self._first + len(self._made):
            if not self._make():
                return None
        return self._made[number - self._first]

    def _make(self) -> bool:
        for piece, before in self._pieces:
            if (at := self._next - before) < len(piece):
                end = piece.find(b"\n", at)
                end = end if end >= 0 else len(piece)
                text = decoded(piece, at, end)
                number = self._first + len(self._made)
                if (words := plain(text)) is not text:
                    self.raw[number] = text
                self._made.append(line(words, number, self._file))
                self._next = before + end + 1
                return True
        return False


def decoded(chunk: bytes, start: int, end: int) -> str:
    """As much of a line as is looked at."""
    return chunk[start : min(end, start + LONGEST_LINE)].decode("utf-8", "replace")


def plain(text: str) -> str:
    """The text without terminal escapes; the very same where it has none."""
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def line(words: str, number: int, file: str) -> Line:
    """A line, with who speaks in it and when."""
    place, body, time = places.of_line(words)
    return Line(file, number, words, body, place, time)
