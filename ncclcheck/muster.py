"""Compares what each rank says of itself when it starts with what was ordered, before anything can hang on a difference. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ncclcheck import alike, socket_ifname
from ncclcheck.model import Fact
from ncclcheck.safe_text import word, words

_CALLED = {"nccl": "NCCL", "torch": "torch", "vllm": "vLLM"}
_WIRING = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a rank's environment is compared."""
    return {name: value for name, value in environ.items() if name in _WIRING or name.startswith(alike.SETTINGS) or name == "CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True, slots=True)
class Order:
    """What every node was told to start."""

    nnodes: int
    nproc_per_node: int
    master: str
    port: int
    tasks: bool = False  # a launcher around us has numbered the ranks: where each belongs is its own word


@dataclass(frozen=True, slots=True)
class Claim:
    """One rank's hello: where it runs, and what it believes. `node` is the number of the node whose agent heard it."""

    node: int
    local_rank: int
    host: str
    pid: int
    environment: Mapping[str, str]
    interfaces: Sequence[str]  # names of those that its node has
    device: Mapping[str, Any] = field(default_factory=dict)  # empty until it is known
    torch: str | None = None
    nccl: str | None = None  # of the library that is loaded
    built: str | None = None  # of the one that this torch was built with
    vllm: str | None = None  # where a probe needs it


def check(order: Order, claims: Sequence[Claim], new: Sequence[Claim] | None = None) -> list[Fact]:
    """Facts of kind "fail", each with cause, title, ranks and hosts; none where everybody believes what was ordered.

    `new`: those of them that were not looked at before (all if not said); what is to be said of a single one is said of these.
    """
    new = claims if new is None else new
    return [*_places(order, new), *_interfaces(order, new), *_devices(order, claims), *_versions(order, claims), *_settings(order, claims)]


def _complete(order: Order, claims: Sequence[Claim]) -> bool:
    return len(claims) >= order.nnodes * order.nproc_per_node


def _place(order: Order, claim: Claim) -> int:
    """The rank that belongs where this process runs."""
    if order.tasks:
        return int(claim.environment.get("RANK", "-1"))
    return claim.node * order.nproc_per_node + claim.local_rank


def _places(order: Order, claims: Sequence[Claim]) -> Iterator[Fact]:
    expected = {
        "WORLD_SIZE": (str(order.nnodes * order.nproc_per_node), "world-size-mismatch"),
        "MASTER_ADDR": (order.master, "wrong-master-addr"),
        "MASTER_PORT": (str(order.port), "wrong-master-addr"),
    }
    for claim in claims:
        rank = _place(order, claim)
        who = f"rank {rank} ({claim.host}, pid {claim.pid})"
        said = claim.environment.get("RANK")
        if said != str(rank):
            title = f"{who} claims to be rank {said}: two processes then share that number, and rank {rank} never comes"
            yield _fail("duplicate-rank", [rank], [claim.host], title)
        for name, (value, cause) in expected.items():
            if (said := claim.environment.get(name)) != value:
                yield _fail(cause, [rank], [claim.host], f"{who} has {name}={said}, and the job was started with {value}")


def _interfaces(order: Order, claims: Sequence[Claim]) -> Iterator[Fact]:
    several = order.nnodes > 1 and not order.master.startswith(("127.", "::1"))
    for claim in claims:
        rank = _place(order, claim)
        who = f"rank {rank} ({claim.host}, pid {claim.pid})"
        wrong = []
        for variable in (socket_ifname.GLOO, socket_ifname.NCCL):
            said = claim.environment.get(variable, "")
            if mistake := socket_ifname.mistake(variable, said, claim.interfaces, several=several):
                wrong.append(f"{variable}={said}, {mistake}")
        if wrong:
            remedy = f"on {word(claim.host)}: ip -br addr   # then export the name of the interface that has the address in the shared network"
            yield _fail("wrong-interface", [rank], [claim.host], f"{who} has {' and '.join(wrong)}", remedy=remedy)


def _devices(order: Order, claims: Sequence[Claim]) -> Iterator[Fact]:
    blind = [claim for claim in claims if claim.device and claim.device.get("index") is None]
    if 0 < len(blind) < sum(bool(claim.device) for claim in claims):
        seen = ", ".join(f"rank {_place(order, c)} with CUDA_VISIBLE_DEVICES={c.environment.get('CUDA_VISIBLE_DEVICES', '')}" for c in blind)
        title = f"some ranks compute on a GPU and others see none: {seen}"
        yield _fail("device-visibility", sorted(_place(order, claim) for claim in blind), _hosts(blind), title)
    users: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.device.get("index") is not None and claim.device.get("uuid"):
            users.setdefault(str(claim.device["uuid"]), []).append(claim)
    for uuid, same in users.items():
        if len(same) > 1:
            ranks = sorted(_place(order, claim) for claim in same)
            seen = ", ".join(f"rank {_place(order, c)} with CUDA_VISIBLE_DEVICES={c.environment.get('CUDA_VISIBLE_DEVICES', '')}" for c in same)
            title = f"ranks {', '.join(map(str, ranks))} use one GPU, {uuid}, expected one rank per GPU: {seen}"
            yield _fail("duplicate-gpu", ranks, _hosts(same), title)


def _versions(order: Order, claims: Sequence[Claim]) -> Iterator[Fact]:
    if not _complete(order, claims):  # the first two that differ do not tell who is the odd one
        return
    for what, cause in (("nccl", "nccl-version-mismatch"), ("torch", "version-mismatch"), ("vllm", "version-mismatch")):
        values: dict[str, list[Claim]] = {}
        for claim in claims:
            if value := getattr(claim, what):
                values.setdefault(str(value), []).append(claim)
        if len(values) > 1:
            strangers = [claim for claim in claims if what == "nccl" and claim.nccl and claim.built and claim.nccl != claim.built]
            odd = strangers or alike.odd(values)
            title = f"ranks have loaded different versions of {_CALLED[what]}: {_said(order, values)}"
            yield _fail(cause, sorted(_place(order, claim) for claim in odd), _hosts(odd), title)


def _settings(order: Order, claims: Sequence[Claim]) -> Iterator[Fact]:
    if not _complete(order, claims):
        return
    names = {name for claim in claims for name in claim.environment if name.startswith(alike.SETTINGS)}
    for name in sorted(filter(alike.must_be, names)):
        values: dict[str, list[Claim]] = {}
        for claim in claims:
            values.setdefault(claim.environment.get(name, ""), []).append(claim)
        if len(values) > 1:
            odd = alike.odd(values)
            said = _said(order, {value or "nothing": same for value, same in values.items()})
            title = f"{name} differs between the ranks, which can hang or slow every collective: {said}"
            remedy = f"on {words(_hosts(odd))}: unset {word(name)}   # or give every node the same value"
            yield _fail("nccl-env-misconfig", sorted(_place(order, claim) for claim in odd), _hosts(odd), title, remedy=remedy)


def _said(order: Order, values: Mapping[str, Sequence[Claim]]) -> str:
    """`2.28.9 on gpu-01, gpu-02; 2.28.3 on gpu-17`."""
    return "; ".join(
        f"{value} on {', '.join(_hosts(same)[:8])} (rank{'s' * (len(same) > 1)} {_ranks(order, same)})" for value, same in values.items()
    )


def _ranks(order: Order, claims: Sequence[Claim]) -> str:
    ranks = sorted(_place(order, claim) for claim in claims)
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")


def _hosts(claims: Sequence[Claim]) -> list[str]:
    return list(dict.fromkeys(claim.host for claim in claims))


def _fail(cause: str, ranks: Sequence[int], hosts: Sequence[str], title: str, **more: str) -> Fact:
    return Fact("fail", fields={"cause": cause, "title": title, "ranks": list(ranks), "hosts": list(hosts), **more})
