"""A rank asks for a GPU that it cannot see: fewer GPUs are visible than ranks are started.

CUDA_VISIBLE_DEVICES is shorter than --nproc-per-node, a container was given fewer devices, or a scheduler hands each task
its own GPU under the index 0.

Blames
    fact too-few-gpus @ b gpus=1 nproc_per_node=2
    => b

Blames
    rank 0 @ a: init
    rank 1 @ a: init | error RuntimeError: invalid device ordinal: local_rank 1 wants GPU 1, torch sees 1
    => a

Spares
    rank 0 @ a: init
    rank 1 @ a: init | error ValueError: no such file
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception",)


def check(run: Run) -> list[Finding]:
    """Hosts that start more ranks than they have visible GPUs, and ranks whose GPU is not there."""
    short = run.of("too-few-gpus")
    failed = [fact for fact in run.of("error") if "invalid device ordinal" in str(fact.get("message", ""))]
    hosts = list(dict.fromkeys(fact.host for fact in [*short, *failed] if fact.host))
    if not hosts:
        return []
    said = ", ".join(f"{fact.host} sees {fact.get('gpus')} GPU(s) and starts {fact.get('nproc_per_node')} ranks" for fact in short)
    return [
        Finding(
            "device-visibility",
            said or f"{run.name(failed[0].rank or 0)} asks for a GPU it cannot see: {failed[0].get('message')}",
            Culprit(hosts=hosts),
            0.95,
            reading.quote(*short, *failed),
            "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L   # let it list a GPU for each rank (or unset it), or lower --nproc-per-node",
        )
    ]
