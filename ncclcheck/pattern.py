"""Numbers that every rank can predict for every other rank, exact in every type, so that one wrong element is found.

Two patterns, both periodic in the index. A `mark` tells ranks apart: for data that is only moved. A `summand` is small:
at most 20 ranks hold more than 0 at any index, and none more than 12, so a sum over any number of ranks is at most 240,
which bfloat16 (integers to 256) and uint8 hold exactly. Indices and ranks are int64 tensors on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncclcheck.model import Fact

UNTOUCHED = 255  # no mark and no sum: what a result holds before the collective writes it
_MARKS = 251  # a prime below 256
_SUMMANDS = 13
_CONTRIBUTORS = 20
_KEPT = 2**20


def mark(rank: int, index: Tensor) -> Tensor:
    """What `rank` sends at these indices: 0 to 250, a different sequence for each of 62,750 ranks."""
    return (7 * rank + (1 + rank // _MARKS) * index) % _MARKS


def summand(rank: int, world_size: int, index: Tensor) -> Tensor:
    """What `rank` contributes to a reduction at these indices: 0 to 12."""
    thin = -(-world_size // _CONTRIBUTORS)
    slope = 1 + rank // _SUMMANDS % (_SUMMANDS - 1)  # so that ranks 13 apart differ
    return torch.where((rank + index) % thin == 0, (7 * rank + slope * index) % _SUMMANDS, 0)


def marks(rank: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """The first `count` marks of a rank."""
    return _tiled(mark(rank, torch.arange(_MARKS)), count, dtype, device)


def summands(rank: int, world_size: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """The first `count` summands of a rank."""
    return _tiled(summand(rank, world_size, _period(world_size)), count, dtype, device)


def sums(world_size: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """What an all-reduce (sum) of all summands must give."""
    index = _period(world_size)
    total = torch.zeros_like(index)
    for rank in range(world_size):
        total += summand(rank, world_size, index)
    return _tiled(total, count, dtype, device)


def maxima(world_size: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """What an all-reduce (max) of all summands must give."""
    index = _period(world_size)
    greatest = torch.zeros_like(index)
    for rank in range(world_size):
        greatest = torch.maximum(greatest, summand(rank, world_size, index))
    return _tiled(greatest, count, dtype, device)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a result is not what it must be: `count` elements; of the first 2**20 index (int64) and values (float64), on the CPU."""

    count: int
    index: Tensor
    expected: Tensor
    actual: Tensor


def difference(result: Tensor, expected: Tensor) -> Difference | None:
    """Compare exactly; a NaN is wrong. None where all elements are equal."""
    differs = result != expected
    if not differs.any():
        return None
    index = differs.nonzero().flatten()
    count, index = len(index), index[:_KEPT]
    return Difference(count, index.cpu(), expected[index].double().cpu(), result[index].double().cpu())


def miscounted(wrong: Difference, world_size: int, offset: int = 0) -> list[int]:
    """The rank whose summand, lost or counted twice, explains a wrong sum at every index; [] where that is not certain.

    `offset`: the index in the whole of the result's first element. Fewer wrong elements than a period can be chance.
    """
    if len(wrong.index) < _SUMMANDS:
        return []
    error = wrong.actual - wrong.expected
    suspects = [
        rank
        for rank in range(world_size)
        if torch.equal(part := summand(rank, world_size, wrong.index + offset).double(), error) or torch.equal(part, -error)
    ]
    return suspects if len(suspects) == 1 else []


def flipped(wrong: Difference, world_size: int) -> list[int]:
    """The rank whose summands (float32), each with the same one bit inverted, explain a wrong sum everywhere; [] where that is not certain.

    Bits whose inversion is lost in the sum's rounding cannot be told.
    """
    error = wrong.actual - wrong.expected
    suspects = []
    for rank in range(world_size):
        due = summand(rank, world_size, wrong.index).float()
        changed = due.view(torch.int32) ^ (due.double() + error).float().view(torch.int32)
        bit = int(changed[0]) & 0xFFFFFFFF  # the sign is one, too
        if (changed == changed[0]).all() and bit.bit_count() == 1:
            suspects.append(rank)
    return suspects if len(suspects) == 1 else []


def corruption(rank: int, operation: str, result: Tensor, wrong: Difference, culprits: list[int]) -> Fact:
    """The fact that fails a probe: what `rank` saw, and whose data it was ([]: not known, so the rank that saw it is named)."""
    dtype, nbytes = str(result.dtype).removeprefix("torch."), result.nbytes
    index, due, got = (column[0].item() for column in (wrong.index, wrong.expected, wrong.actual))
    whose = f"the data came from rank {', '.join(map(str, culprits))}" if culprits else "whose data it is cannot be told"
    title = f"{operation} ({dtype}, {nbytes} B) gave rank {rank} {wrong.count} wrong elements: {index} must be {due:g} and is {got:g}; {whose}"
    fields = {"op": operation, "dtype": dtype, "nbytes": nbytes, "index": index, "expected": due, "actual": got, "wrong": wrong.count}
    return Fact("fail", fields={"cause": "data-corruption", "title": title, "ranks": culprits or [rank], **fields})


def _period(world_size: int) -> Tensor:
    return torch.arange(_SUMMANDS * -(-world_size // _CONTRIBUTORS))


def _tiled(period: Tensor, count: int, dtype: torch.dtype, device: str) -> Tensor:
    return period.to(device, dtype).repeat(-(-count // len(period)))[:count]
