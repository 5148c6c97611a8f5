"""Give one rank an address for the master that nobody has, such as the one of last week."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "wrong-master-addr"
SAFE = True
STRIKES = "start"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """An address made for documentation (RFC 5737)."""
    return {"MASTER_ADDR": "192.0.2.1"}
