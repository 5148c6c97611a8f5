"""What this node's user lets node 0 order: the probes and faults that were asked for here, with sizes in reason and the model named here.

An order says what to run by name. Everything that reaches the ranks is made on the node: no order carries a variable, a path or code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ncclcheck import fault, registry, wire
from ncclcheck.message_limits import is_loopback, of_a_node
from ncclcheck.options import Options

_RECORDS = {"NCCL_DEBUG": "INFO", "TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
_TIMES = {"TORCH_NCCL_ENABLE_TIMING": "1"}  # tells what the GPU has begun from what waits there
SIZES: Mapping[str, tuple[type, float]] = {  # the type of each size, and the largest in reason
    "budget": (float, 86_400.0),
    "max_bytes": (int, 2**46),
    "max_model_len": (int, 2**31),
    "tp": (int, 2**20),
    "pp": (int, 2**20),
}


class Refused(Exception):
    """An order that this node's user did not permit; args: a sentence that says what, and what to type."""


def evidence(*, records: bool, times: bool) -> dict[str, str]:
    """What lets NCCL and torch record what they do."""
    return {**(_RECORDS if records else {}), **(_TIMES if records and times else {})}


@dataclass(frozen=True, slots=True)
class Permissions:
    """`asked` is what this node's user typed."""

    asked: Options

    @property
    def told(self) -> wire.Permits:
        """The same, as it is said at roll call."""
        return wire.Permits(
            probes=sorted(self._probes()),
            fault=self.asked.inject or "",
            network_faults=self._network_faults(),
            model="model" in self.asked.probe_options,
        )

    def launch(self, order: wire.Launch, node_rank: int, nnodes: int, nproc_per_node: int) -> dict[str, str]:
        """The variables that this launch adds to the environment of the ranks here. Raises Refused."""
        if (order.nnodes, order.nproc_per_node) != (nnodes, nproc_per_node):
            shape = f"{order.nnodes} nodes with {order.nproc_per_node} ranks each"
            raise Refused(f"a job of {shape} was ordered; this node was started for {nnodes} nodes with {nproc_per_node}")
        self._must_be_asked(order.probes, ranks=True)
        added = {"NCCLCHECK_OPTIONS": msgspec.json.encode(self._options(order)).decode()}
        if order.fault and order.fault.rank // nproc_per_node == node_rank:
            added[fault.VARIABLE] = str(self.fault(order.fault, order.probes))
        return added | evidence(records=order.records, times=order.times)

    def survey(self, order: wire.Survey) -> None:
        """Raises Refused where a section is asked for that no probe reads which was asked for here."""
        plugins = [registry.describe("probes", name) for name in self._probes()]
        known = {section for plugin in plugins for section in plugin.get("READS", ())}
        if unknown := [section for section in order.sections if section not in known]:
            raise Refused(f"the sections {', '.join(unknown)} were asked for, which no probe reads that was asked for here")

    def fault(self, order: wire.Fault, probes: list[str]) -> fault.Spec:
        """The fault that is to be planted on this node. Raises Refused."""
        own = fault.parse(self.asked.inject).name if self.asked.inject else ""
        by_probe = {registry.describe("probes", name).get("INJECT") for name in probes}
        if order.name != own and order.name not in by_probe:
            planted = f"--inject {order.name}@rank={order.rank}"
            raise Refused(f"the fault {order.name} was ordered, and this node was started without {planted}")
        spec = fault.Spec(order.name, order.rank, order.after, order.delay)
        if not spec.plugin.get("SAFE") and not self._network_faults():
            raise Refused(f"the fault {order.name} breaks this node's network for a while: --allow-network-faults here, as root, permits it")
        return spec

    def examine(self) -> None:
        """Raises Refused where the jobs of this node are not to be looked at."""
        if not self.asked.examine:
            raise Refused("a look at running jobs was ordered; triage --live here permits it")

    def ways(self, order: wire.Try, mine: Callable[[str], bool], master: str) -> None:
        """Raises Refused where a way does not lead from an address of ours (`mine`) to the port of an echo on another node."""
        if strange := [target.source for target in order.targets if not mine(target.source)]:
            raise Refused(f"a way from {strange[0]} was ordered, which is no address of this node")
        self.peers([target.peer for target in order.targets], master)

    def peers(self, peers: Iterable[wire.Peer], master: str) -> None:
        """Raises Refused where a peer's echo cannot be what a node opens: a port that the kernel chose, on an address by which nodes are reached.

        Loopback is such an address where node 0 itself (`master`) is reached by it.
        """
        for peer in peers:
            if peer.port and (peer.port < 1024 or not (of_a_node(peer.address) or (is_loopback(peer.address) and is_loopback(master)))):
                raise Refused(f"a way to {peer.address} port {peer.port} was ordered, where no node's echo can be")

    @property
    def of_nodes(self) -> frozenset[str]:
        """The probes that were asked for here and look at the nodes, without ranks."""
        return frozenset(name for name in self._probes() if not registry.needs_ranks(name))

    def _probes(self) -> set[str]:
        return {*self.asked.probes, *self.asked.also_permitted}

    def _network_faults(self) -> bool:
        return bool(self.asked.emulated) or (self.asked.allow_network_faults and os.geteuid() == 0)

    def _must_be_asked(self, names: list[str], *, ranks: bool) -> None:
        known = {name for name in self._probes() if registry.needs_ranks(name) == ranks}
        if unknown := [name for name in names if name not in known]:
            raise Refused(f"{', '.join(unknown)} was ordered, and this node was started for {', '.join(sorted(known)) or 'nothing of that kind'}")

    def _options(self, order: wire.Launch) -> dict[str, Any]:
        """What the ranks' probes are told."""
        options: dict[str, Any] = {name: _size(name, value) for name, value in order.sizes.items()}
        own = self.asked.probe_options
        if order.model:
            if "model" not in own:
                raise Refused("a model is to be used, and none was named here: add the same --model on every node")
            options["model"] = own["model"]
        if order.bench:
            bench = own.get("bench")
            if bench is None or order.bench.server not in self.asked.servers:
                raise Refused("a server was ordered that was not asked for here: type the same `ncclcheck bench` on every node")
            options["bench"] = {**bench, **msgspec.to_builtins(order.bench)}
        return options


def _size(name: str, value: float) -> float:
    if name not in SIZES:
        raise Refused(f"{name} was ordered, which is no size of a probe")
    kind, largest = SIZES[name]
    if not 0 < value <= largest or (kind is int and not float(value).is_integer()):
        raise Refused(f"{name} {value:g} was ordered; it must be above 0 and at most {largest:g}")
    return int(value) if kind is int else float(value)
