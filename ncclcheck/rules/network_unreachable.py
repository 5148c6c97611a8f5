"""The link between hosts went away: every rank is inside the same operation and nobody is behind.

Nobody died, nobody is stopped, nobody is late: then what lies between them does not carry their data any more.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
    => a b

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """All ranks inside one collective, over more than one host, with nothing else wrong."""
    steps = list(run.last_steps().values())
    hosts = run.hosts([step.rank for step in steps])
    trouble = any(run.of(kind) for kind in ("gone", "stopped", "error", "fail"))
    together = len({(step.seq, step.name) for step in steps}) == 1 and all(step.inside and not step.local for step in steps)
    if trouble or not together or len(hosts) < 2 or len(steps) != run.world_size:
        return []
    return [
        Finding(
            "network-unreachable",
            f"all {len(steps)} ranks are inside {reading.operation(steps[0])} and none gets further: no data passes between {', '.join(hosts)}",
            Culprit(hosts=hosts),
            0.6,
            [*reading.quote(*run.of("clock")), *reading.positions(run, [step.rank for step in steps])],
            f"from {hosts[0]}: ping -c 3 {hosts[1]} && ip -s link   # then check firewalls for all ports, the link and the routes between them",
            ["ip -s link and ip route on every node", "NCCL_DEBUG=INFO output of every rank"],
        )
    ]
