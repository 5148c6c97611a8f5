"""Node 0 has the way between every two nodes tried, in both directions, over every interface by which they may speak to each other."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ncclcheck import networks, pairing, trying, wire
from ncclcheck.echo import LARGEST
from ncclcheck.members import Members
from ncclcheck.model import Fact
from ncclcheck.wayfacts import LOOKS, OK, PAIRS, VAGUE, Key, directions, few, key, pair, slower

BOUND = trying.WHOLE + 2.0  # seconds in which a node has answered for its ways of one round
CLOSING_BOUND = trying.NAMES_BOUND + 2.0
BUDGET = 40.0  # seconds after which no round begins any more
FEW, MANY = 8, 64  # nodes up to which a large message has so many bytes:
NBYTES = (LARGEST, 2**18, 2**17)
HOPELESS = 4  # peers with which something failed, and never worked, before it is no longer tried
MOST_AGAIN, EACH_AGAIN = 32, 2  # pairs that are tried a second time, and how many of one node; of those that surely fail one
MOST_SLOW = 8  # pairs that seem slow and are looked at again
MOST_ALONE = 4  # nodes with which nothing works, and which node 0 tries before the others
AT_ONCE = 128  # pairs that are worked out in a row
NEAR = 8  # nodes whose names a node of a large job looks up: a name server must not be asked a million times

_NUMBERS = ("out_bytes_per_s", "in_bytes_per_s", "rtt_ms", "path_mtu")  # of what a node says of a way

Show = Callable[[str], None]


async def try_all(members: Members, hellos: Mapping[int, wire.Hello], names: Sequence[str] = (), show: Show = lambda _: None) -> list[Fact]:
    """Facts of the kinds that probes/reachability.py explains: way, door, names, tried.

    `names`: what every node is to look up besides the host names of the others: the master's. Raises members.AgentLost.
    """
    return await _Series(members, hellos, names, show).run()


class _Series:
    """Rounds of tries, and what came of them."""

    def __init__(self, members: Members, hellos: Mapping[int, wire.Hello], names: Sequence[str], show: Show) -> None:
        self._members, self._hellos, self._names, self._show = members, hellos, list(names), show
        self._began = time.monotonic()
        self._nodes = networks.standing(hellos)
        self._nbytes = NBYTES[(len(self._nodes) > FEW) + (len(self._nodes) > MANY)]
        self._round = 0
        self._ways: dict[Key, Fact] = {}
        self._told: set[int] = set()  # nodes that know which names to look up
        self._met: Counter[tuple[int, str, bool]] = Counter()  # node, network, whether away from it -> tries
        self._well: Counter[tuple[int, str, bool]] = Counter()  # the same, of those that went well

    async def run(self) -> list[Fact]:
        """All rounds; then a second look at what did not go well; then what every node has to say beside."""
        late = False
        rounds = pairing.rounds(self._nodes, {node: pairing.group(self._hellos[node].echo[0]) for node in self._nodes})
        for number, pairs in enumerate(rounds):
            if late := time.monotonic() - self._began > BUDGET:
                break
            self._show(f"reachability: round {number + 1} of {len(rounds)}")
            await self._try(pairs, self._nbytes)
        await self._doubtful()
        for look in range(LOOKS):
            await self._slow(look)
        names = await self._close() if len(self._nodes) > 1 else []
        return [*self._ways.values(), *self._doors(), *names, self._counted(late)]

    def _counted(self, late: bool) -> Fact:
        """How much of the whole was tried, and why not all."""
        count, given_up = len(self._nodes), sorted({place[0] for place in self._met if self._is_hopeless(place)})
        fields = {
            "tried": len({way[:2] for way in self._ways}),
            "of": count * (count - 1),
            "nodes": count,
            "sampled": count > pairing.EVERYBODY,
            "late": late,
            "given_up": [self._hellos[node].host for node in given_up],
            "seconds": round(time.monotonic() - self._began, 3),
        }
        return Fact("tried", fields=fields)

    # -- one round -----------------------------------------------------------------------------------------------

    async def _try(self, pairs: Sequence[pairing.Pair], nbytes: int, *, all_of: bool = False) -> list[Fact]:
        """Both directions of each pair. Who gives no answer has not told how its ways are. `all_of`: the hopeless ones, too."""
        orders: dict[int, wire.Try] = {}
        for count, (one, other) in enumerate(pairs):
            if count % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)  # of thousands of nodes: heartbeats go on meanwhile
            for node, peer in ((one, other), (other, one)):
                targets = [target for target in self._targets(node, peer) if all_of or not self._hopeless(node, target)]
                if targets:
                    orders[node] = wire.Try(self._round, targets, nbytes, [] if node in self._told else self._to_look_up(node))
        if not orders:
            return []
        self._told |= orders.keys()
        self._round += 1
        answers = await self._members.try_ways(orders, BOUND)
        facts = [fact for node, order in orders.items() for fact in self._told_by(node, order, answers.get(node))]
        for fact in facts:
            self._ways[key(fact)] = fact
            for place in _places(int(fact.get("node_rank")), int(fact.get("peer_rank")), str(fact.get("network"))):
                self._met[place] += 1
                self._well[place] += fact.get("answer") == OK
        return facts

    def _hopeless(self, node: int, target: wire.Target) -> bool:
        """Whether nothing ever went from here, or nothing to there."""
        return any(self._is_hopeless(place) for place in _places(node, target.peer.node_rank, target.network))

    def _is_hopeless(self, place: tuple[int, str, bool]) -> bool:
        return self._met[place] >= HOPELESS and not self._well[place]

    def _targets(self, node: int, peer: int) -> list[wire.Target]:
        hello = self._hellos[peer]
        ways = networks.between(self._hellos[node], hello)
        return [
            wire.Target(
                wire.Peer(peer, hello.host, there.address, there.port, hello.secret),
                there.interface,
                here.interface,
                here.address,
                min(here.mtu, there.mtu) or max(here.mtu, there.mtu),
                main,
                network,
            )
            for here, there, main, network in ways
        ]

    def _to_look_up(self, node: int) -> list[str]:
        place = self._nodes.index(node)
        near = self._nodes if len(self._nodes) <= MANY else [self._nodes[(place + step) % len(self._nodes)] for step in range(NEAR)]
        return list(dict.fromkeys([*self._names, *(self._hellos[other].host for other in (self._nodes[0], *near))]))

    def _told_by(self, node: int, order: wire.Try, told: wire.Tried | None) -> list[Fact]:
        """A fact for each way that a node was to try: which way it is, is not for the node to say."""
        host = self._hellos[node].host
        nothing = Fact("way", fields={"answer": "unsure", "text": f"{host} did not say in {BOUND:g} s how it is"})
        facts = told.facts if told and len(told.facts) == len(order.targets) else [nothing] * len(order.targets)
        return [
            Fact("way", host, fields={**_sound(fact.fields), **trying.told_of(node, target)})
            for target, fact in zip(order.targets, facts, strict=True)
        ]

    # -- second looks --------------------------------------------------------------------------------------------

    async def _doubtful(self) -> None:
        """What did not go well is tried once more, a little of each node: a process that had to wait for a core is no broken network."""
        vague = (pair(way) for way, fact in self._ways.items() if fact.get("answer") in VAGUE)
        bad = (pair(way) for way, fact in self._ways.items() if fact.get("answer") not in (OK, *VAGUE))
        alone = [node for node in self._nodes if any(self._is_hopeless(place) for place in self._met if place[0] == node)]
        by_node0 = [(self._nodes[0], node) for node in alone[:MOST_ALONE] if node != self._nodes[0]]  # there the agents' own port is known to work
        for together in pairing.packed(dict.fromkeys(by_node0 + few(bad, MOST_AGAIN, 1) + few(vague, MOST_AGAIN, EACH_AGAIN))):
            before = dict(self._ways)
            for fact in await self._try(together, self._nbytes, all_of=True):
                first = before.get(key(fact))
                if first and first.get("answer") != fact.get("answer"):
                    self._ways[key(fact)] = replace(fact, fields={**fact.fields, "first": first.get("answer")})

    async def _slow(self, look: int) -> None:
        """Look again at what is slow, one pair after the other, and at some that are not: the network rests, and so do the others' processes."""
        slow = few((pair(way) for way in slower(self._ways.values()) if len(self._ways[way].get("looks", ())) == look), MOST_SLOW, EACH_AGAIN)
        if not slow:
            return
        networks_of_them = {way[2] for way in self._ways if pair(way) in slow}
        found: list[Fact] = []
        for one in (*self._usual(slow, networks_of_them), *slow):
            before = {way: fact for way, fact in self._ways.items() if pair(way) == one}
            found += await self._try([one], LARGEST)
            self._ways |= before
        rates = directions(found)
        for way, rate in rates.items():
            beside = [other for name, other in rates.items() if name[2] == way[2] and pair(name) not in slow]
            if pair(way) in slow and way in self._ways and beside:
                fact, told = self._ways[way], {"rate": rate, "usual": round(statistics.median(beside))}
                self._ways[way] = replace(fact, fields={**fact.fields, "looks": [*fact.get("looks", ()), told]})

    def _usual(self, slow: Sequence[pairing.Pair], wanted: Iterable[str]) -> list[pairing.Pair]:
        """Pairs that are as fast as most, of each of these networks."""
        rates, chosen = directions(self._ways.values()), list[pairing.Pair]()
        for network in wanted:
            others = {way: rate for way, rate in rates.items() if way[2] == network and pair(way) not in slow}
            middle = statistics.median(others.values()) if others else 0.0
            chosen += few(map(pair, sorted(others, key=lambda way: abs(others[way] - middle))), PAIRS, EACH_AGAIN)
        return list(dict.fromkeys(chosen))

    # -- the end -------------------------------------------------------------------------------------------------

    async def _close(self) -> list[Fact]:
        """How names resolve; and, noted at each way, whether datagrams arrived by it, answered or not."""
        answers = await self._members.try_ways({node: wire.Try(self._round, [], 0, closing=True) for node in self._nodes}, CLOSING_BOUND)
        heard = {node: {(sender, ours) for sender, ours in told.heard} for node, told in answers.items()}
        for way, fact in self._ways.items():
            if way[1] in heard:
                arrived = (fact.get("source"), fact.get("address")) in heard[way[1]]
                self._ways[way] = replace(fact, fields={**fact.fields, "heard": arrived})
        return [fact for told in answers.values() for fact in told.facts]

    def _doors(self) -> list[Fact]:
        """What every node has, tried or not."""
        return [
            Fact("door", self._hellos[node].host, fields=_door(node, self._hellos[node], door))
            for node in self._nodes
            for door in self._hellos[node].doors
        ]


def _places(node: int, peer: int, network: str) -> tuple[tuple[int, str, bool], tuple[int, str, bool]]:
    return (node, network, True), (peer, network, False)


def _door(node: int, hello: wire.Hello, door: wire.Door) -> dict[str, Any]:
    return {
        "node_rank": node,
        "interface": door.interface,
        "address": door.address,
        "mtu": door.mtu,
        "state": door.state,
        "speed": door.speed,
        "network": networks.of(door),
        "main": door == networks.main(hello),
        "listens": bool(door.port),
        "names": sorted(hello.addresses),
        "addresses": sorted(address for found in hello.addresses.values() for address in found),
    }


def _sound(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a node says of a way, without what has another form than it should, or is not for a node to say."""

    def fits(name: str, value: Any) -> bool:
        if name in _NUMBERS:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return name not in ("first", "looks") and (name != "others" or isinstance(value, list | tuple))

    return {name: value for name, value in fields.items() if fits(name, value)}
