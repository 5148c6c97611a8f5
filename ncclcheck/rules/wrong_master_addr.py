"""The master address is wrong: not an address of node 0, no host's name, or one that cannot be reached from here.

Only nodes that are not node 0 fail, and all of them at the address they were given; node 0 waits for them somewhere else.

Blames
    fact master @ b name=10.0.0.99 address=10.0.0.99 port=29600 answer=unreachable text=no-route
    => b

Blames
    fact master @ a name=10.0.0.9 address=10.0.0.9 port=29600 answer=not-ours text=x
    => a

Blames
    fact bind @ a address=fe80::1 port=29600 errno=22 text=x
    => a

Blames
    log node-a/rank0.log: torch.distributed.DistStoreError: Timed out after 16 seconds waiting for clients. 2/4 clients joined.
    log node-b/rank2.log: [E socket.cpp:818] [c10d] The client socket has failed to connect to any network address of (10.9.0.77, 29500). \
(errno: 113 - No route to host).
    => 2

Blames
    log node-b.log: [W socket.cpp:601] [c10d] The IPv6 network addresses of (/home/me/job.sh, 29500) cannot be retrieved (gai error: -3 - \
Temporary failure in name resolution).
    => node-b

Blames
    log one.env: MASTER_ADDR=localhost
    log two.env: MASTER_ADDR=localhost
    log two.log: [W socket.cpp:601] [c10d] The client socket has failed to connect to [localhost]:29500 (errno: 111 - Connection refused).
    => -

Blames
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to 255.255.255.0:29500 (errno: 110 - Connection timed out).
    => -

Blames
    log a.log: [W socket.cpp:663] [c10d] The client socket has failed to connect to 10.9.0.77:29500 (errno: 113 - No route to host).
    => -

Blames
    log rank2.log: torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to (172.17.0.5, 29500).
    => 2

Spares
    fact bind @ a address=10.0.0.1 port=29600 errno=98 owner=python

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused

Spares
    log node-a/rank0.log: torch.distributed.DistStoreError: Timed out after 16 seconds waiting for clients. 2/4 clients joined.
"""

import errno
import re

from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.rules.hostname_resolution import LOOPBACK, plausible
from ncclcheck.safe_text import word

EXPLAINS = ("missing_rank_at_rendezvous", "rank_died_exception", "peer_reset", "store_lost")
_TITLES = {
    "unreachable": "{host} cannot reach the master address {name}:{port}: {text}",
    "silent-host": "{host} gets no answer at all from the master address {name}:{port}: no such host, a dead one, or a firewall",
    "not-ours": "the master address {name} is not an address of {host}, which is to be node 0: {text}",
}
_REMEDY = (
    "on node 0: ip -br addr   # its address on the network that all nodes share; give it to every node: MASTER_ADDR (--master-addr, --rdzv-endpoint, "
    "--main_process_ip), the same everywhere; then nc -vz MASTER_ADDR {port} from the node that fails, while node 0 waits"
)
_UNREACHABLE = (101, 113)
_NO_HOST = re.compile(r"(?:22[4-9]|2[345]\d)\.\d")  # multicast, reserved, a netmask
_DOCKER = re.compile(r"172\.17\.\d")  # docker0, as it comes: containers of other hosts have the same


def check(run: Run) -> list[Finding]:
    """What a node saw when it tried the master address."""
    return [*_tried(run), *_bound(run), *_no_name(run), *_store(run)]


def _bound(run: Run) -> list[Finding]:
    """An address or port at which node 0 may not listen; that somebody else does is another cause."""
    return [
        Finding(
            "wrong-master-addr",
            f"node 0 ({fact.host}) cannot listen at {fact.get('address')}, port {fact.get('port')}: {fact.get('text')}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.9,
            reading.quote(fact),
            "ip -br addr   # give --master, on every node, node 0's address on the network they share, and a port above 1023: --master ADDR:29600",
        )
        for fact in run.of("bind")
        if fact.get("errno") not in (None, errno.EADDRINUSE)
    ]


