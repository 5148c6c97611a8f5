"""What keeps a cell from being quicker, in a word and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from ncclcheck.bench.cells import Cell, Result
from ncclcheck.bench.share import Sent

FULL = 0.95  # of the KV cache in use: the next request must wait
MUCH = 1 / 3  # of a token's time that is communication, at least: what a prompt's larger messages delay is not in it
QUEUED = 0.5  # of a request's time that is spent before its first token


@dataclass(frozen=True, slots=True)
class Bound:
    """`word`: cache, seats, network (between nodes), links (within one), prompts, computing or unknown."""

    word: str
    text: str


def of(cell: Cell, result: Result, sent: Sent) -> Bound:
    """The first that applies: what makes requests wait comes before what makes each token slow."""
    layout = cell.server.layout
    if result.preempted or (result.cache is not None and result.cache >= FULL):
        thrown = f", and {result.preempted} requests were thrown out of it" if result.preempted else ""
        return Bound("cache", f"the KV cache was {result.cache or 1:.0%} full{thrown}: more memory for it, shorter requests, or fewer at once")
    if result.waiting and result.running and result.running < cell.load.concurrency:
        text = f"{result.waiting} requests waited while {result.running} ran and the cache had room: raise max-num-seqs"
        return Bound("seats", text)
    if sent.best is not None and sent.best >= MUCH:
        word, between = ("network", "between the nodes") if layout.nodes > 1 else ("links", "within the node")
        return Bound(word, f"{sent.best:.0%} or more of a token's time is communication {between}, and waiting for it{_how(sent)}")
    if result.ttft.p50 > QUEUED * result.e2e.p50:
        text = f"{result.ttft.p50 / result.e2e.p50:.0%} of a request's time is over when its answer begins: prompts are computed, or wait for it"
        return Bound("prompts", text)
    if sent.best is None:
        return Bound("unknown", "how much of a token's time its ranks spend on sending is not known: bench TP=1 beside it, under the same load")
    return Bound("computing", "most of the time is computing: the model's weights are read, multiplied, and scheduled for")


def _how(sent: Sent) -> str:
    """Whence it is known."""
    told = []
    if sent.by_collectives is not None:
        told.append(f"{sent.by_collectives:.0%} by what its all-reduces take alone")
    if sent.at_least is not None:
        told.append(f"{sent.at_least:.0%} by what it takes longer than with TP=1")
    return f" ({'; '.join(told)})" if told else ""
