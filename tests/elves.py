"""Shared libraries as files, as small as the loader's rules allow: what they need, where they look, their symbols and their constants."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

NCCL = b"NCCL version %s+cuda%s\0"


def library(
    path: Path,
    *,
    soname: str = "",
    needed: Sequence[str] = (),
    rpath: str = "",
    runpath: str = "",
    takes: Sequence[str] = (),
    has: Sequence[str] = (),
    constants: bytes = b"\0",
) -> Path:
    """Write one, and its folder."""
    strings = bytearray(b"\0")

    def place(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text.encode()) - 1

    tags = [*((1, name) for name in needed), *((tag, text) for tag, text in ((14, soname), (15, rpath), (29, runpath)) if text)]
    dynamic = b"".join(struct.pack("<qQ", tag, place(text)) for tag, text in tags) + bytes(16)
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", place(name), 0x12, 0, section, 0, 0) for section, names in ((0, takes), (7, has)) for name in names
    )
    contents = {".dynstr": bytes(strings), ".dynamic": dynamic, ".dynsym": symbols, ".rodata": constants}
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*contents, ".shstrtab"))
    contents[".shstrtab"] = names
    body, rows = bytearray(64), [bytes(64)]
    for name, data in contents.items():
        rows.append(struct.pack("<IIQQQQIIQQ", names.index(b"\0" + name.encode() + b"\0") + 1, 1, 0, 0, len(body), len(data), 0, 0, 1, 0))
        body += data
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, len(body), 0, 64, 56, 0, 64, len(rows), len(rows) - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(body[64:]) + b"".join(rows))
    return path


def nccl(path: Path, version: str, cuda: str = "13.0", has: Sequence[str] = ("ncclAllReduce",)) -> Path:
    """An NCCL of that version."""
    text = b"other\0" + NCCL % (version.encode(), cuda.encode())
    return library(path, soname="libnccl.so.2", has=has, constants=text)
