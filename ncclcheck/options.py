"""What the user asked of a run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ncclcheck.link import Link


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    probes: Sequence[str]  # in the order they are to run
    not_asked: Sequence[str] = ()  # default probes that were left out
    spared: Sequence[str] = ()  # probes that leave no question open where what they need is not installed
    roll_call_timeout: float = 60.0
    deadline: float = 900.0
    force: bool = False  # run although the GPUs are in use
    examine: bool = False  # look at the jobs that run, instead of running probes
    examine_pid: int | None = None  # on this node only at this process and its descendants
    inject: str | None = None  # fault@rank=N,after=STEPS, planted in every launch that has no fault of its own
    allow_network_faults: bool = False  # an injected fault may break this node's network for a while
    also_permitted: Sequence[str] = ()  # probes that node 0 may run here, too
    servers: Sequence[Mapping[str, Any]] = ()  # of `ncclcheck bench`: those that node 0 may start here
    probe_options: Mapping[str, Any] = field(default_factory=dict)
    emulated: str | None = None  # "2x1" on emulated nodes
    environment: Mapping[str, str] = field(default_factory=dict)  # what emulation added to each node's environment
    link: Link | None = None  # between emulated nodes, simulated


def run_id() -> str:
    """A name for a new run and its folder: when it began (UTC), and what tells it from another that began in the same second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
