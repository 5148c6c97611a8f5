"""Large packets vanish between hosts: their interfaces, or the network between them, allow different sizes (MTU).

Small messages get through, so ranks find each other and small collectives work; the first large one hangs.

Blames
    fact interface @ a interface=eth0 mtu=9000
    fact interface @ b interface=eth0 mtu=1500
    => a b

Blames
    fact mtu-limit @ a mtu=1450
    => a

Blames
    fact ibport @ a device=mlx5_0 mtu=1024
    fact ibport @ b device=mlx5_0 mtu=4096
    => a b

Blames
    fact ib-error @ a status=1 peer=b
    => -

Spares
    fact ibport @ a device=mlx5_0 mtu=4096
    fact ibport @ b device=mlx5_0 mtu=4096

Spares
    fact interface @ a interface=eth0 mtu=1500
    fact interface @ b interface=eth0 mtu=1500
    fact interface @ b interface=lo mtu=65536
"""

from __future__ import annotations

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

REMEDY = (
    "ip link set dev <interface> mtu 1500   # the same on every node, and not more than switches and tunnels carry; "
    "test: ping -M do -s 8972 <peer>; ibv_devinfo | grep active_mtu"
)


def check(run: Run) -> list[Finding]:
    """An interface that NCCL uses, or that bears one name on several hosts, with different MTUs."""
    return [*_limited(run), *_interfaces(run), *_cards(run), *_too_long(run)]


def _cards(run: Run) -> list[Finding]:
    """RDMA ports that bear one name on several hosts, with different active MTUs."""
    result = []
    ports = [fact for fact in run.of("ibport") if fact.host and fact.get("mtu") and fact.get("state") != "down"]
    for name in dict.fromkeys(fact.get("device") for fact in ports):
        sizes = {fact.host: fact for fact in ports if fact.get("device") == name}
        if len({fact.get("mtu") for fact in sizes.values()}) > 1:
            said = ", ".join(f"{fact.get('mtu')} on {host}" for host, fact in sizes.items())
            title = f"the active MTU of {name} differs: {said}"
            culprit = Culprit(hosts=[host for host in sizes if host], interface=str(name))
            result.append(Finding("mtu-mismatch", title, culprit, 0.75, reading.quote(*sizes.values()), REMEDY))
    return result


def _too_long(run: Run) -> list[Finding]:
    """IBV_WC_LOC_LEN_ERR: a packet is longer than the receiver's MTU allows."""
    facts = [fact for fact in run.of("ib-error") if fact.get("status") == 1]
    if not facts:
        return []
    title = f"a packet from {facts[0].get('peer', 'a peer')} is longer than its receiver takes (status 1, local length error): their MTUs differ"
    return [Finding("mtu-mismatch", title, Culprit(), 0.65, reading.quote(*facts[:4]), REMEDY)]


def _interfaces(run: Run) -> list[Finding]:
    used = {fact.get("interface") for fact in run.of("bootstrap")}
    facts = [
        fact
        for fact in run.of("interface")
        if fact.host and fact.get("mtu") and (not used or fact.get("interface") in used) and fact.get("interface") != "lo"
    ]
    result = []
    for name in dict.fromkeys(fact.get("interface") for fact in facts):
        sizes = {fact.host: fact for fact in facts if fact.get("interface") == name}
        if len({fact.get("mtu") for fact in sizes.values()}) > 1:
            said = ", ".join(f"{fact.get('mtu')} on {host}" for host, fact in sizes.items())
            title = f"the MTU of {name} differs: {said}"
            culprit = Culprit(hosts=[host for host in sizes if host], interface=str(name))
            result.append(Finding("mtu-mismatch", title, culprit, 0.7, reading.quote(*sizes.values()), REMEDY))
    return result


def _limited(run: Run) -> list[Finding]:
    facts = run.of("mtu-limit")
    if not facts:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    title = f"packets larger than {facts[0].get('mtu')} bytes do not get through"
    return [Finding("mtu-mismatch", title, Culprit(hosts=hosts or None), 0.75, reading.quote(*facts[:4]), REMEDY)]
