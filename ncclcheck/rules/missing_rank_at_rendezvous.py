"""Fewer took part than were announced: a node or a rank never came.

It was not started, died before it could say hello, was given another master address, or cannot reach it. Everybody
else waits for it at the first rendezvous.

Blames
    fact missing-node @ b node_rank=1 nproc_per_node=1
    fact roll-call @ a seconds=60
    => b

Blames
    rank 0 @ a: init...
    => 1 of 2

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
    => node0

Blames
    log node-a/rank0.log: torch.distributed.DistStoreError: Timed out after 16 seconds waiting for clients. 3/4 clients joined.
    log node-b/rank2.log: [W socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
    log node-b/rank3.log: [W socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
    => 1

Blames
    log a.log: RuntimeError: Timed out initializing process group in store based barrier on rank: 0, for key: store_based_barrier_key:1 \
(world_size=2, worker_count=1, timeout=0:30:00)
    => 1

Blames
    log a.log: RuntimeError: [Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 60000 ms
    => 1 3

Blames
    log rank2.log: [W socket.cpp:764] [c10d] The client socket has failed to connect to [gpu-1]:29500 (errno: 111 - Connection refused).
    log rank2.log: torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (gpu-1, 29500).
    => 0

Blames
    log node-a.log: torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError
    => -

Blames
    log a.log: ssh: connect to host gpu-9 port 22: Connection refused
    => gpu-9

Blames
    log a.log: Warning  FailedScheduling  2m  default-scheduler  0/4 nodes are available: 4 Insufficient nvidia.com/gpu.
    => -

Blames
    log a.log: train-worker-3   0/1     ImagePullBackOff   0          12m
    => train-worker-3

Blames
    log a.log: (APIServer pid=70) DEBUG 03-02 10:00:12 [v1/engine/utils.py:773] Waiting for 0 local, 2 remote core engine proc(s) to start.
    => -

Blames
    log a.log: pdsh@gpu-1: gpu-9: ssh exited with exit code 255
    => gpu-9

Blames
    log a.log: Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/3
    log a.log: Initializing distributed: GLOBAL_RANK: 2, MEMBER: 3/3
    => 1

Spares
    log a.log: (APIServer pid=70) DEBUG 03-02 10:00:12 [v1/engine/utils.py:773] Waiting for 0 local, 2 remote core engine proc(s) to start.
    log a.log: (APIServer pid=70) INFO:     Application startup complete.

Spares
    log a.log: Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/3
    log a.log: All distributed processes registered. Starting with 3 processes

Spares
    log a.log: RuntimeError: Timed out initializing process group in store based barrier on rank: 0, for key: store_based_barrier_key:1 \
(world_size=2, worker_count=1, timeout=0:30:00)
    log rank1.log: [rank1]: Traceback (most recent call last):
    log rank1.log: [rank1]: KeyError: 'labels'

Blames
    rank 0 @ a: init...
    fact absent @ b ranks=1,2 code=0
    => b

Spares
    rank 0 @ a: init
    rank 1 @ b: init
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

MOST_RANKS = 1 << 16
REFUSED, NOT_LOCAL = 111, 99  # errno; the second is what [::1] gives where IPv6 is off
_REMEDY = (
    "look at the rank that is missing, not at those that wait: was it started (ps -ef on its node), and what is the last line of its log? "
    "start it with its own --node-rank and the same --nnodes, --nproc-per-node and --master-addr; py-spy dump --pid PID if it runs; "
    "nc -vz MASTER_ADDR MASTER_PORT from there must connect; WORLD_SIZE must be the number of processes that you start"
)
_SPOKE = ("error", "error-line", "arrived", "joined", "store-wait", "init", "bootstrap", "timeout", "position", "left", "reset", "store-connect")
"""What only a rank says that came to the rendezvous, or tried to."""

READS = (
    Statement(r"RendezvousTimeoutError", "fewer nodes than announced came to torchrun's rendezvous in time", _REMEDY, 0.75, "nobody"),
    Statement(
        r"\d+/\d+ nodes are available: (?P<why>[^.]*)",
        "Kubernetes cannot place a pod of the job, so its ranks never start: {why}",
        "kubectl describe pod POD; kubectl get nodes -o wide   # free the resource that it names, or ask for less",
        0.85,
        "nobody",
    ),
    Statement(
        r"^(?P<host>[a-z0-9][a-z0-9.-]*) +0/\d+ +(?P<state>Pending|ImagePullBackOff|ErrImagePull|CrashLoopBackOff|Init:\S+|ContainerCreating) ",
        "the pod {host} does not run ({state}), so its ranks never came",
        "kubectl describe pod {host}; kubectl logs {host} --previous",
        0.8,
    ),
    Statement(
        r"pdsh@[\w.-]{1,80}: (?P<host>[\w.-]{1,80}): ssh exited with exit code 255",
        "the launcher cannot log in to {host}, so nothing was started there",
        "ssh {host} true   # from the launching node, as the user of the job, without a password: ssh-copy-id {host} puts the key there; " + _REMEDY,
        0.9,
    ),
    Statement(r"ssh: connect to host (?P<host>\S+) port \d+: ", "the launcher cannot log in to {host}, so nothing was started there", _REMEDY, 0.85),
)


def check(run: Run) -> list[Finding]:
    """Missing nodes at roll call, a node 0 that does not listen, ranks that never announced themselves, or clients that never joined."""
    return [
        *_nodes(run),
        *_node0(run),
        *(_absent(run) or _ranks(run)),
        *(_clients(run) or _members(run)),
        *_barrier(run),
        *_store(run),
        *_engines(run),
    ]


def _members(run: Run) -> list[Finding]:
    """Lightning's processes that said their number, where the group never came together."""
    came = {fact.rank: fact for fact in run.of("member") if fact.rank is not None}
    size = max((int(fact.get("size", 0)) for fact in came.values()), default=0)
    missing = [rank for rank in range(min(size, MOST_RANKS)) if rank not in came]
    later = ("joined-all", "init", "timeout", "position", "ended", "says", "store-connect", "exit")
    if not missing or any(run.of(kind) for kind in later) or reading.own_errors(run):
        return []
    names = ", ".join(f"rank {rank}" for rank in missing[:8])
    remedy = (
        "under Slurm start one task per GPU: `#SBATCH --ntasks-per-node` = devices, --nodes = num_nodes, and `srun python ...`, not `python ...`; "
        + _REMEDY
    )
    title = f"{names} of {size} never came: {len(came)} said that they initialise"
    return [Finding("missing-rank-at-rendezvous", title, Culprit(ranks=missing), 0.7, reading.quote(*list(came.values())[:8]), remedy)]


