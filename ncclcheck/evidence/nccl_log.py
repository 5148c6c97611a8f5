"""Reads what NCCL, RCCL and nccl-tests print (2.4 to 2.30, INFO and WARN): who takes part, over what, and which connections failed.

Ranks in these lines count within one communicator; only that of `Init` stands in for the rank of the job, where the communicator is the world.

Reads
    log a.log: node-a:311:405 [0] NCCL INFO NCCL version 2.21.5+cuda12.4
    => nccl-version version=2.21.5 cuda=12.4

Reads
    log a.log: RCCL version 2.18.3+hip6.0 HEAD:2f6d59e+
    => nccl-version version=2.18.3

Reads
    log a.log: (Worker pid=960) INFO 03-02 10:11:12 [pynccl.py:113] vLLM is using nccl==2.27.5
    => pynccl version=2.27.5

Reads
    log a.log: node-a:311:405 [0] NCCL INFO cudaDriverVersion 12040
    => cuda-driver version=12040

Reads
    log a.log: node-a:311:405 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>
    => bootstrap interface=eth0 address=10.0.0.1

Reads
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : Using [0]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.1<0>
    => ib-devices devices=[0]mlx5_1:1/RoCE interface=eth0

Reads
    log a.log: node-a:311:405 [0] NCCL INFO NET/IB : No device found.
    => ib-none

Reads
    log a.log: node-a:311:405 [0] NCCL INFO Using network Socket
    => net name=Socket

Reads
    log a.log: node-a:311:405 [0] NCCL INFO ncclCommInitRank comm 0x55d0 rank 1 nranks 4 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
    => init nranks=4 cudaDev=0 nvmlDev=2 busId=a1000 commId=0x9f3 phase=START

Reads
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 1 nranks 4 cudaDev 0 busId a1000 - Destroy COMPLETE
    => left by=NCCL

Reads
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 1 nranks 4 cudaDev 0 busId a1000 - Abort COMPLETE
    => aborted by=NCCL

Reads
    log a.log: node-a:311:405 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 1.
    => setting name=NCCL_IB_DISABLE value=1

Reads
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] via P2P/IPC
    => via me=1 peer=2 transport=P2P/IPC

Reads
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [receive] via NET/Socket/0
    => via peer=1 me=2 transport=NET/Socket/0

Reads
    log a.log: node-a:311:405 [0] NCCL INFO Ring 00 : 3[3] -> 0[0] via P2P/IPC
    log a.log: node-a:311:405 [0] NCCL INFO Ring 00 : 1[3] -> 2[0] [receive] via NET/IB/0
    => via me=3 peer=0 transport=P2P/IPC
    => via me=2 peer=1 transport=NET/IB/0

Reads
    log a.log: node-a:311:405 [0] NCCL INFO NET : Using interface eth0:10.0.0.1<0>
    => bootstrap interface=eth0 address=10.0.0.1

Reads
    log a.log: node-a:311:405 [0] include/socket.h:361 NCCL WARN Call to connect timeout : Connection refused
    => connect by=NCCL reason=Connection_refused errno=111

Reads
    log a.log: # Avg bus bandwidth    : 7.66
    => ended by=nccl-tests

Reads
    log a.log: node-a:311:405 [0] misc/socket.cc:533 NCCL WARN socketPollConnect: Connect to 10.0.0.2<51377> returned 113(No route to host) errno
    => connect by=NCCL address=10.0.0.2 port=51377 reason=No_route_to_host errno=113

Reads
    log a.log: node-a:311:405 [0] misc/socket.cc:596 NCCL WARN socketStartConnect: connect to 10.0.0.2<38229> failed : Network is unreachable
    => connect by=NCCL address=10.0.0.2 port=38229 reason=Network_is_unreachable errno=101

Reads
    log a.log: node-a:311:405 [0] misc/socket.cc:71 NCCL WARN socketProgress: Connection closed by remote peer node-b.example.com<40112>
    => reset by=NCCL peer=node-b.example.com

Reads
    log a.log: node-a:311:405 [0] include/socket.h:403 NCCL WARN Net : Connection closed by remote peer
    => reset by=NCCL

Reads
    log a.log: node-a:311:405 [0] misc/socket.cc:58 NCCL WARN socketProgressOpt: Call to recv from 10.0.0.2<40112> failed : Connection reset by peer
    => reset by=NCCL peer=10.0.0.2 reason=Connection_reset_by_peer

Reads
    log a.log: node-a:311:405 [0] misc/socket.cc:58 NCCL WARN socketProgressOpt: Call to send to 10.0.0.2<40112> failed : No route to host
    => connect by=NCCL address=10.0.0.2 port=40112 reason=No_route_to_host errno=113 during=transfer

Reads
    log a.log: node-a:311:405 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory
    => ib-memory call=ibv_reg_mr_iova2

Reads
    log a.log: a:1:2 [0] NET/IB : Got completion from peer b<51> with status=12 vendor err 129 localGid fe80::1 remoteGids fe80::2 hca mlx5_1
    => ib-error peer=b status=12 vendor=129 local=fe80::1 remote=fe80::2 interface=mlx5_1

Reads
    log a.log: [1737024667.12] [node-a:2783:0] ib_mlx5_log.c:177 UCX  ERROR Transport retry count exceeded on mlx5_0:1/RoCE (synd 0x15 vend 0x81)
    => ib-error status=12 interface=mlx5_0
    => link-layer layer=Ethernet

Reads
    log a.log: #  Rank  1 Group  0 Pid  12881 on    node-a device  1 [0000:81:00] NVIDIA L40S
    => device index=1 busId=0000:81:00 name=NVIDIA_L40S

Reads
    log a.log: #   Rank  0 Pid  410233 on  node-a device  0 [0x01] NVIDIA A10
    => device index=0 busId=0x01 name=NVIDIA_A10

Reads
    log a.log:      1048576        262144     float     sum      -1    91.21   11.50   11.50      0
    => nccl-tests-row nbytes=1048576
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line, compiled
from ncclcheck.model import Fact

_NUMBERS = {os.strerror(number): number for number in errno.errorcode}
_ABOUT = r"comm 0x\w+ rank \d+ n[rR]anks \d+ cudaDev \d+ .*- "
_CONNECT = r"[Cc]onnect to (?P<address>[^\s<]+)<(?P<port>\d+)> (?:failed : |failed with error |returned (?:\d+\()?)(?P<reason>[A-Z][A-Za-z ]+[a-z])"
_TRANSFER = r"Call to (?:recv from|send to) (?P<address>[^\s<]+)<(?P<port>\d+)> failed : (?:\d+ \()?(?P<reason>[A-Z][A-Za-z ]+[a-z])"
_OLD_CONNECT = r"Call to connect (?:timeout|failed) : (?P<reason>[A-Z][A-Za-z ]+[a-z])"  # before 2.5
_GONE = ("Connection reset by peer", "Broken pipe")  # the peer went; anything else is the network's doing
_CLOSED = r"Connection closed by remote peer(?: (?P<peer>[^\s<]+)<)?"
_COMPLETION = (
    r"Got completion (?:from peer (?P<peer>[^\s<]+)<\d+> )?with (?:error |status=(?:\w+\()?)(?P<status>\d+)\)?.*?vendor[ _]err[ =](?P<vendor>\d+)"
    r"(?:.*?localGid (?P<local>[0-9a-f:.]+))?(?:.*?remoteGids? ?(?P<remote>[0-9a-f:.]+))?(?:.*?hca (?P<interface>\w+))?"
)
_FIRST_CHANNEL = r"(?:Channel 00(?:/\d+)?|Ring 00) : \d"  # the others connect the same ranks, and a large job prints millions
_VIA = re.compile(r" 00(?:/\d+)? : (?P<from>\d+)(?:\[\w+\])? -> (?P<to>\d+)(?:\[\w+\])?(?: \[(?P<end>send|receive)\])? via (?P<transport>\S+)")
_RETRIED = r"Transport retry count exceeded on (?P<interface>\w+):\d+/(?P<kind>RoCE|IB)"  # UCX
_FINISHED = re.compile(r"- (Destroy|Abort) COMPLETE")


def _finished(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := _FINISHED.search(line.text):
        yield line.fact("left" if match[1] == "Destroy" else "aborted", {"by": "NCCL"})


def _via(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := _VIA.search(line.text):
        me, peer = ("to", "from") if match["end"] == "receive" else ("from", "to")
        yield line.fact("via", {"me": int(match[me]), "peer": int(match[peer]), "transport": match["transport"]})


def _connect(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := compiled(_CONNECT).search(line.text):
        yield line.fact("connect", _refused(match))


def _transfer(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = compiled(_TRANSFER).search(line.text)
    if match and match["reason"] in _GONE:
        yield line.fact("reset", {"by": "NCCL", "peer": match["address"], "reason": match["reason"]})
    elif match:
        yield line.fact("connect", {**_refused(match), "during": "transfer"})


def _retried(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := compiled(_RETRIED).search(line.text):
        yield line.fact("ib-error", {"status": 12, "interface": match["interface"]})
        yield line.fact("link-layer", {"layer": "Ethernet" if match["kind"] == "RoCE" else "InfiniBand"})


def _closed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := compiled(_CLOSED).search(line.text):
        yield line.fact("reset", {"by": "NCCL", **({"peer": match["peer"]} if match["peer"] else {})})


def _refused(match: re.Match[str]) -> dict[str, str | int]:
    reason = match["reason"]
    number = {"errno": _NUMBERS[reason]} if reason in _NUMBERS else {}
    where = {"address": match["address"], "port": int(match["port"])} if "address" in match.re.groupindex else {}
    return {"by": "NCCL", **where, "reason": reason, **number}


def _old_connect(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := compiled(_OLD_CONNECT).search(line.text):
        yield line.fact("connect", _refused(match))


def _ended(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    yield line.fact("ended", {"by": "nccl-tests"})


READS = (
    Clue("nccl-version", r"(?<!with )[NR]CCL version (?P<version>\d+\.\d+(?:\.\d+)?)(?:\+cuda(?P<cuda>[\d.]+\d))?"),
    Clue("pynccl", r"vLLM is using nccl==(?P<version>[\d.]+\d)"),
    Clue("cuda-driver", r"cudaDriverVersion (?P<version>\d+)"),
    Clue("bootstrap", r"Bootstrap ?: Using \[?(?:0\])?(?P<interface>[\w.@-]+):(?P<address>[0-9a-fA-F.:]+(?:%\w+)?)<\d+>"),
    Clue("ib-devices", r"NET/IB ?: Using (?P<devices>\[0\]\S+(?: \[\d+\]\S+)*).*?(?:; OOB (?P<interface>[\w.-]+):.*)?$"),
    Clue("ib-none", r"NET/IB ?: No device found"),
    Clue("net", r"NCCL INFO Using network (?P<name>\S.*\S)"),
    Clue(
        "init",
        r"comm 0x\w+ rank (?P<rank>\d+) n[rR]anks (?P<nranks>\d+) cudaDev (?P<cudaDev>\d+)(?: nvmlDev (?P<nvmlDev>\d+))?(?: busId (?P<busId>\w+))?"
        r"(?: commId (?P<commId>0x\w+))?(?: parent (?P<parent>0x\w+))?.*- Init (?P<phase>START|COMPLETE)",
    ),
    Block(_ABOUT + r"(?:Destroy|Abort) COMPLETE", _finished),
    Clue("setting", r"(?P<name>NCCL_\w+) set (?:by environment )?to (?P<value>\S.*?)\.?\s*$"),
    Block(_FIRST_CHANNEL, _via),
    Clue("bootstrap", r"NET : Using interface (?P<interface>[\w.@-]+):(?P<address>[0-9a-fA-F.:]+(?:%\w+)?)<\d+>"),
    Block(_CONNECT, _connect),
    Block(_OLD_CONNECT, _old_connect),
    Block(r"^# Avg bus bandwidth", _ended),
    Block(_TRANSFER, _transfer),
    Block(_CLOSED, _closed),
    Clue("ib-memory", r"(?P<call>ibv_\w+|mlx5dv_\w+)\b.{0,80}Cannot allocate memory"),
    Clue("ib-error", _COMPLETION),
    Block(_RETRIED, _retried),
    Clue(
        "device",
        r"^#\s*  Rank \s*(?P<rank>\d+)\s+(?:Group\s+\d+\s+)?Pid\s+(?P<pid>\d+) on\s+(?P<host>\S+)\s+device\s+(?P<index>\d+)"
        r" \[(?P<busId>[\w:.]+)\] (?P<name>.*\S)",
    ),
    Clue("nccl-tests-row", r"^\s+(?P<nbytes>\d+)\s+\d+\s+(?:   float  |  double  |bfloat16  )\s*(?:sum|prod|max|min|avg|none|all|mulsum)\s+-?\d+\s"),
)
