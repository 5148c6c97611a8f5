"""What is worked out in a short way for thousands of ranks is what the plain way gives, and what is sent to thousands of agents stays small."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from bench.control_plane import measure
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import divergence, documents, history, muster, outcome, pace, paths, received, secrets, triage, wire
from ncclcheck.cluster import Cluster
from ncclcheck.journal import Line
from ncclcheck.latecomers import REPORTS, Latecomers
from ncclcheck.message_limits import plain
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Outcome, ProbeResult, RankId, Report, Run, Status
from ncclcheck.pace import Pace
from ncclcheck.report import masked
from ncclcheck.rollcall import Roll
from ncclcheck.watch import View
from ncclcheck.wire import Peer

seconds_ = st.integers(0, 40).map(lambda tenths: tenths / 10)


@given(st.lists(seconds_, min_size=2, max_size=12), st.data())
def test_the_median_of_the_others_is_taken_from_all_values_sorted_once(values: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(values) - 1))
    assert pace._median_without(sorted(values), values[at]) == statistics.median([*values[:at], *values[at + 1 :]])


@st.composite
def readings(draw: st.DrawFn, most: int = 60) -> list[Pace]:
    """Of one rank; all numbers grow."""
    steps = draw(st.lists(st.tuples(seconds_.map(lambda gap: gap / 4), st.integers(0, 30), seconds_, seconds_), min_size=1, max_size=most))
    result = [Pace(0.0, 0, 0.0, 0.0)]
    for gap, calls, worked, waited in steps:
        before = result[-1]
        result.append(Pace(before.now + gap, before.seq + calls, before.worked + worked, before.waited + waited))
    return result


def plain_best(read: Sequence[Pace]) -> float:
    """The least seconds that a call took on average, over every reading and the first one STRETCH later."""
    best = math.inf
    for at, begin in enumerate(read):
        end = next((later for later in read[at + 1 :] if later.now - begin.now >= pace.STRETCH), None)
        if end and end.seq - begin.seq >= pace.LEAST_CALLS:
            best = min(best, (end.waited - begin.waited) / (end.seq - begin.seq))
    return best


@given(readings())
def test_the_best_stretch_is_found_in_one_pass(read: list[Pace]) -> None:
    assert pace._best(read) == plain_best(read)


@given(st.lists(readings(), min_size=2, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_readings_that_were_let_go_change_nothing_in_what_is_said(read: list[list[Pace]], chunks: list[int]) -> None:
    kept: dict[int, list[Pace]] = {rank: [] for rank in range(len(read))}
    bests = dict.fromkeys(kept, math.inf)
    for rank, all_ in enumerate(read):
        for number, reading in enumerate(all_):
            kept[rank].append(reading)
            if number in chunks:
                bests[rank] = min(bests[rank], pace.let_go(kept[rank]))
    assert pace.facts(kept, bests) == pace.facts(dict(enumerate(read)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=12))
def test_everybodys_neighbours_are_those_of_each_one_alone(places: list[tuple[int, int]]) -> None:
    nodes = [Peer(number, f"n{number}", f"10.0.0.{address}", port) for number, (address, port) in enumerate(places)]
    ring = list({node.address: node for node in reversed(nodes) if node.port}.values())[::-1]
    for number in range(len(nodes)):
        mine = [place for place, node in enumerate(ring) if node.node_rank == number]
        ahead = {(place + step) % len(ring) for place in mine for step in paths.AHEAD} - set(mine)
        assert paths.neighbourhoods(nodes).get(number, []) == [ring[place] for place in sorted(ahead)]


@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(0, 6), st.booleans()), min_size=2, max_size=6))
def test_histories_part_where_a_look_at_every_call_of_every_rank_finds_it(issued: list[tuple[list[str], int, bool]]) -> None:
    facts, calls = [], {}
    for rank, (said, ahead, packed) in enumerate(issued):
        texts = list(dict.fromkeys(said))
        numbers = [texts.index(text) for text in said]
        fields = {"last": len(said) + ahead, "signatures": [ord(text) for text in texts], "texts": texts}
        facts.append(Fact("calls", "h", rank, fields={**fields, "calls": history.pack(numbers) if packed else numbers}))
        calls[rank] = {ahead + 1 + at: text for at, text in enumerate(said)}
    first = max(min(known) for known in calls.values())
    parted = None
    for seq in range(first, max(max(known) for known in calls.values()) + 1):
        here = {rank: known[seq] for rank, known in calls.items() if seq in known}
        if len(set(here.values())) > 1:
            parted = seq, here
            break
    found = divergence.of(Run(len(issued), facts=facts))
    assert (found and (found.seq, dict(found.issued))) == parted


@given(st.lists(st.integers(0, 120)))
def test_numbers_of_calls_are_after_travelling_what_they_were(numbers: list[int]) -> None:
    packed = history.pack(numbers)
    assert plain({"calls": packed}) == {"calls": packed}  # what is no plain text is changed or refused at node 0's door
    assert list(history.unpack(packed)) == numbers


def hello(number: int | None, host: str, **other: object) -> wire.Hello:
    told = wire.Hello(wire.PROTOCOL, "test", 4, number, 1, host, 1, "flags", {}, [], {}, False)
    return msgspec.structs.replace(told, **other)


@given(st.lists(st.tuples(st.none() | st.integers(0, 3), st.sampled_from("abcd")), max_size=6), st.permutations("abcd"))
def test_who_is_missing_and_who_is_there_twice_is_as_counted_by_hand(came: list[tuple[int | None, str]], hosts: list[str]) -> None:
    roll = Roll(Cluster(4, 0, "10.0.0.1", 29600, 1, tuple(hosts)))
    for at, (number, host) in enumerate(came):
        roll.add(b"%d" % at, hello(number, host))
    claims = [number for number, _ in came if number is not None]
    twice = [fact.get("node_rank") for fact in roll.conflicts() if fact.get("conflict") == "node_rank"]
    assert sorted(twice) == sorted(number for number in claims if claims.count(number) > 1)
    missing, numbers = roll.missing(), set(roll.numbers().values())
    assert [fact.get("node_rank") for fact in missing] == [number for number in range(4) if number not in numbers]
    named, there = [fact.host for fact in missing if fact.host], {host for _, host in came}
    assert len(named) == len(set(named)) and not there & set(named)
    for fact in missing:
        if (expected := hosts[fact.get("node_rank")]) not in there and fact.host != expected:
            assert expected in named  # it was taken for a number whose own host is there


ORDER = muster.Order(3, 1, "10.0.0.1", 29500)
worlds_ = st.lists(st.sampled_from(["3", "4"]), min_size=3, max_size=3)


@given(
    worlds_, st.lists(st.sampled_from(["x", "y"]), min_size=3, max_size=3), st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3)
)
def test_claims_that_are_compared_together_say_what_is_wrong_as_one_by_one(
    worlds: list[str], settings: list[str], order: list[int], looks: list[bool]
) -> None:
    view = View("01", 3, 3, 0.0, {"training": 9.0}, ORDER)
    claims: dict[int, muster.Claim] = {}
    for node, look in zip(order, looks, strict=True):
        wiring = {"RANK": str(node), "WORLD_SIZE": worlds[node], "MASTER_ADDR": ORDER.master, "MASTER_PORT": "29500", "NCCL_ALGO": settings[node]}
        fields = {"host": f"h{node}", "pid": 1, "local_rank": 0, "environment": wiring, "interfaces": ["eth0"]}
        claims[node] = muster.Claim(node, **fields)
        line = Line(node, "claim", 1.0, 0, fields, "rank.jsonl", 1)
        view.update(b"n", node, "f", wire.Progress("01", [], [line], {}, []), 1.0)
        if look:
            view.clock(1.0)
    view.clock(1.0)
    said = sorted(fact.get("title") for fact in view.facts)
    assert said == sorted(fact.get("title") for fact in muster.check(ORDER, [claims[node] for node in order]))


FINDINGS = ["rank-stuck-in-python", "slow-rank", "rank-killed", "rank-died-exception", "network-unreachable", "collective-mismatch", "agent-lost"]


@given(st.lists(st.tuples(st.sampled_from(FINDINGS), st.sampled_from([0.3, 0.7, 0.9]), st.none() | st.integers(0, 2)), max_size=8))
def test_what_is_a_symptom_is_told_by_causes_as_by_every_pair_of_findings(drawn: list[tuple[str, float, int | None]]) -> None:
    found = [
        Finding(cause, f"{at}", Culprit(ranks=None if rank is None else [rank]), confidence) for at, (cause, confidence, rank) in enumerate(drawn)
    ]
    ordered = sorted(found, key=lambda finding: -finding.confidence)
    kept = [
        symptom
        for at, symptom in enumerate(ordered)
        if not any(triage._explains(cause, symptom) and (before < at or not triage._explains(symptom, cause)) for before, cause in enumerate(ordered))
    ]
    assert triage._unexplained(found) == kept


def report(ranks: int, hosts: int, text: str) -> Report:
    """Of a job in which one rank hangs."""
    finding = Finding("rank-stuck-in-python", f"rank 1 {text}", Culprit([1], ["gpu-1"]), evidence=[Evidence("a.log", 1, text)])
    samples = [{"rank": rank, "name": "all_reduce", "seconds": [rank / 7e5] * 20, "note": text} for rank in range(ranks)]
    probe = ProbeResult("training", Status.FAIL, text, 1.0, samples, [Fact("note", "gpu-1", fields={"title": text, "list": [text, 1, None]})])
    nodes = [{"node_rank": at, "host": f"gpu-{at}", "addresses": {"eth0": [f"10.0.0.{at}"]}, "gpus": [{"uuid": f"{at:032x}"}]} for at in range(hosts)]
    who = [RankId(rank, 0, rank, f"gpu-{rank}", rank) for rank in range(ranks)]
    folders = {str(at): f"run/node{at}" for at in range(hosts)}
    return Report(1, Outcome.NOT_READY, finding.title, 1.0, [finding], False, {"added": {}}, [probe], nodes, who, {"id": "run", "folders": folders})


@pytest.mark.parametrize("text", ["is stuck", "export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyzabcdefgh"])
def test_a_report_that_is_masked_piece_by_piece_is_the_one_that_is_masked_as_a_whole(text: str) -> None:
    one = report(3, 3, text)
    assert masked(one) == msgspec.convert(secrets.mask_all(msgspec.to_builtins(one)), Report)


@pytest.mark.parametrize("readers", [1, 64, 1024, 4096])
def test_all_copies_of_a_report_together_stay_bounded_and_each_says_who_and_why(readers: int) -> None:
    whole = report(2000, 2000, "hangs")
    data = outcome.pack(whole, readers)
    assert len(data) * readers <= outcome._TOGETHER
    told = documents.unpack(data, Report, received.LARGEST)
    assert (told.status, told.summary, told.findings[0].title) == (whole.status, whole.summary, whole.findings[0].title)
    assert told.run["folders"] and whole.probes[0].samples[0]["seconds"], "what is sent must not change what is kept"


def test_agents_that_come_too_late_share_a_few_reports_and_none_is_made_twice_for_the_same() -> None:
    made: list[Sequence[wire.Hello]] = []
    sent: list[bytes] = []

    def refusal(late: Sequence[wire.Hello]) -> bytes:
        made.append(late)
        return b"%d" % len(made)

    async def come() -> None:
        late = Latecomers(refusal, lambda peer, message: sent.append(peer))
        hellos: Mapping[bytes, wire.Hello] = {b"%d" % at: hello(at % 20, f"h{at}") for at in range(5000)}
        for peer, one in hellos.items():
            late.add(peer, one, one.node_rank)
        answering = asyncio.create_task(late.answer())
        async with asyncio.timeout(60):
            while len(sent) < 5000:
                await asyncio.sleep(0)
        for peer, one in hellos.items():  # whose answer was lost
            late.add(peer, one, one.node_rank)
        assert len(sent) == 10_000
        answering.cancel()

    asyncio.run(come())
    assert len(made) == REPORTS and sum(map(len, made)) == 5000


@pytest.mark.slow
def test_of_2048_ranks_the_one_that_stops_is_named_to_every_agent() -> None:
    row = asyncio.run(measure(256, 8, late=20, steady=0.5))
    assert row["right"] and row["agents told"] == 256 and row["told so"] == 20
