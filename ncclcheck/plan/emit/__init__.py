"""Write a plan's commands in the form that something starts them in: a form is a module in this folder with `write(launch) -> str`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ncclcheck.plan.commands import Engine, Server
from ncclcheck.plan.layout import Layout


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be started where. `hosts` are addresses or names of the nodes, node 0 first, or () if nobody said them."""

    layout: Layout
    each: int  # GPUs of a node
    engine: Engine
    servers: Sequence[Server]
    hosts: Sequence[str] = ()
    only: int | None = None  # the one node that is asked for

    @property
    def wanted(self) -> list[Server]:
        """Those servers that are to be written."""
        return [server for server in self.servers if self.only in (None, server.node)]

    @property
    def spread(self) -> bool:
        """Whether a replica lies on several nodes, which then must find each other."""
        return self.layout.nodes > 1

    @property
    def nodes(self) -> int:
        """The nodes that have a server."""
        return max(server.node for server in self.servers) + 1

    def title(self) -> str:
        """One line for a comment."""
        return re.sub(r"[^\x20-\x7e]", "?", f"{self.engine.model} with {self.layout}, planned by ncclcheck")


def forms() -> list[str]:
    """The names that `--emit` takes, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def write(launch: Launch, form: str) -> str:
    """The commands in this form, ending in a newline. Raises ValueError for one that is not known, or that needs more than is known."""
    if form not in forms():
        raise ValueError(f"{form!r} is not known; choose from {', '.join(forms())}")
    text: str = importlib.import_module(f"{__name__}.{form}").write(launch)
    return text
