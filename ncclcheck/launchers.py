"""What launchers say in the environment of the processes they start: torchrun, MPI, Slurm and, on Kubernetes, three kinds of job."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ncclcheck.hostlist import expand_hosts

LOOPBACK = "127.0.0.1"
MOST_CHARACTERS = 253  # of a host's name (RFC 1035)

Environ = Mapping[str, str]


class Conflict(ValueError):
    """Two sources disagree on who takes part; the one-line message shows both, with both values."""


@dataclass(frozen=True, slots=True)
class Task:
    """This process's place in a launcher that starts one process per rank; it then supervises exactly that rank."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int


class Said(NamedTuple):
    """A number and the variable that says it."""

    value: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class Found:
    """What one launcher's variables say; None where they do not."""

    source: str
    seen: str = ""
    nodes: Said | None = None
    node_rank: Said | None = None
    nproc: Said | None = None
    master: str | None = None
    hosts: tuple[str, ...] = ()
    task: Task | None = None


def read(environ: Environ) -> list[Found]:
    """What each launcher of this process says, the innermost that describes ranks first.

    Raises Conflict for variables that contradict each other, ValueError for one that is missing or is not what its name says.
    """
    mpi = _mpi(environ)  # mpirun starts its own daemons with srun, so below it the Slurm step is not about the ranks
    found = (_torchrun(environ), mpi or _slurm(environ), _leader_worker_set(environ), _kubeflow(environ), _indexed_job(environ))
    return [layer for layer in found if layer]


def address(text: str) -> tuple[str, int | None]:
    """`[::1]:29600` -> ("::1", 29600); the port is None where there is none."""
    match = re.fullmatch(r"\[([^\[\]]+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?|([0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,}(?:%\w+)?)", text)
    if not match:
        raise ValueError(f"--master {text!r} is not ADDR, ADDR:PORT or [IPV6]:PORT")
    port, host = match[2] or match[4], match[1] or match[3] or match[5]
    if why := _no_host(host):
        raise ValueError(f"--master {text!r}: {why}")
    return host, int(port) if port else None


def _no_host(host: str) -> str:
    """Why this is neither a name nor an address by which every node can reach node 0; "" if it may be one."""
    try:
        numeric = ipaddress.ip_address(host)
    except ValueError:
        numeric = None
    if isinstance(numeric, ipaddress.IPv6Address) and numeric.is_link_local:
        return "a link-local address means something on one link only, by the name that each node gives it; give an address of the shared network"
    if numeric:
        return ""
    try:
        name = host.encode("idna")
    except UnicodeError:
        return "not a host's name: each part between dots has 1 to 63 characters"
    if len(name) > MOST_CHARACTERS:
        return f"not a host's name: it has more than {MOST_CHARACTERS} characters"
    return "" if host.isprintable() and " " not in host else "not a host's name: there is a blank or a control character in it"


def _torchrun(environ: Environ) -> Found | None:
    if "TORCHELASTIC_RUN_ID" not in environ or "RANK" not in environ:
        return None
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    rank, local_rank, node, world, local, nodes = (_number(environ, name) for name in names)
    return Found("torchrun", str(world), nodes, node, local, environ.get("MASTER_ADDR"), task=_task(rank, local_rank, node, world, local))


