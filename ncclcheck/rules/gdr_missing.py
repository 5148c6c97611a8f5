"""GPUDirect RDMA is not available: data between GPU and network card takes the way through host memory, or cannot be registered at all.

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0' (no module)
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : GPU Direct RDMA (nvidia-peermem) Disabled for HCA 0 'mlx5_0'
    => node-a

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:150 NCCL WARN Call to ibv_reg_mr failed with error Bad address
    => node-a

Blames
    log a.log: modprobe: FATAL: Module nvidia-peermem not found in directory /lib/modules/6.8.0-45-generic
    log a.log: cat: /sys/kernel/mm/memory_peers/nv_mem/version: No such file or directory
    => -

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [send] via NET/IB/0/GDRDMA
    log b.log: node-b:312:406 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [receive] via NET/IB/1
    => node-b

Spares
    log a.log: node-a:311:405 [0] NCCL INFO GPU Direct RDMA Disabled for GPU 0 / HCA 1 (distance 8 > 4)
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

REMEDY = (
    "modprobe nvidia-peermem; lsmod | grep peermem   # after OFED was installed and the driver rebuilt against it; or DMA-BUF: open kernel modules "
    "of the driver, kernel 5.12 or newer, NCCL_DMABUF_ENABLE=1; NCCL_NET_GDR_LEVEL=SYS only if the topology is right; NCCL_NET_GDR_LEVEL=LOC "
    "switches it off"
)

READS = (
    Statement(
        r"GPU Direct RDMA (?:\([\w-]+\) )?Disabled for HCA \d+ '(?P<card>\w+)'",
        "GPUDirect RDMA is off on {who}: nvidia_peermem is not loaded",
        REMEDY,
        0.6,
        "host",
    ),
    Statement(
        r"ibv_reg_\w+ failed with error (?:Bad address|Operation not supported)",
        "GPU memory of {who} cannot be registered for RDMA",
        REMEDY,
        0.82,
        "host",
    ),
    Statement(r"Module nvidia[-_]peermem not found", "{who} has no module nvidia-peermem", REMEDY, 0.8, "host"),
    Statement(
        r"/sys/kernel/mm/memory_peers/nv_mem\w*/version: No such file", "no module for GPUDirect RDMA is loaded on {who}", REMEDY, 0.55, "host"
    ),
)


def check(run: Run) -> list[Finding]:
    """Hosts whose channels go over RDMA without GPUDirect where others' go with it."""
    over = [fact for fact in run.of("via") if str(fact.get("transport", "")).startswith("NET/IB") and fact.host]
    direct = [fact for fact in over if "GDRDMA" in str(fact.get("transport"))]
    able = {fact.host for fact in direct}
    without = [fact for fact in over if fact.host not in able]
    if not direct or not without:
        return []
    hosts = list(dict.fromkeys(str(fact.host) for fact in without))
    title = f"{', '.join(hosts)} sends over RDMA without GPUDirect, which works on {direct[0].host}"
    return [Finding("gdr-missing", title, Culprit(hosts=hosts), 0.65, reading.quote(without[0], direct[0]), REMEDY)]
