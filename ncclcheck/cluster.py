"""Who takes part: the flags and the variables of torchrun, Slurm, Kubernetes and MPI become one Cluster."""

from __future__ import annotations

from dataclasses import dataclass

from ncclcheck import launchers
from ncclcheck.launchers import LOOPBACK, Conflict, Environ, Found, Said, Task

DEFAULT_PORT = 29600

# One variable per launcher or scheduler that is set in whatever it starts.
_SCHEDULED = (
    *("TORCHELASTIC_RUN_ID", "PET_NNODES", "WORLD_SIZE", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"),
    *("JOB_COMPLETION_INDEX", "JOBSET_NAME", "LWS_GROUP_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"),
)


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


def looks_scheduled(environ: Environ) -> bool:
    """Whether any scheduler or launcher started this process: then it is about a real cluster."""
    return any(name in environ for name in _SCHEDULED)


def discover(flags: Flags, environ: Environ, *, gpus: int) -> Cluster:
    """The cluster that the flags and the environment describe; `gpus` is how many this process may use.

    Where launchers are nested, the innermost that describes ranks is followed. `--master` and `--hosts` override what
    a launcher says, since two names may be one host; numbers must agree. Raises Conflict where they do not, and
    ValueError, naming the flag to add, where something is missing.
    """
    layers = launchers.read(environ)
    sizes = [layer.nodes for layer in layers if layer.nodes]
    for outer in sizes[1:]:
        if outer.value != sizes[0].value:
            raise Conflict(f"{sizes[0]}, but {outer}: the launchers disagree on the number of nodes; start both with the same one")
    if not layers and not str(flags):
        _refuse_half_a_launch(environ)
    inner = layers[0] if layers else Found("flags" if str(flags) else "this machine")

    nodes = _agree("--nnodes", flags.nnodes, sizes[0] if sizes else None)
    node_rank = _agree("--node-rank", flags.node_rank, inner.node_rank)
    nproc = _agree("--nproc-per-node", flags.nproc_per_node, inner.nproc)
    hosts = flags.hosts or inner.hosts
    if nodes is None and inner.task:
        nodes = -(-inner.task.world_size // inner.task.local_world_size)
    elif nodes is None:
        nodes = 1 if inner.source == "this machine" else len(hosts) or None
    address, port = launchers.address(flags.master) if flags.master else (None, None)
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


def _refuse_half_a_launch(environ: Environ) -> None:
    """Several nodes were asked for and this process is not placed among them: to test one machine would mislead."""
    if environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        nodes = environ["SLURM_JOB_NUM_NODES"]
        command = f"srun --nodes={nodes} --ntasks-per-node=1 ncclcheck probe"
        raise Conflict(f"SLURM_JOB_NUM_NODES={nodes}, but SLURM_STEP_ID is unset: this shell is on 1 node, outside any step; type: {command}")
    if environ.get("WORLD_SIZE", "1") != "1":
        said = " ".join(f"{name}={environ.get(name, 'unset')}" for name in ("WORLD_SIZE", "RANK"))
        raise Conflict(f"{said}, but TORCHELASTIC_RUN_ID is unset: ranks or nodes? Add --nnodes, --node-rank and --master, or unset WORLD_SIZE")


def _agree(flag: str, given: int | None, said: Said | None) -> int | None:
    if given is not None and said is not None and given != said.value:
        raise Conflict(f"{flag} {given}, but {said}; leave {flag} out, or start ncclcheck outside that launcher")
    return said.value if given is None and said else given


def _free_of_the_job(port: int | None, environ: Environ) -> int:
    """The port, but never the one on which a surrounding job's store listens: there, a stranger's message does harm."""
    taken = environ.get("MASTER_PORT")
    if port is None:
        return DEFAULT_PORT if taken != str(DEFAULT_PORT) else DEFAULT_PORT + 1
    if taken == str(port):
        raise Conflict(f"--master port {port}, but MASTER_PORT={taken} belongs to the surrounding job; choose another port")
    return port
