"""What vLLM calls in each of its processes: it acts in a run of ours, on the CPU platform, once, and nowhere else."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LOADED = """
import vllm.plugins
vllm.plugins.load_general_plugins()
from ncclcheck import vllm_cpu
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator, _CPUSHMDistributed
print(_CPUSHMDistributed.make_group_name.__module__)
"""
NAMES = """
import os
from types import SimpleNamespace
os.environ["VLLM_DIST_IDENT"] = "//"
group = SimpleNamespace(unique_name="tp:0", ranks=[0, 1])
before = _CPUSHMDistributed.make_group_name, CpuCommunicator.__init__
vllm_cpu.plugin()
assert before == (_CPUSHMDistributed.make_group_name, CpuCommunicator.__init__)
assert list(vllm_cpu.corrected()) == [], "no group was made yet"
names = {_CPUSHMDistributed.make_group_name(group) for _ in range(2)}
print(list(vllm_cpu.corrected()))
print(*names, vllm_cpu.segments())
"""
ELSEWHERE = """
import vllm.platforms
from vllm.platforms.interface import UnspecifiedPlatform
vllm.platforms.current_platform = UnspecifiedPlatform()
"""


def python(script: str, folder: Path, **environ: str) -> str:
    """What a process prints in which vLLM finds the entry points of setup.cfg as those of an installed distribution."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    installed = folder / "ncclcheck-0.1.0.dist-info"
    installed.mkdir(exist_ok=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: ncclcheck\nVersion: 0.1.0\n")
    points = parser["options.entry_points"]
    (installed / "entry_points.txt").write_text("".join(f"[{group}]{points[group]}\n" for group in points))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NCCLCHECK_", "VLLM_"))}
    environment = clean | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""} | environ
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_outside_of_a_run_it_imports_neither_torch_nor_vllm(tmp_path: Path) -> None:
    script = "import sys; from ncclcheck.vllm_cpu import plugin; plugin(); print([name for name in ('torch', 'vllm') if name in sys.modules])"
    assert python(script, tmp_path) == "[]\n"


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@needs_vllm
@pytest.mark.slow
def test_vllm_calls_it_in_a_run_and_it_corrects_once(tmp_path: Path) -> None:
    corrected, names = python(LOADED + NAMES, tmp_path, NCCLCHECK_RUN="some-run").splitlines()[-2:]
    assert corrected.count("shared memory is named after the job and the node") == 1
    name, segments = names.split()
    assert name.startswith(segments) and segments == "ncclcheck-some-run-"
    assert "/" not in name, "it is the name of a file in /dev/shm"


@needs_vllm
@pytest.mark.slow
def test_on_another_platform_it_leaves_vllm_alone(tmp_path: Path) -> None:
    assert python(ELSEWHERE + LOADED, tmp_path, NCCLCHECK_RUN="some-run").splitlines()[-1].startswith("vllm.")


@needs_vllm
@pytest.mark.slow
def test_vllm_of_others_is_not_corrected(tmp_path: Path) -> None:
    assert python(LOADED, tmp_path).splitlines()[-1].startswith("vllm.")
