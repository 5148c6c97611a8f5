"""Start a GPU kernel that does not end: what is issued after it waits in its stream for ever."""

from __future__ import annotations

EXPECT = "gpu-kernel-stuck"
SAFE = True
STRIKES = "step"
NEEDS = ("gpu",)


def inject() -> None:
    """Returns at once; the GPU is busy from then on."""
    import torch

    torch.cuda._sleep(1 << 62)  # type: ignore[no-untyped-call]
