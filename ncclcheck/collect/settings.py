"""The environment that a rank of this node would get, and what NCCL's own files add to it. No secret is in it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ncclcheck.secrets import mask_all
from ncclcheck.survey import Question

_BEGINNINGS = (
    *("NCCL_", "TORCH", "GLOO_", "TP_", "VLLM_", "CUDA_", "CUBLAS_", "RAY_", "PYTORCH_", "MASTER_", "PET_"),
    *("HF_", "UCX_", "FI_", "OFI_", "OMP_"),
)
_NAMES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LD_PRELOAD", "LD_LIBRARY_PATH", "HOST_IP", "TMPDIR")
_FILES = ("NCCL_TOPO_FILE", "NCCL_GRAPH_FILE", "NCCL_CONF_FILE", "VLLM_NCCL_SO_PATH")  # settings whose value is a file that must be there
SYSTEM = "/etc/nccl.conf"
ENVIRONMENT = "environment"
_LONGEST = 1000  # characters of a value that are sent
_LARGEST = 1 << 16  # bytes of a file that are read


def section(question: Question) -> dict[str, Any]:
    """`variables`: those that matter to NCCL, torch and engines; `added`: which of them are not this process's own; `nccl`: what NCCL
    takes, and from where; `files`: NCCL's files; `overruled`: what they say in vain; `absent`: files that settings name and that are not there.
    """
    environ = effective(question)
    known = {name: _text(value)[:_LONGEST] for name, value in sorted(environ.items()) if name in _NAMES or name.startswith(_BEGINNINGS)}
    files = list(conf_files(environ))
    taken = nccl(environ, files)
    overruled = [
        {"name": name, "value": value, "file": file["path"], "by": taken[name]["from"], "with": taken[name]["value"]}
        for file in files
        for name, value in file.get("values", {}).items()
        if name in taken and taken[name]["value"] != value
    ]
    found: dict[str, Any] = {
        "variables": known,
        "added": sorted(name for name in question.environment if name not in os.environ),
        "nccl": taken,
        "files": files,
        "overruled": overruled,
        "absent": [name for name in _FILES if (path := environ.get(name) or taken.get(name, {}).get("value")) and not Path(path).exists()],
    }
    masked: dict[str, Any] = mask_all(found)
    masked["variables"] = {name: mask_all({name: value})[name] for name, value in known.items()}
    return masked


def effective(question: Question) -> dict[str, str]:
    """What a rank's environment would be: what the user has set wins over what is added for evidence, as where ranks are started."""
    return {**question.environment, **os.environ}


def conf_files(environ: Mapping[str, str], root: Path = Path("/"), home: str | None = None) -> Iterator[dict[str, Any]]:
    """NCCL's files that are there, in the order in which it reads them; of two that say one thing, the first is taken.

    Each: path; values (name -> value, as NCCL cuts them: nothing is stripped); or why it could not be read.
    """
    own = environ.get("NCCL_CONF_FILE") or f"{_home() if home is None else home}/.nccl.conf"
    for path in (own, SYSTEM):
        try:
            with open(root / path.lstrip("/") if os.path.isabs(path) else Path(path), "rb") as file:
                text = file.read(_LARGEST).decode("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            yield {"path": path, "why": error.strerror or str(error)}
            continue
        pairs = [line.partition("=") for line in text.split("\n") if not line.startswith("#") and "=" in line]
        values: dict[str, str] = {}
        for name, _, value in pairs:
            values.setdefault(_text(name)[:_LONGEST], _text(value)[:_LONGEST])
        yield {"path": path, "values": values}


def nccl(environ: Mapping[str, str], files: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """What NCCL takes: name -> value and from where. The environment is before its files, the user's before the system's."""
    taken = {name: {"value": _text(value)[:_LONGEST], "from": ENVIRONMENT} for name, value in environ.items() if name.startswith("NCCL_")}
    for file in files:
        for name, value in file.get("values", {}).items():
            if not name.startswith("NCCL_") or " " in name:
                continue
            taken.setdefault(name, {"value": environ.get(name, value), "from": ENVIRONMENT if name in environ else file["path"]})
    return taken


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir  # as NCCL finds it, whatever HOME says
    except KeyError:
        return ""


def _text(value: str) -> str:
    """As text that can travel, whatever bytes it is made of."""
    return value.encode("utf-8", "replace").decode()
