"""Makes one Run out of what many sources said: whose process is which rank, on which host, and how large the world is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ncclcheck.evidence import places
from ncclcheck.evidence.source import Reading
from ncclcheck.model import Device, Fact, RankId, Run
from ncclcheck.recorder import Dump

LARGEST_WORLD = 1 << 20  # ranks; larger claims are misread or hostile


@dataclass(slots=True)
class _Known:
    """What is learned about processes while the facts go by."""

    ranks: dict[tuple[str, int], int] = field(default_factory=dict)  # (host, pid) -> rank
    pids: dict[int, set[int]] = field(default_factory=dict)  # pid -> ranks, on whatever host
    hosts: dict[int, Counter[str]] = field(default_factory=dict)  # rank -> how often each host was named for it
    main: dict[int, str] = field(default_factory=dict)  # rank -> the host that was named most, worked out when all is learned
    addresses: dict[str, str] = field(default_factory=dict)  # address -> host

    def learn(self, fact: Fact) -> None:
        if fact.rank is not None and fact.pid is not None:
            self.pids.setdefault(fact.pid, set()).add(fact.rank)
            if fact.host:
                self.ranks.setdefault((fact.host, fact.pid), fact.rank)
        if fact.rank is not None and fact.host:
            self.hosts.setdefault(fact.rank, Counter())[fact.host] += 1

    def complete(self, fact: Fact) -> Fact:
        host = self.addresses.get(fact.host or "", fact.host)
        rank = fact.rank
        if rank is None and fact.pid is not None:
            rank = self.ranks.get((host or "", fact.pid))
            if rank is None and len(self.pids.get(fact.pid, ())) == 1 and not host:
                rank = next(iter(self.pids[fact.pid]))
        if host is None and rank is not None and rank in self.hosts:
            host = self.main.get(rank) or self.main.setdefault(rank, self.hosts[rank].most_common(1)[0][0])
        return fact if (host, rank) == (fact.host, fact.rank) else replace(fact, host=host, rank=rank)


def run(readings: Sequence[Reading]) -> Run:
    """The Run that these sources tell of. The facts keep the order of the sources and of their lines."""
    said = {fact.host for reading in readings for fact in reading.facts if fact.host}
    said |= {reading.dump.host for reading in readings if reading.dump is not None and reading.dump.host}
    hosts = places.hosts_of([reading.name for reading in readings], said)
    dumps = [_placed(reading.dump, reading.name, hosts.get(reading.name)) for reading in readings if reading.dump is not None]
    world = _world([fact for reading in readings for fact in reading.facts], dumps)
    told = [fact for reading in readings for fact in _of_source(reading, world, hosts.get(reading.name))]
    known = _Known()
    for fact in told:
        if fact.kind in ("bootstrap", "address") and fact.host and isinstance(address := fact.get("address"), str):
            known.addresses.setdefault(address, fact.host)
    for fact in told:
        known.learn(fact)
    for dump in dumps:
        if dump.rank is not None and dump.host:
            known.hosts.setdefault(dump.rank, Counter())[dump.host] += 1
    _by_channels(known, told)
    facts = [known.complete(fact) for fact in told]
    facts += [Fact("refused", fields={"file": reading.name, "reason": reading.problem}) for reading in readings if reading.unsafe]
    facts += [
        Fact("unread", fields={"file": reading.name, "reason": reading.problem}) for reading in readings if reading.unread and not reading.unsafe
    ]
    return Run(world, _ranks(facts, dumps, world), facts=facts, dumps=dumps, sources=tuple(reading.name for reading in readings))


def _of_source(reading: Reading, world: int | None, called: str | None) -> Iterable[Fact]:
    """The facts of one source, with the rank that its name says and the host that its lines, or else its name (`called`), say."""
    named = places.of_name(reading.name)
    hosts = Counter(fact.host for fact in reading.facts if fact.host and fact.kind in ("init", "bootstrap", "nccl-version", "setting", "via"))
    host = next(iter(hosts)) if len(hosts) == 1 else None if hosts else called
    for fact in reading.facts:
        if fact.kind == "init" and fact.get("nranks") != world:
            fact = replace(fact, rank=None)  # a communicator of some ranks counts from 0 too
        spoken = fact.host or host
        rank = fact.rank if fact.rank is not None else named.rank
        yield fact if (spoken, rank) == (fact.host, fact.rank) else replace(fact, host=spoken, rank=rank)


def _placed(dump: Dump, name: str, called: str | None) -> Dump:
    return replace(dump, rank=places.of_name(name).rank if dump.rank is None else dump.rank, host=dump.host or called)


def _by_channels(known: _Known, told: Sequence[Fact]) -> None:
    """Where nothing else says a process's rank: its number in the only communicator whose channels it tells of."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for fact in told:
        if fact.kind == "via" and fact.host and fact.pid is not None and isinstance(me := fact.get("me"), int):
            numbers.setdefault((fact.host, fact.pid), set()).add(me)
    for process, ranks in numbers.items():
        if process not in known.ranks and len(ranks) == 1:
            known.ranks[process] = next(iter(ranks))


def _world(facts: Sequence[Fact], dumps: Sequence[Dump]) -> int | None:
    """The size that most sources claim for the whole job; the largest communicator's where none says it."""
    claims = Counter(int(fact.get("size")) for fact in facts if fact.kind == "world" and _plausible(fact.get("size")))
    if claims:
        return max(claims, key=lambda size: (claims[size], size))
    sizes = [int(fact.get("nranks")) for fact in facts if fact.kind == "init" and _plausible(fact.get("nranks"))]
    sizes += [len(group.ranks) for dump in dumps for group in dump.groups.values() if group.ranks]
    return max(sizes, default=None)


def _plausible(size: object) -> bool:
    return isinstance(size, int) and 0 < size <= LARGEST_WORLD


def _ranks(facts: Sequence[Fact], dumps: Sequence[Dump], world: int | None) -> Mapping[int, RankId]:
    """Every rank that is known to be one, with the host and the process that most of its facts name."""
    hosts: dict[int, Counter[str]] = {}
    pids: dict[int, Counter[int]] = {}
    devices: dict[int, Device] = {}
    locals_: dict[int, int] = {}
    for fact in facts:
        if fact.rank is None:
            continue
        hosts.setdefault(fact.rank, Counter()).update([fact.host] if fact.host else [])
        pids.setdefault(fact.rank, Counter()).update([fact.pid] if fact.pid is not None else [])
        if fact.kind == "init" and isinstance(index := fact.get("cudaDev"), int):
            devices.setdefault(fact.rank, Device(index, pci_bus_id=str(fact.get("busId", "")) or None))
        if isinstance(local := fact.get("local_rank"), int):
            locals_.setdefault(fact.rank, local)
    for dump in dumps:
        if dump.rank is not None:
            hosts.setdefault(dump.rank, Counter()).update([dump.host] if dump.host else [])
    inside = sorted(rank for rank in hosts if world is None or 0 <= rank < world)
    result: dict[int, RankId] = {}
    for rank in inside:
        host = hosts[rank].most_common(1)[0][0] if hosts[rank] else ""
        pid = pids[rank].most_common(1)[0][0] if pids.get(rank) else None
        result[rank] = RankId(rank, locals_.get(rank), None, host, pid, devices.get(rank, Device()))
    return result
