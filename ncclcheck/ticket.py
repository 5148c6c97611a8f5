"""How a node knows at its echoes who belongs to its run: who knows the node's secret, which travels between the agents only."""

from __future__ import annotations

import hmac
import os
import socket

LENGTH = 16  # bytes of a secret, of a number that is used once, and of a mark made with the secret
MOST = 2**16  # numbers that are remembered


def mark(secret: bytes, *parts: bytes) -> bytes:
    """What only who knows the secret can make of these parts; each has a length that both ends know."""
    return hmac.digest(secret, b"".join(parts), "sha256")[:LENGTH]


def for_connection(secret: bytes, head: bytes) -> bytes:
    """What a caller says after the head of its request."""
    number = os.urandom(LENGTH)
    return number + mark(secret, b"tcp", number, head)


def for_datagram(secret: bytes, number: bytes, size: int, sender: str, receiver: str, port: int) -> bytes:
    """The mark of a datagram of so many bytes. It names both ends: nobody can repeat it in another's name."""
    return mark(secret, b"udp", number, size.to_bytes(4), port.to_bytes(4), packed(sender), packed(receiver))


def packed(address: str) -> bytes:
    """An address in 16 bytes; without its zone, which is each host's own."""
    plain = address.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6, plain if ":" in plain else f"::ffff:{plain}")


class Checker:
    """Tells who comes to a node's echoes with a ticket of this run that was not used before."""

    def __init__(self) -> None:
        self.secret = os.urandom(LENGTH)
        self._used: dict[bytes, None] = {}

    def admits(self, head: bytes, ticket: bytes) -> bool:
        """Whether a caller may have what its head asks for."""
        number = ticket[:LENGTH]
        if number in self._used or not hmac.compare_digest(ticket[LENGTH:], mark(self.secret, b"tcp", number, head)):
            return False
        self._used[number] = None
        if len(self._used) > MOST:
            del self._used[next(iter(self._used))]
        return True
