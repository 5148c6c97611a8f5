"""A link is slower than its kind: a PCIe slot or cable that came up with fewer lanes or at a lower rate.

Blames
    log a.log: Mar  3 10:00:00 node-a kernel: mlx5_core 0000:5e:00.0: 31.504 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x4 link at
    => node-a

Blames
    log a.log: LnkSta: Speed 8GT/s (downgraded), Width x16
    => -

Blames
    fact gpu @ node-a index=1 width=4x width_max=16x
    => node-a

Blames
    fact nvlink @ node-a gpu=0 active=18 inactive=0
    fact nvlink @ node-a gpu=1 active=12 inactive=6
    => node-a

Blames
    fact ibport @ node-a device=mlx5_0 rate=400 state=active
    fact ibport @ node-a device=mlx5_1 rate=400 state=active
    fact ibport @ node-b device=mlx5_0 rate=400 state=active
    fact ibport @ node-b device=mlx5_1 rate=100 state=active
    => node-b

Spares
    fact ibport @ node-a device=mlx5_0 rate=400 state=active
    fact ibport @ node-a device=mlx5_9 rate=25 state=active

Spares
    fact nvlink @ node-a gpu=0 active=12 inactive=6
    fact nvlink @ node-a gpu=1 active=12 inactive=6

Spares
    log a.log: LnkSta: Speed 16GT/s, Width x16
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

REMEDY = (
    "lspci -vv | grep -E 'LnkCap:|LnkSta:'   # compare with a healthy node (idle GPUs lower their rate by themselves: look under load); reseat the "
    "card or cable; nvidia-smi topo -m; ibstat | grep Rate; mlxlink -d mlx5_0"
)

READS = (
    Statement(
        r"(?P<bandwidth>[\d.]+ Gb/s) available PCIe bandwidth, limited by (?P<link>.*?) link at",
        "a card of {who} has only {link} ({bandwidth})",
        REMEDY,
        0.6,
        "host",
    ),
    Statement(r"LnkSta:.{0,20}(?P<speed>[\d.]+GT/s).{0,20}downgraded", "a PCIe link is slower than it could be ({speed})", REMEDY, 0.5, "nobody"),
)


def check(run: Run) -> list[Finding]:
    """GPUs with fewer PCIe lanes than they could have, with fewer NVLinks than their peers, and RDMA ports slower than the same port elsewhere."""
    narrow = [fact for fact in run.of("gpu") if fact.get("width") and fact.get("width_max") and _lanes(fact, "width") < _lanes(fact, "width_max")]
    links = run.of("nvlink")
    most = max((_count(fact, "active") for fact in links), default=0)
    fewer = [fact for fact in links if _count(fact, "active") < most]
    rates = [fact for fact in run.of("ibport") if _count(fact, "rate") and fact.get("state") != "down"]
    usual = {fact.get("device"): max(_count(other, "rate") for other in rates if other.get("device") == fact.get("device")) for fact in rates}
    slow = [fact for fact in rates if _count(fact, "rate") < usual[fact.get("device")]]
    said = (
        [(fact, f"GPU {_name(fact)} has {fact.get('width')} of {fact.get('width_max')} PCIe lanes") for fact in narrow]
        + [(fact, f"GPU {fact.get('gpu')} has {fact.get('active')} active NVLinks, and its peers {most}") for fact in fewer]
        + [(fact, f"the port {fact.get('device')} runs at {fact.get('rate')} Gb/s, elsewhere at {usual[fact.get('device')]}") for fact in slow]
    )
    return [_finding(fact, what) for fact, what in said]


def _finding(fact: Fact, what: str) -> Finding:
    where = f" on {fact.host}" if fact.host else ""
    culprit = Culprit(hosts=[fact.host] if fact.host else None, interface=fact.get("device") if fact.kind == "ibport" else None)
    return Finding("slow-link", f"{what}{where}", culprit, 0.6, reading.quote(fact), REMEDY)


def _name(fact: Fact) -> object:
    return fact.get("index", fact.get("bus"))


def _lanes(fact: Fact, name: str) -> int:
    lanes = str(fact.get(name)).rstrip("x")
    return int(lanes) if lanes.isdigit() else 0


def _count(fact: Fact, name: str) -> float:
    value = fact.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
