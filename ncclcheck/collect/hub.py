"""Where a model lies on this node: the folder of that name, or what the Hugging Face cache holds under it. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ncclcheck import whole

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LONGEST = 128  # bytes of a file that holds a commit's hash


def is_name(model: str) -> bool:
    """Whether it may be a name on the hub, `OWNER/NAME`."""
    return bool(_NAME.fullmatch(model))


def find(model: str, environ: Mapping[str, str]) -> tuple[Path, str]:
    """The folder, and why it cannot be used: empty if it is there.

    As engines do: a folder goes first, then the snapshot to which `main` of that name points in the cache. HF_HUB_CACHE says where the
    cache is, else HF_HOME, else XDG_CACHE_HOME (huggingface_hub's documentation, "Environment variables").
    """
    folder = Path(model)
    if folder.is_dir() or not is_name(model):
        return folder, ""
    cache = _cache(environ)
    kept = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = whole.read(kept / "refs" / "main", _LONGEST).decode("ascii").strip()
    except (OSError, ValueError):
        return folder, f"no such folder, and not in the Hugging Face cache {cache}"
    snapshot = kept / "snapshots" / commit
    if not re.fullmatch(r"\w+", commit) or not snapshot.is_dir():
        return folder, f"the Hugging Face cache {cache} names a revision of it and does not hold that"
    return snapshot, ""


def _cache(environ: Mapping[str, str]) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(home) / "hub").expanduser()
