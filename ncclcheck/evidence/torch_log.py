"""Reads what torch.distributed prints (1.13 to 2.13): who waits where, who joined, which connection failed, who left in order.

Reads
    log a.log: [rank2]:[E ProcessGroupNCCL.cpp:563] [Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, \
OpType=ALLREDUCE, NumelIn=64, NumelOut=64, Timeout(ms)=600000) ran for 600031 milliseconds before timing out.
    => timeout seq=7 op=ALLREDUCE timeout_ms=600000 ran_ms=600031

Reads
    log a.log: [E ProcessGroupNCCL.cpp:737] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=BROADCAST, \
TensorShape=[8], Timeout(ms)=1800000) ran for 1800412 milliseconds before timing out.
    => timeout seq=9 op=BROADCAST shape=8

Reads
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:1537] [PG ID 3 PG GUID 5(tp) Rank 1] Timeout at NCCL work: 8, last enqueued NCCL work: 8, \
last completed NCCL work: 7.
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:2303] [PG ID 0 PG GUID 0(default_pg) Rank 1]  failure detected by watchdog at work sequence \
id: 9 PG status: last enqueued work: 9, last completed work: 8
    => position group=tp 5(tp) rank=1 enqueued=8 completed=7
    => position group=default_pg enqueued=9 completed=8

Reads
    log a.log: [rank5]:[E ProcessGroupNCCL.cpp:1537] [PG ID 2 PG GUID 9(mesh_dp) Rank 0] Timeout at NCCL work: 8, last enqueued NCCL work: 8, \
last completed NCCL work: 7.
    log a.log: [rank6]:[E ProcessGroupNCCL.cpp:616] [PG 3 Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, \
OpType=ALLREDUCE, NumelIn=64, NumelOut=64, Timeout(ms)=600000) ran for 600031 milliseconds before timing out.
    log b.log: [E ProcessGroupNCCL.cpp:616] [PG 2 Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, \
OpType=ALLREDUCE, NumelIn=64, NumelOut=64, Timeout(ms)=600000) ran for 600031 milliseconds before timing out.
    => position group=mesh_dp 9(mesh_dp) rank=5
    => timeout group=3 rank=6 seq=4
    => timeout group=2 rank=None seq=5

Reads
    log a.log: RuntimeError: [Rank 1] Caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE, TensorShape=[1], Timeout(ms)=1800000) \
ran for 1803170 milliseconds before timing out.
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:733] Stack trace of the failed collective:
    log a.log: #0 all_reduce from /opt/torch/distributed/distributed_c10d.py:3068
    log a.log: #1 step from /home/me/train.py:31
    => collective-stack own=step (train.py:31)

Reads
    log a.log: [rank0]:[E ProcessGroupNCCL.cpp:612] [Rank 0] Collective WorkNCCL(SeqNum=3, OpType=ALLREDUCE) raised the following async \
exception: NCCL error: remote process exited or there was a network error, NCCL version 2.28.9
    log a.log: [rank0]:[W TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=9, addr=[n1]:40, remote=[n0]:29500): Connection reset by peer
    log a.log: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.3.4]:51234
    => reset
    => reset peer=n0
    => reset peer=10.0.3.4

Reads
    log a.log: torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 5/8 clients joined.
    log a.log: RuntimeError: Timed out initializing process group in store based barrier on rank: 2, for key: store_based_barrier_key:1 \
(world_size=4, worker_count=3, timeout=0:30:00)
    log a.log: INFO:torch.distributed.distributed_c10d:Waiting in store based barrier to initialize process group for 10 seconds rank: 2, \
key: store_based_barrier_key:1 (world_size=4, num_workers_joined=3, timeout=0:30:00 error=wait timeout)
    => joined there=5 expected=8
    => joined there=3 expected=4
    => world size=8

Reads
    log a.log: RuntimeError: [Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 60000 ms
    => barrier absent=1, 3

Reads
    log a.log: [E socket.cpp:818] [c10d] The client socket has failed to connect to any network address of (10.9.0.7, 29500). The client \
socket has failed to connect to 10.9.0.7:29500 (errno: 113 - No route to host).
    log a.log: [E socket.cpp:957] [c10d] The client socket has timed out after 60s while trying to connect to (10.9.0.7, 29500).
    log a.log: [W TCPStore.cpp:340] [c10d] TCP client failed to connect/validate to host gpu-1:29500 - retrying (try=0, timeout=9000ms, \
delay=4ms): The client socket has failed (errno: 111 - Connection refused).
    log a.log: torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (gpu-1, 29500).
    log a.log: [W socket.cpp:764] [c10d] The client socket has failed to connect to [::ffff:10.0.0.9]:29500 (errno: 110 - Connection timed out).
    => store-connect address=10.9.0.7 port=29500 errno=113 tried=10.9.0.7
    => store-connect address=10.9.0.7 port=29500 waited=60s
    => store-connect address=gpu-1 port=29500 errno=111
    => store-connect tried=10.0.0.9 errno=110

Reads
    log a.log: [W socket.cpp:697] [c10d] The IPv6 network addresses of (gpu-1, 29500) cannot be retrieved (gai error: -2 - Name or service not known).
    => unresolved name=gpu-1 port=29500 family=IPv6 code=-2

Reads
    log a.log: RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: Connection \
refused, remote=[10.0.0.3]:41002 (rank=8, size=16, local=[10.0.0.4])
    log a.log: RuntimeError: [gloo/transport/tcp/pair.cc:799] connect [10.0.0.3]:41002: Connection timed out
    log a.log: RuntimeError: [gloo/transport/tcp/buffer.cc:83] Connect timeout [10.0.0.3]:41002
    => connect address=10.0.0.3 port=41002 reason=Connection refused
    => connect address=10.0.0.3 port=41002 reason=Connection timed out

Reads
    log a.log: [rank3]:[W ProcessGroupNCCL.cpp:1575] Warning: WARNING: destroy_process_group() was not called before program exit, which \
can leak resources.
    log b.log: [rank1]:[W ProcessGroupNCCL.cpp:1250] Warning: WARNING: process group has NOT been destroyed before we destruct ProcessGroupNCCL.
    => left

Reads
    log a.log: [rank3] Warning: Unable to resolve hostname to a (local) address. Using the loopback address as fallback. Manually set the \
network interface to bind to with GLOO_SOCKET_IFNAME.
    => loopback-fallback

Reads
    log a.log: RuntimeError: Detected mismatch between collectives on ranks. Rank 3 is running collective: \
CollectiveFingerPrint(SequenceNumber=6, OpType=ALLREDUCE, TensorShape=[4, 2], TensorDtypes=Float, \
TensorDeviceTypes=TensorOptions(device=cuda)), but Rank 1 is running collective: CollectiveFingerPrint(SequenceNumber=6, OpType=BROADCAST, \
TensorShape=[4], TensorDtypes=Long).Collectives differ in the following aspects: Op type: ALLREDUCE vs BROADCAST
    log b.log: RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: \
CollectiveFingerPrint(SequenceNumber=9, OpType=ALLREDUCE, TensorShape=[1], TensorDtypes=Float), but Rank 2 is running collective: \
CollectiveFingerPrint(SequenceNumber=0OpType=REDUCE).
    log c.log: RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running inconsistent collective: \
CollectiveFingerPrint(OpType=BROADCAST, TensorShape=[16], TensorDtypes=Float)
    => fingerprint seq=6 op=ALLREDUCE shape=4, 2 dtype=Float rank2=1 seq2=6 op2=BROADCAST shape2=4 dtype2=Long
    => fingerprint seq=9 rank2=2 seq2=0 op2=REDUCE
    => fingerprint op=BROADCAST shape=16

Reads
    log a.log: [0]<stderr>:[2024-01-01 10:00:00.1: W horovod/common/stall_inspector.cc:105] One or more tensors were submitted to be \
reduced, gathered or broadcasted by subset of ranks
    log a.log: [0]<stderr>:Missing ranks:
    log a.log: [0]<stderr>:2: [allreduce.w, allreduce.b]
    => stall missing=2 tensors=allreduce.w, allreduce.b

Reads
    log a.log: [1,0]<stderr>:WARNING: One or more tensors were submitted to be reduced, gathered or broadcasted by subset of ranks
    log a.log: [1,0]<stderr>:Stalled ops:
    log a.log: [1,0]<stderr>:allreduce.w [missing ranks: 1, 3]
    => stall missing=1, 3 tensors=allreduce.w

Reads
    log a.log: [W socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
    log a.log: [W socket.cpp:494] [c10d] waitForInput: socket SocketImpl(fd=5, addr=[n1]:40, remote=[n0]:29500) timed out after 15000ms
    log a.log: [2] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but \
store->get('0') got error: wait timeout
    log a.log: torch.distributed.DistStoreError: wait timeout after 30000ms, keys: /default_pg/0//cpu//0/1
    log a.log: [W ProcessGroupNCCL.cpp:1662] Failed to check the "should dump" flag on TCPStore, (maybe TCPStore server has shut down too \
early), with error: Broken pipe
    log a.log: RuntimeError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?
    => arrived
    => store-wait needs=0
    => store-wait keys=/default_pg/0//cpu//0/1
    => store-lost

Reads
    log a.log: torchrun --nnodes 2 --rdzv-endpoint gpu-1:29400 train.py
    log a.log: torchrun --nnodes 2 --master_addr 10.9.0.7 --master_port 29500 train.py
    => rendezvous address=gpu-1 port=29400
    => rendezvous address=10.9.0.7

Reads
    log a.log: Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/8
    log a.log: All distributed processes registered. Starting with 8 processes
    log a.log: INFO:torch.distributed.distributed_c10d:Rank 1: Completed store-based barrier for key:store_based_barrier_key:1 with 8 nodes.
    log a.log: restart_count=0 master_addr=gpu-1 master_port=29500 group_rank=0 group_world_size=2 local_ranks=[0, 1] role_ranks=[0, 1] \
global_ranks=[0, 1] role_world_sizes=[4, 4] global_world_sizes=[4, 4]
    log a.log: initializing model parallel; dist_world_size=16, world_size=16
    => world size=8
    => world size=4
    => member size=8
    => joined-all

Reads
    log a.log: PyTorch version: 2.6.0+cu124
    => torch-version version=2.6.0+cu124
"""

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_GROUP = r"(?:\[(?:PG (?:ID )?(?P<pg>\d+) )?(?:PG GUID (?P<guid>[^\s(]*)(?:\((?P<desc>[^)]*)\))? )?Rank (?P<rank>\d+)\])?"
_WORK = re.compile(r"WorkNCCL\((?P<what>.{0,400}?)\) ran for (?P<ran_ms>\d+)")
_OF_WORK = re.compile(r"(SeqNum|OpType|NumelIn|NumelOut|TensorShape|Timeout\(ms\))=(\[[^\]]*\]|\w+)")
_NAMES = {"SeqNum": "seq", "OpType": "op", "NumelIn": "numel_in", "NumelOut": "numel_out", "TensorShape": "shape", "Timeout(ms)": "timeout_ms"}
_POSITION = re.compile(r"last enqueued (?:NCCL )?work: (?P<enqueued>-?\d+), last completed (?:NCCL )?work: (?P<completed>-?\d+)", re.I)
_SPEAKER = re.compile(_GROUP.removesuffix("?"))
_FRAME = re.compile(r"^\s*#\d+ (?P<function>\S+) from (?P<file>[^:]+):(?P<line>\d+)")
_STALLED = re.compile(
    r"(?:^|[:>])(?:(?P<tensor>[^\s:>]+) )?\[missing ranks: (?P<ranks>[\d, ]+)\]|(?:^|[:>])(?P<missing>\d+): ?\[(?P<tensors>[^\]]*)\]?"
)
_ERRNO = re.compile(r"errno: (?P<errno>\d+) - (?P<reason>[^)]*)\)")
_PRINT = (
    r"CollectiveFingerPrint\((?:SequenceNumber=(?P<seq{n}>\d+)(?:, )?)?OpType=(?P<op{n}>\w+)(?:, TensorShape=\[(?P<shape{n}>[^\]]*)\])?"
    r"(?:, TensorDtypes=(?P<dtype{n}>\w+))?"
)
_NOT_MINE = ("/torch/", "/site-packages/", "/dist-packages/", "<frozen", "/lib/python")
MOST_FRAMES = 100


