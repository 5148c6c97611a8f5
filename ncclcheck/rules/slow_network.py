"""The way between nodes works and is far slower than it was, or than the others in this job are.

Compared is a way with itself: what agents measured before the ranks began, and what they measure now. A busy machine
makes every measurement slower, so only what is slower by far, and in what both ends saw where both looked, counts.

Blames
    fact path @ a peer=b answer=ok out_bytes_per_s=900000000 out_bytes_per_s_before=900000000 in_bytes_per_s=1000000 in_bytes_per_s_before=900000000
    fact path @ b peer=a answer=ok out_bytes_per_s=1000000 out_bytes_per_s_before=900000000 in_bytes_per_s=900000000 in_bytes_per_s_before=900000000
    => b

Blames
    fact path @ a peer=b answer=ok rtt_ms=100 rtt_ms_before=1
    fact path @ b peer=a answer=ok rtt_ms=100 rtt_ms_before=1
    => a b

Blames
    fact path @ a peer=b answer=ok rtt_ms=25 rtt_ms_before=1 out_bytes_per_s=5500000 out_bytes_per_s_before=58000000
    fact path @ b peer=a answer=ok rtt_ms=25 rtt_ms_before=1 out_bytes_per_s=5500000 out_bytes_per_s_before=36000000
    => a b

Blames
    fact path @ a peer=b answer=ok rtt_ms=12 rtt_ms_before=1 out_bytes_per_s=11000000 out_bytes_per_s_before=120000000
    => a b

Blames
    fact path @ a peer=b answer=ok rtt_ms=25 rtt_ms_before=1 out_bytes_per_s=2000000 out_bytes_per_s_before=120000000
    => a

Blames
    fact path @ a peer=b answer=ok rtt_ms=100 rtt_ms_before=1
    fact path @ c peer=a answer=ok rtt_ms=1 rtt_ms_before=1
    fact path @ b peer=c answer=ok rtt_ms=100 rtt_ms_before=1
    => b

Blames
    fact path @ a peer=b answer=ok rtt_ms=100
    fact path @ c peer=a answer=ok rtt_ms=1
    fact path @ b peer=c answer=ok rtt_ms=100
    fact path @ d peer=a answer=ok rtt_ms=1
    fact path @ c peer=d answer=ok rtt_ms=1
    => b

Blames
    fact path @ a peer=b answer=ok segments=700 retransmits=0
    fact path @ b peer=a answer=ok segments=700 retransmits=60
    => a b

Blames
    fact path @ a peer=b answer=ok segments=700 retransmits=0
    fact path @ b peer=a answer=ok segments=700 retransmits=0
    fact interface @ a interface=eth0 segments=9000 retransmits=420
    fact interface @ b interface=eth0 segments=9000 retransmits=5
    => a b

Blames
    fact path @ a peer=b answer=ok segments=700 retransmits=60
    fact path @ b peer=c answer=ok segments=700 retransmits=50
    fact path @ c peer=a answer=ok segments=700 retransmits=0
    => b

Spares
    fact path @ a peer=b answer=ok segments=700 retransmits=26
    fact path @ b peer=a answer=ok segments=700 retransmits=0
    fact interface @ a interface=eth0 segments=90000 retransmits=420

Spares
    fact path @ a peer=b answer=ok out_bytes_per_s=30000000 out_bytes_per_s_before=900000000 rtt_ms=12 rtt_ms_before=1
    fact path @ b peer=a answer=ok in_bytes_per_s=40000000 in_bytes_per_s_before=900000000 rtt_ms=8 rtt_ms_before=1

Spares
    fact path @ a peer=b answer=ok out_bytes_per_s=1000000 out_bytes_per_s_before=900000000
    fact path @ b peer=a answer=ok in_bytes_per_s=800000000 in_bytes_per_s_before=900000000

Spares
    fact path @ a peer=b answer=ok rtt_ms=80 rtt_ms_before=78
    fact path @ b peer=a answer=ok rtt_ms=80 rtt_ms_before=78

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce... | gone
    fact path @ a peer=b answer=ok rtt_ms=100 rtt_ms_before=1
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ncclcheck.echo import LARGEST
from ncclcheck.model import Fact, Finding, Run
from ncclcheck.rules import _paths as paths
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word
from ncclcheck.units import bytes_text

EXPLAINS = ("network_unreachable", "slow_rank")

SLOWER = 10.0  # times as slow as before, or as the middle of the others
SLOW = 12e6  # bytes/s: with four busy processes for each core, the better of two measurements is still faster
LATE = 15.0  # ms of the kernel's own round trip: it answers in its interrupts, and does not wait for a core
ROUND_TRIPS = 10  # in which a large message is through at any rate: TCP begins with 10 segments and doubles them (RFC 6928), and greets before
LOSS, LOST = 0.05, 30  # share of a large message's segments that were sent again (even in the better of two), and how many at the least
LOSSES, LOST_ALL = 0.02, 100  # the same of all that a node sent during the launch,
LOSSES_SLOWED, LOST_SLOWED = 0.003, 20  # and where its collectives take long, too
BROKEN = (*paths.NO_WAY, "large-lost")  # answers that say more than slowness
OTHERS = 3  # ways of others from which what is usual here can be told

REMEDY = (
    "on {host}: tc -s qdisc show; ip -s link; ethtool eth0 | grep Speed; nstat -az TcpRetransSegs   # a shaper, a lower rate, errors? then measure: "
    "iperf3 -c {peer} -P 8, and ping -c 20 {peer}"
)


@dataclass(frozen=True, slots=True)
class Slow:
    """What is slow, in words, and the facts that show it."""

    ways: Sequence[paths.Way]
    said: str
    facts: Sequence[Fact]
    directed: bool  # whether it is known to be one of the two directions, and which


def check(run: Run) -> list[Finding]:
    """Ways that were measured slow; nobody judges them where a rank is gone or stopped, or where a way is broken altogether."""
    trouble = any(run.of(kind) for kind in ("gone", "stopped", "agent-lost")) or any(fact.get("answer") in BROKEN for fact in run.of("path"))
    return [] if trouble else [_finding(run, slow) for slow in slow_paths(run)][:1]


def slow_paths(run: Run) -> list[Slow]:
    """Slow directions by rate, late ways by round trip, lossy directions by what was sent again: the most telling first."""
    facts = [fact for fact in run.of("path") if fact.host and fact.get("answer") == "ok"]
    late, thin, lossy = _late(facts), _thin(facts), _lossy(facts, run)
    one_way = thin and thin.directed  # what is late in the queue of a thin way is late both ways
    return [slow for slow in ((thin, late, lossy) if one_way else (late, thin, lossy)) if slow]


def _late(facts: Sequence[Fact]) -> Slow | None:
    usual = _usual([_number(fact, "rtt_ms") for fact in facts])
    found: dict[paths.Way, list[bool]] = {}
    for fact in facts:
        before, now = _number(fact, "rtt_ms_before") or usual, _number(fact, "rtt_ms")
        here, there = sorted(paths.way(fact))
        if before and now:
            found.setdefault((here, there), []).append(now > LATE and now > SLOWER * before)
    ways = [way for way, late in found.items() if all(late)]
    shown = [fact for fact in facts if tuple(sorted(paths.way(fact))) in ways]
    worst = max((_number(fact, "rtt_ms") for fact in shown), default=0.0)
    least = min((_number(fact, "rtt_ms_before") for fact in shown), default=0.0) or usual
    return Slow(ways, f"a round trip takes {worst:.0f} ms, and usually {least:.2g} ms", shown, directed=False) if ways else None


def _thin(facts: Sequence[Fact]) -> Slow | None:
    usual = _usual([_number(fact, name) for fact in facts for name in ("out_bytes_per_s", "in_bytes_per_s")])
    found: dict[paths.Way, list[tuple[float, float]]] = {}
    waiting: set[paths.Way] = set()  # ways whose rate says no more than how long a round trip takes, which is the same in both directions
    for fact in facts:
        here, there = paths.way(fact)
        for way, name in (((here, there), "out_bytes_per_s"), ((there, here), "in_bytes_per_s")):
            now, before = _number(fact, name), _number(fact, f"{name}_before") or usual
            if now and before:
                found.setdefault(way, []).append((now, before))
                if now * ROUND_TRIPS * _number(fact, "rtt_ms") / 1e3 > LARGEST:
                    waiting.add(way)
    ways = [way for way, rates in found.items() if all(now < SLOW and now * SLOWER < before for now, before in rates)]
    shown = [fact for fact in facts if paths.way(fact) in ways or paths.way(fact)[::-1] in ways]
    now, before = min((rate for way in ways for rate in found[way]), default=(0.0, 0.0))
    said = f"{bytes_text(round(now))}/s pass, and usually {bytes_text(round(before))}/s"
    one_way = not {*ways} & {way[::-1] for way in ways} and not waiting & {*ways}
    return Slow(ways, said, shown, directed=one_way) if ways else None


def _lossy(facts: Sequence[Fact], run: Run) -> Slow | None:
    """Whether the sender's end or the receiver's loses them cannot be told, so both directions of a way are one."""
    interfaces = run.of("interface")
    shown = [fact for fact in facts if _again(fact, LOST, LOSS)]
    most = (LOST_SLOWED, LOSSES_SLOWED) if run.of("slowed") else (LOST_ALL, LOSSES)
    losing = {fact.host for fact in interfaces if _again(fact, *most)}
    if not shown:  # a way that loses a few of a hundred may have lost none of this one message
        shown = [fact for fact in facts if losing & {*paths.way(fact)}]
    if not shown:
        return None
    counted = [fact for fact in (*shown, *interfaces) if _again(fact, LOST, LOSS) or fact.host in losing]
    worst = max(counted, key=lambda fact: _number(fact, "retransmits"))
    said = f"packets are lost: {worst.get('retransmits')} of {worst.get('segments')} segments from {worst.host} were sent again"
    return Slow(list(dict.fromkeys(tuple(sorted(paths.way(fact))) for fact in shown)), said, counted, directed=False)  # type: ignore[misc]


def _again(fact: Fact, least: int, share: float) -> bool:
    return _number(fact, "retransmits") >= least and _number(fact, "retransmits") > share * _number(fact, "segments")


def _finding(run: Run, slow: Slow) -> Finding:
    well = {each for fact in run.of("path") for each in (paths.way(fact), paths.way(fact)[::-1])} - {*slow.ways, *(way[::-1] for way in slow.ways)}
    culprit = paths.blame(run, slow.ways, well)
    starts = {here for here, _ in slow.ways}
    if slow.directed and culprit.link and len(starts) == 1:  # it is slow away from one host, and well towards it
        culprit = paths.only(run, starts.pop())
    said = paths.of_interfaces(run, culprit.hosts or ())
    host, (here, there) = (culprit.hosts or ("each host",))[0], slow.ways[0]
    return Finding(
        "slow-network",
        f"the network between {paths.between(culprit, slow.ways)} is slow: {slow.said}" + (f"; {said}" if said else ""),
        culprit,
        0.9 if said else 0.85 if len(slow.facts) > 1 else 0.7,
        reading.quote(*(fact for fact in paths.changed(run) if fact.host in (culprit.hosts or ())), *slow.facts[:6], *run.of("clock")),
        REMEDY.format(host=word(host) if culprit.hosts else host, peer=word(there if host == here else here)),
    )


def _usual(values: Sequence[float]) -> float:
    """The middle of what was measured, where that is of enough ways; else 0."""
    known = [value for value in values if value]
    return statistics.median(known) if len(known) > OTHERS else 0.0


def _number(fact: Fact, name: str) -> float:
    value = fact.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
