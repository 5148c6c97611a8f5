"""When node 0 stops waiting for ranks, and for which reason."""

from __future__ import annotations

from typing import Any

import pytest

from ncclcheck import muster, wire
from ncclcheck.journal import Line, Slot
from ncclcheck.model import Fact
from ncclcheck.probe import STALL_FLOOR
from ncclcheck.watch import LEAVE_BOUND, START_BOUND, Clock, View

T0 = 1000.0  # node 0's clock when the launch begins
ORDER = muster.Order(2, 1, "10.0.0.1", 29500)
A, B = b"agent of node 0", b"agent of node 1"


def view(world_size: int = 2, nodes: int = 2, **timeouts: float) -> View:
    return View("01-bandwidth", world_size, nodes, T0, timeouts or {"bandwidth": 500.0, "hang": 500.0}, ORDER)


def slot(rank: int, writes: int = 1, *, bound: float = 5.0, left: float | None = None, done: bool = False, seq: int = 1) -> Slot:
    return Slot(100 + rank, rank, seq, 8, 1.0, left, bound, False, False, done, 0.0, 0.0, 7, seq, writes, "all_reduce", "world", "float32")


def line(rank: int, kind: str, **fields: Any) -> Line:
    return Line(rank, kind, 1.0, 1, fields, f"rank{rank}.jsonl", 3)


def hear(
    known: View, at: float, *said: Slot | Line | Fact, beats: dict[int, int] | None = None, ended: bool = False, peer: bytes = A, folder: str = "a"
) -> None:
    """One node's message arrives `at` seconds after the launch."""
    slots, lines, facts = ([item for item in said if isinstance(item, kind)] for kind in (Slot, Line, Fact))
    known.update(peer, 0 if peer == A else 1, folder, wire.Progress(known.launch, slots, lines, beats or {}, facts, ended), T0 + at)  # type: ignore[arg-type]


def test_ranks_that_have_not_announced_themselves_are_given_time_to_start() -> None:
    known = view()
    hear(known, 1, slot(0, bound=2.0))
    assert known.clock(T0 + 1 + START_BOUND) is None
    assert known.clock(T0 + 1.1 + START_BOUND) == (Clock.STALL, START_BOUND)


def test_a_rank_is_in_the_phase_it_came_to_until_it_leaves_the_step() -> None:
    known = view()
    hear(known, 1, slot(0), slot(1), line(0, "phase", phase="rendezvous"), line(0, "phase", phase="weights"))
    assert [step.phase for step in known.steps()] == ["weights", ""]
    hear(known, 2, slot(0, writes=2, left=2.0))
    assert known.steps()[0].phase == ""
    hear(known, 3, slot(0, writes=3, seq=2))
    assert known.steps()[0].phase == ""


def test_the_most_patient_step_of_any_rank_bounds_the_wait() -> None:
    known = view()
    hear(known, 10, slot(0, bound=3.0), slot(1, bound=7.0))
    assert known.clock(T0 + 17) is None
    assert known.clock(T0 + 17.1) == (Clock.STALL, 7.0)


def test_between_two_steps_a_rank_is_given_the_floor_however_patient_its_last_step_was() -> None:
    known = view()
    hear(known, 0, slot(0, bound=60.0, left=2.0), slot(1, bound=60.0, left=2.0))
    assert known.clock(T0 + STALL_FLOOR) is None
    assert known.clock(T0 + STALL_FLOOR + 0.1) == (Clock.STALL, STALL_FLOOR)


def test_a_rank_that_is_done_bounds_nothing() -> None:
    known = view()
    hear(known, 0, slot(0, bound=60.0, done=True), slot(1, bound=4.0))
    assert known.clock(T0 + 4.1) == (Clock.STALL, 4.0)


def test_after_all_ranks_are_done_their_launchers_are_given_time_to_end() -> None:
    known = view()
    known.timeouts = {}  # every probe there was has come to its end
    hear(known, 0, slot(0, done=True), slot(1, done=True))
    assert known.clock(T0 + LEAVE_BOUND) is None
    assert known.clock(T0 + LEAVE_BOUND + 0.1) == (Clock.OVER, 0.0)


def test_progress_of_one_rank_gives_all_of_them_new_time() -> None:
    known = view()
    hear(known, 0, slot(0), slot(1))
    for at in (4, 8, 12):
        hear(known, at, slot(1, writes=at))
    assert known.clock(T0 + 17) is None
    assert known.clock(T0 + 17.1) == (Clock.STALL, 5.0)


def test_hearing_again_what_is_known_is_no_progress() -> None:
    known = view()
    hear(known, 0, slot(0), slot(1), beats={1: 10})
    hear(known, 4, slot(0), slot(1), beats={1: 10})
    assert known.clock(T0 + 5.1) == (Clock.STALL, 5.0)


def test_a_beat_of_a_step_that_announces_nothing_is_progress() -> None:
    known = view()
    hear(known, 0, slot(0), slot(1), beats={1: 10})
    hear(known, 4, beats={1: 11})
    assert known.clock(T0 + 9) is None
    assert known.clock(T0 + 9.1) == (Clock.STALL, 5.0)


def test_a_view_that_was_impatient_once_waits_longer() -> None:
    known = view()
    hear(known, 0, slot(0), slot(1))
    known.patience *= 2
    assert known.clock(T0 + 10) is None
    assert known.clock(T0 + 10.1) == (Clock.STALL, 10.0)


