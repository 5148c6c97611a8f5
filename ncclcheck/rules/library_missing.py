"""A library or a symbol is missing, or the wrong copy of a library is loaded.

Blames
    fact not-installed @ b distribution=vllm probes=vllm_engine
    => b

Blames
    log rank3.log: ImportError: libnccl.so.2: cannot open shared object file: No such file or directory
    => 3

Blames
    log rank3.log: ImportError: /opt/env/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so: undefined symbol: ncclCommRegister
    log rank3.log: python: symbol lookup error: /opt/env/lib/libtorch_cuda.so: undefined symbol: ncclCommSplit
    => 3

Blames
    log rank3.log: ERROR 03-02 10:11:12 pynccl.py:44] Failed to load NCCL library from libnccl.so.2 .It is expected if you are not running on
    => 3

Blames
    log rank3.log: ./all_reduce_perf: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file or directory
    log rank3.log: ImportError: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by /opt/env/lib/libfoo.so)
    => 3

Blames
    log rank3.log: RuntimeError: Distributed package doesn't have NCCL built in
    => 3

Blames
    log rank3.log: node-a:311:405 [0] init.cc:80 NCCL WARN NCCL library is too old. This application was compiled with NCCL version 22809, but is
    => 3

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1

Spares
    log a.log: NCCL INFO NET/Plugin : Plugin load (libnccl-net.so) returned 2 : libnccl-net.so: cannot open shared object file: No such file or
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_died_exception", "missing_rank_at_rendezvous", "rank_exited_early")

COPY = (
    "ldd $(python -c 'import torch; print(torch.__path__[0])')/lib/libtorch_cuda.so | grep -E 'nccl|not found'; echo $LD_LIBRARY_PATH $LD_PRELOAD; "
)

READS = (
    Statement(
        r"(?:Import|OS)Error: (?P<library>(?!libcuda\.so|libnvidia-ml)[\w.+/-]+\.so[\w.]*): cannot open shared object file",
        "{who} cannot load {library}: it is not there",
        COPY + "install what holds {library} (libnccl: pip install nvidia-nccl-cu12, or VLLM_NCCL_SO_PATH), or add its folder to LD_LIBRARY_PATH",
        0.93,
    ),
    Statement(
        r"error while loading shared libraries: (?P<library>(?!libcuda\.so|libnvidia-ml)[\w.+/-]+): cannot open",
        "{who} cannot load {library}: it is not there",
        "ldconfig -p | grep {library}; export LD_LIBRARY_PATH=<its folder>:$LD_LIBRARY_PATH   # or install its package",
        0.93,
    ),
    Statement(
        r"(?:ImportError|OSError|AttributeError|symbol lookup error): .*undefined symbol: (?P<symbol>(?!nvml)\w+)",
        "{who} loads the wrong copy of a library: the symbol {symbol} is not in it",
        COPY + "unset LD_LIBRARY_PATH LD_PRELOAD, or pip install the builds that belong together (torch, nvidia-nccl-cu12, the extension)",
        0.92,
    ),
    Statement(
        r"Failed to load NCCL library from (?P<library>\S+)",
        "{who} cannot load the NCCL library {library}",
        (
            "export VLLM_NCCL_SO_PATH=$(python -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])')/lib/libnccl.so.2   # or pip install "
            "nvidia-nccl-cu12"
        ),
        0.93,
    ),
    Statement(
        r"version `(?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found",
        "{who} loads a C or C++ library that is too old: {version} is not in it",
        (
            "strings $(gcc -print-file-name=libstdc++.so.6) | grep GLIBCXX; conda install -c conda-forge libstdcxx-ng, or an image with a newer "
            "distribution"
        ),
        0.9,
    ),
    Statement(
        r"Distributed package doesn't have NCCL built[ -]in",
        "{who} runs a torch without NCCL",
        (
            "python -c 'import torch; print(torch.version.cuda)'; pip install the CUDA build of torch (--index-url "
            "https://download.pytorch.org/whl/cu128)"
        ),
        0.95,
    ),
    Statement(
        r"NCCL library is (?:too old|not backwards compatible)|The application was compiled with too old version of NCCL",
        "{who} loads another NCCL library than the program was built with",
        COPY + "pip install the nvidia-nccl-cu12 that torch asks for; unset LD_LIBRARY_PATH",
        0.9,
    ),
)


def check(run: Run) -> list[Finding]:
    """Distributions that a probe needs and some hosts lack: one finding per distribution."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for fact in run.of("not-installed"):
        name = fact.get("distribution")
        lacking.setdefault((name, fact.get("need") or name), []).append(fact.host or "this node")
    return [
        Finding(
            "library-missing",
            f"{need} is not installed on {', '.join(hosts)}",
            Culprit(hosts=hosts),
            0.97,
            reading.quote(*(fact for fact in run.of("not-installed") if fact.get("distribution") == name)),
            f"pip install {word(f'ncclcheck[{name}]')} there, into the environment that ncclcheck runs from",
        )
        for (name, need), hosts in lacking.items()
    ]
