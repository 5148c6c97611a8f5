"""What a module may read out of text: a Statement (a cause said outright), a Clue (a line that a check wants), a Block (lines together).

Rules and readers list them in a constant `READS`. Patterns are case-sensitive regular expressions that are searched in
one line; each must contain a literal text (its anchor) that every match contains, because only lines with an anchor
are ever looked at: that is what makes a log of gigabytes readable.
"""

from __future__ import annotations

import functools
import re
import re._parser as parser  # type: ignore[import-not-found]  # the standard library's own parser of patterns, for the anchors
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ncclcheck.model import Evidence, Fact

SHORTEST_ANCHOR = 4  # characters; shorter ones stand in too many lines


@dataclass(frozen=True, slots=True)
class Place:
    """Who speaks: as much of it as a line's prefix or a file's name says. `local` is a local_rank."""

    host: str | None = None
    rank: int | None = None
    pid: int | None = None
    local: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log. `text` is the line as it stands, `body` the same without the prefixes that name its speaker."""

    file: str
    number: int
    text: str
    body: str
    place: Place = field(default_factory=Place)
    time: float | None = None  # seconds since the year began, by the speaker's clock

    def fact(
        self, kind: str, fields: dict[str, Any] | None = None, *, rank: int | None = None, host: str | None = None, pid: int | None = None
    ) -> Fact:
        """A fact that this line says, quoted; whom it is about is the speaker unless given."""
        return Fact(
            kind,
            host if host is not None else self.place.host,
            rank if rank is not None else self.place.rank,
            pid if pid is not None else self.place.pid,
            fields or {},
            Evidence(self.file, self.number, self.text),
            self.time,
        )


@dataclass(frozen=True, slots=True)
class Clue:
    """A line that becomes a fact of this kind, its fields the pattern's groups (whole numbers as int).

    The groups rank, host and pid say whom the fact is about; without them it is about the speaker.
    """

    kind: str
    pattern: str

    def read(self, line: Line, following: Iterator[Line]) -> Iterator[Fact]:
        """The fact, if the line matches."""
        if match := compiled(self.pattern).search(line.text):
            words = {name: _number(value) for name, value in match.groupdict().items() if value is not None}
            rank, pid = words.pop("rank", None), words.pop("pid", None)
            host = words.pop("host", None)
            yield line.fact(
                self.kind,
                words,
                rank=rank if isinstance(rank, int) else None,
                pid=pid if isinstance(pid, int) else None,
                host=None if host is None else str(host),
            )


@dataclass(frozen=True, slots=True)
class Statement:
    """A line in which a program or the kernel states a cause: the rule that lists it reports it.

    `title` and `remedy` may use the pattern's groups in braces, and {who}: the speaker (`rank 3 (gpu-07)`). An empty
    remedy means the cause's own (causes.py). Groups whose names begin with rank, host, device or interface name the
    culprit; without such groups it is the one that `blames` says: "speaker", "host" (the speaker's) or "nobody".
    """

    pattern: str
    title: str
    remedy: str = ""
    confidence: float = 0.9
    blames: str = "speaker"
    figures: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None  # more for the braces, worked out from the groups


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that say something only together: `read` gets the one that matches and an iterator over those that follow it.

    What follows a line ends where the next one that matches begins, so that no line is looked at again and again. Not so with
    `mixed`: several processes write there, or `read` must see the next one; it then bounds by itself how far it looks.
    """

    pattern: str
    read: Callable[[Line, Iterator[Line]], Iterator[Fact]]
    mixed: bool = False


Read = Clue | Statement | Block


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Patterns are compiled when their anchor is first seen: most runs need few of them."""
    return re.compile(pattern)


@functools.cache
def anchors(pattern: str) -> tuple[str, ...]:
    """The literal texts of which every match contains one. Raises ValueError where the pattern has none."""
    found = _anchors(parser.parse(pattern))
    if found is None:
        raise ValueError(f"no literal text of {SHORTEST_ANCHOR} characters or more is in every match of {pattern!r}")
    return found


def _anchors(parsed: Any) -> tuple[str, ...] | None:
    """The best of a sequence: the longest literal that is always there, else the alternatives of a branch."""
    candidates: list[tuple[str, ...]] = []
    literal = ""
    for operation, argument in [*parsed, (None, None)]:
        name = str(operation)
        if name == "LITERAL":
            literal += chr(argument)
            continue
        if len(literal) >= SHORTEST_ANCHOR:
            candidates.append((literal,))
        literal = ""
        inner = None
        if name == "SUBPATTERN":
            inner = _anchors(argument[-1])
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and argument[0] > 0:
            inner = _anchors(argument[2])
        elif name == "BRANCH":
            branches = [_anchors(branch) for branch in argument[1]]
            inner = tuple(anchor for branch in branches if branch for anchor in branch) if all(branches) else None
        if inner:
            candidates.append(inner)
    return max(candidates, key=lambda anchor: min(len(text) for text in anchor), default=None)


def _number(value: str) -> int | str:
    return int(value) if len(value) < 19 and value.isascii() and value.isdigit() else value
