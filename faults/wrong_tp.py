"""Start the engine of one rank with another tensor parallel size than the others: a start script that was edited on one node only."""

from __future__ import annotations

import json
from collections.abc import Mapping

EXPECT = "world-size-mismatch"
SAFE = True
STRIKES = "start"
PROBES = ("vllm_engine",)
NEEDS = ("vllm",)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Twice as many as there are."""
    options = json.loads(environ["NCCLCHECK_OPTIONS"])
    return {"NCCLCHECK_OPTIONS": json.dumps({**options, "tensor_parallel": 2 * int(environ["WORLD_SIZE"])})}
