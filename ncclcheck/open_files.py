"""How many files the agent may have open: more than its ranks, which get what the user was given."""

from __future__ import annotations

import contextlib
import os
import resource

_GIVEN = "NCCLCHECK_OPEN_FILES"  # the soft limit of the user, for what the agent starts


def room(wanted: int) -> int:
    """How many more files may be opened; where `wanted` are too many, the soft limit is raised to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    if resource.RLIM_INFINITY != soft != hard and taken + wanted > soft:
        os.environ.setdefault(_GIVEN, str(soft))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return wanted if soft == resource.RLIM_INFINITY else max(0, soft - taken)


def as_given() -> None:
    """Take back in this process, which an agent has started, what the agent raised for itself."""
    with contextlib.suppress(KeyError, ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ.pop(_GIVEN)), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
