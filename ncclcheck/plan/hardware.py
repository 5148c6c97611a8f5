"""The cluster that is planned for: its GPUs and the links between them, measured where a run has measured them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ncclcheck import vllm_answers, vllm_model
from ncclcheck.expect import cost, links
from ncclcheck.expect.cost import Cost, Group
from ncclcheck.expect.gpus import Gpu
from ncclcheck.expect.links import Link, Network
from ncclcheck.plan.curves import Curve, Measured


@dataclass(frozen=True, slots=True)
class Hardware:
    """`nodes` nodes of `each` GPUs; `curves` are all-reduces that were measured on it."""

    nodes: int
    each: int
    gpu: Gpu
    inside: Link
    network: Network | None
    curves: Sequence[Curve] = ()

    def all_reduce(self, group: Group, nbytes: float, read: float = 0.0) -> Cost:
        """One all-reduce among these ranks, each of which has read so many bytes before: as measured if it was among just as many, so placed,
        else by the links."""
        if group.size == 1:
            return Cost()
        if curve := self._curve(group):
            return curve.cost(nbytes, read)
        return cost.all_reduce(group, nbytes, self.inside, self.network)

    def all_gather(self, group: Group, nbytes: float, read: float = 0.0) -> Cost:
        """One all-gather with a result of so many bytes; see all_reduce."""
        if group.size == 1:
            return Cost()
        if curve := self._curve(group):
            return curve.cost(nbytes, read).times(0.5)
        return cost.all_gather(group, nbytes, self.inside, self.network)

    def waiting(self, group: Group) -> float:
        """Seconds that are lost around each all-reduce between nodes, as in this group or in the one of those measured that lost most."""
        if curve := self._curve(group):
            return curve.waiting
        return max((curve.waiting for curve in self.curves), default=0.0) if group.nodes > 1 else 0.0

    def send(self, group: Group, nbytes: float, crossing: bool) -> Cost:
        """One message from each rank of a group to one of the next stage: those of a node share its adapters, as all send at once."""
        if crossing and self.network:
            return cost.send(nbytes * group.each / min(self.network.adapters, group.each), self.network.link)
        return cost.send(nbytes, self.inside)

    def error(self, group: Group) -> float:
        """What the cost of a collective in this group may be wrong by."""
        if curve := self._curve(group):
            return max(0.15, min(curve.spread, 1.0))
        inside = self.inside.error if group.each > 1 else 0.0
        return max(inside, self.network.link.error) if self.network and group.nodes > 1 else inside

    def _curve(self, group: Group) -> Curve | None:
        """What was measured among just as many, so placed."""
        return next((curve for curve in self.curves if curve.group == group), None)

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.each


def build(nodes: int, each: int, gpu: Gpu, inside: Link, network: Network | None, runs: Sequence[Measured]) -> Hardware:
    """The cluster, with links corrected by what was measured: first inside a node, then, knowing that, between nodes.

    Ranks without GPUs use Gloo between nodes, as the probes do, but vLLM's shared memory within one: a run in one node says nothing of them.
    """
    curves = [_inside_engine(run, gpu) for run in runs if run.curve.group.nodes > 1 or not gpu.is_cpu]
    for curve in sorted(curves, key=lambda curve: (curve.group.nodes, -curve.group.size)):
        if curve.group.nodes == 1 and not inside.measured:
            inside = _fitted(inside, curve, cost.steps(curve.group.size), 0.0)
    for curve in sorted(curves, key=lambda curve: curve.group.each):
        if curve.group.nodes > 1 and not (network and network.link.measured):
            network = _between(curve, inside, network)
    return Hardware(nodes, each, gpu, inside, network, tuple(curves))


def _inside_engine(run: Measured, gpu: Gpu) -> Curve:
    """The run's all-reduces as they are between an engine's computations, and what is lost around each, where ranks without GPUs served one.

    A GPU's collectives are queued behind its computations, and that engine was an eager one: it says nothing there.
    """
    engine = run.engine
    if not (gpu.is_cpu and engine and engine.ranks == run.curve.group.size and engine.all_reduces):
        return run.curve
    largest = max(size for points in engine.all_reduces.values() for size in points)
    beyond = {size: seconds for size, seconds in run.curve.points.items() if size > largest}
    inside = {read: {**points, **beyond} for read, points in engine.all_reduces.items()}
    curve = replace(run.curve, points=inside[min(inside)], inside=inside)
    if engine.token_seconds is None:
        return curve
    layers, answers = vllm_model.LAYERS, len(vllm_answers.PROMPTS)
    nbytes = answers * vllm_model.config(engine.ranks)["hidden_size"] * 4
    collectives = 2 * layers + 1.5  # the gather of the logits takes half as long
    each = (engine.token_seconds - gpu.step - gpu.layer * layers) / collectives
    return replace(curve, waiting=max(0.0, each - curve.cost(nbytes).seconds))


def _between(curve: Curve, inside: Link, network: Network | None) -> Network:
    """The network, from all-reduces that crossed it: what its ranks did within their nodes is taken off the latency."""
    group = curve.group
    within = inside.latency(cost.steps(group.each)) if group.each > 1 else 0.0
    guess = network or links.network("25G-tcp")
    adapters = min(guess.adapters, group.each)
    link = _fitted(guess.link, curve, cost.steps(group.nodes), within)
    # busbw counts each rank's bytes; through the adapters go 2(k-1)/k of the message for all ranks of a node
    share = 2 * (group.nodes - 1) / group.nodes / (2 * (group.size - 1) / group.size) / adapters
    return Network(replace(link, bandwidth=link.bandwidth * share, small=link.small * share), guess.adapters)


def _fitted(link: Link, curve: Curve, steps: int, within: float) -> Link:
    """A link whose all-reduces take what was measured; how its latency divides into start and steps is kept as it was assumed."""
    latency = max(curve.latency - within, 0.1 * curve.latency)
    factor = latency / link.latency(steps)
    name = f"{link.name.split(' (')[0]} (measured)" if not link.measured else link.name
    error = max(0.15, min(1.0, curve.spread))
    bandwidth = curve.bandwidth
    return Link(name, link.base * factor, link.hop * factor, bandwidth, 0.0, bandwidth, error, "all-reduces of the run", measured=True)
