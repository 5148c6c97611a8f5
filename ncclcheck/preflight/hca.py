"""NCCL_IB_HCA, read as NCCL does (its manual: environment variables)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Port = Mapping[str, Any]  # of the section `infiniband`


@dataclass(frozen=True, slots=True)
class Choice:
    """Which ports NCCL uses: those that an entry fits, or, where it `excludes`, the others. A name's beginning is enough unless `exact`."""

    entries: Sequence[tuple[str, int | None]]  # name (or its beginning), port
    excludes: bool
    exact: bool

    @classmethod
    def parse(cls, text: str) -> Choice:
        """As NCCL does: `^` first, then `=`, then NAME[:PORT] with commas between."""
        excludes, rest = text.startswith("^"), text.removeprefix("^")
        exact, rest = rest.startswith("="), rest.removeprefix("=")
        entries = []
        for word in filter(None, rest.split(",")):
            name, colon, port = word.partition(":")
            number = re.match(r"\s*\d{1,4}", port)
            entries.append((name, int(number[0]) if colon and number else None))
        return cls(entries, excludes, exact)

    def fits(self, entry: tuple[str, int | None], port: Port) -> bool:
        """Whether one entry means this port."""
        name, number = entry
        same = port["device"] == name if self.exact else str(port["device"]).startswith(name)
        return same and number in (None, port["port"])

    def takes(self, port: Port) -> bool:
        """Whether NCCL uses this port."""
        return any(self.fits(entry, port) for entry in self.entries) != self.excludes if self.entries else True
