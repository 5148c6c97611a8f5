"""Judges ways over which no connection comes about: whose they are, in which direction, and whether a firewall or the network stops it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from ncclcheck.model import Fact
from ncclcheck.networks import ROUTED
from ncclcheck.preflight.tried import Tried, quoted
from ncclcheck.safe_text import word
from ncclcheck.wayfacts import VAGUE, key, pair

Way = tuple[int, int]
FAILED = ("timeout", "unreachable", "refused", "no-source", "no-echo")
MOST_LINKS = 6  # links that are named one by one
_STATES = {"down": "down", "no-carrier": "without carrier"}
_FIREWALL = (
    "on {where}: nft list ruleset; iptables -L -n -v; ufw status; firewall-cmd --list-all   # and security groups. Let every TCP port between "
    "the nodes pass, NCCL, Gloo and vLLM use random ones: iptables -I INPUT -s {network} -j ACCEPT; then from {here}: nc -vz {address} PORT"
)
_NETWORK = (
    "on {where}: ip -br link; ip -br addr; ip route get {source}   # is the interface up, is there a way back? then from {here}: "
    "ping -c 3 -I {source} {address}; look at cable, switch port and VLAN"
)


@dataclass(frozen=True, slots=True)
class Group:
    """Ways that fail for one reason: `nodes` are to blame, towards `others`. `well`: the ways between any nodes that work."""

    nodes: frozenset[int]
    others: frozenset[int]
    bad: Sequence[Fact]
    well: Set[tuple[int, int]]

    @property
    def link(self) -> bool:
        """Whether it is between two nodes, and neither is worse than the other."""
        return len(self.nodes) == 2 and not self.others

    @property
    def begun(self) -> bool:
        """Whether only connections that begin at one end fail, and those that begin at the other work."""
        ways = {key(fact)[:2] for fact in self.bad}
        starts = {way[0] in self.nodes for way in ways} if self.others else {way[0] for way in ways}
        return len(starts) == 1 and all(way[::-1] in self.well for way in ways)

    @property
    def lost(self) -> set[tuple[int, int]]:
        """From whom to whom everything is lost, where connections fail both ways because of one: the other's datagrams arrive."""
        heard = {key(fact)[:2]: bool(fact.get("heard")) for fact in self.bad if fact.get("heard") is not None}
        ways = {way for way, arrived in heard.items() if not arrived and heard.get(way[::-1])}
        return ways if 2 * len(ways) == len({key(fact)[:2] for fact in self.bad}) else set()


def judge(tried: Tried) -> Iterator[Fact]:
    """One finding for each node, link or part of the network that fails."""
    for line, facts in tried.lines.items():
        groups = list(_groups([fact for fact in facts if fact.get("answer") not in VAGUE]))
        links = [group for group in groups if group.link]
        for group in [group for group in groups if not group.link] + links[:MOST_LINKS]:
            yield _finding(tried, line, group)
        if rest := links[MOST_LINKS:]:
            nodes = frozenset(node for group in rest for node in group.nodes)
            yield _finding(tried, line, Group(nodes, frozenset(), [fact for group in rest for fact in group.bad], rest[0].well))


def _groups(known: Sequence[Fact]) -> Iterator[Group]:
    """First nodes, or parts of the network, that no connection at all joins with the rest; then nodes with many bad ways; then links."""
    left = {key(fact)[:2]: fact for fact in known if fact.get("answer") in FAILED}
    well = {key(fact)[:2] for fact in known} - left.keys()
    parts = _parts({number for fact in known for number in key(fact)[:2]}, well)
    if len(parts) > 1 and len(parts[0]) == 1:  # nobody reaches anybody
        yield Group(frozenset(node for part in parts for node in part), frozenset(), list(left.values()), well)
        return
    for part in parts[1:]:
        mine = [way for way in left if (way[0] in part) != (way[1] in part)]
        if mine:
            yield Group(part, frozenset(node for way in mine for node in way) - part, [left.pop(way) for way in mine], well)
    while left:
        worst = _worst(left, well)
        if not worst:
            break
        node, ways = worst
        yield Group(frozenset([node]), frozenset(other for way in ways for other in way) - {node}, [left.pop(way) for way in ways], well)
    for here, there in sorted({pair(key(fact)) for fact in left.values()}):
        yield Group(frozenset((here, there)), frozenset(), [left[way] for way in ((here, there), (there, here)) if way in left], well)


def _worst(left: Mapping[Way, Fact], well: Set[Way]) -> tuple[int, list[Way]] | None:
    """The node with most bad ways, in one direction or in both, where they are at least half of those that it has, and more than one."""
    out, back = Counter(way[0] for way in left), Counter(way[1] for way in left)
    node = max(sorted(out.keys() | back.keys()), key=lambda node: max(out[node], back[node]))
    both = out[node] == back[node]
    ways = [way for way in left if (both and node in way) or (not both and way[out[node] < back[node]] == node)]
    others = {other for way in ways for other in way} - {node}
    every = others | {other for way in well for other in way if node == way[out[node] < back[node]]} - {node}
    return (node, ways) if len(others) > 1 and 2 * len(others) >= len(every) else None


