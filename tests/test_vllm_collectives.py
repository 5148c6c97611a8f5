"""All-reduces inside an engine: what is timed, whose time counts, and sums that are wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ncclcheck import vllm_collectives
from ncclcheck.journal import Journal
from ncclcheck.model import RankId
from ncclcheck.probe import Rank

KINDS = len(vllm_collectives.READS) * len(vllm_collectives.SIZES)


def group(offset: float) -> Any:
    """One rank's: a sum of one summand is itself, or is not."""
    return SimpleNamespace(device_communicator=SimpleNamespace(all_reduce=lambda tensor: tensor + offset))


def measure(offset: float, exchange: Any = lambda mine: [mine]) -> Any:
    return vllm_collectives.measure(Rank(RankId(0), 1, Journal(None, 0, 0), {}), group(offset), exchange)


def test_every_kind_has_its_time_and_right_sums_say_nothing() -> None:
    seconds, wrongs = measure(0.0)
    assert len(seconds) == KINDS and all(0 < value < 60 for value in seconds.values()) and wrongs == []


def test_wrong_sums_are_told_once_for_each_size() -> None:
    _, wrongs = measure(1.0)
    assert [fact.kind for fact in wrongs] == ["fail"] * len(vllm_collectives.SIZES)
    assert wrongs[0].get("cause") == "data-corruption"


def test_of_each_call_the_rank_counts_that_came_last_and_a_slow_moment_does_not() -> None:
    def exchange(mine: vllm_collectives.Times) -> list[vllm_collectives.Times]:
        count = vllm_collectives.PASSES * (vllm_collectives.ROUNDS - 1)
        assert {len(seconds) for seconds in mine.values()} == {count}
        early = {kind: [1.0, 2.0] * (count // 2) for kind in mine}  # in turns, one of them waits for the other
        late = {kind: [2.0, 1.0] * (count // 2) for kind in mine}
        late[2**18, 2**10][1] = early[2**18, 2**10][1] = 100.0
        return [early, late]

    seconds, _ = measure(0.0, exchange)
    assert set(seconds.values()) == {1.0}
