"""NVLink between nodes (MNNVL, for example GB200 NVL72) cannot share memory: the IMEX service or its channel is missing.

Blames
    log a.log: node-a:311:405 [0] mnnvl.cc:70 NCCL WARN MNNVL (cliqueSize 8) is available but not working on this system. Check the IMEX channel
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/p2p.cc:260 NCCL WARN Cuda failure 'operation not permitted' in cuMemImportFromShareableHandle
    => node-a

Blames
    log a.log: Mar  3 10:00:00 node-a nvidia-imex[700]: failed to connect to node 10.0.0.2: connection refused
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/p2p.cc:273 NCCL WARN Cuda failure 101 'invalid device ordinal'
    => node-a

Blames
    log rank3.log: ls: cannot access '/dev/nvidia-caps-imex-channels': No such file or directory
    log rank3.log: cuMemCreate of a fabric handle failed: CUDA_ERROR_NOT_PERMITTED (CU_MEM_HANDLE_TYPE_FABRIC)
    log rank3.log: Domain State: DEGRADED
    => 3

Blames
    log a.log: node-a:311:405 [0] init.cc:700 NCCL WARN MNNVL is not supported on this system
    => node-a

Spares
    log a.log: node-a:311:405 [0] NCCL INFO MNNVL 0 cliqueId 0 cliqueSize 8 cliqueRank 0
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "peer_reset")

REMEDY = (
    "nvidia-imex-ctl -N   # every node READY, every pair connected; systemctl restart nvidia-imex on all nodes of the domain "
    "(/etc/nvidia-imex/nodes_config.cfg); ls /dev/nvidia-caps-imex-channels/ in each container (Kubernetes: a ComputeDomain); until then export "
    "NCCL_MNNVL_ENABLE=0"
)

READS = (
    Statement(
        r"MNNVL .{0,30}is available but not working on (?:this|some) system",
        "NVLink between nodes does not work on {who}: IMEX is not set up",
        REMEDY,
        0.95,
        "host",
    ),
    Statement(
        r"MNNVL is not supported on this system",
        "NCCL_MNNVL_ENABLE=1 is set and {who} has no NVLink between nodes",
        "unset NCCL_MNNVL_ENABLE",
        0.9,
        "host",
    ),
    Statement(
        r"p2p\.cc:\d+ NCCL WARN (?:Cuda|CUDA) failure 101 ",
        "{who} cannot map the memory of another container's or node's GPU",
        f"{REMEDY}; containers on one node: all of its GPUs in each (CUDA_VISIBLE_DEVICES chooses), else NCCL_P2P_DISABLE=1",
        0.65,
        "host",
    ),
    Statement(r"nvidia-caps-imex-channels\S*: No such file", "{who} has no IMEX channel", REMEDY, 0.85),
    Statement(
        r"(?:NOT_PERMITTED|not permitted).{0,80}CU_MEM_HANDLE_TYPE_FABRIC", "{who} may not make memory that other nodes can map: IMEX", REMEDY, 0.85
    ),
    Statement(r"Domain State: (?P<state>DEGRADED|DOWN|INITIALIZING)", "the IMEX domain of {who} is {state}", REMEDY, 0.85),
    Statement(r"cuMemImportFromShareableHandle", "memory of another process or node cannot be mapped by {who}: IMEX", REMEDY, 0.75, "host"),
    Statement(
        r"nvidia-imex\[\d+\]: .*(?:fail|refused|mismatch|unreachable)", "the IMEX service of {who} cannot reach its peers", REMEDY, 0.85, "host"
    ),
)
