"""An InfiniBand or RoCE port or cable failed: the port went down, or packets are lost on it until the card gives up.

The card itself tells NCCL of a lost port ("async error event"). Without such a line, a completion with status 12 (retries exceeded) on an
InfiniBand network says that the peer's port, cable or switch does not answer.

Blames
    log a.log: [2026-03-02 10:00:00] node-a:311:405 [0] transport/net_ib.cc:199 NCCL WARN NET/IB : mlx5_1:1 Got async error event: port error
    log a.log: node-a:1:2 [0] NCCL WARN NET/IB : Got completion from peer b<51> with status=12 opcode=0 len=0 vendor err 129 (Send)
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/net_ib.cc:199 NCCL WARN NET/IB : mlx5_1:1 async fatal event: local catastrophic error
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/net_ib.cc:80 NCCL WARN NET/IB : Got async event : port error
    log a.log: node-a:311:405 [0] net_ib/p2p.cc:80 NCCL WARN NET/IB: Device 2 marked as failed. Initiating recovery? No (send comm=0x7f)
    log a.log: node-a:311:405 [0] net_ib/p2p.cc:80 NCCL WARN NET/IB: Fatal error. Detected 2 failed devices out of 2 devices on the send communicator
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/net_ib.cc:199 NCCL WARN NET/IB : mlx5_3:1 async fatal event on QP (0x7f) qpn=12: local work
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>
    log a.log: node-a:1:2 [0] NCCL WARN NET/IB : Got completion from peer b<51> with status=12 opcode=0 len=0 vendor err 129 (Send)
    => node-a

Blames
    fact link @ node-a device=mlx5_1 state=down
    => node-a

Blames
    fact setting @ node-a name=NCCL_IB_HCA value=mlx5_1
    fact ibport @ node-a device=mlx5_1 state=down
    => node-a

Spares
    fact ibport @ node-a device=mlx5_7 state=down

Spares
    log a.log: node-a:311:405 [0] transport/net_ib.cc:199 NCCL WARN NET/IB : mlx5_1:1 Got async error event: port active

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [RO]; OOB eth0:10.0.0.1<0>
    log a.log: node-a:1:2 [0] NCCL WARN NET/IB : Got completion from peer b<51> with status=12 opcode=0 len=0 vendor err 129 (Send)
"""

from __future__ import annotations

import re

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _fabric as fabric
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("roce_gid", "mtu_mismatch", "wrong_hca_path", "rank_died_exception", "peer_reset", "network_unreachable", "rpc_timeout")

REMEDY = (
    "ibstat; ibdev2netdev; mlxlink -d {device} -m -c -e; perfquery -x (SymbolErrors, LinkDowned); dmesg -T | grep -i mlx5   # reseat or replace the "
    "cable or transceiver, look at the switch port, drain the node; until then leave the card out: export NCCL_IB_HCA=^{device}"
)
EVENT = r"(?:Got async (?:error )?event ?|async fatal event|Got non-fatal async event): (?:port error|local catastrophic error|device fatal)"

READS = (
    Statement(
        rf"NET/IB ?: (?P<interface>(?P<card>\w+):\d+) {EVENT}",
        "the port {interface} of {who} reports that it failed",
        REMEDY.replace("{device}", "{card}"),
        0.95,
        "host",
    ),
    Statement(
        r"NET/IB ?: (?P<interface>(?P<card>\w+):\d+) async fatal event on (?:QP|CQ|SRQ)",
        "the card {card} of {who} reports a fatal error",
        REMEDY.replace("{device}", "{card}"),
        0.85,
        "host",
    ),
    Statement(
        r"NET/IB: (?:Device \d+ marked as failed|Fatal error\. Detected \d+ failed devices)",
        "NCCL gave up a network card of {who}",
        REMEDY.replace("{device}", "mlx5_X"),
        0.85,
        "host",
    ),
    Statement(rf"NET/IB ?: {EVENT}", "an InfiniBand or RoCE port of {who} reports that it failed", REMEDY.replace("{device}", "mlx5_X"), 0.9, "host"),
)


def check(run: Run) -> list[Finding]:
    """Ports that the kernel saw going down, and messages over InfiniBand that nobody answered."""
    return [*_down(run), *_unanswered(run)]


def _down(run: Run) -> list[Finding]:
    used = " ".join(str(fact.get("devices")) for fact in run.of("ib-devices")) + " ".join(
        str(fact.get("value")) for fact in run.of("setting") if fact.get("name") == "NCCL_IB_HCA"
    )
    facts = [fact for fact in run.of("link") if fact.get("state") in ("down", "unplugged", "error") and _rdma(fact)]
    facts += [fact for fact in run.of("ibport") if fact.get("state") == "down" and re.search(rf"\b{re.escape(str(fact.get('device')))}\b", used)]
    if not facts:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    port = str(facts[0].get("device") or facts[0].get("interface"))
    culprit = Culprit(hosts=hosts or None, interface=port)
    title = f"the link of {port} went down{f' on {hosts[0]}' if hosts else ''}"
    return [Finding("ib-link-error", title, culprit, 0.75, reading.quote(*facts[:6]), REMEDY.replace("{device}", word(port)), time=facts[0].time)]


def _rdma(fact: Fact) -> bool:
    return bool(fact.get("device")) or str(fact.get("interface", "")).startswith("ib")


def _unanswered(run: Run) -> list[Finding]:
    facts = [fact for fact in run.of("ib-error") if fact.get("status") in fabric.UNANSWERED]
    told = any(fact.get("rule") == "ib_link_error" for fact in run.of("says"))
    if told or not facts or fabric.link_layer(run) != "InfiniBand":
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    card = next((str(fact.get("interface")) for fact in facts if fact.get("interface")), "mlx5_X")
    peer, status = facts[0].get("peer", ""), facts[0].get("status")
    title = f"the peer {peer} does not answer over InfiniBand (status {status}): a port, cable or switch on the way failed"
    return [Finding("ib-link-error", title, Culprit(hosts=hosts or None), 0.7, reading.quote(*facts[:4]), REMEDY.replace("{device}", word(card)))]
