"""Reduce the same number of bytes as another type: no library notices, and the sum is garbage."""

from __future__ import annotations

from dataclasses import replace

import torch

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same bytes, read as int32."""
    if call.operation != "all_reduce" or call.dtype != "float32":
        return None
    return [replace(call, tensor=call.tensor.view(torch.int32))]
