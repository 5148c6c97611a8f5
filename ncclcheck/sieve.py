"""Takes packets out of one interface, by nftables rules in a table that the kernel removes when this process is gone.

What is taken from incoming packets is gone. What is taken from outgoing ones is led to the loopback interface, where it belongs to
nobody and ends: dropped at home, it would be refused to its sender, who would not retransmit as it does for a packet lost on the wire.
Traffic that bypasses the kernel (RDMA) does not pass here.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ncclcheck.fault import CannotInject

MARK = 0x6E63636C  # on packets that come from us: they pass
_NETDEV, _INGRESS, _EGRESS = 5, 0, 1
_OWNED = 2  # the table ends with the socket that made it
_META_LENGTH, _META_PROTOCOL, _META_MARK, _META_L4 = 0, 1, 3, 16
_EQUAL, _LESS, _GREATER = 0, 2, 4
_NETWORK, _TRANSPORT = 1, 2
_DROP, _ACCEPT = 0, 1
_ACCURACY = 1 << 16  # steps of a share

Expression = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sieve:
    """Which packets from and to `peers` are taken."""

    peers: Sequence[str]
    incoming: bool = True
    outgoing: bool = True
    share: float = 1.0  # of those that match, by chance
    protocols: Sequence[int] = ()  # only these: socket.IPPROTO_TCP, ...
    spare: Sequence[int] = ()  # not those from or to these TCP ports
    larger: int = 0  # only incoming ones with more bytes than this; a packet that the card has merged counts as one


@contextlib.contextmanager
def taken(interface: str, sieve: Sieve) -> Iterator[None]:
    """Take these packets out of what this process's network receives and sends on `interface`. Raises CannotInject where the kernel refuses."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nftsocket import nft_contains_expr
    from pyroute2.nftables.main import NFTables

    forward: Any = nft_contains_expr.nft_expr.nft_fwd
    if not hasattr(forward, "u32"):  # pyroute2 0.9 describes this expression with a type that it has not
        forward.u32 = forward.uint32
    loopback = struct.pack("=I", socket.if_nametoindex("lo"))
    table = f"ncclcheck-{os.getpid()}-{os.urandom(4).hex()}"
    with contextlib.ExitStack() as undo:
        try:
            nft = undo.enter_context(NFTables(nfgen_family=_NETDEV))
            nft.get_tables()  # a refusal of this reaches us; that of a transaction does not, and pyroute2 would wait for ever
            nft.table("create", kwarg={"name": table, "flags": _OWNED})
            undo.callback(nft.table, "del", name=table)
            if sieve.incoming:
                _chain(nft, table, interface, "incoming", _INGRESS, _rules(sieve, "source", _verdict(_DROP)))
            if sieve.outgoing:
                ours = [_meta(_META_MARK), _compare(struct.pack("=I", MARK)), _verdict(_ACCEPT)]
                away = [_put(loopback), _expression("fwd", sreg_dev=1)]
                _chain(nft, table, interface, "outgoing", _EGRESS, [ours, *_rules(sieve, "destination", *away)])
        except NetlinkError as error:
            raise CannotInject(f"nftables on {interface}: {os.strerror(error.code)}{_missing(error.code)}") from error
        except OSError as error:
            raise CannotInject(f"nftables: {error.strerror or error}{_missing(error.errno)}") from error
        yield


def _missing(code: int | None) -> str:
    unknown = code in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
    return " (it takes Linux 5.16 with NF_TABLES_NETDEV, NETFILTER_EGRESS and NFT_FWD_NETDEV)" if unknown else ""


def _chain(nft: Any, table: str, interface: str, name: str, number: int, rules: Sequence[Sequence[Expression]]) -> None:
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", number), ("NFTA_HOOK_PRIORITY", 0), ("NFTA_HOOK_DEV", interface)]}
    nft.chain("create", kwarg={"table": table, "name": name, "hook": hook, "type": "filter", "policy": _ACCEPT})
    for rule in rules:
        nft.rule("add", table=table, chain=name, expressions=[rule])


def _rules(sieve: Sieve, side: str, *deed: Expression) -> list[list[Expression]]:
    """Ports that are spared first, then each peer."""
    tcp = [_meta(_META_L4), _compare(bytes([socket.IPPROTO_TCP]))]
    spared = [[*tcp, _load(_TRANSPORT, offset, 2), _compare(struct.pack("!H", port)), _verdict(_ACCEPT)] for port in sieve.spare for offset in (0, 2)]
    limits: list[Expression] = []
    if sieve.larger:
        limits += [_meta(_META_LENGTH), *_compare_number(_GREATER, sieve.larger)]
    if sieve.share < 1:
        limits += [_expression("numgen", dreg=1, modulus=_ACCURACY, type=1, offset=0), *_compare_number(_LESS, round(sieve.share * _ACCURACY))]
    layers = [[_meta(_META_L4), _compare(bytes([protocol]))] for protocol in sieve.protocols] or [[]]
    return spared + [[*_peer(peer, side), *layer, *limits, *deed] for peer in sieve.peers for layer in layers]


def _peer(peer: str, side: str) -> list[Expression]:
    address = ipaddress.ip_address(peer)
    at, ether = (12, 0x0800) if address.version == 4 else (8, 0x86DD)
    size = len(address.packed)
    offset = at + (size if side == "destination" else 0)
    return [_meta(_META_PROTOCOL), _compare(struct.pack("!H", ether)), _load(_NETWORK, offset, size), _compare(address.packed)]


def _expression(kind: str, **fields: Any) -> Expression:
    from pyroute2.nftables.expressions import genex

    names = {"numgen": "ng"}
    expression: Expression = genex(names.get(kind, kind), fields)
    expression["attrs"][0] = ("NFTA_EXPR_NAME", kind)
    return expression


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _meta(key: int) -> Expression:
    return _expression("meta", key=key, dreg=1)


def _load(base: int, offset: int, size: int) -> Expression:
    return _expression("payload", dreg=1, base=base, offset=offset, len=size)


def _put(data: bytes) -> Expression:
    return _expression("immediate", dreg=1, data=_value(data))


def _compare(data: bytes, how: int = _EQUAL) -> Expression:
    return _expression("cmp", sreg=1, op=how, data=_value(data))


def _compare_number(how: int, number: int) -> list[Expression]:
    """Compared are bytes, so the number is turned to network order first."""
    return [_expression("byteorder", sreg=1, dreg=1, op=1, len=4, size=4), _compare(struct.pack("!I", number), how)]


def _verdict(code: int) -> Expression:
    return _expression("immediate", dreg=0, data={"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]})
