"""Whether the engine's traffic crossed the network: the bytes that left this node, by the counters of its interfaces and RDMA ports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ncclcheck import units
from ncclcheck.model import Fact
from ncclcheck.probe import Rank

REFRESH_SECONDS = 2.5  # some drivers update their byte counters once a second


def sent_bytes() -> int:
    """Bytes sent so far by the interfaces of this network namespace, loopback left out, and by the RDMA ports."""
    total = 0
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]:
        name, _, counters = line.partition(":")
        total += 0 if name.strip() == "lo" else int(counters.split()[8])
    return total + sum(count or 0 for count in _rdma_bytes().values())


def check(rank: Rank, before: int, expected: int) -> Iterator[Fact]:
    """Whether this node sent `expected` bytes since its counters read `before`: a fact "traffic", and a note or a failure where it did not.

    What may be expected: an all-reduce of S bytes makes every node send at least S, by any algorithm.
    """
    with rank.local("read traffic counters"):
        deadline = time.monotonic() + REFRESH_SECONDS
        while (sent := sent_bytes() - before) < expected and time.monotonic() < deadline:
            time.sleep(0.1)
    yield Fact("traffic", fields={"sent_bytes": sent, "expected_bytes": expected})
    if sent >= expected:
        return
    amounts = f"{units.bytes_text(sent)} sent, at least {units.bytes_text(expected)} expected"
    if reason := _uncounted():
        yield Fact("note", fields={"text": f"whether the engine's traffic crossed the network is not known ({reason}): {amounts}"})
    else:
        title = f"the engine's traffic did not cross the network: {amounts}"
        yield Fact("fail", fields={"cause": "network-bypassed", "title": title, "sent_bytes": sent, "expected_bytes": expected})


def _rdma_bytes() -> dict[str, int | None]:
    """Bytes sent by each RDMA port; None where it shows no counter."""
    ports: dict[str, int | None] = {}
    for port in Path("/sys/class/infiniband").glob("*/ports/*"):
        try:
            ports[f"{port.parts[-3]}:{port.name}"] = 4 * int((port / "counters/port_xmit_data").read_text(encoding="ascii"))
        except (OSError, ValueError):
            ports[f"{port.parts[-3]}:{port.name}"] = None
    return ports


def _uncounted() -> str:
    """Why traffic may have left this node without a counter that can be read here; "" if it cannot have."""
    if silent := [port for port, count in _rdma_bytes().items() if count is None]:
        return f"{', '.join(silent)} shows no byte counter"
    if Path("/dev/nvidia-caps-imex-channels").exists():
        return "NVLink may connect the nodes"
    if "libnccl-net" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
        return "NCCL uses a network plugin"
    return ""
