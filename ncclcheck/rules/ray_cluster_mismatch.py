"""Ray does not offer what the engine asks of it: a node or its GPUs did not join, versions differ, or a second, local Ray was started.

The engine waits for a placement group until Ray has all the GPUs at once; nothing else is printed for half an hour.

Blames
    log serve.log: 2026-03-04 01:06:09,120 INFO worker.py:1843 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265
    log serve.log: WARNING 03-04 01:06:13 ray_utils.py:315] The number of required GPUs exceeds the total number of available GPUs in the placement \
group.
    log serve.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 40 seconds. specs=[{'GPU': 1.0}, \
{'GPU': 1.0}]
    => -

Blames
    log serve.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 160 seconds. specs=[{'GPU': 1.0}, \
{'GPU': 1.0}, {'GPU': 1.0}]
    log status.txt: Total Usage:
    log status.txt:  0.0/64.0 CPU
    log status.txt:  0.0/2.0 GPU
    log status.txt: Pending Demands:
    log status.txt:  {'GPU': 1.0} * 3 (PACK): 1+ pending placement groups
    => -

Blames
    log serve.log: 2026-03-04 01:06:09,120 INFO worker.py:1654 -- Connecting to existing Ray cluster at address: 10.9.0.1:6379...
    log serve.log: (autoscaler +41s) Error: No available node types can fulfill resource request {'node:10.9.0.1': 0.001, 'GPU': 1.0}. Add suitable \
node types
    => -

Blames
    log serve.log: ValueError: Cannot provide a placement group of placement_group_specs=[{'GPU': 1.0}, {'GPU': 1.0}] within 1800 seconds. See `ray \
status`
    => -

Blames
    log serve.log: ValueError: Current node has no GPU available. current_node_resource={'CPU': 64.0}. vLLM engine cannot start without GPU.
    => -

Blames
    log serve.log: RuntimeError: driver node id 5d0c is not included in a placement group 9f. Node id -> bundles {}. You don't have enough GPUs \
available in a current node.
    => -

Blames
    log serve.log: ValueError: The number of required GPUs exceeds the total number of available GPUs in the placement group. Required number of \
devices: 16.
    => -

Blames
    log worker.log: RuntimeError: Version mismatch: The cluster was started with:
    log worker.log:     Ray: 2.44.1
    log worker.log:     Python: 3.10.12
    log worker.log: This process on node 10.9.0.2 was started with:
    log worker.log:     Ray: 2.44.1
    log worker.log:     Python: 3.12.3
    => 10.9.0.2

Blames
    log worker.log: ConnectionError: Could not find any running Ray instance. Please specify the one to connect to by setting `--address` flag or \
`RAY_ADDRESS`
    => -

Blames
    log worker.log: ConnectionError: Failed to connect to Ray cluster at address: 10.9.0.1:6379. Please check that the Ray cluster is running
    => -

Blames
    log worker.log: [2026-03-04 01:06:09,120 E 71 71] gcs_rpc_client.h:179: Failed to connect to GCS at address 10.9.0.1:6379 within 5 seconds.
    => -

Blames
    log serve.log: RuntimeError: Failed to create placement group with 8 bundles (requiring 8.0 GPUs, 8.0 CPUs total) in 180 seconds. This might \
indicate insufficient GPU
    => -

Blames
    log serve.log: RuntimeError: Ray does not allocate any GPUs on the driver node. Driver IP: 10.9.0.1, worker IPs: ['10.9.0.2']. Consider \
adjusting the Ray
    => -

Blames
    log serve.log: ValueError: Can't find a `node_ip_address.json` file from /tmp/ray/session_1. Have you started Ray instance using `ray start` or \
`ray.init`?
    => -

Blames
    log worker.log: ConnectionError: Unable to connect to GCS at 10.9.0.1:6379. Check that (1) Ray GCS with matching version started successfully
    => -

Blames
    log serve.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 160 seconds. specs=[{'GPU': 1.0}, \
{'GPU': 1.0}]
    log status.txt: Usage:
    log status.txt:  2.0/2.0 GPU
    => -

Spares
    log serve.log: 2026-03-04 01:06:09,120 INFO worker.py:1843 -- Started a local Ray instance.
    log serve.log: INFO 03-04 01:09:23 [core.py:214] init engine (profile, create kv cache, warmup model) took 21.90 seconds

Spares
    log serve.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 10 seconds. specs=[{'GPU': 1.0}, \
{'GPU': 1.0}]
    log serve.log: (RayWorkerWrapper pid=71) INFO 03-04 01:06:40 parallel_state.py:1906] world_size=2 rank=1 local_rank=1 \
distributed_init_method=tcp://10.9.0.1:29600 backend=nccl

Spares
    log driver.log: WARNING utils.py:1591 -- Python patch version mismatch: The cluster was started with:
    log driver.log:     Ray: 2.44.1
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from ncclcheck.evidence._reads import Block, Line, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run

EXPLAINS = ("rank_died_exception", "rpc_timeout")

_JOIN = (
    "ray status   # must list every node and GPU; where not: ray stop on every node, ray start --head --node-ip-address=HEAD --num-gpus=N on node 0, "
    "ray start --address=HEAD:6379 --num-gpus=N on the others; export RAY_ADDRESS=HEAD:6379 before the engine starts"
)


def _versions(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """Ray's refusal lists the cluster's versions, then those of the process that it refused."""
    if "patch version" in line.text:
        return  # only a warning
    near = "\n".join([line.body, *(other.body for other in islice(following, 8))])
    theirs, _, ours = near.partition("This process")
    found = [dict(re.findall(r"\b(Ray|Python): ?([\w.+-]+)", part)) for part in (theirs, ours)]
    host = re.match(r" on (?:node )?(\S+) was started", ours)
    differing = [f"{name} {found[0][name]} and {found[1][name]}" for name in found[0] if name in found[1] and found[0][name] != found[1][name]]
    yield line.fact("ray-versions", {"differing": ", ".join(differing) or "other versions"}, host=host[1] if host else None)


def check(run: Run) -> list[Finding]:
    """A refused version, or a placement group that Ray cannot give and why."""
    return [*_other_version(run), *_placement(run)]


def _other_version(run: Run) -> list[Finding]:
    result = []
    for fact in run.of("ray-versions"):
        title = f"the Ray cluster and a process that joins it have different versions: {fact.get('differing')}"
        culprit = Culprit(hosts=[fact.host] if fact.host else None)
        remedy = "the same image, or pip install ray==VERSION with the same Python, on every node; then " + _JOIN
        result.append(Finding("ray-cluster-mismatch", title, culprit, 0.95, [fact.source] if fact.source else [], remedy))
    return result


def _placement(run: Run) -> list[Finding]:
    waits, short, pending, refused = run.of("ray-waits"), run.of("ray-short"), run.of("ray-pending"), _infeasible(run)
    if not (waits or short or pending or refused) or any(run.of(kind) for kind in ("world", "load-begun", "load-ended", "served")):
        return []  # nothing was asked for, or it was given after all
    local, resources = run.of("ray-local"), run.of("ray-resources")
    offered = resources[-1].fields if resources else {}
    others = [f"{count} {kind}" for kind, count in offered.items() if kind not in ("GPU", "used")]
    if local and not run.of("ray-joined"):
        title = "the engine started a Ray instance of its own instead of joining the cluster's, and that one has too few GPUs"
        confidence = 0.9
    elif offered:
        there = ", ".join([f"{offered.get('GPU', 0)} GPUs", *others])
        title = f"Ray's cluster has {there} ({offered['used']} in use), and the engine asks for more than that leaves"
        confidence = 0.85 if pending or waits else 0.6
    else:
        title = "the engine waits for GPUs that no node of Ray's cluster offers: a node did not join, or its GPUs were not seen or are taken"
        confidence = 0.85 if pending or refused else 0.75 if short else 0.6
    remedy = _JOIN + (f"; a GPU that Ray takes for something else ({others[0]}) is told to it by --num-gpus=N in ray start" if others else "")
    evidence = [fact.source for fact in [*local, *short, *pending, *resources, *refused, *waits[-1:]] if fact.source]
    return [Finding("ray-cluster-mismatch", title, Culprit(), confidence, evidence, remedy)]


def _infeasible(run: Run) -> Sequence[Fact]:
    """Refused requests for a GPU; one for a node that is not the joined cluster's head asks for an address (see vllm_host_ip)."""
    heads = {fact.get("address") for fact in run.of("ray-joined")}
    requests = [(fact, re.search(r"'node:([^']+)'", str(fact.get("request")))) for fact in run.of("ray-infeasible")]
    return [fact for fact, node in requests if re.search(r"'[A-Z]PU'", str(fact.get("request"))) and (node is None or node[1] in heads)]


