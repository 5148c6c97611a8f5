"""The nodes hold different weights under one name: no error is raised, and the answers are wrong.

Another release of the model, a download that was cut short, or a file that was copied while it was written.

Blames
    log gpu-11.txt: 1111111111111111111111111111111111111111111111111111111111111111  model-00001-of-00002.safetensors
    log gpu-12.txt: 2222222222222222222222222222222222222222222222222222222222222222  model-00001-of-00002.safetensors
    => gpu-11 gpu-12

Blames
    log a.txt: 22222222222222222222222222222222  model-00001-of-00002.gguf
    log a.txt: 33333333333333333333333333333333  model-00001-of-00002.gguf
    => -

Spares
    log gpu-11.txt: 1111111111111111111111111111111111111111111111111111111111111111  model-00001-of-00002.safetensors
    log gpu-12.txt: 1111111111111111111111111111111111111111111111111111111111111111  /data/m/model-00001-of-00002.safetensors
    log gpu-12.txt: 2222222222222222222222222222222222222222222222222222222222222222  model-00002-of-00002.safetensors
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Fact, Finding, Run

_REMEDY = "sha256sum MODEL/*.safetensors on every node; copy the files that differ anew, and pin the release with --revision"


def check(run: Run) -> list[Finding]:
    """Files of one name with several digests; the hosts that are fewer are named where it is not a tie."""
    files: dict[str, dict[str, list[Fact]]] = {}
    for fact in run.of("digest"):
        files.setdefault(str(fact.get("file")).rsplit("/", 1)[-1], {}).setdefault(str(fact.get("digest")), []).append(fact)
    result = []
    for name, holders in files.items():
        hosts = {digest: {fact.host for fact in facts if fact.host} for digest, facts in holders.items()}
        if len(holders) < 2:
            continue
        evidence = [fact.source for facts in holders.values() for fact in facts[:1] if fact.source]
        if not any(hosts.values()):
            title = f"{name} stands in the report with {len(holders)} different digests: the nodes hold different files"
            result.append(Finding("weights-differ", title, Culprit(), 0.7, evidence, _REMEDY))
        if len(set().union(*hosts.values())) < 2:
            continue
        most = max(len(found) for found in hosts.values())
        odd = {digest for digest in hosts if len(hosts[digest]) < most} or set(hosts)
        culprits = sorted(set().union(*(hosts[digest] for digest in odd)))
        title = f"{name} is not the same file on every node: {' and '.join(culprits)} differ" + ("" if odd == set(hosts) else " from the others")
        result.append(Finding("weights-differ", title, Culprit(hosts=culprits), 0.9, evidence, _REMEDY))
    return result


READS = (Clue("digest", r"\b(?P<digest>[0-9a-f]{32,128}) [ *](?P<file>\S{1,300}\.(?:safetensors|gguf))"),)
