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

Blames
    fact agent-lost @ b node_rank=1 reason=silent closed=False
    fact path @ a peer=b answer=timeout control=True
    => a b

Blames
    fact agent-lost @ c node_rank=2 reason=silent closed=False
    fact path @ a peer=b answer=ok control=True
    fact path @ a peer=c answer=timeout control=True
    => c

Blames
    fact agent-lost @ a node_rank=0 reason=silent closed=False
    fact path @ b peer=a answer=unreachable control=True
    fact interface @ b interface=eth0 state=down state_before=up changed=down
    => b

Blames
    fact agent-lost @ a node_rank=0 reason=silent closed=False
    fact path @ b peer=a answer=ok control=True
    fact interface @ b interface=eth0 state=up state_before=up lost=10.0.0.2 changed=lost
    => b

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce
    rank 2 @ c: init, all_reduce
    fact path @ b peer=c answer=timeout control=False
    fact path @ c peer=b answer=timeout control=False
    fact path @ a peer=b answer=ok control=True
    fact path @ a peer=c answer=ok control=True
    => b c

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
    fact path @ a peer=b answer=ok
    fact path @ b peer=a answer=ok

Spares
    fact agent-lost @ b node_rank=1 reason=silent closed=False
    fact path @ a peer=b answer=refused control=True

Spares
    fact agent-lost @ b node_rank=1 reason=silent closed=True
    fact path @ a peer=b answer=timeout control=True

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
"""

import re

from ncclcheck import waits
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _paths as paths
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("gpu_kernel_stuck", "slow_rank", "peer_reset", "rank_killed", "slow_network", "link_interrupted")

_GONE = re.compile(r"unreachable|[Nn]o route to host")
_ERRNOS = ("100", "101", "113")  # ENETDOWN, ENETUNREACH, EHOSTUNREACH


def check(run: Run) -> list[Finding]:
    """What the agents tried; else every rank inside one collective over several hosts: as announced, or as recorders and watchdogs show."""
    return _tried(run) or _announced(run) or _cut(run)


def _tried(run: Run) -> list[Finding]:
    """Ways on which nothing comes back, neither what is tried nor what the agents say to each other."""
    gone = paths.lost(run)
    bad = [
        fact
        for fact in paths.failing(run)
        if not paths.control_works(run, fact) and (not fact.get("control") or {fact.host, fact.get("peer")} & gone)
    ]
    if gone and not bad:
        return [_interface(run, fact) for fact in paths.broken(run)]
    if not bad or (not gone and any(paths.control_works(run, fact) for fact in paths.failing(run))):
        return []  # (where the agents' port passes and others do not, it is a firewall)
    ways = [paths.way(fact) for fact in bad]
    culprit = paths.blame(run, ways, paths.open_ways(run))
    interfaces = [fact for fact in paths.broken(run) if fact.host in (culprit.hosts or ())]
    said = paths.of_interfaces(run, culprit.hosts or ()) or f"{bad[0].host} gets no answer from {bad[0].get('peer')} ({bad[0].get('address')})"
    place = word(culprit.hosts[0]) if culprit.hosts else "each host"
    return [
        Finding(
            "network-unreachable",
            f"no data passes between {paths.between(culprit, ways)}: {said}",
            culprit,
            0.95 if interfaces else 0.85,
            reading.quote(*interfaces, *bad[:6], *run.of("agent-lost")[:2], *run.of("clock")),
            f"on {place}: ip -s link; ip addr; ip route   # is the interface up, has it its address? then from {word(bad[0].host)}: ping -c 3 "
            f"{word(bad[0].get('address') or 'PEER')}, and look at cable, switch port and firewalls; a host that is down looks the same",
            ["dmesg -T | grep -i link on both hosts"],
        )
    ]


def _interface(run: Run, fact: Fact) -> Finding:
    """A node that lost the others, and whose own interface says why; what is new there may work."""
    said = paths.of_interfaces(run, [str(fact.host)])
    return Finding(
        "network-unreachable",
        f"{fact.host} lost the other nodes: {said}",
        Culprit(hosts=[str(fact.host)], interface=str(fact.get("interface"))),
        0.95,
        reading.quote(fact, *run.of("agent-lost")[:2], *run.of("clock")),
        f"on {word(fact.host)}: ip addr show {word(fact.get('interface'))}; journalctl -n 100 -u NetworkManager -u systemd-networkd"
        "   # who took it away?",
    )


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
            f"from {word(named[0]) if named else 'each host'}: ip route get PEER_ADDRESS; ping -c 3 PEER_ADDRESS; ip -s link"
            "   # is the interface up, "
            "is there a route, is the network link down or does a firewall drop it?",
            ["ip -s link and ip route on every node", "dmesg -T | grep -i link on every node"],
        )
    ]


def _announced(run: Run) -> list[Finding]:
    """All ranks inside one collective, over more than one host, with nothing else wrong."""
    steps = list(run.last_steps().values())
    hosts = run.hosts([step.rank for step in steps])
    trouble = any(run.of(kind) for kind in ("gone", "stopped", "error", "fail", "path"))  # what was tried knows better
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
            f"from {word(hosts[0])}: ping -c 3 {word(hosts[1])} && ip -s link"
            "   # then check firewalls for all ports, the link and the routes between them",
            ["ip -s link and ip route on every node", "NCCL_DEBUG=INFO output of every rank"],
        )
    ]
