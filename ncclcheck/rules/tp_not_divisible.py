"""Tensor parallelism cannot give every GPU an equal share: a dimension of the model is not divisible by its size.

The attention heads are split first; the KV heads, the vocabulary, the MLP and the blocks of a quantised weight must divide too.

Blames
    log serve.log: Value error, Total number of attention heads (28) must be divisible by tensor parallel size (8). [type=value_error]
    => -

Blames
    log serve.log: (Worker_TP1 pid=71) ERROR 03-02 10:00:00 [multiproc_executor.py:953] AssertionError: 11008 is not divisible by 3
    => -

Blames
    log serve.log: ValueError: The output_size of gate's and up's weight = 96 is not divisible by weight quantization block_n = 128.
    => -

Blames
    log serve.log: ValueError: Weight input_size_per_partition = 1408 is not divisible by min_thread_k = 128. Consider reducing tensor_parallel_size \
or running
    => -

Blames
    log train.log: [rank0]: AssertionError: num_attention_heads (20) must be a multiple of tensor_model_parallel_size (8).
    => -

Blames
    log serve.log: AssertionError: num_attention_heads (40) must be divisible by tp_size (16)
    => -

Blames
    log a.log:     assert self.total_num_heads % tp_size == 0
    => -

Blames
    log a.log: AssertionError: num_heads (40) must be divisible by mp_size (16)
    => -

Blames
    log serve.log: AssertionError: n_physical_experts=128 must be divisible by ep_size=3. Adjust num_redundant_experts.
    => -

Blames
    log serve.log: ValueError: `num_heads` must be divisible by `num_shards` (got `num_heads`: 71 and `num_shards`: 4
    => -

Blames
    log serve.log: ValueError: Tensor parallel size 16 is greater than the number of experts 8.
    => -

Blames
    log serve.log: ValueError: The number of KV heads (6) must be divisible by tensor parallel size (4)
    => -

Blames
    log serve.log: AssertionError: `num_heads` must be divisible by `tensor_parallel_size`, got 12 and 8
    => -

Spares
    log serve.log: ValueError: Layer 3: page size is not divisible by the maximum page size and cannot be padded.
    log serve.log: INFO 03-02 10:00:00 [config.py:1] Using tensor parallel size 8
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run

EXPLAINS = ("rank_died_exception", "peer_reset")

LARGEST = 64  # tensor parallelism over more GPUs is not proposed

_ELSE = "the other GPUs can be used by --pipeline-parallel-size or --data-parallel-size"
_BLOCKS = "a smaller --tensor-parallel-size, --enable-expert-parallel (vLLM) or --ep-size (SGLang) so that experts stay whole; " + _ELSE


def check(run: Run) -> list[Finding]:
    """One finding per dimension and size, with the sizes that would do."""
    said: dict[tuple[int, int, str], list[Fact]] = {}
    for kind, what in (("heads", "attention heads"), ("dimension", "a dimension of")):
        for fact in run.of(f"undivided-{kind}"):
            said.setdefault((int(fact.get("whole")), int(fact.get("tp")), what), []).append(fact)
    return [_finding(*key, facts) for key, facts in said.items()]


def _finding(whole: int, tp: int, what: str, facts: list[Fact]) -> Finding:
    sizes = ", ".join(str(size) for size in range(1, min(whole, LARGEST) + 1) if whole % size == 0)
    named = f"{whole} {what}" if what.endswith("heads") else f"{what} {whole}"
    title = f"{named} cannot be split over tensor parallel size {tp}"
    remedy = (
        f"--tensor-parallel-size (--tp-size, --tensor-model-parallel-size) with a divisor of {whole}: {sizes}; "
        f"num_key_value_heads, intermediate_size and vocab_size in config.json must divide too; {_ELSE}"
    )
    return Finding("tp-not-divisible", title, Culprit(), 0.95, [fact.source for fact in facts if fact.source][:8], remedy)


READS = (
    Clue("undivided-heads", r"attention heads \((?P<whole>\d+)\) must be divisible by tensor parallel size \((?P<tp>\d+)\)"),
    Clue("undivided-heads", r"[Kk][Vv] heads \((?P<whole>\d+)\) must be divisible by (?:the )?(?:tensor parallel|TP) size \((?P<tp>\d+)\)"),
    Clue("undivided-heads", r"num_(?:attention_|key_value_|kv_)?heads \((?P<whole>\d+)\) must be divisible by [tm]p_size \((?P<tp>\d+)\)"),
    Clue("undivided-heads", r"got `num_heads`: (?P<whole>\d+) and `num_shards`: (?P<tp>\d+)"),
    Statement(
        r"^\W*assert \S{0,40}heads\w* % \S{0,40}(?:tp|tensor|parallel|world)\w* == 0$",
        "the attention heads cannot be split over this tensor parallel size",
        "--tensor-parallel-size (--tp-size) with a divisor of num_attention_heads and num_key_value_heads in config.json; " + _ELSE,
        0.9,
        blames="nobody",
    ),
    Statement(
        r"n_physical_experts=(?P<whole>\d+) must be divisible by ep_size=(?P<size>\d+)",
        "{whole} experts cannot be split over {size} GPUs",
        "a --tensor-parallel-size x --data-parallel-size that divides the number of experts, or --eplb-config with num_redundant_experts to fill up; "
        + _ELSE,
        0.93,
        blames="nobody",
    ),
    Statement(
        r"Tensor parallel size (?P<size>\d+) is greater than the number of experts (?P<whole>\d+)",
        "{whole} experts cannot be split over {size} GPUs",
        "--tensor-parallel-size (--tp-size) of at most {whole}; " + _ELSE,
        0.93,
        blames="nobody",
    ),
    Clue(
        "undivided-heads",
        r"num_(?:attention_heads|query_groups|key_value_heads) \((?P<whole>\d+)\) must be a multiple of tensor_model_parallel_size \((?P<tp>\d+)\)",
    ),
    Clue("undivided-dimension", r"AssertionError: (?P<whole>\d+) is not divisible by (?P<tp>\d+)$"),
    Statement(
        r"= (?P<whole>\d+) is not divisible by weight quantization block_[nk] = (?P<block>\d+)",
        "tensor parallelism leaves each GPU {whole} columns of a weight that is quantised in blocks of {block}",
        _BLOCKS,
        0.9,
        blames="nobody",
    ),
    Statement(
        r"= (?P<whole>\d+) is not divisible by (?P<what>\w+) = (?P<block>\d+)\. Consider reducing tensor_parallel_size",
        "tensor parallelism leaves each GPU {whole} rows or columns of a weight, and its kernel needs a multiple of {block}",
        _BLOCKS,
        0.9,
        blames="nobody",
    ),
    Statement(
        r"heads`? must be divisible by `?(?:tensor_parallel_size|tp_size|world_size|tensor_model_parallel_size)\b(?! \()",
        "the attention heads cannot be split over this tensor parallel size",
        "--tensor-parallel-size with a divisor of num_attention_heads and num_key_value_heads in config.json; " + _ELSE,
        0.9,
        blames="nobody",
    ),
)
