"""What this node can say of the master address: does the name resolve, does the port answer, and who is it that answers?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket

import psutil

from ncclcheck import handshake
from ncclcheck.bounded import bounded
from ncclcheck.collect.host import addresses
from ncclcheck.model import Fact
from ncclcheck.wire import PROTOCOL

RESOLVE_BOUND = 5.0  # seconds
CONNECT_BOUND = 2.0
AT_ONCE = 0.5  # seconds in which a port that is not filtered has answered
GREETING_BOUND = 1.5
PAUSE = 0.3  # seconds in which a listener that is no agent says something, or hangs up, when it does not understand
AGENTS = ("agent", "token", "version")  # answers of an agent, which knows our token or another, or speaks another version
OTHER_PORTS = (22, 111, 1)  # asked only whether the host says anything at all; a refusal is an answer


async def resolve(name: str) -> list[str]:
    """The addresses of a name, as the resolver orders them. Raises OSError (or TimeoutError) where it has none that all nodes can use.

    A link-local address of IPv6 means something on one link only, which each node calls by a name of its own.
    """
    try:
        infos = await bounded(socket.getaddrinfo, RESOLVE_BOUND, name, None, 0, socket.SOCK_STREAM)
    except ValueError as error:  # no resolver is asked for such a name (UnicodeError is one)
        raise OSError(f"not a host's name: {error}") from None
    found = list(dict.fromkeys(str(info[4][0]) for info in infos))
    usable = [address for address in found if not _link_local(address)]
    if not usable:
        raise OSError(f"it has link-local addresses only ({', '.join(found[:4])}), which mean something on one link alone")
    return usable


def _link_local(address: str) -> bool:
    return ":" in address and ipaddress.ip_address(address).is_link_local


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


async def look(host: str, name: str, address: str, port: int, key: bytes) -> Fact:
    """Ask the master's port as an agent with this run's key would; at most about 5 s. A fact of kind "master".

    `answer` is one of: refused, unreachable, silent-host, filtered, closed, silent, other, or of AGENTS; `text` quotes what was seen.
    """
    asking = asyncio.ensure_future(_open(address, port))
    await asyncio.wait([asking], timeout=AT_ONCE)
    others = [] if asking.done() else await asyncio.gather(*(connect(address, other) for other in OTHER_PORTS))
    answer, text, sock = await asking
    if answer == "timeout":
        answer = "filtered" if any(kind in ("refused", "open") for kind, _ in others) else "silent-host"
    elif sock:
        with sock:
            answer, text = await _greeting(sock, f"{address}:{port}", key)
    return Fact("master", host, fields={"name": name, "address": address, "port": port, "answer": answer, "text": text})


async def connect(address: str, port: int, source: str = "") -> tuple[str, str]:
    """`open`, `refused`, `unreachable` or `timeout`, and what was seen in words; from one of our own addresses, where `source` names one."""
    answer, text, sock = await _open(address, port, source)
    if sock:
        sock.close()
    return answer, text


async def _open(address: str, port: int, source: str = "") -> tuple[str, str, socket.socket | None]:
    """The same, and the connection."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        async with asyncio.timeout(CONNECT_BOUND):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return "open", "", sock
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            return "timeout", f"no answer from {address}:{port} in {CONNECT_BOUND:g} s", None
        if isinstance(error, OSError):
            text = f"connect to {address}:{port}: {os.strerror(error.errno or 0)} (errno {error.errno})"
            return ("refused" if error.errno == errno.ECONNREFUSED else "unreachable"), text, None
        raise


async def _greeting(sock: socket.socket, place: str, key: bytes) -> tuple[str, str]:
    """How the listener takes an agent's first words. Ours is silent until it has heard all of them, and then answers or hangs up."""
    try:
        async with asyncio.timeout(GREETING_BOUND):
            await handshake.ask(sock, key, handshake.LOOKING, pause=PAUSE)
    except TimeoutError:
        return "silent", f"{place} accepts connections and says nothing for {GREETING_BOUND:g} s"
    except OSError as error:
        return "closed", f"{place} accepts connections and drops them ({os.strerror(error.errno or 0)})"
    except handshake.TokenRefused:
        return "token", f"{place} hangs up when it has heard our token, as an agent with another one does"
    except handshake.OtherVersion as other:
        return "version", f"the agent at {place} speaks protocol {other.args[0]}, and ours is {PROTOCOL}"
    except handshake.Stranger as other:
        if not other.args[0]:
            return "closed", f"{place} accepts connections and closes them"
        return "other", f"{place} answers {other.args[0]!r}"
    return "agent", f"an agent with our token answers at {place}"
