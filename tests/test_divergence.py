"""The first call in which ranks differ is found in their histories, and who left the common path is told only where it can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import divergence, history, triage
from ncclcheck.divergence import ENGINE
from ncclcheck.model import Fact, Finding, RankId, Run

STEP = ["all_reduce [8] sum", "all_reduce [4] sum", "broadcast [2] from 0", "all_gather [2]", "exchange [2]", "all_reduce [1] max"]


def calls(rank: int, issued: Sequence[str], last: int | None = None) -> Fact:
    """What an agent says of one rank's history, whose newest call is number `last` (counted from 1)."""
    texts = list(dict.fromkeys(issued))
    fields = {"last": last or len(issued), "signatures": [history.signature([text]) for text in texts], "texts": texts}
    return Fact("calls", "abcdefgh"[rank // 2], rank, fields={**fields, "calls": [texts.index(text) for text in issued]})


def job(issued: Mapping[int, Sequence[str]], *more: Fact) -> Run:
    ranks = {rank: RankId(rank, rank % 2, rank // 2, "abcdefgh"[rank // 2], 100 + rank) for rank in issued}
    return Run(len(issued), ranks, facts=[*(calls(rank, said) for rank, said in issued.items()), *more])


def changed(said: Sequence[str], at: int, call: str) -> list[str]:
    """The same history with another call number `at`."""
    return [*said[: at - 1], call, *said[at:]]


def best(run: Run) -> Finding:
    return triage.findings(run)[0]


@given(st.lists(st.sampled_from(STEP), max_size=60), st.lists(st.integers(0, 60), min_size=2, max_size=5))
def test_ranks_that_issue_the_same_do_not_differ_however_far_each_of_them_has_come(said: list[str], lengths: list[int]) -> None:
    assert divergence.of(job({rank: said[:length] for rank, length in enumerate(lengths)})) is None


def test_one_history_alone_differs_from_nothing() -> None:
    run = job({0: STEP})
    assert divergence.of(run) is None and not divergence.known(run)


@pytest.mark.parametrize("odd", range(4))
def test_of_three_ranks_or_more_the_one_that_differs_from_the_others_is_named(odd: int) -> None:
    said = STEP * 5
    run = job({rank: changed(said, 10, "all_reduce [4] max") if rank == odd else said for rank in range(4)})
    found = divergence.of(run)
    assert found and (found.seq, found.odd, found.by_habit) == (10, (odd,), False)
    assert found.issued == {rank: "all_reduce [4] max" if rank == odd else "all_gather [2]" for rank in range(4)}
    finding = best(run)
    assert (finding.cause, finding.culprit.ranks, finding.culprit.hosts) == ("collective-mismatch", [odd], ["abcdefgh"[odd // 2]])
    assert finding.confidence > 0.95
    assert f"rank {odd} (" in finding.title and "issued all_reduce [4] max as collective #10, where 3 ranks issued all_gather [2]" in finding.title
    assert finding.evidence[0].text.endswith("issued as collective #10: all_reduce [4] max") and f"rank {odd} (" in finding.evidence[0].text


def test_a_rank_that_skips_a_call_differs_where_it_issued_the_next_one_instead() -> None:
    said = STEP * 5
    found = divergence.of(job({0: said, 1: said, 2: [*said[:8], *said[9:]]}))
    assert found and (found.seq, found.odd) == (9, (2,))


@pytest.mark.parametrize("odd", [0, 1])
def test_of_two_ranks_the_one_that_leaves_its_own_earlier_path_is_named(odd: int) -> None:
    said = STEP * 5
    run = job({rank: changed(said, 21, "broadcast [2] from 1") if rank == odd else said for rank in range(2)})
    found = divergence.of(run)
    assert found and (found.seq, found.odd, found.by_habit) == (21, (odd,), True)
    finding = best(run)
    assert (finding.cause, finding.culprit.ranks) == ("collective-mismatch", [odd])
    assert f"where rank {1 - odd} issued broadcast [2] from 0; its own earlier passes show" in finding.title


def test_a_tie_of_two_pairs_is_decided_by_habit_too() -> None:
    said = STEP * 5
    other = changed(said, 20, "barrier")
    found = divergence.of(job({0: said, 1: other, 2: other, 3: said}))
    assert found and (found.odd, found.by_habit) == ((1, 2), True)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_of_two_ranks_that_were_never_there_before_neither_is_preferred(at: int) -> None:
    run = job({0: STEP, 1: changed(STEP, at, "barrier")})
    found = divergence.of(run)
    assert found and (found.seq, found.odd, found.by_habit) == (at, (0, 1), False)
    finding = best(run)
    assert (finding.cause, finding.culprit.ranks) == ("collective-mismatch", [0, 1])
    assert "nothing tells which is wrong" in finding.title and finding.confidence < 0.9


def test_a_call_that_is_new_to_both_ranks_of_two_is_blamed_on_both() -> None:
    said = STEP * 5
    found = divergence.of(job({0: changed(said, 20, "barrier"), 1: changed(said, 20, "send [1] to 0")}))
    assert found and (found.odd, found.by_habit) == ((0, 1), False)


def test_habit_decides_only_where_that_of_every_rank_is_known() -> None:
    said = STEP * 5
    other = changed(said, 20, "barrier")
    run = Run(2, facts=[calls(0, said[16:], last=30), calls(1, other)])  # of rank 0 no earlier pass is kept
    found = divergence.of(run)
    assert found and (found.seq, found.odd, found.by_habit) == (20, (0, 1), False)


def test_only_calls_that_more_than_one_history_still_holds_are_compared() -> None:
    said = STEP * 5
    late = calls(0, said[20:], last=30)
    early = calls(1, changed(said, 12, "barrier"))
    assert divergence.of(Run(2, facts=[late, early])) is None
    apart = divergence.of(Run(2, facts=[late, calls(1, changed(said, 22, "barrier"))]))
    assert apart and apart.seq == 22
    assert divergence.of(Run(2, facts=[calls(0, said[20:], last=30), calls(1, said[:5])])) is None


def test_the_first_difference_is_told_though_a_third_rank_did_not_come_so_far() -> None:
    said = STEP * 5
    found = divergence.of(job({0: said, 1: changed(said, 20, "barrier"), 2: said[:15]}))
    assert found and (found.seq, set(found.issued), found.odd) == (20, {0, 1}, (1,))


def test_a_call_whose_words_are_not_known_is_compared_by_its_number() -> None:
    said = STEP * 5
    nameless = calls(1, changed(said, 20, "x"))
    texts = [f"call {number:x}" if text == "x" else text for number, text in zip(nameless.get("signatures"), nameless.get("texts"), strict=True)]
    found = divergence.of(Run(3, facts=[calls(0, said), Fact("calls", "a", 1, fields={**nameless.fields, "texts": texts}), calls(2, said)]))
    assert found and found.odd == (1,) and found.issued[1] == f"call {history.signature(['x']):x}"


@pytest.mark.parametrize("message", ["send [4194304] to 0", "recv [4] from 2"])
def test_a_message_among_collectives_has_no_other_end(message: str) -> None:
    said = STEP * 5
    finding = best(job({0: said, 1: [*said[:20], message], 2: said}))
    assert (finding.cause, finding.culprit.ranks) == ("p2p-mismatch", [1])
    assert "nobody takes the other end" in finding.title


def test_engines_that_start_with_different_sizes_are_a_mismatch_of_the_world_size() -> None:
    finding = best(job({rank: [f"{ENGINE} tensor parallel {8 if rank == 2 else 4}"] for rank in range(4)}))
    assert (finding.cause, finding.culprit.ranks) == ("world-size-mismatch", [2])


def stacks() -> list[Fact]:
    """Rank 2 was caught in another collective than the others."""
    frames = ["all_reduce (torch/distributed/distributed_c10d.py:2950)", "barrier (torch/distributed/distributed_c10d.py:5007)"]
    return [Fact("stack", "a", rank, fields={"frames": [frames[rank == 2], "main (train.py:7)"]}) for rank in range(3)]


def test_histories_that_agree_silence_what_stacks_at_one_moment_suggest() -> None:
    guess = best(Run(3, {rank: RankId(rank) for rank in range(3)}, facts=stacks()))
    assert (guess.cause, guess.culprit.ranks) == ("collective-mismatch", [2])
    run = job({0: STEP * 5, 1: STEP * 5, 2: STEP * 4}, *stacks())
    assert "collective-mismatch" not in {finding.cause for finding in triage.findings(run)}
