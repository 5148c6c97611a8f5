"""Locked memory is limited too low for RDMA: memory cannot be registered with the network device.

Blames
    log rank0.log: Please set max locked memory (ulimit -l) to 'unlimited' (current: 65536 kbytes)
    => 0

Blames
    log rank0.log: libibverbs: Warning: RLIMIT_MEMLOCK is 65536 bytes.
    => 0

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory
    log a.log: Max locked memory         67108864             67108864             bytes
    => node-a

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_create_qp failed with error Cannot allocate memory
    log a.log: max locked memory       (kbytes, -l) 64
    => node-a

Blames
    log rank0.log: allocate some locked memory. This typically can indicate that the memlock limits are set too low. For most HPC installations
    => 0

Spares
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory
    log a.log: Max locked memory         unlimited            unlimited            bytes
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "peer_reset")

REMEDY = (
    "ulimit -l in the job itself must say unlimited: docker run --ulimit memlock=-1; LimitMEMLOCK=infinity in the unit of containerd, dockerd or "
    "slurmd, then restart it; '* - memlock unlimited' in /etc/security/limits.conf; --cap-add IPC_LOCK; "
    "where it is unlimited already: unset NCCL_BUFFSIZE, then another kernel"
)

READS = (
    Statement(r"[Ss]et max locked memory \(ulimit -l\) to 'unlimited' \(current: (?P<limit>[^)]*)\)", "{who} may lock only {limit}", REMEDY, 0.95),
    Statement(r"memlock limits are set too low", "{who} may lock too little memory for RDMA", REMEDY, 0.9),
    Statement(r"RLIMIT_MEMLOCK is (?P<limit>\d+) bytes", "{who} may lock only {limit} bytes of memory", REMEDY, 0.85),
)


def check(run: Run) -> list[Finding]:
    """Registration refused for want of memory, and a limit that is known and small, or not known."""
    refused = run.of("ib-memory")
    limits = [fact for fact in run.of("limit") if fact.get("name") == "memlock"]
    small = [fact for fact in limits if fact.get("soft") != "unlimited"]
    free = bool(limits or run.of("memlock-free")) and not small
    if not refused or free or run.of("memory-accounting"):
        return []
    hosts = list(dict.fromkeys(fact.host for fact in refused if fact.host))
    title = f"memory cannot be registered with the network device ({refused[0].get('call')}): too little may be locked"
    return [Finding("memlock-limit", title, Culprit(hosts=hosts or None), 0.9 if small else 0.6, reading.quote(refused[0], *small[:1]), REMEDY)]
