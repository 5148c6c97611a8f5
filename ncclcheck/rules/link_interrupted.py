"""A link or the network was away for a moment while the ranks ran, and came back: the job survived, and the next one may not.

The kernel counts how often a link was lost, so that is beyond doubt. Where no node lost its own link, an outage further away is concluded
from two things together: no rank moved for longer than its collective may take, though none of them wanted for a CPU, and the kernel waited
in vain for answers meanwhile, which it gives by itself however busy a machine is. An outage shows so at both ends: data is lost in one
direction, or its acknowledgements in the other. Of a job on one host, the network is no matter.

Blames
    fact outage @ b interface=eth0 losses=1 timeouts=2
    => b

Blames
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact outage @ b interface=mlx5_0:1 losses=3 timeouts=0
    => b

Blames
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact outage @ b interface=eth0 losses=0 timeouts=1
    fact stood-still seconds=3 step=all_reduce seq=40 network=True starved=0
    => a b

Spares
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact outage @ b interface=eth0 losses=0 timeouts=1

Spares
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact stood-still seconds=3 step=all_reduce seq=40 network=True starved=0

Spares
    rank 0 @ a: init, all_reduce
    rank 1 @ a: init, all_reduce
    fact outage @ a interface=eth0 losses=1 timeouts=2

Spares
    fact stood-still seconds=3 step=all_reduce seq=40 network=True starved=0

Spares
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact outage @ b interface=eth0 losses=0 timeouts=1
    fact stood-still seconds=3 step=all_reduce seq=40 network=True starved=2

Spares
    fact outage @ a interface=eth0 losses=0 timeouts=2
    fact outage @ b interface=eth0 losses=0 timeouts=1
    fact stood-still seconds=3 step=checkpoint seq=40 network=False starved=0
"""

from __future__ import annotations

from collections.abc import Sequence

from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("peer_reset", "slow_network", "slow_rank")

STARVED = 0.5  # share of a standstill for which a rank got no CPU (before and after it, too): then that may be the reason
NAMED = 8  # hosts


def check(run: Run) -> list[Finding]:
    """One finding for all links that were lost; else one for a standstill of the network."""
    if run.ranks and len({who.host for who in run.ranks.values()}) < 2:
        return []
    lost = [fact for fact in run.of("outage") if fact.host and fact.get("losses", 0) > 0]
    return _links(run, lost) if lost else _standstill(run)


def _links(run: Run, lost: Sequence[Fact]) -> list[Finding]:
    still = _stood_still(run)
    said = [f"{fact.get('interface')} of {fact.host} {_times(fact.get('losses'))}" for fact in lost[:NAMED]]
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    stood = f"; {_step(still[0])} stood still for {still[0].get('seconds')} s" if still else ""
    hosts = list(dict.fromkeys(str(fact.host) for fact in lost))
    names = {str(fact.get("interface")) for fact in lost}
    return [
        Finding(
            "link-interrupted",
            f"a link was lost while the ranks ran, and came back: {', '.join(said)}{more}{stood}",
            Culprit(hosts=hosts, interface=names.pop() if len(names) == 1 else None),
            0.95,
            reading.quote(*lost[:NAMED], *still),
            _remedy(hosts[0], str(lost[0].get("interface"))),
            ["dmesg -T | grep -i link on these hosts, and the log of their switch ports"],
        )
    ]


def _standstill(run: Run) -> list[Finding]:
    waited = [fact for fact in run.of("outage") if fact.host and fact.get("timeouts", 0) > 0]
    still = _stood_still(run)
    hosts = sorted({str(fact.host) for fact in waited})
    if len(hosts) < 2 or not still:
        return []
    return [
        Finding(
            "link-interrupted",
            f"the network carried nothing for about {still[0].get('seconds')} s in {_step(still[0])}, and went on; TCP waited in vain for answers "
            f"on {', '.join(hosts[:NAMED])}",
            Culprit(hosts=hosts),
            0.8,
            reading.quote(*still, *waited[:NAMED]),
            _remedy(hosts[0], str(waited[0].get("interface"))),
            ["nstat -az | grep -i tcp on these hosts, and the log of their switch"],
        )
    ]


def _stood_still(run: Run) -> list[Fact]:
    """The longest time for which nothing moved that is the network's, if any."""
    found = [fact for fact in run.of("stood-still") if fact.get("network") and fact.get("starved", 0.0) < STARVED * fact.get("seconds", 0.0)]
    return sorted(found, key=lambda fact: -float(fact.get("seconds")))[:1]


def _step(fact: Fact) -> str:
    return f"{fact.get('step')} (#{fact.get('seq')})"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _remedy(host: str, interface: str) -> str:
    if ":" in interface:
        return f"on {word(host)}: ibstat; dmesg -T | grep -i -e mlx -e link | tail   # then the cable, its transceiver and the port of the switch"
    return (
        f"on {word(host)}: ip -s -s link show {word(interface)}; dmesg -T | grep -i link | tail"
        "   # then the cable, its transceiver and the port of the switch"
    )
