"""What several rules read out of the ways between nodes that agents tried (facts of kind "path") and of their interfaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ncclcheck.model import Culprit, Fact, Run

Way = tuple[str, str]  # from a host to another

NO_WAY = ("timeout", "unreachable")
"""Answers of a path that say that nothing came back: neither a process nor the kernel of the other end."""


def lost(run: Run) -> set[str]:
    """Hosts whose agents fell silent without an end of their connection: the host, or the way to it, is gone."""
    return run.once(_lost)


def _lost(run: Run) -> set[str]:
    gone = run.of("agent-lost")
    paused = {str(fact.host) for fact in gone if not str(fact.get("reason", "")).startswith("silent")}
    return {str(fact.host) for fact in gone if fact.host and fact.get("closed") is False and fact.host not in paused}


def failing(run: Run) -> list[Fact]:
    """Ways on which nothing comes back."""
    return [fact for fact in run.of("path") if fact.host and fact.get("answer") in NO_WAY]


def control_works(run: Run, fact: Fact) -> bool:
    """Whether the agents talk to each other on this very way, over the port that they agreed on, while the try of another one fails."""
    return bool(fact.get("control")) and not {fact.host, fact.get("peer")} & lost(run) and {fact.host, fact.get("peer")} <= run.once(_heard)


def _heard(run: Run) -> set[str | None]:
    return {other.host for kind in ("path", "interface") for other in run.of(kind)}


def way(fact: Fact) -> Way:
    """From the host that tried to its peer."""
    return str(fact.host), str(fact.get("peer"))


def open_ways(run: Run) -> set[Way]:
    """Ways that a peer or its kernel answered."""
    return {way(fact) for fact in run.of("path") if fact.host and fact.get("answer") not in (*NO_WAY, "unsure")}


def broken(run: Run) -> list[Fact]:
    """Interfaces that are down, gone, without carrier, or without an address that they had, and were well when the launch began."""
    return run.once(_broken)


def _broken(run: Run) -> list[Fact]:
    return [
        fact
        for fact in run.of("interface")
        if fact.host and (fact.get("lost") or (fact.get("state_before") == "up" and fact.get("state") in ("down", "gone", "no-carrier")))
    ]


def changed(run: Run) -> list[Fact]:
    """Interfaces that are not as they were when the launch began."""
    return [fact for fact in run.of("interface") if fact.host and fact.get("changed")]


def blame(run: Run, ways: Iterable[Way], well: set[Way]) -> Culprit:
    """Who is at fault where these ways are bad and those are well.

    The host whose interface is not as it was; else the one that is part of every bad way, where it is the only such; else of two hosts
    the one that nobody else gets on with; else both of them, with the link between.
    """
    bad = list(dict.fromkeys(ways))
    hosts = list(dict.fromkeys(host for each in bad for host in each))
    told = [fact for fact in changed(run) if fact.host in hosts]
    if len({fact.host for fact in told}) == 1 and len(hosts) == 2 and all(fact.get("state") == "no-carrier" for fact in told):
        return Culprit(hosts=sorted(hosts), interface=str(told[0].get("interface")), link="-".join(sorted(hosts)))  # a cable has two ends
    if len({fact.host for fact in told}) == 1:
        return Culprit(hosts=[str(told[0].host)], interface=str(told[0].get("interface")))
    everywhere = [host for host in hosts if all(host in each for each in bad)]
    if len(everywhere) == 1:
        return Culprit(hosts=everywhere)
    if len(hosts) == 2:
        alone = [host for host in hosts if not any(host in each for each in well if set(each) != set(hosts))]
        if len(alone) == 1:
            return Culprit(hosts=alone)
        return Culprit(hosts=sorted(hosts), link="-".join(sorted(hosts)))
    return Culprit(hosts=sorted(hosts))


def between(culprit: Culprit, ways: Sequence[Way]) -> str:
    """`b and the other hosts (a, c)`, or `a and b`: between whom something is wrong."""
    named = list(culprit.hosts or ())
    others = sorted({host for each in ways for host in each} - set(named))
    if not others:
        return " and ".join(named[:8])
    return f"{' and '.join(named)} and {', '.join(others[:6])}{' and others' if len(others) > 6 else ''}"


def of_interfaces(run: Run, hosts: Iterable[str]) -> str:
    """What changed at the interfaces of these hosts, in words; empty where nothing did."""
    said = [f"on {fact.host}, {', '.join(fact.get('changed'))}" for fact in changed(run) if fact.host in set(hosts)]
    return "; ".join(said[:3])


def only(run: Run, host: str) -> Culprit:
    """One host, with its interface where that is known."""
    names = [str(fact.get("interface")) for fact in run.of("interface") if fact.host == host and fact.get("state_before")]
    return Culprit(hosts=[host], interface=names[0] if names else None)
