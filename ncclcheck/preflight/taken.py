"""Which of a node's GPUs the ranks of a launch take. Pure."""

from __future__ import annotations

from ncclcheck.survey import Job, Section


def gpus(devices: Section, job: Job) -> list[int]:
    """The first of those that are visible, one for each local rank; all of them where there are fewer."""
    return [int(index) for index in devices.get("visible", ())][: max(1, job.nproc_per_node)]


def parts(devices: Section) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names parts of GPUs (MIG): of which GPUs they are is not known."""
    return any(word.strip().startswith("MIG-") for word in str(devices.get("setting") or "").split(","))
