"""Who takes part: the flags and the variables of torchrun, Slurm, Kubernetes and MPI become one Cluster."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_PORT = 29600
LOOPBACK = "127.0.0.1"

Environ = Mapping[str, str]

# One variable per launcher or scheduler that is set in whatever it starts.
_SCHEDULED = (
    *("TORCHELASTIC_RUN_ID", "PET_NNODES", "WORLD_SIZE", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"),
    *("JOB_COMPLETION_INDEX", "JOBSET_NAME", "LWS_GROUP_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"),
)


class Conflict(ValueError):
    """Two sources disagree on who takes part; the one-line message shows both, with both values."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; None where it does not. `master` is ADDR, ADDR:PORT or [V6]:PORT."""

    nnodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    nproc_per_node: int | None = None
    hosts: tuple[str, ...] | None = None

    def __str__(self) -> str:
        hosts = ",".join(self.hosts) if self.hosts else None
        words = {"--nnodes": self.nnodes, "--node-rank": self.node_rank, "--master": self.master, "--hosts": hosts}
        return " ".join(f"{flag} {value}" for flag, value in words.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Task:
    """This process's place in a launcher that starts one process per rank; it then supervises exactly that rank."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who meets, and where. Raises ValueError for numbers that cannot be."""

    nnodes: int  # how many agents meet: nodes, or with a Task the processes (its world_size)
    node_rank: int | None  # this agent's number; with a Task its rank; None: numbered at roll call
    master: str  # where agent 0 listens
    port: int
    nproc_per_node: int  # ranks this agent starts; 1 with a Task
    hosts: tuple[str, ...] = ()  # the agents' hosts in order, where known, so that a missing one can be named
    source: str = "flags"  # flags, torchrun, slurm, kubernetes, mpi or "this machine"
    task: Task | None = None

    def __post_init__(self) -> None:
        if self.nnodes < 1:
            raise ValueError(f"{self.nnodes} nodes take part; at least 1 is needed")
        if self.node_rank is not None and not 0 <= self.node_rank < self.nnodes:
            raise ValueError(f"node rank {self.node_rank} is not one of the {self.nnodes} that take part (0 to {self.nnodes - 1})")
        if self.nproc_per_node < 1:
            raise ValueError(f"{self.nproc_per_node} processes per node; at least 1 is needed")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not one of 1 to 65535")
        if self.hosts and len(self.hosts) != self.nnodes:
            raise ValueError(f"{len(self.hosts)} hosts are named, but {self.nnodes} take part")


class _Said(NamedTuple):
    """A number and the variable that says it."""

    value: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class _Found:
    """What one launcher's variables say; None where they do not."""

    source: str
    seen: str = ""
    nodes: _Said | None = None
    node_rank: _Said | None = None
    nproc: _Said | None = None
    master: str | None = None
    hosts: tuple[str, ...] = ()
    task: Task | None = None


def looks_scheduled(environ: Environ) -> bool:
    """Whether any scheduler or launcher started this process: then it is about a real cluster."""
    return any(name in environ for name in _SCHEDULED)


def discover(flags: Flags, environ: Environ, *, gpus: int) -> Cluster:
    """The cluster that the flags and the environment describe; `gpus` is how many this process may use.

    Where launchers are nested, the innermost that describes ranks is followed. `--master` and `--hosts` override what
    a launcher says, since two names may be one host; numbers must agree. Raises Conflict where they do not, and
    ValueError, naming the flag to add, where something is missing.
    """
    # mpirun starts its own daemons with srun, so below it the Slurm step is not about the ranks
    readers = (_torchrun, _mpi if (mpi := _mpi(environ)) else _slurm, _leader_worker_set, _kubeflow, _indexed_job)
    found = [mpi if reader is _mpi else reader(environ) for reader in readers]
    layers = [layer for layer in found if layer]
    sizes = [layer.nodes for layer in layers if layer.nodes]
    for outer in sizes[1:]:
        if outer.value != sizes[0].value:
            raise Conflict(f"{sizes[0]}, but {outer}: the launchers disagree on the number of nodes; start both with the same one")
    if not layers and not str(flags):
        _refuse_half_a_launch(environ)
    inner = layers[0] if layers else _Found("flags" if str(flags) else "this machine")

    nodes = _agree("--nnodes", flags.nnodes, sizes[0] if sizes else None)
    node_rank = _agree("--node-rank", flags.node_rank, inner.node_rank)
    nproc = _agree("--nproc-per-node", flags.nproc_per_node, inner.nproc)
    hosts = flags.hosts or inner.hosts
    if nodes is None and inner.task:
        nodes = -(-inner.task.world_size // inner.task.local_world_size)
    elif nodes is None:
        nodes = 1 if inner.source == "this machine" else len(hosts) or None
    address, port = _address(flags.master) if flags.master else (None, None)
    address = address or (flags.hosts[0] if flags.hosts else inner.master) or (LOOPBACK if nodes is not None and nodes <= 1 else None)
    if nodes is None or address is None:
        wanted = ["--nnodes N (how many nodes take part)"] * (nodes is None) + ["--master ADDR (where node 0 listens)"] * (address is None)
        raise ValueError(f"{' '.join(filter(None, (inner.seen, str(flags))))} does not say enough; add {' and '.join(wanted)}")
    port = _free_of_the_job(port, environ)
    if inner.task:
        return Cluster(inner.task.world_size, inner.task.rank, address, port, 1, hosts, inner.source, inner.task)
    if node_rank is None and nodes == 1:
        node_rank = 0
    return Cluster(nodes, node_rank, address, port, (gpus or 1) if nproc is None else nproc, hosts, inner.source)


def expand_hosts(nodelist: str) -> tuple[str, ...]:
    """`gpu-[01-03,07],login1` -> ("gpu-01", "gpu-02", "gpu-03", "gpu-07", "login1"), as `scontrol show hostnames` does.

    Raises ValueError for what is not a Slurm node list.
    """
    span = r"\d+(?:-\d+)?"
    item = rf"(?:[^\[\],\s]|\[{span}(?:,{span})*\])+"
    if not re.fullmatch(rf"{item}(?:,{item})*", nodelist):
        raise ValueError(f"{nodelist!r} is not a Slurm node list such as gpu-[01-03,07],login1")
    hosts: list[str] = []
    for name in re.findall(item, nodelist):
        text_and_ranges = re.split(r"\[(.*?)\]", name)  # odd places hold what stood in brackets
        choices = [_numbers(part) if place % 2 else [part] for place, part in enumerate(text_and_ranges)]
        hosts += map("".join, itertools.product(*choices))
    return tuple(hosts)


def _numbers(ranges: str) -> list[str]:
    """`08-10,12` -> 08, 09, 10, 12: as many digits as the range's first number."""
    numbers: list[str] = []
    for span in ranges.split(","):
        first, _, last = span.partition("-")
        if int(last or first) < int(first):
            raise ValueError(f"{span!r} in a node list runs backwards")
        numbers += (f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1))
    return numbers


def _torchrun(environ: Environ) -> _Found | None:
    if "TORCHELASTIC_RUN_ID" not in environ or "RANK" not in environ:
        return None
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    rank, local_rank, node, world, local, nodes = (_number(environ, name) for name in names)
    return _Found("torchrun", str(world), nodes, node, local, environ.get("MASTER_ADDR"), task=_task(rank, local_rank, node, world, local))


def _mpi(environ: Environ) -> _Found | None:
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
        return _Found("mpi", str(size), size, rank, master=here)
    nodes = _Said(1, f"{size.name} / {local.name}") if here else None
    node = _Said(rank.value // max(local.value, 1), f"{rank.name} // {local.name}")  # as mpirun places ranks by default: node by node
    return _Found("mpi", str(size), nodes, node, local, here, task=_task(rank, local_rank, node, size, local))


def _slurm(environ: Environ) -> _Found | None:
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
        return _Found("slurm", str(nodes), nodes, node, master=master, hosts=hosts)
    local, world = _Said(tasks[node.value], "SLURM_STEP_TASKS_PER_NODE"), _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    task = _task(_number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID"), node, world, local)
    by_rank = tuple(host for host, count in zip(hosts, tasks, strict=True) for _ in range(count))
    in_blocks = environ.get("SLURM_DISTRIBUTION", "block").startswith("block")
    return _Found("slurm", str(nodes), nodes, node, local, master, by_rank if in_blocks else (), task)


def _leader_worker_set(environ: Environ) -> _Found | None:
    if "LWS_GROUP_SIZE" not in environ:
        return None
    size, index = _number(environ, "LWS_GROUP_SIZE"), _number(environ, "LWS_WORKER_INDEX")
    return _Found("kubernetes", str(size), size, index, master=_text(environ, "LWS_LEADER_ADDRESS"))


def _kubeflow(environ: Environ) -> _Found | None:
    """Kubeflow's PyTorchJob and TrainJob set torchrun's options; beside them WORLD_SIZE and RANK count pods, not ranks."""
    if "PET_NNODES" not in environ:
        return None
    low, _, high = environ["PET_NNODES"].partition(":")
    nodes = _number({"PET_NNODES": low}, "PET_NNODES") if high in ("", low) else None  # 1:3 is a range: elastic
    node = _number(environ, "PET_NODE_RANK") if "PET_NODE_RANK" in environ else None
    nproc = _number(environ, "PET_NPROC_PER_NODE") if environ.get("PET_NPROC_PER_NODE", "auto").isdecimal() else None
    master = environ.get("PET_MASTER_ADDR") or _address(environ.get("PET_RDZV_ENDPOINT", ""))[0] or None
    return _Found("kubernetes", f"PET_NNODES={environ['PET_NNODES']}", nodes, node, nproc, master)


def _indexed_job(environ: Environ) -> _Found | None:
    """An indexed Job's pod knows its index only. In a JobSet, the names passed on as in its examples give the first pod's address."""
    if "JOB_COMPLETION_INDEX" not in environ:
        return None
    index, master = _number(environ, "JOB_COMPLETION_INDEX"), None
    if "JOBSET_NAME" in environ and "REPLICATED_JOB_NAME" in environ:
        jobset, job = environ["JOBSET_NAME"], environ["REPLICATED_JOB_NAME"]
        master = f"{jobset}-{job}-0-0.{jobset}"
        if not environ.get("HOSTNAME", "").startswith(f"{jobset}-{job}-0-"):  # a further replica of the job counts from 0 again
            return _Found("kubernetes", str(index), master=master)
    return _Found("kubernetes", str(index), node_rank=index, master=master)


def _refuse_half_a_launch(environ: Environ) -> None:
    """Several nodes were asked for and this process is not placed among them: to test one machine would mislead."""
    if environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        nodes = environ["SLURM_JOB_NUM_NODES"]
        command = f"srun --nodes={nodes} --ntasks-per-node=1 ncclcheck probe"
        raise Conflict(f"SLURM_JOB_NUM_NODES={nodes}, but SLURM_STEP_ID is unset: this shell is on 1 node, outside any step; type: {command}")
    if environ.get("WORLD_SIZE", "1") != "1":
        said = " ".join(f"{name}={environ.get(name, 'unset')}" for name in ("WORLD_SIZE", "RANK"))
        raise Conflict(f"{said}, but TORCHELASTIC_RUN_ID is unset: ranks or nodes? Add --nnodes, --node-rank and --master, or unset WORLD_SIZE")


def _agree(flag: str, given: int | None, said: _Said | None) -> int | None:
    if given is not None and said is not None and given != said.value:
        raise Conflict(f"{flag} {given}, but {said}; leave {flag} out, or start ncclcheck outside that launcher")
    return said.value if given is None and said else given


def _task(rank: _Said, local_rank: _Said, node: _Said, world: _Said, local: _Said) -> Task:
    for small, large, fits in (
        (rank, world, rank.value < world.value),
        (local_rank, local, local_rank.value < local.value),
        (local, world, local.value <= world.value),
    ):
        if not fits:
            raise Conflict(f"{small}, but {large}: they are not one job's variables")
    return Task(rank.value, local_rank.value, node.value, world.value, local.value)


def _address(text: str) -> tuple[str, int | None]:
    """`[::1]:29600` -> ("::1", 29600); the port is None where there is none."""
    match = re.fullmatch(r"\[([^\[\]]+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?|([0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,}(?:%\w+)?)", text)
    if not match:
        raise ValueError(f"--master {text!r} is not ADDR, ADDR:PORT or [IPV6]:PORT")
    port = match[2] or match[4]
    return match[1] or match[3] or match[5], int(port) if port else None


def _free_of_the_job(port: int | None, environ: Environ) -> int:
    """The port, but never the one on which a surrounding job's store listens: there, a stranger's message does harm."""
    taken = environ.get("MASTER_PORT")
    if port is None:
        return DEFAULT_PORT if taken != str(DEFAULT_PORT) else DEFAULT_PORT + 1
    if taken == str(port):
        raise Conflict(f"--master port {port}, but MASTER_PORT={taken} belongs to the surrounding job; choose another port")
    return port


def _text(environ: Environ, *names: str) -> str:
    """The first of these variables that is set."""
    for name in names:
        if environ.get(name):
            return environ[name]
    raise ValueError(f"{' or '.join(names)} is not set, though other variables of its launcher are; start again from a clean shell")


def _number(environ: Environ, *names: str) -> _Said:
    text = _text(environ, *names)
    name = next(name for name in names if environ.get(name))
    if not text.isdecimal():
        raise ValueError(f"{name}={text} is not a number")
    return _Said(int(text), name)
