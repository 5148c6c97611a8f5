"""Takes numbers and words out of a config.json that anybody may have written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST = 2**40  # of any number in it


class Unreadable(ValueError):
    """The model cannot be planned for: one line says why."""


class Unknown(Unreadable):
    """It may be a good model, of a kind that is not known here."""


class Config:
    """config.json with checked numbers."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number, or `default` where there is none. Raises Unreadable."""
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise Unreadable(f"config.json: {name} is {short(value)}, not a number")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A number of at least 1."""
        if (found := self.number(name, default)) < 1:
            raise Unreadable(f"config.json: {name} is {found}")
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth; `default` where it is not one."""
        value = self.fields.get(name, default)
        return value if isinstance(value, bool) else default

    def text(self, name: str) -> str:
        """A word; empty where there is none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""


def masked(name: str) -> str:
    """A file's name without what ends a line, and without bytes that are no UTF-8 (Python has them as lone surrogates)."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]", "?", name)


def short(value: object) -> str:
    """As it may stand in a message."""
    return re.sub(r"[^\x20-\x7e]", "?", repr(value))[:80]
