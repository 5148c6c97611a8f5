"""The link between hosts went away: every rank is inside the same operation and nobody is behind.

Nobody died, nobody is stopped, nobody is late: then what lies between them does not carry their data any more.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
    => a b

Blames
    log a/rank0.log: a:11:12 [0] NCCL INFO Bootstrap: Using eth0:10.0.0.1<0>
    log b/rank1.log: b:11:12 [0] misc/socket.cc:596 NCCL WARN socketStartConnect: connect to 10.0.0.1<38229> failed : Network is unreachable
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    => b

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
"""

import re

from ncclcheck import waits
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("gpu_kernel_stuck", "slow_rank", "peer_reset", "rank_killed")

_GONE = re.compile(r"unreachable|[Nn]o route to host")
_ERRNOS = ("100", "101", "113")  # ENETDOWN, ENETUNREACH, EHOSTUNREACH


def check(run: Run) -> list[Finding]:
    """Every rank inside one collective over several hosts: as announced, or as flight recorders and watchdogs show."""
    return _announced(run) or _cut(run)


def _cut(run: Run) -> list[Finding]:
    """Nobody is behind, or just the ranks of whole hosts are silent, and connections between hosts fail or those hosts cannot report."""
    found = waits.of(run)
    if not found.waits or found.idle or found.circle or found.messages or found.stale:
        return []
    hosts = {host for rank in {*found.waiting, *found.absent} for host in run.hosts([rank]) if host}
    errors = [fact for fact in run.of("connect") if str(fact.get("errno")) in _ERRNOS or _GONE.search(str(fact.get("reason", "")))]
    dumped = {dump.rank for dump in run.dumps}
    silent = [host for host in hosts if run.dumps and not dumped & {rank for rank, who in run.ranks.items() if who.host == host}]
    apart = {host for rank in found.absent for host in run.hosts([rank])} <= set(silent)
    alive = {fact.host for kind in ("stack", "state", "position") for fact in run.of(kind)}
    if len(hosts) < 2 or not apart or not (errors or (silent and set(silent) <= alive and len(silent) < len(hosts))):
        return []
    wait = max(found.waits, key=lambda wait: len(wait.waiting))
    named = list(dict.fromkeys(fact.host for fact in errors if fact.host)) or silent
    said = (
        f"{len(errors)} connections failed ({errors[0].get('reason') or errors[0].get('errno')})"
        if errors
        else f"{', '.join(silent)} could not report"
    )
    return [
        Finding(
            "network-unreachable",
            f"no data passes between {', '.join(sorted(hosts)[:8])}: nobody is behind, {wait}, and {said}",
            Culprit(hosts=named or None),
            0.9 if errors else 0.65,
            [*reading.quote(*errors[:4]), *wait.evidence[:4]],
            f"from {named[0] if named else 'each host'}: ip route get PEER_ADDRESS; ping -c 3 PEER_ADDRESS; ip -s link   # is the interface up, "
            "is there a route, is the network link down or does a firewall drop it?",
            ["ip -s link and ip route on every node", "dmesg -T | grep -i link on every node"],
        )
    ]


def _announced(run: Run) -> list[Finding]:
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
