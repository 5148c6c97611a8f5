"""How many bytes of weights lie beside a config.json: from the headers of safetensors files, or from their index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import whole

MOST_HEADER = 100 * 10**6  # bytes: what the safetensors library itself accepts
MOST_FILES = 2000
_LFS = b"version https://git-lfs"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")


class Damaged(ValueError):
    """A file of weights cannot be what it says."""


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


def stored(folder: Path, layers: int) -> int:
    """Bytes of the tensors that serving loads; 0 where there are none. Layers above `layers` (for speculation) are left out. Raises Damaged."""
    files = [file for file in sorted(folder.glob("*.safetensors"))[:MOST_FILES] if not _pointer(file)]
    index = folder / "model.safetensors.index.json"
    expected = _indexed(index) if index.is_file() else None
    if expected is not None:
        names, total = expected
        if not names <= {file.name for file in files}:
            return total  # not all are here: what the index says
        files = [file for file in files if file.name in names]
    return sum(size for file in files for name, size in _tensors(file) if not _beyond(name, layers))


def _pointer(file: Path) -> bool:
    """Whether Git LFS has left a note here instead of the file: a checkout without the weights."""
    try:
        with open(file, "rb") as stream:
            return stream.read(len(_LFS)) == _LFS
    except OSError:
        return False  # whoever reads it says so


def _beyond(name: str, layers: int) -> bool:
    match = _LAYER.search(name)
    return bool(match) and int(match[1]) >= layers if match else False


def _indexed(index: Path) -> tuple[set[str], int]:
    """The files that an index names, and the bytes that it says they hold."""
    try:
        read = msgspec.json.decode(whole.read(index, MOST_HEADER), type=dict[str, Any])
        names, total = set(read["weight_map"].values()), int(read.get("metadata", {}).get("total_size", 0))
    except whole.TooLarge as error:
        raise Damaged(str(error)) from None
    except (OSError, msgspec.MsgspecError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{index} is no index of safetensors: {str(error)[:80]}") from None
    return {str(name) for name in names}, max(0, total)


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """Each tensor's name and bytes, by the file's header: 8 bytes of its length, then JSON."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER, file.stat().st_size):
                raise Damaged(f"{file} has no header of safetensors")
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            for name, raw in header.items():
                if name != "__metadata__":
                    start, end = msgspec.json.decode(raw, type=_Tensor).data_offsets
                    if not 0 <= start <= end:
                        raise Damaged(f"{file}: the tensor {name[:60]!r} ends before it starts")
                    yield name, end - start
    except OSError as error:
        raise Damaged(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Damaged(f"{file} has no header of safetensors: {str(error)[:80]}") from None
