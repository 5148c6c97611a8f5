"""Corrects vLLM's CPU platform under torchrun, which takes all ranks for ranks of one host and lets their traffic bypass the network.

Its ranks agree on the name of a shared memory segment and use it instead of Gloo. Under vLLM's own launchers the name is
unique to a node; under torchrun it is the same constant on every node, and for every job.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


def network() -> str:
    """What processes have in common that reach each other without a network: this boot of the kernel and this network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}-{os.stat('/proc/self/ns/net').st_ino}"


def correct() -> str:
    """Name the segment after the job and the node; groups that span nodes then use Gloo. Call it before the engine is made.

    Returns one sentence for the report.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    shared: Any = cpu_communicator._CPUSHMDistributed
    original = shared.make_group_name
    node = f"{network()}-{os.stat('/dev/shm').st_dev}"
    job = os.environ.get("NCCLCHECK_RUN") or os.environ.get("MASTER_PORT", "")

    def make_group_name(communicator: Any) -> str:
        whole = f"{node} {original(communicator)}"  # lists every rank of the group: too long for a file name
        return f"ncclcheck-{job}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    shared.make_group_name = staticmethod(make_group_name)
    return "vLLM's CPU platform under torchrun: its shared memory is named after the job and the node, so groups that span nodes use the network"


def backend(group: Any) -> str:
    """What carries this group of vLLM's: "nccl", "gloo", or on one node without GPUs "shared memory"."""
    import torch.distributed as dist

    carrier = getattr(group.device_communicator, "dist_module", None)
    return "shared memory" if type(carrier).__name__ == "_CPUSHMDistributed" else str(dist.get_backend(group.device_group))
