"""Judges ways that carry connections and not all that is sent over them: large packets that vanish, links far slower than the others. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ncclcheck import wayfacts
from ncclcheck.model import Fact
from ncclcheck.preflight.tried import Tried, quoted
from ncclcheck.safe_text import word
from ncclcheck.survey import degrades, note
from ncclcheck.units import bandwidth_text
from ncclcheck.wayfacts import LOOKS

LOST = "large-lost"
MOST_LINKS = 4  # links that are named one by one
_HEADERS = 28  # bytes that ping and its network layer add
_SPEED = (
    "on {where}: ethtool {interface} | grep Speed; tc -s qdisc show dev {interface}; ip -s link show {interface}   # a lower rate, a shaper, errors? "
    "then measure: iperf3 -s on {there}, and iperf3 -c {address} -P 8 on {here}"
)


def judge(tried: Tried) -> Iterator[Fact]:
    """Findings on packets and on speed."""
    for line, facts in tried.lines.items():
        yield from _vanish(tried, line, facts)
        yield from _smaller(tried, line, facts)
    yield from _slow(tried)


def _vanish(tried: Tried, line: str, facts: Sequence[Fact]) -> Iterator[Fact]:
    """Connections come about, small messages pass, and of large ones nothing arrives."""
    lost = [fact for fact in facts if fact.get("answer") == LOST]
    if not lost:
        return
    ways = {way for fact in lost for way in _directions(fact)}
    node = _in_all(tuple(sorted(way)) for way in ways)
    nodes = [node] if node is not None else sorted({end for way in ways for end in way})
    sizes = [int(fact.get("path_mtu")) for fact in lost if fact.get("path_mtu") and int(fact.get("path_mtu")) < int(fact.get("mtu"))]
    interfaces, mtu, first = tried.interfaces(line), max(int(fact.get("mtu") or 0) for fact in lost), lost[0]
    most = f"packets of more than {min(sizes)} bytes vanish" if sizes else "large TCP messages vanish, though single large packets pass"
    here, there = (tried.name(end) for end in min(ways))
    one_way = len(ways) == 1 or not any(way[::-1] in ways for way in ways)
    others = tried.names({end for way in ways for end in way} - set(nodes))
    between = f"between {tried.names(nodes)}" + (f" and {others}" if others else "")
    if one_way and len(ways) == 1:
        between = f"from {here} to {there}, and not from {there} to {here},"
    title = f"{most} {between} {tried.over(line)}, where the interfaces take {mtu}; small messages pass, and the first large one would hang"
    names = {interfaces[each] for each in nodes}
    interface = names.pop() if len(names) == 1 else None
    remedy = (
        f"on {tried.names({end for way in ways for end in way})}: ip link set dev {word(interface or 'INTERFACE')} mtu {min(sizes, default=1500)}"
    )
    ping = f"ping -M do -s {mtu - _HEADERS} {word(first.get('address'))} from {word(first.host)}"
    remedy += f"   # or have switches and tunnels carry {mtu}; then {ping} is answered"
    more = {"evidence": [*quoted(tried, lost), *_measured(tried, lost)], "interface": interface, "confidence": 0.95 if sizes else 0.75}
    if len(nodes) == 2 and len({tuple(sorted(way)) for way in ways}) == 1:
        more["link"] = f"{here} -> {there}" if one_way else f"{here} - {there}"
    yield tried.say(line)("mtu-mismatch", title, tried.hosts(nodes), remedy, **more)


def _directions(fact: Fact) -> list[tuple[int, int]]:
    here, there = int(fact.get("node_rank")), int(fact.get("peer_rank"))
    return [way for way, name in (((here, there), "out_lost"), ((there, here), "in_lost")) if fact.get(name)]


def _in_all(pairs: Iterable[tuple[int, ...]]) -> int | None:
    """The one node that is part of every pair, where there are several."""
    every = set(pairs)
    common = set.intersection(*map(set, every)) if len(every) > 1 else set()
    return common.pop() if len(common) == 1 else None


def _measured(tried: Tried, facts: Iterable[Fact]) -> list[str]:
    """The packets that passed, where that was found out."""
    told = [fact for fact in facts if fact.get("path_mtu")]
    return [
        f"{tried.name(fact.get('node_rank'))} -> {tried.name(fact.get('peer_rank'))}: the largest packet that arrives has {fact.get('path_mtu')} "
        f"bytes; its interface {fact.get('interface')} and the other end take {fact.get('mtu')}"
        for fact in told[:4]
    ]


def _smaller(tried: Tried, line: str, facts: Sequence[Fact]) -> Iterator[Fact]:
    """TCP has found out that packets must be smaller than the interfaces say; others may not."""
    less = [fact for fact in facts if fact.get("answer") == wayfacts.OK and 0 < int(fact.get("path_mtu") or 0) < int(fact.get("mtu") or 0)]
    if not less:
        return
    size, mtu = min(int(fact.get("path_mtu")) for fact in less), max(int(fact.get("mtu")) for fact in less)
    nodes = {int(fact.get(name)) for fact in less for name in ("node_rank", "peer_rank")}
    title = (
        f"between {tried.names(nodes)} packets of at most {size} bytes pass {tried.over(line)}, where the interfaces take {mtu}; TCP adapts to that"
    )
    yield note(title, tried.hosts(nodes), path_mtu=size, mtu=mtu)


def _slow(tried: Tried) -> Iterator[Fact]:
    """Links that were slow each time they were looked at; of a node whose other links seemed slow, too, the node."""
    facts = {wayfacts.key(fact): fact for fact in tried.ways}
    seemed = wayfacts.slower(facts.values())
    sure = [way for way in seemed if len(facts[way].get("looks", ())) >= LOOKS]
    rates = wayfacts.directions(facts.values())
    told: set[wayfacts.Key] = set()
    for way in sure:
        if way in told:
            continue
        node = _slow_node(way, seemed, rates)
        mine = [each for each in sure if each[2] == way[2] and (node in each[:2] if node is not None else wayfacts.pair(each) == wayfacts.pair(way))]
        told |= set(mine)
        yield _finding(tried, mine, facts, node)


def _slow_node(way: wayfacts.Key, seemed: Sequence[wayfacts.Key], rates: Mapping[wayfacts.Key, float]) -> int | None:
    """Of a link's ends the one most of whose peers have a slow link to it, too."""
    share: dict[int, float] = {}
    for node in way[:2]:
        peers = Counter(other for key in rates if key[2] == way[2] and node in key[:2] for other in key[:2] if other != node)
        slow = {other for key in seemed if key[2] == way[2] and node in key[:2] for other in key[:2] if other != node}
        share[node] = len(slow) / len(peers)
    node = max(share, key=lambda each: share[each])
    return node if share[node] > 0.5 else None


