"""The process that holds the rendezvous store went away first, and nothing in the report says why.

Blames
    log a.log: [rank1]:[W ProcessGroupNCCL.cpp:1662] Failed to check the "should dump" flag on TCPStore, (maybe TCPStore server has shut \
down too early), with error: Broken pipe
    => -

Spares
    log a.log: [rank1]:[W ProcessGroupNCCL.cpp:1662] Failed to check the "should dump" flag on TCPStore, (maybe TCPStore server has shut \
down too early), with error: Broken pipe
    log b.log: [rank0]: Traceback (most recent call last):
    log b.log: [rank0]: KeyError: 'labels'
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Only where the lost store is all that the report shows."""
    facts = run.of("store-lost")
    others = ("says", "timeout", "position", "exit", "joined", "store-connect", "connect", "ended", "served", "xid")
    if not facts or run.dumps or any(run.of(kind) for kind in others) or reading.own_errors(run):
        return []
    return [
        Finding(
            "store-lost",
            "the process that holds the store (rank 0's, or torchrun's of node 0) went away first; the report does not say why",
            Culprit(),
            0.4,
            reading.quote(*facts[:8]),
            "read the log of rank 0 and of its launcher: the first error there, earlier than these lines, is the cause; dmesg -T | tail there",
            ["the log of rank 0 and of torchrun on node 0, from the start", "the first error in time over all ranks", "dmesg -T of node 0"],
        )
    ]
