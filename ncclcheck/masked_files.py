"""Masks the secrets in files that other programs have written into a folder, in place: lines and their numbers stay."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ncclcheck import secrets

PIECE = 16 << 20  # bytes of a file that are looked at together
_AGAIN = 1 << 17  # bytes of it that are looked at with the next ones, too: a key has many lines


def mask_files(folder: Path) -> None:
    """Every regular file below the folder. Raises OSError where one cannot be read or written."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    _mask(descriptor)
                finally:
                    os.close(descriptor)


def _mask(descriptor: int) -> None:
    at = 0
    while data := os.pread(descriptor, PIECE, at):
        masked = secrets.mask_bytes(data)
        if masked != data:
            os.pwrite(descriptor, masked, at)
        if len(data) < PIECE:
            return
        at += data.rfind(b"\n", PIECE - _AGAIN - (1 << 20), PIECE - _AGAIN) + 1 or PIECE
