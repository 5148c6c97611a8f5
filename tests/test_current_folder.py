"""Nothing that lies in the current folder is run, whoever put it there: only what is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import SOON, free_port

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ("-P", "-c", "from ncclcheck.cli import main; main()")  # what the installed `ncclcheck` is
TRAPS = ("torch", "msgspec", "click", "zmq", "psutil", "sitecustomize", "usercustomize", "json", "vllm", "numpy")
SPRUNG = "import os\nopen(os.path.join(os.path.dirname(__file__), 'sprung'), 'a').write(__name__ + '\\n')\n"


def trapped(folder: Path, *names: str) -> Path:
    """A folder with modules that leave a trace when they are run."""
    for name in names:
        (folder / f"{name}.py").write_text(SPRUNG)
    (folder / "ncclcheck").mkdir()
    (folder / "ncclcheck" / "__init__.py").write_text(SPRUNG.replace("dirname(__file__)", "dirname(os.path.dirname(__file__))"))
    (folder / "config.json").write_text("{}")
    (folder / "a.log").write_text("[rank3]: OSError: [Errno 28] No space left on device\n")
    return folder


def sprung(folder: Path) -> str:
    return (folder / "sprung").read_text() if (folder / "sprung").exists() else ""


def run(folder: Path, *words: str, python: tuple[str, ...] = PROGRAM) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *python, *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=2 * SOON)


@pytest.mark.parametrize(
    ("words", "code"),
    [("triage a.log", 1), ("collect", 0), ("plan . --nodes 1 --gpus-per-node 1 --gpu H100", None), ("triage --live", None), ("list", 0)],
)
def test_no_command_runs_what_lies_in_the_current_folder(words: str, code: int | None, tmp_path: Path) -> None:
    done = run(trapped(tmp_path, *TRAPS), *words.split())
    assert (sprung(tmp_path), "Traceback" in done.stderr) == ("", False)
    assert code in (done.returncode, None), done.stderr


def test_a_probe_that_looks_at_the_node_runs_none_of_it_either(tmp_path: Path) -> None:
    done = run(trapped(tmp_path, *TRAPS), "probe", "host", "--nnodes", "1", "--nproc-per-node", "1", "--master", f"127.0.0.1:{free_port()}")
    assert sprung(tmp_path) == "" and "host" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_ranks_of_a_probe_run_none_of_it_either(tmp_path: Path) -> None:
    """Those that torchrun starts with `python -m`, too."""
    done = run(trapped(tmp_path, *TRAPS), "probe", "wiring", "--emulate", "2x1")
    assert (sprung(tmp_path), done.returncode) == ("", 0), done.stdout + done.stderr


def test_started_as_a_module_only_python_itself_has_looked_there(tmp_path: Path) -> None:
    """`python -m` puts the current folder first before anything of ours runs; a folder `ncclcheck` there is what was asked for."""
    trapped(tmp_path, "torch", "msgspec", "click", "zmq", "__future__")
    (tmp_path / "ncclcheck" / "__init__.py").unlink()
    (tmp_path / "ncclcheck").rmdir()
    done = run(tmp_path, "triage", "a.log", python=("-m", "ncclcheck"))
    assert (sprung(tmp_path), done.returncode) == ("", 1), done.stderr


def test_a_current_folder_that_was_removed_is_no_error(tmp_path: Path) -> None:
    (folder := tmp_path / "gone").mkdir()
    script = f"import os; os.rmdir({str(folder)!r}); import sys; sys.argv[1:] = ['list']; from ncclcheck.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_in_a_checkout_the_children_run_what_is_checked_out_there(tmp_path: Path) -> None:
    """Though it is not installed, or another one is."""
    (tmp_path / "ncclcheck").symlink_to(ROOT / "ncclcheck")
    child = "[sys.executable, '-P', '-c', 'import ncclcheck; print(ncclcheck.__file__)']"
    script = f"import subprocess, sys; from ncclcheck import interpreter; interpreter.leave_current_folder(); subprocess.run({child}, check=True)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=SOON)
    assert done.stdout.strip() == str(tmp_path / "ncclcheck" / "__init__.py"), done.stderr


def test_every_python_that_is_started_leaves_the_current_folder_out() -> None:
    """Either by interpreter.module, or by -I; what is executed anew has its own first command line."""
    started = [
        (path.name, line.strip())
        for folder in ("ncclcheck", "probes", "faults")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "sys.executable" in line and not re.search(r'"-I"|"-P"|sys\.orig_argv|Path\(sys\.executable\)|"executable": ', line)
    ]
    assert started == []
