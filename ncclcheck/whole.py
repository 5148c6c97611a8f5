"""Reads files that are to be read whole, up to a size: what is larger is not what it is taken for, and must not fill the memory."""

from __future__ import annotations

from pathlib import Path


class TooLarge(ValueError):
    """The file has more bytes than such a file has; the message says so, with its name."""


def read(file: Path, most: int) -> bytes:
    """Its content. Raises TooLarge where it has more than `most` bytes (however many more, one is read), OSError where it cannot be read."""
    with open(file, "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise TooLarge(f"{file} has more than {most} bytes")
    return data
