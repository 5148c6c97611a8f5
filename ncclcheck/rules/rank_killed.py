"""A rank was killed by a signal, and its peers wait or fail because of it.

Signal 9 comes from the kernel's out-of-memory killer, from a scheduler or from a person: the culprit's kernel log
says which. Signals 7 and 11 point at its own code, its GPU driver or a full /dev/shm.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | gone | exit -9
    => 1

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection reset by peer
    rank 1 @ b: init, all_reduce... | gone -9
    => 1

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce... | gone -9
    fact launcher-failed @ a code=-9
    => 1

Blames
    rank 0 @ a: init...
    rank 1 @ b: init | exit -9
    fact launcher-failed @ b code=1
    => 1

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | gone 0

Spares
    rank 0 @ a: init, all_reduce
    rank 1 @ b: init, all_reduce
"""

import signal

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = (
    "rank_stuck_in_python",
    "rank_died_exception",
    "rank_exited_early",
    "network_unreachable",
    "missing_rank_at_rendezvous",
    "peer_reset",
    "probe_crashed",
)


def check(run: Run) -> list[Finding]:
    """One finding per rank that died without a word of its own."""
    spoke = {fact.rank for fact in run.of("error")}
    codes = {fact.rank: fact for fact in run.of("exit") if fact.rank is not None}
    with_it = {
        fact.host: f"torchrun of {fact.host} was killed by {signal.Signals(-fact.get('code')).name}, and with it "
        for fact in run.of("launcher-failed")
        if fact.get("code") < 0
    }
    gone_facts = {fact.rank: fact for kind in ("exit", "gone") for fact in run.of(kind)}
    result = []
    for rank, gone in gone_facts.items():
        if rank is None or rank in spoke:
            continue
        exit_ = codes.get(rank)
        code = exit_.get("code") if exit_ else gone.get("code")
        if code is not None and code >= 0:
            continue
        how = f"was killed by {signal.Signals(-code).name}" if code is not None else "is gone without a word (its exit code is not known), last seen"
        result.append(
            Finding(
                "rank-killed",
                f"{with_it.get(gone.host, '')}{run.name(rank)} {how} {reading.at(run, rank)}{reading.bystanders(run, [rank])}",
                run.blame([rank]),
                0.97 if code is not None else 0.6,
                reading.quote(*([exit_] if exit_ and exit_ is not gone else []), gone),
                f"on {gone.host or 'its host'}: dmesg -T | grep -i -E 'out of memory|oom|killed process|segfault|Xid'   # who sent the signal; "
                "then free -h, or raise the memory limit of the job",
            )
        )
    return result
