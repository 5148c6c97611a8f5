"""Take the model away from one node: a download that failed there, or a file system that is not mounted."""

from __future__ import annotations

import json
from collections.abc import Mapping

EXPECT = "model-not-on-node"
SAFE = True
STRIKES = "start"
PROBES = ("vllm_engine",)
NEEDS = ("vllm",)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A folder that is not there."""
    options = json.loads(environ["NCCLCHECK_OPTIONS"])
    return {"NCCLCHECK_OPTIONS": json.dumps({**options, "model": "/nonexistent/model"})}
