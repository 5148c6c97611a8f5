"""A peer closed the connection, and nothing that was seen says why.

Every error is about a lost connection, nobody died in sight and nobody is stopped: the earliest cause is elsewhere.

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection reset by peer
    rank 1 @ b: init, all_reduce...
    => 0

Blames
    log a.log: [rank1]: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.3.4]:51234
    => -

Spares
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection reset by peer
    rank 1 @ b: init | gone
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

_REMEDY = (
    "on every host: dmesg -T | tail -50; ip -s link   # a link that flapped, a firewall that cuts idle connections, a killed process; "
    "then the log of the other end (rank 0 and its launcher, where it is the store on node 0): its first error came earlier"
)


def check(run: Run) -> list[Finding]:
    """Ranks whose only errors are consequences, where no rank died or stopped."""
    if run.sources:
        return _logged(run)
    errors = [fact for fact in run.of("error") if fact.rank is not None and reading.CONSEQUENCE.search(str(fact.get("message", "")))]
    if not errors or any(run.of(kind) for kind in ("gone", "stopped")):
        return []
    ranks = [fact.rank for fact in errors if fact.rank is not None]
    logs = [fact for fact in run.of("traceback") if fact.rank in ranks]
    return [
        Finding(
            "peer-reset",
            f"{', '.join(run.name(rank) for rank in ranks[:4])} lost a connection {reading.at(run, ranks[0])}; what ended it was not seen",
            run.blame(ranks),
            0.5,
            reading.quote(*(logs or errors)),
            _REMEDY,
            ["the kernel log of every host", "the log of the rank that is not named here"],
        )
    ]


def _logged(run: Run) -> list[Finding]:
    """Lost connections in logs that hold nothing else at all."""
    facts = [fact for fact in run.of("reset") if fact.get("peer")]
    others = (
        "says",
        "timeout",
        "position",
        "exit",
        "joined",
        "store-connect",
        "store-lost",
        "connect",
        "ended",
        "served",
        "stopped",
        "oom-kill",
        "xid",
        "left",
    )
    if not facts or run.dumps or any(run.of(kind) for kind in others) or reading.own_errors(run):
        return []
    title = f"a connection to {facts[0].get('peer')} was lost; what ended it does not stand in the report"
    collect = ["the kernel log of every host", "the log of the rank on the other end"]
    return [Finding("peer-reset", title, Culprit(), 0.4, reading.quote(*facts[:8]), _REMEDY, collect)]
