"""A program fails by its release alone: another version of it works.

Blames
    log a.log: [rank1]: RuntimeError: ptr INTERNAL ASSERT FAILED at "/pytorch/torch/csrc/x.cpp":12, please report a bug to PyTorch.
    => -

Blames
    log a.log: [rank0]:     assert value == world_size, f"Expected {world_size}, got {value}"
    => -

Blames
    log a.log: RuntimeError: Unsupported CPU attention configuration: head_dim=24 isa=2
    => -

Blames
    log a.log: ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=24). Reasons: {FLASH_ATTN: \
[head_size not supported]}.
    => -

Blames
    log a.log: RuntimeError: open shm in SHMManager failed. errno: 2
    => -

Blames
    log a.log: Detected kernel version 5.4.0, which is below the recommended minimum of 5.5.0; this can cause the process to hang.
    => -

Blames
    log a.log: ValueError: Model architectures ['NextYearForCausalLM'] are not supported for now. Supported architectures: dict_keys(['A', 'B'])
    => -

Blames
    log a.log: ValueError: Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and is not supported anymore. Please use
    => -

Spares
    log a.log: [rank0]: AssertionError: batch is empty
"""

from ncclcheck.evidence._reads import Statement

_OTHER = "pip index versions torch   # another release, newer or the one that worked before; then search its issue tracker for this very line"

READS = (
    Statement(
        r"INTERNAL ASSERT FAILED at \"(?P<where>[^\"]*)\"", "torch failed an internal check at {where}: a bug of this release", _OTHER, 0.65, "nobody"
    ),
    Statement(
        r"assert value == world_size",
        "an all-reduce of ones did not give the world size: this NCCL, or the engine's wrapper of it, does not work here",
        "another release of vLLM (upgrade, or downgrade to the one that worked) and of nvidia-nccl; "
        "export NCCL_P2P_DISABLE=1 to see whether peer access is at fault",
        0.55,
        "nobody",
    ),
    Statement(
        r"Unsupported CPU attention configuration: head_dim=(?P<dim>\d+)",
        "vLLM's CPU attention has no kernel for heads of size {dim}",
        "a model whose head_dim is 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 512, or another version of vLLM",
        0.93,
        "nobody",
    ),
    Statement(
        r"No valid attention backend found for (?P<device>\S+) with .*?Reasons: (?P<reasons>.*)",
        "vLLM has no attention backend for this model on {device}: {reasons}",
        "another --dtype or --attention-backend, or another version of vLLM",
        0.93,
        "nobody",
    ),
    Statement(
        r"Model architectures \[(?P<kinds>[^\]]{1,200})\] are not supported for now",
        "this vLLM has no code for the architecture {kinds}",
        "pip install --upgrade vllm transformers   # on every node; or a model of a kind that `architectures` in config.json may name here",
        0.93,
        "nobody",
    ),
    Statement(
        r"Model architecture (?P<kind>\w+) was supported in vLLM until v(?P<version>[\w.]+\w), and is not supported anymore",
        "this vLLM no longer has code for the architecture {kind}; {version} was the last release that had",
        "pip install vllm=={version}   # on every node",
        0.95,
        "nobody",
    ),
    Statement(
        r"open shm in SHMManager failed\. errno: \d+",
        "vLLM's CPU platform takes ranks on different hosts for one host and looks for their shared memory here",
        "vLLM's own --nnodes N --node-rank R --master-addr A instead of external_launcher, or another version of vLLM",
        0.93,
        "nobody",
    ),
    Statement(
        r"Detected kernel version (?P<kernel>[\d.]+), which is below the recommended minimum",
        "the kernel {kernel} is known to let a process hang",
        "uname -r; a kernel of 5.5 or newer on every node",
        0.35,
        "host",
    ),
)