def _engines(run: Run) -> list[Finding]:
    """vLLM's front end waits for the engines of other nodes, and never served."""
    waits = run.of("engines-awaited")
    if not waits or run.of("served") or run.of("says") or reading.own_errors(run):
        return []
    remote = int(waits[-1].get("remote", 0))
    if not remote or int(waits[-1].get("local", 0)):
        return []
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{remote} engine{'s' * (remote > 1)} of other nodes never came to vLLM's front end",
            Culprit(),
            0.75,
            reading.quote(*waits[-4:]),
            "on each other node: vllm serve MODEL --headless with the same --data-parallel-size, --data-parallel-address (the head's) and "
            "--data-parallel-rpc-port, and its own --data-parallel-start-rank; nc -vz HEAD PORT from there must connect; read that node's own log",
        )
    ]


def _clients(run: Run) -> list[Finding]:
    """The store or a barrier counted its clients: which of the ranks is it that nobody heard of?"""
    short = [fact for fact in run.of("joined") if 0 <= int(fact.get("there", 0)) < int(fact.get("expected", 0)) <= MOST_RANKS]
    if not short or run.of("store-connect"):
        return []
    last = max(short, key=lambda fact: int(fact.get("there", 0)))
    there, expected = int(last.get("there")), int(last.get("expected"))
    spoke = {fact.rank for kind in _SPOKE for fact in run.of(kind) if fact.rank is not None}
    if last.rank is None and there == 1 and not spoke:
        spoke = {0}  # the store is held by rank 0, and counts itself
    died = {fact.rank for fact in reading.own_errors(run)}
    missing = [rank for rank in range(expected) if rank not in spoke]
    if died:
        return []
    sure = len(missing) == expected - there
    hosts = list(dict.fromkeys(host for rank in missing if (host := _host(run, rank, expected)))) if sure else []
    who = ", ".join(f"rank {rank}" + (f" ({host})" if (host := _host(run, rank, expected)) else "") for rank in missing[:8])
    title = f"{who} never came: {there} of {expected} joined" if sure else f"{expected - there} of {expected} ranks never came to the rendezvous"
    culprit = Culprit(ranks=missing if sure else None, hosts=hosts or None)
    return [Finding("missing-rank-at-rendezvous", title, culprit, 0.88 if sure else 0.75, reading.quote(*short[:6]), _REMEDY, time=last.time)]


