"""The two kinds of CPU on which vLLM's CPU build differs: it carries groups of one node in shared memory only where it has AVX-512 kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
CPUS = ("this CPU", "without AVX-512")


def environment(cpu: str) -> dict[str, str]:
    """What a process needs in its environment to run on one of `CPUS`."""
    hidden = [str(ROOT / "tests/fixtures/without_avx512")] if cpu == "without AVX-512" else []
    return {"PYTHONPATH": os.pathsep.join([*hidden, str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}


def within_a_node(cpu: str) -> str:
    """What carries vLLM's groups inside a node on such a CPU: vLLM itself is asked for its kernels."""
    script = "import torch, vllm._custom_ops; print(hasattr(torch.ops._C, 'init_shm_manager'))"
    done = _python(script, environment(cpu))
    shared = {"True": "shared memory", "False": "gloo"}[done.split()[-1]]
    assert not (cpu == "without AVX-512" and shared == "shared memory"), "AVX-512 is not hidden from vLLM"
    return shared


def _python(script: str, environ: Mapping[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **environ}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout
