"""A rank that makes the others wait is told from a rank without a CPU, from one hiccup, and from a network that became slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import pace
from ncclcheck.pace import Pace

EVERY = 0.25  # seconds from one reading to the next
CALL = 0.01  # seconds that each rank works before a call, where nothing is said of it
WIRE = 0.002  # seconds that a call takes once all are there

Work = Callable[[int, float], float]  # rank, time -> seconds


def readings(
    ranks: int, work: Work = lambda rank, at: CALL, wire: Work = lambda rank, at: WIRE, starved: Work = lambda rank, at: 0.0, seconds: float = 8.0
) -> Mapping[int, list[Pace]]:
    """What agents read of ranks in step: each works, then waits for the last one, then all of them for the network.

    `starved` is the part of its work in which a rank was given no CPU.
    """
    now, seq = 0.0, 0
    worked, waited, without = [0.0] * ranks, [0.0] * ranks, [0.0] * ranks
    read: dict[int, list[Pace]] = {rank: [Pace(0.0, 0, 0.0, 0.0)] for rank in range(ranks)}
    while now < seconds:
        spent = [work(rank, now) for rank in range(ranks)]
        for rank in range(ranks):
            worked[rank] += spent[rank]
            waited[rank] += max(spent) - spent[rank] + wire(rank, now)
            without[rank] += starved(rank, now)
        now, seq = now + max(spent) + max(wire(rank, now) for rank in range(ranks)), seq + 1
        if now - read[0][-1].now >= EVERY:
            for rank in range(ranks):
                read[rank].append(Pace(now, seq, worked[rank], waited[rank], without[rank]))
    return read


def found(read: Mapping[int, list[Pace]]) -> list[tuple[str, int | None]]:
    return [(fact.kind, fact.rank) for fact in pace.facts(read)]


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_that_works_longer_than_the_others_is_slow(ranks: int) -> None:
    read = readings(ranks, lambda rank, at: 3 * CALL if rank == ranks - 1 else CALL)
    (fact,) = pace.facts(read)
    assert (fact.kind, fact.rank) == ("slow", ranks - 1)
    seconds, worked, others, calls = (fact.get(name) for name in ("seconds", "worked", "others", "calls"))
    assert pace.WINDOW <= seconds <= pace.WINDOW + 2 * EVERY
    assert worked == pytest.approx(3 * others, rel=0.02)
    assert worked == pytest.approx(calls * 3 * CALL, rel=0.02)
    assert calls == pytest.approx(seconds / (3 * CALL + WIRE), rel=0.05)


def test_a_rank_that_became_slow_late_is_slow_once_it_lasts() -> None:
    def work(rank: int, at: float) -> float:
        return 3 * CALL if rank == 1 and at > 5 else CALL

    assert found(readings(4, work, seconds=5.5)) == []
    assert found(readings(4, work, seconds=8.5)) == [("slow", 1)]


@pytest.mark.parametrize("at", [5.5, 6.3, 7.2])
def test_one_hiccup_makes_no_slow_rank(at: float) -> None:
    struck: list[float] = []

    def work(rank: int, now: float) -> float:
        if rank == 1 and now >= at and not struck:
            struck.append(now)
            return 1.2
        return CALL

    read = readings(4, work)
    assert struck and found(read) == []
    assert (
        len(pace._slow({rank: pace._last(all_)[-1] - pace._last(all_)[0] for rank, all_ in read.items()})) == 1
    )  # it would be one, but for the halves


def test_a_rank_that_is_given_no_cpu_is_not_slow_itself() -> None:
    def work(rank: int, at: float) -> float:
        return 3 * CALL if rank == 1 else CALL

    assert found(readings(4, work)) == [("slow", 1)]
    assert found(readings(4, work, starved=lambda rank, at: 2 * CALL if rank == 1 else 0.0)) == []


@given(ranks=st.integers(2, 9), call=st.floats(1e-5, 0.2), wire=st.floats(0.0, 0.0049), seconds=st.floats(0.0, 8.0), starved=st.floats(0.0, 1.0))
def test_among_equal_ranks_on_a_steady_quick_network_none_is_slow_and_nothing_is_slowed(
    ranks: int, call: float, wire: float, seconds: float, starved: float
) -> None:
    call = max(call, (seconds + 0.1) / 2000)  # no more calls than a test has time for
    assert found(readings(ranks, lambda rank, at: call, lambda rank, at: wire, lambda rank, at: starved * call, seconds)) == []


def test_too_few_calls_say_nothing() -> None:
    assert found(readings(3, lambda rank, at: 0.9 if rank == 1 else 0.01)) == []


def test_a_rank_that_was_never_read_twice_says_nothing() -> None:
    read = readings(2, lambda rank, at: 3 * CALL if rank == 1 else CALL)
    assert found({0: read[0], 1: read[1][:1]}) == []
    assert found({0: read[0]}) == []


def test_two_readings_do_not_say_that_a_rank_stays_slow() -> None:
    whole = readings(4, work=lambda rank, at: 5 * CALL if rank == 2 else CALL)
    assert found(whole) == [("slow", 2)]
    assert found({rank: [all_[0], all_[-1]] for rank, all_ in whole.items()}) == []


def test_work_that_all_ranks_do_longer_makes_none_of_them_slow() -> None:
    assert found(readings(4, lambda rank, at: 5 * CALL if at > 4 else CALL)) == []


@pytest.mark.parametrize("ranks", [2, 4])
def test_calls_that_take_longer_on_every_rank_are_the_networks(ranks: int) -> None:
    (fact,) = pace.facts(readings(ranks, wire=lambda rank, at: 0.02 if at > 3 else WIRE))
    assert (fact.kind, fact.rank) == ("slowed", None)
    assert fact.get("usual") == pytest.approx(WIRE, rel=0.01)
    assert fact.get("now") == pytest.approx(0.02, rel=0.01)


def test_a_network_that_slows_what_is_a_small_part_of_the_time_is_none_of_it() -> None:
    assert found(readings(4, lambda rank, at: 0.1, lambda rank, at: 0.02 if at > 3 else WIRE)) == []


def test_a_straggler_that_others_wait_for_is_not_taken_for_the_network() -> None:
    assert found(readings(4, lambda rank, at: 5 * CALL if rank == 2 and at > 3 else CALL)) == [("slow", 2)]


def test_a_slow_network_is_not_taken_for_a_straggler_though_one_rank_works_a_little_longer() -> None:
    read = readings(4, lambda rank, at: 1.3 * CALL if rank == 2 else CALL, lambda rank, at: 0.05 if at > 3 else WIRE)
    assert found(read) == [("slowed", None)]


def test_a_straggler_on_a_network_that_became_slow_is_found_with_it() -> None:
    read = readings(4, lambda rank, at: 6 * CALL if rank == 2 else CALL, lambda rank, at: 0.05 if at > 3 else WIRE)
    assert sorted(found(read), key=str) == [("slow", 2), ("slowed", None)]


def test_calls_that_always_took_long_make_the_network_worth_a_look() -> None:
    (fact,) = pace.facts(readings(4, wire=lambda rank, at: 0.05))
    assert (fact.kind, fact.get("usual"), fact.get("now")) == ("slowed", pace.USUAL, pytest.approx(0.05, rel=0.01))
