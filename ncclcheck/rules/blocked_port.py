"""A firewall drops or refuses what goes to a port, though the host itself answers.

MASTER_PORT alone is not enough: NCCL, Gloo and the engines listen on random ports of every node.

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=filtered text=timeout
    => b

Blames
    log node-a.log: torch.distributed.DistStoreError: Timed out after 31 seconds waiting for clients. 1/2 clients joined.
    log node-a.log: restart_count=0 master_addr=10.9.0.1 master_port=29500 group_rank=0
    log node-b.log: torch.distributed.DistNetworkError: The client socket has timed out after 30000ms while trying to connect to (10.9.0.1, 29500).
    => node-b

Blames
    log node-b.log: RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: \
Connection timed out, remote=[10.0.0.3]:41002 (rank=8, size=16, local=[10.0.0.4])
    => 8

Blames
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to 10.9.0.1:29500 (errno: 110 - Connection timed out).
    => -

Blames
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to 10.9.0.1:29500 (errno: 113 - No route to host).
    log a.log: # ufw status
    log a.log: Status: active
    => -

Blames
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to 10.9.0.1:29500 (errno: 110 - Connection timed out).
    log a.log: 64 bytes from 10.9.0.1: icmp_seq=1 ttl=64 time=0.2 ms
    log a.log: Active: active (running) since Mon; firewalld.service - firewalld - dynamic firewall daemon
    log a.log: Chain INPUT (policy DROP)
    => -

Blames
    log a.log: ERROR: Unable to connect to GCS (ray head) at 10.9.0.1:6379. Check that (1) Ray GCS with matching version started successfully
    log a.log: 64 bytes from 10.9.0.1: icmp_seq=1 ttl=64 time=0.2 ms
    => -

Blames
    fact path @ a peer=b answer=timeout control=True
    fact path @ b peer=a answer=ok control=True
    => b

Blames
    fact path @ a peer=b answer=timeout control=True
    fact path @ b peer=a answer=timeout control=True
    => a b

Blames
    fact path @ a peer=b answer=timeout control=True
    fact path @ b peer=a answer=timeout control=True
    fact path @ b peer=c answer=timeout control=False
    fact path @ c peer=b answer=timeout control=False
    fact path @ c peer=a answer=ok control=True
    => b

Spares
    fact path @ a peer=b answer=timeout control=True
    fact agent-lost @ b node_rank=1 reason=silent closed=False

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused

Spares
    log node-b.log: RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: \
Connection refused, remote=[127.0.0.1]:41002 (rank=8, size=16, local=[127.0.0.1])
"""

import re

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Evidence, Finding, Run
from ncclcheck.rules import _paths as paths
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("missing_rank_at_rendezvous", "rank_died_exception", "peer_reset", "store_lost", "slow_network")
_REMEDY = (
    "nc -vz {address} {port}   # from the host that fails, while the job starts; then open all TCP ports between the nodes (random ones are used: "
    "sysctl net.ipv4.ip_local_port_range): firewall-cmd --list-all, ufw status, iptables -L -n, nft list ruleset, security groups"
)
_FILTERED = (110, 113)  # timed out; no route to host, which is also how firewalls that reject answer
_NO_HOST = re.compile(r"(?:22[4-9]|2[345]\d)\.\d")  # multicast, reserved, a netmask
_SAYS_SO = re.compile(r"timed? ?out|timeout|No route to host", re.I)


READS = (
    Clue("firewall", r"^Status: active\b|Active: active .{0,60}firewalld|Chain (?:INPUT|FORWARD) \(policy DROP"),
    Clue("answers-ping", r"\d{1,6} bytes from (?:[\w.-]{1,80} \()?(?P<address>[\d.]{7,15})\)?: icmp_seq="),
    Clue("ray-unreachable", r"(?:Unable|Failed) to connect to GCS (?:\(ray head\) )?at (?:address )?(?P<address>[\d.]{7,15}):(?P<port>\d+)"),
)


def check(run: Run) -> list[Finding]:
    """Ports that say nothing: the master's, seen by an agent; the store's, where node 0 waits; a peer's, after the store was reached."""
    return [*_tried(run), *_master(run), *(_store(run) or _dropped(run)), *_peers(run)]


def _tried(run: Run) -> list[Finding]:
    """Random ports from which nothing comes back, between agents that talk to each other over the port that they agreed on."""
    known = [fact for fact in paths.failing(run) if paths.control_works(run, fact)]
    if not known or paths.lost(run):
        return []
    bad = paths.failing(run)
    ways, well = [paths.way(fact) for fact in bad], paths.open_ways(run)
    culprit = paths.blame(run, ways, well)
    if len(ends := {there for _, there in ways}) == 1 and culprit.link and any(here in ends for here, _ in well):
        culprit = Culprit(hosts=sorted(ends))  # it gets out, and nobody gets in
    return [
        Finding(
            "blocked-port",
            f"connections between {paths.between(culprit, ways)} to random ports get no answer, and those to ncclcheck's own port work",
            culprit,
            0.85,
            reading.quote(*bad[:8], *run.of("clock")),
            _REMEDY.format(address=word(known[0].get("address") or "ADDRESS"), port=word(known[0].get("port") or "PORT")),
        )
    ]


