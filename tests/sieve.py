"""Drops packets of the network namespace in which it runs, from a line of input on until it ends.

python sieve.py {in|out|both} LARGER_THAN SPARED_PORT...
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
from typing import Any

from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

_OWNED = 2  # the table ends with the socket that made it
_HOOKS = {"in": 1, "out": 3}


def meta(key: int) -> Any:
    return genex("meta", {"key": key, "dreg": 1})


def compare(data: bytes, how: int = 0) -> Any:
    return genex("cmp", {"sreg": 1, "op": how, "data": {"attrs": [("NFTA_DATA_VALUE", data)]}})


def verdict(code: int) -> Any:
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}})


def main(direction: str, larger: int, *spared: str) -> None:
    tcp = [meta(16), compare(bytes([socket.IPPROTO_TCP]))]
    rules = [
        [*tcp, genex("payload", {"dreg": 1, "base": 2, "offset": offset, "len": 2}), compare(struct.pack("!H", int(port))), verdict(1)]
        for port in spared
        for offset in (0, 2)
    ]
    size = [meta(0), genex("byteorder", {"sreg": 1, "dreg": 1, "op": 1, "len": 4, "size": 4}), compare(struct.pack("!I", larger), 4)]
    rules.append([*tcp, *size, verdict(0)])
    with NFTables(nfgen_family=2) as nft:
        nft.get_tables()
        print("ready", flush=True)
        sys.stdin.readline()
        nft.table("create", kwarg={"name": "sieve", "flags": _OWNED})
        for name in _HOOKS if direction == "both" else [direction]:
            hook = {"attrs": [("NFTA_HOOK_HOOKNUM", _HOOKS[name]), ("NFTA_HOOK_PRIORITY", 0)]}
            nft.chain("create", kwarg={"table": "sieve", "name": name, "hook": hook, "type": "filter", "policy": 1})
            for rule in rules:
                nft.rule("add", table="sieve", chain=name, expressions=[rule])
        print("drops", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
