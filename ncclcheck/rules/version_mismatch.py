"""Nodes run different releases of a program that must be the same everywhere.

Blames
    fact hello @ a conflict=protocol value=1 version=0.1.0
    fact hello @ b conflict=protocol value=2 version=0.2.0
    => a b

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=version text=3
    => b

Blames
    log node-a.log: RuntimeError: operator torchvision::nms does not exist
    => -

Blames
    log node-a.log: [rank0]: ImportError: cannot import name 'rotate' from 'flash_attn.layers' (/opt/flash_attn/layers.py)
    => 0

Blames
    log node-a.log: RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions.
    => node-a

Blames
    log node-a.log: RuntimeError: [enforce fail at gloo/transport/tcp/address.cc:45] sizeof(impl_) == bytes.size(). 136 vs 68
    => -

Blames
    log one/serve.log: INFO 03-02 10:00:01 api_server.py:912] vLLM API server version 0.6.4
    log two/serve.log: INFO 03-02 10:00:01 api_server.py:912] vLLM API server version 0.6.6
    => -

Spares
    fact hello @ a conflict=nnodes value=2 nnodes=2
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception",)
_SAME = (
    "pip list | grep -iE 'torch|nccl|vllm|ray|flash|transformers'   # on every node: they must have the same versions; "
    "pip install the releases that belong to this torch"
)
_AGENTS = "pip install the same version of ncclcheck on every node"
_KINDS = {"torch-version": "torch", "vllm-version": "vLLM", "driver": "the NVIDIA driver"}

READS = (
    Statement(
        r"operator torchvision::nms does not exist",
        "torchvision was built for another torch",
        "pip uninstall -y torchvision torchaudio torchcodec   # or install the builds that belong to this torch",
        0.92,
        "nobody",
    ),
    Statement(
        r"ImportError: cannot import name '(?P<name>[^']*)' from '(?P<module>[^']*)'",
        "{module} of this release has no {name}: packages do not fit",
        _SAME,
        0.8,
    ),
    Statement(
        r"sizeof\(impl_\) == bytes\.size\(\)",
        "Gloo got an address of another size than its own: the nodes run different releases of torch",
        _SAME,
        0.85,
        "nobody",
    ),
    Statement(
        r"PyTorch and \w+ were compiled with different CUDA",
        "torch and a package beside it were built for different CUDA versions",
        _SAME,
        0.9,
        "host",
    ),
)


def check(run: Run) -> list[Finding]:
    """Agents that speak different versions of the control plane's protocol, and hosts whose logs name different releases."""
    return [*_agents(run), *_releases(run)]


def _releases(run: Run) -> list[Finding]:
    result = []
    for kind, name in _KINDS.items():
        hosts = {fact.host: fact for fact in run.of(kind) if fact.host}
        known = bool(hosts)
        hosts = hosts or {fact.source.file: fact for fact in run.of(kind) if fact.source}
        versions = {str(fact.get("version")) for fact in hosts.values()}
        if len(versions) > 1:
            said = ", ".join(f"{host} has {fact.get('version')}" for host, fact in hosts.items())
            odd = [host for host, fact in hosts.items() if [f.get("version") for f in hosts.values()].count(fact.get("version")) * 2 < len(hosts)]
            facts = list(hosts.values())[:8]
            title = f"the nodes run different releases of {name}: {said}"
            culprit = Culprit(hosts=odd or list(hosts)) if known else Culprit()
            result.append(Finding("version-mismatch", title, culprit, 0.7 if known else 0.62, reading.quote(*facts), _SAME))
    return result


def _agents(run: Run) -> list[Finding]:
    answered = [
        Finding(
            "version-mismatch",
            f"{fact.get('text')}: {fact.host} runs another release of ncclcheck",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.97,
            reading.quote(fact),
            _AGENTS,
        )
        for fact in run.of("master")
        if fact.get("answer") == "version"
    ]
    facts = [fact for fact in run.of("hello") if fact.get("conflict") == "protocol"]
    if not facts:
        return answered
    said = ", ".join(f"{fact.host} runs {fact.get('version')}" for fact in facts)
    return [
        *answered,
        Finding(
            "version-mismatch",
            f"the nodes run releases of ncclcheck that cannot speak with each other: {said}",
            Culprit(hosts=[fact.host for fact in facts if fact.host]),
            0.97,
            reading.quote(*facts),
            _AGENTS,
        ),
    ]
