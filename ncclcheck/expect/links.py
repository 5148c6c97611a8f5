"""What the links between GPUs should give: inside a node, and between nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A link as collectives see it. Two protocols share it, as in NCCL: one for few bytes, one for many.

    A message of S bytes that crosses it in k steps takes the lesser of
        base + k * hop + S / small                (low latency)
        base + k * hop + setup + S / bandwidth    (high bandwidth)
    """

    name: str
    base: float  # seconds: starting an operation
    hop: float  # seconds: from one rank to the next
    small: float  # bytes/s of the low-latency protocol
    setup: float  # seconds more for the other one
    bandwidth: float  # bytes/s one way of each rank: what large messages reach as busbw
    error: float  # what a figure made from it may be wrong by: 0.3 = 30 %
    source: str
    measured: bool = False

    def seconds(self, steps: float, nbytes: float) -> float:
        """Seconds for `nbytes` over the wire in so many steps."""
        return self.base + steps * self.hop + min(nbytes / self.small, self.setup + nbytes / self.bandwidth)

    def latency(self, steps: float) -> float:
        """What of it does not depend on the bytes."""
        return self.base + steps * self.hop


_H200 = "measured with NCCL 2.28.9 in CUDA graphs on 2 and 4 H200: 5.7 and 7.9 µs at 8 B, 8.4 and 11.1 µs at 256 KiB, 329 and 355 GB/s at 1 GiB"
_SCALED = "latency as NVLink 4; busbw of nccl-tests on 8 GPUs"
_NCCL = "latency: NCCL's own model (src/graph/tuning.cc) and what starting an operation costs; busbw"
INSIDE = {
    link.name: link
    for link in (
        Link("nvlink5", 3.5e-6, 1.1e-6, 180e9, 20e-6, 682e9, 0.4, f"{_SCALED} on 8 B200 in rings"),
        Link("nvlink4", 3.5e-6, 1.1e-6, 90e9, 20e-6, 345e9, 0.25, _H200),
        Link("nvlink3", 4.0e-6, 1.2e-6, 60e9, 20e-6, 230e9, 0.4, f"{_SCALED} on 8 A100"),
        Link("nvlink2", 5.0e-6, 1.5e-6, 30e9, 20e-6, 125e9, 0.5, f"{_SCALED} on 8 V100"),
        Link("nvlink-bridge", 4.0e-6, 1.2e-6, 40e9, 20e-6, 150e9, 0.5, f"{_SCALED} on pairs of H100 NVL: 115 to 230 GB/s"),
        Link("pcie5", 6.0e-6, 2.0e-6, 15e9, 20e-6, 40e9, 0.5, f"{_NCCL} of peer-to-peer over PCIe 5 x16"),
        Link("pcie4", 6.0e-6, 2.5e-6, 8e9, 20e-6, 20e9, 0.5, f"{_NCCL} of peer-to-peer over PCIe 4 x16"),
        Link("pcie5-host", 8.0e-6, 4.0e-6, 12e9, 25e-6, 28e9, 0.5, f"{_NCCL} of 4 and 8 RTX 5090 through host memory: 35 and 28 GB/s"),
        Link("pcie4-host", 8.0e-6, 4.0e-6, 5e9, 25e-6, 12e9, 0.6, f"{_NCCL} through host memory over PCIe 4 x16: NCCL's model says 10 to 24 GB/s"),
        Link("pcie3-host", 9.0e-6, 5.0e-6, 3e9, 30e-6, 6e9, 0.6, f"{_NCCL} through host memory over PCIe 3 x16, halved from PCIe 4"),
        Link(
            "shared-memory",
            3.5e-6,
            3.5e-6,
            2e9,
            0.0,
            4e9,
            0.6,
            "vLLM's all-reduce between CPU ranks of a node: 8 to 20 µs for 512 B to 16 KiB on 2 cores",
        ),
    )
}
_TCP_STREAMS = 9e9  # bytes/s that the host's TCP gives up at: 100 Gb/s Ethernet then comes out at 5 GB/s (4 to 6 are seen)
_RATE = re.compile(r"(?:(\d{1,2})x)?(\d{1,4}(?:\.\d{1,2})?)\s*G(?:b/s|bps|bit/s|bE|bit|b)?(?:[-: ]((?i:rdma|ib|infiniband|roce|tcp)))?")


@dataclass(frozen=True, slots=True)
class Network:
    """What joins the nodes: `link` is one adapter's, `adapters` of them are in each node."""

    link: Link
    adapters: int = 1

    def __str__(self) -> str:
        return f"{self.adapters} x {self.link.name}" if self.adapters > 1 else self.link.name


def network(text: str) -> Network:
    """`100G` -> one adapter of 100 Gb/s with TCP; `8x400G-rdma` -> eight of 400 Gb/s with RDMA. Raises ValueError for anything else."""
    match = _RATE.fullmatch(text.strip())
    if not match or not float(match[2]) or match[1] == "0":
        raise ValueError(f"{text!r} is not a network such as 100G, 25G-tcp or 8x400G-rdma (adapters of a node x Gb/s)")
    adapters, rate, kind = int(match[1] or 1), float(match[2]) / 8 * 1e9, (match[3] or "tcp").lower()
    name = f"{match[2]} Gb/s {'TCP' if kind == 'tcp' else 'RDMA'}"
    if kind == "tcp":
        reached = 1 / (1 / (0.9 * rate) + 1 / _TCP_STREAMS)
        source = "20 µs a step through both kernels (32 µs at 8 B between namespaces of one host), 1 to 5 GB/s as TCP reaches on 10 to 100 Gb/s"
        return Network(Link(name, 15e-6, 20e-6, reached, 0.0, reached, 0.5, source), adapters)
    source = "NCCL's own model has 5 µs a step over the network; 92 % of the wire rate, as NDR and HDR adapters reach with nccl-tests"
    return Network(Link(name, 8e-6, 5e-6, 0.4 * rate, 20e-6, 0.92 * rate, 0.4, source), adapters)
