"""A process may open too few files: NCCL, Gloo and stores hold a socket or more per peer.

Blames
    log rank7.log: OSError: [Errno 24] Too many open files
    => 7

Blames
    log a.log: node-a:311:405 [0] misc/socket.cc:480 NCCL WARN ncclSocketInit: Socket creation failed : Too many open files
    => node-a

Blames
    log rank7.log: RuntimeError: received 0 items of ancdata
    => 7

Spares
    log rank7.log: Found ulimit of 1024 and failed to increase it. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.

Spares
    log rank7.log: FileNotFoundError: [Errno 2] No such file or directory
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "peer_reset", "store_lost", "missing_rank_at_rendezvous")

REMEDY = (
    "ulimit -n 1048576 in the job's script; docker run --ulimit nofile=1048576:1048576; LimitNOFILE=infinity for slurmd or containerd; fewer "
    "sockets: unset NCCL_NSOCKS_PERTHREAD NCCL_SOCKET_NTHREADS; torch.multiprocessing.set_sharing_strategy('file_system')"
)

READS = (
    Statement(
        r"(?<!OSError: \[Errno 24\] )Too many open files|(?<!`)OSError: \[Errno 24\] Too many open files",
        "{who} may not open more files",
        REMEDY,
        0.93,
    ),
    Statement(r"received 0 items of ancdata", "{who} may not open more files: it got none of those that a worker handed over", REMEDY, 0.85),
)
