"""Judges what a host or a container lets a job's processes use: shared memory, locked memory, open files, processes and memory. Pure.

Where the numbers come from: Docker gives a container 64 MiB of /dev/shm. NCCL's documentation starts containers with --shm-size=1g and
--ulimit memlock=-1; its buffer for one connection through shared memory takes 9637888 bytes (as its own errors say). vLLM's message queue
takes 10 chunks of 16 MiB (VLLM_MQ_MAX_CHUNK_BYTES_MB). Linux lets anybody lock 8 MiB since 5.16, and 64 KiB before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.preflight import infiniband, room
from ncclcheck.rules.memlock_limit import REMEDY as MEMLOCK_REMEDY
from ncclcheck.rules.shm_too_small import LARGE
from ncclcheck.safe_text import words
from ncclcheck.survey import Job, Node, degrades, note, stop, unread
from ncclcheck.units import bytes_text

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_CONNECTION = 9637888  # bytes of NCCL's buffer for one connection through /dev/shm
_CHANNELS = 2  # with which NCCL begins where GPUs have no peer access; each rank has a connection in and one out
_NEAR = ("NVLink", "one board", "PIX", "PXB")
_DOCKER = 64 * _MIB
_QUEUE = 160 * _MIB  # bytes of vLLM's message queue
_KERNEL_MEMLOCK = 8 * _MIB
_RDMA_MEMLOCK = 64 * _MIB  # a rank registers some connections of 10 MiB each
_FILES, _PER_RANK = 128, 2  # open files of a rank with torch alone; of rank 0's store per other rank
_GOOD_FILES, _GOOD_PER_RANK = 512, 8  # with CUDA, NCCL's and Gloo's sockets
_THREADS = 128  # of a rank with torch, CUDA and NCCL, beside one per CPU
_MEMORY = _GIB  # bytes of the host's memory that a rank takes before it does anything


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """What would stop or slow a launch on this node, as far as its limits go."""
    found = node.read("limits")
    if found is None:
        yield unread(f"limits of {node.host}", node.why("limits"), [node.host], needed=True)
        return
    for what, why in found.get("unread", {}).items():
        yield unread(f"{what} of {node.host}", str(why), [node.host])
    for part in (_shm, _memlock, _files, _processes, _memory, _cpus, _clock):
        yield from part(node, job, found)
    yield from room.judge(node, found.get("folders") or [])


def _shm(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    shm = found.get("shm")
    if not shm:
        return
    size, free, stale = shm["size"], shm["free"], shm["stale"]
    several = job.nproc_per_node > 1 and not (job.model is None and _direct(node, job))
    least = job.nproc_per_node * 2 * _CHANNELS * _CONNECTION * several + _QUEUE * (job.model is not None)
    seen = [f"/dev/shm on {node.host}: size {size}, free {free} bytes; of nobody's: {stale['files']} files, {stale['bytes']} bytes"]
    wants = "vLLM and NCCL want at least 1 GiB"
    remedy = "docker run --shm-size=16g (or --ipc=host); Kubernetes: an emptyDir with medium: Memory at /dev/shm; mount -o remount,size=16g /dev/shm"
    clean = f"rm {words(stale['largest'])}   # no process here uses them; ls -l /dev/shm shows the rest" if stale["files"] else "ls -l /dev/shm"
    if not shm.get("writable", True):
        yield stop("permission-denied", f"/dev/shm on {node.host} cannot be written to", [node.host], "chmod 1777 /dev/shm", evidence=seen)
    if size < LARGE and (free < least or (size <= _DOCKER and several)):
        yield stop("shm-too-small", f"/dev/shm on {node.host} is {bytes_text(size)}; {wants}", [node.host], remedy, evidence=seen)
    elif size < LARGE:
        yield degrades("shm-too-small", f"/dev/shm on {node.host} is {bytes_text(size)}; {wants}", [node.host], remedy, evidence=seen)
    elif free < LARGE:
        held = f", and files that no process here uses hold {bytes_text(stale['bytes'])}" if stale["bytes"] > _MIB else ""
        title = f"/dev/shm on {node.host} has {bytes_text(free)} of {bytes_text(size)} left{held}; {wants}"
        say = stop if free < max(least, _MIB) else degrades
        yield say("shm-too-small", title, [node.host], clean, evidence=seen)
    elif stale["bytes"] > _MIB:
        title = f"/dev/shm on {node.host} holds {stale['files']} files ({bytes_text(stale['bytes'])}) that no process here uses: {clean}"
        yield note(title, [node.host], files=stale["largest"])


def _direct(node: Node, job: Job) -> bool:
    """Whether NCCL joins all of the node's ranks by peer access, and puts none of their buffers into shared memory.

    By itself it does so over NVLink and under one PCIe host bridge's switches (NCCL's documentation: NCCL_P2P_LEVEL).
    """
    found, settings = node.read("devices") or {}, (node.read("settings") or {}).get("nccl", {})
    gpus = list(found.get("visible") or ())[: job.nproc_per_node]
    well = {frozenset(pair["gpus"]) for pair in found.get("pairs") or () if pair.get("read") == "ok" and pair.get("topology") in _NEAR}
    said = {name: str((settings.get(name) or {}).get("value", "")).strip().upper() for name in ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL")}
    off = said["NCCL_P2P_DISABLE"] not in ("", "0") or said["NCCL_P2P_LEVEL"] in ("LOC", "0")
    return len(gpus) == job.nproc_per_node and not off and all(frozenset(pair) in well for pair in itertools.combinations(gpus, 2))


def _memlock(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    """Only registering memory with a network device needs much of it: without one, only less than any kernel's own default is odd."""
    soft, hard = (found.get("rlimits") or {}).get("memlock", ("unlimited", "unlimited"))
    if soft == "unlimited":
        return
    devices = found.get("rdma") or []
    free = "; CAP_IPC_LOCK frees this process from it, and no other" if found.get("unlocked") else ""
    seen = [f"ulimit -l on {node.host}: {soft // _KIB} KiB soft, {hard if hard == 'unlimited' else f'{hard // _KIB} KiB'} hard{free}"]
    title = f"a process on {node.host} may lock {bytes_text(soft)} of memory"
    if devices and not found.get("unlocked") and job.nnodes > 1 and infiniband.used(node):
        title += f", and RDMA with {', '.join(devices[:4])} wants `ulimit -l unlimited`"
        say = stop if soft < _RDMA_MEMLOCK else degrades
        yield say("memlock-limit", title, [node.host], MEMLOCK_REMEDY, evidence=seen)
    elif soft < _KERNEL_MEMLOCK:
        title += f"; Linux gives 8 MiB by itself, and RDMA wants `ulimit -l unlimited`{'' if devices else ' (no RDMA device is seen here)'}"
        yield degrades("memlock-limit", title, [node.host], MEMLOCK_REMEDY, evidence=seen)
    elif devices and not found.get("unlocked"):
        title += f"; RDMA with {', '.join(devices[:4])}, which this job does not use as it is, would want `ulimit -l unlimited`"
        yield note(title, [node.host])


