"""Reads Slurm's node lists: `gpu-[01-03,07],login1` names five hosts."""

from __future__ import annotations

import itertools
import re


def expand_hosts(nodelist: str) -> tuple[str, ...]:
    """`gpu-[01-03,07],login1` -> ("gpu-01", "gpu-02", "gpu-03", "gpu-07", "login1"), as `scontrol show hostnames` does.

    Raises ValueError for what is not a Slurm node list.
    """
    span = r"\d+(?:-\d+)?"
    item = rf"(?:[^\[\],\s]|\[{span}(?:,{span})*\])+"
    if not re.fullmatch(rf"{item}(?:,{item})*", nodelist):
        raise ValueError(f"{nodelist!r} is not a Slurm node list such as gpu-[01-03,07],login1")
    hosts: list[str] = []
    for name in re.findall(item, nodelist):
        text_and_ranges = re.split(r"\[(.*?)\]", name)  # odd places hold what stood in brackets
        choices = [_numbers(part) if place % 2 else [part] for place, part in enumerate(text_and_ranges)]
        hosts += map("".join, itertools.product(*choices))
    return tuple(hosts)


def _numbers(ranges: str) -> list[str]:
    """`08-10,12` -> 08, 09, 10, 12: as many digits as the range's first number."""
    numbers: list[str] = []
    for span in ranges.split(","):
        first, _, last = span.partition("-")
        if int(last or first) < int(first):
            raise ValueError(f"{span!r} in a node list runs backwards")
        numbers += (f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1))
    return numbers
