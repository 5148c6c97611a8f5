"""Who tries the way to whom, by which addresses, and what is made of what they find. Without any network but this machine's own."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from running import SOON

from ncclcheck import datagrams, doors, echo, networks, pairing, ticket, wayfacts, wire
from ncclcheck.model import Fact
from ncclcheck.probes import reachability
from ncclcheck.survey import Job, Node, Survey
from ncclcheck.ways import _sound

# -- who meets whom --------------------------------------------------------------------------------------------------


def flat(rounds: pairing.Rounds) -> list[frozenset[int]]:
    return [frozenset(pair) for pairs in rounds for pair in pairs]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 63, 64])
def test_up_to_64_nodes_each_pair_meets_once_in_as_few_rounds_as_can_be(count: int) -> None:
    rounds = pairing.rounds(range(count))
    assert sorted(map(sorted, flat(rounds))) == [list(pair) for pair in itertools.combinations(range(count), 2)]
    assert all(max(Counter(node for pair in pairs for node in pair).values()) == 1 for pairs in rounds)
    assert len(rounds) == {0: 0, 1: 0}.get(count, count - 1 + count % 2)


@pytest.mark.parametrize("count, size", [(65, 16), (200, 24), (1024, 32), (1024, 1), (300, 300)])
def test_of_more_nodes_a_sample_covers_every_node_and_every_two_groups(count: int, size: int) -> None:
    groups = {node: f"10.0.{node % -(-count // size)}.0/24" for node in range(count)}
    rounds = pairing.rounds(range(count), groups)
    pairs = flat(rounds)
    assert len(pairs) == len(set(pairs)) and all(len(pair) == 2 for pair in pairs)
    assert all(max(Counter(node for pair in pairs for node in pair).values()) == 1 for pairs in rounds)
    met = Counter(node for pair in pairs for node in pair)
    assert set(met) == set(range(count)) and min(met.values()) >= 4
    assert len(pairs) < count * 16 < count * (count - 1) / 2 or count == 65
    assert len(rounds) <= 64
    joined = {frozenset(groups[node] for node in pair) for pair in pairs}
    if size > 1:
        assert joined >= {frozenset((one, other)) for one in groups.values() for other in groups.values()}


def test_addresses_of_one_24_are_one_group() -> None:
    assert pairing.group("10.1.2.3") == pairing.group("10.1.2.250") != pairing.group("10.1.3.3")
    assert pairing.group("fd00:1::5") == pairing.group("fd00:1::ffff") != pairing.group("fd00:2::5")


# -- doors -----------------------------------------------------------------------------------------------------------


def address(text: str, netmask: str, family: int = socket.AF_INET) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=text, netmask=netmask)


def test_each_interface_that_may_lead_to_other_nodes_has_one_door() -> None:
    addresses = {
        "lo": [address("127.0.0.1", "255.0.0.0")],
        "docker0": [address("172.17.0.1", "255.255.0.0")],
        "veth12": [address("10.9.9.9", "255.255.255.0")],
        "eth1": [address("fd00::1", "ffff:ffff:ffff:ffff::", socket.AF_INET6), address("10.1.0.1", "255.255.255.0")],
        "ib0": [address("fe80::1%ib0", "ffff:ffff:ffff:ffff::", socket.AF_INET6)],
        "eth2": [address("169.254.3.4", "255.255.0.0"), address("fd00:2::1", "ffff:ffff:ffff:ffff::", socket.AF_INET6)],
        "eth0": [address("10.0.0.7", "255.255.0.0"), address("10.0.0.8", "255.255.0.0")],
    }
    up, down, dark = (SimpleNamespace(isup=True, mtu=9000, flags=flags) for flags in ("up,running", "broadcast", "up,broadcast"))
    states = {"eth0": up, "eth1": down, "eth2": dark}
    assert doors.candidates(addresses, states, "10.0.0.8") == [
        wire.Door("eth0", "10.0.0.8", 0, 9000, 16, "up"),
        wire.Door("eth1", "10.1.0.1", 0, 9000, 24, "down"),
        wire.Door("eth2", "fd00:2::1", 0, 9000, 64, "no-carrier"),
    ]
    assert doors.candidates(addresses, states, "172.17.0.1")[0].interface == "docker0"  # where the way to the master goes by it, it is meant


def hello(number: int, *found: tuple[str, str, int]) -> wire.Hello:
    """A node whose first door leads to the master."""
    mine = [wire.Door(interface, text, 7000 + at, 1500, prefix, "up") for at, (interface, text, prefix) in enumerate(found)]
    addresses = {door.interface: [door.address] for door in mine}
    first = (mine[0].address, mine[0].port) if mine else ("", 0)
    return wire.Hello(wire.PROTOCOL, "1", 2, number, 1, f"n{number}", 7, "flags", addresses, [], {}, False, None, first, mine)


def ways(one: wire.Hello, other: wire.Hello) -> list[tuple[str, str, bool, str]]:
    return [(way.here.address, way.there.address, way.main, way.network) for way in networks.between(one, other)]


def test_nodes_speak_by_their_main_addresses_and_in_each_network_that_both_are_in() -> None:
    one = hello(0, ("eth0", "10.0.0.1", 24), ("eth1", "10.1.0.1", 24), ("br0", "192.168.122.1", 24), ("p2p", "10.5.0.1", 32))
    other = hello(1, ("ens3", "10.0.0.2", 24), ("ens4", "10.1.0.2", 24), ("br0", "192.168.122.1", 24), ("p2p", "10.5.0.2", 32))
    assert ways(one, other) == [("10.0.0.1", "10.0.0.2", True, "10.0.0.0/24"), ("10.1.0.1", "10.1.0.2", False, "10.1.0.0/24")]


def test_main_addresses_in_different_networks_are_tried_as_a_routed_way() -> None:
    assert ways(hello(0, ("eth0", "10.0.1.1", 24)), hello(1, ("eth0", "10.0.2.1", 24))) == [("10.0.1.1", "10.0.2.1", True, "routed")]


def test_rails_in_one_network_are_paired_by_name_and_named_alike_from_both_ends() -> None:
    one = hello(0, ("eth0", "10.0.0.1", 16), ("eth2", "10.0.2.1", 16), ("eth10", "10.0.10.1", 16))
    other = hello(1, ("eth0", "10.0.0.2", 16), ("eth2", "10.0.2.2", 16), ("eth10", "10.0.10.2", 16))
    third = hello(2, ("a0", "10.0.0.3", 16), ("a2", "10.0.2.3", 16), ("a10", "10.0.10.3", 16))
    assert [way[:2] for way in ways(one, other)] == [("10.0.0.1", "10.0.0.2"), ("10.0.10.1", "10.0.10.2"), ("10.0.2.1", "10.0.2.2")]
    assert {way[3] for way in ways(one, third)} == {way[3] for way in ways(third, one)}
    assert [way[:2] for way in ways(one, third)] == [("10.0.0.1", "10.0.0.3"), ("10.0.2.1", "10.0.2.3"), ("10.0.10.1", "10.0.10.3")]


def test_of_agents_that_share_an_address_the_first_stands_for_the_host() -> None:
    hellos = {number: hello(number, ("eth0", text, 24)) for number, text in enumerate(["10.0.0.1", "10.0.0.1", "10.0.0.2"])}
    assert networks.standing(hellos | {3: hello(3)}) == [0, 2]


# -- datagrams -------------------------------------------------------------------------------------------------------


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers is waited for, though this machine stands still for a while."""
    for bound in ("SILENCE", "GRACE"):
        monkeypatch.setattr(datagrams, bound, SOON)


