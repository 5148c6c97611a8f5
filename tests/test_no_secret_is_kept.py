"""Real runs and jobs are full of secrets, and none of these stands in what is kept or said of them: every byte is looked at."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import string
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from carried import CARRIERS
from running import SOON, Job, until

pytestmark = pytest.mark.slow

_choose = random.Random(12)
NAMES = (
    *("HF_TOKEN", "hf_token", "WANDB_API_KEY", "DATABASE_PASSWORD", "db_pw", "My.Odd-passWord", "REGISTRY_AUTH", "SLURM_JWT", "GITHUB_TOKEN_FOR_CI"),
    *(
        "NCCL_AUTH_TOKEN",
        "NCCL_PLUGIN_PASSWORD",
        "TORCH_API_KEY",
        "TORCH_NCCL_SECRET",
        "VLLM_API_KEY",
        "GLOO_TLS_PASSPHRASE",
        "AWS_SECRET_ACCESS_KEY",
    ),
    *("PGPASSWORD", "smtp_pass", "clientSecret", "SERVICE_CREDENTIALS", "session_key", "SSH_KEY", "COOKIE"),
)


def made() -> str:
    """A secret as programs make them."""
    return "".join(_choose.choice(part) for part in (string.ascii_uppercase, string.digits, string.ascii_lowercase)) + "".join(
        _choose.choices(string.ascii_letters + string.digits, k=21)
    )


GIVEN = {name: made() for name in NAMES}
INSIDE = {"proxy": made(), "dsn": made(), "json": made(), "cookie": made()}
ENVIRONMENT = {
    **GIVEN,
    "https_proxy": f"http://me:{INSIDE['proxy']}@127.0.0.1:3128",
    "TORCH_DSN": f"postgresql://me:{INSIDE['dsn']}@db:5432/x",
    "VLLM_EXTRA": json.dumps({"credentials": {"phrase": INSIDE["json"]}}),
    "NCCL_EXTRA_HEADERS": f"Cookie: sid={INSIDE['cookie']}",
}
ARGUMENTS = [made() for _ in range(4)]  # of the job
LOGGED = [made() for _ in CARRIERS]  # one in each carrier
SECRETS = [*GIVEN.values(), *INSIDE.values(), *ARGUMENTS, *LOGGED]

# Whoever starts with this on its path prints, when it has its log, what it knows: in all carriers, and bare.
SAYS = """
import faulthandler, os, sys
enable = faulthandler.enable
said = open(os.environ["TEST_SAID"], newline="").read()
def then_say(*given, **named):
    enable(*given, **named)
    sys.stderr.write(said)
    sys.stderr.flush()
faulthandler.enable = then_say
if "RANK" in os.environ or "torchrun" in " ".join(sys.orig_argv):
    sys.stderr.write(said)
    sys.stderr.flush()
"""
JOB = """
import faulthandler, sys
import torch, torch.distributed as dist

faulthandler.enable()
dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
def reads_what_nobody_writes(api_key):
    print("rank 1 reads", flush=True)
    open(sys.argv[1]).read()
if dist.get_rank() == 1:
    reads_what_nobody_writes(sys.argv[3])
