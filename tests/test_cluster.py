"""Who takes part: each launcher's variables, as it really sets them, become the cluster they describe."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import launchers
from ncclcheck.cluster import Cluster, Flags, discover, looks_scheduled
from ncclcheck.collect import master
from ncclcheck.hostlist import expand_hosts
from ncclcheck.launchers import Conflict, Task

Environment = dict[str, str]

# srun --nodes=2 --ntasks-per-node=1 in an allocation of two nodes: what node 1 gets
SRUN_PER_NODE = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu-[07-08]",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "gpu-[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu-[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURMD_NODENAME": "gpu-08",
}
# srun --ntasks-per-node=2 there: rank 3
SRUN_PER_RANK = SRUN_PER_NODE | {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# the batch script of an allocation of four nodes: Slurm sets SLURM_PROCID there too
SBATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "gpu-[01-04]",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "1(x4)",
}
# torchrun --nnodes 2 --nproc-per-node 4: rank 6
TORCHRUN = {
    "RANK": "6",
    "LOCAL_RANK": "2",
    "GROUP_RANK": "1",
    "ROLE_RANK": "6",
    "ROLE_NAME": "default",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_WORLD_SIZE": "8",
    "MASTER_ADDR": "gpu-07",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_RUN_ID": "none",
}
LWS = {"LWS_LEADER_ADDRESS": "llm-0.llm.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEXED_JOB = {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": "check-1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
JOBSET = {"JOB_COMPLETION_INDEX": "1", "JOBSET_NAME": "check", "REPLICATED_JOB_NAME": "worker", "HOSTNAME": "check-worker-0-1"}
TRAINJOB = {
    "PET_NNODES": "4",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "check-node-0-0.check",
    "PET_MASTER_PORT": "29400",
    "JOB_COMPLETION_INDEX": "2",
}
PYTORCHJOB = {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "check-master-0", "MASTER_PORT": "23456"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"}


DESCRIBED: dict[str, tuple[Flags, Environment, int, Cluster]] = {
    "nothing, on a CPU": (Flags(), {}, 0, Cluster(1, 0, "127.0.0.1", 29600, 1, source="this machine")),
    "nothing, on 8 GPUs": (Flags(), {}, 8, Cluster(1, 0, "127.0.0.1", 29600, 8, source="this machine")),
    "a number of processes": (Flags(nproc_per_node=2), {}, 8, Cluster(1, 0, "127.0.0.1", 29600, 2, source="this machine")),
    "one node": (Flags(nnodes=1), {}, 8, Cluster(1, 0, "127.0.0.1", 29600, 8)),
    "all flags": (Flags(nnodes=2, node_rank=1, master="gpu-01:4000", nproc_per_node=4), {}, 8, Cluster(2, 1, "gpu-01", 4000, 4)),
    "an IPv6 master": (Flags(nnodes=2, master="[fd00::1]:4000"), {}, 8, Cluster(2, None, "fd00::1", 4000, 8)),
    "a bare IPv6 master": (Flags(nnodes=2, master="fd00::1"), {}, 8, Cluster(2, None, "fd00::1", 29600, 8)),
    "hosts alone": (Flags(hosts=("a", "b")), {}, 8, Cluster(2, None, "a", 29600, 8, ("a", "b"))),
    "srun, a task per node": (Flags(), SRUN_PER_NODE, 8, Cluster(2, 1, "gpu-07", 29600, 8, ("gpu-07", "gpu-08"), "slurm")),
    "srun with another address": (
        Flags(nnodes=2, master="10.1.0.7"),
        SRUN_PER_NODE,
        8,
        Cluster(2, 1, "10.1.0.7", 29600, 8, ("gpu-07", "gpu-08"), "slurm"),
    ),
    "srun, a task per rank": (
        Flags(),
        SRUN_PER_RANK,
        1,
        Cluster(4, 3, "gpu-07", 29600, 1, ("gpu-07", "gpu-07", "gpu-08", "gpu-08"), "slurm", Task(3, 1, 1, 4, 2)),
    ),
    "srun, tasks dealt out in turn": (
        Flags(),
        SRUN_PER_RANK | {"SLURM_DISTRIBUTION": "cyclic"},
        1,
        Cluster(4, 3, "gpu-07", 29600, 1, (), "slurm", Task(3, 1, 1, 4, 2)),
    ),
    "srun speaking PMI": (
        Flags(),
        SRUN_PER_NODE | {"PMI_RANK": "1", "PMI_SIZE": "2"},
        8,
        Cluster(2, 1, "gpu-07", 29600, 8, ("gpu-07", "gpu-08"), "slurm"),
    ),
    "one node of an allocation": (
        Flags(),
        SRUN_PER_NODE
        | {
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NODELIST": "gpu-08",
            "SLURM_STEP_TASKS_PER_NODE": "1",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_NODEID": "0",
        },
        8,
        Cluster(1, 0, "127.0.0.1", 29600, 8, ("gpu-08",), "slurm"),
    ),
    "a batch script with flags": (Flags(nnodes=2, master="gpu-01"), SBATCH, 8, Cluster(2, None, "gpu-01", 29600, 8)),
    "torchrun": (Flags(), TORCHRUN, 4, Cluster(8, 6, "gpu-07", 29600, 1, (), "torchrun", Task(6, 2, 1, 8, 4))),
    "torchrun whose store is on our port": (
        Flags(),
        TORCHRUN | {"MASTER_PORT": "29600"},
        4,
        Cluster(8, 6, "gpu-07", 29601, 1, (), "torchrun", Task(6, 2, 1, 8, 4)),
    ),
    "torchrun inside srun": (Flags(), SRUN_PER_NODE | TORCHRUN, 4, Cluster(8, 6, "gpu-07", 29600, 1, (), "torchrun", Task(6, 2, 1, 8, 4))),
    "torchrun on one node of a batch script": (
        Flags(),
        SBATCH | TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "localhost"},
        4,
        Cluster(4, 2, "localhost", 29600, 1, (), "torchrun", Task(2, 2, 0, 4, 4)),
    ),
    "a LeaderWorkerSet": (Flags(), LWS, 8, Cluster(2, 1, "llm-0.llm.default", 29600, 8, (), "kubernetes")),
    "an indexed Job": (Flags(nnodes=2, master="check-0.check"), INDEXED_JOB, 8, Cluster(2, 1, "check-0.check", 29600, 8, (), "kubernetes")),
    "a JobSet": (Flags(nnodes=2), JOBSET, 8, Cluster(2, 1, "check-worker-0-0.check", 29600, 8, (), "kubernetes")),
    "a JobSet's second replica, numbered at roll call": (
        Flags(nnodes=4),
        JOBSET | {"HOSTNAME": "check-worker-1-1"},
        8,
        Cluster(4, None, "check-worker-0-0.check", 29600, 8, (), "kubernetes"),
    ),
    "a TrainJob": (Flags(), TRAINJOB, 8, Cluster(4, 2, "check-node-0-0.check", 29600, 8, (), "kubernetes")),
    "a TrainJob in which torchrun counts the GPUs": (
        Flags(),
        TRAINJOB | {"PET_NPROC_PER_NODE": "auto"},
        4,
        Cluster(4, 2, "check-node-0-0.check", 29600, 4, (), "kubernetes"),
    ),
    "an elastic PyTorchJob": (
        Flags(nnodes=3),
        PYTORCHJOB | {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "check-worker-0:23456", "PET_NPROC_PER_NODE": "8"},
        8,
        Cluster(3, None, "check-worker-0", 29600, 8, (), "kubernetes"),
    ),
    "a PyTorchJob explained by flags": (
        Flags(nnodes=4, node_rank=2, master="check-master-0"),
        PYTORCHJOB,
        8,
        Cluster(4, 2, "check-master-0", 29600, 8),
    ),
    "Open MPI": (Flags(master="gpu-07"), OPEN_MPI, 4, Cluster(8, 5, "gpu-07", 29600, 1, (), "mpi", Task(5, 1, 1, 8, 4))),
    "Open MPI below its Slurm daemons": (
        Flags(master="gpu-07"),
        SRUN_PER_NODE | OPEN_MPI | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        4,
        Cluster(8, 5, "gpu-07", 29600, 1, (), "mpi", Task(5, 1, 1, 8, 4)),
    ),
    "Open MPI, a process per node": (
        Flags(master="gpu-07"),
        OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        4,
        Cluster(8, 5, "gpu-07", 29600, 4, (), "mpi"),
    ),
    "Hydra on one node": (Flags(), HYDRA, 2, Cluster(2, 1, "127.0.0.1", 29600, 1, (), "mpi", Task(1, 1, 0, 2, 2))),
}


@pytest.mark.parametrize(("flags", "environ", "gpus", "cluster"), DESCRIBED.values(), ids=DESCRIBED.keys())
def test_the_environment_describes_the_cluster(flags: Flags, environ: Environment, gpus: int, cluster: Cluster) -> None:
    assert discover(flags, environ, gpus=gpus) == cluster


CONFLICTS: dict[str, tuple[Flags, Environment, str, str]] = {
    "a flag and Slurm": (Flags(nnodes=3), SRUN_PER_NODE, "--nnodes 3", "SLURM_STEP_NUM_NODES=2"),
    "a flag and older Slurm": (
        Flags(nnodes=3),
        {name: value for name, value in SRUN_PER_NODE.items() if name not in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")},
        "--nnodes 3",
        "SLURM_JOB_NUM_NODES=2",
    ),
    "a flag and the node's number": (Flags(node_rank=0), SRUN_PER_NODE, "--node-rank 0", "SLURM_NODEID=1"),
    "a flag and torchrun": (Flags(nproc_per_node=8), TORCHRUN, "--nproc-per-node 8", "LOCAL_WORLD_SIZE=4"),
    "a flag and Slurm's tasks": (Flags(nproc_per_node=8), SRUN_PER_RANK, "--nproc-per-node 8", "SLURM_STEP_TASKS_PER_NODE=2"),
    "a flag and a LeaderWorkerSet": (Flags(nnodes=4), LWS, "--nnodes 4", "LWS_GROUP_SIZE=2"),
    "a flag and a TrainJob": (Flags(nproc_per_node=4), TRAINJOB, "--nproc-per-node 4", "PET_NPROC_PER_NODE=8"),
    "a flag and MPI": (Flags(node_rank=0, master="gpu-07"), OPEN_MPI, "--node-rank 0", "OMPI_COMM_WORLD_RANK // OMPI_COMM_WORLD_LOCAL_SIZE=1"),
    "the job's own port": (Flags(master="gpu-07:29500"), TORCHRUN, "--master port 29500", "MASTER_PORT=29500"),
    "torchrun that is alone on each node of a step": (
        Flags(),
        SRUN_PER_NODE | TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "WORLD_SIZE": "4", "RANK": "2"},
        "GROUP_WORLD_SIZE=1",
        "SLURM_STEP_NUM_NODES=2",
    ),
    "torchrun and a TrainJob": (Flags(), TRAINJOB | TORCHRUN, "GROUP_WORLD_SIZE=2", "PET_NNODES=4"),
    "MPI jobs of one rank, one in each task": (
        Flags(),
        SRUN_PER_RANK | {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
        "PMI_SIZE=1",
        "SLURM_STEP_NUM_TASKS=4",
    ),
    "a batch script outside any step": (Flags(), SBATCH, "SLURM_JOB_NUM_NODES=4", "SLURM_STEP_ID is unset"),
    "variables of two steps": (Flags(), SRUN_PER_NODE | {"SLURM_STEP_NODELIST": "gpu-[01-03]"}, "SLURM_STEP_NUM_NODES=2", "3 hosts"),
    "variables of two jobs": (Flags(), TORCHRUN | {"RANK": "8"}, "RANK=8", "WORLD_SIZE=8"),
    "WORLD_SIZE that may count pods": (Flags(), PYTORCHJOB, "WORLD_SIZE=4 RANK=2", "TORCHELASTIC_RUN_ID is unset"),
}


@pytest.mark.parametrize(("flags", "environ", "one", "other"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_a_conflict_shows_both_sources_with_both_values(flags: Flags, environ: Environment, one: str, other: str) -> None:
    with pytest.raises(Conflict) as caught:
        discover(flags, environ, gpus=8)
    message = str(caught.value)
    assert one in message and other in message and "\n" not in message


MISSING: dict[str, tuple[Flags, Environment, list[str]]] = {
    "nodes without an address": (Flags(nnodes=2), {}, ["--nnodes 2", "add --master ADDR"]),
    "an address without nodes": (Flags(master="gpu-01"), {}, ["--master gpu-01", "add --nnodes N"]),
    "a number without nodes": (Flags(node_rank=1), {}, ["--node-rank 1", "add --nnodes N", "and --master ADDR"]),
    "an indexed Job": (Flags(), INDEXED_JOB, ["JOB_COMPLETION_INDEX=1", "add --nnodes N", "and --master ADDR"]),
    "a JobSet": (Flags(), JOBSET, ["JOB_COMPLETION_INDEX=1", "add --nnodes N"]),
    "an elastic PyTorchJob": (Flags(), {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "check-worker-0:23456"}, ["PET_NNODES=1:4", "add --nnodes N"]),
    "MPI on several nodes": (Flags(), OPEN_MPI, ["OMPI_COMM_WORLD_SIZE=8", "add --master ADDR"]),
    "MPI without its local ranks": (Flags(), {"PMI_RANK": "0", "PMI_SIZE": "2"}, ["MPI_LOCALRANKID", "is not set"]),
    "half of torchrun": (Flags(), {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}, ["LOCAL_RANK is not set"]),
}


@pytest.mark.parametrize(("flags", "environ", "parts"), MISSING.values(), ids=MISSING.keys())
def test_a_missing_piece_is_named_with_what_was_seen(flags: Flags, environ: Environment, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        discover(flags, environ, gpus=8)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("flags", "environ", "parts"),
    [
        (Flags(nnodes=0), {}, ["0 nodes"]),
        (Flags(nnodes=2, node_rank=2, master="a"), {}, ["node rank 2", "0 to 1"]),
        (Flags(nproc_per_node=0), {}, ["0 processes per node"]),
        (Flags(nnodes=2, master="a:0"), {}, ["port 0", "65535"]),
        (Flags(nnodes=2, master="a:65536"), {}, ["port 65536", "65535"]),
        (Flags(nnodes=2, master="a:b"), {}, ["'a:b'", "ADDR:PORT"]),
        (Flags(nnodes=3, hosts=("a", "b")), {}, ["2 hosts", "3 take part"]),
        (Flags(), LWS | {"LWS_GROUP_SIZE": "two"}, ["LWS_GROUP_SIZE=two is not a number"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags: Flags, environ: Environment, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        discover(flags, environ, gpus=8)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize("environ", [SRUN_PER_NODE, SBATCH, TORCHRUN, LWS, INDEXED_JOB, TRAINJOB, PYTORCHJOB, OPEN_MPI, HYDRA])
def test_every_launcher_is_recognised_as_one(environ: Environment) -> None:
    assert looks_scheduled(environ)


def test_a_pod_or_a_shell_alone_is_no_launcher() -> None:
    assert not looks_scheduled({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "runner-1", "MASTER_PORT": "29500"})


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("login1", "login1"),
        ("gpu-[01-03,07],login1", "gpu-01 gpu-02 gpu-03 gpu-07 login1"),
        ("n[1-2]-ib", "n1-ib n2-ib"),
        ("r[1-2]n[08-10]", "r1n08 r1n09 r1n10 r2n08 r2n09 r2n10"),
        ("a[9-11]", "a9 a10 a11"),
        ("a[098-101]", "a098 a099 a100 a101"),
        ("a.b-c_d,[1-2]x", "a.b-c_d 1x 2x"),
    ],
)
def test_a_node_list_expands_as_scontrol_show_hostnames_does(nodelist: str, hosts: str) -> None:
    assert expand_hosts(nodelist) == tuple(hosts.split())


@pytest.mark.parametrize(
    "nodelist", ["", ",", "a,,b", "a[1", "a1]", "a[]", "a[1-]", "a[x]", "a[1,]", "a[2-1]", "a b", "a[[1]]", "(null)[", "a" * 5000 + "["]
)
def test_what_is_no_node_list_is_refused(nodelist: str) -> None:
    with pytest.raises(ValueError, match="node list"):
        expand_hosts(nodelist)


_names = st.text("abcz.-", max_size=3)
_spans = st.tuples(st.integers(0, 120), st.integers(0, 5), st.integers(1, 4))


@st.composite
def _node_lists(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A node list and, built beside it name by name, the hosts that it stands for."""
    items: list[str] = []
    hosts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        prefix, suffix = "n" + draw(_names), draw(_names)
        ranges: list[str] = []
        for first, more, width in draw(st.lists(_spans, max_size=3)):
            numbers = [str(number).zfill(max(width, len(str(first)))) for number in range(first, first + more + 1)]
            ranges.append(numbers[0] if more == 0 else f"{numbers[0]}-{numbers[-1]}")
            hosts += [prefix + number + suffix for number in numbers]
        if not ranges:
            hosts.append(prefix + suffix)
        items.append(prefix + (f"[{','.join(ranges)}]" if ranges else "") + suffix)
    return ",".join(items), hosts


