"""Who comes to node 0's port, until it has proved that it has the run's token; who has not is counted by its address."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ncclcheck import open_files
from ncclcheck.connection import opened
from ncclcheck.crowd import Crowd, Newcomer
from ncclcheck.handshake import BOUND, HELLO, LINE, LOOKING, MAGIC, PROOF, version
from ncclcheck.secure_channel import Cipher, Refused, State, agree, answer, heard

MOST = 256  # connections, unless descriptors are few
LEAST = 16
MOST_NAMED = 256  # addresses that are remembered
OTHERS = "others"  # stands for the rest
_RESERVE = 512  # descriptors that are left for the run itself, and for the crowds at the node's echoes

Counts = dict[str, int]  # address -> how often


def count(counts: Counts, address: str) -> None:
    """Count one more from an address."""
    name = address if address in counts or len(counts) < MOST_NAMED else OTHERS
    counts[name] = counts.get(name, 0) + 1


def room(most: int) -> int:
    """For how many newcomers there are descriptors beside `most` agents."""
    others = most + _RESERVE
    return max(LEAST, min(MOST, open_files.room(others + MOST) - others))


class Newcomers:
    """Lets in who comes to a listening socket, until `close`."""

    def __init__(
        self, listener: socket.socket, key: bytes, most: int, on_proved: Callable[[socket.socket, str, bytes, Cipher, Cipher], None]
    ) -> None:
        """`on_proved` gets the connection of an agent: its address, its identity, what we seal with, what we open with."""
        self._key, self._on_proved = key, on_proved
        self._agreed = agree(LINE, key)
        self.strangers: Counts = {}  # who never proved itself
        self.wrong_keys: Counts = {}  # those of them who said a hello with another token
        self.wrong_versions: dict[str, int] = {}  # address of who has our token -> the protocol that it speaks
        self._crowd = Crowd(listener, most, BOUND, MAGIC, HELLO, self._judge, lambda address: count(self.strangers, address))
        self.close = self._crowd.close

    def _judge(self, newcomer: Newcomer) -> None:
        """Raises Refused or OSError."""
        if newcomer.advanced:
            self._prove(newcomer)
            return
        line, hello = newcomer.come[: len(LINE)], newcomer.come[len(LINE) :]
        after = self._heard(newcomer.address, line, hello)
        if line == LINE:  # from here on it has the token, or repeats what somebody said who has
            said, *newcomer.state = answer(after, hello)
            newcomer.sock.send(said)
            self._crowd.advance(newcomer, PROOF)
        else:
            newcomer.sock.send(LINE)
            self._crowd.release(newcomer).close()

    def _heard(self, address: str, line: bytes, hello: bytes) -> State:
        """Whether a hello was said by who has the token, and notes if not, and what it speaks. Raises Refused."""
        number = version(line)
        if number is None:
            raise Refused
        try:
            after = heard(self._agreed if line == LINE else agree(line, self._key), hello)
        except Refused:
            count(self.wrong_keys, address)
            raise
        if line != LINE and len(self.wrong_versions) < MOST_NAMED:
            self.wrong_versions[address] = number
        return after

    def _prove(self, newcomer: Newcomer) -> None:
        """Raises Refused."""
        seal, unseal = newcomer.state
        identity, last = opened(unseal, newcomer.come[2:])
        if not last:
            raise Refused
        sock = self._crowd.release(newcomer)
        if identity == LOOKING:
            sock.close()
        else:
            self._on_proved(sock, newcomer.address, identity, seal, unseal)
