"""NCCL's network plugin fails: EFA/OFI (aws-ofi-nccl), GCP's FastSocket and TCPX, SHARP, or another libnccl-net.so.

Blames
    log a.log: node-a:311:405 [0] nccl_net_ofi_create_plugin:213 NCCL WARN NET/OFI Unable to find a protocol that worked.  Failing initialization.
    => node-a

Blames
    log a.log: node-a:311:405 [0] ofi_process_cq:1000 NCCL WARN NET/OFI Request completed with error. RC: 21. Error: unknown error
    => node-a

Blames
    log a.log: node-a:311:405 [0] create_nccl_ofi_component:459 NCCL WARN NET/OFI Couldn't open AV. RC: -22, ERROR: Invalid argument
    => node-a

Blames
    log a.log: node-a:311:405 [0] plugin/net.cc:240 NCCL WARN Failed to initialize any NET plugin
    => node-a

Blames
    log a.log: node-a:311:405 [0] tcpx.cc:240 NCCL WARN NET/GPUDirectTCPX : failed to connect to rxdm
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO External network plugin libnccl-net-acme.so is unsupported
    => node-a

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NET/Plugin: Failed to find ncclNetPlugin_v7 symbol.

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NET/OFI Selected Provider is efa (found 4 nics)
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("peer_reset", "rank_died_exception")

OFI = (
    "fi_info -p efa; echo $FI_PROVIDER $FI_EFA_USE_DEVICE_RDMA $NCCL_NET_PLUGIN; a security group that allows all traffic to and from itself; the "
    "aws-ofi-nccl built for this NCCL; or without it: export NCCL_NET_PLUGIN=none NCCL_NET=Socket"
)

READS = (
    Statement(
        r"NET/OFI (?P<text>Unable to find a protocol that worked|Request completed with error.{0,80}|.{0,40}initialization failed)",
        "the EFA/OFI network plugin fails on {who}: {text}",
        OFI,
        0.87,
        "host",
    ),
    Statement(
        r"NCCL WARN NET/OFI (?!Unable to find a protocol|Request completed|.{0,40}initialization failed)(?P<text>\S.{0,120})",
        "the EFA/OFI network plugin complains on {who}: {text}",
        OFI,
        0.65,
        "host",
    ),
    Statement(
        r"NCCL WARN (?:NET/)?(?P<plugin>FastSocket|GPUDirectTCPX|TCPX|FasTrak|gIB|SHARP|IBext|UCX|MLNX)\w*\b ?:? ?(?P<text>.{0,120})",
        "the network plugin {plugin} fails on {who}: {text}",
        "export NCCL_NET_PLUGIN=none NCCL_NET=Socket   # to prove it; then install the plugin's release for this NCCL, and start its helper",
        0.75,
        "host",
    ),
    Statement(
        r"Failed to initialize any NET plugin",
        "no network plugin works on {who}",
        "echo $NCCL_NET $NCCL_NET_PLUGIN; unset both   # or export NCCL_NET_PLUGIN=none NCCL_NET=Socket",
        0.8,
        "host",
    ),
    Statement(
        r"External network plugin (?P<plugin>\S+) is unsupported",
        "the network plugin {plugin} on {who} is made for another NCCL",
        "install the release of {plugin} for this NCCL version, or export NCCL_NET_PLUGIN=none",
        0.75,
        "host",
    ),
)
