"""Reads environments and how a job was started: env dumps, exports, Kubernetes, Slurm and mpirun settings, command lines.

A fact of kind "setting" (name, value) for each variable that matters to a distributed job; "world" for WORLD_SIZE. A
variable counts only where it is set: at the start of a line, after a flag that sets it (-x, -e, --env, --export), in a
quoted pair, or in code; not where a message merely recommends it. "launch" holds a launcher's arguments.

Reads
    log a.txt: NCCL_SOCKET_IFNAME=eth7
    log a.txt: export MASTER_ADDR=10.9.0.1 MASTER_PORT=29511
    log a.txt: WORLD_SIZE=16
    log a.txt: $ NCCL_DEBUG=INFO CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node=4 --nnodes 2 --node_rank=1 train.py
    => setting name=NCCL_SOCKET_IFNAME value=eth7
    => setting name=MASTER_ADDR value=10.9.0.1
    => setting name=MASTER_PORT value=29511
    => world size=16
    => setting name=CUDA_VISIBLE_DEVICES value=0,1
    => launch nproc_per_node=4 nnodes=2 node_rank=1

Reads
    log a.txt: mpirun -np 16 -x NCCL_IB_HCA=mlx5_9 -x NCCL_ALGO=Ring ./all_reduce_perf -b 8 -e 8G
    log a.txt: docker run --rm -e GLOO_SOCKET_IFNAME=ens5 --env "VLLM_HOST_IP=10.9.0.2" image
    log a.txt:       NCCL_IB_GID_INDEX:   3
    log a.txt:         "RAY_ADDRESS": "10.9.0.1:6379", "HF_HUB_OFFLINE": "1",
    log a.txt:     - name: UCX_TLS
    log a.txt:       value: "tcp"
    log a.txt: os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    log a.txt: root@node-b:/work# NCCL_IB_TIMEOUT=22 ./run.sh
    log a.txt: # export NCCL_SHM_DISABLE=1
    log a.txt: try setting NCCL_P2P_DISABLE=1 if this persists
    => setting name=NCCL_IB_HCA value=mlx5_9
    => setting name=NCCL_ALGO value=Ring
    => setting name=GLOO_SOCKET_IFNAME value=ens5
    => setting name=VLLM_HOST_IP value=10.9.0.2
    => setting name=NCCL_IB_GID_INDEX value=3
    => setting name=RAY_ADDRESS value=10.9.0.1:6379
    => setting name=NCCL_IB_TIMEOUT value=22
    => setting name=UCX_TLS value=tcp
    => setting name=TORCH_NCCL_BLOCKING_WAIT value=1

Reads
    log a.txt: #SBATCH --gpus-per-task=1
    log a.txt: vllm serve some/model --tensor-parallel-size 8 -pp 2 --distributed-executor-backend ray
    => batch option=gpus-per-task value=1
    => launch tensor_parallel_size=8 pipeline_parallel_size=2
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line, Place
from ncclcheck.model import Fact

_NAME = (
    r"(?:(?:NCCL_|RCCL_|GLOO_|TORCH_|TORCHELASTIC_|PYTORCH_|CUDA_|HIP_VISIBLE|ROCR_VISIBLE|HSA_|VLLM_|SGLANG_|SGL_|RAY_|SLURM_|SLURMD_|OMPI_|UCX_|FI_EFA_"
    r"|FI_PROVIDER|NVIDIA_|NVSHMEM_|HOROVOD_|DEEPSPEED_|MASTER_ADDR|MASTER_PORT|LD_PRELOAD|LD_LIBRARY_PATH|HF_HUB_|HF_HOME|TP_SOCKET_IFNAME|MKL_THREADING_LAYER)\w*"
    r"|LOCAL_RANK|NODE_RANK|GROUP_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|RANK|HOSTNAME|NNODES|NPROC_PER_NODE)"
)
_ANCHOR = (
    r"(?:NCCL_|RCCL_|GLOO_|TORCH_|TORCHELASTIC_|PYTORCH_|CUDA_|VISIBLE_|HSA_|VLLM_|SGLANG_|SGL_|RAY_|SLURM_|SLURMD_|OMPI_|UCX_|FI_EFA_|FI_PROVIDER|NVIDIA_"
    r"|NVSHMEM_|HOROVOD_|DEEPSPEED_|MASTER_|LD_PRELOAD|LD_LIBRARY|HF_HUB_|HF_HOME|TP_SOCKET_|MKL_THREAD|RANK=|RANK:|RANK\"|WORLD_SIZE|HOSTNAME|NNODES|NPROC_PER)"
)
_VALUE = r"(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<bare>[^\s'\"`;|&,]*(?:,[^\s'\"`;|&,]+)*))"
_PAIR = re.compile(rf"(?P<name>{_NAME})=(?:{_VALUE})")
_LEAD = re.compile(
    r"^(?:[\w.-]+@\S+[$#] |# (?!export))?[\s$>+(%\"'`-]*"
    r"(?:(?:export|declare -x|setenv|ENV|env|sudo|set -x;?|nohup|time|srun|exec)\s+)*[\"']?(?=[A-Za-z_]\w*=)"
)
_FLAG = re.compile(rf"(?:-x|-e|--env|-genv|--export)[= ][\"']?(?:ALL,)?(?P<name>{_NAME})=(?:{_VALUE})")
_QUOTED = re.compile(rf"[\"'](?P<name>{_NAME})(?:[\"']\]?\s*[:=]\s*[\"'](?P<value>[^\"']*)[\"']|=(?P<inside>[^\"']*)[\"'])")
_COLUMN = re.compile(rf"^\s*(?:[Ee]nv(?:ironment)?\s+)?(?P<name>{_NAME})(?::\s+|\s{{2,}}|\s*=\s+)(?P<value>\S.*?)\s*$")
_SPACED = re.compile(rf"^\s*(?:ENV|setenv)\s+(?P<name>{_NAME})\s+(?P<value>\S+)\s*$")
_YAML = re.compile(rf"^\s*-\s+name:\s+[\"']?(?P<name>{_NAME})[\"']?\s*$")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=(?:\"[^\"]*\"|'[^']*'|\S*)\s*")

_LAUNCHER = (
    r"(?:torchrun|torch\.distributed\.(?:run|launch)|accelerate launch|deepspeed |vllm serve|vllm\.entrypoints|sglang\.launch_server|ray start"
    r"|mpirun|srun )"
)
_ARGUMENT = re.compile(r"(?:^|\s)--?(?P<name>[A-Za-z][\w-]*)(?:[= ](?P<value>[^\s\\-][^\s\\]*))?")
_ARGUMENTS = {
    "nnodes": "nnodes", "nnode": "nnodes", "nproc-per-node": "nproc_per_node", "node-rank": "node_rank", "master-addr": "master_addr",
    "master-port": "master_port", "rdzv-endpoint": "rdzv_endpoint", "rdzv-backend": "rdzv_backend", "rdzv-id": "rdzv_id",
    "max-restarts": "max_restarts", "tensor-parallel-size": "tensor_parallel_size", "tp": "tensor_parallel_size",
    "tp-size": "tensor_parallel_size", "pipeline-parallel-size": "pipeline_parallel_size", "pp": "pipeline_parallel_size",
    "pp-size": "pipeline_parallel_size", "data-parallel-size": "data_parallel_size", "dp": "data_parallel_size",
    "distributed-executor-backend": "executor", "num-processes": "num_processes", "num-machines": "nnodes", "machine-rank": "node_rank",
    "num-gpus": "num_gpus", "num-nodes": "nnodes", "dist-init-addr": "master_addr", "ntasks": "ntasks", "gpus-per-task": "gpus_per_task",
    "np": "processes", "address": "address", "node-ip-address": "node_ip",
}  # fmt: skip

READS_DOCUMENT = True


def sniff(head: bytes, name: str) -> bool:
    """Whether this begins as /proc/PID/environ does."""
    first, found, _ = head.partition(b"\0")
    return bool(found) and re.fullmatch(rb"[A-Za-z_]\w*=[^\n\x01-\x08]*", first) is not None


def document(data: bytes, name: str) -> Iterator[Fact]:
    """The settings in it; it is one line."""
    text = data.decode("utf-8", "replace").replace("\0", "\n")
    for each in text.split("\n"):
        if (pair := _PAIR.match(each)) and "=" in each:
            yield from _facts(Line(name, 1, each, each, Place()), pair["name"], each.partition("=")[2])


def _settings(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    for name, value in dict.fromkeys(_pairs(line.body, following)):
        yield from _facts(line, name, value)


def _pairs(text: str, following: Iterator[Line]) -> Iterator[tuple[str, str]]:
    text = text[:8192]
    if lead := _LEAD.match(text):
        at = lead.end()
        while assignment := _ASSIGNMENT.match(text, at):
            if pair := _PAIR.match(text, at):
                yield pair["name"], _value(pair)
            at = assignment.end()
    for match in _FLAG.finditer(text):
        yield match["name"], _value(match)
    for match in _QUOTED.finditer(text):
        yield match["name"], match["value"] if match["value"] is not None else match["inside"]
    if column := _SPACED.match(text) or _COLUMN.match(text):
        yield column["name"], column["value"].strip("\"'")
    if (named := _YAML.match(text)) and (after := next(following, None)) and (value := re.match(r"^\s*value:\s*[\"']?([^\"']*)", after.body)):
        yield named["name"], value[1].strip()


def _value(match: re.Match[str]) -> str:
    return next(match[group] for group in ("double", "single", "bare") if match[group] is not None)


def _facts(line: Line, name: str, value: str) -> Iterator[Fact]:
    yield line.fact("setting", {"name": name, "value": value})
    if name == "WORLD_SIZE" and value.isdigit() and len(value) < 8:
        yield line.fact("world", {"size": int(value)})


def _launch(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    text = line.body[:8192]
    while text.endswith("\\") and (more := next(following, None)) is not None and len(text) < 8192:
        text = text[:-1] + " " + more.body.strip()
    command = re.search(_LAUNCHER, text)
    found: dict[str, object] = {}
    for match in _ARGUMENT.finditer(text, command.end() if command else 0):
        key = _ARGUMENTS.get(match["name"].replace("_", "-"))
        if key and match["value"] is not None:
            value = match["value"].strip("\"'")
            found.setdefault(key, int(value) if value.isdigit() and len(value) < 9 else value)
    if found and command:
        yield line.fact("launch", {"program": command[0].strip(), **found})


READS = (
    Block(_ANCHOR, _settings, mixed=True),
    Block(_LAUNCHER, _launch, mixed=True),
    Clue("batch", r"^#SBATCH\s+--?(?P<option>[\w-]+)(?:[= ]+(?P<value>\S+))?"),
)
