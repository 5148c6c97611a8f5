"""Two nodes meet with a secret that they share and without one do not; and nothing that they start or write holds it."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import PYTHON, Host, TwoHosts
from running import SOON, Job, environments, until

from ncclcheck import run_token

pytestmark = pytest.mark.slow

PORTS = itertools.count(29850)
NOBODY = 65534


def meet(*words: str) -> tuple[str, ...]:
    return (*words, "--nnodes", "2", "--nproc-per-node", "1", "--master", f"10.77.0.1:{next(PORTS)}", "--format", "json")


def at(home: Path, token: str = "") -> dict[str, str]:
    """The environment of a user who has this home, and in it nothing that others gave."""
    home.mkdir(exist_ok=True)
    return {"HOME": str(home), "XDG_CONFIG_HOME": "", "NCCLCHECK_TOKEN": token}


def kept_in(home: Path) -> str:
    return (home / ".config/ncclcheck/token").read_text().strip()


def words_of(pid: int) -> bytes:
    """A process's arguments; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def shown_by(pid: int, secret: bytes) -> list[str]:
    """Where the kernel shows a secret to others: in a process's arguments or environment."""
    found = []
    for part in ("cmdline", "environ"):
        try:
            found += [f"{part} of {pid}: {words_of(pid)[:200]!r}"] * (secret in Path(f"/proc/{pid}/{part}").read_bytes())
        except OSError:  # it has ended
            continue
    return found


def watched(hosts: TwoHosts, secret: str, own: dict[int, str], jobs: list[Job]) -> tuple[set[str], set[str]]:
    """What showed a secret while these jobs ran, and the programs that were looked at; `own` are processes that were started with it."""
    shown: set[str] = set()
    programs: set[str] = set()
    copies = {words_of(pid): part for pid, part in own.items()}  # a child that has not become another program yet is a copy of its parent

    def over() -> bool:
        for pid, environ in environments():
            if hosts.mark.encode() in environ:
                words = words_of(pid)  # before its environment is read: meanwhile it may become another program
                if not words:  # it is just becoming one, or has ended
                    continue
                known = own.get(pid, copies.get(words))
                shown.update(where for where in shown_by(pid, secret.encode()) if known != where.split()[0])
                try:
                    programs.update(re.findall(r"-m[\0 ](ncclcheck[\w.]*)", Path(f"/proc/{pid}/cmdline").read_text(errors="replace")))
                except OSError:
                    continue
        return all(job.process.poll() is not None for job in jobs)

    until(over, 280, "the end of both nodes")
    return shown, programs


