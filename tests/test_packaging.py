"""What `pip install` of this project gives: every plugin, and no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import Job

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git*", ".venv", "build", "*.egg-info", "ncclcheck-runs", ".*_cache", ".hypothesis", ".gpu")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment into which a copy of the project was installed (not as editable)."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=LEFT_OUT)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    subprocess.run([folder / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check", folder / "source"], check=True)
    return folder / "env/bin"


def test_the_base_install_brings_every_plugin_and_no_torch(installed: Path) -> None:
    listed = subprocess.run([installed / "pip", "list", "--format", "freeze"], check=True, capture_output=True, text=True).stdout
    assert "ncclcheck==" in listed and "torch" not in listed
    known = subprocess.run([installed / "ncclcheck", "list"], check=True, capture_output=True, text=True).stdout
    for folder in ("probes", "faults"):
        for path in (ROOT / folder).glob("[a-z]*.py"):
            assert path.stem in known


def test_without_torch_the_nodes_are_looked_at_all_the_same(installed: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "host", "parity", "--nnodes", "1", "--format", "json", command=(str(installed / "ncclcheck"),))
    assert job.wait(200) in (0, 1), job.out + job.err  # what this machine has is its own affair: it was looked at
    assert [probe["name"] for probe in job.report["probes"]] == ["host", "parity"]
    assert {probe["status"] for probe in job.report["probes"]} <= {"pass", "degraded", "fail"} and "torch" not in job.report["summary"]


def test_without_torch_the_verdict_is_unknown_and_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "wiring", "--nnodes", "1", "--format", "json", command=(str(installed / "ncclcheck"),))
    assert job.wait(200) == 3, job.err
    (finding,) = job.report["findings"]
    assert finding["cause"] == "library-missing" and "ncclcheck[torch]" in finding["remedy"]
    assert job.report["status"] == "unknown" and "Traceback" not in job.err
