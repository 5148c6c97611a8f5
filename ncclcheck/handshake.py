"""How an agent meets node 0 on a new connection: a line in clear that names the protocol, a handshake, and who it is.

The line is the handshake's prologue. Its form and the handshake stay the same in every version, so that two versions that share a token
recognise each other. Who has not the token gets no answer, whatever version it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

from ncclcheck.connection import record
from ncclcheck.secure_channel import HANDSHAKE, TAG, Asker, Cipher, Refused, agree
from ncclcheck.wire import PROTOCOL

MAGIC = b"ncclcheck "
LINE = MAGIC + b"%04d\n" % PROTOCOL
HELLO = len(LINE) + HANDSHAKE  # bytes of what is said first
IDENTITY = 16  # bytes by which an agent is known again when it comes back: a secret between it and node 0
PROOF = 2 + 1 + IDENTITY + TAG  # bytes of the record in which it travels, which proves that the hello is no old one
LOOKING = bytes(IDENTITY)  # said by who only wants to know whether node 0 is there
_SHOWN = 40  # bytes that are quoted
BOUND = 3.0  # seconds for all of it
_LINE = re.compile(re.escape(MAGIC) + rb"(\d{4})\n")


class TokenRefused(Refused):
    """The connection was closed when our hello had come: our token is not theirs."""


class OtherVersion(Refused):
    """Node 0 has our token and speaks another version of the protocol; args: its number."""


class Stranger(Refused):
    """Whoever listens there is no agent; args: what it said, nothing where it closed the connection."""


def version(line: bytes) -> int | None:
    """The number of the protocol that a first line names; None where it is none."""
    match = _LINE.fullmatch(line)
    return int(match[1]) if match else None


async def ask(sock: socket.socket, key: bytes, identity: bytes, pause: float = 0.0) -> tuple[Cipher, Cipher]:
    """Make a new connection a channel: what we seal with, what we open with. Raises OSError or Refused.

    With a `pause`, in seconds, after the line, whoever does not understand it has time to say so.
    """
    loop, asker = asyncio.get_running_loop(), Asker(agree(LINE, key))
    await loop.sock_sendall(sock, LINE)
    if pause:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                raise Stranger(await loop.sock_recv(sock, _SHOWN))
    await loop.sock_sendall(sock, asker.hello)
    answer = b""
    while len(answer) < HANDSHAKE:
        try:
            data = await loop.sock_recv(sock, HANDSHAKE - len(answer))
        except ConnectionResetError:
            data = b""
        answer += data
        if not data:
            number = version(answer)
            raise TokenRefused if not answer else Stranger(answer) if number is None else OtherVersion(number)
    try:
        seal, unseal = asker.finish(answer)
    except Refused:
        raise Stranger(answer[:_SHOWN]) from None
    await loop.sock_sendall(sock, record(seal, identity))
    return seal, unseal
