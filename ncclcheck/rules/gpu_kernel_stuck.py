"""Every rank is inside the same collective with the same arguments, nobody is behind, and it does not finish.

Then no program is at fault that can be seen from sequence numbers. A kernel on one GPU that never ends (its own, or one
queued before the collective on the same stream) looks like this on all ranks; so does a network that drops the data.

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    => -

Spares
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 7, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
"""

from ncclcheck import waits
from ncclcheck.model import Culprit, Finding, Run


def check(run: Run) -> list[Finding]:
    """All ranks in one call, or waiting for those that are, and none behind; which GPU holds it cannot be told from this."""
    found = waits.of(run)
    wait = found.held
    if not run.dumps or found.messages or wait is None or len(wait.waiting) < 2 or (run.world_size or 0) > len(found.waiting):
        return []
    if len(set(wait.inside.values())) > 1:  # one side completed what the other is inside of
        return []
    everybody = len(wait.waiting) == len(found.waiting)
    who = f"all {len(wait.waiting)} ranks" if everybody else f"ranks {', '.join(map(str, wait.waiting[:8]))}, for whom all others wait,"
    return [
        Finding(
            "gpu-kernel-stuck",
            f"{who} are inside {wait.what or 'the collective'} #{wait.seq} of {wait.group} and it does not finish: "
            "a kernel on one GPU or the network holds it; which, the sequence numbers cannot tell",
            Culprit(),
            0.45,
            wait.evidence,
            "export TORCH_NCCL_ENABLE_TIMING=1 TORCH_FR_BUFFER_SIZE=2000 and run again: the rank whose operation is `scheduled` where the others' is "
            "`started` has a stuck kernel before it; cuda-gdb -p PID, then `info cuda kernels`, names it; compute-sanitizer finds its error. "
            "The root of broadcast, reduce, gather and scatter is not recorded: print src or dst on every rank: where they differ it hangs like this",
            [
                "nvidia-smi -q -d UTILIZATION,ECC,PERFORMANCE on every node",
                "py-spy dump --native --pid PID of every rank",
                "dmesg -T | grep -i xid on every node",
            ],
        )
    ]
