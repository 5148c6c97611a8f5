"""Delays what one interface sends, in user space, for kernels without netem.

The packets are led to the loopback interface (see sieve.py), picked up there before anybody else looks at them, and sent out of the interface
some time later. They stay what they were: large ones that the card would cut, checksums that the card would compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from ncclcheck import sieve
from ncclcheck.fault import CannotInject

_ALL = 0x0003  # ETH_P_ALL
_SOL_PACKET, _VNET_HDR, _IGNORE_OUTGOING = 263, 15, 23
_SO_MARK, _RCVBUFFORCE, _SNDBUFFORCE, _ATTACH_FILTER = 36, 33, 32, 26
_LARGEST = 1 << 18
_BUFFER = 1 << 26  # of the kernel, for what we have not yet picked up
# load the packet's type (SKF_AD_OFF + SKF_AD_PKTTYPE); take it if that is "to another host" (3): the loopback's own packets are "to us"
_STRANGERS = ((0x28, 0, 0, 0xFFFFF004), (0x15, 0, 1, 3), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))


@contextlib.contextmanager
def delayed(interface: str, peers: Sequence[str], seconds: float) -> Iterator[None]:
    """What this process's network sends to `peers` through `interface` leaves so many seconds later."""
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(_picked_up())
            target = stack.enter_context(_sent_from(interface))
            wake, waker = os.pipe()
            stack.callback(os.close, wake)
            stack.callback(os.close, waker)
            thread = threading.Thread(target=_relay, args=(source, target, seconds, wake), name="relay", daemon=True)
            thread.start()
            try:
                with sieve.taken(interface, sieve.Sieve(peers, incoming=False)):
                    yield
            finally:
                os.write(waker, b".")
                thread.join(5)
    except PermissionError as error:
        raise CannotInject(f"a packet socket is refused: {error.strerror}") from error


def _relay(source: socket.socket, target: socket.socket, seconds: float, wake: int) -> None:
    """Until told to end; then everything that waits leaves at once, in order."""
    waiting: deque[tuple[float, bytes]] = deque()
    buffer = bytearray(_LARGEST)
    view = memoryview(buffer)
    ends = False
    while not ends:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready = select.select([source.fileno(), wake], [], [], pause)[0]
        ends = wake in ready
        if source.fileno() in ready or ends:
            due = time.monotonic() + seconds
            with contextlib.suppress(BlockingIOError):
                for _ in range(64 if not ends else 1 << 20):
                    waiting.append((due, bytes(view[: source.recv_into(buffer)])))
        while waiting and (ends or waiting[0][0] <= time.monotonic()):
            _, packet = waiting.popleft()
            with contextlib.suppress(OSError):  # as a wire does, we lose what cannot be carried
                target.send(packet)


@contextlib.contextmanager
def _picked_up() -> Iterator[socket.socket]:
    """A socket that gets what was led to the loopback interface."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as source:
        program = b"".join(struct.pack("=HBBI", *step) for step in _STRANGERS)
        held = ctypes.create_string_buffer(program)
        source.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(_STRANGERS), ctypes.addressof(held)))
        source.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        source.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        _roomy(source, _RCVBUFFORCE, socket.SO_RCVBUF)
        source.setblocking(False)
        source.bind(("lo", _ALL))
        yield source


@contextlib.contextmanager
def _sent_from(interface: str) -> Iterator[socket.socket]:
    """A socket whose packets leave by `interface`, past the rule that leads away what others send."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as target:
        target.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        target.setsockopt(socket.SOL_SOCKET, _SO_MARK, sieve.MARK)
        _roomy(target, _SNDBUFFORCE, socket.SO_SNDBUF)
        target.bind((interface, 0))
        yield target


def _roomy(link: socket.socket, forced: int, allowed: int) -> None:
    """A large buffer; in a user's own namespaces as large as the machine allows."""
    try:
        link.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
    except PermissionError:
        link.setsockopt(socket.SOL_SOCKET, allowed, _BUFFER)
