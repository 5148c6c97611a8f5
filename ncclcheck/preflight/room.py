"""Judges the folders that a job writes to: whether they are full, cannot be written to, or do not answer. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.safe_text import word
from ncclcheck.survey import Node, degrades, note, stop, unread
from ncclcheck.units import bytes_text

_FULL, _LOW = 64 << 20, 1 << 30  # bytes left: nothing can be compiled or logged; a model's download or a dump does not fit
_FEW_INODES = 1000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # no matter of rights
_NEEDED = ("TMPDIR", "the run directory")  # nothing starts without them; caches may be elsewhere, or be there to be read only


def judge(node: Node, folders: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """What is wrong with these folders of a node. Of those on one file system, all are named in one fact."""
    disks: dict[Any, list[Mapping[str, Any]]] = {}
    for folder in folders:
        needed = folder["what"] in _NEEDED
        if "device" not in folder:
            if folder.get("late"):
                title = f"{_named(folder)} on {node.host} does not answer: its file system hangs ({folder['why']})"
                say = stop if needed else degrades
                yield say("disk-full", title, [node.host], f"timeout 5 stat {folder['path']}; dmesg -T | tail", evidence=[_seen(folder)])
            else:
                yield unread(f"{_named(folder)} on {node.host}", str(folder.get("why")), [node.host], needed=needed)
            continue
        full = folder.get("errno") in _NO_SPACE
        if not folder["writable"] and not full:
            title = f"{_named(folder)} on {node.host} cannot be written to: {folder['why']}"
            if folder["what"] == "TMPDIR":
                yield stop("permission-denied", title, [node.host], f"ls -ld {word(folder['at'])}; export TMPDIR=FOLDER", evidence=[_seen(folder)])
            elif needed:  # only what a job itself writes there is lost: torch, NCCL and vLLM write nothing
                remedy = f"ls -ld {word(folder['at'])}; cd FOLDER   # one that can be written to, before the job is started"
                yield degrades("permission-denied", title, [node.host], remedy, evidence=[_seen(folder)])
            else:
                yield note(title, [node.host], path=folder["path"])
            continue
        if folder["what"] == "TMPDIR" and not folder["exists"]:
            yield note(f"TMPDIR on {node.host} names a folder that is not there: {folder['path']}", [node.host], path=folder["path"])
        if full or folder["free"] < _LOW or (folder["inodes_free"] is not None and folder["inodes_free"] < _FEW_INODES):
            disks.setdefault(folder["device"], []).append(folder)
    for same in disks.values():
        free, inodes = min(folder["free"] for folder in same), same[0]["inodes_free"]
        few = inodes is not None and inodes < _FEW_INODES
        out = free < _FULL or few or any(folder.get("errno") for folder in same)
        left = f"{inodes} inodes" if few and free >= _FULL else bytes_text(free)
        names = ", ".join(_named(folder) for folder in same)
        title = f"{names} on {node.host}: {left} left of {bytes_text(same[0]['size'])}; a job wants at least 1 GiB there"
        say = stop if out and any(folder["what"] in _NEEDED for folder in same) else degrades
        remedy = (
            f"df -h {word(same[0]['at'])}; df -i {word(same[0]['at'])}   # then free space, or export {_variable(same)}=FOLDER on another file system"
        )
        yield say("disk-full", title, [node.host], remedy, evidence=[_seen(folder) for folder in same])


def _named(folder: Mapping[str, Any]) -> str:
    return f"{folder['path']} ({folder['what']})"


def _seen(folder: Mapping[str, Any]) -> str:
    return f"{folder['path']}: " + ", ".join(
        f"{name} {folder.get(name)}" for name in ("size", "free", "inodes_free", "why") if folder.get(name) not in (None, "")
    )


def _variable(same: list[Mapping[str, Any]]) -> str:
    return next((folder["what"] for folder in same if folder["what"] != "the run directory"), "TMPDIR")