def _numbers(words: dict[str, str | None]) -> dict[str, int | str]:
    return {name: int(value) if value.lstrip("-").isdigit() else value for name, value in words.items() if value is not None}


def _speaker(line: Line) -> tuple[str, int | None]:
    """The process group that a watchdog's line names, and the rank of the job that speaks: the rank beside the group counts within it.

    Of groups with one description each has its own number: `mesh_dp 9(mesh_dp)`. Where no group is named: "".
    """
    match = _SPEAKER.search(line.text)
    if not match:
        return "", line.place.rank
    number, named = match["guid"] or match["pg"] or "", match["desc"] or ""
    if number and named not in ("", "undefined", "default_pg"):
        named = f"{named} {number}({named})"
    elif named != "default_pg":
        named = number
    return named, line.place.rank


def _timeout(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = _WORK.search(line.text)
    if match:
        group, rank = _speaker(line)
        words: dict[str, str | None] = {_NAMES[name]: value.strip("[]") for name, value in _OF_WORK.findall(match["what"])}
        yield line.fact("timeout", {"group": group, **_numbers(words | {"ran_ms": match["ran_ms"]})}, rank=rank)


def _position(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := _POSITION.search(line.text):
        group, rank = _speaker(line)
        yield line.fact("position", {"group": group, **_numbers(match.groupdict())}, rank=rank)


def _stack(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    frames, own = [], ""
    for _, next_line in zip(range(MOST_FRAMES), following, strict=False):
        match = _FRAME.match(next_line.body)
        if not match:
            break
        frame = f"{match['function']} ({match['file'].rpartition('/')[2]}:{match['line']})"
        frames.append(frame)
        own = own or ("" if any(part in match["file"] for part in _NOT_MINE) else frame)
    if frames:
        yield line.fact("collective-stack", {"frames": frames, "own": own})


def _store_connect(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """A store that could not be reached. The address that torch prints beside the errno (`tried`) may be garbled: the one given to it counts."""
    where = re.search(r"\((?P<address>[^\s,()]+), (?P<port>\d+)\)", line.text) or re.search(r"to host (?P<address>\S+?):(?P<port>\d+) ", line.text)
    reason = _ERRNO.search(line.text)
    waited = re.search(r"timed out after (?P<waited>\w+) while", line.text)
    tried = re.search(r"failed to connect to (?:\[(?:::ffff:)?(?P<tried>[^\]\s]+)\]|(?P<bare>[^\s\[\]]+)):\d+ \(errno", line.text)
    fields = {name: value for match in (where, reason, waited) if match for name, value in match.groupdict().items()}
    if tried:
        fields["tried"] = tried["tried"] or tried["bare"]
    if where or reason:
        yield line.fact("store-connect", _numbers(dict(fields)))


def _stall(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    for _, next_line in zip(range(MOST_FRAMES), following, strict=False):
        if re.search(r"(?:Missing ranks|Stalled ops):$", next_line.text):
            continue
        match = _STALLED.search(next_line.text)  # not in its body: `0: [` looks like a launcher's prefix
        if not match:
            break
        yield next_line.fact("stall", {"missing": match["missing"] or match["ranks"], "tensors": match["tensors"] or match["tensor"]})


READS = (
    Block(r"[Cc]aught collective operation timeout", _timeout),
    Block(r"last completed (?:NCCL )?work: ", _position),
    Block(r"Stack trace of the failed collective", _stack),
    Clue("reset", r"raised the following async exception: NCCL error: (?P<what>remote process exited)"),
    Clue("reset", r"\[c10d\] \w+ failed on SocketImpl\([^)]*remote=\[(?P<peer>[^\]]*)\][^)]*\): (?P<what>.*)"),
    Clue("reset", r"gloo/transport/\S+\] (?P<what>Connection (?:closed|reset) by peer|Read error|Write error)[^\[]*\[(?P<peer>[^\]]*)\]"),
    Clue("joined", r"waiting for clients\. (?P<there>\d+)/(?P<expected>\d+) clients joined"),
    Clue("world", r"waiting for clients\. \d+/(?P<size>\d+) clients joined"),
    Clue(
        "joined",
        r"in store based barrier [^(]*rank:? (?P<rank>\d+)[^(]*\(world_size=(?P<expected>\d+), (?:worker_count|num_workers_joined)=(?P<there>\d+)",
    ),
    Clue("world", r"in store based barrier [^(]*\(world_size=(?P<size>\d+)"),
    Clue("barrier", r"Ranks? (?P<absent>\d+(?:, ?\d+)*) failed to pass monitoredBarrier"),
    Block(r"The client socket has (?:failed to connect to|timed out after)|TCP client failed to connect/validate to host", _store_connect),
    Clue(
        "unresolved",
        r"The (?P<family>IPv[46])? ?network addresses of \((?P<name>[^,]*), (?P<port>\d+)\) cannot be retrieved \(gai error: (?P<code>-?\d+)",
    ),
    Clue(
        "connect",
        r"SO_ERROR: (?P<reason>[A-Z][\w ]*), remote=\[(?P<address>[^\]]*)\]:(?P<port>\d+)(?:[^(]*\(rank=(?P<rank>\d+), size=(?P<size>\d+))?",
    ),
    Clue("connect", r"gloo/transport/\S+\] (?i:connect) \[(?P<address>[^\]]*)\]:(?P<port>\d+): (?P<reason>[A-Z][\w ]*)"),
    Clue("connect", r"gloo/transport/\S+\] Connect (?P<reason>timeout) \[(?P<address>[^\]]*)\]:(?P<port>\d+)"),
    Clue("left", r"destroy_process_group\(\) was not called before program exit|process group has NOT been destroyed before we destruct"),
    Clue("loopback-fallback", r"Unable to resolve hostname to a \(local\) address"),
    Clue(
        "fingerprint",
        r"Detected mismatch between collectives on ranks\. Rank (?P<rank>\d+) is running (?:\w+ )?collective: "
        + _PRINT.format(n="")
        + r"(?:.*?but Rank (?P<rank2>\d+) is running (?:\w+ )?collective: "
        + _PRINT.format(n="2")
        + ")?",
    ),
    Block(r"One or more tensors were submitted to be reduced, gathered or broadcasted by subset of ranks", _stall),
    Clue("world", r"GLOBAL_RANK: (?P<rank>\d+), MEMBER: \d+/(?P<size>\d+)"),
    Clue("torch-version", r"PyTorch version: (?P<version>\d{1,3}\.\d[\w.+-]{0,40})"),
    Clue("member", r"GLOBAL_RANK: (?P<rank>\d+), MEMBER: \d+/(?P<size>\d+)"),
    Clue("joined-all", r"All distributed processes registered\.|Completed store-based barrier for key"),
    Clue("world", r"global_world_sizes=\[(?P<size>\d+)"),
    Clue("rendezvous", r"\bmaster_addr=(?P<address>[\w.:-]+) master_port=(?P<port>\d+)"),
    Clue("rendezvous", r"--rdzv[-_]endpoint[= ](?P<address>[\w.-]+|\[[\da-f:]+\]):(?P<port>\d+)"),
    Clue("rendezvous", r"(?:--master[-_]addr|--main_process_ip|MASTER_ADDR)[= ](?P<address>[\w.:-]+)"),
    Clue("arrived", r"\[c10d\] The hostname of the client socket cannot be retrieved"),
    Clue("arrived", r"\[c10d\] waitForInput: socket SocketImpl\([^)]*\) timed out after (?P<waited>\w+)"),
    Clue("store-wait", r"retrieving ncclUniqueId from \[(?P<needs>\d+)\] via c10d key-value store"),
    Clue("store-wait", r"wait timeout after (?P<waited>\w+), keys: (?P<keys>\S+)"),
    Clue("store-lost", r"TCPStore server has shut down too early"),
    Clue("store-lost", r"Connection was likely closed\. Did the remote server shutdown or crash"),
    Clue("world", r"(?:dist_world_size|using world size)\D{1,3}(?P<size>\d+)"),
)
