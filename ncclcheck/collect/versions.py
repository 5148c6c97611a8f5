"""The versions of what a job uses on this node, read from metadata, files and the NCCL library itself; no framework is imported."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ncclcheck.collect import host, patient
from ncclcheck.survey import Question

_ALSO = ("transformers", "triton", "flashinfer-python", "numpy", "nvidia-nvshmem-cu12", "nvidia-nvshmem-cu13")
_SONAME = "libnccl.so.2"
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
_DRIVER = Path("/sys/module/nvidia/version")
_BOUND = 4.0  # seconds for loading libnccl
# In a process of its own: what a broken library does to who loads it must not cost the whole inventory.
_ASK = """
import ctypes, sys
number = ctypes.c_int()
library = ctypes.CDLL(sys.argv[1])
library.ncclGetVersion(ctypes.byref(number))
maps = [line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "libnccl" in line]
print(number.value, maps[0] if maps else sys.argv[1])
"""


def section(question: Question) -> dict[str, Any]:
    """`installed`: distribution -> version, None where it is not installed; `torch_cuda`, `torch_git`: what torch was built with; `nccl`: of the
    library that would be loaded, and `nccl_path`; `driver`, `python`, `executable`, `kernel`, `system`; None where there is none.
    """
    unread: dict[str, str] = {}
    found: dict[str, Any] = {
        "installed": {**host.versions(), **{name: _version(name) for name in _ALSO}},
        **_torch(),
        **_nccl(unread),
        "driver": driver(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "kernel": platform.release(),
        "system": _system(),
    }
    return {**found, "unread": unread}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, str | None]:
    """What stands in torch/version.py."""
    try:
        path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        text = path.read_text(encoding="utf-8", errors="replace")
    except (metadata.PackageNotFoundError, OSError):
        return {"torch": None, "torch_cuda": None, "torch_git": None}
    names = {"torch": "__version__", "torch_cuda": "cuda", "torch_git": "git_version"}
    return {key: said[1] if (said := re.search(rf"^{name}\b[^=\n]*= *['\"]([^'\"]+)", text, re.M)) else None for key, name in names.items()}


def _nccl(unread: dict[str, str]) -> dict[str, str | None]:
    """The version of the library that torch would load: a preloaded one, that of the wheel, or one that the system has."""
    library = _preloaded() or _of_the_wheel() or _of_the_system()
    if library is None:
        return {"nccl": None, "nccl_path": None}
    try:
        number, path = patient.output((sys.executable, "-S", "-I", "-c", _ASK, library), _BOUND).strip().split(maxsplit=1)
    except (OSError, ValueError) as error:  # TimeoutError is one
        unread["nccl"] = f"{library}: {error}"
        return {"nccl": None, "nccl_path": library}
    return {"nccl": nccl_version(int(number)), "nccl_path": path}


def nccl_version(number: int) -> str:
    """22809 -> 2.28.9, as nccl.h composes it since 2.9; 2804 -> 2.8.4, as it did before."""
    major, rest = divmod(number, 10000 if number >= 10000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _preloaded() -> str | None:
    return next((word for word in re.split(r"[:\s]+", os.environ.get("LD_PRELOAD", "")) if "libnccl.so" in word), None)


def _of_the_wheel() -> str | None:
    for name in _NCCL:
        try:
            files = metadata.distribution(name).files or ()
        except metadata.PackageNotFoundError:
            continue
        if path := next((file.locate() for file in files if file.name == _SONAME), None):
            return str(path)
    return None


def _of_the_system(cache: Path = Path("/etc/ld.so.cache")) -> str | None:
    """Its name alone, where the loader would find it: it is not tried where it is nowhere."""
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    try:
        cached = _SONAME.encode() in cache.read_bytes()
    except OSError:
        cached = False
    return _SONAME if cached or any(Path(folder, _SONAME).exists() for folder in folders) else None


def driver(path: Path = _DRIVER) -> str | None:
    """The NVIDIA kernel module that is loaded."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None