def _files(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    soft, hard = (found.get("rlimits") or {}).get("nofile", ("unlimited", "unlimited"))
    if soft == "unlimited":
        return
    ranks = job.nnodes * job.nproc_per_node
    least, good = _FILES + _PER_RANK * ranks, _GOOD_FILES + _GOOD_PER_RANK * ranks
    seen = [f"ulimit -n on {node.host}: {soft} soft, {hard} hard"]
    most = hard if hard != "unlimited" and good <= hard < 1 << 20 else 1 << 20
    remedy = f"ulimit -n {most}   # in the job's script; or docker run --ulimit nofile={most}:{most}; LimitNOFILE={most} in slurmd's unit"
    title = f"a process on {node.host} may open {soft} files; a rank of {ranks} takes"
    if soft < least:
        yield stop("fd-limit", f"{title} at least {least}", [node.host], remedy, evidence=seen)
    elif soft < good:
        yield degrades("fd-limit", f"{title} up to {good}, with NCCL's and Gloo's sockets", [node.host], remedy, evidence=seen)


def _processes(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    """RLIMIT_NPROC counts the user's threads on the whole machine, the cgroup's limit those in it."""
    cgroup, cpus = found.get("cgroup") or {}, (found.get("cpus") or {}).get("allowed") or 1
    need = job.nproc_per_node * (_THREADS + cpus)
    soft, _ = (found.get("rlimits") or {}).get("nproc", ("unlimited", None))
    for what, most, used, remedy in (
        ("ulimit -u", soft, found.get("threads"), "ulimit -u unlimited   # or '* - nproc unlimited' in /etc/security/limits.conf"),
        ("pids.max of its cgroup", cgroup.get("pids_limit"), cgroup.get("pids_used"), "docker run --pids-limit -1; podPidsLimit of the kubelet"),
    ):
        if isinstance(most, int) and isinstance(used, int) and most - used < need:
            title = f"{what} on {node.host} is {most}, and {used} threads run already; {job.nproc_per_node} ranks start about {need}"
            say = stop if most - used < job.nproc_per_node * 8 else degrades
            yield say("process-limit", title, [node.host], remedy, evidence=[f"{what} on {node.host}: {most}; in use: {used}"])


def _memory(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    memory, cgroup = found.get("memory") or {}, found.get("cgroup") or {}
    left = {"the machine": memory.get("available")}
    if isinstance(cgroup.get("memory_limit"), int):
        left["its cgroup"] = cgroup["memory_limit"] - cgroup["memory_used"]
    for whose, free in left.items():
        if isinstance(free, int) and free < job.nproc_per_node * _MEMORY:
            title = f"{whose} has {bytes_text(max(0, free))} of memory left for {job.nproc_per_node} ranks on {node.host}; each takes about 1 GiB"
            seen = [f"{whose} of {node.host}: {free} bytes left; " + ", ".join(f"{name} {value}" for name, value in {**memory, **cgroup}.items())]
            remedy = (
                "free -h; ps aux --sort=-rss | head   # or raise the job's limit: --mem (Slurm), resources.limits.memory (Kubernetes), docker run -m"
            )
            yield degrades("host-oom-killed", title, [node.host], remedy, evidence=seen)


def _cpus(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    """Emulated nodes share the CPUs of one machine, which is no fault."""
    allowed, quota = (found.get("cpus") or {}).get("allowed"), (found.get("cgroup") or {}).get("cpus")
    counts = [count for count in (allowed, quota) if count is not None]
    if counts and min(counts) < job.nproc_per_node and not job.emulated:
        title = f"{job.nproc_per_node} ranks on {node.host} share {min(counts):g} CPUs; each needs one of its own, and NCCL's proxy another"
        remedy = "nproc   # then --cpus-per-task (Slurm), resources.limits.cpu (Kubernetes), docker run --cpus, or taskset"
        yield degrades(
            "slow-rank", title, [node.host], remedy, evidence=[f"CPUs on {node.host}: affinity {allowed}, cgroup's quota {quota or 'none'}"]
        )


def _clock(node: Node, job: Job, found: Mapping[str, Any]) -> Iterator[Fact]:
    clock = found.get("clock")
    if clock and not clock["synchronised"] and job.nnodes > 1 and not job.emulated:
        yield note(f"the clock of {node.host} is not kept in step (NTP, PTP): times in logs of different nodes cannot be compared", [node.host])
