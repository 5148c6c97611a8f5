"""Two ranks use the same GPU: each process chose its device without its local rank.

NCCL compares the PCI bus addresses of all ranks of a host and refuses the communicator (releases before 2.6 hang instead). Usual
reasons: no torch.cuda.set_device(local_rank), two launchers on one node, one CUDA_VISIBLE_DEVICES for all tasks, a scheduler that
starts one launcher per GPU and each launcher one rank per GPU.

Blames
    log a.log: node-a:311:405 [0] init.cc:795 NCCL WARN Duplicate GPU detected : rank 3 and rank 1 both on CUDA device 2a000
    => 1 3

Blames
    log a.log: node-a:311:405 [0] init.cc:1032 NCCL WARN Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1 to enable
    => node-a

Blames
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 0 nranks 2 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
    log a.log: node-a:312:406 [0] NCCL INFO comm 0x55e0 rank 1 nranks 2 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
    => 0 1

Spares
    log a.log: node-a:311:405 [0] NCCL INFO comm 0x55d0 rank 0 nranks 2 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
    log b.log: node-b:312:406 [0] NCCL INFO comm 0x55e0 rank 1 nranks 2 cudaDev 0 nvmlDev 2 busId a1000 commId 0x9f3 - Init START
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "p2p_broken", "peer_reset", "rank_exited_early", "missing_rank_at_rendezvous")

REMEDY = (
    "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before init_process_group; echo $CUDA_VISIBLE_DEVICES in every task; "
    "one launcher per node: srun --ntasks-per-node=1 torchrun --nproc-per-node=<GPUs> (not a launcher per GPU)"
)

READS = (
    Statement(
        r"Duplicate GPU detected : rank (?P<rank>\d+) and rank (?P<rank2>\d+) both on", "{who} share GPUs: two ranks use one device", REMEDY, 0.95
    ),
    Statement(r"Multiple Ranks are using the same GPU/Partition", "several ranks on {who} use one GPU", REMEDY, 0.9, blames="host"),
)


def check(run: Run) -> list[Finding]:
    """Processes of one communicator and one host that name the same bus address, where NCCL itself does not say it."""
    if any(fact.get("rule") == "duplicate_gpu" for fact in run.of("says")):
        return []
    users: dict[tuple[str, str, str], list[Fact]] = {}
    for fact in run.of("init"):
        if fact.host and fact.rank is not None and fact.get("busId") is not None and fact.get("phase") == "START":
            users.setdefault((fact.host, str(fact.get("commId", "")), str(fact.get("busId"))), []).append(fact)
    shared = [facts for facts in users.values() if len({fact.rank for fact in facts}) > 1 and len({fact.pid for fact in facts}) > 1]
    if not shared:
        return []
    facts = [fact for group in shared for fact in group]
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    sure = 0.85 if all(fact.get("commId") for fact in facts) else 0.6  # releases that do not name the communicator may tell of two jobs
    title = f"ranks {', '.join(map(str, ranks))} on {', '.join(hosts)} share GPUs: their bus addresses are the same"
    return [Finding("duplicate-gpu", title, Culprit(ranks=ranks, hosts=hosts), sure, reading.quote(*facts), REMEDY)]
