"""What several rules ask about an RDMA network: which kind it is, and which errors mean that the peer does not answer."""

from __future__ import annotations

import ipaddress

from ncclcheck.model import Run

UNANSWERED = (12,)  # IBV_WC_RETRY_EXC_ERR; 5 (flushed) only follows another error


def link_layer(run: Run) -> str | None:
    """ "Ethernet" (RoCE) or "InfiniBand", or None where nothing says it or both are there."""
    seen = {str(fact.get("layer")) for fact in run.of("link-layer")}
    seen |= {str(fact.get("layer")) for fact in run.of("ibport") if fact.get("layer")}
    devices = " ".join(str(fact.get("devices")) for fact in run.of("ib-devices"))
    seen |= {layer for mark, layer in (("/RoCE", "Ethernet"), ("/IB", "InfiniBand")) if mark in devices}
    if any(mapped(str(fact.get("local", ""))) for fact in run.of("ib-error")):
        seen.add("Ethernet")
    return seen.pop() if len(seen) == 1 else None


def mapped(gid: str) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a GID of RoCE v2 carries (::ffff:10.0.0.1)."""
    try:
        return ipaddress.IPv6Address(gid).ipv4_mapped
    except ValueError:
        return None


def apart(gid: str, other: str) -> bool:
    """Whether two GIDs lie in different subnets: /24 of mapped IPv4 addresses, the upper half of others."""
    one, two = mapped(gid), mapped(other)
    if one and two:
        return int(one) >> 8 != int(two) >> 8
    try:
        return int(ipaddress.IPv6Address(gid)) >> 64 != int(ipaddress.IPv6Address(other)) >> 64
    except ValueError:
        return False
