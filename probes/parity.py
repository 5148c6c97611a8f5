"""Compare the nodes with each other, before any rank starts.

What it checks
    That everything is the same on all nodes that must be: the versions of NCCL, torch, vLLM, Python and the driver, the GPUs,
    the settings of NCCL, Gloo, torch and vLLM wherever they come from, the MTU of the interface in use, the InfiniBand ports, and, with
    --model, that each node has the model, the whole of it, and the same one. Settings that are each node's own may differ. Then, whether a
    vLLM engine over all ranks can serve that model: heads and layers can be divided among the ranks, the GPUs compute in its formats, this
    vLLM knows its architecture, and weights and the cache of one request (--max-model-len, or the model's own longest) fit into the memory.

What a failure means
    The nodes were not set up alike, and the verdict names those that differ from the most; where two nodes differ, both. Other
    versions of NCCL or torch, other settings, or no model: the launch would fail or hang. "Degraded" is what makes it slower or
    less safe; a kernel, a system or a limit that differs is noted. A model that cannot be divided or does not fit: by how much, and what
    would do. That weights alone are too large is certain; what an engine needs besides is an estimate, and makes "degraded" at most.

Run it alone
    python -m ncclcheck.probes.parity
    knows this node only, and so compares nothing: run `ncclcheck probe parity` on every node.
"""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck.model import Fact
from ncclcheck.preflight import alike_settings, model, parity, things
from ncclcheck.survey import Survey, seen, unread

WHERE = "nodes"
TIMEOUT = 30.0
DEFAULT = True
ORDER = 2
READS = ("versions", "settings", "devices", "limits", "interfaces", "infiniband", "model")


def judge(survey: Survey) -> Iterator[Fact]:
    """What differs, and which nodes are the odd ones."""
    silent = [node for node in survey.nodes if all(node.why(name) for name in READS)]
    nodes = [node for node in survey.nodes if node not in silent]
    for why in dict.fromkeys(node.why(READS[0]) for node in silent):
        yield unread("what these nodes are and have", why, [node.host for node in silent if node.why(READS[0]) == why], needed=True)
    if len(nodes) > 1:
        yield from parity.differences(nodes, things.THINGS)
        yield from things.memory(nodes)
        yield from alike_settings.differences(nodes)
    if survey.job.model:
        yield from model.judge(nodes, survey.job)
    yield seen(parity.summary(nodes, things.THINGS) if len(nodes) > 1 else "one node: there is nothing to compare it with")


if __name__ == "__main__":
    from ncclcheck.alone import run_alone

    run_alone(__file__)
