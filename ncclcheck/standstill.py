"""A while in which no rank moved for longer than its step may take, and which ended by itself: how long, in what, and was the CPU short? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ncclcheck.journal import Slot
from ncclcheck.model import Fact
from ncclcheck.pace import Pace


def fact(slots: Mapping[int, Slot], readings: Mapping[int, Sequence[Pace]], since: float, moved: float) -> Fact:
    """A fact of kind "stood-still"; fields seconds, step, seq, network, starved.

    `slots` are as they were then, since `since`; something had moved again at `moved`, if no reading knows better.
    `network`: every rank had announced a collective or was between two, none was at work of its own. `starved`: the most seconds for which
    a rank could have run and got no CPU meanwhile.
    """
    waited = [_of(paces, since) for paces in readings.values()]
    until = min((resumed.now for _, resumed in waited if resumed), default=moved)
    starved = max((resumed.starved - last.starved for last, resumed in waited if last and resumed), default=0.0)
    newest = max(slots.values(), key=lambda slot: slot.seq)
    network = not any(slot.step.inside and slot.local for slot in slots.values())
    fields = {"seconds": round(until - since, 1), "step": newest.name, "seq": newest.seq, "network": network, "starved": round(starved, 1)}
    return Fact("stood-still", fields=fields)


def _of(readings: Sequence[Pace], since: float) -> tuple[Pace | None, Pace | None]:
    """One rank's last reading before it stood still, and the first in which it has moved again."""
    last = next((reading for reading in reversed(readings) if reading.now <= since), None)
    resumed = next((reading for reading in readings if reading.now > since and (not last or reading.seq > last.seq)), None)
    return last, resumed
