"""Run vLLM's own multi-node server over all nodes, as users launch it: does it come up, answer over HTTP as one rank does, and leave nothing?

What it checks
    Each node starts `vllm serve MODEL --nnodes N --node-rank R --master-addr A ...` (executor "mp", TP = all ranks; node 0 with the
    OpenAI-compatible server, the others --headless), on a tiny float32 model made on the spot or on --model. The weights are the same on
    every node and each node's workers took part; 4 requests at once, the same streamed one by one after a pause, give the greedy tokens that
    a single rank gives. Then node 0's server is ended with SIGTERM, the others after it (they do not notice by themselves), and no
    process, no port and no shared memory may be left. Tokens and progress are judged: /health and exit codes stay green while the engine is dead.
    The start is followed in the engine's log, phase by phase (spawn, configuration, rendezvous, groups, weights, kv-cache, compile, api,
    first token), each with its own bound, so that slow loading is told from a hang and the verdict names the phase.

What a failure means
    The cause that vLLM states, or what was seen of its processes: a worker killed or stopped, and where. weights-differ and
    data-corruption: as for vllm_engine. Standing still in rendezvous or groups: the nodes' workers do not reach each other, see
    VLLM_HOST_IP and the *_SOCKET_IFNAME variables; all TCP ports must be open between the nodes. left-over: the server does not end.
    Each node's log is vllm-nodeN.log in the run directory.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_serve
"""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck import vllm_deployment, vllm_server
from ncclcheck.model import Fact
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone
from ncclcheck.vllm_deployment import Way

TIMEOUT = 420.0
TIMEOUT_WITH_MODEL = 3600.0
MIN_RANKS = 1
DEFAULT = False
ORDER = 95
NEEDS = ("vllm",)
GROUP = False


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds environment, participant, served, shutdown, note and fail."""
    yield from vllm_deployment.run(rank, Way(vllm_server.command, vllm_server.environment))


if __name__ == "__main__":
    run_alone(__file__)
