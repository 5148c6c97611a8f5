"""An NVIDIA device is there and torch cannot use it: the run would silently test the CPU instead.

Blames
    rank 0 @ a: init | gpu-unusable
    => 0

Spares
    rank 0 @ a: init
"""

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Ranks that fell back to the CPU on a node with NVIDIA devices."""
    facts = run.of("gpu-unusable")
    ranks = [fact.rank for fact in facts if fact.rank is not None]
    if not ranks:
        return []
    return [
        Finding(
            "driver-not-working",
            f"torch sees no usable GPU on {', '.join(run.hosts(ranks))} though an NVIDIA device is there: {len(ranks)} ranks ran on the CPU",
            run.blame(ranks),
            0.9,
            reading.quote(*facts),
            "nvidia-smi; python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'   # a CPU build of torch, or an old driver",
        )
    ]
