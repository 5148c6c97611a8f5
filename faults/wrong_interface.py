"""Have one rank talk over loopback, which leads to no other node."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "wrong-interface"
SAFE = True
STRIKES = "start"
NEEDS = ("two-nodes",)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For Gloo and NCCL."""
    return {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