def written(job: Job, secret: str) -> list[str]:
    """Files of a job, its outputs and its run directory, that hold a secret."""
    files = [path for path in job.folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def test_nodes_that_share_a_home_folder_and_start_at_once_get_one_token_and_nothing_shows_it(two_hosts: TwoHosts, tmp_path: Path) -> None:
    env, words = at(tmp_path / "home"), meet("probe", "host", "wiring", "bandwidth", "--budget", "1s", "--allow-degraded")
    jobs = [two_hosts.start(host, *words, "--node-rank", str(rank), env=env) for rank, host in enumerate(two_hosts.hosts)]
    token = until(lambda: (tmp_path / "home/.config/ncclcheck/token").exists() and kept_in(tmp_path / "home"), SOON, "a token")
    shown, programs = watched(two_hosts, token, {}, jobs)
    assert [job.process.returncode for job in jobs] == [0, 0], "\n".join(job.out + job.err for job in jobs)
    assert shown == set() and {"ncclcheck.rank", "ncclcheck.torchrun"} <= programs
    assert [written(job, token) for job in jobs] == [[], []]
    assert os.listdir(tmp_path / "home/.config/ncclcheck") == ["token"]
    assert "made a token for your runs" in jobs[0].err and "insecure" not in jobs[0].report["run"]


def test_what_a_user_exports_reaches_no_process_that_a_node_starts(two_hosts: TwoHosts, tmp_path: Path) -> None:
    token = run_token.fresh().text
    words = meet("probe", "host", "wiring", "bandwidth", "--budget", "1s", "--allow-degraded")
    jobs = [two_hosts.start(host, *words, "--node-rank", str(r), env=at(tmp_path / "home", token)) for r, host in enumerate(two_hosts.hosts)]
    shown, programs = watched(two_hosts, token, {job.process.pid: "environ" for job in jobs}, jobs)
    assert [job.process.returncode for job in jobs] == [0, 0], "\n".join(job.out + job.err for job in jobs)
    assert shown == set() and "ncclcheck.rank" in programs
    assert [written(job, token) for job in jobs] == [[], []] and not (tmp_path / "home/.config").exists()


@pytest.mark.timeout(400)
def test_the_runs_of_a_drill_share_a_token_that_nothing_shows(two_hosts: TwoHosts, tmp_path: Path) -> None:
    token = run_token.fresh().text
    words = meet("drill", "kill")
    jobs = [two_hosts.start(host, *words, "--node-rank", str(r), env=at(tmp_path / "home", token)) for r, host in enumerate(two_hosts.hosts)]
    shown, programs = watched(two_hosts, token, {job.process.pid: "environ" for job in jobs}, jobs)
    assert [job.process.returncode for job in jobs] == [0, 0], jobs[0].out + jobs[0].err + jobs[1].err
    assert shown == set() and "ncclcheck.rank" in programs
    assert [written(job, token) for job in jobs] == [[], []]


def test_a_node_without_a_token_says_so_at_once_and_goes_on_when_it_gets_one(two_hosts: TwoHosts, tmp_path: Path) -> None:
    words = meet("probe", "wiring", "--roll-call-timeout", "3m")
    first = two_hosts.start(two_hosts.a, *words, "--node-rank", "0", env=at(tmp_path / "a"))
    second = two_hosts.start(two_hosts.b, *words, "--node-rank", "1", env=at(tmp_path / "b"))
    until(lambda: "this node has no token" in second.err, SOON, "that node 1 says it")
    assert "do: mkdir -p -m 700 ~/.config/ncclcheck; scp -p 10.77.0.1:.config/ncclcheck/token ~/.config/ncclcheck/" in second.err
    until(lambda: "waiting for node 1" in first.err, SOON, "node 0 to wait")
    assert kept_in(tmp_path / "a") not in first.err
    shutil.copytree(tmp_path / "a/.config", tmp_path / "b/.config")
    assert [job.wait(200) for job in (first, second)] == [0, 0], first.err + second.err


def test_a_node_that_gets_no_token_ends_with_that_as_its_finding(two_hosts: TwoHosts, tmp_path: Path) -> None:
    job = two_hosts.start(two_hosts.b, *meet("probe", "wiring", "--roll-call-timeout", "2s"), "--node-rank", "1", env=at(tmp_path / "b"))
    assert job.wait(SOON) == 3, job.err
    (finding,) = job.report["findings"]
    assert (job.report["status"], finding["cause"], finding["culprit"]["hosts"]) == ("unknown", "no-token", ["node-b"])
    assert finding["title"] in job.report["summary"] and str(tmp_path / "b/.config/ncclcheck/token") in finding["title"]
    assert "scp -p 10.77.0.1:.config/ncclcheck/token" in finding["remedy"] and finding["evidence"]
    assert not (tmp_path / "b/.config").exists()  # only node 0 makes one


def test_a_drill_on_a_node_without_a_token_ends_before_its_first_run(two_hosts: TwoHosts, tmp_path: Path) -> None:
    job = two_hosts.start(two_hosts.b, *meet("drill", "kill", "--roll-call-timeout", "2s"), "--node-rank", "1", env=at(tmp_path / "b"))
    assert job.wait(SOON) == 3 and "no-token" in job.err and "do: mkdir" in job.err and job.out == ""
    assert list(job.folder.glob("ncclcheck-runs/*")) == []


def test_another_token_is_said_by_node_0_at_once(two_hosts: TwoHosts, tmp_path: Path) -> None:
    words = meet("probe", "wiring", "--roll-call-timeout", "3m")
    first = two_hosts.start(two_hosts.a, *words, "--node-rank", "0", env=at(tmp_path / "a"))
    second = two_hosts.start(two_hosts.b, *words, "--node-rank", "1", env=at(tmp_path / "b", "another-secret-of-theirs"))
    try:
        until(lambda: "10.77.0.2 knocked with another run token and was refused" in first.err, SOON, "that node 0 says it")
        assert f"comes from {tmp_path / 'a/.config/ncclcheck/token'}" in first.err
        assert first.process.poll() is None and second.process.poll() is None
    finally:
        first.kill()
        second.kill()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may use, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="insecure-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(host: Host, folder: Path, *words: str) -> Job:
    """Run on a host as a user who has no right but to read: the interpreter may lie in root's home."""
    there = folder / host.name
    there.mkdir()
    there.chmod(0o777)
    read = "+dac_read_search"
    lower = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={read}", f"--ambient-caps={read}")
    env = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": host.interface, "HOME": str(there), "TMPDIR": str(there)}
    return Job(there, *words, command=(*host.enter, "env", f"--chdir={there}", *lower, *PYTHON), env=env)


def test_without_a_secret_every_verdict_says_so(two_hosts: TwoHosts, open_folder: Path) -> None:
    words = meet("probe", "wiring", "--insecure")
    jobs = [as_nobody(host, open_folder, *words, "--node-rank", str(rank)) for rank, host in enumerate(two_hosts.hosts)]
    try:
        assert [job.wait(200) for job in jobs] == [0, 0], "\n".join(job.out + job.err for job in jobs)
    finally:
        for job in jobs:
            job.kill()
    for job in jobs:
        assert job.report["status"] == "ready" and job.report["summary"].endswith("; insecure: anybody on the network could take part")
        assert job.report["run"]["insecure"] == "insecure: anybody on the network could take part"
