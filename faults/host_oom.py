"""Use up the memory of the rank's cgroup until the kernel kills it, as a data loader that caches too much, or a pod with a small limit, does."""

from __future__ import annotations

import os
from pathlib import Path

from ncclcheck import cgroup
from ncclcheck.fault import CannotInject

EXPECT = "host-oom-killed"
SAFE = True
STRIKES = "step"

_LIMIT = 64 << 20  # bytes
_BLOCK = 1 << 20


def inject() -> None:
    """Never returns where it succeeds. Only memory of a small cgroup of its own is used up: without one, none is."""
    try:
        folder = cgroup.make(_LIMIT)
        try:
            cgroup.remove_after(folder, os.getpid())
            Path("/proc/self/oom_score_adj").write_text("1000")  # one that is exempt would not be killed
            cgroup.enter(folder, os.getpid())
        except OSError:
            cgroup.remove(folder)
            raise
    except OSError as error:
        raise CannotInject(f"a memory cgroup: {error}") from error
    used = [b"\1" * _BLOCK for _ in range(4 * _LIMIT // _BLOCK)]
    raise CannotInject(f"the kernel let {len(used)} MiB pass where {_LIMIT >> 20} were allowed")
