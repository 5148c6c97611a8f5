"""GPUs announce that they can reach each other's memory and it does not work: NCCL hangs, or CUDA refuses.

Typical: PCIe ACS or an IOMMU that redirects the traffic through the root complex, virtual machines, consumer cards whose driver
announces P2P. All ranks of one host sit in the same first operation after "via P2P".

Blames
    log a.log: node-a:311:405 [0] transport/p2p.cc:270 NCCL WARN failed to open CUDA IPC handle : 1 invalid argument
    => node-a

Blames
    log a.log: node-a:311:405 [0] transport/p2p.cc:310 NCCL WARN failed to peer with device 1(=41000): 217 peer access is not supported between these
    => node-a

Blames
    log a.log: node-a:311:405 [0] graph/paths.cc:300 NCCL WARN P2P is disabled between NVLINK connected GPUs 1 and 2. This should not be the case
    => node-a

Blames
    log a.log: Mar  3 10:00:00 node-a kernel: nvidia 0000:41:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0030 address=0x2000 flags=0x0020]
    log a.log: Mar  3 10:00:00 node-a kernel: DMAR: [DMA Write] Request device [41:00.0] fault addr 39ffc000000 [fault reason 05] PTE Write access is
    => node-a

Blames
    log a.log: AMD-Vi: Event logged [IO_PAGE_FAULT device=09:00.0 domain=0x0013 address=0xf4139070 flags=0x0020]
    log a.log: node-a:311:405 [0] init.cc:179 NCCL WARN Missing "iommu=pt" from kernel command line which can lead to system instablity or hang!
    log a.log: node-a:311:405 [0] misc/ipcsocket.cc:270 NCCL WARN UDS: Sending data over socket nccl-socket-1-7f failed : Connection refused (111)
    => node-a

Blames
    log a.log: NotImplementedError: Using RTX 4000 series doesn't support faster communication broadband via P2P or IB. Please set
    => -

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
    log a.log: \t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 commId 0x9f3 - Init COMPLETE
    log a.log: node-a:312:406 [1] NCCL INFO comm 0x55e0 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 2000 commId 0x9f3 - Init COMPLETE
    => node-a

Blames
    log a.log: #   Rank  0 Pid  4102 on  node-a device  0 [0x01] NVIDIA GeForce RTX 3090
    log a.log: #   Rank  1 Pid  4102 on  node-a device  1 [0x24] NVIDIA GeForce RTX 3090
    => node-a

Spares
    log a.log: #   Rank  0 Pid  4102 on  node-a device  0 [0x01] NVIDIA GeForce RTX 3090
    log a.log: #   Rank  1 Pid  4102 on  node-a device  1 [0x24] NVIDIA GeForce RTX 3090
    log a.log:      1048576        262144     float     sum      -1    91.21   11.50   11.50      0

Spares
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via SHM/direct/direct
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 commId 0x9f3 - Init COMPLETE
    log a.log: node-a:312:406 [1] NCCL INFO comm 0x55e0 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 2000 commId 0x9f3 - Init COMPLETE
"""

from __future__ import annotations

import re

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

REMEDY = (
    "export NCCL_P2P_DISABLE=1   # proves it: then it must run; nvidia-smi topo -p2p r; lspci -vvv | grep ACSCtl (SrcValid+ : switch ACS off in the "
    "BIOS or with setpci); no iommu=on, VT-d or AMD-Vi on bare metal, or iommu=pt; update the NVIDIA driver"
)
CONSUMER = ("GeForce", "RTX 4090", "RTX 3090", "RTX 5090", "RTX A", "RTX 6000", "TITAN", "RTX PRO")
SILENCE = re.compile(
    r"nccl-version|pynccl|cuda-driver|bootstrap|ib-devices|ib-none|net|init|setting|via|device|world|(?:torch|vllm)-version|driver|interposer|memlock"
    r"|acs|last-line|limit|shm|gpu|topology|interface|route|kernel|timeout|position|collective-stack|stack|state"
)
"""What may be there besides: facts that say nothing of how the job went on."""