def _dropped(run: Run) -> list[Finding]:
    """The address alone is known, and that nothing came back from it; a firewall in the report, or an answer to a ping, says more."""
    facts = [fact for fact in run.of("store-connect") if fact.get("errno") in _FILTERED and re.match(r"[1-9]", str(fact.get("tried", "")))]
    walls, pings = run.of("firewall"), run.of("answers-ping")
    if not facts:
        facts = [fact for fact in run.of("ray-unreachable") if fact.get("address") in {ping.get("address") for ping in pings} or walls]
    address = str(facts[0].get("tried") or facts[0].get("address")) if facts else ""
    answered = [ping for ping in pings if ping.get("address") == address]
    if not facts or _NO_HOST.match(address) or (not walls and not answered and any(fact.get("errno") == 113 for fact in facts)):
        return []
    known = "; a firewall is active" if walls else ""
    known += "; the host itself answers" if answered else ""
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    culprit = Culprit(ranks=ranks or None, hosts=list(dict.fromkeys(fact.host for fact in facts if fact.host)) or None)
    title = f"connections to {address} are dropped{known}"
    remedy = _REMEDY.format(address=word(address), port=word(facts[0].get("port") or "PORT"))
    confidence = 0.85 if walls or answered else 0.5
    return [Finding("blocked-port", title, culprit, confidence, reading.quote(*facts[:6], *walls[:2], *answered[:1]), remedy)]


def _master(run: Run) -> list[Finding]:
    return [
        Finding(
            "blocked-port",
            f"{fact.host} reaches the host {fact.get('address')} but not its port {fact.get('port')}: what is sent there is dropped",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            f"open all TCP ports between the nodes (NCCL, Gloo and vLLM use random ones), at least {word(fact.get('port'))}: "
            f"iptables -L -n, nft list ruleset or ufw status on both; or use --master {word(fact.get('name'))}:PORT with an open port",
        )
        for fact in run.of("master")
        if fact.get("answer") == "filtered"
    ]


def _store(run: Run) -> list[Finding]:
    """Node 0 waits at this very address, and another node gets no answer from it."""
    silent = [fact for fact in run.of("store-connect") if fact.get("waited") and fact.get("address")]
    if not silent or any(fact.get("errno") for fact in run.of("store-connect")):
        return []
    address, port = silent[0].get("address"), silent[0].get("port")
    waits = [fact for fact in run.of("joined") if int(fact.get("there", 0)) < int(fact.get("expected", 0))]
    listens = [fact for fact in run.of("rendezvous") if fact.get("address") == address and fact.host not in {other.host for other in silent}]
    ranks = sorted({fact.rank for fact in silent if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in silent if fact.host))
    who = run.name(ranks[0]) if ranks else hosts[0] if hosts else "a node"
    known = ", where node 0 waits" if waits and listens else ""
    return [
        Finding(
            "blocked-port",
            f"{who} gets no answer from {address}:{port}{known}: what is sent there is dropped",
            Culprit(ranks=ranks or None, hosts=hosts or None),
            0.9 if known else 0.7 if waits else 0.55,
            reading.quote(*silent[:6], *waits[:2]),
            _REMEDY.format(address=word(address), port=word(port)),
            time=silent[0].time,
        )
    ]


def _peers(run: Run) -> list[Finding]:
    """A connection between ranks that timed out or found no route: the ranks know each other's address from the store, so that one works."""
    facts = [
        fact
        for fact in run.of("connect")
        if (fact.get("errno") in _FILTERED or _SAYS_SO.search(str(fact.get("reason", ""))))
        and not re.match(r"\[?(?:127\.|::1)", str(fact.get("address", "")))
    ]
    if not facts:
        return []
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host)) or run.hosts(ranks)
    if not ranks and len(run.ranks) == 1 and not next(iter(run.ranks.values())).host:
        ranks = list(run.ranks)  # the only rank that the report knows of
    address, port = facts[0].get("address"), facts[0].get("port")
    who = run.name(ranks[0]) if ranks else hosts[0] if hosts else "a rank"
    return [
        Finding(
            "blocked-port",
            f"{who} cannot reach {address} on port {port} ({facts[0].get('reason', 'no answer')}), though the rendezvous worked",
            Culprit(ranks=ranks or None, hosts=hosts or None),
            0.8,
            reading.quote(*facts[:8]),
            _REMEDY.format(address=word(address), port=word(port)),
            time=facts[0].time,
        )
    ]
