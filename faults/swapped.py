"""Issue two collectives in the other order than all other ranks do, as code with an unordered set or with threads may."""

from __future__ import annotations

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"
TIMES = 2

_held: list[Collective] = []


def alter(call: Collective) -> list[Collective] | None:
    """Nothing in place of the first call, and both in place of the second."""
    if _held:
        return [call, _held.pop()]
    if call.operation != "all_reduce" or call.group_name != "world":
        return None
    _held.append(call)
    return []