dist.all_reduce(ones)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("says")
    (folder / "sitecustomize.py").write_text(SAYS)
    bare = "\n".join(f"INFO <<{secret}>> was seen at step {number}" for number, secret in enumerate([*GIVEN.values(), *INSIDE.values()]))
    carried = "\n".join(carrier.format(secret) for carrier, secret in zip(CARRIERS, LOGGED, strict=True))
    (folder / "said").write_text(f"{carried}\n{bare}\nthe end of what is said\n", newline="")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", str(Path(__file__).parents[1])))))
    return {**ENVIRONMENT, "TEST_SAID": str(folder / "said"), "PYTHONPATH": path}


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and those of whatever is packed in them."""
    yield name, data
    if data[:2] == b"\x1f\x8b":
        yield from contents(f"{name} unpacked", gzip.decompress(data))
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                yield f"{name}/{member.name}", member.name.encode()
                if file := archive.extractfile(member):
                    yield from contents(f"{name}/{member.name}", file.read())
    else:
        with contextlib.suppress(zlib.error):
            yield f"{name} inflated", zlib.decompress(data)


def shown(*folders: Path) -> list[str]:
    """Where a secret stands, in any of these folders; two thirds of one count."""
    pieces = {piece.encode(): secret for secret in SECRETS for piece in (secret[:16], secret[-16:])}
    found = []
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*")):
            for name, data in contents(str(path), path.read_bytes() if path.is_file() else b""):
                found += [f"{name}: {secret}" for piece, secret in pieces.items() if piece in data or piece.decode() in name]
    return found


def test_there_are_many_secrets_and_the_search_finds_one_inside_a_bundle(tmp_path: Path) -> None:
    assert len(set(SECRETS)) == len(SECRETS) > 100
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("x/log")
        member.size = len(SECRETS[5])
        archive.addfile(member, io.BytesIO(SECRETS[5].encode()))
    assert shown(tmp_path)


@pytest.mark.parametrize(
    "form, fault", [("json", ""), ("json", "hang"), ("json", "exception"), ("text", "exception"), ("junit", "exception"), ("prometheus", "exception")]
)
def test_no_secret_is_in_what_a_run_prints_or_keeps(form: str, fault: str, environment: dict[str, str], tmp_path: Path) -> None:
    words = ("--inject", f"{fault}@rank=1,after=3") if fault else ()
    job = Job(tmp_path, "probe", "host", "wiring", "bandwidth", "--budget", "1s", "--emulate", "2x1", "--format", form, *words, env=environment)
    try:
        job.wait(240)
        run = job.run_dir
    finally:
        job.kill()
    logs = [path.read_text(errors="replace") for path in run.rglob("*.log")]
    assert sum("the end of what is said" in log for log in logs) >= 2 and "was seen at step 3" in "".join(logs)
    assert job.out and "Traceback" not in job.err
    assert not shown(tmp_path)


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[tuple[Path, int]]:
    """The folder of a real job that hangs and its launcher's pid; its arguments, its environment and its logs hold secrets."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "train.py").write_text(JOB)
    os.mkfifo(folder / "fifo")
    words = ["--api-key", ARGUMENTS[0], f"--db-pass={ARGUMENTS[1]}", "--token", ARGUMENTS[2], ARGUMENTS[3]]
    launcher = ("--standalone", "--nproc-per-node", "2", "--redirects", "3", "--log-dir", str(folder / "logs"))
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(folder / "train.py"), str(folder / "fifo"), *words]
    with open(folder / "torchrun.log", "wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: any("rank 1 reads" in path.read_text() for path in folder.glob("logs/**/stdout.log")), SOON, "rank 1 at its place")
        yield folder, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.poll() is None:
            process.kill()
            process.wait()


def test_no_secret_of_a_job_is_in_a_bundle_of_it(hung: tuple[Path, int], tmp_path: Path) -> None:
    job = Job(tmp_path, "collect", "--pid", str(hung[1]))
    assert job.wait(120) == 0, job.err
    (bundle,) = tmp_path.glob("*.tar.gz")
    names = [name for name, _ in contents("bundle", bundle.read_bytes())]
    assert any("/log." in name for name in names) and any("/pyspy." in name for name in names) and any("/env." in name for name in names)
    assert b"was seen at step 3" in b"".join(data for _, data in contents("bundle", bundle.read_bytes()))
    assert not shown(tmp_path)


@pytest.mark.parametrize("form", ["text", "json", "junit", "prometheus"])
def test_no_secret_of_a_job_is_in_what_triage_says_of_it_or_of_its_logs(form: str, hung: tuple[Path, int], tmp_path: Path) -> None:
    folder, pid = hung
    live = Job(tmp_path / "live", "triage", "--live", "--pid", str(pid), "--format", form)
    read = Job(tmp_path / "read", "triage", str(folder / "logs"), str(folder / "torchrun.log"), "--format", form, "--output", "result")
    assert [job.wait(180) in (0, 1, 3) for job in (live, read)] == [True, True], live.err + read.err
    assert "Traceback" not in live.err + read.err and live.out and (tmp_path / "read/result").stat().st_size
    assert not shown(tmp_path)
