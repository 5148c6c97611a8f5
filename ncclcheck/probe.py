"""What a probe is, and what it may use: its rank's identity, its announcements, and a clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from ncclcheck.fault import Planted
from ncclcheck.journal import Journal
from ncclcheck.model import Device, Fact, RankId, Sample

FIRST_BOUND = 20.0  # seconds without progress that are normal in the first operation of a kind (connections are made)
STALL_FLOOR = 2.0  # seconds without progress that are always normal
STALL_FACTOR = 10  # times the median of the same operation and size


class Probe(Protocol):
    """A module in probes/ is a probe if it has these.

    Its docstring is its documentation: a title line, then the parts "What it checks", "What a failure means" and
    "Run it alone". It may also have: `TIMEOUT` (seconds for the whole probe), `MIN_RANKS`, `DEFAULT` (part of the
    default suite), `NEEDS` (distributions that must be installed, such as ("vllm", "ray>=2.55")), `GROUP` (False: the probe makes
    its own process group), `TIMEOUT_WITH_MODEL` (in place of TIMEOUT where --model is given), `ORDER` (its place in the
    suite), `PACED` (its loop keeps a steady pace, in which a slow rank or network shows), `CALLS` (it issues its
    collectives by `Rank.issue`, so that a fault may exchange them), `MEASURES` (nothing that costs time is recorded)
    and `INJECT` (the fault to plant in it; the probe passes when the fault is found and blamed).
    With `WHERE = "nodes"` it is another kind of probe, which runs on no rank: see survey.NodeProbe.
    """

    TIMEOUT: float
    MIN_RANKS: int

    def run(self, rank: Rank) -> Iterator[Sample | Fact]:
        """Yield samples and facts; each is journalled at once, so a hang loses nothing.

        A fact of kind "fail" (fields: cause, title, and whatever proves it) fails the probe.
        """
        ...


class Call(Protocol):
    """A collective that is ready to run, and what of it must be equal on all ranks of its group."""

    @property
    def operation(self) -> str:
        """all_reduce, broadcast, ..."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's part."""
        ...

    @property
    def dtype(self) -> str:
        """float32, ..."""
        ...

    @property
    def group_name(self) -> str:
        """The same on all ranks, also where each is in another group of that kind."""
        ...

    @property
    def detail(self) -> str:
        """Shape, root, what is summed."""
        ...

    def run(self, held: Callable[[str], None]) -> None:
        """Returns when it is complete, on a GPU too; tells `held` where the GPU is, if that takes long."""
        ...


