"""Where the ranks' histories of calls part, and who left the common path. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ncclcheck.history import unpack
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
    """Calls as they travelled: of thousands of ranks few are different, and only those are spelt out."""

    first: int  # number of the first call that is known
    signatures: tuple[int, ...]
    numbers: bytes | tuple[int, ...]  # of each call: which of the signatures

    @property
    def end(self) -> int:
        """Number of the call after the last that is known."""
        return self.first + len(self.numbers)

    def calls(self, first: int, end: int) -> list[int]:
        """The signatures of the calls from one number up to another, which must be known."""
        return [self.signatures[number] for number in self.numbers[first - self.first : end - self.first]]

    def at(self, seq: int) -> int | None:
        return self.calls(seq, seq + 1)[0] if self.first <= seq < self.end else None

    def habit(self, seq: int) -> int | None:
        """What this rank issued when the calls before were last the same; None where they never were."""
        at, calls = seq - self.first, self.calls(self.first, self.end)
        before = calls[at - _CONTEXT : at]
        for end in range(at - 1, _CONTEXT - 1, -1):
            if calls[end - _CONTEXT : end] == before:
                return calls[end]
        return None

    def parts_from(self, other: _History, first: int) -> int | None:
        """The number of the first call, from this one on, in which two histories differ; None where they do not as far as both are known."""
        end = max(first, min(self.end, other.end))
        mine, its = self.calls(first, end), other.calls(first, end)
        return None if mine == its else next(first + at for at, (one, two) in enumerate(zip(mine, its, strict=True)) if one != two)


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
    different = set(histories.values())
    first, longest = max(history.first for history in different), max(different, key=lambda history: history.end)
    parted = [seq for history in different if (seq := history.parts_from(longest, first)) is not None]  # who differ, differ from the longest, too
    if not parted:
        return None
    seq = min(parted)
    issued = {rank: call for rank, history in histories.items() if (call := history.at(seq)) is not None}
    texts = {number: text for fact in run.of("calls") for number, text in zip(fact.get("signatures"), fact.get("texts"), strict=True)}
    odd, by_habit = _odd(seq, issued, histories)
    return Divergence(seq, {rank: texts[call] for rank, call in issued.items()}, odd, by_habit)


def _history(fact: Fact) -> _History:
    numbers = unpack(fact.get("calls"))
    first = int(fact.get("last")) - len(numbers) + 1
    return _History(first, tuple(fact.get("signatures")), numbers)


def _odd(seq: int, issued: Mapping[int, int], histories: Mapping[int, _History]) -> tuple[tuple[int, ...], bool]:
    """The ranks that did something else, and whether that was told by their habits."""
    (most, count), (_, second) = Counter(issued.values()).most_common(2)
    if count > second:
        return tuple(rank for rank, call in sorted(issued.items()) if call != most), False
    habit = {history: history.habit(seq) for history in {histories[rank] for rank in issued}}
    habits = {rank: habit[histories[rank]] for rank in issued}
    unusual = tuple(rank for rank, call in sorted(issued.items()) if habits[rank] is not None and habits[rank] != call)
    if unusual and len(unusual) < len(issued) and all(habits[rank] is not None for rank in issued):
        return unusual, True
    return tuple(sorted(issued)), False
