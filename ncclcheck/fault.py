"""What a fault is, and how one is planted: before a step or in a call of one rank, in how that rank starts, or on its node."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from ncclcheck import registry
from ncclcheck.units import parse_seconds

VARIABLE = "NCCLCHECK_INJECT"
_STRUCK = "NCCLCHECK_STRUCK"


@dataclass(frozen=True, slots=True)
class Place:
    """The node on which a fault strikes, for faults that break more than their victim's process."""

    interface: str  # leads to the other nodes
    address: str  # this node's own there
    peers: Sequence[str]  # the other nodes' addresses
    ports: Sequence[int]  # TCP ports of the agents and of the rendezvous: those that a firewall would have been opened for
    pid: int = 0  # the victim's process on this node


class CannotInject(Exception):
    """This machine cannot do it; args: why."""


class Fault(Protocol):
    """A module in faults/ is a fault if it has these, and one of the functions below.

    Its docstring says what happens. `EXPECT` is the cause that must be named, `SAFE` whether no node's network is touched,
    and `STRIKES` says where: "step" (before a collective of the victim: `inject()`), "call" (in what the victim issues:
    `alter(call)`), "start" (in how the victim starts: `environment(environ)`), "launcher" (in the victim's torchrun:
    `launcher(arguments)`) or "node" (on the victim's node: `inject(place)`, a context manager that undoes it in the end).
    It may also have: `NEEDS` (what it cannot be planted without: "gpu", "vllm", "two-nodes", "two-ranks-on-a-node", or a
    path), `PROBES` (the jobs that a drill plants it in, if not training), `BLAMES` (what the culprit must name, if not the
    rank: "pair" for two ranks that clash, "node", "link" or "master") and `TIMES` (of a "call": in how many).
    """

    EXPECT: str
    SAFE: bool
    STRIKES: str


@contextlib.contextmanager
def victim(place: Place) -> Iterator[int]:
    """The victim's process, as a descriptor: a signal by it reaches this process or none. Raises CannotInject where it is gone."""
    try:
        pidfd = os.pidfd_open(place.pid)
    except OSError as error:
        raise CannotInject(f"the rank's process {place.pid}: {error.strerror}") from error
    try:
        yield pidfd
    finally:
        os.close(pidfd)


class NodeFault(Protocol):
    """A fault that strikes on a node."""

    def inject(self, place: Place) -> AbstractContextManager[None]:
        """Break it; mend it on leaving. Raises CannotInject."""
        ...


@dataclass(frozen=True, slots=True)
class Spec:
    """One planted fault: `kill@rank=1,after=20,delay=0.5s`."""

    name: str
    rank: int  # the victim; of a fault that strikes a node, the rank whose node it is
    after: int = 0  # collectives that the victim completes first
    delay: float = 0.0  # seconds from then on

    def __str__(self) -> str:
        return f"{self.name}@rank={self.rank},after={self.after}" + (f",delay={f'{self.delay:f}'.rstrip('0').rstrip('.')}s" if self.delay else "")

    @property
    def plugin(self) -> registry.Plugin:
        """What the fault's file says of it."""
        return registry.describe("faults", self.name)

    @property
    def strikes(self) -> str:
        """step, call, start, launcher or node."""
        return str(self.plugin.get("STRIKES", "step"))


def parse(text: str) -> Spec:
    """`hang@rank=1,after=20` -> Spec("hang", 1, 20). Raises ValueError, or KeyError for an unknown fault."""
    match = re.fullmatch(r"(\w+)@rank=(\d+)(?:,after=(\d+))?(?:,delay=([\d.]+\w*))?", text)
    if not match:
        raise ValueError(f"{text!r} is not a fault to inject; write FAULT@rank=N,after=STEPS, for example hang@rank=1,after=20")
    registry.describe("faults", match[1])
    return Spec(match[1], int(match[2]), int(match[3] or 0), parse_seconds(match[4]) if match[4] else 0.0)


def given(environ: Mapping[str, str]) -> Spec | None:
    """The fault that this launch is to have."""
    return parse(environ[VARIABLE]) if environ.get(VARIABLE) else None


@dataclass(slots=True)
class Planted:
    """A fault in its victim. `struck` is called once, before anything happens; `refused` with the reason where it cannot be done."""

    spec: Spec
    struck: Callable[[], None]
    refused: Callable[[str], None]
    _module: ModuleType = field(init=False)
    _times: int = field(init=False, default=0)
    _timer: threading.Timer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._module = registry.load("faults", self.spec.name)

    def before(self, seq: int) -> None:
        """Called before each collective, with its number."""
        if self.spec.strikes != "step" or seq <= self.spec.after:
            return
        if self.spec.delay:
            if self._timer is None:
                self._timer = threading.Timer(self.spec.delay, self._strike)
                self._timer.daemon = True
                self._timer.start()
        else:
            self._strike()

    def alter(self, seq: int, call: Any) -> list[Any]:
        """What the victim issues in place of a call: mostly that call."""
        if self.spec.strikes != "call" or seq <= self.spec.after or self._times >= self._module.__dict__.get("TIMES", 1):
            return [call]
        calls: list[Any] | None = self._module.alter(call)
        if calls is None:  # not in this one
            return [call]
        self._once()
        return calls

    def _strike(self) -> None:
        self._once()
        try:
            self._module.inject()
        except CannotInject as reason:
            self.refused(str(reason))

    def _once(self) -> None:
        if not self._times:
            self.struck()
        self._times += 1


def planted(rank: int, struck: Callable[[], None], refused: Callable[[str], None]) -> Planted | None:
    """The fault that this rank is the victim of, by its environment; None on the others."""
    spec = given(os.environ)
    return Planted(spec, struck, refused) if spec and spec.rank == rank and spec.strikes in ("step", "call") else None


def start(rank: int) -> float | None:
    """In a rank that has just started: change its environment, where it is the victim of such a fault; when that was (monotonic)."""
    spec = given(os.environ)
    if spec is None or spec.rank != rank or spec.strikes != "start":
        return None
    if _STRUCK in os.environ:  # we are what it became
        return float(os.environ[_STRUCK])
    began = time.monotonic()
    changed: Mapping[str, str] = registry.load("faults", spec.name).environment(dict(os.environ))
    os.environ |= {**changed, _STRUCK: str(began)}
    if "LD_PRELOAD" in changed:  # only counts for a program that starts with it
        os.execv(sys.executable, sys.orig_argv)
    return began
