"""Start a Ray cluster of our own over all nodes and `vllm serve` on it: does it come up, answer over HTTP as one rank does, and leave nothing?

What it checks
    Each node starts Ray (`ray start`, node 0 as the head; own ports, folder and token; any other Ray is left alone) with as
    many GPUs as it has ranks, and node 0 runs `vllm serve MODEL --distributed-executor-backend ray` (TP = all ranks, or as --tp and --pp say), on a
    tiny float32 model made on the spot or on --model. The rest is as for vllm_serve: the same weights on every node, a worker of every rank,
    requests at once, streamed after a pause, the greedy tokens of a single rank; then vLLM and Ray are ended with SIGTERM, and no process, no port
    and no shared memory may be left. On CPUs, for which vLLM knows no resource of Ray's, the ranks count as its GPUs.

What a failure means
    ray-cluster-mismatch: a node or its GPUs did not join, or Ray or Python differ; standing still in placement: see `ray status` and VLLM_HOST_IP.
    All else as for vllm_serve. Each node's log is vllm-nodeN.log in the run directory: Ray's words, vLLM's, and those of the workers there.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_ray
"""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck import vllm_deployment, vllm_ray
from ncclcheck.model import Fact
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone
from ncclcheck.vllm_deployment import Way

TIMEOUT = 420.0
TIMEOUT_WITH_MODEL = 3600.0
MIN_RANKS = 1
DEFAULT = False
ORDER = 96
NEEDS = ("vllm", "ray>=2.55")  # older ones keep the files of every node under the path that the first was given
GROUP = False


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds environment, participant, served, shutdown, note and fail."""
    yield from vllm_deployment.run(rank, Way(vllm_ray.command, vllm_ray.environment, secret_variable=vllm_ray.SECRET))


if __name__ == "__main__":
    run_alone(__file__)