def _store(run: Run) -> list[Finding]:
    """Every rank is refused at the master address: rank 0, which is to listen there, said nothing at all."""
    refused = run.of("store-connect")
    codes = {fact.get("errno") for fact in refused if fact.get("errno")} - {NOT_LOCAL}
    named = [fact for fact in refused if fact.get("address")]
    spoke = {fact.rank for kind in _SPOKE for fact in run.of(kind)}
    if codes != {REFUSED} or not named or 0 in spoke or run.of("joined") or run.of("unresolved") or reading.own_errors(run) or run.of("says"):
        return []
    where = f"{named[0].get('address')}:{named[0].get('port')}"
    title = f"rank 0 never came: nothing listens at the master address {where} (or that is not node 0's address and port)"
    return [Finding("missing-rank-at-rendezvous", title, Culprit(ranks=[0]), 0.6, reading.quote(*refused[:6]), _REMEDY, time=named[0].time)]


def _host(run: Run, rank: int, world: int) -> str | None:
    """The rank's host: as known, or that of its neighbours where every host has one block of ranks of the same length."""
    if rank in run.ranks and run.ranks[rank].host:
        return run.ranks[rank].host
    hosts: dict[str, list[int]] = {}
    for other, identity in run.ranks.items():
        if identity.host:
            hosts.setdefault(identity.host, []).append(other)
    length = max((len(ranks) for ranks in hosts.values()), default=0)
    if length < 2 or world % length:
        return None
    if any(len({other // length for other in ranks}) > 1 for ranks in hosts.values()):
        return None
    return next((host for host, ranks in hosts.items() if ranks[0] // length == rank // length), None)


def _barrier(run: Run) -> list[Finding]:
    """Ranks that rank 0 waited for in a monitored barrier."""
    facts = run.of("barrier")
    missing = sorted({int(rank) for fact in facts for rank in str(fact.get("absent")).split(",")})
    if not missing or reading.own_errors(run):
        return []
    names = ", ".join(run.name(rank) for rank in missing[:8])
    return [Finding("missing-rank-at-rendezvous", f"{names} never came to the barrier", run.blame(missing), 0.6, reading.quote(*facts[:4]), _REMEDY)]


def _nodes(run: Run) -> list[Finding]:
    missing = run.of("missing-node")
    if not missing or run.of("stranger") or run.of("hello"):
        return []
    call = next(iter(run.of("roll-call")), Fact("roll-call"))
    names = ", ".join(f"node {fact.get('node_rank')}" + (f" ({fact.host})" if fact.host else "") for fact in missing)
    ranks = [fact.get("node_rank") * fact.get("nproc_per_node") + i for fact in missing for i in range(fact.get("nproc_per_node"))]
    hosts = [fact.host for fact in missing if fact.host]
    there = ", ".join(call.get("there", ())) or "nobody"
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{names} never came to the roll call ({call.get('seconds', 0):g} s); here: {there}",
            Culprit(ranks=ranks, hosts=hosts or None),
            0.95,
            reading.quote(*missing, call),
            f"start the same ncclcheck command there, with --node-rank {word(missing[0].get('node_rank'))} and the same --nnodes and --master; "
            "if it runs, read what it says: it names what keeps it from node 0",
        )
    ]


def _node0(run: Run) -> list[Finding]:
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"node 0 never came: nothing listens at {fact.get('address')}:{fact.get('port')} ({fact.get('name')}), though that host answers",
            Culprit(hosts=[str(fact.get("name"))]),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            f"start node 0 (the same command with --node-rank 0) on {word(fact.get('name'))}, or correct --master if "
            "node 0 has another address or port",
        )
        for fact in run.of("master")
        if fact.get("answer") == "refused"
    ]


def _absent(run: Run) -> list[Finding]:
    """A launcher that left in order and had started no rank."""
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{fact.host} started no rank: its launcher left with exit code {fact.get('code')}, and the others wait for "
            f"rank{'s' * (len(fact.get('ranks')) > 1)} {', '.join(map(str, fact.get('ranks')[:8]))}",
            Culprit(ranks=list(fact.get("ranks")), hosts=[fact.host] if fact.host else None),
            0.95,
            reading.quote(fact),
            f"on {word(fact.host)}: look at launcher.log in the run directory, and at what its start command is; " + _REMEDY,
        )
        for fact in run.of("absent")
    ]


def _ranks(run: Run) -> list[Finding]:
    last = run.last_steps()
    missing = [rank for rank in range(run.world_size or 0) if rank not in last]
    if not missing or not last or run.of("error") or run.of("gone"):
        return []
    names = ", ".join(run.name(rank) for rank in missing[:8])
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{names} of {run.world_size} never announced itself{reading.bystanders(run, missing)}",
            run.blame(missing),
            0.9,
            [*reading.quote(*run.of("clock")), *reading.positions(run, list(last))],
            "read launcher.log of that node in the run directory: it says why the rank did not start",
        )
    ]
