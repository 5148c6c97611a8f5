"""What this node can say of the master address: does the name resolve, does the port answer, and who is it that answers?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket

import psutil

from ncclcheck.bounded import bounded
from ncclcheck.collect.host import addresses
from ncclcheck.model import Fact

RESOLVE_BOUND = 5.0  # seconds
CONNECT_BOUND = 2.0
AT_ONCE = 0.5  # seconds in which a port that is not filtered has answered
GREETING_BOUND = 1.5
_ZMTP_SIGNATURE = (b"\xff", b"\x7f")  # first and tenth byte of what a ZeroMQ peer says first (ZMTP 3.1, greeting)
OTHER_PORTS = (22, 111, 1)  # asked only whether the host says anything at all; a refusal is an answer


async def resolve(name: str) -> list[str]:
    """The addresses of a name, IPv4 first as the resolver orders them. Raises OSError (or TimeoutError) where it has none."""
    infos = await bounded(socket.getaddrinfo, RESOLVE_BOUND, name, None, 0, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def own(address: str, addresses: dict[str, list[str]]) -> bool:
    """Whether an address is one of this node's."""
    return ipaddress.ip_address(address).is_loopback or any(address in found for found in addresses.values())


def address_towards(address: str) -> str:
    """The address of this node from which it speaks to another; empty where no way leads there."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # UDP: nothing is sent, the kernel only chooses the way
        return str(probe.getsockname()[0])
    return ""


def interface_to(address: str) -> str:
    """The interface of this node that leads to an address (or has it); `INTERFACE` where that cannot be told."""
    mine = address_towards(address)
    return next((name for name, found in addresses().items() if mine in found and (mine == address or name != "lo")), "INTERFACE")


def loopback_by_name(name: str, resolved: list[str]) -> bool:
    """A name, not an address and not `localhost`, that leads to this very machine: other nodes could not follow it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name != "localhost" and any(ipaddress.ip_address(address).is_loopback for address in resolved)
    return False


def listener(port: int) -> str:
    """Who listens on a port of this machine: `python (pid 812, user a)`, or empty where that is not told."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {process.pid}, user {process.username()})"
    except (psutil.Error, OSError):
        return ""
    return ""


async def look(host: str, name: str, address: str, port: int) -> Fact:
    """Ask the master's port from outside any session; at most about 5 s. A fact of kind "master".

    `answer` is one of: refused, unreachable, silent-host, filtered, closed, silent, zmq, other; `text` quotes what was seen.
    """
    asking = asyncio.ensure_future(connect(address, port))
    await asyncio.wait([asking], timeout=AT_ONCE)
    others = [] if asking.done() else await asyncio.gather(*(connect(address, other) for other in OTHER_PORTS))
    answer, text = await asking
    if answer == "timeout":
        answer = "filtered" if any(kind in ("refused", "open") for kind, _ in others) else "silent-host"
    elif answer == "open":
        answer, text = await _greeting(address, port)
    return Fact("master", host, fields={"name": name, "address": address, "port": port, "answer": answer, "text": text})


async def connect(address: str, port: int, source: str = "") -> tuple[str, str]:
    """`open`, `refused`, `unreachable` or `timeout`, and what was seen in words; from one of our own addresses, where `source` names one."""
    try:
        async with asyncio.timeout(CONNECT_BOUND):
            _, writer = await asyncio.open_connection(address, port, local_addr=(source, 0) if source else None)
    except TimeoutError:
        return "timeout", f"no answer from {address}:{port} in {CONNECT_BOUND:g} s"
    except OSError as error:
        text = f"connect to {address}:{port}: {os.strerror(error.errno or 0)} (errno {error.errno})"
        return ("refused" if error.errno == errno.ECONNREFUSED else "unreachable"), text
    writer.close()
    return "open", ""


async def _greeting(address: str, port: int) -> tuple[str, str]:
    """What the listener says first. A ZeroMQ peer says its signature at once, and who has our port and protocol is one of us."""
    try:
        async with asyncio.timeout(CONNECT_BOUND):
            reader, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError) as error:
        return "closed", f"{address}:{port} accepted once and then not again ({error})"
    try:
        writer.write(b"\xff" + bytes(8) + b"\x7f" + b"\x03")
        async with asyncio.timeout(GREETING_BOUND):
            data = await reader.read(64)
    except TimeoutError:
        return "silent", f"{address}:{port} accepts connections and says nothing for {GREETING_BOUND:g} s"
    except OSError as error:
        return "closed", f"{address}:{port} accepts connections and drops them ({os.strerror(error.errno or 0)})"
    finally:
        writer.close()
    if not data:
        return "closed", f"{address}:{port} accepts connections and closes them"
    if len(data) >= 10 and (data[:1], data[9:10]) == _ZMTP_SIGNATURE:
        return "zmq", f"{address}:{port} answers as a ZeroMQ peer"
    return "other", f"{address}:{port} answers {data[:40]!r}"
