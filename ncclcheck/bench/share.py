"""How much of a token's time is communication, by what its all-reduces take alone and by what the same model takes on one rank.

A token's time is here that of a whole request by its tokens out, since a server short of CPUs hands tokens out in bunches, which
makes the first one late and the time between tokens short.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ncclcheck.bench.cells import Cell, Layout, Result, Server
from ncclcheck.plan import layout as layouts
from ncclcheck.plan import predict
from ncclcheck.plan.curves import Curve
from ncclcheck.plan.shape import Shape

HALF = 0.5  # an all-gather moves half of what an all-reduce of its result does


@dataclass(frozen=True, slots=True)
class Sent:
    """Shares of a token's time. Each is None where it cannot be said.

    `by_collectives`: as many all-reduces as a step has, each as long as it took among these ranks without vLLM.
    `at_least`, `at_most`: what a token takes longer than on one rank, and than on one rank that were TP times as quick.
    """

    by_collectives: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def best(self) -> float | None:
        """The one to go by: both are less than what is spent, as ranks wait for each other, too, and compute less than one alone."""
        return max((share for share in (self.by_collectives, self.at_least) if share is not None), default=None)


def of(cell: Cell, results: Mapping[Cell, Result], shape: Shape | None, curve: Curve | None, on_cpu: bool) -> Sent:
    """For one cell that was measured. Ranks without GPUs use shared memory within a node, of which an all-reduce by Gloo says nothing."""
    if cell not in results:
        return Sent()
    layout, token = cell.server.layout, per_token(results[cell], cell)
    if layout.ranks == 1:
        return Sent(0.0, 0.0, 0.0)
    alone = results.get(Cell(Server(Layout(), cell.server.settings), cell.load))
    least = most = None
    if alone and token:
        least = min(1.0, max(0.0, 1 - per_token(alone, cell) / token))
        most = min(1.0, max(least, 1 - per_token(alone, cell) / layout.tp / token))
    seconds = None
    if shape and curve and layout.pp == 1 and not (on_cpu and layout.nodes == 1):
        prompt = collectives(shape, layout, curve, cell.load.input, 1) / cell.load.output
        seconds = prompt + collectives(shape, layout, curve, cell.load.concurrency, cell.load.concurrency)
    return Sent(min(1.0, seconds / token) if seconds is not None and token else None, least, most)


def per_token(result: Result, cell: Cell) -> float:
    """Seconds of a request (median) for each of its tokens out."""
    return result.e2e.p50 / cell.load.output


def collectives(shape: Shape, layout: Layout, curve: Curve, tokens: int, sampled: int) -> float:
    """Seconds that the collectives of one step take, which computes so many tokens and gives so many of them a successor."""
    sent = predict.traffic(shape, layouts.Layout(layout.tp, layout.pp, 1, layout.nodes), tokens, sampled)
    return sent.all_reduces * curve.cost(sent.all_reduce_bytes).seconds + HALF * sent.gathers * curve.cost(sent.gather_bytes).seconds
