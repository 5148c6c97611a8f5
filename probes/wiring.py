"""Compare what every rank believes about the job before the first collective.

What it checks
    Each rank writes its identity (rank, host, process, GPU), its environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) and its
    torch and NCCL versions to the job's store. Rank 0 compares them: every rank is there once, all agree on the
    size of the job and on its master, each node has local ranks 0 to k-1, no two ranks share a GPU, versions are equal.

What a failure means
    The launch is wrong, not the network: node ranks, `--nproc-per-node`, CUDA_VISIBLE_DEVICES or the software of one
    node. The store is used and not a collective, because two ranks on one GPU or two NCCL versions break the first collective.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.wiring
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ncclcheck.model import Fact, Sample
from ncclcheck.probe import FIRST_BOUND, Rank
from ncclcheck.rank import run_alone

TIMEOUT = 60.0
MIN_RANKS = 1
DEFAULT = True
ORDER = 10

ARRIVAL = 1.5 * FIRST_BOUND  # seconds rank 0 waits for the others: the agent, which can look at them, judges first
ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")

Row = Mapping[str, Any]


def run(rank: Rank) -> Iterator[Sample | Fact]:
    """One fact "wiring" on each rank; rank 0 adds one fact "fail" for each thing that is wrong."""
    row = identity(rank)
    yield Fact("wiring", rank=rank.rank, fields=row)
    with rank.step("exchange identities via the store"):
        rows = exchange(row, dist.get_world_size(), read=dist.get_rank() == 0)
    if dist.get_rank() == 0:
        yield from check(rows)


def identity(rank: Rank) -> dict[str, Any]:
    """This rank's row: lower-case names for what it is, upper-case names for what its environment says (None = unset)."""
    me = rank.identity
    nccl = torch.cuda.nccl.version() if rank.device.index is not None else None  # type: ignore[no-untyped-call]
    return {
        "rank": dist.get_rank(),
        "local_rank": me.local_rank,
        "node_rank": me.node_rank,
        "host": me.host,
        "pid": me.pid,
        "device": str(me.device),
        "uuid": me.device.uuid,
        "pci_bus_id": me.device.pci_bus_id,
        "world_size": dist.get_world_size(),
        "torch": str(torch.__version__),  # its own type is no JSON
        "nccl": nccl and ".".join(map(str, nccl)),
        **{name: os.environ.get(name) for name in ENVIRONMENT},
    }


def exchange(row: Row, world_size: int, read: bool) -> list[Row]:
    """Write a row to the job's store; where `read`, the rows of all that arrive within ARRIVAL seconds.

    The key is the order of arrival and not the rank, so two processes that claim one rank do not hide each other.
    """
    store = dist.distributed_c10d._get_default_store()
    store.set(f"ncclcheck/wiring/{store.add('ncclcheck/wiring', 1)}", json.dumps(row))
    keys = [f"ncclcheck/wiring/{number}" for number in range(1, world_size + 1)]
    try:
        store.wait(keys, timedelta(seconds=ARRIVAL))
    except dist.DistStoreError:  # not all came: those that did say who is missing
        keys = [key for key in keys if store.check([key])]
    if not read:
        return []  # but it waited as long: who leaves while another still connects to it breaks that one's init_process_group
    return [json.loads(store.get(key)) for key in keys]


def check(rows: Sequence[Row]) -> list[Fact]:
    """What is wrong with the wiring that these rows describe; facts of kind "fail". Pure."""
    facts = [*_membership(rows), *_agreement(rows), *_devices(rows)]
    return facts if any(fact.get("cause") == "missing-rank-at-rendezvous" for fact in facts) else [*facts, *_layout(rows)]


