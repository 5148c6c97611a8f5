"""Issue one collective more than the other ranks: a branch that only this one takes."""

from __future__ import annotations

from dataclasses import replace

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same one twice."""
    return [replace(call, tensor=call.tensor.clone()), call]
