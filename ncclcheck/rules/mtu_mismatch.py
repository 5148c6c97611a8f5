"""Large packets vanish between hosts: their interfaces, or the network between them, allow different sizes (MTU).

Small messages get through, so ranks find each other and small collectives work; the first large one hangs.

Blames
    fact interface @ a name=eth0 mtu=9000
    fact interface @ b name=eth0 mtu=1500
    => a b

Blames
    log a.log: ping: local error: message too long, mtu=1500
    log a.log: From 10.0.0.254 icmp_seq=1 Frag needed and DF set (mtu = 1450)
    => -

Spares
    fact interface @ a name=eth0 mtu=1500
    fact interface @ b name=eth0 mtu=1500
    fact interface @ b name=lo mtu=65536
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

REMEDY = "ip link set dev <interface> mtu 1500   # the same on every node and not more than switches and tunnels carry; test: ping -M do -s 8972 <peer>; ibv_devinfo | grep active_mtu"

READS = (
    Statement(r"local error: message too long, mtu=(?P<mtu>\d+)", "packets larger than {mtu} bytes do not leave this host", REMEDY, 0.7, "host"),
    Statement(
        r"Frag(?:mentation)? needed and DF set \(mtu = (?P<mtu>\d+)\)",
        "the network between the hosts carries at most {mtu} bytes",
        REMEDY,
        0.85,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """An interface that NCCL uses, or that bears one name on several hosts, with different MTUs."""
    used = {fact.get("interface") for fact in run.of("bootstrap")}
    facts = [
        fact for fact in run.of("interface") if fact.host and fact.get("mtu") and (not used or fact.get("name") in used) and fact.get("name") != "lo"
    ]
    result = []
    for name in dict.fromkeys(fact.get("name") for fact in facts):
        sizes = {fact.host: fact for fact in facts if fact.get("name") == name}
        if len({fact.get("mtu") for fact in sizes.values()}) > 1:
            said = ", ".join(f"{fact.get('mtu')} on {host}" for host, fact in sizes.items())
            title = f"the MTU of {name} differs: {said}"
            culprit = Culprit(hosts=[host for host in sizes if host], interface=str(name))
            result.append(Finding("mtu-mismatch", title, culprit, 0.7, reading.quote(*sizes.values()), REMEDY))
    return result
