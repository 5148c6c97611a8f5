"""The kernel, a cgroup or Ray killed a process because the host's memory was used up.

Blames
    log a.log: slurmstepd: error: Detected 2 oom_kill events in StepId=812.0. Some of the step tasks have been OOM Killed.
    => -

Blames
    log a.log: srun: error: gpu-2: task 6: Out Of Memory
    => gpu-2

Blames
    log a.log: worker-3    0/1     OOMKilled   2 (40s ago)   12m
    log a.log:       Reason:       OOMKilled
    => -

Blames
    log a.log: (raylet) 3 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed due to other reasons at node (ID: \
5f, IP: 10.4.0.2) over the last time period.
    => 10.4.0.2

Blames
    log a.log: ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
    log a.log: Memory on the node (IP: 10.4.0.3, ID: 5f) where the task (task ID: 1) was running was 62.1GB / 62.7GB (0.990), which exceeds the \
memory usage threshold of 0.95.
    => 10.4.0.3

Blames
    log a.log: Warning  Evicted  3m  kubelet  The node was low on resource: memory. Threshold quantity: 100Mi
    => -

Blames
    log a.log: DataLoader worker (pid 99) is killed by signal: Killed. It is possible that dataloader's workers are out of shared memory.
    => -

Blames
    log nodeA/dmesg.log: [88231.101] Out of memory: Killed process 5110 (python3) total-vm:912kB, anon-rss:800kB
    log nodeA/agent.log: E0102 10:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1003] failed (exitcode: -9) local_rank: 0 (pid: 5110) \
of binary: /usr/bin/python
    => -

Spares
    log a.log: [rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.
"""

import signal

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_killed", "rank_died_exception", "rank_exited_early", "peer_reset")
_LOOK = "dmesg -T | grep -iE 'out of memory|oom-kill|killed process'   # there; free -h; then "
_SLURM = _LOOK + "more memory for the job (#SBATCH --mem=0 or --mem-per-cpu), fewer data-loader workers, or a smaller batch"
_RAY = (
    _LOOK + "more memory on that node, fewer workers or a smaller batch per node; "
    "export RAY_memory_usage_threshold=0.98 before `ray start` to kill later, RAY_memory_monitor_refresh_ms=0 to never"
)
_KUBERNETES = "kubectl describe pod POD; kubectl top pod POD   # then a larger resources.limits.memory, fewer data-loader workers, or a smaller batch"

READS = (
    Statement(
        r"Detected \d+ oom[_-]kill events? in", "the memory limit of the Slurm step was reached and tasks of it were killed", _SLURM, 0.93, "host"
    ),
    Statement(r"error: (?P<host>[\w.-]+): tasks? (?P<tasks>[\d,-]+): Out Of Memory", "task {tasks} on {host} was killed for memory", _SLURM, 0.95),
    Clue("container-oom", r"\bOOMKilled\b"),
    Statement(
        r"(?P<count>[1-9]\d*) Workers \(tasks / actors\) killed due to memory pressure \(OOM\).*?IP: (?P<host>[\w.:-]+)\)",
        "Ray killed {count} workers on {host} because its memory was used up",
        _RAY,
        0.95,
    ),
    Statement(
        r"Memory on the node \(IP: (?P<host>[\w.:-]{1,80}), ID: ",
        "Ray killed a task on {host} because its memory was used up",
        _RAY,
        0.95,
    ),
    Statement(r"killed due to the node running low on memory\.", "Ray killed a task because its node's memory was used up", _RAY, 0.93, "nobody"),
    Statement(r"node was low on resource: memory", "Kubernetes evicted a pod because its node was low on memory", _KUBERNETES, 0.9, "host"),
    Statement(
        r"DataLoader worker \(pid (?P<worker>\d+)\) is killed by signal: Killed",
        "data-loader worker {worker} was killed (SIGKILL): the host's memory is the usual reason",
        _LOOK + "fewer num_workers, a smaller prefetch_factor, or more memory for the job or container",
        0.75,
    ),
)


_KERNEL = ("oom-kill", "oom-invoked", "segfault", "hung-task", "xid")  # kinds of facts whose process may be anybody's
_OF_A_JOB = ("python", "ray", "vllm", "pt_", "torchrun", "sglang", "trtllm", "deepspeed")  # how the names of a job's processes begin


def check(run: Run) -> list[Finding]:
    """What the kernel's log says of its out-of-memory killer, and Kubernetes of a container's limit."""
    return [*_containers(run), *_kernel(run)]


def _containers(run: Run) -> list[Finding]:
    """It may be a sidecar, or an earlier life of the container: a guess where something else ended the job."""
    facts = run.of("container-oom")
    if not facts:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    confidence = 0.4 if _ended_otherwise(run) else 0.9
    title = "a container reached its memory limit and was killed"
    return [Finding("host-oom-killed", title, Culprit(hosts=hosts or None), confidence, reading.quote(*facts[:8]), _KUBERNETES)]


def _kernel(run: Run) -> list[Finding]:
    pids = {fact.pid for fact in run.facts if fact.pid is not None and fact.kind not in _KERNEL}
    facts = run.of("oom-kill")
    ours = [fact for fact in facts if _of_job(fact, pids)]
    facts = ours or facts
    if not facts:
        return []
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    who = ", ".join(run.name(rank) for rank in ranks[:4]) or f"{facts[0].get('name', 'a process')} (pid {facts[0].pid})"
    title = f"the kernel's out-of-memory killer ended {who}" + (f" on {hosts[0]}" if hosts and not ranks else "")
    alive = {fact.rank for kind in ("stack", "state") for fact in run.of(kind)}
    confidence = 0.93
    if not ranks and run.ranks and alive >= run.ranks.keys():  # every rank was seen alive: it was somebody else's process, or long ago
        title, confidence = f"{title}, which is none of this job's ranks", 0.4
    elif not ours or _ended_otherwise(run):
        title, confidence = f"{title}, which may be none of this job's processes, or long ago", 0.3
    return [Finding("host-oom-killed", title, Culprit(ranks=ranks or None, hosts=hosts or None), confidence, reading.quote(*facts[:8]), _SLURM)]


def _of_job(kill: Fact, pids: set[int]) -> bool:
    """Whether the killed process is one that the job's own logs name, or is called like those of a job."""
    return kill.rank is not None or kill.pid in pids or str(kill.get("name", "")).lower().startswith(_OF_A_JOB)


def _ended_otherwise(run: Run) -> bool:
    """Whether processes of the job ended, and none of them as by SIGKILL: by another signal, or with an error of their own."""
    codes = {fact.get("code") for fact in [*run.of("exit"), *run.of("gone")]}
    if -signal.SIGKILL in codes or None in codes:
        return False
    return any(-(code or 0) in reading.CRASHES for code in codes) or bool(reading.own_errors(run))