def _membership(rows: Sequence[Row]) -> Iterator[Fact]:
    """Every rank once, under the number that its environment gave it."""
    world_size = max(row["world_size"] for row in rows)
    present = _by(rows, "rank")
    if missing := sorted(set(range(world_size)) - set(present)):
        yield _fail(
            "missing-rank-at-rendezvous", missing, f"{_ranks(missing)} of {world_size} never wrote an identity to the store (waited {ARRIVAL:g} s)"
        )
    for rank, claims in present.items():
        if len(claims) > 1:
            who = " and ".join(f"pid {row['pid']} on {row['host']}" for row in claims)
            yield _fail("duplicate-rank", [rank], f"{len(claims)} processes claim rank {rank}, expected one: {who}")
    for row in rows:
        if row["RANK"] not in (None, str(row["rank"])):
            title = f"{_name(row)} is rank {row['rank']} of its process group, but its environment says RANK={row['RANK']}"
            yield _fail("duplicate-rank", [row["rank"]], title)
        if row["WORLD_SIZE"] not in (None, str(row["world_size"])):
            title = f"{_name(row)} is in a process group of {row['world_size']}, but its environment says WORLD_SIZE={row['WORLD_SIZE']}"
            yield _fail("world-size-mismatch", [row["rank"]], title)


def _agreement(rows: Sequence[Row]) -> Iterator[Fact]:
    """Things that must be the same everywhere."""
    same = {
        "world_size": "world-size-mismatch",
        "MASTER_ADDR": "wrong-master-addr",
        "MASTER_PORT": "wrong-master-addr",
        "nccl": "nccl-version-mismatch",
        "torch": "version-mismatch",
    }
    labels = {"nccl": "NCCL version", "torch": "torch version"}
    for key, cause in same.items():
        groups = _by(rows, key)
        if len(groups) > 1:
            counts = Counter({value: len(group) for value, group in groups.items()}).most_common()
            majority = counts[0][0] if counts[0][1] > counts[1][1] else None  # a tie accuses nobody more than the other
            odd = sorted(row["rank"] for value, group in groups.items() if value != majority or majority is None for row in group)
            values = ", ".join(f"{value} on {_places(group)}" for value, group in groups.items())
            yield _fail(cause, odd, f"ranks disagree on {labels.get(key, key)}, expected one value: {values}")


def _devices(rows: Sequence[Row]) -> Iterator[Fact]:
    """One rank per GPU."""
    for uuid, group in _by(rows, "uuid").items():
        if uuid is not None and len(group) > 1:
            seen = ", ".join(f"rank {row['rank']} with CUDA_VISIBLE_DEVICES={row['CUDA_VISIBLE_DEVICES'] or ''}" for row in group)
            title = f"{_places(group)} share {uuid} ({group[0]['pci_bus_id']}), expected one rank per GPU: {seen}"
            yield _fail("duplicate-gpu", [row["rank"] for row in group], title)


def _layout(rows: Sequence[Row]) -> Iterator[Fact]:
    """The ranks of one node are on one host and have local ranks 0 to k-1. Launchers that set no GROUP_RANK know no nodes."""
    for node, group in _by([row for row in rows if row["GROUP_RANK"] is not None], "node_rank").items():
        ranks = [row["rank"] for row in group]
        hosts = list(dict.fromkeys(row["host"] for row in group))
        local = sorted(row["local_rank"] for row in group)
        expected = f"expected 0 to {len(local) - 1} once each"
        if len(hosts) > 1:
            yield _fail("duplicate-rank", ranks, f"{len(hosts)} hosts claim node_rank {node}, expected one: {', '.join(hosts)}")
        elif len(set(local)) < len(local):
            yield _fail("duplicate-rank", ranks, f"{_places(group)} of node {node} claim local ranks {local}, {expected}")
        elif local != list(range(len(local))):
            yield _fail("world-size-mismatch", ranks, f"{_places(group)} of node {node} have local ranks {local}, {expected}")


def _fail(cause: str, ranks: Sequence[int], title: str) -> Fact:
    return Fact("fail", fields={"cause": cause, "title": title, "ranks": list(ranks)})


def _by(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """Rows in rank order, grouped by the value of one column."""
    groups: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        groups.setdefault(row[key], []).append(row)
    return groups


def _places(rows: Sequence[Row]) -> str:
    """`ranks 0, 1 (gpu-07, gpu-08)`."""
    return f"{_ranks([row['rank'] for row in rows])} ({', '.join(dict.fromkeys(row['host'] for row in rows))})"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _name(row: Row) -> str:
    return f"pid {row['pid']} on {row['host']}"


if __name__ == "__main__":
    run_alone(__file__)
