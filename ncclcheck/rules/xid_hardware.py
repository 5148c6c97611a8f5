"""A GPU, its memory or its bus failed: the driver reports an Xid, CUDA an error that software cannot cause.

Xids 13, 31 and 43 come from programs as well, and 45 follows whatever ended a process; all others below are hardware.

Blames
    fact xid @ node-a code=79
    => node-a

Blames
    log rank6.log: RuntimeError: CUDA error: uncorrectable ECC error encountered
    => 6

Blames
    log rank6.log: torch.AcceleratorError: CUDA error: uncorrectable NVLink error detected during the execution
    log rank6.log: RuntimeError: CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error
    => 6

Blames
    log rank6.log: Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system to recover this GPU
    log rank6.log: node-a kernel: NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.
    => 6

Spares
    fact xid @ node-a code=45

Spares
    log rank6.log: RuntimeError: CUDA error: an illegal memory access was encountered
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "gpu_kernel_stuck", "peer_reset", "rank_exited_early", "rpc_timeout", "rank_killed")

REMEDY = (
    "dmesg -T | grep -i xid; nvidia-smi -q | grep -iE 'ecc|remap|retired|pending' -A4; dcgmi diag -r 3   # drain the node; nvidia-smi --gpu-reset "
    "or reboot; replace the GPU where rows cannot be remapped or it happens again"
)
SOFTWARE = {13: "an exception in a kernel", 31: "a memory fault", 43: "a stopped channel", 68: "a video processor error", 69: "a class error"}
FOLLOWING = (45, 140)  # cleanup after an error told elsewhere

READS = (
    Statement(r"uncorrectable ECC error", "the memory of {who}'s GPU has an uncorrectable error (ECC)", REMEDY, 0.95),
    Statement(r"uncorrectable NVLink error|hardware error.{0,60}NVLink", "an NVLink of {who}'s GPU has an uncorrectable error", REMEDY, 0.92),
    Statement(r"peer GPU memory over nvlink or a hardware error", "an NVLink or GPU of {who} failed", REMEDY, 0.85),
    Statement(r"GPU (?:is lost|has fallen off the bus)", "a GPU of {who} is gone from the bus", REMEDY, 0.95),
)


def check(run: Run) -> list[Finding]:
    """The kernel's Xids, per host."""
    result = []
    facts = [fact for fact in run.of("xid") if fact.get("code") not in FOLLOWING]
    for host in dict.fromkeys(fact.host for fact in facts):
        here = [fact for fact in facts if fact.host == host]
        codes = sorted({int(fact.get("code")) for fact in here})
        hard = [code for code in codes if code not in SOFTWARE]
        devices = list(dict.fromkeys(f"{host or ''}:{fact.get('device')}" for fact in here if fact.get("device")))
        said = f"Xid {', '.join(map(str, hard or codes))}"
        why = "" if hard else f" ({SOFTWARE[codes[0]]}: a fault of the program as often as of the GPU)"
        title = f"the driver of {host or 'the host'} reports {said}{why}"
        culprit = Culprit(hosts=[host] if host else None, devices=devices or None)
        result.append(Finding("xid-hardware", title, culprit, 0.93 if hard else 0.5, reading.quote(*here[:6]), REMEDY))
    return result
