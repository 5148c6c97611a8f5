"""The end of a chain of waits is found in jobs as they are run: FSDP, tensor with data parallelism, pipelines, experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from test_waits import calls, dumped, message, run

from ncclcheck import recorder, waits
from ncclcheck.model import Run
from ncclcheck.recorder import Dump
from ncclcheck.rules import collective_mismatch, gpu_kernel_stuck, p2p_mismatch, rank_stuck_in_python

Entries = list[dict[str, Any]]


def fsdp(ranks: int, steps: Mapping[int, int], usual: int, done: int) -> list[Dump]:
    """Ranks that issued `steps` calls (`usual` where nothing else is said) in turn all_gather and reduce_scatter, of which `done` completed."""
    world = {"0": tuple(range(ranks))}
    return [dumped(rank, calls(*_turns(steps.get(rank, usual)), done=min(done, steps.get(rank, usual))), world) for rank in range(ranks)]


def _turns(number: int) -> list[str]:
    return ["_all_gather_base" if at % 2 == 0 else "_reduce_scatter_base" for at in range(number)]


def grid(dp: int, tp: int, entries: Callable[[int, str, str], Entries]) -> list[Dump]:
    """Ranks in a tensor-parallel group (neighbours) and a data-parallel one each, `entries(rank, its tp group, its dp group)`."""
    result = []
    for rank in range(dp * tp):
        mine = {f"tp{rank // tp}": tuple(range(rank // tp * tp, rank // tp * tp + tp)), f"dp{rank % tp}": tuple(range(rank % tp, dp * tp, tp))}
        result.append(dumped(rank, entries(rank, f"tp{rank // tp}", f"dp{rank % tp}"), mine))
    return result


def named(job: Run) -> list[Sequence[int] | None]:
    rules = (rank_stuck_in_python, collective_mismatch, p2p_mismatch, gpu_kernel_stuck)
    return [finding.culprit.ranks for rule in rules for finding in rule.check(job)]


@pytest.mark.parametrize("late", [(5,), (0,), (3, 40)])
def test_fsdp_waits_for_the_ranks_that_stopped_issuing(late: tuple[int, ...]) -> None:
    job = run(*fsdp(64, dict.fromkeys(late, 20), 22, 20), world=64)
    assert waits.of(job).idle == late and named(job) == [list(late)]


def test_rings_that_wrapped_show_the_same() -> None:
    world = {"0": tuple(range(16))}
    tails = [calls(*_turns(40)[30 : 38 if rank == 9 else 40], first=31, done=8) for rank in range(16)]
    job = run(*(dumped(rank, tail, world) for rank, tail in enumerate(tails)), world=16)
    assert named(job) == [[9]]


def test_a_stuck_rank_of_a_tensor_group_is_found_through_the_data_groups_that_wait_for_its_neighbours() -> None:
    def entries(rank: int, tp: str, dp: str) -> Entries:
        if rank == 6:  # never enters its second tensor-parallel call
            return calls("all_reduce", group=tp, done=1)
        if tp == "tp1":  # ranks 4, 5, 7 wait for it there
            return calls("all_reduce", "all_reduce", group=tp, done=1)
        return [*calls("all_reduce", "all_reduce", group=tp, done=2), *calls("_reduce_scatter_base", group=dp)]

    job = run(*grid(4, 4, entries), world=16)
    found = waits.of(job)
    assert found.idle == (6,) and {wait.group for wait in found.waits} == {"group tp1", "group dp0", "group dp1", "group dp2", "group dp3"}
    assert named(job) == [[6]]


def test_a_tensor_group_that_all_its_members_are_in_is_held_and_none_of_them_is_blamed() -> None:
    def entries(rank: int, tp: str, dp: str) -> Entries:
        if tp == "tp1":
            return calls("all_reduce", group=tp)
        return [*calls("all_reduce", group=tp, done=1), *calls("_reduce_scatter_base", group=dp)]

    job = run(*grid(4, 4, entries), world=16)
    held = waits.of(job).held
    assert held is not None and (held.group, held.waiting) == ("group tp1", (4, 5, 6, 7))
    (finding,) = gpu_kernel_stuck.check(job)
    assert finding.culprit.ranks is None and "ranks 4, 5, 6, 7" in finding.title and named(job) == [None]


def test_with_its_dump_lost_the_rank_at_the_end_of_the_chain_is_absent_and_its_neighbours_are_not() -> None:
    def entries(rank: int, tp: str, dp: str) -> Entries:
        if tp == "tp1":
            return calls("all_reduce", group=tp)
        return [*calls("all_reduce", group=tp, done=1), *calls("_reduce_scatter_base", group=dp)]

    dumps = [dump for dump in grid(4, 4, entries) if dump.rank != 6]
    assert waits.of(run(*dumps, world=16)).absent == (6,)


def test_a_mismatch_in_one_tensor_group_names_its_minority_only() -> None:
    job = grid(8, 4, lambda rank, tp, dp: calls("all_reduce*512", "broadcast" if rank == 21 else "all_reduce*512", group=tp, done=1))
    (difference,) = recorder.differences(tuple(job))
    assert difference.odd == (21,) and difference.group == "tp5"
    assert [finding.culprit.ranks for finding in collective_mismatch.check(run(*job, world=32))] == [[21]]


def test_experts_exchange_different_sizes_and_only_the_missing_one_is_named() -> None:
    world = {"ep": tuple(range(8))}
    sent = [calls(*(f"all_to_all*{64 + rank + step}" for step in range(3 - (rank == 2))), group="ep", done=2) for rank in range(8)]
    job = run(*(dumped(rank, entries, world) for rank, entries in enumerate(sent)), world=8)
    assert named(job) == [[2]]


def stage(rank: int, dead: int, stages: int) -> Entries:
    """What a stage of a pipeline recorded: earlier ones have sent more micro-batches and wait for gradients, later ones wait for activations."""
    before = [message(at, f"recv {rank}<-{rank - 1}", state="completed", group="pp") for at in range(1, stages - rank)] if rank else []
    if rank < dead:
        sent = [message(20 + at, f"send {rank}->{rank + 1}", state="completed", group="pp") for at in range(stages - rank)]
        return [*before, *sent, message(40, f"recv {rank}<-{rank + 1}", group="pp")]
    return before if rank == dead else [*before, message(40, f"recv {rank}<-{rank - 1}", group="pp")]


@pytest.mark.parametrize("dead", [1, 4, 7])
def test_a_pipeline_waits_from_both_sides_for_the_stage_that_does_nothing(dead: int) -> None:
    stages = [dumped(rank, stage(rank, dead, 8), {"pp": tuple(range(8))}) for rank in range(8)]
    assert waits.of(run(*stages, world=8)).idle == (dead,) and named(run(*stages, world=8)) == [[dead]]
    without = run(*(dump for dump in stages if dump.rank != dead), world=8)
    assert waits.of(without).absent == (dead,) and not named(without)


def test_a_host_without_dumps_is_absent_and_none_of_its_ranks_is_blamed() -> None:
    job = run(*fsdp(16, {}, 22, 20)[:8], world=16)
    assert waits.of(job).absent == tuple(range(8, 16)) and not named(job)


def test_dumps_that_were_taken_one_after_the_other_while_the_job_went_on_blame_nobody() -> None:
    world = {"0": tuple(range(8))}
    job = run(*(dumped(rank, calls(*_turns(20 + 7 * rank), done=19 + 7 * rank), world) for rank in range(8)), world=8)
    found = waits.of(job)
    assert found.stale == tuple(range(7)) and not found.idle and not found.absent and not named(job)
