"""What a process of a job is, by its command line and the variables that its launcher set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_LAUNCHERS = re.compile(
    r"torchrun|torch\.distributed\.(?:run|launch)|torch\.distributed\.launcher\.\w+|torchx|deepspeed(?:\.launcher\.\w+)?|ds"
    r"|accelerate(?:-launch)?|accelerate\.commands\.(?:launch|accelerate_cli)|vllm|vllm\.entrypoints\.\S+|sglang|sglang\.launch_server|horovodrun|fabric"
)
_TITLE = re.compile(r"(?P<engine>\w+::(?:Worker|EngineCore|DPCoordinator|APIServer)|sglang::|ray::)(?!IDLE)(?P<rest>[^\s]*)")
_OURS = re.compile(r"ncclcheck(?:\.__main__|\.collect\.\w+)?")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?")
_PLACED = {  # what says a rank, with what then says local_rank and world_size
    "RANK": ("LOCAL_RANK", "WORLD_SIZE"),
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "PMI_RANK": ("MPI_LOCALRANKID", "PMI_SIZE"),
    "PMIX_RANK": ("PMIX_LOCAL_RANK", "PMIX_SIZE"),
    "SLURM_PROCID": ("SLURM_LOCALID", "SLURM_NTASKS"),
}
_CONFIRMED = {  # one of these must be there too: a container's shell may have RANK, a batch script has SLURM_PROCID=0
    "RANK": ("WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"),
    "SLURM_PROCID": ("SLURM_STEP_ID",),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place, as its launcher's variables say it; None where they do not."""

    rank: int
    local_rank: int | None
    world_size: int | None


def place(environ: Mapping[str, str]) -> Place | None:
    """The rank that the variables describe; None where they describe none."""
    for name, others in _PLACED.items():
        rank = _number(environ.get(name, ""))
        if rank is not None and (name not in _CONFIRMED or any(other in environ for other in _CONFIRMED[name])):
            return Place(rank, *(_number(environ.get(other, "")) for other in others))
    return None


def title(words: Iterable[str]) -> str | None:
    """What an engine's process calls itself, `_TP1` of `VLLM::Worker_TP1`; None where it is no such process, or an idle one."""
    match = _TITLE.match(" ".join(words))
    return match["rest"] if match else None


def titled_rank(rest: str) -> int | None:
    """`_TP3` -> 3. With pipeline stages or replicas beside it, the place in a tensor-parallel group is not the rank."""
    places = dict(re.findall(r"_(DP|PP|TP)(\d+)", rest))
    return int(places["TP"]) if "TP" in places and "PP" not in places and "DP" not in places else None


def is_python(program: str) -> bool:
    """Whether a program's file name is that of a Python interpreter."""
    return bool(_PYTHON.fullmatch(Path(program).name))


def is_launcher(words: Iterable[str]) -> bool:
    """Whether a command line is torchrun's or another launcher's."""
    return bool(_LAUNCHERS.fullmatch(program(words)))


def is_ours(words: Iterable[str]) -> bool:
    """Whether a command line is ncclcheck's own; the ranks that it starts are a job like others."""
    return bool(_OURS.fullmatch(program(words)))


def program(words: Iterable[str]) -> str:
    """What a command line runs: a script's name, or the module after -m; empty for `python -c`."""
    rest = list(words)
    if rest and is_python(rest[0]):
        rest = rest[1:]
        while rest and rest[0].startswith("-"):
            if rest[0] in ("-m", "-c"):
                return rest[1] if rest[0] == "-m" and len(rest) > 1 else ""
            rest = rest[2 if rest[0] in ("-X", "-W") else 1 :]
    return Path(rest[0]).name if rest else ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None
