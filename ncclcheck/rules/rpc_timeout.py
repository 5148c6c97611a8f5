"""A call from an engine to its workers timed out, and nothing that was found says what the workers were doing.

It is a symptom: a worker died, hangs in a collective, compiles or loads. The stacks of all workers tell which.

Blames
    log serve.log: TimeoutError: RPC call to sample_tokens timed out.
    => -

Blames
    log serve.log: INFO 03-02 10:09:00 [shm_broadcast.py:681] No available shared memory broadcast block found in 60 seconds.
    => -

Blames
    log sglang.log: [2026-03-04 02:08:33 TP3] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)
    => -

Spares
    log serve.log: INFO 03-02 10:09:00 [shm_broadcast.py:681] No available shared memory broadcast block found in 60 seconds.
    log serve.log: INFO:     Application startup complete.
"""

from __future__ import annotations

from ncclcheck.model import Culprit, Finding, Run

_REMEDY = (
    "py-spy dump --pid PID for every worker on every node while it hangs: the one that is elsewhere is the culprit; "
    "dmesg -T | grep -iE 'xid|oom|killed' and nvidia-smi -q -d ECC,PAGE_RETIREMENT on every node; ping between the nodes; "
    "only where it compiles for long: VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS=1800"
)
_COLLECT = (
    "py-spy dump --pid PID of every worker, and its state in /proc/PID/status",
    "dmesg -T (Xid, ECC, OOM, link down) and nvidia-smi -q on every node",
    "the same failure with NCCL_DEBUG=INFO, TORCH_FR_BUFFER_SIZE=2000 (flight recorder; TORCH_NCCL_TRACE_BUFFER_SIZE before 2.8) and "
    "TORCH_NCCL_DUMP_ON_TIMEOUT=1, and the answer of NCCL RAS (ncclras)",
)


def check(run: Run) -> list[Finding]:
    """At most one finding, weaker than any cause."""
    calls, waits = run.of("engine-timeout"), run.of("engine-wait")
    if not calls and (not waits or run.of("served")):
        return []
    what = next((f"call to {fact.get('call')}" for fact in calls if fact.get("call")), "call to its workers" if calls else "broadcast to its workers")
    how = "timed out" if calls else "is not taken up"
    evidence = [fact.source for fact in [*calls, *waits] if fact.source][:6]
    title = f"the engine's {what} {how}, and nothing that was seen says what a worker was doing"
    return [Finding("rpc-timeout", title, Culprit(), 0.4, evidence, _REMEDY, _COLLECT)]