def _no_name(run: Run) -> list[Finding]:
    """A path, an empty word or a variable's name in the place of a host."""
    facts = [fact for fact in run.of("unresolved") if not plausible(str(fact.get("name", "")))]
    if not facts:
        return []
    return [_finding(facts, f"the master address {facts[0].get('name')!r} is not the name of a host", 0.93, facts[0].get("port"), run)]


def _store(run: Run) -> list[Finding]:
    tried = run.of("store-connect")
    failed = [fact for fact in tried if fact.get("address")] or [fact for fact in tried if fact.get("tried")]
    if not failed:
        return []
    codes = {fact.get("errno") for fact in tried if fact.get("errno")}
    address, port = str(failed[0].get("address") or failed[0].get("tried")), failed[0].get("port") or "MASTER_PORT"
    waits = [fact for fact in run.of("joined") if int(fact.get("there", 0)) < int(fact.get("expected", 0))]
    elsewhere = {str(fact.get("address")) for fact in run.of("rendezvous") if fact.host not in {other.host for other in failed}} - {address}
    where = f"{address}:{port}"
    if _NO_HOST.match(address):
        return [_finding(failed, f"the master address {address} is not the address of any host", 0.9, port, run)]
    if _DOCKER.match(address):
        title = f"{{who}} cannot reach {where}: that is an address of Docker's own network, which every host has for itself"
        return [_finding([*failed, *waits[:2]], title, 0.7, port, run, "start the containers with docker run --network host; " + _REMEDY)]
    if LOOPBACK.match(address):
        same = {fact.source.file: fact for fact in run.of("setting") if fact.source and fact.get("name") == "MASTER_ADDR"}
        if len(same) > 1 and all(LOOPBACK.match(str(fact.get("value"))) for fact in same.values()):
            title = f"MASTER_ADDR is {address} on every node, so each looks for the master on its own host"
            return [_finding([*failed, *same.values()], title, 0.8, port, run)]
        if waits or any(fact.rank for fact in failed):
            return [_finding([*failed, *waits[:2]], f"{{who}} looks for the master on its own host ({where})", 0.75, port, run)]
        return []
    if codes & set(_UNREACHABLE) and not run.of("firewall"):
        return [_finding([*failed, *waits[:2]], f"no way leads from {{who}} to the master address {where}", 0.85 if waits else 0.7, port, run)]
    if waits and (elsewhere or 111 in codes):
        return [
            _finding([*failed, *waits[:2]], f"nothing answers {{who}} at the master address {where}, and node 0 waits elsewhere", 0.75, port, run)
        ]
    return []


def _finding(facts: list[Fact], title: str, confidence: float, port: object, run: Run, remedy: str = _REMEDY) -> Finding:
    failed = [fact for fact in facts if fact.kind not in ("joined", "setting")]
    ranks = sorted({fact.rank for fact in failed if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in failed if fact.host))
    who = ", ".join(run.name(rank) for rank in ranks[:2]) or (hosts[0] if hosts else "a node")
    return Finding(
        "wrong-master-addr",
        title.replace("{who}", who),
        Culprit(ranks=ranks or None, hosts=hosts or None),
        confidence,
        reading.quote(*failed[:6], *(fact for fact in facts if fact not in failed)),
        remedy.format(port=word(port)),
        time=failed[0].time,
    )


def _tried(run: Run) -> list[Finding]:
    return [
        Finding(
            "wrong-master-addr",
            _TITLES[fact.get("answer")].format(host=fact.host, **fact.fields),
            Culprit(hosts=[fact.host] if fact.host else None),
            0.8 if fact.get("answer") == "silent-host" else 0.9,
            [Evidence("", 0, str(fact.get("text")))],
            "give --master, on every node, the address that node 0 has on the network they share (`ip -br addr` there); then ping it from here",
        )
        for fact in run.of("master")
        if fact.get("answer") in _TITLES
    ]
