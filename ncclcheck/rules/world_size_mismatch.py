"""Nodes or ranks disagree on how many take part: different --nnodes, --nproc-per-node or WORLD_SIZE, or more than announced.

Blames
    fact hello @ a conflict=nnodes node_rank=0 value=2 nnodes=2
    fact hello @ b conflict=nnodes node_rank=1 value=3 nnodes=3
    => a b

Blames
    log node-a.log: [rank3]: RuntimeError: [enforce fail at gloo/context.cc:28] rank < size. 3 vs 2
    => 3

Blames
    log node-a.log: node-a:84:89 [0] bootstrap.cc:318 NCCL WARN Bootstrap Root : mismatch in rank count from procs 4 : 8
    => -

Blames
    log a.log: [rank0]: RuntimeError: world_size (4) is not divisible by 8
    => -

Blames
    log a.log: ValueError: world_size must equal to tp_size * pp_size, but got 4 != 2 * 1
    => -

Blames
    log a.log: RuntimeError: Timed out initializing process group in store based barrier on rank: 1, for key: store_based_barrier_key:1 \
(world_size=2, worker_count=3, timeout=0:30:00)
    => -

Blames
    log a.sh: torchrun --nnodes=2 --nproc-per-node=8 --node-rank=0 train.py
    log b.sh: torchrun --nnodes=2 --nproc-per-node=4 --node-rank=1 train.py
    => -

Blames
    log a.log: [TensorRT-LLM][ERROR] Assertion failed: With communicationMode kLEADER, MPI worldSize is expected to be equal to tensorParallelism * \
pipelineParallelism when participantIds are not specified
    => -

Blames
    log a.log: ValueError: Invalid rank 5, rank should be in the interval [0, 3]
    => 5

Blames
    log node-a/rank0.log: torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.
    log node-b/rank2.log: Initializing distributed: GLOBAL_RANK: 2, MEMBER: 3/4
    => -

Blames
    rank 0 @ a: init, engine... | calls vllm engine start TP=2
    rank 1 @ b: init, engine... | calls vllm engine start TP=4
    => 1

Blames
    rank 0 @ a: init, engine... | calls vllm engine start TP=3
    rank 1 @ a: init, engine... | calls vllm engine start TP=3
    rank 2 @ b: init, engine... | calls vllm engine start TP=6
    => 2

Spares
    log node-a/rank0.log: torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.
    log node-b/rank1.log: Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/2

Spares
    fact hello @ a conflict=node_rank node_rank=1 value=1
"""

from dataclasses import replace

from ncclcheck import divergence
from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = (
    "missing_rank_at_rendezvous",
    "rank_died_exception",
    "kv_cache_or_memory_too_small",
    "rank_stuck_in_python",
    "network_unreachable",
    "tp_not_divisible",
)
_FLAGS = {"nnodes": "--nnodes", "nproc_per_node": "--nproc-per-node"}
_REMEDY = (
    "start every node with the same size: WORLD_SIZE = nnodes x nproc_per_node; the same --nnodes and --nproc-per-node for torchrun, "
    "--tensor-parallel-size x --pipeline-parallel-size for vLLM, --tp for SGLang; echo $WORLD_SIZE on each"
)

READS = (
    Statement(
        r"rank < size\. (?P<rank>\d+) vs (?P<size>\d+)",
        "rank {rank} is not in a group of {size}: more processes were started than the group has",
        _REMEDY,
        0.93,
    ),
    Statement(
        r"mismatch in rank count from procs (?P<one>\d+) : (?P<other>\d+)",
        "the ranks disagree on their number: {one} and {other}",
        _REMEDY,
        0.95,
        "nobody",
    ),
    Statement(
        r"world[_ ]size(?: \((?P<size>\d+)\))? (?:is not (?:divisible by|equal to)|must (?:be )?equal to|should be equal to) "
        r"(?P<product>[^,\n]{1,120})",
        "the world size {size} does not fit the model's parallelism ({product})",
        _REMEDY + "; --tensor-model-parallel-size x --pipeline-model-parallel-size x --context-parallel-size must divide it (Megatron)",
        0.93,
        "nobody",
    ),
    Statement(
        r"MPI (?:worldSize|world size|size) is expected to be equal to (?P<product>[^,\n]{1,120})",
        "MPI started another number of processes than the engine was built for ({product})",
        "mpirun -n N   # N = tensor x pipeline x context parallel size of the engine; trtllm-llmapi-launch under Slurm; " + _REMEDY,
        0.93,
        "nobody",
    ),
    Statement(
        r"Invalid rank (?P<rank>\d+), rank should be in the interval \[0, (?P<last>\d+)\]",
        "rank {rank} is outside of the group, whose last is {last}",
        _REMEDY,
        0.9,
    ),
)


