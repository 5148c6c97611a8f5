"""Reduce a tensor of another shape than the other ranks: half as many elements."""

from __future__ import annotations

from dataclasses import replace

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same with the first half of the tensor."""
    if call.operation != "all_reduce" or call.tensor.numel() < 2:
        return None
    return [replace(call, tensor=call.tensor[: call.tensor.numel() // 2])]
