"""Ranks issued different collectives at the same place of the sequence.

NCCL checks nothing: ranks that call different operations, sizes or types in the same position hang, crash or, worse,
finish with wrong data.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
    rank 2 @ b: init, broadcast...
    => 2

Blames
    rank 0 @ a: init, all_reduce... | calls all_reduce [8] sum; broadcast [4] from 0; all_reduce [8] sum
    rank 1 @ a: init, all_reduce... | calls all_reduce [8] sum; broadcast [4] from 1; all_reduce [8] sum
    rank 2 @ b: init, all_reduce... | calls all_reduce [8] sum; broadcast [4] from 0
    => 1

Spares
    rank 0 @ a: init, broadcast, all_reduce... | calls broadcast [4] from 0; all_reduce [8] sum
    rank 1 @ a: init, broadcast, all_reduce... | calls broadcast [4] from 0; all_reduce [8] sum
    rank 2 @ b: init, broadcast... | calls broadcast [4] from 0 | stack all_reduce (torch/distributed/distributed_c10d.py:2900)

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [
    log fr_rank_0: {"process_group": ["0", "default_pg"], "collective_seq_id": 7, "profiling_name": "nccl:all_reduce", "input_sizes": [[64]]}]}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [
    log fr_rank_1: {"process_group": ["0", "default_pg"], "collective_seq_id": 7, "profiling_name": "nccl:all_reduce", "input_sizes": [[60]]}]}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [
    log fr_rank_2: {"process_group": ["0", "default_pg"], "collective_seq_id": 7, "profiling_name": "nccl:all_reduce", "input_sizes": [[64]]}]}
    => 1

Blames
    log rank0.log: [rank0]:[E] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=64, NumelOut=64, Timeout(ms)=600000) ran for 600031 milliseconds
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=BROADCAST, NumelIn=8, NumelOut=8, Timeout(ms)=600000) ran for 600031 milliseconds
    => 0 1

Blames
    log a.log: RuntimeError: Detected mismatch between collectives on ranks. Rank 3 is running collective: CollectiveFingerPrint(SequenceNumber=6, OpType=ALLREDUCE, TensorShape=[4, 2], TensorDtypes=Float), but Rank 1 is running collective: CollectiveFingerPrint(SequenceNumber=6, OpType=ALLREDUCE, TensorShape=[5, 2], TensorDtypes=Float).
    => 1 3

Blames
    log a.log: [0]<stderr>:[2024-01-01 10:00:00.1: W horovod/common/stall_inspector.cc:105] One or more tensors were submitted to be reduced, gathered or broadcasted by subset of ranks
    log a.log: [0]<stderr>:Missing ranks:
    log a.log: [0]<stderr>:2: [allreduce.w, allreduce.b]
    => 2

Blames
    log a.log: RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running inconsistent collective: CollectiveFingerPrint(OpType=BROADCAST, TensorShape=[16], TensorDtypes=Float)
    => -

Blames
    log a.log: gpu-1:7:9 [5] init.cc:1247 NCCL WARN Mismatched collective detected, please check your collective calls at and around rank 6.
    => -

Blames
    log a.log: gpu-1:7:9 [5] transport/net_ib.cc:1 NCCL WARN NET/IB : peer 10.9.0.1 collective mismatch error, local size 4 remote size 8
    => -

Blames
    log a.log: [1,0]<stderr>:Mismatched allreduce tensor shapes: One rank sent a tensor of shape [8], but another rank sent a tensor of shape [4].
    => -

Blames
    log a.log: RuntimeError: [gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 64 vs 8
    => -

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...

Spares
    log rank0.log: [rank0]:[E] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLTOALL_BASE, NumelIn=64, NumelOut=6, Timeout(ms)=600000) ran for 600031 milliseconds
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLTOALL_BASE, NumelIn=8, NumelOut=66, Timeout(ms)=600000) ran for 600031 milliseconds
"""  # noqa: E501 (lines of logs)

import re
from collections import Counter
from collections.abc import Mapping

from ncclcheck import divergence, positions, recorder, waits
from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

# Gloo aborts the rank that gets the larger message; a rank that issued something else looks late, or stuck, to its peers
EXPLAINS = (
    "network_unreachable",
    "rank_killed",
    "rank_died_exception",
    "peer_reset",
    "rank_stuck_in_python",
    "slow_rank",
    "gpu_kernel_stuck",
    "p2p_mismatch",
    "data_corruption",
    "rank_exited_early",
)

