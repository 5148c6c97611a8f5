"""Start no rank on one node: its torchrun leaves at once, and all others wait at the rendezvous."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXPECT = "missing-rank-at-rendezvous"
SAFE = True
STRIKES = "launcher"
BLAMES = "node"
PROBES = ("training", "vllm_engine")


def launcher(arguments: Sequence[str]) -> None:
    """Never returns."""
    sys.exit(0)