async def sizes(mtu: int) -> tuple[datagrams.Passed, set[str]]:
    echoing = echo.Echo(checker := ticket.Checker())
    await echoing.open("127.0.0.1")
    try:
        return await datagrams.try_sizes("127.0.0.1", wire.Peer(1, "b", "127.0.0.1", echoing.port, checker.secret), mtu), echoing.heard
    finally:
        echoing.close()


def test_a_datagram_as_large_as_the_interface_takes_is_answered_and_its_sender_is_known(unhurried: None) -> None:
    assert asyncio.run(sizes(9000)) == (datagrams.Passed(True, 9000), {"127.0.0.1"})


def test_where_nobody_listens_no_datagram_is_answered() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert asyncio.run(datagrams.try_sizes("127.0.0.1", wire.Peer(1, "b", "127.0.0.1", silent.getsockname()[1]), 1500)) == datagrams.Passed(False)


def asked(secret: bytes, size: int, port: int, sender: str = "127.0.0.1", receiver: str = "127.0.0.1") -> bytes:
    """A datagram of so many bytes, with a mark made with this secret for these ends."""
    mark = ticket.for_datagram(secret, b"12345678", size, sender, receiver, port)
    return echo.ASK.pack(echo.MAGIC, b"12345678", mark).ljust(size, b"\0")