@pytest.mark.parametrize(
    "said, clock",
    [
        (Fact("gone", "a", 0, fields={"code": -9}), Clock.DEATH),
        (Fact("stopped", "a", 0, fields={"state": "T"}), Clock.STOP),
        (Fact("launcher-failed", "a", fields={"code": 1}), Clock.LAUNCHER),
        (Fact("launcher-stopped", "a"), Clock.STOP),
        (line(0, "error", type="RuntimeError", message="x"), Clock.ERROR),
        (line(0, "sample", name="all_reduce", nbytes=8, correct=False), Clock.FAIL),
        (line(0, "fact", fact="fail", fields={"cause": "data-corruption", "title": "x"}), Clock.FAIL),
    ],
)
def test_what_needs_no_threshold_ends_the_wait_at_once(said: Fact | Line, clock: Clock) -> None:
    known = view()
    hear(known, 0, slot(0), slot(1))
    assert known.clock(T0) is None
    hear(known, 0, said)
    assert known.clock(T0) == (clock, 0.0)


def test_other_facts_do_not_end_the_wait() -> None:
    known = view()
    hear(known, 0, slot(0), slot(1), line(0, "fact", fact="wiring", fields={"rank": 0}), Fact("state", "a", 0))
    assert known.clock(T0) is None


def test_of_a_death_and_the_errors_that_follow_from_it_the_death_is_named() -> None:
    known = view()
    hear(known, 0, line(0, "error", type="RuntimeError", message="Connection closed by peer"))
    assert not known.explained()
    hear(known, 0.5, Fact("gone", "b", 1), peer=B)
    assert known.explained()
    assert known.clock(T0 + 1) == (Clock.DEATH, 0.0)


def test_errors_explain_each_other_only_when_every_rank_has_one() -> None:
    known = view()
    hear(known, 0, line(0, "error", type="ValueError", message="x"))
    assert not known.explained()
    hear(known, 0, line(1, "error", type="ValueError", message="x"))
    assert known.explained()


def test_a_probe_has_its_own_time_from_the_moment_its_first_rank_began() -> None:
    known = view(bandwidth=30.0, hang=10.0)
    for at in range(0, 50, 2):
        hear(known, at, slot(0, writes=at), slot(1, writes=at), *([line(0, "probe", name="bandwidth")] if at == 4 else []))
    hear(known, 20, line(1, "probe", name="bandwidth"))
    assert known.clock(T0 + 34) is None
    assert known.clock(T0 + 34.1) == (Clock.PROBE, 30.0)
    hear(known, 34, line(0, "probe", name="hang"))
    assert known.current() == "hang"
    assert known.clock(T0 + 44) is None
    assert known.clock(T0 + 44.1) == (Clock.PROBE, 10.0)


def test_a_launch_is_over_only_when_every_node_has_ended() -> None:
    known = view()
    hear(known, 0, slot(0, done=True), ended=True)
    hear(known, 1, ended=True)
    assert known.clock(T0 + 1) is None
    hear(known, 2, slot(1, done=True), ended=True, peer=B)
    assert known.clock(T0 + 2) == (Clock.OVER, 0.0)


def test_it_is_complete_only_when_every_rank_came_to_the_end_of_every_probe() -> None:
    known = view()
    for rank, probe in ((0, "bandwidth"), (1, "bandwidth"), (0, "hang")):
        hear(known, 0, line(rank, "probe-end", name=probe))
        assert not known.complete
    hear(known, 0, line(1, "probe-end", name="hang"))
    assert known.complete


def test_each_sample_and_fact_belongs_to_the_probe_that_its_own_rank_is_in() -> None:
    known = view()
    device = {"index": 2, "name": "GPU", "uuid": "u", "pci_bus_id": "p"}
    identity = {"rank": 1, "local_rank": 0, "node_rank": 1, "host": "b", "pid": 7, "device": device}
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": ORDER.master, "MASTER_PORT": str(ORDER.port)}
    claim = line(1, "claim", host="b", pid=7, local_rank=0, environment=environment, interfaces=["lo", "eth0"])
    hello = line(1, "hello", identity=identity, torch="2.13.0", nccl=["2.28.9", "2.28.9"])
    sample = {"name": "all_reduce", "nbytes": 8, "correct": True}
    hear(known, 0, line(0, "probe", name="bandwidth"))
    hear(known, 0, claim, hello, line(1, "probe", name="bandwidth"), folder="node1-b", peer=B)
    hear(known, 1, line(0, "probe", name="hang"), line(0, "sample", **sample), line(1, "sample", **sample))
    hear(known, 2, line(1, "fact", fact="checked", fields={"operations": 3}), folder="node1-b", peer=B)
    assert known.samples == {"hang": [{"rank": 0, **sample}], "bandwidth": [{"rank": 1, **sample}]}
    (fact,) = known.facts
    assert (fact.kind, fact.host, fact.rank, fact.fields) == ("checked", "b", 1, {"operations": 3, "probe": "bandwidth"})
    assert fact.source and (fact.source.file, fact.source.line) == ("node1-b/01-bandwidth/rank1.jsonl", 3)
    assert str(known.ranks[1]) == "rank 1 (b, GPU 2)"


def test_triage_gets_the_newest_step_of_each_rank_in_their_order_and_who_is_done() -> None:
    known = view(3)
    hear(known, 0, slot(2, seq=4), slot(0, seq=4), slot(1, seq=4))
    hear(known, 1, slot(1, writes=2, seq=5), slot(0, writes=2, seq=6, done=True))
    more = Fact("clock", fields={"which": "x"})
    run = known.run([more])
    assert [(step.rank, step.seq) for step in run.steps] == [(0, 6), (1, 5), (2, 4)]
    assert run.world_size == 3
    assert more in run.facts
    assert [fact.rank for fact in run.of("done")] == [0]
