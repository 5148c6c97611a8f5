"""An engine takes another address for a node than Ray or its peers do, or finds none, and then waits for a node that does not exist.

Engines ask the kernel which address leads to the internet; on a host of several networks, or of none, that is not the one of
the cluster. VLLM_HOST_IP (SGLANG_HOST_IP) says it, on each node its own.

Blames
    log gpu-11.log: INFO 03-04 01:06:09 parallel_state.py:1906] world_size=2 rank=0 local_rank=0 distributed_init_method=env:// backend=nccl
    log gpu-11.log: shm_broadcast.py:555: UserWarning: Failed to get the IP address, using 0.0.0.0 by default. The value can be set by the environment
    => gpu-11

Blames
    log ray.log: RuntimeError: Every node should have a unique IP address. Got 2 nodes with node ids ['5d', '9f'] and 1 unique IP addresses \
{'10.9.0.1'}. Please
    => -

Blames
    log ray.log: 2026-03-04 01:06:09,120 INFO worker.py:1654 -- Connecting to existing Ray cluster at address: 10.9.0.1:6379...
    log ray.log: (autoscaler +41s) Error: No available node types can fulfill resource request {'node:192.168.7.4': 0.001, 'GPU': 1.0}. Add suitable \
node types
    => -

Blames
    log ray.log: 2026-03-04 01:06:09,120 INFO worker.py:1654 -- Connecting to existing Ray cluster at address: 10.9.0.1:6379...
    log ray.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 40 seconds. specs=[{'node:192.168.7.4': \
0.001, 'GPU': 1.0}]
    => -

Blames
    log ray.log: [2026-03-04 01:06:09,458 I 892 892] global_state_accessor.cc:356: This node has an IP address of 172.17.0.2, while we can not find \
the matched Raylet address. This maybe come from
    => -

Blames
    log gpu-11.log: INFO 03-02 10:00:02 [multiproc_executor.py:153] DP group leader: node_rank=0, mq_connect_ip=127.0.1.1 (local), world_size=4, \
local_world_size=2
    => gpu-11

Blames
    log ray.log: (RayWorkerWrapper pid=71, ip=10.9.0.1) INFO 03-02 10:00:02 [x.py:1] world_size=2 rank=0 local_rank=0 \
distributed_init_method=tcp://127.0.0.1:29600
    log ray.log: (RayWorkerWrapper pid=82, ip=10.9.0.2) INFO 03-02 10:00:02 [x.py:1] world_size=2 rank=1 local_rank=0 \
distributed_init_method=tcp://127.0.0.1:29600
    => -

Blames
    log gpu-11.log: + export VLLM_HOST_IP=10.9.0.1
    log gpu-11.log: INFO 03-04 01:06:09 parallel_state.py:1906] world_size=2 rank=0 local_rank=0 distributed_init_method=env:// backend=nccl
    log gpu-12.log: + export VLLM_HOST_IP=10.9.0.1
    log gpu-12.log: INFO 03-04 01:06:09 parallel_state.py:1906] world_size=2 rank=1 local_rank=0 distributed_init_method=env:// backend=nccl
    => -

Blames
    log spark-1.log: [2026-03-04 02:05:29 TP0] Custom allreduce is disabled because this process group spans across nodes.
    log spark-2.log: [2026-03-04 02:05:29 TP1] Custom allreduce is disabled because this process group spans across nodes.
    => -

Spares
    log a.log: shm_broadcast.py:555: UserWarning: Failed to get the IP address, using 0.0.0.0 by default.
    log a.log: INFO 03-02 10:01:40 [core.py:214] init engine (profile, create kv cache, warmup model) took 21.90 seconds

Spares
    log a.log: INFO 03-02 10:00:02 [multiproc_executor.py:153] DP group leader: node_rank=0, mq_connect_ip=127.0.0.1 (local), world_size=2, \
local_world_size=2

Spares
    log a.log: [2026-03-04 02:05:29 TP0] Custom allreduce is disabled because this process group spans across nodes.
    log a.log: [2026-03-04 02:05:31 TP0] Init torch distributed ends. elapsed=4.02 s, mem usage=1.10 GB

Spares
    log ray.log: 2026-03-04 01:06:09,120 INFO worker.py:1654 -- Connecting to existing Ray cluster at address: 10.9.0.1:6379...
    log ray.log: INFO 03-04 01:06:23 ray_utils.py:233] Waiting for creating a placement group of specs for 40 seconds. specs=[{'node:10.9.0.4': \
0.001, 'GPU': 1.0}]
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run

EXPLAINS = ("ray_cluster_mismatch", "rpc_timeout", "rank_died_exception", "bind_address_not_local")

_EXPORT = (
    "export VLLM_HOST_IP=ADDRESS before ray start and before the engine, on every node its own address in the network that they share "
    "(SGLANG_HOST_IP for SGLang); ray start --node-ip-address=ADDRESS likewise; ip -br addr shows the addresses"
)


def check(run: Run) -> list[Finding]:
    """An address that no peer can use, one that Ray does not know, one that two nodes have, or a start that stops where addresses are first used."""
    if any(run.of(kind) for kind in ("served", "load-ended")):
        return []
    return [*_unusable(run), *_unknown(run), *_shared(run), *_stopped(run)]


def _finding(title: str, confidence: float, facts: Sequence[Fact], *, hosts: bool = False) -> Finding:
    named = list(dict.fromkeys(fact.host for fact in facts if fact.host)) if hosts else []
    return Finding("vllm-host-ip", title, Culprit(hosts=named or None), confidence, [fact.source for fact in facts if fact.source], _EXPORT)


def _unusable(run: Run) -> list[Finding]:
    none = run.of("no-address")
    loopback = [fact for fact in run.of("queue-address") if _lost(str(fact.get("address"))) and fact.get("size") != fact.get("local_size")]
    several = (run.world_size or 1) > 1
    local = [fact for fact in run.of("rendezvous") if _lost(str(fact.get("address"))) and fact.host and fact.rank]
    far = [fact for fact in local if fact.host not in {other.host for other in run.of("rendezvous") if other.rank == 0}]
    result = []
    if none:
        title = "the engine does not know this node's address and announces 0.0.0.0, which no other node can reach"
        result.append(_finding(title, 0.9 if several else 0.7, none, hosts=True))
    if loopback:
        title = f"the engine announces {loopback[0].get('address')} to workers on other nodes, which cannot reach it there"
        result.append(_finding(title, 0.85, loopback, hosts=True))
    if far and len(far) != len(run.of("rendezvous")) and not any(fact.get("name") == "master_addr" for fact in run.of("setting")):
        title = f"the engine gave ranks on other nodes {far[0].get('address')} to meet at, which is their own node"
        result.append(_finding(title, 0.8, far))
    return result


def _unknown(run: Run) -> list[Finding]:
    heads = [str(fact.get("address")) for fact in run.of("ray-joined")]
    asked = [(fact, node) for fact in run.of("ray-infeasible") for node in re.findall(r"'node:([^']+)'", str(fact.get("request")))]
    refused = [(fact, node) for fact, node in asked if node not in heads]
    waited = [(fact, node) for fact in run.of("ray-waits") for node in re.findall(r"'node:([^']+)'", str(fact.get("specs"))) if _apart(node, heads)]
    if not refused and not waited:
        return []
    node = (refused or waited)[0][1]
    cluster = f", whose head is {heads[0]}" if heads else ""
    title = f"the engine asks Ray for a node {node}, and no node of the cluster has that address{cluster}"
    return [_finding(title, 0.9 if refused else 0.7, [fact for fact, _ in [*refused, *waited]])]


def _shared(run: Run) -> list[Finding]:
    said: dict[str, list[Fact]] = {}
    for fact in run.of("setting"):
        if fact.get("name") in ("VLLM_HOST_IP", "SGLANG_HOST_IP"):
            said.setdefault(str(fact.get("value")), []).append(fact)
    for value, facts in said.items():
        hosts = sorted({fact.host for fact in facts if fact.host})
        if len(hosts) > 1:
            return [_finding(f"{facts[0].get('name')} is {value} on {' and '.join(hosts)}, and must be each node's own", 0.85, facts)]
    return []


def _stopped(run: Run) -> list[Finding]:
    """Right after that line the ranks connect their message queue, to the address that its first rank found for itself."""
    spans = run.of("spans-nodes")
    further = any(run.of(kind) for kind in ("joined-all", "load-begun", "engine-failed", "exit", "error", "rank-error", "no-address"))
    if not spans or further:
        return []
    title = "the start stopped where ranks on different nodes connect their message queue, at the address that the first of them took for its own"
    return [_finding(title, 0.55, spans)]


def _lost(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address == "localhost"
    return parsed.is_loopback or parsed.is_unspecified


def _apart(node: str, heads: Sequence[str]) -> bool:
    """Whether an address is not even in the larger network (/16, /32) of any known head."""
    try:
        address = ipaddress.ip_address(node)
        nets = [ipaddress.ip_network(f"{head}/{16 if address.version == 4 else 32}", strict=False) for head in heads]
    except ValueError:
        return False
    return bool(nets) and not any(address in net for net in nets)


READS = (
    Clue("no-address", r"Failed to get the IP address, using 0\.0\.0\.0 by default"),
    Clue("setting", r"\b(?P<name>(?:VLLM|SGLANG)_HOST_IP)[=:] ?['\"]?(?P<value>[0-9a-fA-F.:]+)"),
    Statement(
        r"Every node should have a unique IP address\. Got (?P<nodes>\d+) nodes with node ids \[[^\]]*\] and (?P<addresses>\d+) unique",
        "{nodes} nodes give the engine {addresses} addresses: two share one, or one node has another for Ray than for the engine",
        _EXPORT,
        0.95,
        blames="nobody",
    ),
    Statement(
        r"This node has an IP address of (?P<address>[\w.:]+), (?:while|and) we can ?not find the matched Raylet address",
        "this process takes {address} for its node's address, and Ray knows no node by it",
        _EXPORT,
        0.8,
        blames="nobody",
    ),
)
