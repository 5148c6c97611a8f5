"""A collective as a value: what a rank is about to issue, which a planted fault may exchange for something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

HELD = 1.0  # seconds after which it is asked where the GPU is

# torch 2.13 renamed it and warns on every use of the name that torch 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, slots=True)
class Group:
    """A process group by the name that all its ranks give it; `other` is another group that this rank is in."""

    name: str
    handle: dist.ProcessGroup | None = None  # None: the world
    other: Group | None = None

    @property
    def size(self) -> int:
        """How many ranks are in it."""
        return dist.get_world_size(self.handle)


@dataclass(frozen=True, slots=True)
class Collective:
    """One call (see probe.Call). `operation` is all_reduce, broadcast, all_gather, exchange (with both neighbours of the ring), send or recv."""

    operation: str
    tensor: Tensor  # in place, but for all_gather and exchange
    group: Group
    reduce: str = "sum"  # of an all_reduce: sum or max
    root: int = 0  # of a broadcast; of a send or recv, the peer
    result: Tensor | None = None  # of an all_gather or exchange

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's part."""
        return self.tensor.nbytes

    @property
    def dtype(self) -> str:
        """float32, ..."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def group_name(self) -> str:
        """The same on all ranks, also where each is in another group of that kind."""
        return self.group.name

    @property
    def detail(self) -> str:
        """Shape, and root, peer or what is summed."""
        shape = str(list(self.tensor.shape))
        match self.operation:
            case "all_reduce":
                return f"{shape} {self.reduce}"
            case "broadcast":
                return f"{shape} from {self.root}"
            case "send" | "recv":
                return f"{shape} {'to' if self.operation == 'send' else 'from'} {self.root}"
        return shape

    def run(self, held: Callable[[str], None]) -> None:
        """Issue it; returns when it is complete. Raises what torch raises.

        Where a GPU takes longer than HELD seconds, `held` is told once whether it has begun ("started") or not ("scheduled").
        """
        before = self._mark()
        self._issue()
        if before is not None:
            _await(before, self._mark(), held)

    def _mark(self) -> torch.cuda.Event | None:
        """A point in what the GPU has to do; None on a CPU, where a collective is complete when its call returns."""
        if not self.tensor.is_cuda:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _issue(self) -> None:
        group, tensor = self.group.handle, self.tensor
        match self.operation:
            case "all_reduce":
                dist.all_reduce(tensor, dist.ReduceOp.MAX if self.reduce == "max" else dist.ReduceOp.SUM, group)
            case "broadcast":
                dist.broadcast(tensor, self.root, group)
            case "all_gather":
                assert self.result is not None
                _all_gather(self.result, tensor, group)
            case "exchange":
                assert self.result is not None
                rank, n = dist.get_rank(), dist.get_world_size()
                pair = [dist.P2POp(dist.isend, tensor, (rank + 1) % n), dist.P2POp(dist.irecv, self.result, (rank - 1) % n)]
                for work in dist.batch_isend_irecv(pair):
                    work.wait()
            case "send":
                dist.send(tensor, self.root, group)
            case "recv":
                dist.recv(tensor, self.root, group)
            case _:
                raise ValueError(f"no collective is called {self.operation!r}")


def _await(before: torch.cuda.Event, after: torch.cuda.Event | None, held: Callable[[str], None]) -> None:
    """Until the GPU has come to `after`. It is asked again and again: who sleeps in the driver can tell nothing, and may keep others from asking."""
    end = time.monotonic() + HELD
    told = False
    while after is not None and not after.query():  # type: ignore[no-untyped-call]
        if not told and time.monotonic() > end:
            held("started" if before.query() else "scheduled")  # type: ignore[no-untyped-call]
            told = True
        time.sleep(0)
