"""A GPU, its memory or its bus failed: the driver reports an Xid, CUDA an error that software cannot cause.

Xids 13, 31 and 43 come from programs as well, and 45 follows whatever ended a process; 63 and 92 are warnings; all others are hardware.

Blames
    fact xid @ node-a code=79
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO ncclCommInitRank comm 0x55d0 rank 0 nranks 2 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
    log a.log: node-a:312:406 [1] NCCL INFO ncclCommInitRank comm 0x55d1 rank 1 nranks 2 cudaDev 1 nvmlDev 3 busId b1000 commId 0x9f3 - Init START
    log dmesg.log: Nov 22 09:10:11 node-a kernel: NVRM: Xid (PCI:0000:b1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    => 1

Blames
    log rank6.log: RuntimeError: CUDA error: uncorrectable ECC error encountered
    => 6

Blames
    log rank6.log: torch.AcceleratorError: CUDA error: uncorrectable NVLink error detected during the execution
    log rank6.log: RuntimeError: CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error
    => 6

Blames
    log rank6.log: Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system to recover this GPU
    => 6

Blames
    fact gpu-lost @ node-a device=0000:41:00.0
    => node-a

Blames
    fact gpu @ node-a index=4 error=True
    => node-a

Spares
    fact gpu @ node-a index=4 uncorrectable=0

Spares
    fact xid @ node-a code=31
    log rank6.log: RuntimeError: CUDA error: an illegal memory access was encountered

Spares
    fact xid @ node-a code=45

Spares
    log rank6.log: RuntimeError: CUDA error: an illegal memory access was encountered
"""

from __future__ import annotations

import re
from dataclasses import replace

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "gpu_kernel_stuck", "peer_reset", "rank_exited_early", "rpc_timeout", "rank_killed")

REMEDY = (
    "dmesg -T | grep -i xid; nvidia-smi -q | grep -iE 'ecc|remap|retired|pending' -A4; dcgmi diag -r 3   # drain the node; nvidia-smi --gpu-reset "
    "or reboot; replace the GPU where rows cannot be remapped or it happens again"
)
SOFTWARE = {
    13: "an exception in a kernel: a fault of the program as often as of the GPU",
    31: "a memory fault: a fault of the program as often as of the GPU",
    43: "a stopped channel: a fault of the program as often as of the GPU",
    63: "a row of memory is remapped at the next reset: nothing is lost yet",
    92: "many corrected ECC errors: nothing is lost yet",
}
FOLLOWING = (45, 140)  # cleanup after an error told elsewhere

READS = (
    Statement(r"uncorrectable ECC error", "the memory of {who}'s GPU has an uncorrectable error (ECC)", REMEDY, 0.95),
    Statement(r"uncorrectable NVLink error|hardware error.{0,60}NVLink", "an NVLink of {who}'s GPU has an uncorrectable error", REMEDY, 0.92),
    Statement(r"peer GPU memory over nvlink or a hardware error", "an NVLink or GPU of {who} failed", REMEDY, 0.85),
    Statement(r"GPU is lost", "a GPU of {who} is gone from the bus", REMEDY, 0.95),
)


def check(run: Run) -> list[Finding]:
    """The kernel's Xids, per host, and GPUs that nvidia-smi shows as failed."""
    result = _failed(run)
    lost = [replace(fact, fields={**fact.fields, "code": 79}) for fact in run.of("gpu-lost")]  # the same event without its number
    facts = [fact for fact in [*run.of("xid"), *lost] if isinstance(fact.get("code"), int) and fact.get("code") not in FOLLOWING]
    if all(fact.get("code") in SOFTWARE for fact in facts) and (run.of("error") or run.of("error-line")):
        return result  # the program's own fault, most likely: its error says more
    by_host: dict[str | None, list[Fact]] = {}
    for fact in facts:
        by_host.setdefault(fact.host, []).append(fact)
    for host, here in by_host.items():
        codes = sorted({int(fact.get("code")) for fact in here})
        hard = [code for code in codes if code not in SOFTWARE]
        devices = list(dict.fromkeys(f"{host or ''}:{fact.get('device')}" for fact in here if fact.get("device")))
        said = f"Xid {', '.join(map(str, hard or codes))}"
        why = "" if hard else f" ({SOFTWARE[codes[0]]})"
        ranks = sorted({rank for fact in here for rank in _ranks(run, fact)})
        whose = f" for the GPU of {', '.join(run.name(rank) for rank in ranks[:4])}" if ranks else ""
        title = f"the driver of {host or 'the host'} reports {said}{whose}{why}"
        culprit = Culprit(ranks=ranks or None, hosts=[host] if host else run.hosts(ranks) or None, devices=devices or None)
        result.append(Finding("xid-hardware", title, culprit, 0.96 if hard else 0.5, reading.quote(*here[:6]), REMEDY))
    return result


def _ranks(run: Run, event: Fact) -> list[int]:
    """The ranks whose GPU an Xid is about: the one on that PCI bus, as NCCL calls it, else the process that the driver names."""
    bus = _bus(str(event.get("device", "")))
    there = {} if bus is None else run.once(_by_bus).get(bus, {})
    hosts = ("", event.host) if event.host else tuple(there)
    on_it = [rank for host in hosts for rank in there.get(host, ())]
    return on_it if on_it else [] if event.rank is None else [event.rank]


def _by_bus(run: Run) -> dict[int, dict[str, list[int]]]:
    """The ranks whose GPU is on each PCI bus, by their host."""
    result: dict[int, dict[str, list[int]]] = {}
    for rank in run.ranks.values():
        if (bus := _bus(rank.device.pci_bus_id or "")) is not None:
            result.setdefault(bus, {}).setdefault(rank.host, []).append(rank.rank)
    return result


def _bus(text: str) -> int | None:
    """A PCI address without its function as one number: NCCL's busId `a1000` and the driver's `PCI:0000:a1:00` are the same."""
    if match := re.search(r"(?:\b([0-9a-fA-F]{4,8}):)?\b([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\b", text):
        return int(match[1] or "0", 16) << 20 | int(match[2], 16) << 12 | int(match[3], 16) << 4
    return int(text, 16) & ~0xF if re.fullmatch(r"[0-9a-fA-F]{4,16}", text) else None


def _failed(run: Run) -> list[Finding]:
    counted = ("ecc", "uncorrectable")
    facts = [fact for fact in run.of("gpu") if fact.get("error") or any(isinstance(n := fact.get(name), int) and n > 0 for name in counted)]
    if not facts:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    names = [f"{fact.host or ''}:GPU {fact.get('index', fact.get('bus'))}" for fact in facts]
    dead = any(fact.get("error") for fact in facts)
    title = f"{', '.join(names)} {'cannot be read' if dead else 'counts uncorrectable memory errors (ECC)'}"
    return [Finding("xid-hardware", title, Culprit(hosts=hosts or None, devices=names), 0.85 if dead else 0.6, reading.quote(*facts[:4]), REMEDY)]
