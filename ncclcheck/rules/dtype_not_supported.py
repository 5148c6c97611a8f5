"""The GPU cannot compute in the number format in which the model is stored or served, and the engine refuses it.

Blames
    log rank1.log: ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute \
capability 7.5. You can use float16 instead by explicitly setting the
    => 1

Blames
    log rank1.log: ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 75. Current capability: 70.
    => 1

Blames
    log rank1.log: RuntimeError: Quantization scheme is not supported for the current GPU. Min capability: 90. Current capability: 89.
    => 1

Spares
    log rank1.log: WARNING 03-02 10:00:00 [model.py:1] Your device 'Tesla T4' (with compute capability 7.5) doesn't support torch.bfloat16. \
Falling back to torch.float16 for compatibility.
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception",)

_SEEN = "nvidia-smi --query-gpu=index,name,compute_cap --format=csv   # on every node"

READS = (
    Statement(
        r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<least>[\d.]+\d)\. Your (?P<name>.{1,80}?) GPU has compute "
        r"capability (?P<has>[\d.]+\d)",
        "the GPU of {who} ({name}) has compute capability {has}, and bfloat16 needs {least}",
        f"--dtype float16 (float16 has a smaller range: compare the answers), or a GPU of {{least}} and newer; {_SEEN}",
        0.95,
    ),
    Statement(
        r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: (?P<least>\d+)\. "
        r"Current capability: (?P<has>\d+)",
        "the GPU of {who} has compute capability {has}, and vLLM's kernels for {method} weights need {least} (in tenths)",
        f"the model's weights in another format, or a newer GPU; {_SEEN}",
        0.95,
    ),
    Statement(
        r"Quantization scheme is not supported for the current GPU\. (?:Required|Min) capability: (?P<least>\d+)\. Current capability: (?P<has>\d+)",
        "the GPU of {who} has compute capability {has}, and vLLM's kernels for these weights need {least} (in tenths)",
        f"the model's weights in another format, or a newer GPU; {_SEEN}",
        0.95,
    ),
)
