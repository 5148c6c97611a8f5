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

Spares
    log a.log: [rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
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
    Statement(r"\bOOMKilled\b", "a container reached its memory limit and was killed", _KUBERNETES, 0.9, "host"),
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


def check(run: Run) -> list[Finding]:
    """What the kernel's log says of its out-of-memory killer."""
    facts = run.of("oom-kill")
    if not facts:
        return []
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    who = ", ".join(run.name(rank) for rank in ranks[:4]) or f"{facts[0].get('name', 'a process')} (pid {facts[0].pid})"
    title = f"the kernel's out-of-memory killer ended {who}" + (f" on {hosts[0]}" if hosts and not ranks else "")
    alive = {fact.rank for kind in ("stack", "state") for fact in run.of(kind)}
    if not ranks and run.ranks and alive >= run.ranks.keys():  # every rank was seen alive: it was somebody else's process, or long ago
        return [
            Finding(
                "host-oom-killed", f"{title}, which is none of this job's ranks", Culprit(hosts=hosts or None), 0.4, reading.quote(*facts[:8]), _SLURM
            )
        ]
    return [Finding("host-oom-killed", title, Culprit(ranks=ranks or None, hosts=hosts or None), 0.93, reading.quote(*facts[:8]), _SLURM)]
