"""NCCL, Gloo or an engine uses a network interface that is missing, or that cannot reach the peers.

Blames
    log rank1.log: node-a:311:405 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to ib7
    log rank1.log: [2026-03-02 10:00:00] node-a:311:405 [0] bootstrap.cc:114 NCCL WARN Bootstrap : no socket interface found
    => 1

Blames
    log rank1.log: node-a:311:405 [0] transport/net_socket.cc:50 NCCL WARN NET/Socket : no interface found
    => 1

Blames
    log rank1.log: node-a:311:405 [0] bootstrap.cc:100 NCCL WARN no device found matching eth7, verify NCCL_OOB_NET_IFNAME
    => 1

Blames
    log a.log: [rank1]: RuntimeError: [enforce fail at gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7
    => 1

Blames
    log rank1.log: RuntimeError: [enforce fail at gloo/transport/tcp/device.cc:115] Unable to find interface for: [10.0.0.9]
    => 1

Blames
    log rank1.log: Last error:
    log rank1.log: ncclSocketInit: connecting to address  with family 48212 is neither AF_INET(2) nor AF_INET6(10)
    => -

Blames
    log rank1.log: node-a:311:405 [0] misc/socket.cc:120 NCCL WARN Net : No interface found in the same subnet as remote address fe80::9<40112>
    => 1

Blames
    log rank1.log: Warning: Unable to resolve hostname to a (local) address. Using the loopback address as fallback. Manually set the network
    log rank1.log: [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: Connection refused, remote=[127.0.0.1]:41002
    => 1

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Bootstrap : Using docker0:172.17.0.1<0>
    log a.log: node-a:311:405 [0] misc/socket.cc:596 NCCL WARN socketStartConnect: connect to 172.17.0.1<38229> failed : Connection refused
    log b.log: node-b:312:405 [0] NCCL INFO Bootstrap : Using docker0:172.17.0.1<0>
    => node-a node-b

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NET : Using interface lo:127.0.0.1<0>
    log a.log: node-a:311:405 [0] include/socket.h:361 NCCL WARN Call to connect timeout : Connection refused
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Bootstrap : Using [0]tun0:fe80::1%tun0<0> [1]eth0:10.0.0.1<0>
    log a.log: node-a:311:405 [0] include/socket.h:403 NCCL WARN Connect to fe80::7%tun0<41999> failed : Network is unreachable
    => node-a

Blames
    log a.log: node-a:311:405 [0] include/socket.h:318 NCCL WARN Net : Socket creation failed : Address family not supported by protocol
    => node-a

Blames
    fact setting @ a name=GLOO_SOCKET_IFNAME value=eth7
    fact interface @ a interface=eth0
    => a

Spares
    fact setting @ a name=NCCL_SOCKET_IFNAME value=eth
    fact interface @ a interface=eth0

Spares
    log a.log: node-a:311:405 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>
    log b.log: node-b:312:405 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.2<0>

Spares
    log rank1.log: Warning: Unable to resolve hostname to a (local) address. Using the loopback address as fallback. Manually set the network
"""

from __future__ import annotations

import re

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = (
    "hostname_resolution",
    "rank_died_exception",
    "missing_rank_at_rendezvous",
    "peer_reset",
    "rank_exited_early",
    "store_lost",
    "network_unreachable",
)

REMEDY = (
    "ip -br addr   # on every node; then export NCCL_SOCKET_IFNAME=<the interface to the other nodes> GLOO_SOCKET_IFNAME=<the same>, each node its "
    "own (NCCL_SOCKET_FAMILY=AF_INET, or unset it); ^name excludes only in NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME takes plain names; VLLM_HOST_IP or "
    "SGLANG_HOST_IP for engines"
)
LOCAL = re.compile(r"lo\d*$|docker|br-|virbr|veth|cni|lxc|podman|nodelocaldns|kube-ipvs|tailscale|zt|wl|vmnet|ip6tnl|tun|sit\d|wg\d")
"""Names of interfaces that do not lead to other hosts, or only over a detour."""

READS = (
    Clue("no-interface", r"(?:Bootstrap|NET/Socket|NET/IB) ?: [Nn]o (?:socket |usable listening |IP )?interface found"),
    Clue("no-interface", r"no device found (?:matching|after excluding) (?:exactly )?(?P<interface>[^\s,]+), verify NCCL_OOB_NET_IFNAME"),
    Statement(
        r"Unable to find address for: (?P<interface>\S+)",
        "{who} has no interface {interface} with an address, which GLOO_SOCKET_IFNAME names",
        REMEDY,
        0.95,
    ),
    Statement(r"Unable to find interface for: \[?(?P<address>[\w.:]+)", "{who} has no interface with the address {address}", REMEDY, 0.85),
    Clue("no-address", r"connecting to address (?P<peer>\S*) ?with family (?P<family>\d+) is neither AF_INET"),
    Statement(
        r"Socket creation failed ?: Address family not supported",
        "{who} is offered an address of a family that it has not (IPv6)",
        REMEDY,
        0.75,
        "host",
    ),
    Statement(
        r"No interface found in the same subnet as remote address (?P<peer>\S+)<", "{who} has no interface in the subnet of {peer}", REMEDY, 0.85
    ),
)


