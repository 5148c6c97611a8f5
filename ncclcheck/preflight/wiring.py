"""Judges the addresses and numbers in a node's environment: VLLM_HOST_IP, MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from ncclcheck.model import Fact
from ncclcheck.rules.wrong_interface import LOCAL
from ncclcheck.safe_text import word
from ncclcheck.survey import Job, Node, Section, degrades, note, stop


def judge(node: Node, job: Job, found: Section) -> Iterator[Fact]:
    """What of them would lead a launch astray; `found` is the section "interfaces"."""
    own = [address for one in found["interfaces"] for address in one["addresses"]]
    yield from _engine(node, job, found, own)
    yield from _master(node, job, found, own)
    yield from _port(node, job, found, own)
    yield from _numbers(node, job, found)


def meets(nodes: Sequence[Node]) -> list[str]:
    """The addresses of node 0 that other nodes may know; none of those that every host has for itself, such as docker0's."""
    first = next((node for node in nodes if node.node_rank == 0), None)
    found = ((first and first.read("interfaces")) or {}).get("interfaces") or ()
    there = [str(address) for one in found if not LOCAL.match(str(one.get("name"))) for address in one.get("addresses") or ()]
    known = [first.address, *there] if first and first.address else there
    return [address for address in known if not _local(address) and not address.startswith("fe80")]


def _engine(node: Node, job: Job, found: Section, own: Sequence[str]) -> Iterator[Fact]:
    said, far = found["said"].get("VLLM_HOST_IP", ""), found.get("far", "")
    remedy = f"on {word(node.host)}: export VLLM_HOST_IP={word(node.address)}   # each node its own, before ray start and before the engine"
    if said and said not in own:
        title = f"VLLM_HOST_IP={said} on {node.host} is not an address of that node, which has {', '.join(_shown(own))}"
        yield stop("vllm-host-ip", title, [node.host], remedy, evidence=[f"environment of {node.host}: VLLM_HOST_IP={said}"])
    elif said and job.nnodes > 1 and _local(said):
        title = f"VLLM_HOST_IP={said} on {node.host} is loopback, which no other node can reach"
        yield stop("vllm-host-ip", title, [node.host], remedy, evidence=[f"environment of {node.host}: VLLM_HOST_IP={said}"])
    elif not said and job.nnodes > 1 and far != node.address:
        title = f"vLLM on {node.host} would take {far or '0.0.0.0'} for its address, and the other nodes know it as {node.address}: {remedy}"
        yield note(title, [node.host], address=far)


def _master(node: Node, job: Job, found: Section, own: Sequence[str]) -> Iterator[Fact]:
    """Whatever starts ranks by MASTER_ADDR (srun and mpirun scripts, `--master-addr $MASTER_ADDR`) meets there."""
    master = found.get("master")
    if not master or not job.master or job.master in (master["name"], *master["addresses"]):
        return
    name, addresses = master["name"], master["addresses"]
    here = any(address in own or _local(address) for address in addresses)
    if node.node_rank == 0 and here and (job.nnodes == 1 or not _local(name)):
        return  # another of its own addresses; or its name, which Debian gives 127.0.1.1: the store listens at all of them
    same = {*job.meets, *(found.get("job_master") or {}).get("addresses", ())}
    if any(address in same and address not in own and not _local(address) for address in addresses):
        return  # another name or address of the same node
    what = f", which resolves to {', '.join(addresses)}" if addresses and addresses != [name] else ""
    what = what or ("" if addresses else f", which does not resolve there ({master.get('why', 'no address')})")
    own_node = ", that node itself" if here and node.node_rank else ""
    title = f"MASTER_ADDR={name} on {node.host}{what}{own_node}, and the job's master is {job.master}: a launch that reads it meets elsewhere"
    remedy = f"on {word(node.host)}: export MASTER_ADDR={word(job.master)}   # or unset it; or give --master {word(name)}, if that is node 0"
    seen = [f"environment of {node.host}: MASTER_ADDR={name} -> {', '.join(addresses) or master.get('why', 'no address')}"]
    yield stop("wrong-master-addr", title, [node.host], remedy, evidence=seen, confidence=0.9)


def _port(node: Node, job: Job, found: Section, own: Sequence[str]) -> Iterator[Fact]:
    said, owner = found["said"].get("MASTER_PORT", ""), found.get("port_owner")
    seen = [f"environment of {node.host}: MASTER_PORT={said}"]
    if not said or found.get("launched"):
        return
    if not said.isdecimal() or not 0 < int(said) < 65536:
        title = f"MASTER_PORT={said} on {node.host} is not a port, 1 to 65535"
        yield stop("wrong-master-addr", title, [node.host], f"on {node.host}: export MASTER_PORT=29500", evidence=seen)
    elif owner and node.node_rank == 0:
        title = f"MASTER_PORT={said} on {node.host} is taken: {owner} listens there already"
        remedy = (
            f"on {word(node.host)}: ss -ltnp {word(f'sport = :{said}')}"
            "   # then end what a former job left, or export another MASTER_PORT on every node"
        )
        yield stop("port-in-use", title, [node.host], remedy, evidence=[*seen, f"listening on {node.host}:{said}: {owner}"])


def _numbers(node: Node, job: Job, found: Section) -> Iterator[Fact]:
    """RANK and WORLD_SIZE where no launcher has set them: some count nodes with them, others ranks. torchrun sets its own."""
    said = found["said"]
    if found.get("launched"):
        return
    ranks = job.nnodes * job.nproc_per_node
    unset = f"on {node.host}: unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    seen = [f"environment of {node.host}: " + " ".join(f"{name}={said[name]}" for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in said)]
    if (world := said.get("WORLD_SIZE")) is not None and world not in (str(ranks), str(job.nnodes)):
        title = f"WORLD_SIZE={world} on {node.host}, left over or wrong: {ranks} ranks on {job.nnodes} nodes are asked for"
        yield degrades("world-size-mismatch", title, [node.host], unset, evidence=seen)
    if (rank := said.get("RANK")) is not None:
        mine = {str(node.node_rank), *(str(node.node_rank * job.nproc_per_node + local) for local in range(job.nproc_per_node))}
        if rank not in mine:
            title = f"RANK={rank} on {node.host}, left over or wrong: it is node {node.node_rank} of {job.nnodes}"
            yield degrades("duplicate-rank", title, [node.host], unset, evidence=seen)


def _local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def _shown(own: Sequence[str]) -> list[str]:
    return [address for address in own if not _local(address) and not address.startswith("fe80")] or list(own)
