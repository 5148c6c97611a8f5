"""Index out of bounds in a GPU kernel: the device asserts, and every later CUDA call of the process fails."""

from __future__ import annotations

EXPECT = "rank-died-exception"
SAFE = True
STRIKES = "step"
NEEDS = ("gpu",)


def inject() -> None:
    """Raises torch.AcceleratorError (RuntimeError before torch 2.8)."""
    import torch

    data = torch.zeros(4, device="cuda")
    data[torch.tensor([1 << 20], device="cuda")] = 1.0
    torch.cuda.synchronize()