def check(run: Run) -> list[Finding]:
    """An interface that the settings name and NCCL does not find; one that leads nowhere; a fallback to loopback."""
    return [*_not_found(run), *_absent(run), *_no_address(run), *_leads_nowhere(run), *_loopback(run)]


def _no_address(run: Run) -> list[Finding]:
    """A peer sent an address of no family: its interface has none. It is the one that NCCL_SOCKET_IFNAME names, where only one is named."""
    facts = run.of("no-address")
    if not facts:
        return []
    named = {str(fact.get("value")): fact for fact in run.of("setting") if fact.get("name") == "NCCL_SOCKET_IFNAME"}
    interface = next(iter(named)) if len(named) == 1 else None
    title = f"a peer announced no usable address (family {facts[0].get('family')}): its interface {interface or ''} has none, or it runs another NCCL"
    remedy = f"{REMEDY}; and the same NCCL version on every node"
    quotes = reading.quote(*facts[:3], *named.values())
    return [Finding("wrong-interface", title, Culprit(interface=interface), 0.82 if interface else 0.72, quotes, remedy)]


def _absent(run: Run) -> list[Finding]:
    """A setting names an interface, the host's interfaces are known, and it is not among them."""
    result = []
    for fact in run.of("setting"):
        name, value = str(fact.get("name")), str(fact.get("value"))
        there = [str(other.get("interface")) for other in run.of("interface") if other.host == fact.host]
        wanted = [part.partition(":")[0] for part in value.removeprefix("=").split(",")]
        if name not in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME") or value.startswith("^") or not there or not fact.host:
            continue
        if not any(real.startswith(want) for real in there for want in wanted):
            title = f"{fact.host} has no interface {value}, which {name} names: it has {', '.join(dict.fromkeys(there))}"
            culprit = Culprit(ranks=[fact.rank] if fact.rank is not None else None, hosts=[fact.host], interface=value)
            result.append(Finding("wrong-interface", title, culprit, 0.85, reading.quote(fact), REMEDY))
    return result


def _not_found(run: Run) -> list[Finding]:
    facts = run.of("no-interface")
    if not facts:
        return []
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    named = [fact for fact in run.of("setting") if fact.get("name") == "NCCL_SOCKET_IFNAME"]
    pids = {fact.pid for fact in facts if fact.pid is not None}
    own = [fact for fact in named if fact.rank in ranks] or [fact for fact in named if fact.host in hosts and fact.pid in pids]
    names = own or [fact for fact in named if fact.host in hosts or not hosts]
    interface = next((str(name) for fact in facts if (name := fact.get("interface"))), None) or (str(names[0].get("value")) if names else None)
    who = ", ".join(map(run.name, ranks[:4])) or ", ".join(hosts) or "a rank"
    title = f"{who} has no usable interface" + (
        f" {interface}, which NCCL_SOCKET_IFNAME names" if interface else ": none is up with an address, or the names exclude all"
    )
    culprit = Culprit(ranks=ranks or None, hosts=hosts or None, interface=interface)
    return [Finding("wrong-interface", title, culprit, 0.95, reading.quote(*facts[:4], *names[:1]), REMEDY)]


def _leads_nowhere(run: Run) -> list[Finding]:
    used: dict[str, Fact] = {fact.host: fact for fact in run.of("bootstrap") if fact.host and LOCAL.match(str(fact.get("interface")))}
    everyone = {fact.host for fact in run.of("bootstrap") if fact.host}
    unanswered = [fact for fact in run.of("connect") if fact.get("by") == "NCCL"]
    failed = bool(unanswered or run.of("timeout") or run.of("reset"))
    if not used or (len(everyone) < 2 and not unanswered):
        return []
    sure = (0.85 if failed else 0.6) if len(everyone) > 1 else 0.65
    names = ", ".join(dict.fromkeys(str(fact.get("interface")) for fact in used.values()))
    title = f"NCCL uses {names} on {', '.join(used)}, which does not lead to other hosts"
    culprit = Culprit(hosts=list(used), interface=str(next(iter(used.values())).get("interface")))
    return [Finding("wrong-interface", title, culprit, sure, reading.quote(*used.values(), *unanswered[:1]), REMEDY)]


def _loopback(run: Run) -> list[Finding]:
    fallen = run.of("loopback-fallback")
    peers = [fact for fact in run.of("connect") if re.match(r"\[?(?:127\.|::1)", str(fact.get("address", "")))]
    if not fallen or not peers:
        return []
    ranks = sorted({fact.rank for fact in fallen if fact.rank is not None})
    blamed = run.blame(ranks)
    title = f"{', '.join(map(run.name, ranks[:4])) or 'a rank'} could not resolve its own host name and offers its peers the loopback address"
    culprit = Culprit(ranks=ranks or None, hosts=blamed.hosts, interface="lo")
    return [Finding("wrong-interface", title, culprit, 0.9, reading.quote(*fallen[:3], *peers[:1]), REMEDY)]
