"""The network card that NCCL chose has no path to the peer's card: rails that are not connected, other subnets, another kind of link.

Blames
    log a.log: node-a:311:407 [0] ibvwrap.c:262 NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out, on dev mlx5_3:1, curr state
    => node-a

Blames
    log a.log: node-a:311:407 [0] misc/ibvwrap.cc:160 NCCL WARN Call to ibv_modify_qp failed with error Connection timed out
    => node-a

Blames
    log a.log: node-a:311:407 [0] transport/net_ib.cc:700 NCCL WARN NET/IB : Attempted to connect incompatible devices: [0]mlx5_0:1/IB and
    log a.log: node-a:311:407 [0] transport/net_ib.cc:700 NCCL WARN NET/IB : Can't merge net devices with different link_layer. i=1 remMeta.ndevs=2
    => node-a

Blames
    log a.log: node-a:311:407 [0] transport/net.cc:100 NCCL WARN Rank 3 requires NIC 2 but that NIC is not available for rank 9
    => node-a

Blames
    log a.log: node-a:311:407 [0] NCCL INFO NCCL_IB_HCA set by environment to mlx5_9
    log a.log: node-a:311:407 [0] NCCL INFO NET/IB : No device found.
    => node-a

Blames
    log a.log: a:1:2 [3] NET/IB : Got completion from peer b<51> with status=12 vendor err 129 localGid ::ffff:10.1.3.1 remoteGids ::ffff:10.1.4.2
    => a

Blames
    log a.log: node-a:311:407 [0] transport/net_ib/init.cc:551 NCCL WARN NET/IB : Unable to open device mlx5_4
    => node-a

Spares
    log a.log: node-a:311:407 [0] NCCL INFO NET/IB : No device found.
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _fabric as fabric
from ncclcheck.rules import _reading as reading

EXPLAINS = ("roce_gid", "rank_died_exception", "peer_reset", "network_unreachable")

REMEDY = (
    "export NCCL_CROSS_NIC=0   # rails that are not connected with each other; or a route between their subnets; export "
    "NCCL_IB_HCA='=mlx5_0,mlx5_1' with cards of one kind that reach each other, the same on every node; ibdev2netdev; ping -I <device> <peer's "
    "address> from each card; RoCE: export NCCL_IB_GID_INDEX=<the index of RoCE v2 with the IPv4 address> (show_gids); NCCL_IB_DISABLE=1 (with "
    "HPC-X's plugin also NCCL_IBEXT_DISABLE=1) proves that the rest works"
)

READS = (
    Statement(
        r"ibv_modify_qp failed with (?:error |110 )Connection timed out(?:.{0,20}on dev (?P<device>\w+:\d+))?",
        "a network card of {who} finds no path to its peer's card",
        REMEDY,
        0.82,
        "host",
    ),
    Statement(
        r"NET/IB ?: (?:Attempted to (?:connect|merge) in|Remote \S+ device is in)compatible",
        "{who} and its peer use cards of different kinds",
        REMEDY,
        0.9,
        "host",
    ),
    Statement(
        r"NET/IB ?: Can't (?:merge|connect) net devices with different link_layer",
        "{who} and its peer use cards of different kinds",
        REMEDY,
        0.9,
        "host",
    ),
    Statement(
        r"NET/IB ?: Unable to (?:open|query) device (?P<card>[\w.-]+)",
        "{who} cannot use its card {card}: it has fewer cards than its peers",
        "ls -l /dev/infiniband; ibv_devinfo -l   # give the container every uverbs device; or leave the card out everywhere: export "
        "NCCL_IB_HCA=^{card} on every node; unset NCCL_IGNORE_NET_MISMATCH",
        0.65,
        "host",
    ),
    Statement(
        r"Rank (?P<asker>\d+) requires NIC (?P<nic>\d+) but that NIC is not available for rank (?P<lacks>\d+)",
        "rank {lacks} has no card {nic}",
        REMEDY,
        0.8,
        "host",
    ),
)


def check(run: Run) -> list[Finding]:
    """A card that NCCL_IB_HCA names and nobody finds, and messages between GIDs of different subnets that get no answer."""
    asked = [fact for fact in run.of("setting") if fact.get("name") == "NCCL_IB_HCA"]
    none = run.of("ib-none")
    result = []
    if asked and none:
        hosts = [host for host in dict.fromkeys(fact.host for fact in none) if host]
        title = f"no card is found that fits NCCL_IB_HCA={asked[0].get('value')}: NCCL goes over TCP instead"
        result.append(
            Finding("wrong-hca-path", title, Culprit(hosts=hosts or None), 0.7, reading.quote(asked[0], none[0]), f"ibv_devinfo -l; {REMEDY}")
        )
    lost = [
        fact
        for fact in run.of("ib-error")
        if fact.get("status") in fabric.UNANSWERED and fabric.apart(str(fact.get("local", "")), str(fact.get("remote", "")))
    ]
    if lost:
        hosts = [host for host in dict.fromkeys(fact.host for fact in lost) if host]
        title = f"messages from {lost[0].get('local')} to {lost[0].get('remote')} get no answer: the cards are in different subnets"
        result.append(Finding("wrong-hca-path", title, Culprit(hosts=hosts or None), 0.75, reading.quote(*lost[:4]), REMEDY))
    return result
