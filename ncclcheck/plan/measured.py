"""Reads what a probe measured: the all-reduces of its bandwidth probe, who took part, and on which GPUs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from ncclcheck import whole
from ncclcheck.expect.cost import Group
from ncclcheck.model import Report
from ncclcheck.plan.curves import Curve, Engine, Measured

MOST_BYTES = 256 * 2**20  # of a report or a journal
MOST_FILES = 20_000
MOST_KINDS = 1000  # of an engine's all-reduces
EAGER, GRAPH = "all_reduce", "all_reduce (graph)"


class Unusable(ValueError):
    """A run from which no link can be read: one line says why."""


@dataclass(slots=True)
class _Seen:
    """What was gathered from a report or from journals."""

    places: dict[int, tuple[int, str, str]] = field(default_factory=dict)  # rank -> node, host, device
    samples: dict[tuple[int, str, int], list[Mapping[str, Any]]] = field(default_factory=dict)  # ranks, name, bytes
    addresses: dict[int, str] = field(default_factory=dict)
    emulated: bool = False
    engines: list[Mapping[str, Any]] = field(default_factory=list)
    reduces: list[Any] = field(default_factory=list)  # of vLLM's own, as rank 0 of the engine tells them


def read(path: Path) -> Measured:
    """A run directory, or the JSON that `ncclcheck probe --format json` wrote. Raises Unusable."""
    seen = _Seen()
    if path.is_dir():
        reports = sorted(path.rglob("report.json"))[:1]
        for file in reports:
            _report(file, seen)
        if not seen.samples:
            for file in _journals(path):
                _journal(file, seen)
    else:
        _report(path, seen)
    return _measured(str(path), seen)


def _measured(source: str, seen: _Seen) -> Measured:
    if not seen.samples:
        raise Unusable(f"{source} has no all-reduce that was measured: run `ncclcheck probe bandwidth --format json --output FILE` on the nodes")
    ranks = max(key[0] for key in seen.samples)
    if ranks < 2:
        raise Unusable(f"{source} has all-reduces of one rank only: they cross no link")
    names = {key[1] for key in seen.samples}
    points: dict[int, float] = {}
    spreads = []
    for count, name, nbytes in seen.samples:
        # vLLM issues small ones from CUDA graphs: where graphs were measured, their figure counts
        graphed = name == EAGER and GRAPH in names and (count, GRAPH, nbytes) in seen.samples
        if count == ranks and not graphed:
            slowest = max(seen.samples[count, name, nbytes], key=_typical)
            points[nbytes] = _typical(slowest)
            spreads.append(_spread(slowest))
    nodes = {node for node, _, _ in seen.places.values()} or {0}
    each = [sum(node == place[0] for place in seen.places.values()) for node in nodes]
    if seen.places and (sum(each) != ranks or len(set(each)) != 1):
        raise Unusable(f"{source}: its {ranks} ranks are not spread evenly over {len(nodes)} nodes, or not all of them were heard of")
    hosts = {node: host for node, host, _ in seen.places.values()}
    devices = {device for _, _, device in seen.places.values()}
    if len(devices) > 1:
        raise Unusable(f"{source}: its ranks have different GPUs ({', '.join(sorted(devices))}); a plan needs one kind")
    curve = Curve(Group(ranks // len(nodes), len(nodes)), points, statistics.median(spreads))
    addresses = tuple(seen.addresses[node] for node in sorted(seen.addresses)) if seen.addresses.keys() == nodes else ()
    return Measured(
        source, curve, next(iter(devices), ""), tuple(hosts[node] for node in sorted(hosts)), addresses, seen.emulated, _engine(seen, ranks)
    )


def _engine(seen: _Seen, ranks: int) -> Engine | None:
    """The slowest rank's time per token, where every rank served the model that the probe makes (only that is compared with TP=1), and
    the all-reduces that rank 0 tells of. None where there is neither."""
    mine = [engine for engine in seen.engines if engine.get("tensor_parallel") == ranks]
    own = any("TP=1" in str(engine.get("compared"))[:1000] for engine in mine)
    times = [seconds for engine in mine if _duration(seconds := engine.get("token_seconds"))]
    reduces: dict[int, dict[int, float]] = {}
    for one in seen.reduces[:MOST_KINDS]:
        match one:
            case [int(read), int(nbytes), float(seconds)] if _size(read) and _size(nbytes) and _duration(seconds):
                reduces.setdefault(read, {})[nbytes] = seconds
    token = max(times) if own and times else None
    return Engine(ranks, token, reduces) if token or reduces else None


def _size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 1 <= value <= 2**50


def _duration(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and 0 < value < 1e6


def _typical(sample: Mapping[str, Any]) -> float:
    """Seconds: the mean without the slowest iteration of a hundred, or the median where single iterations are not there."""
    ordered = _iterations(sample)
    kept = ordered[: len(ordered) - max(1, len(ordered) // 100)]
    return statistics.fmean(kept) if len(kept) >= 4 else float(sample["latency_median"])


def _iterations(sample: Mapping[str, Any]) -> list[float]:
    """Seconds of each iteration, sorted; none where they are not there, or cannot be."""
    told = sample.get("seconds")
    return sorted(filter(_duration, told)) if isinstance(told, list) else []


def _spread(sample: Mapping[str, Any]) -> float:
    """Half of what lies between the tenth and the ninth tenth of its iterations, as a share of the median."""
    ordered = _iterations(sample)
    if len(ordered) < 5:
        return 0.2
    return float((ordered[int(len(ordered) * 0.9)] - ordered[int(len(ordered) * 0.1)]) / 2 / sample["latency_median"])


def _report(file: Path, seen: _Seen) -> None:
    try:
        report = msgspec.json.decode(_bytes(file), type=Report)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unusable(f"{file} is no report of ncclcheck probe: {str(error)[:100]}") from None
    seen.emulated = report.emulated
    for rank in report.ranks:
        seen.places[rank.rank] = (rank.node_rank or 0, rank.host, rank.device.name or "")
    for probe in report.probes:
        if probe.name == "bandwidth":
            for sample in probe.samples:
                _sample(sample, seen)
        for fact in probe.facts:
            _fact(fact.kind, fact.fields, seen)
    for node in report.nodes:
        number, interfaces = node.get("node_rank"), node.get("addresses")
        if isinstance(number, int) and isinstance(interfaces, dict) and (address := _outside(interfaces)):
            seen.addresses[number] = address


def _outside(interfaces: Mapping[str, Any]) -> str:
    """The one IPv4 address by which a node is reached; empty where it has several, or none."""
    every = [address for found in interfaces.values() if isinstance(found, list) for address in found if isinstance(address, str)]
    usable = [address for address in every if ":" not in address and not address.startswith(("127.", "169.254."))]
    return usable[0] if len(usable) == 1 else ""


def _journals(folder: Path) -> Iterator[Path]:
    """The journals of the ranks of a run's bandwidth probe, wherever its nodes' folders lie."""
    count = 0
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            if name.startswith("rank") and name.endswith(".jsonl") and (count := count + 1) <= MOST_FILES:
                yield Path(root, name)


def _journal(file: Path, seen: _Seen) -> None:
    probe = ""
    for line in _bytes(file).splitlines():
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            continue  # torn: its writer died
        kind, who = record.get("kind"), record.get("identity")
        if kind == "probe":
            probe = str(record.get("name"))
        elif kind == "hello" and isinstance(who, dict) and isinstance(who.get("rank"), int):
            device = who.get("device")
            name = str(device.get("name") or "") if isinstance(device, dict) else ""
            node = who.get("node_rank")
            seen.places[who["rank"]] = (node if isinstance(node, int) else 0, str(who.get("host", ""))[:255], name[:100])
        elif kind == "sample" and probe == "bandwidth":
            _sample(record, seen)
        elif kind == "fact" and isinstance(record.get("fields"), dict):
            _fact(record.get("fact"), record["fields"], seen)


def _fact(kind: object, fields: Mapping[str, Any], seen: _Seen) -> None:
    if kind == "engine":
        seen.engines.append(fields)
    elif kind == "all-reduces" and isinstance(fields.get("seconds"), list):
        seen.reduces = fields["seconds"]


def _sample(sample: Mapping[str, Any], seen: _Seen) -> None:
    name, ranks, nbytes, median = (sample.get(key) for key in ("name", "ranks", "nbytes", "latency_median"))
    if name in (EAGER, GRAPH) and isinstance(ranks, int) and 1 <= ranks <= 2**20 and _size(nbytes) and _duration(median):
        seen.samples.setdefault((ranks, name, nbytes), []).append(sample)


def _bytes(file: Path) -> bytes:
    try:
        return whole.read(file, MOST_BYTES)
    except OSError as error:
        raise Unusable(f"cannot read {file}: {error.strerror}") from None
    except whole.TooLarge as error:
        raise Unusable(str(error)) from None
