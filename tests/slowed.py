"""What a node of tests/test_simulated_link.py does: node 1 answers, node 0 times a link before, while and after it is made slow.

Prints one line of JSON: by "before", "slow" and "after", the seconds of the fastest round trip and the bytes per second of the
fastest transfer: what the link takes, not the machine.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

from ncclcheck import link, namespaces

PORT = 7070
PINGS, TRANSFERS = 15, 3


def answer() -> None:
    """Node 1: send one byte back for each message, which begins with its length, once all of it has come."""
    with socket.create_server(("0.0.0.0", PORT)) as listener:
        listener.settimeout(60)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(60)
            while head := peer.recv(8):
                left = struct.unpack("!Q", head)[0]
                while left:
                    left -= len(peer.recv(min(left, 1 << 20)))
                peer.sendall(b".")


def connect() -> socket.socket:
    """To node 1, as soon as it listens."""
    end = time.monotonic() + 60
    while True:
        try:
            peer = socket.create_connection((namespaces.address(1), PORT), 60)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return peer
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def timed(peer: socket.socket, nbytes: int) -> float:
    """Seconds from the first byte sent to the answer."""
    begin = time.perf_counter()
    peer.sendall(struct.pack("!Q", nbytes) + bytes(nbytes))
    assert peer.recv(1) == b"."
    return time.perf_counter() - begin


def look(peer: socket.socket, nbytes: int) -> dict[str, float]:
    """A round trip, and the rate of a transfer."""
    return {"round_trip": min(timed(peer, 1) for _ in range(PINGS)), "rate": nbytes / min(timed(peer, nbytes) for _ in range(TRANSFERS))}


def main(text: str, nbytes: int) -> int:
    if os.environ["NODE_RANK"] == "1":
        answer()
        return 0
    with connect() as peer:
        seen = {"before": look(peer, nbytes)}
        with link.kept(link.parse(text), namespaces.INTERFACE, [namespaces.address(1)]):
            seen["slow"] = look(peer, nbytes)
        seen["after"] = look(peer, nbytes)
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
