"""A rank asks for a GPU that it cannot see: fewer GPUs are visible than ranks are started.

CUDA_VISIBLE_DEVICES is shorter than --nproc-per-node, a container was given fewer devices, or a scheduler hands each task
its own GPU under the index 0.

Blames
    fact too-few-gpus @ b gpus=1 nproc_per_node=2
    => b

Blames
    rank 0 @ a: init
    rank 1 @ a: init | error RuntimeError: invalid device ordinal: local_rank 1 wants GPU 1, torch sees 1
    => a

Blames
    log out.log: CUDA_VISIBLE_DEVICES=4,5 torchrun --nnodes=1 --nproc-per-node=3 train.py
    log out.log: [rank2]: RuntimeError: CUDA error: invalid device ordinal
    => 2

Blames
    log out.log: [rank5]: torch.AcceleratorError: CUDA error: no CUDA-capable device is detected
    log out.log: [rank5]: lightning.fabric.utilities.exceptions.MisconfigurationException: You requested gpu: [0, 1, 2, 3]
    => 5

Blames
    log out.log: ValueError: World size (4) is larger than the number of available GPUs (2) in this node. If this is intentional and you are using:
    log out.log: ValueError: Tensor parallel size (4) cannot be larger than the number of available GPUs (2).
    => -

Blames
    log out.log: [rank5]: RuntimeError: No CUDA GPUs are available
    log out.log: [rank5]: AssertionError: Invalid device id
    => 5

Blames
    log out.log: ValueError: No slot '5' specified on host 'node-a'
    => node-a

Blames
    log out.log: (Worker_TP1 pid=4) Compiling model again due to a load failure from /c/torch_compile_cache/x, reason: CUDA: invalid device ordinal
    => 1

Spares
    rank 0 @ a: init
    rank 1 @ a: init | error ValueError: no such file

Spares
    log out.log: CUDA_VISIBLE_DEVICES=4,5 torchrun --nnodes=1 --nproc-per-node=2 train.py

Spares
    log out.log: node-a:311:405 [0] transport/p2p.cc:273 NCCL WARN Cuda failure 101 'invalid device ordinal'
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "duplicate_gpu", "peer_reset", "missing_rank_at_rendezvous", "rank_exited_early", "store_lost")

REMEDY = (
    "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L   # in every task: let it list a GPU for each rank (or unset it), or lower --nproc-per-node "
    "(nproc_per_node); Slurm: --gpus-per-node=N or --gres=gpu:N instead of --gpus-per-task=1, or use device 0 in each task; docker: --gpus all"
)

READS = (
    Statement(
        r"load failure from (?P<cache>/[\w./-]{0,300}torch_compile_cache)/\S+, reason: .{0,40}invalid device ordinal",
        "{who} takes compiled code out of {cache} that was made for a GPU which it does not have: another layout, or another node, wrote it",
        "rm -r {cache}   # and where nodes share a home, export VLLM_CACHE_ROOT=/tmp/vllm-$(hostname) on each, so that none takes another's",
        0.97,
    ),
    Clue("visible-gpus", r"CUDA_VISIBLE_DEVICES=(?P<visible>[\w,-]+).*--nproc[-_]per[-_]node[= ](?P<nproc>\d+)"),
    Statement(
        r"(?<!p2p\.cc:\d\d\d NCCL WARN )(?:CUDA|HIP|Cuda|cuda)\b.{0,60}invalid device ordinal",
        "{who} asks for a GPU that it cannot see (invalid device ordinal)",
        REMEDY,
        0.93,
    ),
    Statement(r"no (?:CUDA|ROCm)-capable device is detected", "{who} sees no GPU at all", REMEDY, 0.85),
    Statement(r"No CUDA GPUs are available", "{who} sees no GPU at all", REMEDY, 0.88),
    Statement(r"AssertionError: Invalid device id", "{who} asks for a GPU that it cannot see", REMEDY, 0.85),
    Statement(
        r"No slot '(?P<slot>\d+)' specified on host '(?P<host>[^']+)'",
        "GPU {slot} is asked for on {who}, and its list of GPUs (slots) has no such one",
        "deepspeed --include and --num_gpus, and slots= in the hostfile, must name GPUs that are there; nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES",
        0.9,
    ),
    Statement(r"You requested gpu: ", "{who} asks for GPUs that it cannot see", REMEDY, 0.9),
    Statement(
        r"(?:World|parallel) size \((?P<world>\d+)\) (?:is|cannot be) larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "{world} ranks are to run on this node and it shows {gpus} GPUs",
        "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L; then --tensor-parallel-size {gpus}, or --nnodes to spread over nodes",
        0.95,
    ),
)


def check(run: Run) -> list[Finding]:
    """Hosts that start more ranks than they have visible GPUs, and ranks whose GPU is not there."""
    result = []
    short = run.of("too-few-gpus")
    failed = [fact for fact in run.of("error") if "invalid device ordinal" in str(fact.get("message", ""))]
    hosts = list(dict.fromkeys(fact.host for fact in [*short, *failed] if fact.host))
    if hosts:
        said = ", ".join(f"{fact.host} sees {fact.get('gpus')} GPU(s) and starts {fact.get('nproc_per_node')} ranks" for fact in short)
        title = said or f"{run.name(failed[0].rank or 0)} asks for a GPU it cannot see: {failed[0].get('message')}"
        result.append(Finding("device-visibility", title, Culprit(hosts=hosts), 0.95, reading.quote(*short, *failed), REMEDY))
    for fact in run.of("visible-gpus"):
        visible, nproc = len(str(fact.get("visible")).strip(",").split(",")), int(fact.get("nproc"))
        if visible < nproc:
            title = f"{nproc} ranks are started and CUDA_VISIBLE_DEVICES names {visible} GPUs: local ranks {visible} to {nproc - 1} have none"
            result.append(Finding("device-visibility", title, run.blame(range(visible, nproc)), 0.96, reading.quote(fact), REMEDY))
    return result
