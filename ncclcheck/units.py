"""Bytes, seconds and bandwidth: parse what people type, print what they read."""

from __future__ import annotations

import re

_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "k": 2**10, "m": 2**20, "g": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bytes(text: str) -> int:
    """`64MiB` -> 67108864. K, M and G alone mean KiB, MiB and GiB. Raises ValueError for anything below 1 byte."""
    value = _parse(text, _SIZES, "a size such as 8, 64KiB or 1GiB")
    if value < 1:
        raise ValueError(f"a size must be at least 1 byte, not {text!r}")
    return int(value)


def parse_seconds(text: str) -> float:
    """`1.5m` -> 90.0. Raises ValueError for anything that is not above zero."""
    value = _parse(text, _TIMES, "a time such as 90, 90s or 1.5m")
    if value <= 0:
        raise ValueError(f"a time must be above zero, not {text!r}")
    return value


def _parse(text: str, units: dict[str, float] | dict[str, int], wanted: str) -> float:
    match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2].lower()]


def bytes_text(nbytes: float) -> str:
    """67108864 -> `64 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024 or unit == "GiB":
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    raise AssertionError


def seconds_text(seconds: float) -> str:
    """0.00042 -> `420 µs`."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s")):
        if abs(seconds) < limit:
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def bandwidth_text(rate: float) -> str:
    """Bytes per second -> `1.23 GB/s` (10^9), or MB/s below 0.1 GB/s."""
    return f"{rate / 1e9:.3g} GB/s" if rate >= 1e8 else f"{rate / 1e6:.3g} MB/s"