_REMEDY = (
    "make every rank issue the same collectives in the same order: look for a branch that only some ranks take, and for calls that one skips; "
    "print the shape (numel) and dtype of the tensor before the call; export TORCH_DISTRIBUTED_DEBUG=DETAIL to have torch check each call; "
    "where an engine's own code does it, upgrade the engine, or turn off the feature whose code the odd rank is in"
)
_IN_COLLECTIVE = re.compile(
    r"(all_reduce|broadcast|reduce|all_gather\w*|gather|scatter|reduce_scatter\w*|all_to_all\w*|barrier) \(.*distributed_c10d\.py"
)
_OWN_INPUT = ("ALLTOALL", "GATHER", "SCATTER", "ALLGATHER", "_REDUCE_SCATTER", "REDUCE_SCATTER", "COALESCED", "SEND", "RECV")  # inputs may differ


READS = (
    Statement(
        r"Mismatched collective detected, please check your collective calls at and around rank (?P<near>\d+)",
        "NCCL found ranks in different collectives, at or around rank {near}",
        _REMEDY + "; NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=COLL logs each call with its size",
        0.93,
        "nobody",
    ),
    Statement(
        r"Mismatched (?P<what>[\w ]{2,60}): (?=One rank)",
        "Horovod got different {what} for one tensor",
        _REMEDY,
        0.93,
        "nobody",
    ),
    Statement(r"NCCL WARN .{0,200}collective mismatch error", "NCCL got a message of another size than expected", _REMEDY, 0.85, "nobody"),
    Statement(
        r"op\.preamble\.length <= op\.nbytes\. (?P<sent>\d+) vs (?P<expected>\d+)",
        "Gloo got {sent} bytes where {expected} were expected: ranks issue different collectives, or tensors of different size",
        _REMEDY,
        0.88,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """Different operations at one place of the sequence: as announced, as recorded, or as the watchdogs quote them; or groups in different order."""
    if divergence.known(run):
        return _issued(run)
    return (
        _announced(run)
        or _recorded(run)
        or _fingerprints(run)
        or _timed_out(run)
        or _crossed(run)
        or _uneven(run)
        or _stalled(run)
        or _asked(run)
        or _elsewhere(run)
        or _after_the_end(run)
    )


def _issued(run: Run) -> list[Finding]:
    """The first call in which the ranks' own histories differ, whether or not it completed."""
    found = divergence.of(run)
    if found is None or divergence.cause(found) != "collective-mismatch":
        return []
    return [
        Finding(
            "collective-mismatch",
            f"{divergence.said(run, found)}{reading.bystanders(run, list(found.odd))}",
            run.blame(found.odd),
            0.97 if len(found.odd) < len(found.issued) else 0.85,
            divergence.quotes(run, found),
            _REMEDY,
        )
    ]


def _fingerprints(run: Run) -> list[Finding]:
    """What torch's own check (TORCH_DISTRIBUTED_DEBUG=DETAIL) found: it compares two ranks, so either can be the odd one."""
    result = []
    for fact in run.of("fingerprint"):
        pairs = {
            fact.get(name): (str(fact.get(f"op{n}", "")).lower(), fact.get(f"shape{n}"), fact.get(f"dtype{n}"))
            for name, n in (("rank", ""), ("rank2", "2"))
        }
        pairs = {fact.rank if name is None and index == 0 else name: call for index, (name, call) in enumerate(pairs.items())}
        issued = {int(rank): f"{op} of shape [{shape}] {dtype or ''}".rstrip() for rank, (op, shape, dtype) in pairs.items() if str(rank).isdigit()}
        if len(issued) == 1:
            title = "torch's check found ranks in different collectives: " + ", ".join(f"rank {rank} issued {what}" for rank, what in issued.items())
            result.append(Finding("collective-mismatch", title, Culprit(), 0.9, reading.quote(fact), _REMEDY))
        if len(issued) == 2:
            result.append(_finding(run, int(fact.get("seq") or 0), issued, sorted(issued), reading.quote(fact)))
    return result[:1]


def _stalled(run: Run) -> list[Finding]:
    """Horovod's coordinator: tensors that some ranks submitted and others did not."""
    missing = {int(rank): fact for fact in run.of("stall") for rank in re.findall(r"\d+", str(fact.get("missing", "")))}
    if not missing:
        return []
    what = "; ".join(dict.fromkeys(str(fact.get("tensors")) for fact in missing.values()))[:200]
    names = ", ".join(run.name(rank) for rank in sorted(missing)[:4])
    return [
        Finding(
            "collective-mismatch",
            f"{names} did not submit what the other ranks reduce, gather or broadcast: {what}",
            run.blame(sorted(missing)),
            0.9,
            reading.quote(*missing.values())[:8],
            _REMEDY + "; different ranks run a different branch here: rank 0 often broadcasts or saves alone",
        )
    ]


def _asked(run: Run) -> list[Finding]:
    """NCCL RAS: an operation that one rank launched, and of which the others have launched none at all."""
    for fact in run.of("ras"):
        counts = {int(count): list(ranks) for count, ranks in dict(fact.get("counts") or {}).items()}
        alone = [rank for count, ranks in counts.items() if count > 0 for rank in ranks]
        if fact.get("problem") == "mismatch" and 0 in counts and len(alone) == 1:
            title = f"{run.name(alone[0])} launched {fact.get('operation')}, and no other rank did"
            return [Finding("collective-mismatch", title, run.blame(alone), 0.75, reading.quote(fact), _REMEDY)]
    return []


def _elsewhere(run: Run) -> list[Finding]:
    """Stacks that stand in different collectives, where no sequence number is known."""
    inside = {fact.rank: (match[1], fact) for fact in run.of("stack") if fact.rank is not None and (match := _IN_COLLECTIVE.match(_innermost(fact)))}
    counts = Counter(operation for operation, _ in inside.values()).most_common(2)
    if run.dumps or run.of("position") or len(counts) < 2:
        return []
    tie = counts[0][1] == counts[1][1]
    odd = sorted(rank for rank, (operation, _) in inside.items() if tie or operation != counts[0][0])
    said = ", ".join(f"{run.name(rank)} sits in {inside[rank][0]}" for rank in odd[:4])
    others = "" if tie else f"; {counts[0][1]} ranks sit in {counts[0][0]}"
    order = [*odd, *(rank for rank in inside if rank not in odd)]
    evidence = reading.quote(*(inside[rank][1] for rank in order[:8]))
    return [Finding("collective-mismatch", f"different collectives at the same time: {said}{others}", run.blame(odd), 0.75, evidence, _REMEDY)]


def _after_the_end(run: Run) -> list[Finding]:
    """One rank alone in a collective, after the training said that it ended: what follows it runs on that rank only."""
    ended, timeouts = (
        [fact for fact in run.of("ended") if fact.rank is None or fact.rank in {late.rank for late in run.of("timeout")}],
        run.of("timeout"),
    )
    if (
        not ended
        or len({fact.rank for fact in timeouts}) != 1
        or run.dumps
        or (run.of("position") and len({fact.rank for fact in run.of("position")}) > 1)
    ):
        return []
    rank = timeouts[0].rank
    who = "one rank" if rank is None else run.name(rank)
    return [
        Finding(
            "collective-mismatch",
            f"after the training ended, {who} alone issued {str(timeouts[0].get('op') or 'a collective').lower()}, and waited for the others in vain",
            run.blame([rank]) if rank is not None else Culprit(),
            0.6,
            reading.quote(timeouts[0], ended[-1]),
            "call on all ranks what contains collectives (save_checkpoint, validate, barrier, a sharded state_dict), not under `if rank == 0`; "
            + _REMEDY,
        )
    ]


def _innermost(fact: Fact) -> str:
    """The innermost frame that is not a wrapper."""
    frames = fact.get("frames") or [""]
    return str(next((frame for frame in frames if "wrapper" not in str(frame)), ""))


def _recorded(run: Run) -> list[Finding]:
    """The first sequence number at which the flight recorders differ."""
    dumps = recorder.by_rank(tuple(run.dumps))
    result = []
    for difference in recorder.differences(tuple(run.dumps)):
        issued = {rank: f"{call.operation} {call.text}".rstrip() for rank, call in difference.issued.items()}
        order = [*difference.odd, *(rank for rank in issued if rank not in difference.odd)]
        evidence = [
            dumps[rank].quote(calls, at)
            for rank in order[:8]
            for calls in [next(group.collectives for group in dumps[rank].groups.values() if group.name == difference.group)]
            if (at := calls.find(difference.seq)) is not None
        ]
        result.append(_finding(run, difference.seq, issued, difference.odd, evidence))
    return result


def _timed_out(run: Run) -> list[Finding]:
    """The operations that the watchdogs of several ranks quote for one sequence number of one group."""
    places: dict[tuple[object, object], dict[int, Fact]] = {}
    for fact in run.of("timeout"):
        if fact.rank is not None and fact.get("seq") is not None and fact.source is not None:
            places.setdefault((positions.group_of(run, fact), fact.get("seq")), {})[fact.rank] = fact
    for (group, seq), facts in places.items():
        demands = {rank: _demand(fact) for rank, fact in facts.items()}
        counts = Counter(demands.values()).most_common(2)
        if len(counts) < 2 or (group is None and len({fact.get("group") for fact in run.of("position") if fact.rank in facts}) > 1):
            continue  # the numbers of different groups cannot be compared
        odd = [rank for rank, demand in demands.items() if counts[0][1] == counts[1][1] or demand != counts[0][0]]
        order = [*odd, *(rank for rank in facts if rank not in odd)]
        issued = {rank: f"{str(fact.get('op')).lower()} of {fact.get('numel_in', '?')} elements" for rank, fact in facts.items()}
        return [_finding(run, int(seq), issued, sorted(odd), reading.quote(*(facts[rank] for rank in order[:8])))]  # type: ignore[call-overload]
    return []


def _demand(fact: Fact) -> tuple[object, ...]:
    operation = str(fact.get("op"))
    return (operation,) if operation.startswith(_OWN_INPUT) else (operation, fact.get("numel_in"), fact.get("shape"))


def _crossed(run: Run) -> list[Finding]:
    """Groups whose members wait for each other: their collectives were issued in different order."""
    found = waits.of(run)
    if not found.circle or found.messages:
        return []
    where = "; ".join(f"{wait}, for {', '.join(f'rank {rank}' for rank in wait.behind[:8])}" for wait in found.waits if wait.behind)
    who = "" if found.odd is None else f"; {run.name(found.odd)} is the one that most others wait for"
    return [
        Finding(
            "collective-mismatch",
            f"process groups are used in different order, and their members wait for each other: {where}{who}",
            Culprit() if found.odd is None else run.blame([found.odd]),
            0.8,
            [line for wait in found.waits for line in wait.evidence[:2]],
            "issue the collectives of several groups in the same order on every rank that is in more than one of them",
        )
    ]


def _uneven(run: Run) -> list[Finding]:
    """Members of a group that sit in different calls, though all have issued both: what one side completed the other did not."""
    wait = waits.of(run).held
    counts = Counter(wait.inside.values()).most_common(2) if wait else []
    if wait is None or len(counts) < 2 or counts[0][1] <= len(wait.inside) // 2:
        return []
    common = counts[0][0]
    order = sorted(wait.inside, key=lambda rank: wait.inside[rank] == common)
    said = ", ".join(f"{run.name(rank)} is inside #{wait.inside[rank]}" for rank in order[: min(4, len(order) - counts[0][1])])
    places = waits.of(run).positions
    return [
        Finding(
            "collective-mismatch",
            f"{said} of {wait.group}, {counts[0][1]} ranks are inside #{common}, and all have issued both: somebody issued something else there, "
            "or the GPU or the link of one rank failed in it; which, these numbers cannot tell",
            Culprit(),
            0.55,
            [places[rank].evidence for rank in order[:8]],
            _REMEDY,
        )
    ]


def _finding(run: Run, seq: int, issued: Mapping[int, str], odd: list[int] | tuple[int, ...], evidence: list[Evidence]) -> Finding:
    said = ", ".join(f"{run.name(rank)} issued {issued[rank]}" for rank in odd[:4])
    common = next((what for rank, what in issued.items() if rank not in odd), None)
    others = f"; {len(issued) - len(odd)} ranks issued {common}" if common else "; neither side is the majority, so both are named"
    return Finding(
        "collective-mismatch", f"different collectives at #{seq}: {said}{others}", run.blame(odd), 0.93 if common else 0.85, evidence, _REMEDY
    )


def _announced(run: Run) -> list[Finding]:
    """The minority at a sequence number where ranks sit in different operations; with a tie, all of them."""
    inside = [step for step in run.last_steps().values() if step.inside and not step.local]
    for seq in sorted({step.seq for step in inside}):
        here = [step for step in inside if step.seq == seq]
        kinds = Counter((step.name, step.nbytes, step.dtype, step.group) for step in here)
        if len(kinds) < 2:
            continue
        (common, most), (_, second) = kinds.most_common(2)
        odd = [step for step in here if most == second or (step.name, step.nbytes, step.dtype, step.group) != common]
        said = ", ".join(f"{run.name(step.rank)} in {reading.operation(step)} {step.dtype}".rstrip() for step in odd[:4])
        others = "" if most == second else f"; {most} ranks in {common[0]}"
        return [
            Finding(
                "collective-mismatch",
                f"different collectives at #{seq}: {said}{others}",
                run.blame([step.rank for step in odd]),
                0.9,
                reading.positions(run, [step.rank for step in here]),
                _REMEDY,
            )
        ]
    return []
