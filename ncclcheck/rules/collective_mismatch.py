"""Ranks issued different collectives at the same place of the sequence.

NCCL checks nothing: ranks that call different operations, sizes or types in the same position hang, crash or, worse,
finish with wrong data.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
    rank 2 @ b: init, broadcast...
    => 2

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
"""

from collections import Counter

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("network_unreachable", "rank_killed", "rank_died_exception", "peer_reset")  # Gloo aborts the rank that gets the larger message


def check(run: Run) -> list[Finding]:
    """The minority at a sequence number where ranks sit in different operations; with a tie, all of them."""
    inside = [step for step in run.last_steps().values() if step.inside and not step.local]
    for seq in sorted({step.seq for step in inside}):
        here = [step for step in inside if step.seq == seq]
        kinds = Counter((step.name, step.nbytes, step.dtype, step.group) for step in here)
        if len(kinds) < 2:
            continue
        (common, most), (_, second) = kinds.most_common(2)
        odd = [step for step in here if most == second or (step.name, step.nbytes, step.dtype, step.group) != common]
        said = ", ".join(f"{run.name(step.rank)} in {reading.operation(step)} {step.dtype}".rstrip() for step in odd[:4])
        others = "" if most == second else f"; {most} ranks in {common[0]}"
        return [
            Finding(
                "collective-mismatch",
                f"different collectives at #{seq}: {said}{others}",
                run.blame([step.rank for step in odd]),
                0.9,
                reading.positions(run, [step.rank for step in here]),
                "make every rank issue the same collectives in the same order, with equal shapes and types; "
                "export TORCH_DISTRIBUTED_DEBUG=DETAIL to have torch check each call",
            )
        ]
    return []
