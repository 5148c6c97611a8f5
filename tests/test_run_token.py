"""A run's token is a secret: made well, kept from others, refused where it is none, and never shown."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, Job, free_port

from ncclcheck import cluster as clusters
from ncclcheck import run_token, secrets, token_sharing
from ncclcheck.printing import Usage
from ncclcheck.report import json as as_json

NOTHING = {"token": None, "token_file": None, "insecure": False}
GOOD = "a-secret-of-enough-letters"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which nothing is."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def kept(folder: Path, text: str = GOOD, mode: int = 0o600) -> Path:
    path = folder / "kept"
    path.write_text(f"{text}\n")
    path.chmod(mode)
    return path


def refused(**given: object) -> str:
    with pytest.raises(Usage) as caught:
        run_token.given({**NOTHING, **given})
    return str(caught.value)


def test_a_key_is_slow_to_derive_and_belongs_to_its_token() -> None:
    key = run_token.derive_key(GOOD)
    slow = hashlib.scrypt(GOOD.encode(), salt=b"ncclcheck control plane 2", n=2**15, r=8, p=1, maxmem=2**26, dklen=32)
    assert key == slow == run_token.derive_key(GOOD) and len(key) == 32
    assert run_token.derive_key(GOOD + "s") != key


def test_tokens_that_are_made_are_random_and_show_what_they_are() -> None:
    made = {run_token.fresh().text for _ in range(100)}
    assert len(made) == 100 and all(re.fullmatch(r"ncct_[0-9a-f]{32}", text) for text in made)
    assert GOOD not in repr(run_token.Token(GOOD, "here"))


def test_an_option_goes_before_a_file_and_both_before_what_is_at_home(home: Path) -> None:
    assert run_token.given(NOTHING) is None
    own = run_token.own()
    other = kept(home, "another-good-secret")
    assert run_token.given(NOTHING) == own and own.source == str(home / ".config/ncclcheck/token")
    assert run_token.given({**NOTHING, "token_file": str(other)}) == run_token.Token("another-good-secret", str(other))
    found = run_token.given({**NOTHING, "token_file": str(other), "token": GOOD})
    assert found and found.text == GOOD


def test_a_token_at_home_is_for_its_user_only_and_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        own = run_token.own()
    finally:
        os.umask(before)
    file = home / ".config/ncclcheck/token"
    assert file.read_text() == f"{own.text}\n" and run_token.own() == own
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert os.listdir(file.parent) == ["token"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    assert run_token.own() != own and (home / "elsewhere/ncclcheck/token").exists()


def test_of_many_that_make_a_token_at_once_all_get_the_same(home: Path) -> None:
    script = "import sys\nfrom ncclcheck import run_token\nsys.stdin.read()\nprint(run_token.own().text)"
    makers = [subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(12)]
    for maker in makers:
        assert maker.stdin
        maker.stdin.close()
    found = []
    for maker in makers:
        assert maker.stdout
        found.append(maker.stdout.read())
        assert maker.wait(SOON) == 0
    assert len(set(found)) == 1 and os.listdir(home / ".config/ncclcheck") == ["token"]


@pytest.mark.parametrize(
    "text, said", [("short", "has 5 characters"), ("two words are not one", "not one word"), ("a" * 15 + "\x1b", "not one word")]
)
def test_what_can_be_guessed_is_refused_with_the_line_that_makes_a_better_one(text: str, said: str, home: Path) -> None:
    for message in (refused(token=text), refused(token_file=str(kept(home, text)))):
        assert said in message and "export NCCLCHECK_TOKEN=$(ncclcheck token)" in message and text not in message


@pytest.mark.parametrize(
    "mode, said", [(0o644, "read by others"), (0o640, "read by others"), (0o620, "written by others"), (0o602, "written by others")]
)
def test_a_file_that_others_may_read_or_write_is_refused(mode: int, said: str, home: Path) -> None:
    assert said in refused(token_file=str(kept(home, mode=mode)))


def test_what_is_no_plain_file_is_refused_at_once(home: Path) -> None:
    os.mkfifo(home / "pipe", 0o600)
    assert "is no plain file" in refused(token_file=str(home / "pipe"))
    assert "No such file" in refused(token_file=str(home / "nothing"))
    assert refused(token_file=str(home))


@AS_ROOT
def test_a_file_of_another_user_is_refused_also_behind_a_link_of_ours(home: Path) -> None:
    file = kept(home)
    os.chown(file, 12345, 12345)
    (home / "link").symlink_to(file)
    assert "another user (uid 12345)" in refused(token_file=str(home / "link"))


@AS_ROOT
def test_a_secret_is_read_as_kubernetes_mounts_it_read_only_and_behind_links(tmp_path: Path) -> None:
    """The same file is refused before its mount is read-only: then whoever may write there could choose the token."""
    read = "import sys; from ncclcheck import run_token; print(run_token.given(dict(insecure=False, token=None, token_file=sys.argv[1])).text)"
    script = f"""
