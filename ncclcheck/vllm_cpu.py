"""What vLLM's CPU platform gets wrong and a run of ours corrects in it, in every process of the engine; on GPUs nothing is touched.

Shared memory: where its kernels have it (on x86 those for AVX-512; those for AVX2 do not, and Gloo carries every group), its ranks
agree on the name of a segment and use it instead of Gloo. Under vLLM's own launchers the name is unique to a node; under torchrun it
is the same constant on every node, and for every job, so traffic would bypass the network.
Pipeline buffers: with enforce_eager nothing runs before the first request, so the stages after the first have no buffer for
what the stage before them sends, and fail with an AssertionError at the first token.
Ray: it names no resource of Ray's, and so cannot be scheduled; there, the GPUs count that `ray start --num-gpus` states.

vLLM calls `plugin` (an entry point of its group vllm.general_plugins) in every process it starts, workers included.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from typing import Any

NAMED = "vLLM's CPU platform: its shared memory is named after the job and the node, so groups that span nodes use the network"
BUFFERED = "vLLM's CPU platform: pipeline stages after the first get the buffer for their input, which eager mode does not make"
SCHEDULED = "vLLM's CPU platform: Ray schedules its workers by the GPUs that its nodes state, as it names no resource of Ray's"
SENTENCES = (NAMED, BUFFERED, SCHEDULED)

_log = logging.getLogger("vllm.plugins.ncclcheck")  # below vLLM's own, which prints
_corrected: list[str] = []  # in this process: what came to be used there


def plugin() -> None:
    """Correct vLLM in this process if it belongs to a run of ours (NCCLCHECK_RUN is set); else do nothing and import nothing."""
    if "NCCLCHECK_RUN" in os.environ:
        correct()


def correct() -> None:
    """Correct vLLM's CPU platform in this process, before it makes its groups. Once is enough, more do no harm; other platforms are left alone."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators import cpu_communicator

    if cpu_communicator.CpuCommunicator.__init__.__module__ == __name__:
        return  # done before
    _name_shared_memory(cpu_communicator._CPUSHMDistributed)
    _await_groups(cpu_communicator.CpuCommunicator)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # who asks Ray for workers, and those: vllm_ray sets it for both
        current_platform.ray_device_key = "GPU"
        _note(SCHEDULED)


def corrected() -> tuple[str, ...]:
    """A sentence for each thing that was corrected in this process, and was used there."""
    return tuple(_corrected)


def _note(sentence: str) -> None:
    if sentence not in _corrected:
        _corrected.append(sentence)
        _log.info(sentence)


def network() -> str:
    """What processes have in common that reach each other without a network: this boot of the kernel and this network namespace."""
    from ncclcheck.collect import host  # here: vLLM imports this module in every process, in runs of ours and in others

    return f"{host.boot_id()}-{os.stat('/proc/self/ns/net').st_ino}"


def backend(group: Any) -> str:
    """What carries this group of vLLM's: "nccl", "gloo", or on one node without GPUs, where vLLM's kernels for its CPU have it, "shared memory"."""
    import torch.distributed as dist

    carrier = getattr(group.device_communicator, "dist_module", None)
    return "shared memory" if type(carrier).__name__ == "_CPUSHMDistributed" else str(dist.get_backend(group.device_group))


def segments() -> str:
    """How the names in /dev/shm begin that this job's groups use."""
    return f"ncclcheck-{os.environ.get('NCCLCHECK_RUN') or os.environ.get('MASTER_PORT', '')}-"


def _name_shared_memory(shared: Any) -> None:
    original = shared.make_group_name
    node = f"{network()}-{os.stat('/dev/shm').st_dev}"

    def make_group_name(communicator: Any) -> str:
        _note(NAMED)  # here: vLLM asks for a name only where its kernels have shared memory
        whole = f"{node} {original(communicator)}"  # lists every rank of the group: too long for a file name
        return f"{segments()}{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    shared.make_group_name = staticmethod(make_group_name)


def _await_groups(communicators: Any) -> None:
    """Correct the rest once a process makes a pipeline's group: then it is a worker and has loaded what others need not load (5 s)."""
    original = communicators.__init__

    def begin(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if self.unique_name.startswith("pp") and BUFFERED not in _corrected:
            _make_buffers(sys.modules["vllm.v1.worker.cpu_model_runner"].CPUModelRunner)
            _note(BUFFERED)

    communicators.__init__ = begin


def _make_buffers(runner: Any) -> None:
    original = runner.sync_and_gather_intermediate_tensors

    def sync_and_gather_intermediate_tensors(self: Any, *args: Any, **options: Any) -> Any:
        if self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return original(self, *args, **options)

    runner.sync_and_gather_intermediate_tensors = sync_and_gather_intermediate_tensors
