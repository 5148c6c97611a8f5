"""Reads what RDMA adapters say of themselves: ibstat, ibstatus, ibv_devinfo, rdma link, ibdev2netdev and show_gids.

ibport (device, port, state, physical, rate, layer, lid, mtu, interface, and error counters that are not zero), one for each port
and source; gid (device, port, index, gid, address, version, interface).

Reads
    log a.txt: CA 'mlx5_4'
    log a.txt: 	CA type: MT4129
    log a.txt: 	Port 1:
    log a.txt: 		State: Down
    log a.txt: 		Physical state: Polling
    log a.txt: 		Rate: 10
    log a.txt: 		Base lid: 65535
    log a.txt: 		Link layer: InfiniBand
    log a.txt: 		link_downed: 7
    => ibport device=mlx5_4 port=1 state=down physical=polling rate=10 layer=InfiniBand link_downed=7

Reads
    log a.txt: Infiniband device 'mlx5_5' port 1 status:
    log a.txt: 	state:		 4: ACTIVE
    log a.txt: 	phys state:	 5: LinkUp
    log a.txt: 	rate:		 200 Gb/sec (4X HDR)
    log a.txt: 	link_layer:	 Ethernet
    => ibport device=mlx5_5 port=1 state=active physical=linkup layer=Ethernet

Reads
    log a.txt: hca_id:	mlx5_6
    log a.txt: 	transport:			InfiniBand (0)
    log a.txt: 		port:	1
    log a.txt: 			state:			PORT_DOWN (1)
    log a.txt: 			active_mtu:		1024 (3)
    log a.txt: 			link_layer:		Ethernet
    log a.txt: 			GID[  3]:		::ffff:10.9.0.2, RoCE v2
    => ibport device=mlx5_6 port=1 state=down mtu=1024 layer=Ethernet
    => gid device=mlx5_6 index=3 version=v2 address=10.9.0.2

Reads
    log a.txt: link mlx5_7/1 state DOWN physical_state DISABLED netdev ens8
    log a.txt: mlx5_8 port 1 ==> ens9 (Down)
    => ibport device=mlx5_7 state=down physical=disabled interface=ens8
    => ibport device=mlx5_8 state=down interface=ens9

Reads
    log a.txt: DEV     PORT    INDEX   GID                                     IPv4            VER     DEV
    log a.txt: ---     ----    -----   ---                                     ------------    ---     ---
    log a.txt: mlx5_4  1       0       fe80:0000:0000:0000:0e42:a1ff:fe00:0001                 v1      ens6
    log a.txt: mlx5_4  1       3       0000:0000:0000:0000:0000:ffff:0a09:0002 10.9.0.2        v2      ens6
    log a.txt: n_gids_found=2
    => gid device=mlx5_4 index=0 version=v1 interface=ens6
    => gid device=mlx5_4 index=3 address=10.9.0.2 version=v2
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Line
from ncclcheck.model import Fact

_CA = r"^\s*CA '(?P<device>[^']+)'"
_STATUS = r"Infiniband device '(?P<device>[^']+)' port (?P<port>\d+) status:"
_HCA = r"\bhca_id:\s*(?P<device>\S+)"
_RDMA = (
    r"^\s*(?:link |\d+/\d+: )(?P<device>[\w.-]+)/(?P<port>\d+):? .*?state (?P<state>[A-Z]+)"
    r" physical_state (?P<physical>[A-Z_]+)(?: netdev (?P<interface>\S+))?"
)
_NETDEV = r"^\s*(?P<device>\S+)\sport\s(?P<port>\d+) ==> (?P<interface>\S+) \((?P<state>\w+)\)"
_GIDS = r"^\s*DEV\s+PORT\s+INDEX\s+GID\s"
_NAMES = {
    "state": "state", "physical state": "physical", "phys state": "physical", "phys_state": "physical", "rate": "rate", "link layer": "layer",
    "link_layer": "layer", "base lid": "lid", "port_lid": "lid", "active_mtu": "mtu", "network device": "interface",
}  # fmt: skip
_COUNTERS = frozenset(("link_downed", "link_error_recovery", "symbol_error", "port_rcv_errors", "port_xmit_discards", "local_link_integrity_errors"))
_PAIR = re.compile(r"^\s+(?P<name>[A-Za-z][\w /]*?)\s*:\s*(?P<value>\S.*?)\s*$")
_GID = re.compile(r"^\s+GID\[\s*(?P<index>\d+)\]:\s*(?P<gid>[0-9a-f:.]+)(?:, (?P<version>RoCE v\d|IB\S*))?")


def _adapter(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """The ports under an adapter's heading, in any of the three tools' forms."""
    heading = re.search(_CA, line.text) or re.search(_STATUS, line.text) or re.search(_HCA, line.text)
    if not heading:
        return
    device = heading["device"]
    port = int(heading["port"]) if heading.re.groups > 1 else None
    said: dict[str, object] = {}
    source = line
    for each in following:
        if any(re.search(pattern, each.text) for pattern in (_CA, _STATUS, _HCA)) or (each.text.strip() and not each.text.startswith((" ", "\t"))):
            break
        if number := re.match(r"^\s+(?:Port (\d+):|port:\s*(\d+))\s*$", each.text):
            if said and port is not None:
                yield source.fact("ibport", {"device": device, "port": port, **said})
            port, said, source = int(number[1] or number[2]), {}, each
        elif gid := _GID.match(each.text):
            yield each.fact(
                "gid", {"device": device, "port": port or 1, **_gid(gid["index"], gid["gid"], (gid["version"] or "").removeprefix("RoCE "))}
            )
        elif (pair := _PAIR.match(each.text)) and port is not None:
            name = pair["name"].lower()
            if name in _COUNTERS and pair["value"] not in ("0", ""):
                said[name] = _number(pair["value"])
            elif name in _NAMES:
                said[_NAMES[name]] = _word(_NAMES[name], pair["value"])
                source = each if _NAMES[name] == "state" else source
    if said and port is not None:
        yield source.fact("ibport", {"device": device, "port": port, **said})


def _one(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """A port that has one line: `rdma link`, ibdev2netdev."""
    if match := re.search(_RDMA, line.text) or re.search(_NETDEV, line.text):
        words = {name: value for name, value in match.groupdict().items() if value is not None}
        yield line.fact("ibport", {name: _word(name, value) if name != "port" else int(value) for name, value in words.items()})


def _table(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    for each in following:
        cells = each.body.split()
        if len(cells) < 5 or not (cells[1].isdigit() and cells[2].isdigit()):
            if each.body.startswith("--"):
                continue
            return
        device, port, index, gid, *rest = cells
        version = next((cell for cell in rest if re.fullmatch(r"v\d", cell)), "")
        address = {"address": rest[0]} if re.fullmatch(r"[\d.]{7,15}", rest[0]) else {}
        interface = {"interface": rest[-1]} if rest[-1] != version and rest[-1] not in address.values() else {}
        yield each.fact("gid", {"device": device, "port": int(port), **_gid(index, gid, version), **address, **interface})


def _gid(index: str, gid: str, version: str) -> dict[str, object]:
    mapped = re.search(r"ffff:([\d.]{7,15})$", gid)
    return {"index": int(index), "gid": gid, "version": version, **({"address": mapped[1]} if mapped else {})}


def _word(name: str, value: str) -> object:
    """`4: ACTIVE`, `PORT_ACTIVE (4)`, `Active` -> active; `1024 (3)` -> 1024."""
    if name in ("state", "physical"):
        bare = re.sub(r"^\d+: |^PORT_| \(\d+\)$", "", value).lower()
        return {"up": "active"}.get(bare, bare)
    return _number(value.split()[0]) if name in ("mtu", "lid", "rate") else value


def _number(value: str) -> object:
    return int(value) if value.isdigit() and len(value) < 19 else value


READS = (
    Block(_CA, _adapter),
    Block(_STATUS, _adapter),
    Block(_HCA, _adapter),
    Block(_RDMA, _one),
    Block(_NETDEV, _one),
    Block(_GIDS, _table),
)
