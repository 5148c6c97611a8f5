"""A check itself failed: nothing is known about the cluster, and the traceback is kept.

Blames
    rank 0 @ a: init | error ImportError: no module named x
    rank 1 @ b: init | error ImportError: no module named x
    => a b

Blames
    fact agent-failed @ b type=TypeError message=x traceback=crash-b-7.txt
    => b

Blames
    rank 0 @ a: init...
    fact launcher-failed @ b code=1
    => b

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | error KeyError: 'labels'
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("missing_rank_at_rendezvous", "rank_died_exception", "rank_exited_early", "peer_reset")


def check(run: Run) -> list[Finding]:
    """Every rank raised an error of its own, an agent did, or a launcher."""
    own = [fact for fact in run.of("error") if fact.rank is not None and not reading.CONSEQUENCE.search(str(fact.get("message", "")))]
    everybody = run.world_size is not None and run.world_size > 1 and len({fact.rank for fact in own}) == run.world_size
    result = []
    if everybody and not run.sources:  # in a heap of foreign logs nobody's check has failed
        first = own[0]
        result.append(
            Finding(
                "probe-crashed",
                f"every rank failed alike: {reading.error(first)}",
                Culprit(hosts=list(dict.fromkeys(fact.host for fact in own if fact.host))),
                0.8,
                reading.quote(*[*(fact for fact in run.of("traceback") if fact.rank == first.rank), first][:2]),
                f"read the traceback on {reading.place(first.host)} (in the run directory); alike on all ranks, it is probably the installation",
            )
        )
    for fact in (fact for fact in run.of("launcher-failed") if fact.get("code") > 0):
        said = fact.source.text.strip() if fact.source else "it said nothing"
        result.append(
            Finding(
                "probe-crashed",
                f"the ranks of {fact.host} never came up, torchrun left with {fact.get('code')}: {said}",
                Culprit(hosts=[fact.host] if fact.host else None),
                0.85,
                reading.quote(fact),
                f"read launcher.log of {reading.place(fact.host)} in the run directory, and try there: python -m torch.distributed.run --help",
            )
        )
    return result + [
        Finding(
            "probe-crashed",
            f"ncclcheck itself failed on {fact.host}: {reading.error(fact)}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.9,
            reading.quote(fact),
            f"report this with the traceback that is kept on {word(fact.host)}: {word(fact.get('traceback'))}",
        )
        for fact in run.of("agent-failed")
        if not reading.could_not_write(fact)
    ]