def _parts(nodes: Iterable[int], joined: Iterable[tuple[int, int]]) -> list[frozenset[int]]:
    """The parts that connections join, the largest first; of those as large the one with the lowest number."""
    part = {node: frozenset([node]) for node in nodes}
    for one, other in joined:
        if part[one] is not part[other]:
            both = part[one] | part[other]
            part.update(dict.fromkeys(both, both))
    return sorted(set(part.values()), key=lambda part: (-len(part), min(part)))


def _finding(tried: Tried, line: str, group: Group) -> Fact:
    closed = [fact for fact in group.bad if fact.get("answer") in ("no-source", "no-echo")]
    doors = [door for door in tried.doors if door.get("state") != "up" and _is_end_of(door, closed or group.bad)]
    if doors:  # the other end of a cable that somebody took down has no carrier
        return _down(tried, line, group, [door for door in doors if door.get("state") == "down"] or doors)
    alive = [fact for fact in group.bad if _alive(fact)]
    if any(fact.get("control") for fact in group.bad) or 2 * len(alive) >= len(group.bad):
        return _said(tried, line, group, "blocked-port", _FIREWALL)
    return _said(tried, line, group, "network-unreachable", _NETWORK)


def _alive(fact: Fact) -> bool:
    """Whether that host is known to be there, on this way, though no connection comes about."""
    return bool(fact.get("control") or fact.get("ping") or fact.get("others") or fact.get("datagrams") or fact.get("answer") == "refused")


def _telling(fact: Fact) -> bool:
    """What is quoted first: a way on which the agents do speak."""
    return not fact.get("control")


def _is_end_of(door: Fact, facts: Iterable[Fact]) -> bool:
    ends = ((fact.get(node), fact.get(name)) for fact in facts for node, name in (("node_rank", "interface"), ("peer_rank", "peer_interface")))
    return (door.get("node_rank"), door.get("interface")) in set(ends)


def _down(tried: Tried, line: str, group: Group, doors: Sequence[Fact]) -> Fact:
    door = doors[0]
    name, interface = tried.name(door.get("node_rank")), door.get("interface")
    title = f"{interface} on {name} is {_STATES.get(door.get('state'), door.get('state'))}, and has the address {door.get('address')}"
    hosts = tried.hosts(int(each.get("node_rank")) for each in doors)
    remedy = f"on {name}: ip link set {word(interface)} up; ethtool {word(interface)}   # cable, switch port"
    return tried.say(line)("network-unreachable", title, hosts, remedy, evidence=quoted(tried, group.bad), interface=interface)


def _said(tried: Tried, line: str, group: Group, cause: str, remedy: str) -> Fact:
    here, there, how = _sides(group)
    first = next((fact for fact in group.bad if fact.get("peer_rank") in group.nodes), group.bad[0])  # a way to those who are to look at it
    interfaces = {tried.interfaces(line)[node] for node in group.nodes}
    more = {"evidence": quoted(tried, sorted(group.bad, key=_telling)), "interface": interfaces.pop() if len(interfaces) == 1 else None}
    if group.link:
        more["link"] = f"{tried.names(here)} {'->' if how else '-'} {tried.names(there)}"
    place = {
        "where": tried.names(group.nodes),
        "network": word(str(first.get("network")).partition(" ")[0].replace(ROUTED, "NETWORK")),
        "here": tried.name(first.get("node_rank")),
        "source": word(first.get("source")),
        "address": word(first.get("address")),
    }
    sure = 0.9 if cause == "blocked-port" or len(group.bad) > 1 else 0.8
    title = _title(tried, group, cause, tried.over(line))
    return tried.say(line)(cause, title, tried.hosts(group.nodes), remedy.format(**place), confidence=sure, **more)


def _sides(group: Group) -> tuple[Set[int], Set[int], str]:
    """Between whom; and, where it has a direction, from the first to the second: "begun" or "lost"."""
    ways = {key(fact)[:2] for fact in group.bad} if group.begun else group.lost
    starts, ends = {way[0] for way in ways}, {way[1] for way in ways}
    if ways and not starts & ends:
        return starts, ends, "begun" if group.begun else "lost"
    if group.link:
        return {min(group.nodes)}, {max(group.nodes)}, ""
    return group.nodes, group.others, ""


def _title(tried: Tried, group: Group, cause: str, over: str) -> str:
    """What does not pass, between whom and in which direction, and how it is known."""
    blocked = cause == "blocked-port"
    refused = all(fact.get("answer") == "refused" for fact in group.bad)
    what = f"connections to random ports are {'refused' if refused else 'dropped'}" if blocked else "nothing passes"
    known = f": {group.bad[0].get('text')}"
    if blocked:
        known = f", though {'the agents speak over their own port' if any(fact.get('control') for fact in group.bad) else 'the host is there'}"
    here, there, how = _sides(group)
    one, other = tried.names(here), tried.names(there)
    if how == "begun":
        return f"{what} from {one} to {other} {over}, and those from {other} to {one} pass{known}"
    if how == "lost":
        send, back = ("send" if len(nodes) > 1 else "sends" for nodes in (here, there))
        return f"what {one} {send} to {other} {over} is lost, and what {other} {back} arrives{known}"
    return f"{what} between {f'{one} and {other}' if there else one} {over}{known}"
