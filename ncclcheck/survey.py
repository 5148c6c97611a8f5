"""What was read of every node before any rank starts, and the words in which a probe that judges it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ncclcheck.model import Fact

Section = Mapping[str, Any]  # what one module of collect/ read, as JSON has it; {"error": why} where it could not


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be launched."""

    nnodes: int
    nproc_per_node: int
    master: str
    model: str | None = None  # a folder, or a name in the Hugging Face cache
    emulated: bool = False
    meets: Sequence[str] = ()  # the addresses of node 0, at any of which ranks may meet
    tp: int | None = None  # slices of each layer, and stages of layers, that an engine is to have; None: nobody said
    pp: int | None = None
    max_model_len: int | None = None  # tokens of the longest request; None: the model's own

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nnodes * self.nproc_per_node

    @property
    def cut(self) -> tuple[int, int]:
        """TP and PP of an engine over all ranks: layers are sliced over all of them, where nothing else was said."""
        stages = self.pp or 1
        return self.tp or max(1, self.ranks // stages), stages


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its number, its host name, the address by which the others know it, and what was read there, by section."""

    node_rank: int
    host: str
    address: str
    sections: Mapping[str, Section] = field(default_factory=dict)

    def read(self, name: str) -> Section | None:
        """A section; None where it is missing or could not be read (`why` says why)."""
        section = self.sections.get(name)
        return None if section is None or "error" in section else section

    def why(self, name: str) -> str:
        """Why a section could not be read; empty where it was."""
        return str(self.sections.get(name, {"error": "it was not asked for"}).get("error", ""))


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that is known before a launch. `ways`: facts of kind "way", one for each direction, pair and interface that was tried."""

    job: Job
    nodes: Sequence[Node]
    ways: Sequence[Fact] = ()


class NodeProbe(Protocol):
    """A module in probes/ with `WHERE = "nodes"`: it starts no rank, and needs no torch.

    `READS`: the modules of collect/ whose `section(question)` it wants from every node; `WAYS`: whether it wants the ways between
    them tried. ORDER, DEFAULT and TIMEOUT are those of other probes.
    """

    READS: Sequence[str]

    def judge(self, survey: Survey) -> Iterator[Fact]:
        """Pure. What is wrong, by `stop` and `degrades`; what is worth knowing, by `note`; what could not be read, by `unread`."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What a node is asked: `environment` is what its ranks would get beside this process's own; `peers` are the others' addresses."""

    environment: Mapping[str, str] = field(default_factory=dict)
    nproc_per_node: int = 1
    master: str = ""
    address: str = ""
    peers: Sequence[str] = ()
    model: str | None = None


def stop(cause: str, title: str, hosts: Sequence[str], remedy: str, **more: Any) -> Fact:
    """A launch would fail, or hang, or give wrong results.

    `more`: evidence (lines as observed, each "where: text"), interface, link ("a -> b"), devices, confidence (0.95 if not given).
    """
    return _said("fail", cause, title, hosts, remedy, more)


def degrades(cause: str, title: str, hosts: Sequence[str], remedy: str, **more: Any) -> Fact:
    """A launch would work, and slower or less safely than it could. `more` as for `stop`."""
    return _said("degraded", cause, title, hosts, remedy, more)


def note(title: str, hosts: Sequence[str], **more: Any) -> Fact:
    """Worth knowing, and no fault. `more`: whatever a program may want to read of it."""
    return Fact("note", hosts[0] if len(hosts) == 1 else None, fields={"title": title, "hosts": list(hosts), **more})


def seen(title: str) -> Fact:
    """What was looked at: the probe's answer in one line where nothing is wrong."""
    return Fact("seen", fields={"title": title})


def unread(what: str, reason: str, hosts: Sequence[str], *, needed: bool = False) -> Fact:
    """It could not be read, so nothing is said of it; where it is `needed`, the probe's answer is unknown."""
    fields = {"title": f"{what}: could not be read: {reason}", "hosts": list(hosts), "needed": needed}
    return Fact("unread", hosts[0] if len(hosts) == 1 else None, fields=fields)


def _said(kind: str, cause: str, title: str, hosts: Sequence[str], remedy: str, more: Mapping[str, Any]) -> Fact:
    host = hosts[0] if len(hosts) == 1 else None
    return Fact(kind, host, fields={"cause": cause, "title": title, "hosts": list(hosts), "remedy": remedy, **more})