def _finding(tried: Tried, ways: Sequence[wayfacts.Key], facts: Mapping[wayfacts.Key, Fact], node: int | None) -> Fact:
    fact = facts[ways[0]]
    here, there = (tried.name(each) for each in ways[0][:2])
    looks = [look for way in ways for look in facts[way].get("looks", ())]
    rate, usual = max(look["rate"] for look in looks), statistics.median(look["usual"] for look in looks)
    both = ways[0][:2][::-1] in {way[:2] for way in ways}
    link = f"{here} - {there}" if both else f"{here} -> {there}"
    said = f"carries at most {bandwidth_text(rate)} in {LOOKS + 1} looks, and others {bandwidth_text(usual)}"
    title = f"{'every link' if node is not None else 'the link'} {tried.name(node) + ' has' if node is not None else link}"
    title += f" {tried.over(wayfacts.line(fact))} {said}"
    nodes = [node] if node is not None else sorted(ways[0][:2])
    interface = fact.get("interface") if node in (None, ways[0][0]) else fact.get("peer_interface")
    evidence = [
        f"{tried.name(way[0])} -> {tried.name(way[1])} ({facts[way].get('source')} -> {facts[way].get('address')}): "
        f"{', '.join(bandwidth_text(look['rate']) + ' beside ' + bandwidth_text(look['usual']) for look in facts[way].get('looks', ()))}"
        for way in ways[:MOST_LINKS]
    ]
    remedy = _SPEED.format(where=tried.names(nodes), interface=word(interface), there=there, here=here, address=word(fact.get("address")))
    more = {} if node is not None else {"link": link}
    return degrades("slow-link", title, tried.hosts(nodes), remedy, evidence=evidence, interface=interface, confidence=0.8, **more)