@given(_node_lists())
def test_every_node_list_gives_back_the_hosts_it_was_written_from(case: tuple[str, list[str]]) -> None:
    nodelist, hosts = case
    assert list(expand_hosts(nodelist)) == hosts


_launched = st.sampled_from([SRUN_PER_NODE, SRUN_PER_RANK, TORCHRUN, LWS, JOBSET, TRAINJOB, OPEN_MPI, HYDRA])


@st.composite
def _garbled(draw: st.DrawFn) -> Environment:
    """A launcher's environment of which a few variables are lost or hold something else."""
    environ = dict(draw(_launched))
    for name in draw(st.lists(st.sampled_from(sorted(environ)), max_size=3, unique=True)):
        value = draw(st.one_of(st.none(), st.sampled_from("0129"), st.text("0129:-[]a,x()", max_size=6)))
        environ.pop(name) if value is None else environ.update({name: value})
    return environ


@given(_garbled())
def test_a_garbled_environment_gives_a_cluster_or_one_line(environ: Environment) -> None:
    try:
        cluster = discover(Flags(), environ, gpus=0)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert cluster.node_rank is None or cluster.node_rank < cluster.nnodes


@pytest.mark.parametrize("name", ["a" * 64, "a..b", "a\0b", "fe80::1%lo", "fe80::1"])
def test_what_no_resolver_takes_and_what_leads_to_one_link_only_is_a_name_without_addresses(name: str) -> None:
    with pytest.raises(OSError):
        asyncio.run(master.resolve(name))


@pytest.mark.parametrize("text", ["gpu-01", "gpu_01.cluster.local.", "b\u00fccher.example", "169.254.3.4", "fd00::1", "[fd00::1]:29600"])
def test_names_and_addresses_that_nodes_can_share_are_taken(text: str) -> None:
    assert launchers.address(text)[0] == text.removeprefix("[").partition("]")[0]
