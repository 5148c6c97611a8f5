"""Allocate GPU memory until there is none, as a batch that is too large on one rank does."""

from __future__ import annotations

EXPECT = "rank-died-oom"
SAFE = True
STRIKES = "step"
NEEDS = ("gpu",)


def inject() -> None:
    """Raises torch.OutOfMemoryError."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    torch.empty(2 * free, dtype=torch.uint8, device="cuda")