def _mpi(environ: Environ) -> Found | None:
    """Open MPI, or PMI as Hydra (MPICH, Intel MPI) and PALS set it. srun speaks PMI too: then Slurm knows more."""
    name = next((name for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if name in environ), None)
    if name is None:
        return None
    rank, size = _number(environ, name), _number(environ, name.replace("RANK", "SIZE"))
    if "SLURM_STEP_ID" in environ:
        tasks = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
        if (rank.value, size.value) == (_number(environ, "SLURM_PROCID").value, tasks.value):
            return None
        if tasks.value > size.value:  # not a step of daemons, of which there are at most as many as ranks
            raise Conflict(f"{size}, but {tasks}: each srun task started an MPI job of its own; start the ranks with one of the two")
    local_rank = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK")
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    here = LOOPBACK if size.value == local.value else None
    if local.value == 1:
        return Found("mpi", str(size), size, rank, master=here)
    nodes = Said(1, f"{size.name} / {local.name}") if here else None
    node = Said(rank.value // max(local.value, 1), f"{rank.name} // {local.name}")  # as mpirun places ranks by default: node by node
    return Found("mpi", str(size), nodes, node, local, here, task=_task(rank, local_rank, node, size, local))


def _slurm(environ: Environ) -> Found | None:
    """A step (srun). A batch script and a shell in salloc are none, though Slurm sets SLURM_PROCID=0 there as well."""
    if "SLURM_STEP_ID" not in environ:
        return None
    nodes, node = _number(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"), _number(environ, "SLURM_NODEID")
    hosts = expand_hosts(_text(environ, "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"))
    layout = _text(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    tasks = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", layout) for _ in range(int(times or 1))]
    if not len(hosts) == len(tasks) == nodes.value or node.value >= nodes.value:
        raise Conflict(f"{nodes}, but {node}, {len(hosts)} hosts in its list and tasks per node {layout}: these are not one step's variables")
    master = LOOPBACK if nodes.value == 1 else hosts[0]
    if max(tasks) == 1:
        return Found("slurm", str(nodes), nodes, node, master=master, hosts=hosts)
    local, world = Said(tasks[node.value], "SLURM_STEP_TASKS_PER_NODE"), _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    task = _task(_number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID"), node, world, local)
    by_rank = tuple(host for host, count in zip(hosts, tasks, strict=True) for _ in range(count))
    in_blocks = environ.get("SLURM_DISTRIBUTION", "block").startswith("block")
    return Found("slurm", str(nodes), nodes, node, local, master, by_rank if in_blocks else (), task)


def _leader_worker_set(environ: Environ) -> Found | None:
    if "LWS_GROUP_SIZE" not in environ:
        return None
    size, index = _number(environ, "LWS_GROUP_SIZE"), _number(environ, "LWS_WORKER_INDEX")
    return Found("kubernetes", str(size), size, index, master=_text(environ, "LWS_LEADER_ADDRESS"))


def _kubeflow(environ: Environ) -> Found | None:
    """Kubeflow's PyTorchJob and TrainJob set torchrun's options; beside them WORLD_SIZE and RANK count pods, not ranks."""
    if "PET_NNODES" not in environ:
        return None
    low, _, high = environ["PET_NNODES"].partition(":")
    nodes = _number({"PET_NNODES": low}, "PET_NNODES") if high in ("", low) else None  # 1:3 is a range: elastic
    node = _number(environ, "PET_NODE_RANK") if "PET_NODE_RANK" in environ else None
    nproc = _number(environ, "PET_NPROC_PER_NODE") if environ.get("PET_NPROC_PER_NODE", "auto").isdecimal() else None
    master = environ.get("PET_MASTER_ADDR") or address(environ.get("PET_RDZV_ENDPOINT", ""))[0] or None
    return Found("kubernetes", f"PET_NNODES={environ['PET_NNODES']}", nodes, node, nproc, master)


def _indexed_job(environ: Environ) -> Found | None:
    """An indexed Job's pod knows its index only. In a JobSet, the names passed on as in its examples give the first pod's address."""
    if "JOB_COMPLETION_INDEX" not in environ:
        return None
    index, master = _number(environ, "JOB_COMPLETION_INDEX"), None
    if "JOBSET_NAME" in environ and "REPLICATED_JOB_NAME" in environ:
        jobset, job = environ["JOBSET_NAME"], environ["REPLICATED_JOB_NAME"]
        master = f"{jobset}-{job}-0-0.{jobset}"
        if not environ.get("HOSTNAME", "").startswith(f"{jobset}-{job}-0-"):  # a further replica of the job counts from 0 again
            return Found("kubernetes", str(index), master=master)
    return Found("kubernetes", str(index), node_rank=index, master=master)


def _task(rank: Said, local_rank: Said, node: Said, world: Said, local: Said) -> Task:
    for small, large, fits in (
        (rank, world, rank.value < world.value),
        (local_rank, local, local_rank.value < local.value),
        (local, world, local.value <= world.value),
    ):
        if not fits:
            raise Conflict(f"{small}, but {large}: they are not one job's variables")
    return Task(rank.value, local_rank.value, node.value, world.value, local.value)


def _text(environ: Environ, *names: str) -> str:
    """The first of these variables that is set."""
    for name in names:
        if environ.get(name):
            return environ[name]
    raise ValueError(f"{' or '.join(names)} is not set, though other variables of its launcher are; start again from a clean shell")


def _number(environ: Environ, *names: str) -> Said:
    text = _text(environ, *names)
    name = next(name for name in names if environ.get(name))
    if not text.isdecimal():
        raise ValueError(f"{name}={text} is not a number")
    return Said(int(text), name)
