"""What ranks without a process group tell each other, by the store at which a launch meets: words, and where a server is to be."""

from __future__ import annotations

import os
import socket
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from ncclcheck.ports import free_port
from ncclcheck.probe import Rank

BOUND = 120.0  # seconds in which all ranks of a launch have come to the store
LOOK = 0.3  # seconds between two looks at it
LEAVE_BOUND = 30.0  # seconds for which rank 0, which may keep the store, stays for the others


def store(rank: Rank, seconds: float) -> Any:
    """The launch's store, at which all of its ranks come together within so many seconds; no process group is made."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://", rank.rank, rank.world_size, timeout=timedelta(seconds=seconds))))[0]


class Meeting(AbstractContextManager["Meeting"]):
    """This launch's store. On leaving in good order, ranks wait for each other."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        with rank.local("meet", bound=BOUND, opaque=True):
            self._store = store(rank, BOUND)

    def say(self, word: str, value: str = "yes") -> None:
        """Leave a word for the others."""
        self._store.set(word, value)

    def said(self, word: str) -> bool:
        """Whether it was left."""
        return bool(self._store.check([word]))

    def heard_within(self, word: str, seconds: float) -> bool:
        """Whether it is left before so many seconds have passed."""
        end = time.monotonic() + seconds
        while not self.said(word):
            if time.monotonic() > end:
                return False
            time.sleep(LOOK)
        return True

    def wait(self, word: str, seconds: float) -> None:
        """Until it is left. Raises TimeoutError."""
        if not self.heard_within(word, seconds):
            raise TimeoutError(f"no word {word!r} from rank 0 within {seconds:g} s")

    def place(self, first: bool) -> tuple[str, int, int]:
        """Where a server is to be: the `first` node's address, a port on it where its parts meet, and one for requests. That node chooses."""
        if first:
            address = os.environ.get("VLLM_HOST_IP") or os.environ.get("MASTER_ADDR") or "127.0.0.1"
            self.say("place", f"{socket.gethostbyname(address)} {free_port('')} {free_port('')}")
        self.wait("place", BOUND)
        address, meeting, port = self._store.get("place").decode().split()
        return address, int(meeting), int(port)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            left = self._store.add("left", 1)
            end = time.monotonic() + LEAVE_BOUND
            while self._rank.rank == 0 and left < self._rank.world_size and time.monotonic() < end:
                time.sleep(LOOK)
                left = self._store.add("left", 0)
