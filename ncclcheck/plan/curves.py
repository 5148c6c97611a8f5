"""What a run says of a cluster: its all-reduces as a curve over their sizes, who took part, and what its engine saw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ncclcheck.expect.cost import Cost, Group

LOW_LATENCY = 2**15  # bytes up to which an all-reduce is mostly latency


Points = Mapping[int, float]  # bytes of an all-reduce -> seconds


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of an all-reduce by its bytes, among these ranks: the mean of the slowest rank, as many of them add up in every token; `inside` an
    engine that of the rank which comes last, as the others only wait."""

    group: Group
    points: Points
    spread: float  # what a single all-reduce differs from the median by, typically, as a share of it
    inside: Mapping[int, Points] = field(default_factory=dict)  # inside an engine: bytes that a rank has read before each -> the same
    waiting: float = 0.0  # seconds around each that are lost there: ranks wait for each other, and wake

    def cost(self, nbytes: float, read: float = 0.0) -> Cost:
        """Where each rank has read so many bytes since the last one (of which only measurements inside an engine know)."""
        if not self.inside:
            return _cost(self.points, nbytes)
        (left, right), share = _around(sorted(self.inside), min(max(read, min(self.inside)), max(self.inside)))
        return _cost(self.inside[left], nbytes).times(1 - share) + _cost(self.inside[right], nbytes).times(share)

    @property
    def latency(self) -> float:
        """Seconds of the smallest messages: the median of those that are mostly latency."""
        small = [seconds for size, seconds in self.points.items() if size <= LOW_LATENCY]
        return statistics.median(small or [min(self.points.values())])

    @property
    def bandwidth(self) -> float:
        """Busbw, bytes/s: the best of all sizes."""
        n = self.group.size
        return max(2 * (n - 1) / n * size / seconds for size, seconds in self.points.items())


def _cost(points: Points, nbytes: float) -> Cost:
    """On a line between the logarithms of the sizes; beyond the largest in proportion."""
    sizes = sorted(points)
    least = min(points.values())
    if nbytes <= sizes[0]:
        return Cost(points[sizes[0]])
    if nbytes >= sizes[-1]:
        seconds = points[sizes[-1]] * nbytes / sizes[-1]
    else:
        (left, right), share = _around(sizes, nbytes)
        seconds = math.exp((1 - share) * math.log(points[left]) + share * math.log(points[right]))
    return Cost(min(least, seconds), max(0.0, seconds - least))


def _around(sizes: Sequence[int], nbytes: float) -> tuple[tuple[int, int], float]:
    """The two neighbours of a size that lies among them (sorted), and how far from the first to the second it is, by logarithms."""
    right = max(1, next(index for index, size in enumerate(sizes) if size >= nbytes)) if len(sizes) > 1 else 0
    low, high = sizes[right - 1], sizes[right]
    return (low, high), math.log(nbytes / low) / math.log(high / low) if high > low else 0.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What the probe vllm_engine saw over all ranks: seconds of a token, and its all-reduces as in `Curve.inside`."""

    ranks: int
    token_seconds: float | None  # of the probe's own tiny model, of which it is known what it computes
    all_reduces: Mapping[int, Points]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: its all-reduces, and the cluster it saw."""

    source: str
    curve: Curve
    device: str  # "NVIDIA H100 80GB HBM3" or "CPU"
    hosts: tuple[str, ...] = ()  # a name of each node, node 0 first
    addresses: tuple[str, ...] = ()  # where the run says them
    emulated: bool = False
    engine: Engine | None = None
