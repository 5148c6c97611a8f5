"""Flip one bit of what this rank contributes to a sum: the collective completes, and the result is wrong everywhere."""

from __future__ import annotations

import torch

from ncclcheck.collective import Collective

EXPECT = "data-corruption"
SAFE = True
STRIKES = "call"

LEAST = 64  # elements: enough to tell whose they are


def alter(call: Collective) -> list[Collective] | None:
    """The same call, with bit 21 of the elements of the tensor inverted."""
    if call.operation != "all_reduce" or call.dtype != "float32" or call.tensor.numel() < LEAST:
        return None
    call.tensor.view(torch.int32)[:LEAST] ^= 1 << 21
    return [call]
