"""Start this rank long after the others: a slow disk, a container image that had to be fetched, a queue."""

from __future__ import annotations

import threading
from collections.abc import Mapping

EXPECT = "slow-rank"
SAFE = True
STRIKES = "start"

LATE = 10.0  # seconds


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Changes nothing, and takes LATE seconds to do so."""
    threading.Event().wait(LATE)
    return {}
