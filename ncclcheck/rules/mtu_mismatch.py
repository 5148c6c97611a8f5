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

Blames
    fact path @ a peer=b answer=large-lost out_lost=True in_lost=False
    fact path @ b peer=a answer=large-lost out_lost=False in_lost=True
    => a b

Blames
    fact path @ a peer=b answer=large-lost out_lost=True in_lost=False path_mtu=1280
    fact path @ b peer=c answer=large-lost out_lost=False in_lost=True
    fact path @ c peer=a answer=ok
    => b

Blames
    fact path @ a peer=b answer=large-lost out_lost=True in_lost=True
    fact interface @ a interface=eth0 mtu=1500 mtu_before=1500
    fact interface @ b interface=eth0 mtu=1280 mtu_before=1500 changed=mtu
    => b

Blames
    fact path @ a peer=b answer=ok
    fact path @ b peer=a answer=ok
    fact interface @ a interface=eth0 mtu=1500 mtu_before=1500
    fact interface @ b interface=eth0 mtu=1280 mtu_before=1500 state=up changed=mtu
    => b

Spares
    fact path @ a peer=b answer=large-lost out_lost=True in_lost=False
    fact path @ b peer=a answer=ok

Spares
    fact interface @ a interface=eth0 mtu=1500
    fact interface @ b interface=eth0 mtu=1400
    fact path @ a peer=b answer=ok
    fact path @ b peer=a answer=ok

Spares
    fact ibport @ a device=mlx5_0 mtu=4096
    fact ibport @ b device=mlx5_0 mtu=4096

Spares
    fact interface @ a interface=eth0 mtu=1500
    fact interface @ b interface=eth0 mtu=1500
    fact interface @ b interface=lo mtu=65536
"""

from __future__ import annotations

from collections.abc import Sequence

from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _paths as paths
from ncclcheck.rules import _reading as reading

EXPLAINS = ("network_unreachable", "rank_stuck_in_python", "peer_reset", "agent_lost", "slow_network")

REMEDY = (
    "ip link set dev <interface> mtu 1500   # the same on every node, and not more than switches and tunnels carry; "
    "test: ping -M do -s 8972 <peer>; ibv_devinfo | grep active_mtu"
)


def check(run: Run) -> list[Finding]:
    """An interface that NCCL uses, or that bears one name on several hosts, with different MTUs."""
    tried = _tried(run) or _lowered(run)
    return [*tried, *_limited(run), *([] if run.of("path") else _interfaces(run)), *_cards(run), *_too_long(run)]


def _lowered(run: Run) -> list[Finding]:
    """An interface whose MTU was lowered in the middle of a launch: new connections agree on smaller packets, the ranks' old ones do not."""
    facts = [fact for fact in paths.changed(run) if 0 < int(fact.get("mtu") or 0) < int(fact.get("mtu_before") or 0)]
    if any(run.of(kind) for kind in ("gone", "stopped")) or paths.broken(run):
        return []
    return [
        Finding(
            "mtu-mismatch",
            f"the MTU of {fact.get('interface')} on {fact.host} was lowered from {fact.get('mtu_before')} to {fact.get('mtu')} during the run",
            Culprit(hosts=[str(fact.host)], interface=str(fact.get("interface"))),
            0.9,
            reading.quote(fact, *run.of("clock")),
            REMEDY,
        )
        for fact in facts
    ]


def _tried(run: Run) -> list[Finding]:
    """Ways that small messages pass and large ones do not, as both ends saw it where both looked."""
    facts = [fact for fact in run.of("path") if fact.host and fact.get("answer") in ("ok", "large-lost")]
    seen: dict[paths.Way, list[bool]] = {}
    for fact in facts:
        here, there = paths.way(fact)
        seen.setdefault((here, there), []).append(bool(fact.get("out_lost")))
        seen.setdefault((there, here), []).append(bool(fact.get("in_lost")))
    ways = [each for each, lost in seen.items() if all(lost)]
    if not ways:
        return []
    culprit = paths.blame(run, ways, {each for each, lost in seen.items() if not any(lost)})
    said = paths.of_interfaces(run, culprit.hosts or ())
    named = ", ".join(f"from {here} to {there}" for here, there in ways[:4])
    return [
        Finding(
            "mtu-mismatch",
            f"small messages pass {named}, and {_what(facts)} vanish" + (f": {said}" if said else ""),
            culprit,
            0.95 if said else 0.85,
            reading.quote(*(fact for fact in paths.changed(run)), *(fact for fact in facts if fact.get("answer") == "large-lost"), *run.of("clock"))[
                :8
            ],
            REMEDY,
        )
    ]


def _what(facts: Sequence[Fact]) -> str:
    """What is lost, as far as it was found out."""
    sizes = [size for fact in facts if fact.get("out_lost") and isinstance(size := fact.get("path_mtu"), int) and size]
    return f"packets of more than {min(sizes)} bytes" if sizes else "large ones"


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
