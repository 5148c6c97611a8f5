"""RDMA over Ethernet uses a GID that the peer cannot reach: connections are set up over TCP and the first message gets no answer.

Blames
    log a.log: link_layer:                     Ethernet
    log a.log: node-a:311:407 [0] transport/net_ib.cc:839 NCCL WARN NET/IB : Got completion with error 12, opcode 0, len 0, vendor err 129
    => node-a

Blames
    log a.log: node-a:1:2 [0] NCCL WARN NET/IB : Got completion from peer b<51> with status=12 vendor err 129 localGid fe80::1 remoteGids fe80::2
    => node-a

Blames
    log a.log: node-a:311:407 [0] misc/ibvwrap.cc:187 NCCL WARN Call to ibv_modify_qp failed with error Network is unreachable
    => node-a

Blames
    log a.log: node-a:311:407 [0] transport/net_ib.cc:130 NCCL WARN NET/IB : mlx5_1:1 GID table changed
    => node-a

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>
    log a.log: node-a:311:407 [0] transport/net_ib.cc:839 NCCL WARN NET/IB : Got completion with error 12, opcode 0, len 0, vendor err 129

Spares
    log a.log: link_layer:                     Ethernet
    log a.log: node-a:311:407 [0] transport/net_ib.cc:839 NCCL WARN NET/IB : Got completion with error 5, opcode 0, len 0, vendor err 249
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _fabric as fabric
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "peer_reset", "network_unreachable")

REMEDY = (
    "show_gids on every node; export NCCL_IB_GID_INDEX=<the index of RoCE v2 with the IPv4 address, often 3>, or unset it (NCCL 2.21 chooses by "
    "itself); ib_write_bw -x <index> between the nodes; NCCL_IB_HCA=<cards of one network, on every node>; NCCL_IB_TC and PFC as the switches "
    "want them; NCCL_IB_DISABLE=1 proves the rest works"
)

READS = (
    Clue("link-layer", r"link_layer:\s+(?P<layer>Ethernet|InfiniBand)"),
    Statement(
        r"ibv_modify_qp failed with (?:error |\d+ )(?P<error>Network is unreachable|No route to host|Invalid argument|No such device)",
        "{who} cannot reach its peer from the GID that it uses: {error}",
        REMEDY,
        0.8,
        "host",
    ),
    Statement(r"NET/IB ?: (?P<port>\w+:\d+) GID table changed", "the GIDs of {port} on {who} changed while the job ran", REMEDY, 0.7, "host"),
)


def check(run: Run) -> list[Finding]:
    """Retries exceeded over Ethernet; or over a network of unknown kind, with less confidence."""
    facts = [fact for fact in run.of("ib-error") if fact.get("status") in fabric.UNANSWERED]
    layer = fabric.link_layer(run)
    local = [str(fact.get("local", "")) for fact in facts]
    if not facts or (layer == "InfiniBand" and not any(gid.startswith("fe80") for gid in local)):
        return []
    sure = 0.82 if layer == "Ethernet" else 0.6
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    via = f" from GID {local[0]}" if local[0] else ""
    peer, vendor = facts[0].get("peer", ""), facts[0].get("vendor")
    title = f"the peer {peer} does not answer over RoCE (status 12, vendor error {vendor}){via}: the GID cannot reach it"
    return [Finding("roce-gid", title, Culprit(hosts=hosts or None), sure, reading.quote(*run.of("link-layer")[:1], *facts[:4]), REMEDY)]
