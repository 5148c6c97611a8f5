"""One rank left normally while others still communicate.

A data set of another length, a condition met on one rank only, or a script that ends early: the others wait for a rank
that will never come.

Blames
    rank 0 @ a: init, all_reduce, all_reduce...
    rank 1 @ b: init, all_reduce | done
    => 1

Spares
    rank 0 @ a: init, all_reduce | done
    rank 1 @ b: init, all_reduce | done
"""

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Ranks that left in order, or with exit code 0, while another one is inside a collective."""
    clean = {fact.rank for kind in ("exit", "gone") for fact in run.of(kind) if fact.get("code") == 0}
    left = [fact for fact in run.facts if fact.rank is not None and (fact.kind == "done" or (fact.kind == "gone" and fact.rank in clean))]
    ranks = [fact.rank for fact in left if fact.rank is not None]
    if not ranks or not reading.waiting(run, ranks):
        return []
    names = ", ".join(run.name(rank) for rank in ranks)
    return [
        Finding(
            "rank-exited-early",
            f"{names} left normally{reading.bystanders(run, ranks)}",
            run.blame(ranks),
            0.9,
            reading.quote(*left),
            "give every rank the same number of steps (torch.distributed.algorithms.join, drop_last=True), and leave through destroy_process_group",
        )
    ]
