"""A host name resolves to the loopback interface or to nothing, so other nodes cannot be found by it.

Debian and Ubuntu write `127.0.1.1 HOSTNAME` into /etc/hosts; on the node itself its name then leads to itself alone.

Blames
    fact resolve @ b name=node0 addresses=127.0.1.1
    => b

Blames
    fact resolve @ b name=nowhere error=unknown
    => b

Blames
    log node-b.log: [rank8]: RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: \
SO_ERROR: Connection refused, remote=[127.0.0.1]:41002 (rank=8, size=16, local=[127.0.0.1])
    => 8

Blames
    log node-b.log: [W socket.cpp:697] [c10d] The IPv6 network addresses of (gpu-1, 29500) cannot be retrieved (gai error: -2 - Name or \
service not known).
    log node-b.log: [W socket.cpp:697] [c10d] The IPv4 network addresses of (gpu-1, 29500) cannot be retrieved (gai error: -2 - Name or \
service not known).
    => node-b

Blames
    log node-b.log: [rank4]: socket.gaierror: [Errno -3] Temporary failure in name resolution
    => 4

Blames
    log a.log: ssh: Could not resolve hostname gpu-9: Name or service not known
    => gpu-9

Blames
    log a.log: ValueError: host not found: Name or service not known
    => -

Blames
    log node-b.log: [W socket.cpp:697] [c10d] The client socket has failed to connect to [::ffff:0.18.214.135]:41233 (errno: 110 - \
Connection timed out).
    log node-b.log: [E socket.cpp:753] [c10d] The client socket has failed to connect to any network address of (1234567, 41233).
    => node-b

Spares
    log node-b.log: [W socket.cpp:697] [c10d] The IPv6 network addresses of (gpu-1, 29500) cannot be retrieved (gai error: -2 - Name or \
service not known).
    log node-b.log: [I] [default] worker group successfully finished. Waiting 300 seconds for other agents to finish.

Spares
    log node-b.log: RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: \
Connection refused, remote=[10.0.0.3]:41002 (rank=8, size=16, local=[10.0.0.4])

Spares
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
"""

import re

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_died_exception", "missing_rank_at_rendezvous", "peer_reset", "wrong_master_addr")
LOOPBACK = re.compile(r"^\[?(?:127\.|::1\b|localhost)")
_GLOO = (
    "export GLOO_SOCKET_IFNAME=INTERFACE   # on every node, each its own interface to the others (ip -br addr); and for good: "
    "getent ahosts $(hostname) must give that address: mend /etc/hosts (no 127.0.1.1 line for the hostname); VLLM_HOST_IP for vLLM"
)
_NAME = (
    "getent ahosts {name}   # on the host that complains; mend DNS or /etc/hosts there, or use the numeric address in "
    "MASTER_ADDR / --master-addr / --rdzv-endpoint"
)

READS = (
    Statement(r"gaierror: \[Errno -\d+\] (?P<why>[A-Z][\w ]*)", "a name does not resolve where {who} runs: {why}", _NAME.format(name="NAME"), 0.85),
    Statement(
        r"host not found: (?P<why>[A-Z][\w ]*)",
        "the master address does not resolve where {who} runs: {why}",
        _NAME.format(name="MASTER_ADDR") + "; in Kubernetes its Service (DNS entry) may come later than the pod: wait for it in an init container",
        0.85,
    ),
    Statement(
        r"Could not resolve hostname (?P<host>[\w.-]+)",
        "the name {host} does not resolve where the job was launched",
        _NAME.format(name="{host}"),
        0.85,
    ),
)


def check(run: Run) -> list[Finding]:
    """Names that a node could not follow to another machine, and ranks that gave their peers the loopback address."""
    return [*_resolved(run), *_loopback(run), *_unresolved(run), *_number(run)]


def _number(run: Run) -> list[Finding]:
    """A host's name of digits alone, which the resolver takes for an IPv4 address (7348175 is 0.112.31.207)."""
    facts = [fact for fact in run.of("store-connect") if re.match(r"0\.(?!0\.0\.0)", str(fact.get("tried", "")))]
    if not facts:
        return []
    name = next((fact.get("address") for fact in run.of("store-connect") if str(fact.get("address", "")).isdigit()), "the host's name")
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    remedy = (
        "hostnamectl set-hostname NAME   # one that has a letter in it (docker run --hostname NAME for a container); "
        "or torchrun --nnodes 1 --master-addr localhost --master-port 29500 instead of --standalone; MASTER_ADDR with the node's real address"
    )
    title = f"the host's name {name} is a number, and is taken for the address {facts[0].get('tried')}"
    return [Finding("hostname-resolution", title, Culprit(hosts=hosts or None), 0.9, reading.quote(*facts[:6]), remedy)]


def plausible(name: str) -> bool:
    """Whether this could be a host's name at all."""
    return bool(re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", name))


def _loopback(run: Run) -> list[Finding]:
    """Peers on other hosts that are sought on this one: the address they gave is 127.x."""
    facts = [fact for fact in run.of("connect") if LOOPBACK.match(str(fact.get("address", "")))]
    fallback = run.of("loopback-fallback")
    if not facts:
        return []
    ranks = sorted({fact.rank for fact in [*facts, *fallback] if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    who = run.name(ranks[0]) if ranks else hosts[0] if hosts else "a rank"
    title = f"{who} seeks a peer at {facts[0].get('address')}: a node's name resolves to loopback there, and that is the address it gave its peers"
    culprit = Culprit(ranks=ranks or None, hosts=hosts or None, interface="lo")
    return [Finding("hostname-resolution", title, culprit, 0.92, reading.quote(*facts[:8], *fallback[:4]), _GLOO, time=facts[0].time)]


def _unresolved(run: Run) -> list[Finding]:
    """The store's name, where neither kind of address is found; IPv6 alone is missing on many healthy networks."""
    facts = [fact for fact in run.of("unresolved") if plausible(str(fact.get("name", "")))]
    if not facts or run.of("ended"):
        return []
    both = [fact for fact in facts if fact.get("family") != "IPv6"]
    failed = [fact for fact in run.of("store-connect") if fact.get("address") == facts[0].get("name") and fact.get("errno") is None]
    confidence = 0.92 if both else 0.75 if failed else 0.5
    hosts = list(dict.fromkeys(fact.host for fact in both or facts if fact.host))
    name = facts[0].get("name")
    title = f"the name {name} does not resolve{f' on {hosts[0]}' if hosts else ''}"
    return [
        Finding(
            "hostname-resolution",
            title,
            Culprit(hosts=hosts or None),
            confidence,
            reading.quote(*facts[:8]),
            _NAME.format(name=word(name)),
            time=facts[0].time,
        )
    ]


def _resolved(run: Run) -> list[Finding]:
    result = []
    for fact in run.of("resolve"):
        name, error = fact.get("name"), fact.get("error")
        leads = (
            f"does not resolve on {fact.host}: {error}"
            if error
            else f"resolves to {', '.join(fact.get('addresses'))} on {fact.host}: loopback, which no other node can reach"
        )
        result.append(
            Finding(
                "hostname-resolution",
                f"the master's name {name} {leads}",
                Culprit(hosts=[fact.host] if fact.host else None),
                0.95,
                reading.quote(fact),
                f"getent ahosts {word(name)}   # then mend /etc/hosts (no 127.0.1.1 line, the real address) or give --master the numeric address",
            )
        )
    return result
