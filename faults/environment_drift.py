"""Set NCCL_ALGO on one rank only, as a line in one node's shell profile does."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "nccl-env-misconfig"
SAFE = True
STRIKES = "start"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """An algorithm that the others were not told."""
    return {"NCCL_ALGO": "Tree"}