mount -t tmpfs secret {tmp_path} && cd {tmp_path} && mkdir ..1 && echo {GOOD} > ..1/token && chmod 644 ..1/token
ln -s ..1 ..data && ln -s ..data/token token
{sys.executable} -c '{read}' {tmp_path}/token; mount -o remount,bind,ro {tmp_path}; {sys.executable} -c '{read}' {tmp_path}/token
"""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=SOON)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.stdout == f"{GOOD}\n" and "can be read by others" in done.stderr


def test_a_home_in_which_nothing_can_be_kept_is_said_with_what_to_do(home: Path) -> None:
    (home / ".config").write_text("not a folder")
    with pytest.raises(Usage, match="set NCCLCHECK_TOKEN on every node"):
        run_token.own()


@pytest.mark.parametrize("source", ["flags", "torchrun", "slurm", "mpi", "kubernetes"])
def test_the_line_that_hands_a_token_on_survives_masking_and_says_no_token(source: str, home: Path) -> None:
    line = token_sharing.handed_on(clusters.Cluster(2, 1, "10.0.0.1", 29600, 1, source=source))
    assert secrets.mask(line) == line and run_token.own().text not in line
    assert "token" in line


def test_a_copied_token_is_one_that_is_used(home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line for two machines, with a `scp` that only copies here."""
    own, elsewhere = run_token.own(), tmp_path_factory.mktemp("elsewhere")
    tools = tmp_path_factory.mktemp("tools")
    (tools / "scp").write_text(f'#!/bin/sh\n[ "$1" = -p ] && exec cp -p {home}/"${{2#10.0.0.1:}}" "$3"\n')
    (tools / "scp").chmod(0o755)
    line = token_sharing.handed_on(clusters.Cluster(2, 1, "10.0.0.1", 29600, 1))
    subprocess.run(["sh", "-c", line], env={"HOME": str(elsewhere), "PATH": f"{tools}:{os.environ['PATH']}"}, check=True)
    monkeypatch.setenv("HOME", str(elsewhere))
    found = run_token.given(NOTHING)
    assert found and found.text == own.text


def test_a_token_that_comes_while_a_node_looks_for_it_is_found(home: Path) -> None:
    said: list[str] = []

    async def both() -> run_token.Token | None:
        cluster = clusters.Cluster(2, 1, "10.0.0.1", 29600, 1)
        looking = asyncio.create_task(token_sharing.obtain(cluster, False, time.monotonic() + SOON, said.append))
        while not said:
            await asyncio.sleep(0.02)
        run_token.make_at_home()
        return await looking

    assert asyncio.run(both()) == run_token.own()
    assert "neither NCCLCHECK_TOKEN nor" in said[0] and "scp -p 10.0.0.1:.config/ncclcheck/token" in said[1]


def test_tokens_are_masked_wherever_they_appear() -> None:
    made = run_token.fresh().text
    text = {"lines": [f"NCCLCHECK_TOKEN={GOOD}", f"--token {GOOD}", f"it was {made}"], "environment": {"NCCLCHECK_TOKEN": GOOD}}
    masked = as_json.dumps(secrets.mask_all(text))
    assert GOOD not in masked and made not in masked


@pytest.mark.parametrize(
    "words, said",
    [
        ("probe --nnodes 2 --master 127.0.0.1 --token short", "must be a secret of 16 or more"),
        ("drill kill --nnodes 2 --master 127.0.0.1 --token short", "must be a secret of 16 or more"),
        ("triage --live --nnodes 2 --master 127.0.0.1 --token short", "must be a secret of 16 or more"),
        ("probe --nnodes 2 --master 127.0.0.1 --token-file nowhere", "cannot read the token file nowhere: No such file"),
        (f"probe --insecure --token {GOOD} --nnodes 2 --master 127.0.0.1", "--insecure means that there is no token"),
    ],
)
def test_a_token_that_is_none_is_wrong_usage(words: str, said: str, tmp_path: Path) -> None:
    job = Job(tmp_path, *words.split())
    assert job.wait(SOON) == 2 and said in job.err


@AS_ROOT
@pytest.mark.parametrize("command", ["probe", "drill", "triage --live"])
def test_root_may_not_go_without_a_secret(command: str, tmp_path: Path) -> None:
    job = Job(tmp_path, *command.split(), "--insecure", "--nnodes", "2", "--master", "127.0.0.1")
    assert job.wait(SOON) == 2 and "--insecure is refused as root" in job.err


def test_the_token_of_a_user_is_printed_and_made_once(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / name, "token", env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}) for name in ("one", "two")]
    assert [job.wait(SOON) for job in jobs] == [0, 0]
    assert jobs[0].out == jobs[1].out == (tmp_path / ".config/ncclcheck/token").read_text()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of one."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


@pytest.mark.slow
def test_the_lines_that_node_0_shows_to_a_person_are_what_the_other_types(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    common = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "XDG_CONFIG_HOME": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    common = {name: value for name, value in common.items() if not name.startswith(("NCCLCHECK_", "SLURM_"))}
    words = ["probe", "wiring", "--nnodes", "2", "--node-rank", "0", "--master", f"127.0.0.1:{free_port()}", "--nproc-per-node", "1"]
    first_home, second_home = tmp_path / "first", tmp_path / "second"
    for folder in (first_home, second_home):
        folder.mkdir()
    first = subprocess.Popen(
        [sys.executable, "-m", "ncclcheck", *words], cwd=first_home, stdout=subprocess.PIPE, stderr=theirs, env=common | {"HOME": str(first_home)}
    )
    os.close(theirs)
    shown = ""
    typed = re.compile(r"^ncclcheck:     (export .*|ncclcheck .*)\r$", re.MULTILINE)
    while len(typed.findall(shown)) < 2:
        shown += os.read(ours, 4096).decode()
    token = (first_home / ".config/ncclcheck/token").read_text().strip()
    lines = typed.findall(shown)
    assert lines[0] == f"export NCCLCHECK_TOKEN={token}" and lines[1].endswith("--node-rank 1")
    second = subprocess.run(
        ["sh", "-c", "\n".join(lines)], cwd=second_home, capture_output=True, text=True, env=common | {"HOME": str(second_home)}, timeout=200
    )
    out, _ = first.communicate(timeout=SOON)
    assert (first.returncode, second.returncode) == (0, 0), second.stdout + second.stderr
    assert token not in out.decode() + second.stdout + second.stderr
    assert not (second_home / ".config").exists()
    for folder in (first_home, second_home):
        left = [path for path in (folder / "ncclcheck-runs").rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
        assert left == []
