"""From the ranks' places in each group's sequence follows who waits for whom, and for nobody more than that is anybody blamed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from test_flight_recorder import entry

from ncclcheck import insufficient, recorder, waits
from ncclcheck.edges import Edges
from ncclcheck.evidence import flight_recorder
from ncclcheck.model import Evidence, Fact, Run
from ncclcheck.positions import Position
from ncclcheck.recorder import Dump
from ncclcheck.rules import collective_mismatch, gpu_kernel_stuck, p2p_mismatch, rank_stuck_in_python

WORLD = (0, 1, 2, 3)


def dumped(rank: int, entries: Sequence[dict[str, Any]], groups: dict[str, Sequence[int]] | None = None) -> Dump:
    config = {name: {"name": name, "desc": "", "ranks": list(ranks)} for name, ranks in (groups or {"0": WORLD}).items()}
    return flight_recorder.read(
        json.dumps({"version": "2.10", "pg_config": config, "entries": list(entries), "rank": rank}).encode(), f"fr_rank_{rank}"
    )


def calls(*operations: str, first: int = 1, group: str = "0", done: int = 0) -> list[dict[str, Any]]:
    """`done` of the operations completed; `name*8` has 8 elements."""
    result = []
    for at, operation in enumerate(operations):
        name, _, size = operation.partition("*")
        state = "completed" if at < done else "scheduled"
        result.append(entry(first + at, name, int(size or 64), state, process_group=[group, ""]))
    return result


def message(seq: int, name: str, size: int = 64, state: str = "scheduled", group: str = "0") -> dict[str, Any]:
    return entry(0, name, size, state, p2p_seq_id=seq, process_group=[group, ""])


def run(*dumps: Dump, facts: Sequence[Fact] = (), world: int = 4) -> Run:
    return Run(world, dumps=dumps, facts=facts)


def position(rank: int, enqueued: int, completed: int, group: str = "default_pg") -> Fact:
    fields = {"group": group, "enqueued": enqueued, "completed": completed}
    return Fact("position", rank=rank, fields=fields, source=Evidence(f"rank{rank}.log", 1, "last enqueued work"))


def test_the_rank_behind_what_the_others_wait_in_waits_for_nobody() -> None:
    ahead = calls("all_reduce", "broadcast", "all_reduce", done=1)
    found = waits.of(run(*(dumped(rank, calls("all_reduce", done=1) if rank == 2 else ahead) for rank in WORLD)))
    assert found.idle == (2,) and not found.absent and found.held is None
    (wait,) = found.waits
    assert (wait.seq, wait.what, wait.waiting, wait.behind) == (2, "broadcast [64] Float", (0, 1, 3), (2,))
    assert wait.evidence[0].text == "broadcast #2 [64] Float scheduled" and wait.evidence[0].line == 2


def test_when_all_are_in_one_call_nobody_is_blamed() -> None:
    same = run(*(dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in WORLD))
    found = waits.of(same)
    assert not found.idle and not found.absent and found.held is not None
    (finding,) = gpu_kernel_stuck.check(same)
    assert finding.culprit.ranks is None and finding.confidence < 0.5


def test_a_rank_without_a_dump_is_absent_only_if_no_log_tells_where_it_is() -> None:
    rest = [dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in (0, 1, 3)]
    assert waits.of(run(*rest)).absent == (2,)
    assert waits.of(run(*rest, facts=[position(2, 2, 1)])).held is not None
    assert waits.of(run(*rest, facts=[position(2, 1, 1)])).idle == (2,)


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_with_one_dump_lost_the_rank_behind_is_still_the_one_that_is_named(lost: int) -> None:
    ahead = calls("all_reduce", "all_reduce", done=1)
    left = [dumped(rank, calls("all_reduce", done=1) if rank == 2 else ahead) for rank in WORLD if rank != lost]
    assert waits.of(run(*left)).idle == (2,)
    assert [finding.culprit.ranks for finding in rank_stuck_in_python.check(run(*left))] == [[2]]


def test_with_its_own_dump_lost_it_is_absent() -> None:
    ahead = calls("all_reduce", "all_reduce", done=1)
    assert waits.of(run(*(dumped(rank, ahead) for rank in WORLD if rank != 2))).absent == (2,)


def test_the_minority_at_the_first_difference_is_odd() -> None:
    usual = calls("all_reduce", "broadcast", "all_reduce", "broadcast")
    skipped = calls("all_reduce", "all_reduce", "broadcast")
    (difference,) = recorder.differences(tuple(dumped(rank, skipped if rank == 1 else usual) for rank in WORLD))
    assert (difference.seq, difference.odd) == (2, (1,)) and difference.common is not None and difference.common.operation == "broadcast"


def test_between_two_sides_of_equal_number_nobody_is_the_minority() -> None:
    dumps = tuple(dumped(rank, calls("all_reduce" if rank < 2 else "broadcast")) for rank in WORLD)
    (difference,) = recorder.differences(dumps)
    assert difference.odd == WORLD and difference.common is None
    (finding,) = collective_mismatch.check(run(*dumps))
    assert "neither side is the majority" in finding.title


def test_a_size_that_nccl_needs_equal_is_compared_and_one_that_it_does_not_is_not() -> None:
    assert recorder.differences(tuple(dumped(rank, calls(f"all_reduce*{8 + (rank == 3)}")) for rank in WORLD))[0].odd == (3,)
    for operation in ("all_to_all", "gather", "scatter", "all_to_all_single"):
        assert not recorder.differences(tuple(dumped(rank, calls(f"{operation}*{8 + rank}")) for rank in WORLD))


def test_of_rings_that_wrapped_at_different_places_only_what_both_hold_is_compared() -> None:
    names = ["all_reduce", "broadcast", "reduce"] * 20
    early, late = calls(*names[:50]), calls(*names[30:], first=31)
    assert not recorder.differences((dumped(0, early), dumped(1, late), dumped(2, late)))
    late[5] = calls("barrier", first=36)[0]
    assert recorder.differences((dumped(0, early), dumped(1, late), dumped(2, early)))[0].seq == 36


def test_a_dump_that_holds_only_what_is_active_is_compared_where_it_has_records() -> None:
    active = [*calls("all_reduce", first=3), *calls("reduce", first=7)]
    whole = calls("broadcast", "broadcast", "all_reduce", "broadcast", "broadcast", "broadcast", "broadcast")
    (difference,) = recorder.differences((dumped(0, whole), dumped(1, active), dumped(2, whole)))
    assert (difference.seq, difference.odd) == (7, (1,))


def test_groups_that_share_a_name_and_not_a_member_are_two() -> None:
    halves = [(0, 1), (0, 1), (2, 3), (2, 3)]
    dumps = [dumped(rank, calls(f"all_reduce*{8 + ranks[0]}", group="s"), {"s": ranks}) for rank, ranks in enumerate(halves)]
    assert not recorder.differences(tuple(dumps)) and len(waits.of(run(*dumps)).waits) == 2


def test_members_that_wait_for_each_other_in_two_groups_make_a_circle() -> None:
    groups = {"a": (0, 1), "b": (0, 1)}
    in_a, in_b = dumped(0, calls("all_reduce", group="a"), groups), dumped(1, calls("all_reduce", group="b"), groups)
    crossed = run(in_a, in_b, world=2)
    found = waits.of(crossed)
    assert found.circle == (0, 1) and found.odd is None and not found.idle
    (finding,) = collective_mismatch.check(crossed)
    assert "different order" in finding.title and not finding.culprit.ranks


def test_the_end_of_a_chain_over_two_groups_is_the_one_that_waits_for_nobody() -> None:
    groups = {"a": (0, 1), "b": (1, 2)}
    chain = [
        dumped(0, calls("all_reduce", group="a"), {"a": (0, 1)}),
        dumped(1, calls("all_reduce", group="b"), groups),
        dumped(2, [], {"b": (1, 2)}),
    ]
    assert waits.of(run(*chain, world=3)).idle == (2,)


def test_who_sends_to_the_wrong_peer_while_the_right_one_waits_is_odd() -> None:
    dumps = [
        dumped(0, calls("all_reduce")),
        dumped(1, calls("all_reduce")),
        dumped(2, [message(1, "recv 2<-3")]),
        dumped(3, [message(1, "send 3->0")]),
    ]
    (finding,) = p2p_mismatch.check(run(*dumps))
    assert finding.culprit.ranks == [3] and not rank_stuck_in_python.check(run(*dumps))


def test_a_message_of_another_size_names_both_sides() -> None:
    pair = run(dumped(0, [message(1, "send 0->1", 8)]), dumped(1, [message(1, "recv 1<-0", 9)]), world=2)
    (finding,) = p2p_mismatch.check(pair)
    assert finding.culprit.ranks == [0, 1] and len(finding.evidence) == 1


def test_a_pipeline_that_waits_for_its_last_stage_blames_that_stage_alone() -> None:
    stages = [
        dumped(0, [message(1, "send 0->1", state="completed"), message(2, "recv 0<-1")]),
        dumped(1, [message(1, "recv 1<-0", state="completed"), message(2, "recv 1<-2")]),
        dumped(2, [message(1, "recv 2<-1", state="completed")]),
    ]
    found = waits.of(run(*stages, world=3))
    assert found.idle == (2,)
    assert not p2p_mismatch.check(run(*stages, world=3))


def test_messages_that_pair_are_no_problem() -> None:
    pair = run(dumped(0, [message(5, "send 0->1")]), dumped(1, [message(9, "recv 1<-0")]), world=2)
    assert not waits.of(pair).messages


def test_the_only_rank_without_a_time_out_is_the_one_that_the_others_wait_for() -> None:
    late = run(facts=[position(rank, 9, 8) for rank in (0, 1, 3)])
    (finding,) = rank_stuck_in_python.check(late)
    assert finding.culprit.ranks == [2] and finding.confidence < 0.8


def test_a_time_out_without_a_group_belongs_to_the_group_that_its_rank_is_stuck_in() -> None:
    timeout = Fact("timeout", rank=0, fields={"seq": 5, "op": "ALLREDUCE"}, source=Evidence("rank0.log", 1, "Watchdog caught"))
    found = waits.of(run(facts=[position(0, 5, 4, "tp"), position(1, 5, 4, "tp"), timeout]))
    assert [wait.group for wait in found.waits] == ["tp"] and not found.absent


def test_the_rank_that_uses_two_groups_in_another_order_is_the_one_that_all_others_wait_for() -> None:
    groups = {"a": WORLD, "b": WORLD}
    usual = [*calls("all_reduce", group="a"), *calls("all_reduce", group="b")]
    dumps = [dumped(rank, usual if rank != 3 else calls("all_reduce", group="b"), groups) for rank in WORLD]
    found = waits.of(run(*dumps))
    assert (found.circle, found.odd) == (WORLD, 3)
    (finding,) = collective_mismatch.check(run(*dumps))
    assert finding.culprit.ranks == [3]


def test_in_the_same_order_the_call_that_all_are_in_is_held_and_nobody_is_odd() -> None:
    groups = {"a": WORLD, "b": WORLD}
    first = calls("all_reduce", group="b")
    ahead = [*first, *calls("all_reduce", group="a")]
    found = waits.of(run(*(dumped(rank, first if rank == 3 else ahead, groups) for rank in WORLD)))
    assert not found.circle and found.held is not None and (found.held.group, found.held.waiting) == ("group b", WORLD)


def test_who_receives_what_nobody_sends_while_all_wait_for_it_in_a_collective_is_odd() -> None:
    dumps = [*(dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in (0, 1, 2))]
    dumps.append(dumped(3, [*calls("all_reduce", done=1), message(1, "recv 3<-0")]))
    (finding,) = p2p_mismatch.check(run(*dumps))
    assert finding.culprit.ranks == [3] and not rank_stuck_in_python.check(run(*dumps))


def test_a_rank_that_logs_show_inside_a_call_is_not_absent_from_another_group() -> None:
    rest = [dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in (0, 1)]
    assert waits.of(run(*rest, facts=[position(2, 4, 3, "tp")])).absent == (3,)


def test_members_that_sit_in_different_calls_that_all_have_issued_differ_and_nobody_is_named() -> None:
    uneven = run(facts=[position(rank, 9, 8 if rank == 1 else 7) for rank in WORLD])
    (finding,) = collective_mismatch.check(uneven)
    assert finding.culprit.ranks is None and finding.confidence < 0.6


def test_logs_alone_blame_none_of_two_ranks_that_are_behind() -> None:
    """One of them may receive from the other: logs tell nothing of messages."""
    assert not rank_stuck_in_python.check(run(facts=[position(rank, 9 if rank < 2 else 7, 7) for rank in WORLD]))


def test_a_rank_whose_old_ring_wrapped_is_neither_behind_nor_absent_nor_held() -> None:
    old = [{"seq_id": 2000 + at, "profiling_name": name, "process_group": ["0", ""]} for at, name in enumerate(("nccl:send 2->3", "nccl:all_reduce"))]
    found = waits.of(run(*(dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in (0, 1, 3)), dumped(2, old)))
    assert [wait.unknown for wait in found.waits] == [(2,)]
    assert not found.idle and not found.absent and found.held is None


def test_the_operation_of_a_time_out_is_known_also_where_a_newer_call_was_issued_after_it() -> None:
    late = Fact("timeout", rank=0, fields={"seq": 8, "op": "ALLREDUCE", "group": "default_pg"}, source=Evidence("rank0.log", 2, "Watchdog caught"))
    for facts in ([position(0, 9, 7), late], [late, position(0, 9, 7)]):
        (wait,) = waits.of(run(facts=facts)).waits
        assert (wait.what, wait.seq) == ("allreduce", 8)


def test_thousands_of_ranks_inside_as_many_different_calls_are_judged_in_a_moment() -> None:
    """In time and memory of their number, not of the number of their pairs."""
    many = run(facts=[position(rank, rank + 2, rank) for rank in range(20_000)], world=20_000)
    begun = time.process_time()
    found = waits.of(many)
    assert time.process_time() - begun < 5 and len(found.waiting) == 20_000 and not found.circle


def test_of_the_groups_in_a_circle_the_edges_are_those_of_all_pairs() -> None:
    rng = random.Random(7)
    line = Evidence("x", 1, "x")
    for _ in range(300):
        groups = []
        for _ in range(rng.randint(1, 4)):
            members = rng.sample(range(8), rng.randint(2, 8))
            places = {rank: rng.randint(0, 4) for rank in members}
            groups.append({rank: Position(last, rng.choice([None, *range(1, last + 1)]), "", line) for rank, last in places.items()})
        lone = {(a, b) for a, b in (rng.sample(range(8), 2) for _ in range(rng.randint(0, 2)))}
        pairs = lone | {
            (a, b) for group in groups for a in group for b in group if (pending := group[a].pending) is not None and group[b].enqueued < pending
        }
        edges = Edges(groups, lone)
        assert edges.waiting == {a for a, _ in pairs} and edges.waited == {b for _, b in pairs}
        assert all(edges.between(a, b) == ((a, b) in pairs) for a in range(8) for b in range(8))
        left = set(range(8))
        while ends := {rank for rank in left if not any((rank, peer) in pairs for peer in left)}:
            left -= ends
        while ends := {rank for rank in left if not any((peer, rank) in pairs for peer in left)}:
            left -= ends
        assert edges.circle() == tuple(sorted(left))
        counts = sorted(((sum((a, rank) in pairs for a in range(8)), rank) for rank in left), reverse=True)
        tied = len(counts) > 1 and counts[0][0] == counts[1][0]
        assert edges.odd(left) == (counts[0][1] if counts and not tied else None)


def test_the_answer_that_knows_no_cause_says_where_to_look_first() -> None:
    title = insufficient.finding(run(*(dumped(rank, calls("all_reduce", "all_reduce", done=1)) for rank in (0, 1)))).title
    assert "2 ranks wait in all_reduce [64] Float #2 of group 0; nothing is known of ranks 2, 3: look there first" in title
    title = insufficient.finding(run(facts=[position(rank, 9, 8) for rank in WORLD])).title
    assert "all 4 ranks are in the collective #9 of default_pg, nobody is behind" in title
    assert "there is nothing to read in a.log" in insufficient.finding(Run(sources=("a.log",))).title
