"""How much room there is in the folders that a job writes to, and whether this user may write there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ncclcheck.collect import patient

BOUND = 3.0  # seconds for one folder: a network file system may never answer


def folders(environ: Mapping[str, str]) -> dict[str, str]:
    """What a folder is for -> where it is, as the processes of a job take it from their environment."""
    home = environ.get("HOME") or os.path.expanduser("~")
    cache = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    temporary = environ.get("TMPDIR") or "/tmp"
    return {
        "TMPDIR": temporary,
        "the run directory": os.path.realpath("."),
        "HF_HOME": environ.get("HF_HOME") or f"{cache}/huggingface",
        "VLLM_CACHE_ROOT": environ.get("VLLM_CACHE_ROOT") or f"{cache}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": environ.get("TORCHINDUCTOR_CACHE_DIR") or temporary,
        "TRITON_CACHE_DIR": environ.get("TRITON_CACHE_DIR") or f"{home}/.triton",
    }


def look(what: str, path: str, *, write: bool) -> dict[str, Any]:
    """One folder, or the nearest above it where it is not made yet: size, free, inodes_free (bytes; None where not counted), device, writable.

    With `write` a small file is written there and removed again: that alone shows that it can be done. `why` says what went wrong.
    """
    try:
        return next(iter(patient.items(_once(lambda: _look(what, path, write)), BOUND)))
    except (TimeoutError, OSError) as error:
        return {"what": what, "path": path, "why": getattr(error, "strerror", None) or str(error), "late": isinstance(error, TimeoutError)}


def _once(work: Callable[[], dict[str, Any]]) -> Callable[[], Iterator[dict[str, Any]]]:
    def yields() -> Iterator[dict[str, Any]]:
        yield work()

    return yields


def _look(what: str, path: str, write: bool) -> dict[str, Any]:
    place = next((place for place in (Path(path), *Path(path).absolute().parents) if place.is_dir()), Path("/"))
    disk, status = os.statvfs(place), os.stat(place)
    free = (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize
    inodes = (disk.f_ffree if os.geteuid() == 0 else disk.f_favail) if disk.f_files else None
    found: dict[str, Any] = {"what": what, "path": path, "exists": place == Path(path), "at": str(place), "device": status.st_dev}
    found |= {"size": disk.f_blocks * disk.f_frsize, "free": free, "inodes_free": inodes, "writable": True, "why": ""}
    try:
        if write:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(4096))
                file.flush()
        elif not os.access(place, os.W_OK | os.X_OK):
            found |= {"writable": False, "why": "Read-only file system" if disk.f_flag & os.ST_RDONLY else "Permission denied"}
    except OSError as error:
        found |= {"writable": False, "why": error.strerror or str(error), "errno": error.errno}
    return found
