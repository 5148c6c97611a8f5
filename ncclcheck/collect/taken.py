"""What a collector hands over: a file's content, or why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Taken:
    """A file of the bundle. A str passes through the masks; bytes are a binary dump, kept as they are."""

    name: str
    data: str | bytes
    origin: str  # the path, command or address that it was read from


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be taken, and the command that would make it possible."""

    what: str
    reason: str
    remedy: str = ""


Item: TypeAlias = Taken | Missing


def refused(what: str, error: OSError, remedy: str = "run as root, or as the job's user") -> Missing:
    """The record of an OSError; the remedy is for a missing permission."""
    return Missing(what, os.strerror(error.errno) if error.errno else str(error), remedy if isinstance(error, PermissionError) else "")


def sections(name: str, origin: str, paths: list[Path]) -> Iterator[Item]:
    """One text of several small files, each below its own path as `tail -n +1 FILES` prints them; those that are absent are left out."""
    parts: list[str] = []
    for path in paths:
        try:
            parts.append(f"==> {path} <==\n{path.read_text(errors='replace')}")
        except FileNotFoundError:
            continue
        except OSError as error:
            yield refused(str(path), error)
    if parts:
        yield Taken(name, "\n".join(parts), origin)
