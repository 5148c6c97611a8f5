"""Text that others wrote (logs, peers, names of files), made safe for where it goes: a line of a terminal, a command to type, written JSON."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable


def printable(text: str) -> str:
    """One line that a terminal shows and never obeys: white space becomes a blank; other control, escape, bidirectional, invisible and
    undecodable characters become U+FFFD.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def word(value: object) -> str:
    """One word of a command to type: a shell takes it as it stands, whatever is in it."""
    return shlex.quote(printable(str(value)))


def words(values: Iterable[object]) -> str:
    """Several of them, with blanks between."""
    return " ".join(map(word, values))


def json_text(document: str) -> str:
    """JSON that is as easy to read and holds the same, in which whatever a terminal might obey or hide is written as \\uXXXX."""
    return re.sub(r"[^\n -~]", lambda match: match[0] if match[0].isprintable() else _escaped(match[0]), document)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