READS = (
    Statement(
        r"failed to open CUDA IPC handle : (?P<error>.*\S)", "{who} cannot map the memory of a GPU of its own host: {error}", REMEDY, 0.82, "host"
    ),
    Statement(
        r"failed to peer with device (?P<peer>\d+).*?: (?P<error>\d+ .*\S)",
        "a GPU of {who} cannot peer with GPU {peer}: {error}",
        REMEDY,
        0.85,
        "host",
    ),
    Statement(
        r"P2P is disabled between (?:NVLINK )?connected GPUs (?P<gpu>\d+) and (?P<gpu2>\d+)",
        "GPUs {gpu} and {gpu2} of {who} are wired to each other and P2P between them is off: probably hardware",
        "nvidia-smi nvlink -s; nvidia-smi topo -m; dmesg -T | grep -i xid; NCCL_P2P_DISABLE=1 works around it",
        0.8,
        "host",
    ),
    Statement(r"nvidia .*AMD-Vi: Event logged \[IO_PAGE_FAULT", "the IOMMU of {who} refuses what a GPU writes to its peers", REMEDY, 0.8, "host"),
    Statement(r"AMD-Vi: (?:Event logged \[)?IO_PAGE_FAULT device=", "the IOMMU of {who} refuses a device's access", REMEDY, 0.65, "host"),
    Statement(
        r'Missing "iommu=pt" from kernel command line',
        "the IOMMU of {who} is in the way of its GPUs: the kernel runs without iommu=pt",
        "add iommu=pt to GRUB_CMDLINE_LINUX, update-grub, reboot; until then export NCCL_P2P_DISABLE=1 (vLLM: --disable-custom-all-reduce)",
        0.6,
        "host",
    ),
    Statement(
        r"UDS: Sending data over socket .{0,100}failed ?: .{0,20}(?:Connection refused|No such file)",
        "processes on {who} cannot hand each other GPU memory: their containers do not share the network namespace",
        "hostNetwork (docker run --network=host) or one container for all ranks of a host; else NCCL_CUMEM_ENABLE=0 NCCL_P2P_DISABLE=1",
        0.6,
        "host",
    ),
    Statement(
        r"doesn't support faster communication (?:broadband )?via P2P or IB",
        "GPUs of this series cannot reach each other's memory, and NCCL is not told so",
        "export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1   # or start with `accelerate launch`, which sets them",
        0.9,
        "nobody",
    ),
    Clue("acs", r"ACSCtl:\s+(?P<control>SrcValid\+)"),
    Statement(r"DMAR: \[DMA (?:Read|Write).{0,60}fault addr", "the IOMMU of {who} refuses a device's access", REMEDY, 0.65, "host"),
)


def check(run: Run) -> list[Finding]:
    """One host, its communicator complete over P2P (or nccl-tests begun on consumer cards), and then no word of anything."""
    if run.dumps or any(not SILENCE.fullmatch(fact.kind) for fact in run.facts):
        return []
    facts = _redirected(run) or _silent_after_init(run) or _silent_table(run)
    hosts = {fact.host for fact in facts}
    if not facts or len(hosts) != 1:
        return []
    host = next(iter(hosts))
    sure = 0.75 if run.of("acs") else 0.6 if run.of("timeout") else 0.45
    title = f"all ranks of {host or 'the host'} are connected over GPU peer access (P2P) and then nothing more happens"
    return [Finding("p2p-broken", title, Culprit(hosts=[host] if host else None), sure, reading.quote(*facts[-3:]), REMEDY)]


def _redirected(run: Run) -> list[Fact]:
    """PCIe bridges that send the traffic between GPUs through the root complex (ACS), and NCCL counts on P2P."""
    over = _over_p2p(run)
    return [over[-1], *run.of("acs")[:1]] if over and run.of("acs") else []


def _over_p2p(run: Run) -> list[Fact]:
    return [fact for fact in run.of("via") if str(fact.get("transport", "")).startswith("P2P")]


def _silent_after_init(run: Run) -> list[Fact]:
    over = _over_p2p(run)
    complete = [fact for fact in run.of("init") if fact.get("phase") == "COMPLETE"]
    late = any(not isinstance(fact.get("seq"), int) or fact.get("seq") > 3 for fact in run.of("timeout"))
    everyone = complete and len({fact.get("cudaDev") if fact.rank is None else fact.rank for fact in complete}) == complete[0].get("nranks")
    return [over[-1], *complete] if over and everyone and not late else []


def _silent_table(run: Run) -> list[Fact]:
    devices = run.of("device")
    consumer = [fact for fact in devices if any(name in str(fact.get("name")) for name in CONSUMER)]
    return consumer if len(consumer) > 1 and len(consumer) == len(devices) else []
