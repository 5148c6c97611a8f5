"""The host's kernel refuses to register memory for RDMA though nothing limits it: a fault of that kernel.

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory
    log a.log: Max locked memory         unlimited            unlimited            bytes
    log a.log: Linux node-a 6.14.0-1015-nvidia #15-Ubuntu SMP PREEMPT_DYNAMIC
    => node-a

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory
    log a.log: memlock: unlimited
    log a.log: uname -r: 6.17.0-1004-nvidia
    => node-a

Blames
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory
    log a.log: CmaTotal:              0 kB
    log a.log: CmaFree:          120044 kB
    => node-a

Spares
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory
    log a.log: Max locked memory         67108864             67108864             bytes
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

READS = (
    Clue("memlock-free", r"memlock[:= ]+(?P<bytes>unlimited|-1|no limit)"),
    Clue("memory-accounting", r"CmaTotal:\s+(?P<total>\d+) kB"),
    Clue("memory-accounting", r"CmaFree:\s+(?P<free>\d+) kB"),
    Clue("kernel", r"(?:uname -r: |^Linux \S+ )(?P<version>\d+\.\d+\.\d+\S*)"),
)


def check(run: Run) -> list[Finding]:
    """Registration refused where locked memory is unlimited, or where the kernel's own count of its memory is impossible."""
    refused = run.of("ib-memory")
    known = [fact for fact in run.of("limit") if fact.get("name") == "memlock"]
    limits = [*known, *run.of("memlock-free")]
    free = all(fact.get("soft") == "unlimited" for fact in known)
    totals = {name: [fact for fact in run.of("memory-accounting") if name in fact.fields] for name in ("total", "free")}
    wrong = bool(totals["total"] and totals["free"]) and int(totals["free"][0].get("free")) > int(totals["total"][0].get("total"))
    if not refused or not free or not (limits or wrong):
        return []
    kernels = run.of("kernel")
    hosts = list(dict.fromkeys(fact.host for fact in refused if fact.host))
    version = f" ({kernels[0].get('version')})" if kernels else ""
    said = ", and counts more free CMA memory than it has" if wrong else ""
    return [
        Finding(
            "kernel-regression",
            f"the kernel{version} refuses to register memory for RDMA though nothing limits locked memory{said}",
            Culprit(hosts=hosts or None),
            0.85 if wrong else 0.7,
            reading.quote(refused[0], *limits[:1], *totals["free"][:1], *kernels[:1]),
            "uname -r; grep Cma /proc/meminfo   # boot another kernel on that host and compare; with CmaFree above CmaTotal: boot with kho=off",
        )
    ]
