"""What one node starts for a launch: the command, and the environment that its ranks get."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ncclcheck import interpreter
from ncclcheck.collect import recorder

MONITOR = 0.5  # seconds between torchrun's own looks at its ranks: what it has not reaped yet shows us how it ended


@dataclass(frozen=True, slots=True)
class Start:
    """A command and its environment."""

    command: Sequence[str]
    environ: dict[str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """What one node is to start. `added` is what the ranks get beside the user's own environment (see permissions)."""

    id: str
    probes: Sequence[str]
    master: str
    port: int
    nnodes: int
    nproc_per_node: int
    added: Mapping[str, str]


def of(job: Job, node_rank: int, folder: Path, task: Mapping[str, int] | None, marks: Sequence[str], environ: Mapping[str, str]) -> Start:
    """With torchrun, or, inside a launcher that starts one process per rank (`task`), this process's rank as its child.

    `environ` is the user's, `folder` the launch's; by `marks` ("NAME=value") everything that is started is found again.
    """
    made = {
        **{name: value for name, value in job.added.items() if not name.startswith("NCCLCHECK_")},
        **recorder.environment(folder),
        **environ,  # what the user has set wins over what we would add for evidence
        **{name: value for name, value in job.added.items() if name.startswith("NCCLCHECK_")},
        **dict(mark.split("=", 1) for mark in marks),
        "NCCLCHECK_DIR": str(folder),
        "NCCLCHECK_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # torchrun starts its ranks with `python -m`: a torch.py in the current folder is not the torch under test
    }
    surrounding = ("TORCHELASTIC_", "PET_") if task is None else ("TORCHELASTIC_",)  # of a torchrun around us, whose store must not be used
    own = {name: value for name, value in made.items() if not name.startswith(surrounding)}
    return _torchrun(job, node_rank, folder, own) if task is None else _single(job, task, own)


def _torchrun(job: Job, node_rank: int, folder: Path, environ: Mapping[str, str]) -> Start:
    flags = {
        "nnodes": job.nnodes,
        "node-rank": node_rank,
        "nproc-per-node": job.nproc_per_node,
        "master-addr": job.master,
        "master-port": job.port,
        "max-restarts": 0,
        "monitor-interval": MONITOR,
        "log-dir": folder / "torchrun",  # else it leaves a folder in /tmp
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    unless_set = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # else it leaves a folder in /tmp
        "OMP_NUM_THREADS": "1",  # torchrun's own default, said without its warning
    }
    command = interpreter.module("ncclcheck.torchrun", *words, "-m", "ncclcheck.rank", *job.probes)
    return Start(command, {**unless_set, **environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"})


def _single(job: Job, task: Mapping[str, int], environ: Mapping[str, str]) -> Start:
    wiring = {
        "RANK": str(task["rank"]),
        "LOCAL_RANK": str(task["local_rank"]),
        "GROUP_RANK": str(task["node_rank"]),
        "WORLD_SIZE": str(task["world_size"]),
        "LOCAL_WORLD_SIZE": str(task["local_world_size"]),
        "MASTER_ADDR": job.master,
        "MASTER_PORT": str(job.port),
    }
    return Start(interpreter.module("ncclcheck.rank", *job.probes), {**environ, **wiring})