WRONG: Mapping[str, Callable[[bytes, int], bytes]] = {
    "nothing": lambda secret, port: b"",
    "something else": lambda secret, port: b"x" * 64,
    "too short": lambda secret, port: asked(secret, echo.SHORTEST, port)[:-1],
    "no mark": lambda secret, port: (echo.MAGIC + b"12345678").ljust(64, b"\0"),
    "another node's mark": lambda secret, port: asked(bytes(16), 64, port),
    "longer than it was": lambda secret, port: asked(secret, 64, port) + b"\0",
    "from another address": lambda secret, port: asked(secret, 64, port, sender="127.0.0.2"),
    "to another address": lambda secret, port: asked(secret, 64, port, receiver="127.0.0.2"),
    "to another port": lambda secret, port: asked(secret, 64, port - 1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_echo_answers_no_datagram_that_is_not_this_runs_and_its_senders_or_shorter_than_twice_the_answer(wrong: str) -> None:
    async def scene() -> None:
        echoing = echo.Echo(checker := ticket.Checker())
        await echoing.open("127.0.0.1")
        data = WRONG[wrong](checker.secret, echoing.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.connect(("127.0.0.1", echoing.port))
            stranger.send(data)
            mine = asked(checker.secret, echo.SHORTEST, echoing.port)
            stranger.send(mine)
            async with asyncio.timeout(SOON):
                answer = await asyncio.get_running_loop().sock_recv(stranger, 2048)
            assert answer == echo.TOLD.pack(echo.MAGIC, b"12345678", len(mine)) and len(answer) < len(mine)
        echoing.close()

    asyncio.run(scene())


# -- what it means ---------------------------------------------------------------------------------------------------

NODES = ("a", "b", "c", "d", "e", "f")
FIREWALL = {"answer": "timeout", "text": "no answer in 2 tries of 1.2 s", "ping": True, "heard": True, "datagrams": False}
CUT = {"answer": "timeout", "text": "no answer in 2 tries of 1.2 s", "ping": False, "heard": False, "datagrams": False}
LARGE = {"answer": "large-lost", "out_lost": True, "path_mtu": 1500, "mtu": 9000}


def way(here: int, there: int, network: str = "10.0.0.0/24", **more: Any) -> Fact:
    """A way that is well, unless `more` says otherwise."""
    interface, part = ("eth0", 0) if network == "10.0.0.0/24" else ("eth1", 1)
    fields = {
        "node_rank": here, "peer": NODES[there], "peer_rank": there, "network": network, "main": not part, "control": not part and 0 in (here, there),
        "interface": interface, "source": f"10.{part}.0.{here}", "peer_interface": interface, "address": f"10.{part}.0.{there}", "port": 5,
        "mtu": 1500, "answer": "ok", "out_bytes_per_s": 1e9, "in_bytes_per_s": 1e9, "datagrams": True, "path_mtu": 1500,
    }  # fmt: skip
    return Fact("way", NODES[here], fields=fields | more)


def survey(count: int, odd: Mapping[tuple[int, int], Mapping[str, Any]], *, second: bool = False, env: Mapping[int, str] | None = None,
           names: Sequence[Fact] = (), rate: float = 1e9) -> Survey:  # fmt: skip
    """So many nodes, well but for the odd ways (of the second network, if there is one)."""
    pairs = list(itertools.permutations(range(count), 2))
    both = {"out_bytes_per_s": rate, "in_bytes_per_s": rate}
    told = [way(*pair, **({} if second else both | dict(odd.get(pair, {})))) for pair in pairs]
    told += [way(*pair, "10.1.0.0/24", **(both | dict(odd.get(pair, {})))) for pair in pairs if second]
    rails = [("eth0", 0), ("eth1", 1)][: 1 + second]
    told += [
        Fact("door", NODES[node], fields={
            "node_rank": node, "interface": interface, "address": f"10.{part}.0.{node}", "state": "up", "main": not part,
            "names": ["lo", *(name for name, _ in rails)], "addresses": ["127.0.0.1", *(f"10.{number}.0.{node}" for _, number in rails)],
        })
        for node in range(count) for interface, part in rails
    ]  # fmt: skip
    told += [*names, Fact("tried", fields={"tried": len(pairs), "of": len(pairs)})]
    sections = [
        {"settings": {"variables": {"GLOO_SOCKET_IFNAME": said}, "nccl": {"NCCL_SOCKET_IFNAME": {"value": said}} if said else {}}}
        for said in ((env or {}).get(node, "eth0" if env is None else "") for node in range(count))
    ]
    nodes = [Node(node, NODES[node], f"10.0.0.{node}", sections[node]) for node in range(count)]
    return Survey(Job(count, 1, "10.0.0.0"), nodes, told)


def judged(given: Survey) -> list[tuple[Any, ...]]:
    """Of each fact that is not a mere note: kind, cause, hosts, link."""
    return [(fact.kind, fact.get("cause"), fact.get("hosts"), fact.get("link")) for fact in facts(given) if fact.kind != "note"]


def facts(given: Survey) -> list[Fact]:
    """All that is said, but for how much was tried."""
    return [fact for fact in reachability.judge(given) if fact.kind not in ("seen", "pair")]


def titles(given: Survey) -> list[str]:
    return [str(fact.get("title")) for fact in facts(given)]


def between(node: int, count: int, fields: Mapping[str, Any], *, out: bool = True, back: bool = True) -> dict[tuple[int, int], Mapping[str, Any]]:
    """All ways of one node."""
    others = [other for other in range(count) if other != node]
    return {(node, other): fields for other in others if out} | {(other, node): fields for other in others if back}


def test_where_all_is_well_and_the_settings_name_the_interface_only_what_was_tried_is_said() -> None:
    assert titles(survey(2, {})) == titles(survey(6, {})) == []
    assert [(fact.kind, str(fact.get("title")).partition(";")[0]) for fact in reachability.judge(survey(6, {})) if fact.kind != "pair"] == [
        ("seen", "tried all 30 ordered pairs of nodes")
    ]


def test_two_nodes_whose_ports_are_blocked_are_one_link_on_which_the_agents_speak() -> None:
    given = survey(2, {(0, 1): CUT, (1, 0): CUT})
    assert judged(given) == [("fail", "blocked-port", ["a", "b"], "a - b")]
    assert "between a and b over eth0, though the agents speak over their own port" in titles(given)[0]


def test_a_node_that_nobody_reaches_is_one_finding_and_not_one_for_each_pair() -> None:
    assert judged(survey(6, between(4, 6, CUT))) == [("fail", "blocked-port", ["e"], None)]


def test_a_node_that_is_cut_off_in_another_network_is_unreachable_there() -> None:
    given = survey(6, between(4, 6, CUT), second=True, env={})
    assert judged(given) == [("degraded", "network-unreachable", ["e"], None)]
    assert judged(survey(6, between(4, 6, FIREWALL), second=True, env={})) == [("degraded", "blocked-port", ["e"], None)]


def test_a_network_that_the_settings_choose_stops_a_launch_and_one_that_they_do_not_is_noted() -> None:
    assert judged(survey(3, between(2, 3, CUT), second=True, env=dict.fromkeys(range(3), "eth1")))[0][0] == "fail"
    other = survey(3, between(2, 3, CUT), second=True, env=dict.fromkeys(range(3), "eth0"))
    assert judged(other) == [] and "the settings do not use it" in titles(other)[0]


@pytest.mark.parametrize(
    "said, kind",
    [("^lo", "degraded"), ("^docker0,lo", "degraded"), ("eth", "degraded"), ("^lo,eth0", "fail"), ("eth0,eth1", "fail"), ("=eth1", "fail")],
)
def test_a_network_that_settings_merely_do_not_exclude_stops_nothing(said: str, kind: str) -> None:
    assert judged(survey(3, between(2, 3, CUT), second=True, env=dict.fromkeys(range(3), said)))[0][0] == kind


def test_one_link_that_fails_names_both_ends_only() -> None:
    assert judged(survey(5, {(1, 3): CUT, (3, 1): CUT})) == [("fail", "network-unreachable", ["b", "d"], "b - d")]
    assert judged(survey(5, {(1, 3): FIREWALL, (3, 1): FIREWALL})) == [("fail", "blocked-port", ["b", "d"], "b - d")]


def test_a_firewall_that_keeps_out_one_direction_is_told_with_it() -> None:
    given = survey(2, {(0, 1): FIREWALL})
    assert judged(given) == [("fail", "blocked-port", ["a", "b"], "a -> b")]
    assert "from a to b over eth0, and those from b to a pass" in titles(given)[0]


def test_what_one_node_sends_is_lost_and_the_others_datagrams_show_it() -> None:
    given = survey(3, {(1, 2): CUT, (2, 1): CUT | {"heard": True}})
    assert judged(given) == [("fail", "network-unreachable", ["b", "c"], "b -> c")]
    assert "what b sends to c over eth0 is lost, and what c sends arrives" in titles(given)[0]


def test_a_node_that_only_gets_out_is_blamed_alone() -> None:
    given = survey(6, between(3, 6, FIREWALL, out=False))
    assert judged(given) == [("fail", "blocked-port", ["d"], None)]
    assert "from a, b, c, e and f to d over eth0, and those from d to a, b, c, e and f pass" in titles(given)[0]


def test_two_parts_of_a_network_that_nothing_joins_blame_the_smaller() -> None:
    odd = {pair: CUT for pair in itertools.permutations(range(6), 2) if (pair[0] < 2) != (pair[1] < 2)}
    assert judged(survey(6, odd)) == [("fail", "blocked-port", ["a", "b"], None)]


def test_nobody_who_reaches_anybody_is_one_finding_of_all() -> None:
    odd = dict.fromkeys(itertools.permutations(range(6), 2), CUT)
    assert judged(survey(6, odd)) == [("fail", "blocked-port", ["a", "b", "c", "d", "e", "f"], None)]


def test_an_interface_that_is_down_is_named_with_its_node() -> None:
    odd = between(1, 3, {"answer": "no-echo", "text": "nobody could listen there"}, out=False)
    odd |= between(1, 3, {"answer": "no-source", "text": "it cannot be had"}, back=False)
    given = survey(3, odd, second=True, env={})
    doors_down = [fact for fact in given.ways if (fact.kind, fact.host, fact.get("interface")) == ("door", "b", "eth1")]
    told = [Fact("door", "b", fields={**fact.fields, "state": "down"}) if fact in doors_down else fact for fact in given.ways]
    (found,) = [fact for fact in facts(Survey(given.job, given.nodes, told)) if fact.kind != "note"]
    assert (found.get("cause"), found.get("hosts"), found.get("interface")) == ("network-unreachable", ["b"], "eth1")
    assert found.get("title") == "eth1 on b is down, and has the address 10.1.0.1"


def test_large_packets_that_vanish_are_told_with_the_size_that_passes() -> None:
    given = survey(3, {(0, 1): LARGE, (1, 0): LARGE})
    assert judged(given) == [("fail", "mtu-mismatch", ["a", "b"], "a - b")]
    assert titles(given)[0].startswith("packets of more than 1500 bytes vanish between a and b over eth0, where the interfaces take 9000")
    assert judged(survey(5, between(2, 5, LARGE))) == [("fail", "mtu-mismatch", ["c"], None)]
    assert judged(survey(2, {(0, 1): LARGE, (1, 0): {"answer": "large-lost", "in_lost": True, "mtu": 9000}}))[0][3] == "a -> b"


def test_smaller_packets_to_which_tcp_adapts_are_noted_only() -> None:
    given = survey(2, {(0, 1): {"path_mtu": 1400}})
    assert judged(given) == [] and "at most 1400 bytes" in titles(given)[0]


SLOW = {"out_bytes_per_s": 1e8, "in_bytes_per_s": 1e8}


def test_a_link_is_slow_where_each_look_says_so_and_not_before() -> None:
    looks = [{"rate": 1e8, "usual": 1e9}, {"rate": 1.1e8, "usual": 1e9}]
    for count, told in ((4, looks), (6, looks[:1]), (6, [looks[0], {"rate": 5e8, "usual": 1e9}])):
        both = {(0, 1): SLOW | {"looks": told}, (1, 0): SLOW | {"looks": told}}
        expected: list[Any] = [("degraded", "slow-link", ["a", "b"], "a - b")] if told is looks else []
        assert judged(survey(count, both)) == expected
    both = {(0, 1): SLOW | {"looks": looks}, (1, 0): SLOW | {"looks": looks}}
    assert judged(survey(3, both)) == []  # three pairs are too few to know what is usual
    assert judged(survey(6, {(0, 1): {"out_bytes_per_s": 2.5e8, "looks": looks}, (1, 0): {"in_bytes_per_s": 2.5e8, "looks": looks}})) == []


def test_a_node_whose_links_are_all_slow_is_blamed_alone() -> None:
    looks = [{"rate": 1e8, "usual": 1e9}] * 2
    odd = {pair: SLOW | ({"looks": looks} if set(pair) == {0, 2} else {}) for pair in between(2, 6, {})}
    assert judged(survey(6, odd)) == [("degraded", "slow-link", ["c"], None)]


def test_no_answer_of_a_process_is_no_fault_of_the_network() -> None:
    vague = {"answer": "unsure", "text": "no end in 6 s"}
    assert judged(survey(3, {(0, 1): vague})) == [("unread", None, ["a"], None)]
    (fact,) = facts(survey(3, {(0, 1): vague, (1, 0): vague}))
    assert fact.get("needed") is True and "2 of 6 ways" in fact.get("title")


def test_ways_that_were_not_tried_leave_the_question_open() -> None:
    given = Survey(Job(2, 1, "10.0.0.0"), [Node(0, "a", "10.0.0.0"), Node(1, "b", "10.0.0.1")])
    (fact,) = facts(given)
    assert (fact.kind, fact.get("needed")) == ("unread", True)


def names(node: int, **told: Any) -> Fact:
    return Fact("names", NODES[node], fields={"node_rank": node, "resolved": {}, "failed": {}, "late": [], **told})


def test_a_name_that_leads_elsewhere_is_told_with_where_it_should_lead() -> None:
    wrong = [names(0, resolved={"b": ["10.9.9.9"], "c": ["10.0.0.2"]}), names(2, resolved={"b": ["10.9.9.9"], "c": ["127.0.1.1"]})]
    given = survey(3, {}, names=wrong)
    assert judged(given) == [("degraded", "hostname-resolution", ["a", "c"], None)]
    assert titles(given) == ["the name b leads to 10.9.9.9 on a and c, and b has 10.0.0.1"]


def test_names_that_do_not_resolve_are_noted_and_those_that_are_late_were_not_read() -> None:
    assert judged(survey(2, {}, names=[names(0, failed={"b": "unknown"})])) == []
    assert judged(survey(2, {}, names=[names(0, late=["b"])])) == [("unread", None, ["a"], None)]


def exported(given: Survey) -> Any:
    return next((fact.get("export") for fact in reachability.judge(given) if fact.get("export")), None)


def test_the_interface_to_export_is_noted_where_it_is_not_set() -> None:
    line = "export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0"
    assert exported(survey(2, {}, env={})) == exported(survey(2, {}, env={0: "eth0"})) == {"a": line, "b": line}
    assert exported(survey(2, {})) is None
    assert exported(survey(3, {}, second=True, env=dict.fromkeys(range(3), "eth1"))) is None
    assert exported(survey(3, {}, second=True, env={}, rate=1.5e9))["a"] == line
    assert exported(survey(3, {}, second=True, env={}, rate=9e9))["a"] == line.replace("eth0", "eth1")
    assert exported(survey(3, between(0, 3, CUT), env={})) is None


def test_an_interface_with_whose_name_another_begins_is_exported_as_exactly_that() -> None:
    from ncclcheck.preflight import exports

    assert exports.exports({0: "eth1", 1: "eth1"}, {0: ["lo", "eth1"], 1: ["eth1", "eth10"]}) == dict.fromkeys(
        (0, 1), "export NCCL_SOCKET_IFNAME==eth1 GLOO_SOCKET_IFNAME=eth1"
    )
    assert exports.exports({0: "eth1", 1: "ens3"}, {0: ["eth1", "eth10"], 1: ["ens3"]})[1] == "export NCCL_SOCKET_IFNAME=ens3 GLOO_SOCKET_IFNAME=ens3"


def test_a_sample_says_how_much_of_the_whole_it_is() -> None:
    given = survey(3, {})
    told = [fact if fact.kind != "tried" else Fact("tried", fields={"tried": 320, "of": 4032, "sampled": True}) for fact in given.ways]
    assert titles(Survey(given.job, given.nodes, told)) == [
        "tried 320 of 4032 ordered pairs of nodes (a sample, in which every node and every switch is)"
    ]


def test_what_a_node_says_in_another_form_than_it_should_is_left_out() -> None:
    fields = {"answer": "ok", "out_bytes_per_s": None, "in_bytes_per_s": 2e9, "rtt_ms": [1], "path_mtu": float("inf"), "looks": [{}], "others": 3}
    assert _sound(fields) == {"answer": "ok", "in_bytes_per_s": 2e9}
    assert wayfacts.directions([Fact("way", fields={**_sound(fields), "node_rank": 0, "peer_rank": 1, "network": ""})]) == {
        (0, 1, ""): 0.0,
        (1, 0, ""): 2e9,
    }


def test_of_many_pairs_a_few_of_each_node_are_chosen() -> None:
    chosen = wayfacts.few(itertools.combinations(range(10), 2), 6, 2)
    assert len(chosen) == 6 and max(Counter(node for pair in chosen for node in pair).values()) <= 2
