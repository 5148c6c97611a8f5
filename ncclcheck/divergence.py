"""Where the ranks' histories of calls part, and who left the common path. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ncclcheck.model import Evidence, Fact, Run

ENGINE = "vllm engine start"
_CONTEXT = 4  # calls before a place by which a rank's earlier passes through the same place are recognised


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first call in which ranks differ: what each issued there, and who did something else than the others (all, where that cannot be told)."""

    seq: int
    issued: Mapping[int, str]
    odd: tuple[int, ...]
    by_habit: bool  # it was told by what each rank had issued in earlier passes


@dataclass(frozen=True, slots=True)
class _History:
    first: int  # number of the first call that is known
    calls: Sequence[int]  # signatures

    def at(self, seq: int) -> int | None:
        return self.calls[seq - self.first] if self.first <= seq < self.first + len(self.calls) else None

    def habit(self, seq: int) -> int | None:
        """What this rank issued when the calls before were last the same; None where they never were."""
        at = seq - self.first
        before = self.calls[at - _CONTEXT : at]
        for end in range(at - 1, _CONTEXT - 1, -1):
            if self.calls[end - _CONTEXT : end] == before:
                return self.calls[end]
        return None


def of(run: Run) -> Divergence | None:
    """The first place where histories (facts of kind "calls") differ; None where they agree, or fewer than two are known."""
    return run.once(_of)


def known(run: Run) -> bool:
    """Whether the ranks' calls are known: then only they tell whether ranks issued different ones."""
    return len(run.of("calls")) > 1


def cause(found: Divergence) -> str:
    """What it is a sign of: a message without a counterpart, engines of different size, or simply another collective."""
    if any(call.startswith(("send ", "recv ")) for call in found.issued.values()):
        return "p2p-mismatch"
    if all(call.startswith(ENGINE) for call in found.issued.values()):
        return "world-size-mismatch"
    return "collective-mismatch"


def said(run: Run, found: Divergence) -> str:
    """`rank 2 (gpu-1) issued broadcast from 1 as its collective #31, where 3 ranks issued broadcast from 0`."""
    calls = {rank: found.issued[rank] for rank in found.odd}
    others = [call for rank, call in found.issued.items() if rank not in calls]
    mine = "; ".join(f"{run.name(rank)} issued {call}" for rank, call in list(calls.items())[:4])
    if not others:
        return f"the ranks differ in their collective #{found.seq}, and nothing tells which is wrong: {mine}"
    count = f"{len(others)} ranks" if len(others) > 1 else f"rank {next(rank for rank in found.issued if rank not in calls)}"
    habit = "; its own earlier passes show that the other one is the rule" if found.by_habit else ""
    return f"{mine} as collective #{found.seq}, where {count} issued {others[0]}{habit}"


def quotes(run: Run, found: Divergence) -> list[Evidence]:
    """What each rank issued there, as its history in shared memory shows it; the odd ones first, at most eight."""
    order = [*found.odd, *(rank for rank in found.issued if rank not in found.odd)]
    return [Evidence("", 0, f"{run.name(rank)} issued as collective #{found.seq}: {found.issued[rank]}") for rank in order[:8]]


def _of(run: Run) -> Divergence | None:
    histories = {fact.rank: _history(fact) for fact in run.of("calls") if fact.rank is not None and fact.get("calls")}
    if len(histories) < 2:
        return None
    first = max(history.first for history in histories.values())
    last = max(history.first + len(history.calls) for history in histories.values())
    for seq in range(first, last):
        issued = {rank: call for rank, history in histories.items() if (call := history.at(seq)) is not None}
        if len(issued) < 2:
            break
        if len(set(issued.values())) > 1:
            texts = {number: text for fact in run.of("calls") for number, text in zip(fact.get("signatures"), fact.get("texts"), strict=True)}
            odd, by_habit = _odd(seq, issued, histories)
            return Divergence(seq, {rank: texts[call] for rank, call in issued.items()}, odd, by_habit)
    return None


def _history(fact: Fact) -> _History:
    signatures, calls = fact.get("signatures"), fact.get("calls")
    return _History(int(fact.get("last")) - len(calls) + 1, [signatures[number] for number in calls])


def _odd(seq: int, issued: Mapping[int, int], histories: Mapping[int, _History]) -> tuple[tuple[int, ...], bool]:
    """The ranks that did something else, and whether that was told by their habits."""
    (most, count), (_, second) = Counter(issued.values()).most_common(2)
    if count > second:
        return tuple(rank for rank, call in sorted(issued.items()) if call != most), False
    habits = {rank: histories[rank].habit(seq) for rank in issued}
    unusual = tuple(rank for rank, call in sorted(issued.items()) if habits[rank] is not None and habits[rank] != call)
    if unusual and len(unusual) < len(issued) and all(habits[rank] is not None for rank in issued):
        return unusual, True
    return tuple(sorted(issued)), False
