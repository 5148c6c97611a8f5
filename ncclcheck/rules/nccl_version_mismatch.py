"""Ranks load different releases of NCCL: what one sends while they find each other, another cannot read.

Releases of NCCL do not speak with each other. Each rank must load the same libnccl: the one in its own torch, unless LD_LIBRARY_PATH,
LD_PRELOAD or VLLM_NCCL_SO_PATH brings another one in.

Blames
    log a.log: node-a:311:405 [0] init.cc:900 NCCL WARN Mismatched NCCL version detected : rank 0 version 21805 rank 1 version 22005
    => 0 1

Blames
    log a.log: node-a:311:405 [0] bootstrap.cc:130 NCCL WARN NCCL version mismatch with remote peer 10.0.0.2<41000> (local: 22703, remote 22809)
    => node-a

Blames
    log node-a.log: node-a:311:405 [0] NCCL INFO NCCL version 2.21.5+cuda12.4
    log node-b.log: node-b:311:405 [0] NCCL INFO NCCL version 2.20.5+cuda12.4
    => node-b

Blames
    log a.log: node-a:311:405 [0] bootstrap.cc:77 NCCL WARN Message truncated : received 1024 bytes instead of 256
    log a.log: node-a:311:405 [0] misc/socket.cc:330 NCCL WARN socketFinalizeAccept: wrong type 3 != 4
    => -

Spares
    log node-a.log: node-a:311:405 [0] NCCL INFO NCCL version 2.21.5+cuda12.4
    log node-b.log: node-b:311:405 [0] NCCL INFO NCCL version 2.21.5+cuda12.1
"""

from __future__ import annotations

import re
from collections import Counter

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = (
    "peer_reset",
    "wrong_interface",
    "missing_rank_at_rendezvous",
    "world_size_mismatch",
    "rank_died_exception",
    "network_unreachable",
    "rank_stuck_in_python",
    "store_lost",
)

REMEDY = (
    "the same version of NCCL everywhere, on every node: python -c 'import torch; print(torch.cuda.nccl.version())'; pip freeze | grep nccl "
    "(nvidia-nccl-cu12); echo $LD_LIBRARY_PATH $LD_PRELOAD $VLLM_NCCL_SO_PATH; then pip install the same nvidia-nccl-cu12==X, or unset what loads "
    "another copy"
)

READS = (
    Statement(
        r"Mismatched NCCL version detected : rank (?P<rank>\d+) version (?P<version>\d+) rank (?P<rank2>\d+) version (?P<version2>\d+)",
        "ranks load different NCCL versions: {version} and {version2}",
        REMEDY,
        0.97,
    ),
    Statement(
        r"NCCL version mismatch with remote peer (?P<peer>\S+) \(local: (?P<version>[\w.]+), remote (?P<version2>[\w.]+)\)",
        "{who} runs NCCL {version} and its peer {version2}",
        REMEDY,
        0.97,
        blames="host",
    ),
    Statement(
        r"(?<!NET/Socket : )(?<!peer )\bMessage truncated : received \d+(?:,\d+)? bytes instead of",
        "ranks cannot read each other's messages while they find each other: different NCCL versions, or a stranger on the port",
        REMEDY,
        0.6,
        "nobody",
    ),
    Statement(
        r"socketFinalizeAccept.*wrong type \d+ != ",
        "a rank was called by a peer that speaks another protocol: different NCCL versions",
        REMEDY,
        0.6,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """Speakers that announce different versions; the culprits are those with the rarer one, the older where they are as many."""
    spoken: dict[tuple[object, ...], dict[str, Fact]] = {}
    for fact in run.of("nccl-version"):
        file = fact.source.file if fact.source else ""
        spoken.setdefault((fact.host or file, fact.rank, fact.pid), {}).setdefault(str(fact.get("version")), fact)
    single = [next(iter(versions.items())) for versions in spoken.values() if len(versions) == 1]
    counts = Counter(version for version, _ in single)
    if len(counts) < 2:
        return []
    odd = min(counts, key=lambda version: (counts[version], [int(part) for part in re.findall(r"\d+", version)]))
    facts = [fact for version, fact in single if version == odd]
    first = dict(reversed(single))  # version -> who said it first
    others = [first[other] for other in counts if other != odd]
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    apart = {fact.host for fact in others}.isdisjoint(hosts)  # on one host they may belong to different jobs
    hosts = hosts if apart else []
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None}) if not hosts else []
    where = f" ({odd} on {', '.join(hosts)})" if hosts else ""
    title = f"ranks load different NCCL versions: {', '.join(sorted(counts))}{where}"
    return [
        Finding(
            "nccl-version-mismatch",
            title,
            Culprit(ranks=ranks or None, hosts=hosts or None),
            0.92 if apart else 0.55,
            reading.quote(facts[0], *others),
            REMEDY,
        )
    ]
