"""A collective gave wrong numbers.

Blames
    log a.log: # Out of bounds values : 3 FAILED
    => -

Blames
    log a.log: verification failed: all_reduce gave 7.0, expected 8.0 on rank 3
    => 3

Spares
    log a.log: # Out of bounds values : 0 OK
"""

from ncclcheck.evidence._reads import Statement

_REMEDY = (
    "export NCCL_P2P_DISABLE=1   # then NCCL_SHM_DISABLE=1, NCCL_ALGO=Ring, NCCL_PROTO=Simple, each on its own: which one gives right sums? "
    "nvidia-smi -q | grep -iA4 ecc; lspci -vvv | grep ACSCtl (turn ACS off or IOMMU to pt); then another NCCL version"
)

READS = (
    Statement(r"# Out of bounds values : (?P<count>[1-9]\d*) FAILED", "nccl-tests found {count} wrong results", _REMEDY, 0.95, "nobody"),
    Statement(r"verification failed: \w+ gave \S+ expected \S+(?: on rank (?P<rank>\d+))?", "a collective gave wrong numbers to {who}", _REMEDY, 0.9),
)