def check(run: Run) -> list[Finding]:
    """Agents, or ranks in their logs, that believe in different sizes; more clients than the store expects; commands that do not fit together."""
    return [*_engine_sizes(run), *_agents(run), *_claims(run), *_too_many(run), *_commands(run)]


def _engine_sizes(run: Run) -> list[Finding]:
    """Engines that were started with different parallel sizes, as their ranks announced it."""
    found = divergence.of(run)
    if found is None or divergence.cause(found) != "world-size-mismatch":
        return []
    size = f"{divergence.ENGINE} TP={run.world_size}"
    if size in found.issued.values():  # what fits the number of ranks is right, even if as many say something else
        found = replace(found, odd=tuple(rank for rank, call in sorted(found.issued.items()) if call != size))
    return [Finding("world-size-mismatch", divergence.said(run, found), run.blame(found.odd), 0.95, divergence.quotes(run, found), _REMEDY)]


def _too_many(run: Run) -> list[Finding]:
    """More came to the store than it expects: a larger job, or another one that uses the same address and port."""
    facts = [fact for fact in run.of("joined") if int(fact.get("there", 0)) > int(fact.get("expected", 0)) > 0]
    if not facts:
        return []
    title = f"{facts[0].get('there')} processes came to a store that expects {facts[0].get('expected')}"
    remedy = f"{_REMEDY}; where two jobs share MASTER_ADDR and MASTER_PORT, or torchrun restarted one, give each its own --master-port"
    return [Finding("world-size-mismatch", title, Culprit(), 0.8, reading.quote(*facts[:4]), remedy)]


def _commands(run: Run) -> list[Finding]:
    """The nodes' commands, each in a file of its own, that name different sizes for one job."""
    launches = {fact.source.file: fact for fact in run.of("launch") if fact.source and fact.get("node_rank") is not None}
    if len({fact.get("node_rank") for fact in launches.values()}) != len(launches):
        return []  # the same node twice: two launches, or a duplicate rank
    for name in _FLAGS:
        sizes = {file: fact.get(name) for file, fact in launches.items() if fact.get(name) is not None}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{size} ({file})" for file, size in sizes.items())
            facts = [launches[file] for file in list(sizes)[:8]]
            return [Finding("world-size-mismatch", f"the nodes' {_FLAGS[name]} differ: {said}", Culprit(), 0.8, reading.quote(*facts), _REMEDY)]
    return []


def _claims(run: Run) -> list[Finding]:
    """Sources that each claim one size of the world, and not the same, in a job that did not come together."""
    if not (run.of("joined") or run.of("store-wait")):
        return []
    claims: dict[str, set[int]] = {}
    quotes: dict[int, Fact] = {}
    for fact in run.of("world"):
        if fact.source and isinstance(size := fact.get("size"), int) and size > 1:
            claims.setdefault(fact.source.file, set()).add(size)
            quotes.setdefault(size, fact)
    sizes = {next(iter(said)) for said in claims.values() if len(said) == 1}
    if len(sizes) < 2:
        return []
    facts = [quotes[size] for size in sorted(sizes)]
    said = ", ".join(f"{fact.get('size')} ({fact.host or (fact.source.file if fact.source else '')})" for fact in facts)
    return [Finding("world-size-mismatch", f"the ranks disagree on their number: {said}", Culprit(), 0.93, reading.quote(*facts), _REMEDY)]


def _agents(run: Run) -> list[Finding]:
    facts = [fact for fact in run.of("hello") if fact.get("conflict") in (*_FLAGS, "count")]
    if not facts:
        return []
    field = facts[0].get("conflict")
    facts.sort(key=lambda fact: (fact.get("node_rank") is None, fact.get("node_rank") or 0))
    hosts = [fact.host for fact in facts if fact.host]
    if field == "count":
        title = f"{len(facts)} agents came and {facts[0].get('nnodes')} were announced: {', '.join(hosts)}"
        remedy = "give --nnodes the number of nodes you start, on every node, or start fewer"
    else:
        said = ", ".join(f"node {fact.get('node_rank')} ({fact.host}) says {fact.get('value')}" for fact in facts)
        title = f"the nodes disagree on {field}: {said}"
        remedy = f"start every node with the same {_FLAGS[field]}"
    return [Finding("world-size-mismatch", title, Culprit(hosts=hosts), 0.97, reading.quote(*facts), remedy)]
