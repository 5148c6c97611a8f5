"""Load another NCCL than the other ranks: a second libnccl.so.2 that LD_PRELOAD brings in."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "nccl-version-mismatch"
SAFE = True
STRIKES = "start"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnccl.so.2"  # as the distribution's packages install it
NEEDS = ("gpu", "/usr/lib/x86_64-linux-gnu/libnccl.so.2")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The system's library, where there is one."""
    return {"LD_PRELOAD": LIBRARY}
