"""TCP ports of this machine: one that is free, and whether anybody listens on one."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

_LISTENING = "0A"  # as /proc/net/tcp writes it


def free_port(address: str) -> int:
    """A TCP port that is free on this address now; on every address where it is empty."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    """Whether any process of this network namespace listens on a TCP port."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
    return False
