"""A preloaded library that shares or limits GPUs (HAMi's libvgpu.so and the like) sits between the program and the driver.

It intercepts the driver's memory calls. NCCL's own memory sharing (cuMem) can deadlock in it: nothing is printed after the NCCL version line.

Blames
    log rank0.log: [HAMI-core Msg(411:139870:libvgpu.c:837)]: Initializing.....
    log rank0.log: node-a:411:411 [0] NCCL INFO NCCL version 2.27.5+cuda12.9
    => 0

Blames
    log rank0.log: LD_PRELOAD=/usr/local/vgpu/libvgpu.so
    => -

Spares
    log rank0.log: node-a:411:411 [0] NCCL INFO NCCL version 2.27.5+cuda12.9
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

READS = (Clue("interposer", r"(?P<library>libvgpu\.so|libcuda-control\.so|libcgpu\w*\.so|HAMi-core|HAMI-core)"),)


def check(run: Run) -> list[Finding]:
    """The library is there; a communicator that was begun and never completed makes it likely."""
    facts = run.of("interposer")
    if not facts:
        return []
    begun = run.of("nccl-version")
    stuck = bool(begun) and not any(fact.get("phase") == "COMPLETE" for fact in run.of("init"))
    ranks = sorted({fact.rank for fact in [*facts, *begun] if fact.rank is not None}) if stuck else []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    title = f"a GPU-sharing library ({facts[0].get('library')}) is preloaded" + (", and NCCL gets no further than its version line" if stuck else "")
    return [
        Finding(
            "gpu-interposer-library",
            title,
            Culprit(ranks=ranks or None, hosts=hosts or None),
            0.75 if stuck else 0.4,
            reading.quote(facts[0], *begun[:1]),
            (
                "export CUDA_DISABLE_CONTROL=true (HAMi), or start without it: unset LD_PRELOAD, no libvgpu.so in /etc/ld.so.preload; else "
                "NCCL_CUMEM_ENABLE=0"
            ),
        )
    ]