class Rank:
    """This process's view of the job, for probes: who it is, what it computes on, and how it announces its steps."""

    def __init__(self, identity: RankId, world_size: int, journal: Journal, options: Mapping[str, Any], planted: Planted | None = None) -> None:
        """`planted` is the fault of which this rank is the victim."""
        self.identity = identity
        self.world_size = world_size
        self.options = options  # what the command line asked for: "max_bytes", "budget", "model", ...
        self._journal = journal
        self._planted = planted
        self._inject = planted.before if planted else None
        self._longest: dict[tuple[str, int], float] = {}  # (step, bytes) -> seconds the longest one took here

    @property
    def rank(self) -> int:
        """This process's rank in the job."""
        return self.identity.rank

    @property
    def device(self) -> Device:
        """The GPU this rank computes on; `device.index` is None on a CPU."""
        return self.identity.device

    @property
    def torch_device(self) -> str:
        """The same for torch: `cuda:0` or `cpu`."""
        return "cpu" if self.device.index is None else f"cuda:{self.device.index}"

    @contextmanager
    def step(
        self, name: str, *, nbytes: int = 0, dtype: str = "", group: str = "world", bound: float | None = None, opaque: bool = False, detail: str = ""
    ) -> Iterator[Announced]:
        """Announce a collective before entering it, so that a hang inside it has a name.

        `bound`: seconds without progress anywhere that are normal while inside. None: ten times what this operation took
        at this size so far (at least 2 s), and 20 s for the first. What is announced, `detail` included (a root, a shape), must be
        the same on every rank: ranks that differ in their n-th collective are a finding.
        """
        if self._inject:
            self._inject(self._journal.seq + 1)  # before any word of it: the victim never entered this step
        longest = self._longest.get((name, nbytes))
        if bound is None:
            bound = FIRST_BOUND if longest is None else max(STALL_FLOOR, STALL_FACTOR * longest)
        start = time.perf_counter()
        self._journal.enter(name, nbytes=nbytes, dtype=dtype, group=group, bound=bound, opaque=opaque, detail=detail)
        self._journal.line("enter", step=name, nbytes=nbytes, dtype=dtype, group=group)
        yield Announced(self._journal, self._inject)
        self._left(name)
        self._longest[name, nbytes] = max(longest or 0.0, time.perf_counter() - start)

    def issue(self, call: Call) -> None:
        """Announce a collective as what it is and run it to its end. For loops: it writes no line, only shared memory."""
        if self._inject:
            self._inject(self._journal.seq + 1)
        for given in [call] if self._planted is None else self._planted.alter(self._journal.seq + 1, call):
            kind = (given.operation, given.nbytes)
            longest = self._longest.get(kind)
            bound = FIRST_BOUND if longest is None else max(STALL_FLOOR, STALL_FACTOR * longest)
            start = time.perf_counter()
            self._journal.enter(given.operation, nbytes=given.nbytes, dtype=given.dtype, group=given.group_name, bound=bound, detail=given.detail)
            given.run(partial(self._held, given))
            self._journal.leave()
            self._longest[kind] = 0.0 if longest is None else max(longest, time.perf_counter() - start)  # the first one also made connections

    def _held(self, call: Call, state: str) -> None:
        """Note where this rank's GPU is in a collective that takes long: "started", or "scheduled" behind something else."""
        fields = {"group": call.group_name, "what": f"{call.operation} {call.detail}", "seq": self._journal.seq, "state": state}
        self._journal.line("fact", fact="recorded", fields=fields)

    @contextmanager
    def local(self, name: str, *, bound: float = FIRST_BOUND, opaque: bool = False) -> Iterator[Announced]:
        """Announce work that needs no peer and may take over a second: filling a tensor, loading a model."""
        self._journal.enter(name, local=True, bound=bound, opaque=opaque)
        self._journal.line("local", step=name)
        yield Announced(self._journal, None)  # a fault is planted before a collective, not before local work
        self._left(name)

    def _left(self, name: str) -> None:
        """Not reached on an exception: then the rank never left, and the agent sees that."""
        self._journal.leave()
        self._journal.line("leave", step=name)


class Announced:
    """An operation that was announced; use `repeat` to announce and time its iterations one by one."""

    def __init__(self, journal: Journal, inject: Callable[[int], None] | None) -> None:
        self._journal = journal
        self._inject = inject

    def repeat(self, operation: Callable[[], object], iterations: int) -> list[float]:
        """Run the operation `iterations` times, announcing each; the seconds of each. For operations that return when done.

        The first iteration belongs to the announcement that opened the step.
        """
        seconds: list[float] = []
        while len(seconds) < iterations:
            most = 1 if len(seconds) < 2 else iterations - len(seconds)
            seconds += self._journal.repeat(operation, most, self._inject, opened=not seconds, slow=STALL_FLOOR / STALL_FACTOR)
            settled = seconds[1:] or seconds  # the first one also made connections
            self._journal.expect(max(STALL_FLOOR, STALL_FACTOR * statistics.median(settled)))
        return seconds

    def phase(self, name: str) -> None:
        """Note how far an operation came whose inside announces nothing: a verdict on it names the phase."""
        self._journal.line("phase", phase=name)

    def next(self) -> None:
        """Announce the next iteration before issuing it: one write to shared memory."""
        if self._inject:
            self._inject(self._journal.seq + 1)
        self._journal.again()

    def issued(self, iterations: int) -> None:
        """Announce that `iterations` more were issued at once and not yet seen to complete (CUDA graphs, event timing)."""
        for _ in range(iterations):
            self.next()
