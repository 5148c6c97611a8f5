"""Send a message that its peer never receives."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ncclcheck.collective import Collective

EXPECT = "p2p-mismatch"
SAFE = True
STRIKES = "call"

ELEMENTS = 2**22  # too many for any buffer on the way: the sender waits


def alter(call: Collective) -> list[Collective] | None:
    """A send to the next rank, before the call."""
    peer = (dist.get_rank() + 1) % dist.get_world_size()
    message = torch.zeros(ELEMENTS, device=call.tensor.device)
    return [Collective("send", message, call.group, root=peer), call]
