"""Reads the kernel's log (dmesg, journalctl -k, syslog): what failed on a host, in the kernel's own words.

xid and sxid (code, device, pid), gpu-lost, driver-mismatch, oom-kill (pid, name, scope: host or cgroup), link (interface or
device, state), link-error, aer, mce, segfault (pid, name, library), hung-task (pid, name, seconds), nfs, disk-error,
conntrack-full, syn-flood, boot.

Reads
    log a.txt: [88231.101] NVRM: Xid (PCI:0000:3b:00): 79, pid=5110, name=python, GPU has fallen off the bus.
    log a.txt: Nov 22 09:10:11 node-b kernel: NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.
    log a.txt: [88232.117] nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 33 egress non-posted PRIV error
    log a.txt: [88232.200] NVRM: API mismatch: the client has the version 560.35.03, but
    => xid code=79 device=PCI:0000:3b:00 pid=5110
    => gpu-lost host=node-b device=0000:3b:00.0
    => sxid code=12028
    => driver-mismatch client=560.35.03

Reads
    log a.txt: python invoked oom-killer: gfp_mask=0x100cca, order=0, oom_score_adj=0
    log a.txt: oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/kubepods/pod7,task_memcg=/kubepods/pod7/c1,task=python,pid=5110,uid=0
    log a.txt: Memory cgroup out of memory: Killed process 5110 (python) total-vm:912kB, anon-rss:800kB
    log a.txt: Out of memory: Kill process 5111 (python) score 911 or sacrifice child
    log a.txt: systemd-oomd killed 3 process(es) in this unit.
    => oom-kill pid=5110 name=python scope=cgroup
    => oom-kill pid=5111 name=python scope=host
    => oom-invoked name=python
    => oomd processes=3

Reads
    log a.txt: mlx5_core 0000:41:00.0 ens1f0np0: Link down
    log a.txt: mlx5_core 0000:41:00.1: Port module event: module 1, Cable unplugged
    log a.txt: bond0: (slave eth2): link status definitely down, disabling slave
    log a.txt: infiniband mlx5_2: Port: 1 Link DOWN
    log a.txt: NETDEV WATCHDOG: eth2 (mlx5_core): transmit queue 9 timed out
    => link interface=ens1f0np0 state=down
    => link device=0000:41:00.1 state=unplugged
    => link interface=eth2 state=down
    => link device=mlx5_2 state=down
    => link-error interface=eth2

Reads
    log a.txt: pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0
    log a.txt: pcieport 0000:3a:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer
    log a.txt: mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 8
    log a.txt: python[5110]: segfault at 10 ip 00007f sp 00007f error 4 in libnccl.so.2.21.5[7f00+1000]
    log a.txt: traps: python[5111] general protection fault ip:7f sp:7f error:0 in libcuda.so.1[7f+1]
    log a.txt: INFO: task python:5110 blocked for more than 122 seconds.
    log a.txt: nfs: server 10.9.0.40 not responding, still trying
    log a.txt: blk_update_request: I/O error, dev nvme0n1, sector 12
    log a.txt: nf_conntrack: nf_conntrack: table full, dropping packet
    log a.txt: TCP: request_sock_TCP: Possible SYN flooding on port 29500. Sending cookies.
    => aer severity=Uncorrected_(Fatal)
    => aer severity=Corrected
    => mce
    => segfault pid=5110 library=libnccl.so.2.21.5
    => segfault pid=5111
    => hung-task pid=5110 seconds=122
    => nfs server=10.9.0.40
    => disk-error device=nvme0n1
    => conntrack-full
    => syn-flood port=29500
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_KILLED = r"(?P<what>[Oo]ut of memory)[^:]{0,80}: Kill(?:ed)? process (?P<pid>\d+),? \((?P<name>[^)]*)\)"
_OOM = r"oom-kill:constraint=(?P<constraint>\w{1,40}),.{0,2000}?\btask=(?P<name>[^,]{0,64}),pid=(?P<pid>\d+)"
_LINK = r"(?P<interface>[\w.-]{1,40}): (?:NIC )?[Ll]ink (?:is |status )?(?:definitely )?(?P<state>[Dd]own|DOWN|[Uu]p|UP)\b"
_PORT = (
    r"(?:infiniband )?(?P<device>mlx\d_\d+|bnxt_re\d+|irdma\d+|ib\d+):? [Pp]ort:? ?(?P<port>\d+)[: ]+"
    r"(?:link |Link )?(?P<state>[Dd]own|DOWN|[Uu]p|UP|ACTIVE|INIT)\b"
)
_SLAVE = r"(?:\(slave (?P<slave>\S+)\): link status|link status) (?:definitely )?(?P<state>down|up)(?: for interface (?P<interface>[\w.-]+))?"


def _killed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_KILLED, line.text):
        scope = "cgroup" if "emory cgroup" in line.text else "host"
        yield line.fact("oom-kill", {"name": match["name"], "scope": scope}, pid=int(match["pid"]))


def _constrained(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_OOM, line.text):
        cgroup = re.search(r"oom_memcg=([^,]+)", line.text)
        fields = {"name": match["name"], "scope": "cgroup" if match["constraint"].endswith("MEMCG") else "host"}
        yield line.fact("oom-kill", {**fields, **({"cgroup": cgroup[1]} if cgroup else {})}, pid=int(match["pid"]))


def _link(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    for pattern in (_SLAVE, _PORT, _LINK):
        if match := re.search(pattern, line.text):
            words = match.groupdict()
            name = words.get("slave") or words.get("interface")
            yield line.fact("link", {"device" if words.get("device") else "interface": words.get("device") or name, "state": _up(words["state"])})
            return


def _up(word: str | None) -> str:
    return "down" if (word or "").lower() in ("down", "init") else "up"


READS = (
    Clue(
        "xid",
        r"(?<!S)Xid \((?P<device>[^)]{1,40})\): (?P<code>\d+)(?:, pid='?(?P<pid>\d+|<unknown>)'?)?(?:, name=(?P<name>[^,]*))?(?:, (?P<text>.*))?",
    ),
    Clue("sxid", r"SXid \((?P<device>[^)]{1,40})\): (?P<code>\d+)(?:, (?P<text>.*))?"),
    Clue("gpu-lost", r"NVRM: (?:The NVIDIA )?GPU (?:at )?(?P<device>[0-9A-Fa-f:.]{4,20}[0-9A-Fa-f])?.{0,80}fallen off the bus"),
    Clue("driver-mismatch", r"NVRM: API mismatch: (?:the|this) (?:client|kernel module) has (?:the )?version (?P<client>[\d.]+)"),
    Block(_KILLED, _killed),
    Block(_OOM, _constrained),
    Clue("oom-invoked", r"(?P<name>\S{1,64}) invoked oom-killer"),
    Clue("oomd", r"systemd-oomd killed (?P<processes>\d+)"),
    Block(r"NIC Link is |: Link (?:down|up|Down|Up|DOWN|UP)\b|: [Ll]ink is (?:down|up|Down|Up)", _link),
    Block(_SLAVE, _link),
    Block(r"infiniband \S{1,40} .{0,80}\bLink |infiniband \S{1,40}: [Pp]ort", _link),
    Clue("link", r"(?P<device>[0-9a-f:.]{7,20}): Port module event: module \d+, Cable (?P<state>unplugged|error|plugged)"),
    Clue("link-error", r"NETDEV WATCHDOG: (?P<interface>\S+)"),
    Clue(
        "aer",
        r"(?P<device>[0-9a-f:.]{7,20}): AER: .{0,80}?(?P<severity>Uncorrected \((?:Non-)?Fatal\)|Uncorrectable \((?:Non-)?Fatal\)|Corrected) error",
    ),
    Clue("aer", r"(?P<device>[0-9a-f:.]{7,20}): PCIe Bus Error: severity=(?P<severity>[^,]+)"),
    Clue("mce", r"\[Hardware Error\]: .{0,80}(?P<what>Machine [Cc]heck|Uncorrected|Memory error)"),
    Clue("segfault", r"(?P<name>[^\s\[]{1,64})\[(?P<pid>\d{1,9})\]: segfault at (?:.* in (?P<library>[^\[\s]+))?"),
    Clue("segfault", r"traps: (?P<name>[^\[]{1,64})\[(?P<pid>\d{1,9})\] (?:general protection|trap)(?:.* in (?P<library>[^\[\s]+))?"),
    Clue("hung-task", r"task (?P<name>\S+):(?P<pid>\d+) blocked for more than (?P<seconds>\d+) seconds"),
    Clue("nfs", r"nfs\d?: server (?P<server>\S+) (?P<state>not responding|timed out)"),
    Clue("disk-error", r"I/O error, dev (?P<device>\w+)"),
    Clue("conntrack-full", r"nf_conntrack: table full"),
    Clue("syn-flood", r"Possible SYN flooding on port (?:\S+:)?(?P<port>\d+)"),
)
