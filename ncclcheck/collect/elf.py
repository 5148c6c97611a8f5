"""What a shared library says of itself, read from its file without loading it: what it needs, where it looks, which symbols it lacks or has.

After the System V ABI and ld.so(8). Only 64-bit little-endian libraries are read: those are all that CUDA runs on.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MACHINES = ("x86_64-linux-gnu", "aarch64-linux-gnu")
DEFAULT = (*(f"{folder}/{name}" for name in _MACHINES for folder in ("lib", "usr/lib")), "lib64", "usr/lib64", "lib", "usr/lib")
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NEEDED, _SONAME, _RPATH, _RUNPATH = 1, 14, 15, 29
_CACHE = b"glibc-ld.so.cache1.1"


@dataclass(frozen=True, slots=True)
class Library:
    """A library's file: `needed` are the names that it asks for; `rpath` is searched before LD_LIBRARY_PATH, `runpath` after it."""

    path: Path
    soname: str
    needed: Sequence[str]
    rpath: Sequence[str]
    runpath: Sequence[str]


def read(path: Path) -> Library:
    """Raises OSError where it cannot be read, ValueError where it is no such library."""
    with _mapped(path) as data:
        sections = _sections(data)
        strings, entries = sections[".dynstr"], sections[".dynamic"]
        words: dict[int, list[str]] = {}
        for tag, value in _DYNAMIC.iter_unpack(data[entries[0] : entries[0] + entries[1] // _DYNAMIC.size * _DYNAMIC.size]):
            if tag in (_NEEDED, _SONAME, _RPATH, _RUNPATH):
                words.setdefault(tag, []).append(_text(data, strings[0] + value))
    origin = str(path.resolve().parent)
    paths = {tag: [_origin(part, origin) for text in words.get(tag, ()) for part in text.split(":") if part] for tag in (_RPATH, _RUNPATH)}
    rpath = [] if paths[_RUNPATH] else paths[_RPATH]  # ld.so ignores the one beside the other
    return Library(path, next(iter(words.get(_SONAME, ())), path.name), words.get(_NEEDED, []), rpath, paths[_RUNPATH])


def symbols(path: Path, prefix: str, *, missing: bool) -> set[str]:
    """The symbols that begin so: those that the library takes from others (`missing`), or those that it has. Raises as `read` does."""
    found = set()
    start = prefix.encode()
    with _mapped(path) as data:
        sections = _sections(data)
        (at, size), (names, _) = sections[".dynsym"], sections[".dynstr"]
        for name, _info, _other, section, _value, _size in _SYMBOL.iter_unpack(data[at : at + size // _SYMBOL.size * _SYMBOL.size]):
            if (section == 0) == missing and data[names + name : names + name + len(start)] == start:
                found.add(_text(data, names + name).partition("@")[0])
    return found


def search(path: Path, pattern: bytes) -> re.Match[bytes] | None:
    """The first match among the library's constants; GPU code, nearly all of such a file, is not looked at. Raises as `read` does."""
    with _mapped(path) as data:
        at, size = _sections(data)[".rodata"]
        return re.search(pattern, data[at : at + size])


def preloaded(environ: Mapping[str, str], root: Path = Path("/")) -> list[str]:
    """What is loaded before everything else: LD_PRELOAD, then /etc/ld.so.preload."""
    try:
        listed = (root / "etc/ld.so.preload").read_text(errors="replace")
    except OSError:
        listed = ""
    lines = [line.partition("#")[0] for line in listed.splitlines()]
    return [word for text in (environ.get("LD_PRELOAD", ""), *lines) for word in re.split(r"[\s:]+", text) if word]


def find(name: str, environ: Mapping[str, str], asked_by: Library | None = None, root: Path = Path("/")) -> tuple[Path, str] | None:
    """The file that the dynamic loader takes for this name, and what led it there; None where it finds none."""
    if "/" in name:
        return (Path(name), "its path") if Path(name).exists() else None
    places = [(folder, "its RPATH") for folder in (asked_by.rpath if asked_by else ())]
    places += [
        (folder or ".", "LD_LIBRARY_PATH") for folder in re.split("[:;]", environ.get("LD_LIBRARY_PATH", "")) if environ.get("LD_LIBRARY_PATH")
    ]
    places += [(folder, "its RUNPATH") for folder in (asked_by.runpath if asked_by else ())]
    for folder, why in places:
        if (path := Path(folder, name)).exists():
            return path, why
    if there := cached(root).get(name):
        return Path(there), "/etc/ld.so.cache"
    return next(((root / folder / name, "a default folder") for folder in DEFAULT if (root / folder / name).exists()), None)


def cached(root: Path = Path("/")) -> dict[str, str]:
    """/etc/ld.so.cache: name -> path, the first of each name; empty where it cannot be read."""
    try:
        data = (root / "etc/ld.so.cache").read_bytes()
        at = data.index(_CACHE)
        (count,) = struct.unpack_from("<I", data, at + len(_CACHE))
        found: dict[str, str] = {}
        for number in range(count):
            _flags, key, value = struct.unpack_from("<iII", data, at + 48 + 24 * number)
            found.setdefault(_text(data, at + key), _text(data, at + value))
    except (OSError, ValueError, struct.error):
        return {}
    return found


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError(f"{path} is empty") from None
    with data:
        try:
            yield data
        except (struct.error, KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"{path} is no library that can be read: {error}") from None


def _sections(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Name -> offset and size."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    *_, table, _flags, _ehsize, _phentsize, _phnum, size, count, names = _HEADER.unpack_from(data)
    rows = [_SECTION.unpack_from(data, table + number * size) for number in range(count)]
    strings = rows[names][4]
    return {_text(data, strings + row[0]): (row[4], row[5]) for row in rows}


def _text(data: bytes | mmap.mmap, at: int) -> str:
    end = data.find(b"\0", at, at + 4096)
    return data[at : end if end >= 0 else at].decode("utf-8", "replace")


def _origin(folder: str, origin: str) -> str:
    return os.path.normpath(re.sub(r"\$ORIGIN|\$\{ORIGIN\}", lambda _: origin, folder))
