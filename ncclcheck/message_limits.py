"""What a value in an agent's message may be: how long a text, how large a number, how deep a document."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from ncclcheck.safe_text import printable

LONGEST_TEXT = 2**17  # characters of one text
MOST_VALUES = 2**17  # that a message's open values hold, or that are kept of what one rank says: each takes up to 100 bytes of memory
DEEPEST = 12  # lists and mappings inside each other
MOST_PLACES = 2**16  # nodes, or ranks of a node
MOST_RANKS = 2**20

_CONTROL = r"\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
"""Characters that change what a terminal shows: control characters, marks that turn the direction of writing, and invisible ones."""

_UNSAFE_BUT_LINES = re.compile(rf"(?![\n\t])[{_CONTROL}]")

Name = Annotated[str, Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]  # of a run, a launch, a probe, a fault, a section
Label = Annotated[str, Meta(pattern=rf"\A[^{_CONTROL}]{{0,512}}\Z")]  # one line of a peer's words
Host = Annotated[str, Meta(pattern=rf"\A[^{_CONTROL}/\s]{{1,255}}\Z")]
Address = Annotated[str, Meta(pattern=r"\A[0-9A-Fa-f:.]{0,45}\Z")]  # IPv4 or IPv6; empty: none
Port = Annotated[int, Meta(ge=0, le=65535)]
NodeRank = Annotated[int, Meta(ge=0, lt=MOST_PLACES)]
RankNumber = Annotated[int, Meta(ge=0, lt=MOST_RANKS)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Places = Annotated[int, Meta(ge=1, le=MOST_PLACES)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Secret = Annotated[bytes, Meta(max_length=32)]
Document = Annotated[bytes, Meta(max_length=2**20)]  # compressed


class Invalid(ValueError):
    """A message that no agent of this version sends; the text says which part of it, and why."""


class Room:
    """How many more values are kept of what a peer says: small ones take far more memory than bytes on the way."""

    __slots__ = ("left",)

    def __init__(self, values: int = MOST_VALUES) -> None:
        self.left = values

    def take(self, values: int) -> None:
        """Raises Invalid where there is no room for so many."""
        self.left -= values
        if self.left < 0:
            raise Invalid("it holds too many values")


def plain(value: Any, room: Room | None = None, depth: int = 0) -> Any:
    """An open value as it may be kept: JSON's types, numbers that are finite, texts without control characters but line ends and tabs.

    Raises Invalid for another type, a number that is none, more than DEEPEST levels, or what there is no room for. An unsafe
    character is replaced, since what users wrote into their logs is quoted as evidence.
    """
    if isinstance(value, str):
        return words(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return finite(value)
    room = room or Room()
    if depth == DEEPEST:
        raise Invalid(f"it has more than {DEEPEST} levels")
    if isinstance(value, list | tuple):
        room.take(1 + len(value))
        return [plain(item, room, depth + 1) for item in value]
    if isinstance(value, Mapping):
        room.take(1 + len(value))
        return {_key(key): plain(item, room, depth + 1) for key, item in value.items()}
    raise Invalid(f"it holds a {type(value).__name__}")


def words(text: str) -> str:
    """A text of several lines, every unsafe character replaced. Raises Invalid where it is too long."""
    if len(text) > LONGEST_TEXT:
        raise Invalid(f"it holds a text of {len(text)} characters; at most {LONGEST_TEXT}")
    return text if text.isascii() and text.isprintable() else _UNSAFE_BUT_LINES.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, longest: int = 500) -> str:
    """A text as it may stand in one line: unsafe characters replaced, cut to so many characters."""
    return printable(text[:longest])


def finite(number: float) -> float:
    """The number. Raises Invalid for infinity and for what is none."""
    if not math.isfinite(number):
        raise Invalid(f"it holds the number {number}")
    return number


def is_loopback(address: str) -> bool:
    """Whether this address never leaves its host."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def of_a_node(address: str) -> bool:
    """Whether this is the address of one node: not a group of them, not nobody's, not this host's own loopback, and no link-local one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_multicast or found.is_unspecified or found.is_link_local or str(found) == "255.255.255.255")


def _key(key: object) -> str:
    if isinstance(key, str):
        return words(key)
    raise Invalid(f"it holds a {type(key).__name__} as a key")
