"""A send has no recv, or a recv no send: one side turned to another peer, sends another size, or sends nothing.

Point-to-point calls pair up by their order between two ranks, and nothing checks that they do. Pipelines that count their
micro-batches differently, or that compute a neighbour's rank wrongly, wait for ever. Both sides print the same time-out.

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [{"process_group": ["0", "pp"], "collective_seq_id": 1, "p2p_seq_id": 4,
    log fr_rank_0: "profiling_name": "nccl:recv 0<-1", "input_sizes": [[8]]}]}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [{"process_group": ["0", "pp"], "collective_seq_id": 1, "p2p_seq_id": 4,
    log fr_rank_1: "profiling_name": "nccl:send 1->2", "input_sizes": [[8]]}]}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "entries": [{"process_group": ["0", "pp"], "collective_seq_id": 2, "p2p_seq_id": 0,
    log fr_rank_2: "profiling_name": "nccl:all_reduce", "input_sizes": [[8]]}]}
    => 1

Blames
    rank 0 @ a: init, all_reduce... | calls all_reduce [8] sum; all_reduce [8] sum
    rank 1 @ a: init, all_reduce... | calls all_reduce [8] sum; all_reduce [8] sum
    rank 2 @ b: init, send... | calls all_reduce [8] sum; send [4] to 0
    => 2

Spares
    rank 0 @ a: init, all_reduce... | calls all_reduce [8] sum; exchange [8]
    rank 1 @ a: init, all_reduce... | calls all_reduce [8] sum; exchange [8]

Spares
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1]"}}, "entries": [{"process_group": ["0", "pp"], "collective_seq_id": 1, "p2p_seq_id": 4,
    log fr_rank_0: "profiling_name": "nccl:recv 0<-1", "input_sizes": [[8]]}]}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1]"}}, "entries": [{"process_group": ["0", "pp"], "collective_seq_id": 1, "p2p_seq_id": 4,
    log fr_rank_1: "profiling_name": "nccl:send 0->1", "input_sizes": [[8]], "state": "completed"}]}
"""

from ncclcheck import divergence, waits
from ncclcheck.model import Finding, Run

EXPLAINS = (
    "rank_stuck_in_python",
    "slow_rank",
    "gpu_kernel_stuck",
    "network_unreachable",
    "peer_reset",
    "rank_died_exception",
    "rank_killed",
    "data_corruption",
)

_REMEDY = (
    "compare what each rank sends and receives, in order: the peer's rank, the size and dtype, and the number of messages; every send needs "
    "the recv of its peer. Where two ranks exchange, use batch_isend_irecv, or let one send first and the other recv first"
)


def check(run: Run) -> list[Finding]:
    """Open sends and receives that no open counterpart answers, where nobody else is to blame for that."""
    return _issued(run) if divergence.known(run) else _open(run)


def _issued(run: Run) -> list[Finding]:
    """A send or recv in the history of some ranks, in a place where the others issued something else."""
    found = divergence.of(run)
    if found is None or divergence.cause(found) != "p2p-mismatch":
        return []
    title = f"{divergence.said(run, found)}: nobody takes the other end"
    return [
        Finding(
            "p2p-mismatch", title, run.blame(found.odd), 0.95 if len(found.odd) < len(found.issued) else 0.8, divergence.quotes(run, found), _REMEDY
        )
    ]


def _open(run: Run) -> list[Finding]:
    """What the flight recorders show."""
    found = waits.of(run)
    sizes = [message for message in found.messages if message.other is not None]
    alone = [message for message in found.messages if message.other is None] if found.circle else []
    if not sizes and not alone:
        return []
    messages = sizes or alone
    sides = sorted({rank for message in messages for rank in (message.rank, message.peer)})
    odd = sides if sizes or found.odd is None else [found.odd]
    said = "; ".join(f"{message}, {'and it expects ' + message.other.text if message.other else 'which does not answer'}" for message in messages[:4])
    return [
        Finding(
            "p2p-mismatch",
            f"send and recv do not pair: {said}" + ("" if len(odd) == 1 else "; either side can be the wrong one"),
            run.blame(odd),
            0.88 if len(odd) == 1 else 0.75,
            [message.evidence for message in messages[:8]],
            _REMEDY,
        )
    ]