READS = (
    Block(r"ersion mismatch: The cluster was started with", _versions),
    Statement(
        r"Cannot provide a placement group (?:of|requiring) (?P<what>placement_group_specs=|[\d.]+ \w+)",
        "Ray could not give the GPUs that the engine asks for",
        _JOIN,
        0.9,
        blames="nobody",
    ),
    Statement(
        r"Failed to create placement group with (?P<bundles>\d+) bundles",
        "Ray could not give the {bundles} bundles of GPUs that the job asks for",
        _JOIN,
        0.85,
        blames="nobody",
    ),
    Statement(
        r"Current node has no (?P<kind>\w+) available",
        "Ray sees no {kind} on the node where the engine was started",
        _JOIN,
        0.9,
        blames="host",
    ),
    Statement(
        r"driver node id \w+ is not included in a placement group",
        "the GPUs of the node where the engine was started are taken, or Ray does not see them",
        f"{_JOIN}; nvidia-smi and ray list actors on that node show who holds them",
        0.9,
        blames="host",
    ),
    Statement(
        r"Error: The number of required (?P<kind>\w+?)s exceeds the total number of available \w+ in the placement group\."
        r"(?: Required number of devices: (?P<asked>\d+))?",
        "the engine needs more {kind}s than its placement group has ({asked} are asked for)",
        _JOIN,
        0.9,
        blames="nobody",
    ),
    Statement(
        r"Could not find any running Ray instance",
        "no Ray runs where the engine looks for it",
        _JOIN,
        0.9,
        blames="host",
    ),
    Statement(
        r"Failed to connect to Ray cluster at address: (?P<address>[^\s,]{1,100}:\d+)",
        "Ray's head cannot be reached at {address}",
        "nc -vz HEAD 6379 from that node; the address must be the one of ray start --head --node-ip-address=HEAD; then " + _JOIN,
        0.85,
        blames="host",
    ),
    Statement(
        r"Ray does not allocate any \w+ on the driver node\. Driver IP: (?P<address>[^\s,]+), worker IPs: \[(?P<workers>[^\]]*)\]",
        "Ray placed no worker on {address}, the address of the node where the engine was started (but on {workers})",
        f"export VLLM_HOST_IP=ADDRESS if that node has another address for Ray; else {_JOIN}",
        0.85,
        blames="nobody",
    ),
    Statement(r"Can't find a `node_ip_address\.json` file", "no Ray runs on the node where the engine looks for it", _JOIN, 0.85, blames="host"),
    Statement(
        r"(?:Failed|Unable) to connect to GCS at (?:address )?(?P<address>[^\s,]{1,100}:\d+)",
        "Ray's head (GCS) cannot be reached at {address}",
        "nc -vz HEAD 6379 from that node: is ray start --head still running, and is the port open? then " + _JOIN,
        0.7,
        blames="host",
    ),
)
